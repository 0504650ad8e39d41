package contents_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

// failing is a tree whose files end in damage.
type failing struct{ source.Tree }

func (f failing) Open(e source.Entry) (io.ReadCloser, error) {
	r, err := f.Tree.Open(e)
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r, errReader{}), r}, err
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, source.ErrDamaged }

// A small file is asked for once, however often it is read: after it was read whole and
// well.
func TestSmall(t *testing.T) {
	const limit, all = 64 << 10, 8 << 20
	files := map[string]string{"empty": "", "small": "hello\n", "limit": strings.Repeat("x", limit), "large": strings.Repeat("x", limit+1)}
	for i := range all/limit + 10 {
		files[fmt.Sprintf("many/%d", i)] = fmt.Sprintf("%0*d", limit, i)
	}
	tree := sourcetest.Text(files)
	content := func(path string) desired.Content {
		e, err := tree.Entry(path)
		if err != nil {
			t.Fatal(err)
		}
		return desired.Content{Path: path, Blob: e.ID}
	}
	o := &contents.Opener{Tree: tree, Small: &contents.Small{}}
	seen := 0
	opened := func() int {
		before := seen
		seen = len(tree.Opened())
		return seen - before
	}
	for path, want := range map[string][2]int{"empty": {2, 0}, "small": {2, 0}, "limit": {2, 0}, "large": {3, 2}} {
		r, err := o.Open(t.Context(), content(path))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil { // before it was read
			t.Fatal(err)
		}
		for i, want := range want {
			if _, _, err := o.Sum(t.Context(), content(path)); err != nil {
				t.Fatal(err)
			}
			if got, err := read(t, o, content(path)); err != nil || got != files[path] {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
			if got := opened(); got != want {
				t.Errorf("%s, time %d: opened %d times, want %d", path, i, got, want)
			}
		}
	}
	again := 0
	for range 2 {
		for i := range all/limit + 10 {
			path := fmt.Sprintf("many/%d", i)
			if got, err := read(t, o, content(path)); err != nil || got != files[path] {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		}
		again = opened()
	}
	if again < 10 || again > 20 {
		t.Errorf("of more than there is room for, %d were read again", again)
	}
	o = &contents.Opener{Tree: failing{tree}, Small: &contents.Small{}}
	for range 2 {
		if _, err := read(t, o, content("small")); !errors.Is(err, source.ErrDamaged) {
			t.Errorf("damage: %v", err)
		}
	}
}
