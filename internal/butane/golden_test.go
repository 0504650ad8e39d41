package butane_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

var update = flag.Bool("update", false, "rewrite the want sections of testdata/translate")

// TestGolden runs every case of testdata/translate. The .bu files of an archive
// are the layers, in order; of one with a fleet.toml they are those of the host
// web1. https/<host>/<path> is what that address serves; the
// rest are files of the fleet repo. Lines of the archive's comment say what txtar
// cannot hold:
//
//	exec <file>            mode 0755
//	symlink <file> <target>
//	submodule <file>
//	base64 <file>          its section is decoded
//	crlf <file>            line ends become CRLF
//	chomp <file>           the final newline is taken away
//	files_dir <folder>
//	lenient                unknown keys are warnings
//	one-layer              the .bu files are the files of one layer
func TestGolden(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("..", "..", "testdata", "translate", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 30 {
		t.Fatalf("%d cases, want at least 30", len(names))
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c := parseCase(t, archive)
			got := c.run(t)
			if *update {
				c.setWant(archive, got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("translation differs (-want +got):\n%s", diff)
			}
		})
	}
}

type layerFile struct {
	name    string
	data    []byte
	written *butane.Written
}

type goldenCase struct {
	layers   []layerFile
	repo     map[string]sourcetest.File
	remote   map[string][]byte
	filesDir string
	strict   bool
	oneLayer bool
	want     string
}

func parseCase(t *testing.T, archive *txtar.Archive) *goldenCase {
	t.Helper()
	c := &goldenCase{repo: map[string]sourcetest.File{}, remote: map[string][]byte{}, filesDir: ".", strict: true}
	files := map[string][]byte{}
	var order []string
	for _, f := range archive.Files {
		files[f.Name] = f.Data
		order = append(order, f.Name)
	}
	modes := map[string]source.Mode{}
	for line := range strings.Lines(string(archive.Comment)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		name := ""
		if len(words) > 1 {
			name = words[1]
		}
		switch words[0] {
		case "exec":
			modes[name] = source.Executable
		case "symlink":
			c.repo[name] = sourcetest.File{Mode: source.Symlink, Data: words[2]}
		case "submodule":
			c.repo[name] = sourcetest.File{Mode: source.Submodule, Data: strings.Repeat("ab", 20)}
		case "base64":
			data, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(files[name])))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = data
		case "crlf":
			files[name] = bytes.ReplaceAll(files[name], []byte("\n"), []byte("\r\n"))
		case "chomp":
			files[name] = bytes.TrimSuffix(files[name], []byte("\n"))
		case "files_dir":
			c.filesDir = name
		case "lenient":
			c.strict = false
		case "one-layer":
			c.oneLayer = true
		default:
			t.Fatalf("unknown directive %q", words[0])
		}
	}
	for _, name := range order {
		data := files[name]
		switch {
		case name == "want":
			c.want = string(data)
		case strings.HasSuffix(name, ".bu"):
			c.layers = append(c.layers, layerFile{name: name, data: data})
			if _, ok := files["fleet.toml"]; ok {
				c.repo[name] = sourcetest.File{Data: string(data)}
			}
		case strings.HasPrefix(name, "https/"):
			c.remote["https://"+strings.TrimPrefix(name, "https/")] = data
		default:
			c.repo[name] = sourcetest.File{Mode: modes[name], Data: string(data)}
		}
	}
	return c
}

func (c *goldenCase) setWant(archive *txtar.Archive, got string) {
	for i := range archive.Files {
		if archive.Files[i].Name == "want" {
			archive.Files[i].Data = []byte(got)
			return
		}
	}
	archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
}

// host reads the layers of web1, where there is a fleet.toml.
func (c *goldenCase) host(t *testing.T) (finding.List, func(string, []byte) ([]byte, error)) {
	t.Helper()
	if _, ok := c.repo["fleet.toml"]; !ok {
		return nil, nil
	}
	r, err := fleet.Open(sourcetest.New(c.repo))
	var h *fleet.HostConfig
	if err == nil {
		h, err = r.Host(fleet.Machine{Names: []string{"web1"}})
	}
	c.layers = nil
	var bad *finding.Failure
	if errors.As(err, &bad) {
		return bad.Findings, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	c.filesDir = h.FilesDir
	for _, layer := range h.Layers {
		for _, d := range layer.Documents {
			c.layers = append(c.layers, layerFile{d.Entry.Path, d.Data, d.Written})
		}
	}
	return nil, h.Expand
}

// run takes the way of the agent: references, export, translation, merge.
func (c *goldenCase) run(t *testing.T) string {
	t.Helper()
	const nonce = "6d2f"
	list, expand := c.host(t)
	var refs []butane.Reference
	for _, layer := range c.layers {
		found, err := butane.References(layer.name, layer.data, layer.written)
		if err == nil {
			refs = append(refs, found...)
		}
	}
	e := butane.Exporter{Tree: sourcetest.New(c.repo), FilesDir: c.filesDir, Dir: t.TempDir(), Nonce: nonce, Expand: expand}
	exported, err := e.Export(refs)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range exported { // what is wrong with a template stands in it
		if !slices.ContainsFunc(c.layers, func(l layerFile) bool { return l.name == f.File }) {
			list = append(list, f)
		}
	}
	var layers []butane.Config
	for _, layer := range c.layers {
		cfg, found := butane.Translate(layer.name, layer.data, layer.written, e.Dir, c.strict)
		var refused finding.List
		for _, f := range exported {
			if f.File == layer.name {
				refused = append(refused, f)
			}
		}
		list = append(list, butane.Join(cfg.Excerpts(refused), found)...)
		layers = append(layers, cfg)
	}
	if c.oneLayer {
		list = append(list, butane.Duplicates(layers)...)
	}
	var state desired.State
	if len(list.Errors()) == 0 {
		merged, found := butane.Merge(layers, func(content desired.Content) ([]byte, error) {
			data, ok := c.remote[content.URL]
			if !ok {
				return nil, fmt.Errorf("%s: 404 Not Found", content.URL)
			}
			return data, nil
		})
		list = append(list, found...)
		if len(found.Errors()) == 0 {
			state, found = desired.Translate(merged.Ignition, merged, butane.Blobs(nonce))
			list = append(list, merged.Excerpts(found)...)
		}
	}
	var b strings.Builder
	if len(list.Errors()) == 0 {
		write(&b, state)
	}
	b.WriteString(show(list))
	if strings.Contains(show(list), "hunter2") {
		t.Errorf("a secret is shown:\n%s", show(list))
	}
	if strings.Contains(b.String(), e.Dir) {
		t.Errorf("the private directory is named:\n%s", b.String())
	}
	return b.String()
}

// write is a state as text, for people and for diff.
func write(b *strings.Builder, s desired.State) {
	for _, d := range s.Directories {
		fmt.Fprintf(b, "directory %s %04o %s:%s%s  # %s\n", d.Path, d.Mode, owner(d.User), owner(d.Group), unsaid(d.Unsaid), at(d.Position))
	}
	for _, f := range s.Files {
		fmt.Fprintf(b, "file %s %04o %s:%s%s  # %s\n", f.Path, f.Mode, owner(f.User), owner(f.Group), unsaid(f.Unsaid), at(f.Position))
		if f.Contents != nil {
			content(b, "contents", *f.Contents)
		}
		for _, a := range f.Append {
			content(b, "append", a)
		}
	}
	for _, l := range s.Links {
		kind := "link"
		if l.Hard {
			kind = "hard link"
		}
		fmt.Fprintf(b, "%s %s -> %s %s:%s  # %s\n", kind, l.Path, l.Target, owner(l.User), owner(l.Group), at(l.Position))
	}
	for _, u := range s.Units {
		fmt.Fprintf(b, "unit %s%s%s  # %s\n", u.Name, flagText(" enabled", u.Enabled), flagText(" mask", u.Mask), at(u.Position))
		if u.Contents != nil {
			fmt.Fprintf(b, "  contents %q\n", *u.Contents)
		}
		for _, d := range u.Dropins {
			fmt.Fprintf(b, "  drop-in %s %q  # %s\n", d.Name, *d.Contents, at(d.Position))
		}
	}
	for _, s := range s.Ignored {
		fmt.Fprintf(b, "ignored %s %.8s  # %s\n", s.Name, s.Hash, at(s.Position))
	}
}

func content(b *strings.Builder, what string, c desired.Content) {
	switch {
	case c.Blob != "":
		fmt.Fprintf(b, "  %s blob %.8s %s", what, c.Blob, c.Path)
	case c.URL != "":
		fmt.Fprintf(b, "  %s %s", what, c.URL)
	case c.Gzip:
		fmt.Fprintf(b, "  %s inline of %d bytes", what, len(c.Inline))
	default:
		fmt.Fprintf(b, "  %s inline %q", what, c.Inline)
	}
	if c.Gzip {
		b.WriteString(" gzip")
	}
	if c.Verify != "" {
		fmt.Fprintf(b, " %.16s", c.Verify)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		fmt.Fprintf(b, " %s=%s", name, c.Headers[name])
	}
	b.WriteByte('\n')
}

func owner(o desired.Owner) string {
	switch {
	case o.Name != "":
		return o.Name
	case o.ID != 0:
		return fmt.Sprint(o.ID)
	default:
		return "root"
	}
}

func unsaid(u desired.Unsaid) string {
	var words []string
	for word, open := range map[string]bool{"mode": u.Mode, "user": u.User, "group": u.Group} {
		if open {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return ""
	}
	slices.Sort(words)
	return " unsaid=" + strings.Join(words, ",")
}

func flagText(name string, b *bool) string {
	if b == nil {
		return ""
	}
	return fmt.Sprintf("%s=%v", name, *b)
}

func at(p finding.Position) string {
	return fmt.Sprintf("%s:%d %s", path.Base(p.File), p.Line, p.Field)
}
