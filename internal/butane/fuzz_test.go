package butane_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
)

// seeds are the layers of the golden cases.
func seeds(f *testing.F) {
	f.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", "testdata", "translate", "*.txtar"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if strings.HasSuffix(file.Name, ".bu") {
				f.Add(file.Data)
			}
		}
	}
	const binary = "storage: {files: [{path: !!binary L4A=}, {path: !!binary L4E=}]}\n" // no UTF-8: two paths that JSON makes one of
	for _, head := range []string{"fcos\nversion: 1.0.0", "fcos\nversion: 1.3.0", "fcos\nversion: 1.5.0", "fcos\nversion: 1.7.0", "fcos\nversion: 1.8.0-experimental", "flatcar\nversion: 1.1.0", "r4e\nversion: 1.1.0", "fiot\nversion: 1.0.0"} {
		head = "variant: " + head + "\n"
		f.Add([]byte(head + binary))
		f.Add([]byte(head + "storage: {files: [{path: /a, mode: 07777, contents: {inline: a}, append: []}], directories: [{path: /b, mode: 02755, user: {id: 0}}], links: [{path: /l, target: ''}]}\nsystemd: {units: []}\npasswd: {}\n"))
	}
	f.Add([]byte("variant: openshift\nversion: 4.14.0\nmetadata: {name: a, labels: {machineconfiguration.openshift.io/role: worker}}\nstorage: {files: [{path: /a, mode: 0644, contents: {inline: a}}], luks: [{name: r, device: /dev/x, clevis: {tpm2: true}}]}\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("variant: fcos\nversion: 1.6.0\nstorage: ~\n"))
}

func FuzzReferences(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := butane.References("x.bu", data, nil)
		if err != nil && len(refs) > 0 {
			t.Error("references beside an error")
		}
		for _, ref := range refs {
			if ref.Field == "" || ref.Position.Line < 1 {
				t.Errorf("a reference without a place: %+v", ref)
			}
		}
		again, _ := butane.References("x.bu", data, nil)
		if diff := cmp.Diff(refs, again); diff != "" {
			t.Errorf("the same document gives other references:\n%s", diff)
		}
	})
}

func FuzzTranslate(f *testing.F) {
	seeds(f)
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "files"), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "files", "a"), butane.Placeholder("n", "abcd", "files/a"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		translate := func() (desired.State, string) {
			cfg, list := butane.Translate("x.bu", data, nil, dir, true)
			if len(list.Errors()) == 0 {
				sameAsParsed(t, cfg, list)
			}
			merged, more := butane.Merge([]butane.Config{cfg}, nil)
			list = append(list, more...)
			if len(list.Errors()) > 0 {
				return desired.State{}, show(list)
			}
			state, more := desired.Translate(merged.Ignition, merged, butane.Blobs("n"))
			return state, show(append(list, merged.Excerpts(more)...))
		}
		state, said := translate()
		if strings.Contains(said, "internal error") {
			t.Errorf("%s", said)
		}
		again, saidAgain := translate()
		if diff := cmp.Diff(state, again) + cmp.Diff(said, saidAgain); diff != "" {
			t.Errorf("the same document translates to something else:\n%s", diff)
		}
	})
}
