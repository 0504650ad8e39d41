package objects

import (
	"bytes"
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
		found, err := t.ask(at.ID, "is "+name, func(f *folder) []source.Entry { return f.named(name) })
		if err != nil {
			return source.Entry{}, err
		}
		if len(found) == 0 {
			return source.Entry{}, notExist(p)
		}
		dir := at.Path
		at = found[0]
		at.Path = path.Join(dir, name)
	}
	return at, nil
}

func (t *tree) List(p string) ([]source.Entry, error) { return t.Names(p, "") }

func (t *tree) Names(p, stem string) ([]source.Entry, error) {
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
	list, err := t.ask(at.ID, "has stem "+stem, func(f *folder) []source.Entry { return f.withStem(stem) })
	if p != "." {
		for i := range list {
			list[i].Path = p + "/" + list[i].Path // p is clean: joining thousands costs
		}
	}
	return list, err
}

// ask looks into a folder, if that is not remembered.
func (t *tree) ask(folder, question string, look func(*folder) []source.Entry) ([]source.Entry, error) {
	if answer, ok := t.repo.Memory.recall(folder, question); ok {
		return answer, nil
	}
	f, err := t.folder(folder)
	if err != nil {
		return nil, err
	}
	answer := look(f)
	t.repo.Memory.learn(folder, len(f.data), question, answer)
	return answer, nil
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
	f, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("%w: tree %s: %w", source.ErrMalformed, id, err)
	}
	t.folders[id] = f
	return f, nil
}

// folder is a tree object. One of thousands of hosts is read by each of them, who
// needs one entry: an entry is made when it is asked for.
type folder struct {
	data    []byte // as git writes it
	entries []span // in byte order of their names
}

// span is where an entry stands in the data of its folder: mode, space, name, NUL
// and id. No object is larger than MaxMeta.
type span struct{ start, name, end uint32 }

func (f *folder) name(i int) []byte {
	return f.data[f.entries[i].name : f.entries[i].end-1-IDSize]
}

// entry is one of the entries, with its name for its path.
func (f *folder) entry(i int) source.Entry {
	at := f.entries[i]
	mode, _ := parseMode(string(f.data[at.start : at.name-1])) // it was read before
	return source.Entry{Path: string(f.name(i)), Mode: mode, ID: hex.EncodeToString(f.data[at.end-IDSize : at.end])}
}

// named is the entry with a name, and nothing where there is none.
func (f *folder) named(name string) []source.Entry {
	if i, ok := f.find(name); ok {
		return []source.Entry{f.entry(i)}
	}
	return nil
}

// withStem are the entries that have the stem.
func (f *folder) withStem(stem string) []source.Entry {
	var list []source.Entry
	if stem == "" {
		list = make([]source.Entry, 0, len(f.entries))
	}
	for i := range f.entries {
		if source.HasStem(string(f.name(i)), stem) {
			list = append(list, f.entry(i))
		}
	}
	return list
}

func (f *folder) find(name string) (i int, found bool) {
	return sort.Find(len(f.entries), func(i int) int { return strings.Compare(name, string(f.name(i))) })
}

// parseTree reads git's tree format. What it says was hashed already, so a mistake
// in it is its author's.
func parseTree(data []byte) (*folder, error) {
	const typical = 32 // bytes of an entry
	f := &folder{data: data, entries: make([]span, 0, len(data)/typical)}
	var last []byte
	sorted := true
	for start := 0; start < len(data); {
		mode, name, ok := cutEntry(data[start:])
		if !ok {
			return nil, errors.New("it is no tree")
		}
		switch {
		case len(name) == 0, string(name) == ".", string(name) == "..", bytes.IndexByte(name, '/') >= 0, isGit(name):
			return nil, fmt.Errorf("it has an entry named %q, which git does not allow", name)
		}
		at := span{start: uint32(start), name: uint32(start + len(mode) + 1)}
		start += len(mode) + 1 + len(name) + 1 + IDSize
		at.end = uint32(start)
		f.entries = append(f.entries, at)
		sorted = sorted && bytes.Compare(last, name) < 0
		last = name
	}
	if sorted {
		return f, nil
	}
	// Git sorts a folder as if its name ended in a slash.
	slices.SortFunc(f.entries, func(a, b span) int {
		return bytes.Compare(data[a.name:a.end-1-IDSize], data[b.name:b.end-1-IDSize])
	})
	for i := 1; i < len(f.entries); i++ {
		if bytes.Equal(f.name(i), f.name(i-1)) {
			return nil, fmt.Errorf("it has two entries named %q", f.name(i))
		}
	}
	return f, nil
}

// maxMode bounds the digits of a mode, and the space behind them.
const maxMode = 12

// cutEntry is the mode and the name of the entry that data begins with.
func cutEntry(data []byte) (mode, name []byte, ok bool) {
	space, end := bytes.IndexByte(data[:min(len(data), maxMode)], ' '), bytes.IndexByte(data, 0)
	if space < 0 || end < space || len(data)-end-1 < IDSize {
		return nil, nil, false
	}
	mode = data[:space]
	if m := string(mode); m != "100644" && m != "40000" { // as nearly all are
		if _, err := parseMode(m); err != nil {
			return nil, nil, false
		}
	}
	return mode, data[space+1 : end], true
}

func isGit(name []byte) bool {
	return len(name) == len(".git") && strings.EqualFold(string(name), ".git")
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
