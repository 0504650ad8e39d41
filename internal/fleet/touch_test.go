package fleet_test

import (
	"io/fs"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

// untouched requires that no host is passed over whose digest differs, and
// returns how many were.
func untouched(t *testing.T, what string, old, new map[string]sourcetest.File) (passed int) {
	t.Helper()
	before, err := fleet.Open(sourcetest.New(old))
	if err != nil {
		return 0
	}
	after, err := fleet.Open(sourcetest.New(new))
	if err != nil {
		return 0
	}
	hosts, err := after.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	changes, err := fleet.Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		touched, err := changes.Touches(host)
		if err != nil {
			t.Fatal(err)
		}
		if touched {
			continue
		}
		passed++
		was, err1 := before.Host(fleet.Machine{Names: []string{host}})
		is, err2 := after.Host(fleet.Machine{Names: []string{host}})
		if (err1 == nil) != (err2 == nil) || err1 == nil && was.Digest != is.Digest {
			t.Errorf("%s: %s is passed over, and is another one (%v, %v)", what, host, err1, err2)
		}
	}
	return passed
}

// Whatever one changes in the example, no host is passed over that it concerns.
func TestTouchesOfTheExample(t *testing.T) {
	example := map[string]sourcetest.File{}
	root := os.DirFS("../../testdata/fleet")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		example[path] = sourcetest.File{Data: string(data)}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for _, path := range slices.Sorted(maps.Keys(example)) {
		changed, gone := maps.Clone(example), maps.Clone(example)
		file := example[path]
		file.Data += "\n# more\n"
		changed[path] = file
		delete(gone, path)
		passed += untouched(t, path+" changed", example, changed)
		passed += untouched(t, path+" gone", example, gone)
		passed += untouched(t, path+" is new", gone, example)
	}
	if passed == 0 {
		t.Error("no host was ever passed over")
	}
}

// A path can be spelled in many ways.
func TestTouchesHoweverItIsSpelled(t *testing.T) {
	const file = "variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - path: /a\n      contents:\n        local: "
	const tree = "variant: fcos\nversion: 1.6.0\nstorage:\n  trees:\n    - path: /a\n      local: "
	for name, doc := range map[string]string{
		"plain": file + "files/a/b\n", "quoted": file + "'files/a/b'\n", "double": file + `"files/a/b"` + "\n",
		"escaped": file + `"files/\x61/b"` + "\n", "dots": file + "./files/a/./b\n", "slashes": file + "files//a/b\n",
		"tagged": file + "!!str files/a/b\n", "binary": file + "!!binary ZmlsZXMvYS9i\n", "folded": file + ">-\n          files/a/b\n",
		"comment": file + "files/a/b # said\n", "flow": "variant: fcos\nversion: 1.6.0\nstorage: {files: [{path: /a, contents: {\"local\":files/a/b}}]}\n",
		"anchor": "variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - path: /a\n      contents: {local: &x files/a/b}\n    - path: /b\n      contents: {local: *x}\n",
		"tree":   tree + "files/a\n", "tree above": tree + "files/\n", "all": tree + ".\n", "all too": tree + "'./'\n",
	} {
		old := map[string]sourcetest.File{"hosts/web1.bu": {Data: doc}, "hosts/db1.bu": {Data: file + "files/other\n"}, "files/a/b": {Data: "1"}, "files/other": {Data: "1"}}
		new := maps.Clone(old)
		new["files/a/b"] = sourcetest.File{Data: "2"}
		if passed := untouched(t, name, old, new); passed != 1 {
			t.Errorf("%s: %d hosts are passed over, want db1 alone", name, passed)
		}
	}
	// What is not searched for is never passed over.
	old := map[string]sourcetest.File{"hosts/web1.bu": {Data: file + "files/a b\n"}, "files/a b": {Data: "1"}}
	new := maps.Clone(old)
	new["files/a b"] = sourcetest.File{Data: "2"}
	if passed := untouched(t, "a blank", old, new); passed != 0 {
		t.Error("a path with a blank is passed over")
	}
}
