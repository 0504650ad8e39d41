package fleet_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

// Each mistake is said with its place and with what to do, by whichever host asks.
func TestWrongFleetToml(t *testing.T) {
	for _, tt := range []struct{ name, toml, want string }{
		{"unknown key of a group", "[group.web]\nhost = ['*']\n",
			`fleet.toml:2:1: unknown key "group.web.host" (did you mean "group.web.hosts"?)`},
		{"unknown key of a host", "[host.web1]\nretried = true\n",
			`fleet.toml:2:1: unknown key "host.web1.retried" (did you mean "host.web1.retired"?)`},
		{"hosts is no array", "[group.web]\nhosts = '*'\n",
			`fleet.toml:2:1: "group.web.hosts" is a string, and an array is needed (write it in brackets: [...])`},
		{"vars is no table", "vars = 'x'\n", `fleet.toml:1:1: "vars" is a string, and a table is needed`},
		{"vars is a number", "[group.web]\nvars = 3\n", `fleet.toml:2:1: "group.web.vars" is an integer, and a table is needed`},
		{"a date as a var", "[vars]\nsince = 2026-01-02\n",
			`fleet.toml:2:1: vars.since is a date or a time, which a template cannot use (write it as a string)`},
		{"a date deep in a var", "[group.web]\nvars = { a = [{ b = 2026-01-02T03:04:05Z }] }\n",
			`fleet.toml:2:1: group.web.vars.a is a date or a time, which a template cannot use (write it as a string)`},
		{"no number as a var", "[host.web1.vars]\nx = nan\n",
			`fleet.toml:2:1: host.web1.vars.x is no finite number, which a template cannot use (write it as a string)`},
		{"the name of a var", "[vars]\nmy-port = 1\n",
			`fleet.toml:2:1: "my-port" cannot be the name of a var (use letters, digits and _, so that a template can say .Vars.name)`},
		{"a broken glob", "[group.web]\nhosts = ['web[1']\n",
			`fleet.toml:2:1: group.web.hosts: "web[1" cannot be used: it is no glob: * is any text, ? any one character, [a-f] one of several`},
		{"an empty glob", "[group.web]\nhosts = ['']\n", `fleet.toml:2:1: group.web.hosts: "" cannot be used: it is no glob`},
		{"a broken regular expression", "[group.web]\nhosts = ['/web(/']\n",
			"fleet.toml:2:1: group.web.hosts: \"/web(/\" cannot be used: error parsing regexp: missing closing ): `web(`"},
		{"half a regular expression", "[group.web]\nhosts = ['/web']\n",
			`fleet.toml:2:1: group.web.hosts: "/web" cannot be used: a regular expression stands between two slashes: /^web[0-9]+$/`},
		{"a layer outside", "[group.web]\nlayers = ['../x']\n",
			`fleet.toml:2:1: group.web.layers: "../x" cannot be used (name a .bu file or a folder of them, relative to the root of the fleet repo)`},
		{"everything as a layer", "[group.web]\nlayers = ['.']\n", `fleet.toml:2:1: group.web.layers: "." cannot be used`},
		{"what retired may be", "[host.web1]\nretired = 'yes'\n", `fleet.toml:2:12: retired is true, false or "remove"`},
		{"twins but for case", "[host.web1]\n[host.WEB1]\n",
			`fleet.toml:1:1: [host.WEB1] and [host.web1] are the same host (keep one of them: names of hosts do not differ by case alone)`},
		{"no name of a host", "[host.'../x']\n", `fleet.toml:1:1: "../x" cannot be the name of a host config`},
		{"a watch", "[[service.watch]]\npath = 'etc/x'\nunit = 'x.service'\n", `fleet.toml:1:1: service.watch: `},
		{"past the end", "schema = 1\nx", `fleet.toml:2:2: unexpected EOF`},
		{"not UTF-8", "schema = 1\n# \xff\n", `fleet.toml:2:3: it is not UTF-8 (save it as UTF-8)`},
		{"byte order mark", "\ufeffschema = 1\n", `fleet.toml:1:1: it begins with a byte order mark (save it as UTF-8 without a byte order mark)`},
		{"all of them", "files_dir = '/'\n[group.a]\nhosts = ['[']\nlayers = ['/x']\n",
			"fleet.toml:1:1: files_dir: \"/\" cannot be used (paths are relative to the root of the fleet repo, and stay in it)\nfleet.toml:3:1: group.a.hosts"},
		{"with CRLF", "schema = 1\r\nnope = 1\r\n", `fleet.toml:2:1: unknown key "nope"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := fleet.Open(sourcetest.Text(map[string]string{"fleet.toml": tt.toml, "hosts/web1.bu": empty}))
			var e *finding.Failure
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error is %T\n%v, want\n%s", err, err, tt.want)
			}
		})
	}
}

// A host meets only what concerns it; validating the fleet finds all of it.
func TestWrongGroups(t *testing.T) {
	for _, tt := range []struct {
		name, toml string
		host       string // error of web1, "" for none
		check      string // first finding about the whole
	}{
		{"a missing layer", "[group.g]\nhosts = ['web1']\nlayers = ['groups/nope']\n",
			`fleet.toml:3:1: group.g.layers: there is no groups/nope in the fleet repo (add it, or take it out of layers; paths are relative to the root of the fleet repo)`,
			`fleet.toml:3:1: error: group.g.layers: there is no groups/nope`},
		{"another group's missing layer", "[group.g]\nhosts = ['db1']\nlayers = ['groups/nope']\n", "", `fleet.toml:3:1: error: group.g.layers: there is no groups/nope`},
		{"a layer behind a symlink", "[group.g]\nhosts = ['web1']\nlayers = ['link/common']\n",
			`fleet.toml:3:1: group.g.layers: link/common leads through the symlink link (name the file or folder itself)`, `fleet.toml:3:1: error: group.g.layers: link/common`},
		{"a symlink as a layer", "[group.g]\nhosts = ['web1']\nlayers = ['link']\n",
			`fleet.toml:3:1: group.g.layers: link is no Butane file (name a file that ends in .bu, or a folder)`, `fleet.toml:3:1: error: group.g.layers: link is`},
		{"a layer that is no layer", "[group.g]\nhosts = ['web1']\nlayers = ['notes.md']\n",
			`fleet.toml:3:1: group.g.layers: notes.md is no Butane file`, `fleet.toml:3:1: error: group.g.layers: notes.md is`},
		{"a folder with nothing in it", "[group.g]\nhosts = ['web1']\nlayers = ['docs']\n",
			`fleet.toml:3:1: group.g.layers: docs has nothing that is a layer's (put a .bu file into it)`, `fleet.toml:3:1: error: group.g.layers: docs`},
		{"nobody", "[group.g]\nhosts = ['web*', 'nope*']\n", "", `fleet.toml:2:1: warning: group.g.hosts: "nope*" matches no host`},
		{"a host that does not exist", "[host.web9]\n", "", `fleet.toml:1:1: error: [host.web9]: there is no such host in the fleet repo`},
		{"a table where a string was", "vars = { x = 'a' }\n[host.web1]\nvars = { x = { y = 1 } }\n",
			`fleet.toml:3:1: host.web1.vars.x is a table, and is none where it was set before (give it the same type everywhere)`, ""},
		{"a string where a table was", "[vars]\na.x = { y = 1 }\n[group.g]\nhosts = ['web1']\nvars = { a = { x = 'a' } }\n",
			`fleet.toml:5:1: group.g.vars.a.x is no table, and is one where it was set before`, ""},
		{"retired and gone", "[host.web9]\nretired = true\n", "", ""},
		{"all is well", "[group.g]\nhosts = ['*']\nlayers = ['groups/common']\n[host.WEB1]\n", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := fleet.Open(sourcetest.New(map[string]sourcetest.File{
				"fleet.toml": {Data: tt.toml}, "hosts/web1.bu": {Data: empty}, "hosts/db1.bu": {Data: empty}, "notes.md": {Data: "x"}, "docs/x": {Data: "x"},
				"groups/common/a.bu": {Data: empty}, "link": {Mode: source.Symlink, Data: "groups"},
			}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Host(fleet.Machine{Names: []string{"web1"}})
			if tt.host == "" && err != nil || tt.host != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.host)) {
				t.Errorf("web1: %v, want %q", err, tt.host)
			}
			hosts, err := r.Hosts()
			if err != nil {
				t.Fatal(err)
			}
			list, err := r.Check(hosts)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := list.Write(&b); err != nil {
				t.Fatal(err)
			}
			if got := b.String(); tt.check == "" && got != "" || !strings.HasPrefix(got, tt.check) {
				t.Errorf("check: %s, want %q", got, tt.check)
			}
		})
	}
}

const groups = `
[vars]
domain = "example.com"
port = 1
[vars.log]
level = "info"
to = "journal"

[group.web]
hosts = ["web*"]
layers = ["groups/web", "groups/tls.bu"]
vars = { port = 2, log = { level = "debug" } }

[group.common]
hosts = ["*"]
layers = ["groups/common", "groups/tls.bu"]
vars = { tags = ["a", "b"] }

[group.odd]
hosts = ["/[13]$/"]
layers = ["groups/odd.bu"]
vars = { port = 3 }

[host.web1]
vars = { port = 4, tags = ["c"] }
`

// Layers come in the order of fleet.toml, each once, and the host's own last;
// vars likewise.
func TestLayersAndVars(t *testing.T) {
	files := text("hosts/web1.bu", "hosts/WEB2/b.bu", "hosts/WEB2/a.bu", "hosts/db3.bu", "hosts/db4.bu",
		"groups/web/2.bu", "groups/web/1.bu", "groups/web/README", "groups/common/x.bu", "groups/tls.bu", "groups/odd.bu")
	files["fleet.toml"] = sourcetest.File{Data: groups}
	for _, tt := range []struct {
		host, layers, groups string
		vars                 map[string]any
	}{
		{"web1", "web:groups/web/1.bu,groups/web/2.bu web:groups/tls.bu common:groups/common/x.bu odd:groups/odd.bu :hosts/web1.bu", "web common odd",
			map[string]any{"domain": "example.com", "port": int64(4), "log": map[string]any{"level": "debug", "to": "journal"}, "tags": []any{"c"}}},
		{"web2", "web:groups/web/1.bu,groups/web/2.bu web:groups/tls.bu common:groups/common/x.bu :hosts/WEB2/a.bu,hosts/WEB2/b.bu", "web common",
			map[string]any{"domain": "example.com", "port": int64(2), "log": map[string]any{"level": "debug", "to": "journal"}, "tags": []any{"a", "b"}}},
		{"db3", "common:groups/common/x.bu common:groups/tls.bu odd:groups/odd.bu :hosts/db3.bu", "common odd",
			map[string]any{"domain": "example.com", "port": int64(3), "log": map[string]any{"level": "info", "to": "journal"}, "tags": []any{"a", "b"}}},
		{"db4", "common:groups/common/x.bu common:groups/tls.bu :hosts/db4.bu", "common",
			map[string]any{"domain": "example.com", "port": int64(1), "log": map[string]any{"level": "info", "to": "journal"}, "tags": []any{"a", "b"}}},
	} {
		t.Run(tt.host, func(t *testing.T) {
			h := mustHost(t, files, tt.host)
			var layers []string
			for _, l := range h.Layers {
				var docs []string
				for _, d := range l.Documents {
					docs = append(docs, d.Entry.Path)
				}
				layers = append(layers, l.Group+":"+strings.Join(docs, ","))
			}
			if got := strings.Join(layers, " "); got != tt.layers {
				t.Errorf("layers\n%s, want\n%s", got, tt.layers)
			}
			if got := strings.Join(h.Groups, " "); got != tt.groups {
				t.Errorf("groups %s, want %s", got, tt.groups)
			}
			if d := cmp.Diff(tt.vars, h.Vars); d != "" {
				t.Errorf("vars (-want +got):\n%s", d)
			}
		})
	}
}

// Hosts are found by the names of files and folders; nothing is read.
func TestHosts(t *testing.T) {
	files := text("hosts/web1.bu", "hosts/web1/hooks/x", "hosts/Web2/a.bu", "hosts/empty/README", "hosts/.hidden.bu", "hosts/.bu", "db1.bu", "db2/x.bu",
		"groups/a.bu", "groups/web/b.bu", "shared.bu", "files/x.bu", "hosts/broken.bu")
	files["hosts/broken.bu"] = sourcetest.File{Data: "\xff"}
	files["fleet.toml"] = sourcetest.File{Data: "files_dir = 'files'\n[group.g]\nlayers = ['groups/web', 'shared.bu']\n[host.web2]\nretired = true\n[host.gone]\nretired = 'remove'\n"}
	tree := sourcetest.New(files)
	r, err := fleet.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"Web2", "broken", "db1", "db2", "gone", "web1"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"fleet.toml"}, tree.Opened()); d != "" {
		t.Errorf("read (-want +got):\n%s", d)
	}
	if _, err := r.Host(fleet.Machine{Names: []string{"groups"}}); err == nil {
		t.Error("a folder of layers is taken for a host")
	}
}

func TestRetired(t *testing.T) {
	files := text("hosts/web1.bu", "hosts/web2.bu")
	files["hosts/web1.bu"] = sourcetest.File{Data: "broken: ["}
	files["fleet.toml"] = sourcetest.File{Data: "[host.web1]\nretired = true\n[host.web2]\nretired = false\n[host.Web3]\nretired = 'remove'\n"}
	digests := map[fleet.Digest]bool{}
	for host, want := range map[string]fleet.Retirement{"web1": fleet.Retired, "web2": "", "web3": fleet.RetiredRemove} {
		h := mustHost(t, files, host)
		if h.Retired != want || (want != "") != (len(h.Layers) == 0) {
			t.Errorf("%s: retired %q with %d layers, want %q", host, h.Retired, len(h.Layers), want)
		}
		digests[h.Digest] = true
	}
	if len(digests) != 3 {
		t.Error("retirement is not in the digest")
	}
}

func TestMachineID(t *testing.T) {
	files := text("hosts/web1.bu", "hosts/web2.bu")
	files["fleet.toml"] = sourcetest.File{Data: "[host.web1]\nmachine_id = 'ABCD'\n"}
	r, err := fleet.Open(sourcetest.New(files))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		host, id string
		author   bool
		refused  bool
	}{
		{"web1", "abcd", false, false},
		{"web1", "abce", false, true},
		{"web1", "", false, true},
		{"web1", "", true, false},
		{"web2", "abce", false, false},
	} {
		m := fleet.Machine{Names: []string{tt.host}}
		if !tt.author {
			m.Facts = &fleet.Facts{MachineID: tt.id}
		}
		_, err := r.Host(m)
		var other *fleet.OtherMachineError
		if errors.As(err, &other) != tt.refused || !tt.refused && err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
