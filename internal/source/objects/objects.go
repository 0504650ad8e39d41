// Package objects reads commits, trees and history from a store of git objects.
//
// Its one rule: a store is not believed. Every object is hashed, with its kind
// and its length, before anything of it is used, or while its last byte is handed
// on; so whoever begins with a commit that is trusted ends with what belongs to it.
package objects

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/pjbgf/sha1cd"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Kind is a kind of object, as git writes it into the header that is hashed.
type Kind string

// The kinds that a fleet repo is read from.
const (
	Commit Kind = "commit"
	Tree   Kind = "tree"
	Blob   Kind = "blob"
)

// MaxMeta bounds a commit or one folder's tree object in bytes: 32 MiB is half a
// million entries.
const MaxMeta = 32 << 20

// IDSize is the length of an id in bytes.
const IDSize = sha1cd.Size

// ErrMissing is an object that is not there. It is source.ErrDamaged, too.
var ErrMissing = fmt.Errorf("%w: it lacks an object", source.ErrDamaged)

// Store is where objects come from. What it says may be wrong.
type Store interface {
	// Open opens an object of the kind: ErrMissing when there is none.
	Open(kind Kind, id string) (r io.ReadCloser, size int64, err error)
	// Size is what the store says about the size of an object in bytes.
	Size(id string) (int64, error)
	// Commits returns a commit and, behind it, no more than most-1 of its ancestors,
	// the near ones first. source.ErrShallow: it is left out on purpose, and is
	// not missing.
	Commits(ctx context.Context, id string, most int) ([][]byte, error)
}

// Repo is the repository that a store claims to hold.
type Repo struct {
	Store  Store
	Memory *Memory // nil: none
}

// Commit returns the bytes of a commit object.
func (r Repo) Commit(ctx context.Context, id string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.read(Commit, id)
}

// Tree opens the tree of a commit. It, and the tree that it returns, fail with
// source.ErrDamaged where the store does not hold what it should.
func (r Repo) Tree(ctx context.Context, commit string) (source.Tree, error) {
	data, err := r.Commit(ctx, commit)
	if err != nil {
		return nil, err
	}
	root, _, err := links(data)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", commit, err)
	}
	return r.TreeOf(root), nil
}

// TreeOf is the tree with this id.
func (r Repo) TreeOf(id string) source.Tree {
	return &tree{repo: r, root: id, folders: map[string]*folder{}, sizes: map[string]int64{}}
}

// Check reads a commit and the root of its tree.
func (r Repo) Check(commit string) error {
	data, err := r.read(Commit, commit)
	if err != nil {
		return err
	}
	root, _, err := links(data)
	if err != nil {
		return fmt.Errorf("commit %s: %w", commit, err)
	}
	_, err = r.read(Tree, root)
	return err
}

// Describe reads what a commit says about itself.
func (r Repo) Describe(ctx context.Context, commit string) (source.CommitInfo, error) {
	data, err := r.Commit(ctx, commit)
	if err != nil {
		return source.CommitInfo{}, err
	}
	headers, message, _ := strings.Cut(string(data), "\n\n")
	subject, _, _ := strings.Cut(message, "\n")
	info := source.CommitInfo{Subject: source.Printable(subject, source.MaxText)}
	for line := range strings.SplitSeq(headers, "\n") {
		name, value, _ := strings.Cut(line, " ")
		end := strings.LastIndexByte(value, '>')
		switch {
		case name == "author" && info.Author == "":
			info.Author = source.Printable(value[:end+1], source.MaxText)
		case name == "committer" && info.Time.IsZero():
			seconds, zone, _ := strings.Cut(strings.TrimPrefix(value[end+1:], " "), " ")
			n, err := strconv.ParseInt(seconds, 10, 64)
			if err != nil {
				continue
			}
			info.Time = time.Unix(n, 0).UTC()
			if at, err := time.Parse("-0700", zone); err == nil {
				info.Time = info.Time.In(at.Location())
			}
		}
	}
	return info, nil
}

// read reads a commit or a tree whole.
func (r Repo) read(kind Kind, id string) ([]byte, error) {
	what := string(kind) + " " + id
	open, size, err := r.Store.Open(kind, id)
	if err != nil {
		return nil, err
	}
	defer open.Close()
	if size < 0 || size > MaxMeta {
		return nil, fmt.Errorf("%s: %d bytes, more than the limit of %d", what, size, MaxMeta)
	}
	data, err := all(open, size)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != size {
		return nil, fmt.Errorf("%w: %s has %d bytes or more and says %d", source.ErrDamaged, what, len(data), size)
	}
	return data, verify(kind, id, data)
}

// Whole is a reader that may have the whole object in memory: who reads it need not
// copy it.
type Whole interface {
	// Whole returns what has not been read, which nobody changes any more, if that is
	// all there will be.
	Whole() (data []byte, ok bool)
}

// all reads an object, or one byte more than it says it has.
func all(r io.Reader, size int64) ([]byte, error) {
	if r, ok := r.(Whole); ok {
		if data, ok := r.Whole(); ok {
			return data, nil
		}
	}
	const most = 1 << 20 // that is set aside on the word of the store alone
	var data bytes.Buffer
	data.Grow(int(min(size, most)) + bytes.MinRead) // a little more: a full buffer doubles to look for the end
	_, err := data.ReadFrom(io.LimitReader(r, size+1))
	return data.Bytes(), err
}

// verify compares an object with its id.
func verify(kind Kind, id string, data []byte) error {
	h := newHash(kind, int64(len(data)))
	h.Write(data)
	return compare(h, kind, id)
}

func newHash(kind Kind, size int64) hash.Hash {
	h := sha1cd.New()
	fmt.Fprintf(h, "%s %d\x00", kind, size)
	return h
}

func compare(h hash.Hash, kind Kind, id string) error {
	sum, collision := h.(sha1cd.CollisionResistantHash).CollisionResistantSum(nil)
	switch {
	case collision:
		return fmt.Errorf("%s %s is part of a SHA-1 collision attack: %w", kind, id, source.ErrUntrusted)
	case hex.EncodeToString(sum) != id:
		return fmt.Errorf("%w: %s %s: its bytes are not what its id names", source.ErrDamaged, kind, id)
	}
	return nil
}

// reader compares what passed with the id at the end of the object.
type reader struct {
	r    io.ReadCloser
	hash hash.Hash
	id   string
	left int64
	err  error
}

func newReader(r io.ReadCloser, size int64, id string) *reader {
	return &reader{r: r, hash: newHash(Blob, size), id: id, left: size}
}

func (h *reader) Read(p []byte) (int, error) {
	if h.err != nil {
		return 0, h.err
	}
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	if h.left -= int64(n); h.left < 0 {
		n, err = 0, fmt.Errorf("%w: blob %s is larger than it says", source.ErrDamaged, h.id)
	}
	if errors.Is(err, io.EOF) && h.left > 0 {
		err = fmt.Errorf("%w: blob %s is smaller than it says", source.ErrDamaged, h.id)
	}
	if errors.Is(err, io.EOF) {
		if err = compare(h.hash, Blob, h.id); err == nil {
			err = io.EOF
		}
	}
	h.err = err
	return n, err
}

func (h *reader) Close() error { return h.r.Close() }

// links are the tree and the parents that a commit names: its first lines, as git
// reads them.
func links(data []byte) (tree string, parents []string, err error) {
	rest := string(data)
	next := func(name string) (id string, ok bool) {
		line, after, _ := strings.Cut(rest, "\n")
		id, ok = strings.CutPrefix(line, name+" ")
		if ok = ok && isID(id); ok {
			rest = after
			id = strings.Clone(id) // a history is kept for its ids, not for their commits
		}
		return id, ok
	}
	tree, ok := next("tree")
	if !ok {
		return "", nil, errors.New("it is no commit")
	}
	for {
		parent, ok := next("parent")
		if !ok {
			break
		}
		parents = append(parents, parent)
	}
	if strings.HasPrefix(rest, "parent") {
		return "", nil, errors.New("it is no commit")
	}
	return tree, parents, nil
}

// Parents are the parents that a commit names, none for what is no commit.
func Parents(commit []byte) []string {
	_, parents, _ := links(commit)
	return parents
}

func isID(s string) bool { return len(s) == 2*IDSize && strings.Trim(s, "0123456789abcdef") == "" }
