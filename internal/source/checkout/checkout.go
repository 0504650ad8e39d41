// Package checkout reads a fleet repo from a directory, for authors and CI.
//
// Its one rule: a clean checkout has the ids of its commit. Whatever lies in
// the directory counts, also what .gitignore names, except .git and folders
// with no file in them, which git cannot store; and no symlink is followed.
// What git changes on its way to the directory (line ends, LFS and other
// filters) has another id here, and so has a folder with a submodule in it.
package checkout

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Tree is a source.Tree over a directory. It hashes what it is asked for, and
// for the id of a folder what is below it, once: a file that changes afterwards
// fails when it is read. Several goroutines may use it.
type Tree struct {
	root *os.Root

	mu      sync.Mutex
	entries map[string]source.Entry
	folders map[string][]name
	parent  map[string]bool // folders that something was looked up through
}

// name is what a folder says of an entry. The os.DirEntry of a root holds all
// that lstat says, and there may be hundreds of thousands.
type name struct {
	base string
	kind fs.FileMode
}

// Open opens the directory.
func Open(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Tree{root: root, entries: map[string]source.Entry{}, folders: map[string][]name{}, parent: map[string]bool{}}, nil
}

// Close gives the directory back.
func (t *Tree) Close() error { return t.root.Close() }

// Entry is part of source.Tree.
func (t *Tree) Entry(p string) (source.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.parents(p); err != nil {
		return source.Entry{}, err
	}
	e, err := t.entry(p)
	if err == nil && e.Mode == source.Directory && e.ID == emptyTree && p != "." {
		return source.Entry{}, notExist(p, fs.ErrNotExist) // as in its commit
	}
	return e, err
}

// parents checks that every folder on the way is one.
func (t *Tree) parents(p string) error {
	if !fs.ValidPath(p) {
		return &fs.PathError{Op: "look up", Path: p, Err: fs.ErrInvalid}
	}
	for i, c := range p {
		if c != '/' || t.parent[p[:i]] {
			continue
		}
		info, err := t.lstat(p[:i])
		switch {
		case err != nil:
			return notExist(p, err)
		case info.Mode().Type() == fs.ModeSymlink:
			return &source.SymlinkError{Path: p, Link: p[:i]}
		case !info.IsDir(), t.isRepo(p[:i]):
			return notExist(p, fs.ErrNotExist)
		}
		t.parent[p[:i]] = true
	}
	return nil
}

func notExist(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "look up", Path: p, Err: fs.ErrNotExist}
	}
	return err
}

func (t *Tree) lstat(p string) (fs.FileInfo, error) {
	if slices.Contains(strings.Split(p, "/"), ".git") {
		return nil, fs.ErrNotExist
	}
	return t.root.Lstat(p)
}

// entry computes an entry whose parents were checked.
func (t *Tree) entry(p string) (source.Entry, error) {
	if e, ok := t.entries[p]; ok {
		return e, nil
	}
	info, err := t.lstat(p)
	if err != nil {
		return source.Entry{}, notExist(p, err)
	}
	e := source.Entry{Path: p}
	switch {
	case info.IsDir() && p != "." && t.isRepo(p):
		e.Mode, e.ID = source.Submodule, noCommit
	case info.IsDir():
		e.Mode = source.Directory
		e.ID, err = t.folderID(p)
	case info.Mode().Type() == fs.ModeSymlink:
		e.Mode = source.Symlink
		var target string
		if target, err = t.root.Readlink(p); err == nil {
			e.ID = id("blob", []byte(target))
		}
	case info.Mode().IsRegular():
		e.Mode = source.Regular
		if info.Mode()&0o100 != 0 {
			e.Mode = source.Executable
		}
		e.ID, err = t.fileID(p, info.Size())
	default:
		return source.Entry{}, fmt.Errorf("%s is a %s, which git cannot store", p, kind(info.Mode()))
	}
	if err != nil {
		return source.Entry{}, err
	}
	t.entries[p] = e
	return e, nil
}

// noCommit stands for the commit of a submodule: what refers into one is
// refused whatever it is.
var noCommit = strings.Repeat("0", 2*sha1.Size)

// isRepo tells whether a folder is a repository of its own, which git does not
// look into.
func (t *Tree) isRepo(p string) bool {
	_, err := t.root.Lstat(path.Join(p, ".git"))
	return err == nil
}

func kind(m fs.FileMode) string {
	switch m.Type() {
	case fs.ModeNamedPipe:
		return "named pipe"
	case fs.ModeSocket:
		return "socket"
	default:
		return "device"
	}
}

func (t *Tree) fileID(p string, size int64) (string, error) {
	f, err := t.root.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := newHash("blob", size)
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// folderID hashes a folder and all that is below it.
func (t *Tree) folderID(p string) (string, error) {
	entries, err := t.list(p)
	if err != nil {
		return "", err
	}
	// Git sorts a folder as if its name ended in a slash.
	slices.SortFunc(entries, func(a, b source.Entry) int { return strings.Compare(gitName(a), gitName(b)) })
	var data bytes.Buffer
	for _, e := range entries {
		raw, err := hex.DecodeString(e.ID)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&data, "%o %s\x00", uint32(e.Mode), path.Base(e.Path))
		data.Write(raw)
	}
	return id("tree", data.Bytes()), nil
}

func gitName(e source.Entry) string {
	if e.Mode == source.Directory {
		return path.Base(e.Path) + "/"
	}
	return path.Base(e.Path)
}

// List is part of source.Tree.
func (t *Tree) List(p string) ([]source.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.isFolder(p); err != nil {
		return nil, err
	}
	return t.list(p)
}

// Names is part of source.Tree: it looks at no file.
func (t *Tree) Names(p, stem string) ([]source.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.isFolder(p); err != nil {
		return nil, err
	}
	names, err := t.names(p)
	if err != nil {
		return nil, err
	}
	var list []source.Entry
	for _, one := range names {
		if !source.HasStem(one.base, stem) {
			continue
		}
		e := source.Entry{Path: path.Join(p, one.base), Mode: source.Regular}
		switch {
		case one.kind.IsDir() && t.isRepo(e.Path):
			e.Mode = source.Submodule
		case one.kind.IsDir():
			e.Mode = source.Directory
			if full, err := t.hasFile(e.Path); err != nil {
				return nil, err
			} else if !full {
				continue
			}
		case one.kind == fs.ModeSymlink:
			e.Mode = source.Symlink
		}
		list = append(list, e)
	}
	return list, nil
}

// hasFile tells whether there is anything that git can store below a folder. It
// reads no more names than it needs.
func (t *Tree) hasFile(p string) (bool, error) {
	full, folders, err := t.firstFile(p)
	for _, below := range folders {
		if full || err != nil {
			break
		}
		full, err = t.hasFile(below)
	}
	return full, err
}

// firstFile reads a folder up to the first entry that is no folder.
func (t *Tree) firstFile(p string) (found bool, folders []string, err error) {
	dir, err := t.root.Open(p)
	if err != nil {
		return false, nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for {
		const few = 16
		some, err := dir.ReadDir(few)
		for _, one := range some {
			below := path.Join(p, one.Name())
			switch {
			case !stored(one):
			case !one.IsDir() || t.isRepo(below):
				return true, nil, nil
			default:
				folders = append(folders, below)
			}
		}
		if errors.Is(err, io.EOF) {
			return false, folders, nil
		}
		if err != nil {
			return false, nil, err
		}
	}
}

// stored tells whether git sees an entry of a folder.
func stored(e fs.DirEntry) bool {
	return e.Name() != ".git" && e.Type()&(fs.ModeNamedPipe|fs.ModeSocket|fs.ModeDevice) == 0
}

func (t *Tree) isFolder(p string) error {
	if err := t.parents(p); err != nil {
		return err
	}
	info, err := t.lstat(p)
	switch {
	case err != nil:
		return notExist(p, err)
	case info.Mode().Type() == fs.ModeSymlink:
		return &source.SymlinkError{Path: p, Link: p}
	case !info.IsDir(), p != "." && t.isRepo(p):
		return notExist(p, fs.ErrNotExist)
	}
	return nil
}

// emptyTree is the id of a folder with nothing in it.
var emptyTree = id("tree", nil)

// names are what git sees of a folder, in byte order.
func (t *Tree) names(p string) ([]name, error) {
	if names, ok := t.folders[p]; ok {
		return names, nil
	}
	dir, err := t.root.Open(p)
	if err != nil {
		return nil, err
	}
	all, err := dir.ReadDir(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	names := make([]name, 0, len(all))
	for _, e := range all {
		if stored(e) {
			names = append(names, name{e.Name(), e.Type()})
		}
	}
	slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.base, b.base) })
	t.folders[p] = names
	return names, nil
}

func (t *Tree) list(p string) ([]source.Entry, error) {
	names, err := t.names(p)
	if err != nil {
		return nil, err
	}
	var list []source.Entry
	for _, one := range names {
		e, err := t.entry(path.Join(p, one.base))
		if err != nil {
			return nil, err
		}
		if e.Mode == source.Directory && e.ID == emptyTree {
			continue
		}
		list = append(list, e)
	}
	return list, nil
}

// Size is part of source.Tree.
func (t *Tree) Size(e source.Entry) (int64, error) {
	info, err := t.lstat(e.Path)
	if err != nil {
		return 0, notExist(e.Path, err)
	}
	return info.Size(), nil
}

// Open is part of source.Tree.
func (t *Tree) Open(e source.Entry) (io.ReadCloser, error) {
	if e.Mode == source.Symlink {
		target, err := t.root.Readlink(e.Path)
		if err != nil {
			return nil, err
		}
		return &reader{f: io.NopCloser(strings.NewReader(target)), hash: newHash("blob", int64(len(target))), entry: e}, nil
	}
	if !e.Mode.IsFile() {
		return nil, fmt.Errorf("%s is no file", e.Path)
	}
	f, err := t.root.Open(e.Path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &reader{f: f, hash: newHash("blob", info.Size()), entry: e}, nil
}

// reader fails at the end of a file that is not what was hashed before.
type reader struct {
	f     io.ReadCloser
	hash  hash.Hash
	entry source.Entry
	err   error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.f.Read(p)
	r.hash.Write(p[:n])
	if errors.Is(err, io.EOF) && hex.EncodeToString(r.hash.Sum(nil)) != r.entry.ID {
		err = fmt.Errorf("%s changed while it was read", r.entry.Path)
	}
	r.err = err
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// newHash is git's hash of an object. It needs no defence against collisions:
// whoever writes the checkout decides what is in it.
func newHash(kind string, size int64) hash.Hash {
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", kind, size)
	return h
}

func id(kind string, data []byte) string {
	h := newHash(kind, int64(len(data)))
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}
