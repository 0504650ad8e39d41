package objects

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// tree is the tree of one commit. It may be used by several goroutines.
type tree struct {
	repo Repo
	root string

	mu      sync.Mutex
	folders map[string]*folder // by id
	sizes   map[string]int64   // of blobs, as the store said
}

func (t *tree) Entry(p string) (source.Entry, error) {
	at := source.Entry{Path: ".", Mode: source.Directory, ID: t.root}
	if p == "." {
		return at, nil
	}
	if !fs.ValidPath(p) {
		return source.Entry{}, &fs.PathError{Op: "look up", Path: p, Err: fs.ErrInvalid}
	}
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if at.Mode == source.Symlink {
			return source.Entry{}, &source.SymlinkError{Path: p, Link: at.Path}
		}
		if at.Mode != source.Directory {
			return source.Entry{}, notExist(p)
		}
		f, err := t.folder(at.ID)
		if err != nil {
			return source.Entry{}, err
		}
		i, found := f.find(name)
		if !found {
			return source.Entry{}, notExist(p)
		}
		dir := at.Path
		at = f.entry(i)
		at.Path = path.Join(dir, name)
	}
	return at, nil
}

func (t *tree) List(p string) ([]source.Entry, error) { return t.Names(p, nil) }

func (t *tree) Names(p string, wanted func(name string) bool) ([]source.Entry, error) {
	at, err := t.Entry(p)
	if err != nil {
		return nil, err
	}
	if at.Mode == source.Symlink {
		return nil, &source.SymlinkError{Path: p, Link: p}
	}
	if at.Mode != source.Directory {
		return nil, notExist(p)
	}
	f, err := t.folder(at.ID)
	if err != nil {
		return nil, err
	}
	var list []source.Entry
	if wanted == nil {
		list = make([]source.Entry, 0, len(f.entries))
	}
	for i := range f.entries {
		if wanted != nil && !wanted(f.name(i)) {
			continue
		}
		e := f.entry(i)
		if p != "." {
			e.Path = p + "/" + e.Path // p is clean: joining thousands costs
		}
		list = append(list, e)
	}
	return list, nil
}

func (t *tree) Size(e source.Entry) (int64, error) {
	size, err := t.repo.Store.Size(e.ID)
	if err != nil {
		return 0, err
	}
	return size, t.sized(e.ID, size)
}

func (t *tree) Open(e source.Entry) (io.ReadCloser, error) {
	r, size, err := t.repo.Store.Open(Blob, e.ID)
	if err != nil {
		return nil, err
	}
	if err := t.sized(e.ID, size); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return newReader(r, size, e.ID), nil
}

// sized holds a store to what it said about a size: limits are kept by it before
// the bytes are there.
func (t *tree) sized(id string, size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if before, ok := t.sizes[id]; size < 0 || ok && before != size {
		return fmt.Errorf("%w: blob %s has %d bytes at one time and %d at another", source.ErrDamaged, id, before, size)
	}
	t.sizes[id] = size
	return nil
}

func (t *tree) folder(id string) (*folder, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.folders[id]; ok {
		return f, nil
	}
	data, err := t.repo.read(Tree, id)
	if err != nil {
		return nil, err
	}
	f, err := parseTree(string(data))
	if err != nil {
		return nil, fmt.Errorf("%w: tree %s: %w", source.ErrMalformed, id, err)
	}
	t.folders[id] = f
	return f, nil
}

// folder is a tree object. One of thousands of hosts is read by each of them, who
// needs one entry: an entry is made when it is asked for.
type folder struct {
	data    string // as git writes it
	entries []span // in byte order of their names
}

// span is where an entry stands in the data of its folder: mode, space, name, NUL
// and id. No object is larger than MaxMeta.
type span struct{ start, name, end uint32 }

func (f *folder) name(i int) string {
	return f.data[f.entries[i].name : f.entries[i].end-1-IDSize]
}

// entry is one of the entries, with its name for its path.
func (f *folder) entry(i int) source.Entry {
	at := f.entries[i]
	mode, _ := parseMode(f.data[at.start : at.name-1]) // it was read before
	var id [2 * IDSize]byte
	hex.Encode(id[:], []byte(f.data[at.end-IDSize:at.end]))
	return source.Entry{Path: f.name(i), Mode: mode, ID: string(id[:])}
}

func (f *folder) find(name string) (i int, found bool) {
	return sort.Find(len(f.entries), func(i int) int { return strings.Compare(name, f.name(i)) })
}

// parseTree reads git's tree format. What it says was hashed already, so a mistake
// in it is its author's.
func parseTree(data string) (*folder, error) {
	const typical = 40 // bytes of an entry
	f := &folder{data: data, entries: make([]span, 0, len(data)/typical)}
	last, sorted := "", true
	for start := 0; start < len(data); {
		mode, after, ok := strings.Cut(data[start:], " ")
		name, after, ok2 := strings.Cut(after, "\x00")
		if !ok || !ok2 || len(after) < IDSize {
			return nil, errors.New("it is no tree")
		}
		if _, err := parseMode(mode); err != nil {
			return nil, errors.New("it is no tree")
		}
		switch {
		case name == "" || name == "." || name == ".." || strings.Contains(name, "/"), strings.EqualFold(name, ".git"):
			return nil, fmt.Errorf("it has an entry named %q, which git does not allow", name)
		}
		at := span{start: uint32(start), name: uint32(start + len(mode) + 1)}
		start += len(mode) + 1 + len(name) + 1 + IDSize
		at.end = uint32(start)
		f.entries = append(f.entries, at)
		sorted = sorted && last < name
		last = name
	}
	if sorted {
		return f, nil
	}
	// Git sorts a folder as if its name ended in a slash.
	slices.SortFunc(f.entries, func(a, b span) int {
		return strings.Compare(data[a.name:a.end-1-IDSize], data[b.name:b.end-1-IDSize])
	})
	for i := 1; i < len(f.entries); i++ {
		if f.name(i) == f.name(i-1) {
			return nil, fmt.Errorf("it has two entries named %q", f.name(i))
		}
	}
	return f, nil
}

func parseMode(digits string) (source.Mode, error) {
	bits, err := strconv.ParseUint(digits, 8, 32)
	return canonical(source.Mode(bits)), err
}

// canonical knows the regular modes that git wrote before it settled on two.
func canonical(m source.Mode) source.Mode {
	if m&0o170000 != 0o100000 {
		return m
	}
	if m&0o100 != 0 {
		return source.Executable
	}
	return source.Regular
}

func notExist(p string) error {
	return &fs.PathError{Op: "look up", Path: p, Err: fs.ErrNotExist}
}
