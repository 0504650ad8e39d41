package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

const empty = "variant: fcos\nversion: 1.6.0\n"

func host(t testing.TB, files map[string]sourcetest.File, names ...string) (*fleet.HostConfig, error) {
	t.Helper()
	r, err := fleet.Open(sourcetest.New(files))
	if err != nil {
		return nil, err
	}
	return r.Host(fleet.Machine{Names: names})
}

func mustHost(t testing.TB, files map[string]sourcetest.File, names ...string) *fleet.HostConfig {
	t.Helper()
	h, err := host(t, files, names...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func file(data string) sourcetest.File { return sourcetest.File{Data: data} }

func text(files ...string) map[string]sourcetest.File {
	m := map[string]sourcetest.File{}
	for _, f := range files {
		m[f] = sourcetest.File{Data: empty}
	}
	return m
}

func with(m map[string]sourcetest.File, name string, f sourcetest.File) map[string]sourcetest.File {
	out := map[string]sourcetest.File{name: f}
	for k, v := range m {
		if k != name {
			out[k] = v
		}
	}
	return out
}

func TestWhichConfigIsMine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]sourcetest.File
		names []string
		want  string   // name: documents
		err   []string // each part of the error
	}{
		{"a file", text("hosts/web1.bu", "hosts/web2.bu"), []string{"web1"}, "web1: hosts/web1.bu", nil},
		{"a folder, in byte order", text("hosts/web1/b.bu", "hosts/web1/B.bu", "hosts/web1/a.bu", "hosts/web1/notes.md"), []string{"web1"},
			"web1: hosts/web1/B.bu hosts/web1/a.bu hosts/web1/b.bu", nil},
		{"a file at the root", text("web1.bu"), []string{"web1"}, "web1: web1.bu", nil},
		{"a folder at the root", text("web1/x.bu"), []string{"web1"}, "web1: web1/x.bu", nil},
		{"the first name wins", text("hosts/a.bu", "hosts/b.bu"), []string{"x", "b", "a"}, "b: hosts/b.bu", nil},
		{"case does not matter", text("hosts/Web1.bu"), []string{"WEB1"}, "Web1: hosts/Web1.bu", nil},
		{"a folder without .bu belongs to the file", text("hosts/web1.bu", "hosts/web1/README"), []string{"web1"}, "web1: hosts/web1.bu", nil},
		{"another hosts_dir", with(text("machines/web1.bu", "hosts/web1.bu"), "fleet.toml", sourcetest.File{Data: "hosts_dir = 'machines/'\n"}),
			[]string{"web1"}, "web1: machines/web1.bu", nil},
		{"a host named like hosts_dir", text("hosts/a.bu", "hosts/hosts.bu"), []string{"hosts"}, "hosts: hosts/hosts.bu", nil},
		{"a folder named like a file", text("hosts/web1.bu/x", "web1.bu"), []string{"web1"}, "web1: web1.bu", nil},

		{"file and folder", text("hosts/web1.bu", "hosts/web1/a.bu"), []string{"web1"}, "", []string{"hosts/web1.bu", "hosts/web1/"}},
		{"in hosts and at the root", text("hosts/web1.bu", "web1.bu"), []string{"web1"}, "", []string{"hosts/web1.bu", "web1.bu"}},
		{"twins but for case", text("hosts/web1.bu", "hosts/WEB1.bu"), []string{"web1"}, "", []string{"hosts/web1.bu", "hosts/WEB1.bu"}},
		{"a symlink", with(text("x.bu"), "hosts/web1.bu", sourcetest.File{Mode: source.Symlink, Data: "../x.bu"}), []string{"web1"}, "",
			[]string{"hosts/web1.bu: it is a symlink"}},
		{"path separator", text("a.bu"), []string{"../a"}, "", []string{"cannot be the name"}},
		{"leading dot", text("a.bu"), []string{".a"}, "", []string{"cannot be the name"}},
		{"empty name", text("a.bu"), []string{""}, "", []string{"empty"}},
		{"not UTF-8", map[string]sourcetest.File{"hosts/a.bu": {Data: "x\ny\xff"}}, []string{"a"}, "", []string{"hosts/a.bu:2:2: it is not UTF-8"}},
		{"byte order mark", map[string]sourcetest.File{"hosts/a.bu": {Data: "\ufeffx"}}, []string{"a"}, "", []string{"hosts/a.bu:1:1: it begins with a byte order mark"}},
		{"too large", map[string]sourcetest.File{"hosts/a.bu": {Data: strings.Repeat("x", 4<<20+1)}}, []string{"a"}, "", []string{"hosts/a.bu: it has 4194305 bytes"}},
		{"every document that is wrong", map[string]sourcetest.File{"hosts/a/1.bu": {Data: "\xff"}, "hosts/a/2.bu": {Data: "\xff"}}, []string{"a"}, "",
			[]string{"hosts/a/1.bu", "hosts/a/2.bu"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := host(t, tt.files, tt.names...)
			if tt.err != nil {
				var e *finding.Failure
				if !errors.As(err, &e) {
					t.Fatalf("error is %T %v, want *finding.Failure", err, err)
				}
				for _, part := range tt.err {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q lacks %q", err, part)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := h.Name + ":"
			for _, d := range h.Layers[0].Documents {
				got += " " + d.Entry.Path
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNoHost(t *testing.T) {
	_, err := host(t, text("hosts/web1.bu", "hosts/web12/a.bu", "web2.bu", "hosts/db.bu", "hosts/web3.bu", "hosts/web4.bu"), "web5.example.com", "web5")
	var none *fleet.NoHostError
	if !errors.As(err, &none) {
		t.Fatalf("error is %v", err)
	}
	want := &fleet.NoHostError{
		Names: []string{"web5.example.com", "web5"},
		Tried: []string{
			"hosts/web5.example.com.bu", "hosts/web5.example.com/*.bu", "web5.example.com.bu", "web5.example.com/*.bu",
			"hosts/web5.bu", "hosts/web5/*.bu", "web5.bu", "web5/*.bu",
		},
		Similar: []string{"web1", "web3", "web4"},
	}
	if d := cmp.Diff(want, none); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestFleetToml(t *testing.T) {
	for _, tt := range []struct{ name, toml, want string }{
		{"defaults", "", ""},
		{"all of it", "schema = 1\nhosts_dir = 'hosts'\nfiles_dir = 'files'\n", ""},
		{"unknown", "schema = 1\nfile_dir = '.'\n", `fleet.toml:2:1: unknown key "file_dir"`},
		{"a table of a later release", "[watch.web]\nhosts = ['*']\n", `fleet.toml:1:1: unknown key "watch"`},
		{"newer", "schema = 2\nshiny = true\n", `fleet.toml:1:1: schema 2 is newer than this release knows (1)`},
		{"older", "schema = 0\n", `fleet.toml:1:1: schema 0 does not exist`},
		{"syntax", "schema =\n", `fleet.toml:1:9: expected value`},
		{"outside", "files_dir = '../x'\n", `fleet.toml:1:1: files_dir: "../x" cannot be used`},
		{"absolute", "files_dir = '/files'\n", `fleet.toml:1:1: files_dir: "/files" cannot be used`},
		{"no such folder", "files_dir = 'nope'\n", `fleet.toml:1:1: files_dir: there is no folder nope`},
		{"no folder", "files_dir = 'web1.bu'\n", `fleet.toml:1:1: files_dir: web1.bu is no folder`},
		{"a symlink", "files_dir = 'link'\n", `fleet.toml:1:1: files_dir: link is no folder`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := text("web1.bu", "files/x")
			files["fleet.toml"] = sourcetest.File{Data: tt.toml}
			files["link"] = sourcetest.File{Mode: source.Symlink, Data: "files"}
			_, err := fleet.Open(sourcetest.New(files))
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var e *finding.Failure
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error is %T %v, want %s", err, err, tt.want)
			}
		})
	}
}

const refers = `variant: fcos
version: 1.6.0
storage:
  files:
    - path: /etc/motd
      contents:
        local: motd
    - path: /etc/gone
      contents:
        local: gone
    - path: /etc/out
      contents:
        local: ../out
  trees:
    - local: tree
`

func TestReferencesAndInputs(t *testing.T) {
	files := map[string]sourcetest.File{
		"fleet.toml":        {Data: "files_dir = 'files'\n"},
		"hosts/web1.bu":     {Data: refers},
		"files/motd":        {Data: "hello\n", Mode: source.Executable},
		"files/tree/a":      {Data: "a"},
		"hosts/web1/README": {Data: "x"},
	}
	h := mustHost(t, files, "web1")
	var got []string
	for _, i := range h.Inputs {
		got = append(got, i.String())
	}
	tree := sourcetest.New(files)
	folder, err := tree.Entry("files/tree")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"epoch 1",
		"host web1",
		"setting files_dir files",
		"layer hosts/web1.bu 100644 " + sourcetest.ID("blob", []byte(refers)),
		"reference storage.files[0].contents.local motd 100755 " + sourcetest.ID("blob", []byte("hello\n")),
		"reference storage.files[1].contents.local gone -",
		"reference storage.files[2].contents.local ../out -",
		"reference storage.trees[0].local tree 040000 " + folder.ID,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("inputs (-want +got):\n%s", d)
	}
	if len(h.Unsupported) != 0 {
		t.Errorf("unsupported: %v", h.Unsupported)
	}
}

func TestUnsupported(t *testing.T) {
	files := text("hosts/web1.bu", "hosts/web1/1.sls", "hosts/web1/state.toml", "hosts/web1/bundles/a.toml", "hosts/web1/README",
		"bundles/x.toml", "hosts/web2/hooks/update.d/x", "groups/common/a.bu")
	files["hosts/web1.bu"] = sourcetest.File{Data: empty + "storage:\n  files:\n  - path: /a\n    contents: {local: b.age}\n"}
	h := mustHost(t, files, "web1")
	var got []string
	for _, f := range h.Unsupported {
		got = append(got, f.Position.String()+": "+f.Message)
	}
	want := []string{
		"hosts/web1/bundles: container bundles are not supported yet",
		"hosts/web1/state.toml: state paths are not supported yet",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What must change the digest, and what must not.
func TestDigest(t *testing.T) {
	base := map[string]sourcetest.File{
		"hosts/web1.bu":               {Data: refers},
		"motd":                        {Data: "hello\n"},
		"tree/a":                      {Data: "a"},
		"tree/sub/b":                  {Data: "b"},
		"hosts/web1/hooks/update.d/x": {Data: "x"},
		"hosts/web1/README":           {Data: "x"},
		"hosts/web2.bu":               {Data: empty},
		"hosts/web2/hooks/update.d/y": {Data: "x"},
	}
	before := mustHost(t, base, "web1").Digest
	for _, tt := range []struct {
		name, path string
		file       sourcetest.File
		changes    bool
	}{
		{"nothing", "motd", base["motd"], false},
		{"a comment in the layer", "hosts/web1.bu", sourcetest.File{Data: refers + "# x\n"}, true},
		{"the layer's mode", "hosts/web1.bu", sourcetest.File{Data: refers, Mode: source.Executable}, true},
		{"a referenced file", "motd", sourcetest.File{Data: "bye\n"}, true},
		{"its mode", "motd", sourcetest.File{Data: "hello\n", Mode: source.Executable}, true},
		{"deep in a tree", "tree/sub/b", sourcetest.File{Data: "B"}, true},
		{"an addition to a tree", "tree/sub/c", sourcetest.File{Data: "c"}, true},
		{"a missing reference appears", "gone", sourcetest.File{Data: "c"}, true},
		{"a script", "hosts/web1/hooks/update.d/x", sourcetest.File{Data: "y"}, true},
		{"its mode", "hosts/web1/hooks/update.d/x", sourcetest.File{Data: "x", Mode: source.Executable}, true},
		{"another script", "hosts/web1/hooks/update.d/z", sourcetest.File{Data: "x"}, true},
		{"a script directory that is none", "hosts/web1/hooks/updates.d/x", sourcetest.File{Data: "x"}, true},
		{"a symlink for a script", "hosts/web1/hooks/update.d/z", sourcetest.File{Data: "x", Mode: source.Symlink}, true},
		{"a README of the scripts", "hosts/web1/hooks/README.md", sourcetest.File{Data: "x"}, false},
		{"a migration", "hosts/web1/x.sls", sourcetest.File{Data: "y"}, true},
		{"another host", "hosts/web2.bu", sourcetest.File{Data: refers}, false},
		{"another host's hook", "hosts/web2/hooks/update.d/y", sourcetest.File{Data: "y"}, false},
		{"an unreferenced file", "other", sourcetest.File{Data: "y"}, false},
		{"a file of the host that is nothing", "hosts/web1/README", sourcetest.File{Data: "y"}, false},
		{"fleet.toml with the defaults", "fleet.toml", sourcetest.File{Data: "schema = 1\n# x\n"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := mustHost(t, with(base, tt.path, tt.file), "web1").Digest
			if (after != before) != tt.changes {
				t.Errorf("digest changed: %v, want %v", after != before, tt.changes)
			}
		})
	}
	if len(before) != 64 {
		t.Errorf("digest is %q", before)
	}
}

func many(references int) map[string]sourcetest.File {
	var b strings.Builder
	b.WriteString(empty + "storage:\n  files:\n")
	files := map[string]sourcetest.File{}
	for i := range references {
		fmt.Fprintf(&b, "  - path: /etc/f%d\n    contents:\n      local: files/d%d/f%d\n", i, i%5, i)
		files[fmt.Sprintf("files/d%d/f%d", i%5, i)] = sourcetest.File{Data: fmt.Sprint(i)}
	}
	files["hosts/web1.bu"] = sourcetest.File{Data: b.String()}
	return files
}

func BenchmarkHost50References(b *testing.B) {
	tree := sourcetest.New(many(50))
	for b.Loop() {
		r, err := fleet.Open(tree)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Host(fleet.Machine{Names: []string{"web1"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSum50References(b *testing.B) {
	h := mustHost(b, many(50), "web1")
	for b.Loop() {
		fleet.Sum(h.Inputs)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("schema = 1\n")
	f.Add("hosts_dir = 'a/../..'\n[x]\n")
	f.Fuzz(func(t *testing.T, data string) {
		tree := sourcetest.Text(map[string]string{"fleet.toml": data, "hosts/a.bu": empty})
		r, err := fleet.Open(tree)
		if err != nil {
			var e *finding.Failure
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if r.Config.Schema != fleet.Schema {
			t.Errorf("schema %d was taken", r.Config.Schema)
		}
	})
}

// Equal input gives an equal digest, and a shifted boundary between two values
// does not.
func FuzzSum(f *testing.F) {
	f.Add("layer", "", "hosts/a.bu", "0123", uint32(0o100644), 3)
	f.Fuzz(func(t *testing.T, kind, field, name, id string, mode uint32, cut int) {
		in := fleet.Input{Kind: kind, Field: field, Name: name, Mode: source.Mode(mode), ID: id}
		same := in
		if fleet.Sum([]fleet.Input{in}) != fleet.Sum([]fleet.Input{same}) {
			t.Error("equal inputs, two digests")
		}
		if fleet.Sum([]fleet.Input{in}) == fleet.Sum([]fleet.Input{in, in}) {
			t.Error("one input and two of it have one digest")
		}
		if cut > 0 && cut < len(name) {
			moved := in
			moved.Field, moved.Name = field+name[:cut], name[cut:]
			if fleet.Sum([]fleet.Input{in}) == fleet.Sum([]fleet.Input{moved}) {
				t.Errorf("%v and %v have one digest", in, moved)
			}
		}
	})
}
