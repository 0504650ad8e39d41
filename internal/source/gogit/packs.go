package gogit

import (
	"bufio"
	"compress/zlib"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"

	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// packs are the open packs of a mirror, which hold all of its objects: receivePack
// writes no loose ones. They stand in for go-git's object storage: that looks for a
// loose file of every object first, reads every index four bytes at a time, and sorts
// all offsets of a pack by object to find an object whose offset it has just found.
type packs []pack

type pack struct {
	*packfile.Packfile
	index *packIndex
	file  billy.File
}

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
	deltas := cache.NewObjectLRU(objectCache)
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pack")
		if !ok {
			continue
		}
		sum := strings.TrimPrefix(name, "pack-")
		index, err := openIndex(dir, filepath.Join(folder, name+".idx"), sum)
		if err != nil {
			return nil, damaged(name+".idx", err)
		}
		f, err := dir.Open(filepath.Join(folder, e.Name()))
		if err != nil {
			index.close()
			return nil, damaged(e.Name(), err)
		}
		p = append(p, pack{packfile.NewPackfileWithCache(index, dir, f, deltas, largeObject), index, f})
		if err := checkPack(f, sum); err != nil {
			return nil, damaged(e.Name(), err)
		}
	}
	return p, nil
}

// checkPack compares the end of a pack with the checksum that is its name:
// go-git notices a pack that was cut short only when it needs what is missing.
func checkPack(f billy.File, sum string) error {
	trailer := make([]byte, objects.IDSize)
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
func (p packs) find(id plumbing.Hash) (pack, int64, error) {
	for _, in := range p {
		offset, err := in.FindOffset(id)
		if err == nil {
			return in, offset, nil
		}
		if !errors.Is(err, plumbing.ErrObjectNotFound) {
			return pack{}, 0, err
		}
	}
	return pack{}, 0, plumbing.ErrObjectNotFound
}

func (p packs) object(t plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	in, _, err := p.find(id)
	if err != nil {
		return nil, err
	}
	obj, err := in.Get(id)
	if err == nil && obj.Type() != t {
		return nil, plumbing.ErrObjectNotFound
	}
	return obj, err
}

// direct opens an object of up to objects.MaxMeta bytes that is no delta; for others ok
// is false. go-git passes every byte of one through its scanner, and hashes it once more
// for its cache.
func (p packs) direct(t plumbing.ObjectType, id plumbing.Hash) (r io.ReadCloser, size int64, ok bool, err error) {
	in, offset, err := p.find(id)
	if err != nil {
		return nil, 0, false, err
	}
	content := bufio.NewReader(io.NewSectionReader(in.file, offset, math.MaxInt64-offset))
	b, err := content.ReadByte()
	if err != nil {
		return nil, 0, false, err
	}
	// Three bits of type; four bits of the size, then seven in each byte that follows.
	const more = 1 << 7
	kind := plumbing.ObjectType(b >> 4 & 7)
	if kind != t {
		return nil, 0, false, nil
	}
	size = int64(b & 15)
	for shift := 4; b&more != 0; shift += 7 {
		if b, err = content.ReadByte(); err != nil {
			return nil, 0, false, err
		}
		if size |= int64(b&^more) << shift; size > objects.MaxMeta || shift > 32 {
			return nil, 0, false, nil // go-git says what is wrong with it
		}
	}
	r, err = zlib.NewReader(content)
	return r, size, err == nil, err
}

// size is what the header of an object says.
func (p packs) size(id plumbing.Hash) (int64, error) {
	in, offset, err := p.find(id)
	if err != nil {
		return 0, err
	}
	return in.GetSizeByOffset(offset)
}

func (p packs) close() {
	for _, open := range p {
		_ = open.Close()
		open.index.close()
	}
}
