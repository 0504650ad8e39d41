package butane_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

func reference(kind butane.Kind, path string) butane.Reference {
	return butane.Reference{Field: "field of " + path, Path: path, Kind: kind,
		Position: finding.Position{File: "web1.bu", Line: 1, Column: 1, Field: "field of " + path}}
}

func TestExportReadsOnlyText(t *testing.T) {
	big := strings.Repeat("x", 2<<20)
	tree := sourcetest.New(map[string]sourcetest.File{
		"files/big":      {Data: big},
		"files/unit":     {Data: "[Service]\n"},
		"files/tree/run": {Mode: source.Executable, Data: big},
		"files/tree/l":   {Mode: source.Symlink, Data: "../../../etc/passwd"},
		"files/other":    {Data: big + "never asked for"},
	})
	e := butane.Exporter{Tree: tree, FilesDir: "files", Dir: t.TempDir(), Nonce: "n"}
	list, err := e.Export([]butane.Reference{
		reference(butane.Blob, "big"), reference(butane.Text, "./unit"), reference(butane.Tree, "tree/"), reference(butane.Tree, "tree"),
	})
	if err != nil || len(list) > 0 {
		t.Fatal(err, list)
	}
	if diff := cmp.Diff([]string{"files/unit", "files/tree/l", "files/tree/l"}, tree.Opened()); diff != "" {
		t.Errorf("blobs that were read (-want +got):\n%s", diff)
	}
	got := map[string]string{}
	err = filepath.Walk(e.Dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(e.Dir, name)
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			got[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		got[rel] = fmt.Sprintf("%o %s", info.Mode().Perm(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	oid := sourcetest.ID("blob", []byte(big))
	want := map[string]string{
		"big":      "600 " + string(butane.Placeholder("n", oid, "files/big")),
		"unit":     "600 [Service]\n",
		"tree/run": "700 " + string(butane.Placeholder("n", oid, "files/tree/run")),
		"tree/l":   "-> ../../../etc/passwd",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exported (-want +got):\n%s", diff)
	}
}

func TestExportExpandsTemplates(t *testing.T) {
	tree := sourcetest.Text(map[string]string{"a.tmpl": "host {{.}}", "b.tmpl": "bad", "tree/c.tmpl": "as it is"})
	e := butane.Exporter{Tree: tree, FilesDir: ".", Dir: t.TempDir(), Nonce: "n",
		Expand: func(path string, data []byte) ([]byte, error) {
			if path == "b.tmpl" {
				return nil, errors.New("b.tmpl:1: no such variable")
			}
			return []byte(strings.ReplaceAll(string(data), "{{.}}", "web1")), nil
		}}
	list, err := e.Export([]butane.Reference{reference(butane.Blob, "a.tmpl"), reference(butane.Text, "b.tmpl"), reference(butane.Tree, "tree")})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Message != "b.tmpl:1: no such variable" {
		t.Errorf("findings:\n%s", show(list))
	}
	data, err := os.ReadFile(filepath.Join(e.Dir, "a.tmpl"))
	if err != nil || string(data) != "host web1" {
		t.Errorf("%q, %v", data, err)
	}
	data, err = os.ReadFile(filepath.Join(e.Dir, "tree/c.tmpl"))
	if err != nil || !strings.HasPrefix(string(data), "reconf-pull placeholder n\n") {
		t.Errorf("%q, %v", data, err)
	}
}

func TestExportLimits(t *testing.T) {
	many := map[string]string{}
	for i := range 100_001 {
		many[fmt.Sprintf("many/%d/%d", i/1000, i)] = ""
	}
	deep := "deep" + strings.Repeat("/d", 70) + "/f"
	many[deep] = ""
	many["large"] = strings.Repeat("x", 1<<20+1)
	tree := sourcetest.Text(many)
	for name, c := range map[string]struct {
		refs []butane.Reference
		want string
	}{
		"entries":    {[]butane.Reference{reference(butane.Tree, "many")}, "more than 100000 entries"},
		"depth":      {[]butane.Reference{reference(butane.Tree, "deep")}, "more than 64 folders deep"},
		"text":       {[]butane.Reference{reference(butane.Text, "large")}, "at most 1048576 are allowed"},
		"references": {slices.Repeat([]butane.Reference{reference(butane.Text, "large")}, 100_001), "more than 100000 references"},
	} {
		t.Run(name, func(t *testing.T) {
			e := butane.Exporter{Tree: tree, FilesDir: ".", Dir: t.TempDir(), Nonce: "n"}
			list, err := e.Export(c.refs)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) != 1 || !strings.Contains(list[0].Message, c.want) || list[0].Line != 1 {
				t.Errorf("findings:\n%s", show(list))
			}
		})
	}
}

// TestExportNeverThroughSymlink: Butane follows symlinks in its files-dir, so
// that a reference through one must not find it there.
func TestExportNeverThroughSymlink(t *testing.T) {
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "shadow"), []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := sourcetest.New(map[string]sourcetest.File{
		"tree/out": {Mode: source.Symlink, Data: secret},
		"tree/a":   {Data: "a"},
	})
	const layer = `variant: fcos
version: 1.6.0
storage:
  trees:
    - local: tree
      path: /opt
  files:
    - path: /srv/shadow
      contents:
        local: tree/out/shadow
systemd:
  units:
    - name: a.service
      contents_local: tree/out/new
`
	refs, err := butane.References("web1.bu", []byte(layer), nil)
	if err != nil {
		t.Fatal(err)
	}
	e := butane.Exporter{Tree: tree, FilesDir: ".", Dir: t.TempDir(), Nonce: "n"}
	list, err := e.Export(refs)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Errorf("findings:\n%s", show(list))
	}
	cfg, said := butane.Translate("web1.bu", []byte(layer), nil, e.Dir, true)
	if text := fmt.Sprintf("%+v %s", cfg.Ignition, show(said)); strings.Contains(text, "hunter2") {
		t.Errorf("a file of the host was read: %s", text)
	}
	entries, err := os.ReadDir(secret)
	if err != nil || len(entries) != 1 {
		t.Errorf("the symlink was written through: %v, %v", entries, err)
	}
}

func TestPlaceholderNeedsItsNonce(t *testing.T) {
	data := butane.Placeholder("n1", "abcd", "files/a\nb")
	if oid, path, ok := butane.Blobs("n1")(data); !ok || oid != "abcd" || path != "files/a\nb" {
		t.Errorf("%q %q %v", oid, path, ok)
	}
	if _, _, ok := butane.Blobs("n2")(data); ok {
		t.Error("another run's placeholder is taken")
	}
	if _, _, ok := butane.Blobs("")(butane.Placeholder("", "abcd", "a")); ok {
		t.Error("a placeholder without a nonce is taken")
	}
}
