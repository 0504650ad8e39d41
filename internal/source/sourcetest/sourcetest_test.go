package sourcetest_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

var _ source.Tree = (*sourcetest.Tree)(nil)

func TestIDs(t *testing.T) {
	tree := sourcetest.New(map[string]sourcetest.File{
		"a":       {Data: "hello\n"},
		"a.d/run": {Mode: source.Executable, Data: "hello\n"},
		"a0":      {Mode: source.Symlink, Data: "a"},
	})
	// git ls-tree and git write-tree of the same files.
	for name, want := range map[string]string{
		"a":   "ce013625030ba8dba906f756967f9e9ca394464a",
		"a0":  "2e65efe2a145dda7ee51d1741299f848e5bf752e",
		"a.d": "3440006aacc5bfcdb685a6cc558b1548abf45028",
		".":   "a871af33ce7d79ad5f7a68f69b3229ae1271c833",
	} {
		e, err := tree.Entry(name)
		if err != nil {
			t.Fatal(err)
		}
		if e.ID != want {
			t.Errorf("%s: id %s, want %s", name, e.ID, want)
		}
	}
	if _, err := tree.Entry("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing path: %v", err)
	}
	var link *source.SymlinkError
	if _, err := tree.Entry("a0/x"); !errors.As(err, &link) {
		t.Errorf("a path through a symlink: %v", err)
	}
}
