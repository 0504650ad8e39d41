package gogit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// Open opens an object of the mirror, whose bytes are not checked: its reader
// does that. It is objects.Store for another process.
func (s *Source) Open(kind objects.Kind, id string) (io.ReadCloser, int64, error) {
	m, err := s.open()
	if err != nil {
		return nil, 0, err
	}
	return m.Open(kind, id)
}

// Size is what the mirror says about the size of an object.
func (s *Source) Size(id string) (int64, error) {
	m, err := s.open()
	if err != nil {
		return 0, err
	}
	return m.Size(id)
}

// Commits returns a commit and its nearest ancestors, as objects.Store says it.
func (s *Source) Commits(ctx context.Context, id string, most int) ([][]byte, error) {
	m, err := s.open()
	if err != nil {
		return nil, err
	}
	return m.Commits(ctx, id, most)
}

// Tree opens the tree of a commit that is in the mirror. It, and the tree that
// it returns, fail with source.ErrDamaged where the mirror is: Discard, and
// Fetch again.
func (s *Source) Tree(ctx context.Context, commit string) (source.Tree, error) {
	return objects.Repo{Store: s}.Tree(ctx, commit)
}

// Describe reads what a commit says about itself.
func (s *Source) Describe(ctx context.Context, commit string) (source.CommitInfo, error) {
	return objects.Repo{Store: s}.Describe(ctx, commit)
}

// Commit returns the bytes of a commit object that is in the mirror.
func (s *Source) Commit(ctx context.Context, commit string) ([]byte, error) {
	return objects.Repo{Store: s}.Commit(ctx, commit)
}

// Relation tells how the tip stands to an older commit. source.ErrShallow: the
// mirror holds too little of the tip's history to tell; Deepen, and Fetch again.
func (s *Source) Relation(ctx context.Context, older, tip string) (source.Relation, error) {
	return objects.Repo{Store: s}.Relation(ctx, older, tip)
}

// Between lists the commits that the tip has in its history and an ancestor of
// it has not, the tip first. It may fail as Relation does.
func (s *Source) Between(ctx context.Context, ancestor, tip string) ([]string, error) {
	return objects.Repo{Store: s}.Between(ctx, ancestor, tip)
}

// Deepen makes the next Fetch bring all commits, where the mirror is shallow.
func (s *Source) Deepen() { s.FullHistory = true }

func (s *Source) open() (*mirror, error) {
	if s.mirror == nil {
		m, err := openMirror(s.Dir)
		if err != nil {
			return nil, err
		}
		s.mirror = m
	}
	return s.mirror, nil
}

func (m *mirror) repo() objects.Repo { return objects.Repo{Store: m} }

// Open is objects.Store.
func (m *mirror) Open(kind objects.Kind, id string) (_ io.ReadCloser, size int64, err error) {
	defer recovered(&err)
	t, err := plumbing.ParseObjectType(string(kind))
	if err != nil {
		return nil, 0, err
	}
	hash, what := plumbing.NewHash(id), string(kind)+" "+id
	if kind == objects.Tree && m.other == nil {
		if r, size, ok := foldersOf(m.dir).open(hash); ok {
			return &foreign{r, what}, size, nil
		}
	}
	if r, size, ok := m.direct(t, hash); ok {
		return &foreign{r, what}, size, nil
	}
	obj, err := m.encoded(t, hash)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, 0, fmt.Errorf("%w: %s", objects.ErrMissing, what)
	}
	if err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := obj.Reader()
	if err != nil {
		return nil, 0, damaged(what, err)
	}
	return &foreign{r, what}, obj.Size(), nil
}

// Size is objects.Store.
func (m *mirror) Size(id string) (int64, error) { return m.size(plumbing.NewHash(id)) }

// enoughCommits is how many bytes of commits are returned at once; the last one may
// be larger.
const enoughCommits = 256 << 10

// Commits is objects.Store.
func (m *mirror) Commits(ctx context.Context, id string, most int) ([][]byte, error) {
	var found [][]byte
	size := 0
	seen := map[string]bool{id: true}
	for queue := []string{id}; len(queue) > 0 && len(found) < most && size < enoughCommits; queue = queue[1:] {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := m.repo().Commit(ctx, queue[0])
		switch {
		case err == nil:
		case len(found) > 0:
			return found, nil // it is said when this one is asked for
		case errors.Is(err, objects.ErrMissing) && m.leftOut(ctx, id):
			return nil, fmt.Errorf("%w: commit %s", source.ErrShallow, id)
		default:
			return nil, err
		}
		found, size = append(found, data), size+len(data)
		for _, parent := range objects.Parents(data) {
			if !seen[parent] {
				seen[parent] = true
				queue = append(queue, parent)
			}
		}
	}
	return found, nil
}

// leftOut tells whether a commit is missing on purpose: it is a parent of one at
// which the mirror was cut.
func (m *mirror) leftOut(ctx context.Context, id string) bool {
	edge, err := m.store.Shallow()
	return err == nil && slices.ContainsFunc(edge, func(at plumbing.Hash) bool {
		data, err := m.repo().Commit(ctx, at.String())
		return err == nil && slices.Contains(objects.Parents(data), id)
	})
}

// foreign passes bytes of the mirror on, and knows what they are of.
type foreign struct {
	io.ReadCloser
	what string
}

func (f *foreign) Read(p []byte) (n int, err error) {
	defer recovered(&err)
	n, err = f.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(f.what, err)
	}
	return n, err
}

// shallow tells whether the mirror lacks commits on purpose.
func (m *mirror) shallow() (bool, error) {
	list, err := m.store.Shallow()
	if err != nil {
		return false, damaged("its shallow file", err)
	}
	return len(list) > 0, nil
}
