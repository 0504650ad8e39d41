package objects

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
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
	folders map[string][]source.Entry // by id; names instead of paths
	sizes   map[string]int64          // of blobs, as the store said
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
		entries, err := t.folder(at.ID)
		if err != nil {
			return source.Entry{}, err
		}
		i, found := slices.BinarySearchFunc(entries, name, func(e source.Entry, name string) int { return strings.Compare(e.Path, name) })
		if !found {
			return source.Entry{}, notExist(p)
		}
		dir := at.Path
		at = entries[i]
		at.Path = path.Join(dir, name)
	}
	return at, nil
}

func (t *tree) List(p string) ([]source.Entry, error) {
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
	entries, err := t.folder(at.ID)
	if err != nil {
		return nil, err
	}
	list := slices.Clone(entries)
	if p == "." {
		return list, nil
	}
	for i := range list {
		list[i].Path = p + "/" + list[i].Path // p is clean: joining thousands costs
	}
	return list, nil
}

func (t *tree) Names(p string) ([]source.Entry, error) { return t.List(p) }

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

func (t *tree) folder(id string) ([]source.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if entries, ok := t.folders[id]; ok {
		return entries, nil
	}
	data, err := t.repo.read(Tree, id)
	if err != nil {
		return nil, err
	}
	entries, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("%w: tree %s: %w", source.ErrMalformed, id, err)
	}
	t.folders[id] = entries
	return entries, nil
}

// parseTree reads git's tree format: mode, space, name, NUL, id. What it says
// was hashed already, so a mistake in it is its author's.
//
// A folder of thousands of hosts is read by each of them: names and ids are
// parts of two strings, not strings of their own.
func parseTree(data []byte) ([]source.Entry, error) {
	const typical = 40 // bytes of an entry
	rest := string(data)
	entries := make([]source.Entry, 0, len(data)/typical)
	raw := make([]byte, 0, cap(entries)*IDSize)
	for rest != "" {
		mode, after, ok := strings.Cut(rest, " ")
		name, after, ok2 := strings.Cut(after, "\x00")
		if !ok || !ok2 || len(after) < IDSize {
			return nil, errors.New("it is no tree")
		}
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return nil, errors.New("it is no tree")
		}
		switch {
		case name == "" || name == "." || name == ".." || strings.Contains(name, "/"), strings.EqualFold(name, ".git"):
			return nil, fmt.Errorf("it has an entry named %q, which git does not allow", name)
		}
		raw = append(raw, after[:IDSize]...)
		entries = append(entries, source.Entry{Path: name, Mode: canonical(source.Mode(bits))})
		rest = after[IDSize:]
	}
	ids, digits := hex.EncodeToString(raw), hex.EncodedLen(IDSize)
	for i := range entries {
		entries[i].ID = ids[i*digits : (i+1)*digits]
	}
	sortByName(entries)
	for i := 1; i < len(entries); i++ {
		if entries[i].Path == entries[i-1].Path {
			return nil, fmt.Errorf("it has two entries named %q", entries[i].Path)
		}
	}
	return entries, nil
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

// sortByName gives byte order of names; git sorts a folder as if its name ended
// in a slash.
func sortByName(entries []source.Entry) {
	slices.SortFunc(entries, func(a, b source.Entry) int { return strings.Compare(a.Path, b.Path) })
}
