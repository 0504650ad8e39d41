package gogit

import (
	"bufio"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/pjbgf/sha1cd"
)

// packs are the open packs of a mirror, which hold all of its objects, because
// receivePack writes nothing else. They stand in for go-git's object storage:
// that looks for a loose file of every object first, reads every index four
// bytes at a time, and sorts all offsets of a pack by object to find an object
// whose offset it has just found.
type packs []*packfile.Packfile

// openPacks opens every pack below dir, the root of a mirror.
func openPacks(dir billy.Filesystem) (_ packs, err error) {
	p := packs{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	folder := filepath.Join("objects", "pack")
	entries, err := dir.ReadDir(folder)
	if err != nil {
		return nil, damaged("its packs", err)
	}
	objects := cache.NewObjectLRU(objectCache)
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pack")
		if !ok {
			continue
		}
		sum := strings.TrimPrefix(name, "pack-")
		index, err := readIndex(dir, filepath.Join(folder, name+".idx"), sum)
		if err != nil {
			return nil, damaged(name+".idx", err)
		}
		f, err := dir.Open(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, damaged(e.Name(), err)
		}
		p = append(p, packfile.NewPackfileWithCache(index, dir, f, objects, largeObject))
		if err := checkPack(f, sum); err != nil {
			return nil, damaged(e.Name(), err)
		}
	}
	return p, nil
}

func readIndex(dir billy.Filesystem, path, sum string) (*idxfile.MemoryIndex, error) {
	f, err := dir.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index := idxfile.NewMemoryIndex()
	if err := idxfile.NewDecoder(buffered{bufio.NewReader(f), f}).Decode(index); err != nil {
		return nil, err
	}
	if hex.EncodeToString(index.PackfileChecksum[:]) != sum {
		return nil, errors.New("it belongs to another pack")
	}
	return index, nil
}

// buffered is an index file that still tells its size, which go-git holds
// against what the file says of itself.
type buffered struct {
	io.Reader
	file billy.File
}

func (b buffered) Stat() (fs.FileInfo, error) {
	f, ok := b.file.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return nil, errors.New("internal error: the mirror is not on a disk")
	}
	return f.Stat()
}

// checkPack compares the end of a pack with the checksum that is its name:
// go-git notices a pack that was cut short only when it needs what is missing.
func checkPack(f billy.File, sum string) error {
	trailer := make([]byte, sha1cd.Size)
	if _, err := f.Seek(-int64(len(trailer)), io.SeekEnd); err != nil {
		return err
	}
	if _, err := io.ReadFull(f, trailer); err != nil {
		return err
	}
	if hex.EncodeToString(trailer) != sum {
		return errors.New("it does not end as its name says")
	}
	return nil
}

// find returns the pack that holds an object, and where in it.
func (p packs) find(id plumbing.Hash) (*packfile.Packfile, int64, error) {
	for _, pack := range p {
		offset, err := pack.FindOffset(id)
		if err == nil {
			return pack, offset, nil
		}
		if !errors.Is(err, plumbing.ErrObjectNotFound) {
			return nil, 0, err
		}
	}
	return nil, 0, plumbing.ErrObjectNotFound
}

func (p packs) object(t plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	pack, _, err := p.find(id)
	if err != nil {
		return nil, err
	}
	obj, err := pack.Get(id)
	if err == nil && obj.Type() != t {
		return nil, plumbing.ErrObjectNotFound
	}
	return obj, err
}

// size is what the header of an object says.
func (p packs) size(id plumbing.Hash) (int64, error) {
	pack, offset, err := p.find(id)
	if err != nil {
		return 0, err
	}
	return pack.GetSizeByOffset(offset)
}

func (p packs) close() {
	for _, pack := range p {
		_ = pack.Close()
	}
}
