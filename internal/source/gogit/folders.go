package gogit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// folders keeps the large folders of the last packs beside them, as they are: most of
// a folder's bytes are ids, which do not deflate, and inflating one of 10,000 hosts
// costs a host more than all else that it does with it. Git pays no regard to them, and
// whoever reads one hashes it, as if it came from a pack.
type folders struct{ dir string }

const (
	// maxOfPack bounds what is kept of one pack, where the folders of the tip come first,
	// and maxFolders what is kept of the ones before: enough for those that a mirror has.
	maxOfPack  = 8 << 20
	maxFolders = 24 << 20
)

func foldersOf(mirror string) folders { return folders{filepath.Join(mirror, "folders")} }

func (f folders) file(id plumbing.Hash) string { return filepath.Join(f.dir, id.String()) }

// open opens a folder that is kept; ok is false for any other.
func (f folders) open(id plumbing.Hash) (_ *os.File, size int64, ok bool) {
	file, err := os.Open(f.file(id))
	if err != nil {
		return nil, 0, false
	}
	info, err := file.Stat()
	if err != nil || info.Size() < objects.LargeFolder { // a power cut leaves empty files
		_ = file.Close()
		return nil, 0, false
	}
	return file, info.Size(), true
}

// keep writes one down. Like all of the mirror it does not wait for the disk.
func (f folders) keep(id plumbing.Hash, data []byte) error { return replace(f.file(id), data) }

// trim removes the oldest when they are too many, to make room for those of a pack.
func (f folders) trim() error {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		info, err2 := e.Info()
		if err = errors.Join(err, err2); err2 == nil {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var size int64
	for _, info := range infos {
		if size += info.Size(); size > maxFolders {
			err = errors.Join(err, os.Remove(filepath.Join(f.dir, info.Name())))
		}
	}
	return err
}
