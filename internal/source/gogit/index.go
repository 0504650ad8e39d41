package gogit

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
)

// The layout of an index of version 2, in bytes: magic number and version, 256
// counts of the objects whose id begins with at most that byte, then for each
// object in the order of their ids the id, a CRC, and the offset; then the
// offsets that need more than 31 bits, and the checksums of pack and index.
const (
	indexMagic  = "\xfftOc\x00\x00\x00\x02"
	idBytes     = len(plumbing.ZeroHash)
	fanoutBytes = 256 * 4
	crcBytes    = 4
	offsetBytes = 4
	wideBytes   = 8
)

// packIndex finds objects in an index that stays on the disk: of thousands of
// objects a host needs a handful. That its own checksum is not looked at costs
// nothing: an object that is found is hashed, and one that is not found is
// missed, so that the mirror is damaged either way.
type packIndex struct {
	// Everything that go-git's packs do not ask for; nil.
	idxfile.Index

	f       billy.File
	fanout  [256]int64
	size    int64
	offsets []byte                  // nil until FindHash is asked
	ids     map[int64]plumbing.Hash // what FindHash found, in the end all
}

// fewBases are found by looking through all offsets; it costs less to sort out
// the whole index when more of them are asked for.
const fewBases = 32

var errIndex = errors.New("it is no index of a pack")

// openIndex opens the index of the pack whose checksum is sum.
func openIndex(dir billy.Filesystem, path, sum string) (_ *packIndex, err error) {
	f, err := dir.Open(path)
	if err != nil {
		return nil, err
	}
	x := &packIndex{f: f, ids: map[int64]plumbing.Hash{}}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	head := make([]byte, len(indexMagic)+fanoutBytes)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	if !bytes.HasPrefix(head, []byte(indexMagic)) {
		return nil, errIndex
	}
	before := int64(0)
	for i := range x.fanout {
		x.fanout[i] = int64(binary.BigEndian.Uint32(head[len(indexMagic)+i*4:]))
		if x.fanout[i] < before {
			return nil, errIndex
		}
		before = x.fanout[i]
	}
	if x.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	if wide := x.size - 2*int64(idBytes) - x.wideAt(); wide < 0 || wide%wideBytes != 0 {
		return nil, errors.New("its size is not what it says of itself")
	}
	trailer := make([]byte, idBytes)
	if _, err := f.ReadAt(trailer, x.size-2*int64(idBytes)); err != nil {
		return nil, err
	}
	if hex.EncodeToString(trailer) != sum {
		return nil, errors.New("it belongs to another pack")
	}
	return x, nil
}

func (x *packIndex) close() { _ = x.f.Close() }

func (x *packIndex) count() int64 { return x.fanout[len(x.fanout)-1] }

func (x *packIndex) idAt(i int64) int64 { return int64(len(indexMagic)+fanoutBytes) + i*int64(idBytes) }

func (x *packIndex) offsetAt(i int64) int64 {
	return x.idAt(x.count()) + x.count()*crcBytes + i*offsetBytes
}

func (x *packIndex) wideAt() int64 { return x.offsetAt(x.count()) }

// FindOffset is where in the pack an object stands.
func (x *packIndex) FindOffset(id plumbing.Hash) (int64, error) {
	first, end := int64(0), x.fanout[id[0]]
	if id[0] > 0 {
		first = x.fanout[id[0]-1]
	}
	var found plumbing.Hash
	for first < end {
		middle := (first + end) / 2
		if _, err := x.f.ReadAt(found[:], x.idAt(middle)); err != nil {
			return 0, err
		}
		switch bytes.Compare(found[:], id[:]) {
		case 0:
			var narrow [offsetBytes]byte
			if _, err := x.f.ReadAt(narrow[:], x.offsetAt(middle)); err != nil {
				return 0, err
			}
			return x.offset(narrow[:])
		case -1:
			first = middle + 1
		default:
			end = middle
		}
	}
	return 0, plumbing.ErrObjectNotFound
}

// offset reads one of the narrow offsets, which may point to a wide one.
func (x *packIndex) offset(narrow []byte) (int64, error) {
	const isWide = 1 << 31
	n := binary.BigEndian.Uint32(narrow)
	if n&isWide == 0 {
		return int64(n), nil
	}
	at := x.wideAt() + int64(n&^isWide)*wideBytes
	if at+wideBytes > x.size-2*int64(idBytes) {
		return 0, errors.New("an offset lies outside of the index")
	}
	var wide [wideBytes]byte
	if _, err := x.f.ReadAt(wide[:], at); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(wide[:])), nil
}

// FindHash is the object at an offset: what deltas stand on is named like that.
func (x *packIndex) FindHash(offset int64) (plumbing.Hash, error) {
	if id, ok := x.ids[offset]; ok {
		return id, nil
	}
	if x.offsets == nil {
		offsets := make([]byte, x.count()*offsetBytes)
		if _, err := x.f.ReadAt(offsets, x.offsetAt(0)); err != nil {
			return plumbing.ZeroHash, err
		}
		x.offsets = offsets
	}
	all := len(x.ids) >= fewBases
	var ids []byte
	if all {
		ids = make([]byte, x.count()*int64(idBytes))
		if _, err := x.f.ReadAt(ids, x.idAt(0)); err != nil {
			return plumbing.ZeroHash, err
		}
	}
	for i := range x.count() {
		at, err := x.offset(x.offsets[i*offsetBytes:])
		if err != nil {
			return plumbing.ZeroHash, err
		}
		if all {
			x.ids[at] = plumbing.Hash(ids[i*int64(idBytes):])
			continue
		}
		if at == offset {
			var id plumbing.Hash
			_, err := x.f.ReadAt(id[:], x.idAt(i))
			x.ids[at] = id
			return id, err
		}
	}
	if id, ok := x.ids[offset]; ok {
		return id, nil
	}
	return plumbing.ZeroHash, plumbing.ErrObjectNotFound
}
