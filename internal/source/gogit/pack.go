package gogit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// maxChain is how many deltas git lets stand on one another.
const maxChain = 4095

// receivePack stores a pack below dir and indexes it. go-git's own parser reads
// every object a second time, whole (80 MiB of memory for a blob of 64 MiB, 18
// this way), and leaves its files open when it fails; here only what deltas
// stand on is held, one chain at a time.
func receivePack(ctx context.Context, dir string, r io.Reader, limits Limits) (err error) {
	large := foldersOf(dir)
	if err := large.trim(); err != nil {
		return localFailure("writing the mirror", err)
	}
	folder := filepath.Join(dir, "objects", "pack")
	f, err := os.CreateTemp(folder, "tmp_pack_")
	if err != nil {
		return localFailure("writing the mirror", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	defer recovered(&err)

	x := &indexer{
		ctx:    ctx,
		limits: limits,
		large:  large,
		byID:   map[plumbing.Hash][]*packed{},
		byBase: map[int64][]*packed{},
	}
	written := &localWriter{w: f}
	stream := io.TeeReader(r, written)
	sum, err := x.scan(packfile.NewScanner(stream))
	if written.err != nil {
		return written.err
	}
	if err != nil {
		return err
	}
	// The server may have more to say, but no more of the pack.
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return errors.Join(err, fmt.Errorf("%w: %d bytes behind its end", packfile.ErrMalformedPackFile, n))
	}
	if len(x.bases)+len(x.deltas) == 0 {
		return os.Remove(f.Name())
	}
	x.content = packfile.NewScanner(f)
	if err := x.resolve(); err != nil {
		return err
	}
	base := filepath.Join(folder, "pack-"+sum.String())
	// The index goes first: a pack without one makes go-git refuse the mirror.
	if err := x.writeIndex(folder, base+".idx", sum); err != nil {
		return localFailure("writing the mirror", err)
	}
	if err := os.Rename(f.Name(), base+".pack"); err != nil {
		return localFailure("writing the mirror", err)
	}
	return nil
}

// localWriter keeps what this machine did wrong apart from what the server did.
type localWriter struct {
	w   io.Writer
	err error
}

func (l *localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil && l.err == nil {
		l.err = localFailure("writing the mirror", err)
	}
	return n, err
}

// packed is one object of the pack.
type packed struct {
	id     plumbing.Hash // known at once, or once its base is
	offset int64
	crc    uint32
	length int64 // inflated: of the object, or of the delta
	kind   plumbing.ObjectType
}

// indexer finds the id of every object of a pack.
type indexer struct {
	ctx     context.Context
	limits  Limits
	bases   []*packed // objects that are whole
	deltas  []*packed
	byBase  map[int64][]*packed         // deltas by the offset of what they stand on
	byID    map[plumbing.Hash][]*packed // and by its id
	content *packfile.Scanner
	found   int // deltas that were resolved
	large   folders
	kept    int64 // bytes of large
}

// scan reads the pack once from front to end, hashing what is whole.
func (x *indexer) scan(s *packfile.Scanner) (plumbing.Hash, error) {
	_, count, err := s.Header()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if int64(count) > int64(x.limits.MaxObjects) {
		return plumbing.ZeroHash, tooMuch("source.max_objects", "the pack has %d objects, more than %d", count, x.limits.MaxObjects)
	}
	for range count {
		header, err := s.NextObjectHeader()
		if err != nil {
			return plumbing.ZeroHash, err
		}
		if err := x.fits(header.Type, header.Length); err != nil {
			return plumbing.ZeroHash, err
		}
		o := &packed{offset: header.Offset, length: header.Length, kind: header.Type}
		switch header.Type {
		case plumbing.OFSDeltaObject, plumbing.REFDeltaObject:
			if _, o.crc, err = s.NextObject(io.Discard); err != nil {
				return plumbing.ZeroHash, err
			}
			x.deltas = append(x.deltas, o)
			if header.Type == plumbing.OFSDeltaObject {
				x.byBase[header.OffsetReference] = append(x.byBase[header.OffsetReference], o)
			} else {
				x.byID[header.Reference] = append(x.byID[header.Reference], o)
			}
		default:
			if err := x.whole(s, o); err != nil {
				return plumbing.ZeroHash, err
			}
			x.bases = append(x.bases, o)
		}
	}
	return s.Checksum()
}

// whole reads an object that is no delta.
func (x *indexer) whole(s *packfile.Scanner, o *packed) (err error) {
	if !x.isLarge(o.kind, o.length) {
		h := plumbing.NewHasher(o.kind, o.length)
		_, o.crc, err = s.NextObject(h)
		o.id = h.Sum()
		return err
	}
	var data bytes.Buffer
	data.Grow(int(o.length))
	if _, o.crc, err = s.NextObject(&data); err != nil {
		return err
	}
	o.id = plumbing.ComputeHash(o.kind, data.Bytes())
	return x.keep(o.kind, o.id, data.Bytes())
}

// isLarge tells whether an object is a folder that is kept as it is.
func (x *indexer) isLarge(kind plumbing.ObjectType, size int64) bool {
	return kind == plumbing.TreeObject && size >= objects.LargeFolder && x.kept+size <= maxOfPack
}

// keep keeps an object if it is large.
func (x *indexer) keep(kind plumbing.ObjectType, id plumbing.Hash, data []byte) error {
	if !x.isLarge(kind, int64(len(data))) {
		return nil
	}
	x.kept += int64(len(data))
	if err := x.large.keep(id, data); err != nil {
		return localFailure("writing the mirror", err)
	}
	return nil
}

// children takes the deltas that stand on an object, so that none is resolved
// twice.
func (x *indexer) children(o *packed) []*packed {
	list := append(x.byBase[o.offset], x.byID[o.id]...)
	delete(x.byBase, o.offset)
	delete(x.byID, o.id)
	return list
}

// fits bounds an object by what the pack says of it, before any of it is read.
func (x *indexer) fits(kind plumbing.ObjectType, size int64) error {
	switch kind {
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.TagObject:
		if size > objects.MaxMeta {
			return fmt.Errorf("a %s of %d bytes: %w", kind, size, errMeta)
		}
	default:
		if size > x.limits.MaxObject {
			return tooMuch("source.max_object", "a file of the repository, or its history, has %d bytes, more than %d", size, x.limits.MaxObject)
		}
	}
	return nil
}

var errMeta = fmt.Errorf("more than %d", objects.MaxMeta)

// maxHeld bounds what is in memory at a time to resolve deltas.
const maxHeld = 96 << 20

// held is an object that deltas stand on.
type held struct {
	data   []byte
	deltas []*packed // that are still to be resolved
}

// resolve finds the ids of all deltas. What several of them stand on is held until
// the last one is resolved, what one stands on only until then: git makes long
// chains, and seldom branches them.
func (x *indexer) resolve() error {
	for _, o := range x.bases {
		list := x.children(o)
		if len(list) == 0 {
			continue
		}
		if o.length > maxHeld {
			return x.tooHeavy(o.length)
		}
		data, err := x.inflate(o)
		if err != nil {
			return err
		}
		if err := x.apply(o.kind, held{data, list}); err != nil {
			return err
		}
	}
	if x.found != len(x.deltas) {
		return fmt.Errorf("%w: %d deltas stand on nothing", packfile.ErrMalformedPackFile, len(x.deltas)-x.found)
	}
	return nil
}

// apply resolves the deltas that stand on an object, and what stands on them.
func (x *indexer) apply(kind plumbing.ObjectType, base held) error {
	stack, weight := []held{base}, int64(len(base.data))
	for len(stack) > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if len(stack) > maxChain {
			return fmt.Errorf("%w: more than %d deltas on one another", packfile.ErrMalformedPackFile, maxChain)
		}
		top := &stack[len(stack)-1]
		data := top.data
		o := top.deltas[0]
		if top.deltas = top.deltas[1:]; len(top.deltas) == 0 {
			stack = stack[:len(stack)-1]
			weight -= int64(len(data))
		}
		if o.length > maxHeld {
			return x.tooHeavy(o.length)
		}
		delta, err := x.inflate(o)
		if err != nil {
			return err
		}
		size, err := patchedSize(delta)
		if err != nil {
			return err
		}
		if err := x.fits(kind, size); err != nil {
			return err
		}
		if all := weight + int64(len(data)) + int64(len(delta)) + size; all > maxHeld {
			return x.tooHeavy(all)
		}
		if data, err = packfile.PatchDelta(data, delta); err != nil {
			return err
		}
		if int64(len(data)) != size {
			return fmt.Errorf("%w: a delta that makes %d bytes instead of %d", packfile.ErrMalformedPackFile, len(data), size)
		}
		o.id = plumbing.ComputeHash(kind, data)
		if err := x.keep(kind, o.id, data); err != nil {
			return err
		}
		x.found++
		if list := x.children(o); len(list) > 0 {
			stack, weight = append(stack, held{data, list}), weight+size
		}
	}
	return nil
}

// tooHeavy is an object that cannot be put together.
func (x *indexer) tooHeavy(size int64) error {
	return &source.Error{
		Err: &failure{
			kind: source.ErrUnavailable,
			text: fmt.Sprintf("receiving the pack: large files are stored as differences that need %d bytes of memory, more than %d", size, maxHeld),
		},
		Hint: "Let git store large files whole: *.img -delta in .gitattributes, then git repack -a -d -F at the server.",
	}
}

// patchedSize is how many bytes a delta says that it makes: the second of two
// numbers, seven bits in each byte, the low ones first.
func patchedSize(delta []byte) (size int64, err error) {
	for range 2 {
		size = 0
		for shift := 0; ; shift += 7 {
			if len(delta) == 0 || shift > 42 {
				return 0, fmt.Errorf("%w: a delta without its size", packfile.ErrMalformedPackFile)
			}
			b := delta[0]
			delta = delta[1:]
			size |= int64(b&0x7f) << shift
			if b&0x80 == 0 {
				break
			}
		}
	}
	return size, nil
}

func (x *indexer) inflate(o *packed) ([]byte, error) {
	if _, err := x.content.SeekObjectHeader(o.offset); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	// A little more than is needed: a full buffer doubles to look for the end.
	buf.Grow(int(min(o.length, maxPrealloc)) + bytes.MinRead)
	if _, _, err := x.content.NextObject(&buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// maxPrealloc bounds what is set aside on the word of a header alone.
const maxPrealloc = 16 << 20

func (x *indexer) writeIndex(folder, path string, sum plumbing.Hash) (err error) {
	var w idxfile.Writer
	all := append(x.bases, x.deltas...)
	if err := w.OnHeader(uint32(len(all))); err != nil {
		return err
	}
	for _, o := range all {
		w.Add(o.id, uint64(o.offset), o.crc)
	}
	if err := w.OnFooter(sum); err != nil {
		return err
	}
	index, err := w.Index()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, "tmp_idx_")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = idxfile.NewEncoder(f).Encode(index)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
