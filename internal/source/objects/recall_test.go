package objects_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// heap is a store of trees that counts what is read.
type heap struct {
	trees map[string][]byte
	reads map[string]int
}

func (h *heap) Open(_ objects.Kind, id string) (io.ReadCloser, int64, error) {
	data, ok := h.trees[id]
	if !ok {
		return nil, 0, objects.ErrMissing
	}
	h.reads[id]++
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}
func (h *heap) Size(string) (int64, error) { return 0, objects.ErrMissing }
func (h *heap) Commits(context.Context, string, int) ([][]byte, error) {
	return nil, objects.ErrMissing
}

// add stores a tree of entries as git writes them, "100644 name" and an id.
func (h *heap) add(t *testing.T, entries ...[2]string) string {
	t.Helper()
	var data []byte
	for _, e := range entries {
		id, err := hex.DecodeString(e[1])
		if err != nil {
			t.Fatal(err)
		}
		data = append(append(data, e[0]+"\x00"...), id...)
	}
	id := fmt.Sprintf("%x", sha1.Sum(append(fmt.Appendf(nil, "tree %d\x00", len(data)), data...)))
	h.trees[id] = data
	return id
}

func TestMemory(t *testing.T) {
	h := &heap{trees: map[string][]byte{}, reads: map[string]int{}}
	id := func(i int) string { return fmt.Sprintf("%040x", i) }
	var many [][2]string
	for i := range 10_000 {
		many = append(many, [2]string{fmt.Sprintf("100644 h%05d.bu", i), id(i)})
	}
	large := h.add(t, many...)
	many[9][1] = id(77)
	changed := h.add(t, many...)
	small := h.add(t, [2]string{"100644 a.bu", id(1)})
	root := h.add(t, [2]string{"40000 changed", changed}, [2]string{"40000 large", large}, [2]string{"40000 small", small})

	var saved []byte
	loads := 0
	// session asks as one process does, and returns how often the three were read.
	session := func(ask func(tree source.Tree)) (reads [3]int, learnt bool) {
		clear(h.reads)
		m := &objects.Memory{Load: func() []byte { loads++; return saved }}
		ask(objects.Repo{Store: h, Memory: m}.TreeOf(root))
		data, learnt := m.Save()
		if learnt {
			saved = data
		}
		return [3]int{h.reads[large], h.reads[changed], h.reads[small]}, learnt
	}
	both := func(dirs ...string) func(source.Tree) {
		return func(tree source.Tree) {
			for _, dir := range dirs {
				got, err := tree.Names(dir, "H00007")
				want := []source.Entry{{Path: dir + "/h00007.bu", Mode: source.Regular, ID: id(7)}}
				if diff := cmp.Diff(want, got); diff != "" || err != nil {
					t.Errorf("%s: %v, -want +got:\n%s", dir, err, diff)
				}
				if e, err := tree.Entry(dir + "/h00007.bu"); err != nil || e != want[0] {
					t.Errorf("%s: %+v, %v", dir, e, err)
				}
				if _, err := tree.Entry(dir + "/nobody.bu"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: a file that is not there: %v", dir, err)
				}
				if got, err := tree.Names(dir, "nobody"); err != nil || len(got) > 0 {
					t.Errorf("%s: names that are not there: %v, %v", dir, got, err)
				}
			}
		}
	}
	if reads, learnt := session(both("large")); reads != [3]int{1, 0, 0} || !learnt {
		t.Errorf("the first time: %v, %v", reads, learnt)
	}
	if reads, learnt := session(both("large", "large")); reads != [3]int{} || learnt {
		t.Errorf("the second time: %v, %v", reads, learnt)
	}
	if loads != 2 {
		t.Errorf("it was loaded %d times in two sessions", loads)
	}
	if reads, learnt := session(both("large", "changed")); reads != [3]int{0, 1, 0} || !learnt {
		t.Errorf("another one beside it: %v, %v", reads, learnt)
	}
	if reads, _ := session(both("large", "changed")); reads != [3]int{} {
		t.Errorf("both are known: %v", reads)
	}
	all := func(tree source.Tree) {
		if list, err := tree.List("large"); err != nil || len(list) != 10_000 {
			t.Errorf("a list of %d, %v", len(list), err)
		}
		if list, err := tree.List("small"); err != nil || len(list) != 1 {
			t.Errorf("a list of %d, %v", len(list), err)
		}
	}
	for range 2 {
		if reads, learnt := session(all); reads != [3]int{1, 0, 1} || learnt {
			t.Errorf("whole lists and small folders are not remembered: %v, %v", reads, learnt)
		}
	}
	another := func(tree source.Tree) {
		if e, err := tree.Entry("changed/h00009.bu"); err != nil || e.ID != id(77) {
			t.Errorf("%+v, %v", e, err)
		}
	}
	if reads, learnt := session(another); reads != [3]int{0, 1, 0} || !learnt {
		t.Errorf("another question: %v, %v", reads, learnt)
	}
	if reads, _ := session(both("large")); reads != [3]int{1, 0, 0} {
		t.Errorf("what no question was asked about is forgotten: %v", reads)
	}
	for name, text := range map[string]string{"nothing": "", "no JSON": "{", "of another program": strings.Replace(string(saved), `"program":"`, `"program":"another `, 1)} {
		saved = []byte(text)
		if reads, _ := session(both("large")); reads != [3]int{1, 0, 0} {
			t.Errorf("%s: %v", name, reads)
		}
	}
	many[9] = [2]string{"100644 web1.\xff", id(9)}
	odd := h.add(t, many...)
	outer := h.add(t, [2]string{"40000 odd", odd})
	m := &objects.Memory{Load: func() []byte { return nil }}
	for _, name := range []string{"\xff", "\xfe", "web1"} {
		_, err := objects.Repo{Store: h, Memory: m}.TreeOf(outer).Names("odd", name)
		if _, learnt := m.Save(); learnt || err != nil {
			t.Errorf("%q cannot be written in JSON and was remembered, %v", name, err)
		}
	}
	session(both("large"))
	m = &objects.Memory{Load: func() []byte { return saved }}
	both("large")(objects.Repo{Store: h, Memory: m}.TreeOf(root))
	clear(h.reads)
	m.Forget()
	both("large")(objects.Repo{Store: h, Memory: m}.TreeOf(root))
	if h.reads[large] != 1 {
		t.Errorf("after it was to forget, %d reads", h.reads[large])
	}
	session(func(tree source.Tree) {
		for i := range 10_000 {
			if e, err := tree.Entry(fmt.Sprintf("large/h%05d.bu", i)); err != nil || e.ID != id(i) {
				t.Fatalf("%+v, %v", e, err)
			}
		}
	})
	if most := 64 << 10; len(saved) > most {
		t.Errorf("%d bytes are remembered of one folder, more than %d", len(saved), most)
	}
}
