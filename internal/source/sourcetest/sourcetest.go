// Package sourcetest holds a fleet repo in memory, for tests.
//
// Its one rule: it has the object ids that git gives the same files, so that a
// digest or a placeholder of a test is the one of a real repo.
package sourcetest

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// File is what stands at one path: the bytes of a blob, the target of a
// symlink or the commit of a submodule. Mode 0 is a regular file.
type File struct {
	Mode source.Mode
	Data string
}

// Tree is a source.Tree of such files.
type Tree struct {
	entries map[string]source.Entry
	lists   map[string][]source.Entry
	blobs   map[string][]byte
	opened  []string
}

// Text is a tree of regular files.
func Text(files map[string]string) *Tree {
	all := map[string]File{}
	for name, data := range files {
		all[name] = File{Data: data}
	}
	return New(all)
}

// New is a tree of the files; folders come from their paths.
func New(files map[string]File) *Tree {
	t := &Tree{entries: map[string]source.Entry{}, lists: map[string][]source.Entry{}, blobs: map[string][]byte{}}
	folders := map[string]map[string]bool{".": {}}
	for name, f := range files {
		mode := f.Mode
		if mode == 0 {
			mode = source.Regular
		}
		id := ID("blob", []byte(f.Data))
		if mode == source.Submodule {
			id = f.Data
		} else {
			t.blobs[id] = []byte(f.Data)
		}
		t.entries[name] = source.Entry{Path: name, Mode: mode, ID: id}
		for name != "." {
			dir := path.Dir(name)
			if folders[dir] == nil {
				folders[dir] = map[string]bool{}
			}
			folders[dir][name] = true
			name = dir
		}
	}
	t.folder(".", folders)
	return t
}

// folder computes the ids below a folder first, as git does.
func (t *Tree) folder(name string, folders map[string]map[string]bool) {
	var list []source.Entry
	for at := range folders[name] {
		if folders[at] != nil {
			t.folder(at, folders)
		}
		list = append(list, t.entries[at])
	}
	// Git sorts a folder as if its name ended in a slash.
	gitName := func(e source.Entry) string {
		if e.Mode == source.Directory {
			return path.Base(e.Path) + "/"
		}
		return path.Base(e.Path)
	}
	slices.SortFunc(list, func(a, b source.Entry) int { return strings.Compare(gitName(a), gitName(b)) })
	var raw bytes.Buffer
	for _, e := range list {
		id, err := hex.DecodeString(e.ID)
		if err != nil {
			panic(fmt.Sprintf("sourcetest: %s: %v", e.Path, err))
		}
		fmt.Fprintf(&raw, "%o %s\x00%s", uint32(e.Mode), path.Base(e.Path), id)
	}
	slices.SortFunc(list, func(a, b source.Entry) int { return strings.Compare(a.Path, b.Path) })
	t.lists[name] = list
	t.entries[name] = source.Entry{Path: name, Mode: source.Directory, ID: ID("tree", raw.Bytes())}
}

// ID is git's SHA-1 object id of data.
func ID(kind string, data []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", kind, len(data))
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// Opened are the paths of the blobs that were read, in order.
func (t *Tree) Opened() []string { return t.opened }

// Entry is part of source.Tree.
func (t *Tree) Entry(name string) (source.Entry, error) {
	name = path.Clean(name)
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if t.entries[dir].Mode == source.Symlink {
			return source.Entry{}, &source.SymlinkError{Path: name, Link: dir}
		}
	}
	e, ok := t.entries[name]
	if !ok {
		return source.Entry{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return e, nil
}

// Names is part of source.Tree.
func (t *Tree) Names(name, stem string) ([]source.Entry, error) {
	list, err := t.List(name)
	return slices.DeleteFunc(list, func(e source.Entry) bool { return !source.HasStem(path.Base(e.Path), stem) }), err
}

// List is part of source.Tree.
func (t *Tree) List(name string) ([]source.Entry, error) {
	e, err := t.Entry(name)
	if err != nil {
		return nil, err
	}
	switch e.Mode {
	case source.Directory:
	case source.Symlink:
		return nil, &source.SymlinkError{Path: name, Link: name}
	default:
		return nil, fmt.Errorf("%s is not a folder: %w", name, fs.ErrNotExist)
	}
	return slices.Clone(t.lists[e.Path]), nil
}

// Size is part of source.Tree.
func (t *Tree) Size(e source.Entry) (int64, error) {
	data, ok := t.blobs[e.ID]
	if !ok {
		return 0, errors.New("no such object: " + e.ID)
	}
	return int64(len(data)), nil
}

// Open is part of source.Tree.
func (t *Tree) Open(e source.Entry) (io.ReadCloser, error) {
	data, ok := t.blobs[e.ID]
	if !ok {
		return nil, errors.New("no such object: " + e.ID)
	}
	t.opened = append(t.opened, e.Path)
	return io.NopCloser(bytes.NewReader(data)), nil
}
