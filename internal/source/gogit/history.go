package gogit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Commit returns the bytes of a commit object that is in the mirror.
func (s *Source) Commit(ctx context.Context, commit string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := s.open()
	if err != nil {
		return nil, err
	}
	return m.read(plumbing.CommitObject, plumbing.NewHash(commit))
}

// Deepen makes the next Fetch bring all commits, where the mirror is shallow.
func (s *Source) Deepen() { s.FullHistory = true }

// Relation tells how the tip stands to an older commit, from the parents that
// every commit names. source.ErrShallow: the mirror holds too little of the
// tip's history to tell; Deepen, and Fetch again.
func (s *Source) Relation(ctx context.Context, older, tip string) (source.Relation, error) {
	if older == tip {
		return source.Same, nil
	}
	m, err := s.open()
	if err != nil {
		return "", err
	}
	a, b := plumbing.NewHash(older), plumbing.NewHash(tip)
	found := false
	cut, err := m.walk(ctx, b, func(id plumbing.Hash, _ int) bool {
		found = found || id == a
		return !found
	})
	if err != nil || found {
		return source.Ahead, err
	}
	if has, err := m.has(a); err != nil {
		return "", err
	} else if has {
		if _, err := m.walk(ctx, a, func(id plumbing.Hash, _ int) bool {
			found = found || id == b
			return !found
		}); err != nil || found {
			return source.Behind, err
		}
	}
	if cut {
		return "", fmt.Errorf("%w: looking for %s in the history of %s", source.ErrShallow, older, tip)
	}
	return source.Diverged, nil
}

// Between lists the commits that the tip has in its history and an ancestor of
// it has not, the tip first. It may fail as Relation does.
func (s *Source) Between(ctx context.Context, ancestor, tip string) ([]string, error) {
	m, err := s.open()
	if err != nil {
		return nil, err
	}
	a := plumbing.NewHash(ancestor)
	var list []plumbing.Hash
	merges := false
	cut, err := m.walk(ctx, plumbing.NewHash(tip), func(id plumbing.Hash, parents int) bool {
		if id == a {
			return false
		}
		list, merges = append(list, id), merges || parents > 1
		return true
	})
	if err != nil {
		return nil, err
	}
	if merges { // of what branched off before the ancestor as well
		old := map[plumbing.Hash]bool{}
		short, err := m.walk(ctx, a, func(id plumbing.Hash, _ int) bool {
			old[id] = true
			return true
		})
		if err != nil {
			return nil, err
		}
		cut = cut || short
		list = slices.DeleteFunc(list, func(id plumbing.Hash) bool { return old[id] })
	}
	if cut {
		return nil, fmt.Errorf("%w: looking for what came between %s and %s", source.ErrShallow, ancestor, tip)
	}
	var ids []string
	for _, id := range list {
		ids = append(ids, id.String())
	}
	return ids, nil
}

// walk visits a commit and its ancestors, each once, the near ones first; it
// does not go beyond one for which visit says false. cut: the mirror is shallow
// and there are more.
func (m *mirror) walk(ctx context.Context, from plumbing.Hash, visit func(id plumbing.Hash, parents int) bool) (cut bool, err error) {
	shallow, err := m.store.Shallow()
	if err != nil {
		return false, damaged("its shallow file", err)
	}
	seen := map[plumbing.Hash]bool{from: true}
	for queue := []plumbing.Hash{from}; len(queue) > 0; queue = queue[1:] {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		c, err := m.commit(queue[0])
		if err != nil {
			return false, err
		}
		if !visit(queue[0], len(c.ParentHashes)) {
			continue
		}
		edge := slices.Contains(shallow, queue[0])
		for _, parent := range c.ParentHashes {
			if seen[parent] {
				continue
			}
			if edge {
				has, err := m.has(parent)
				if err != nil {
					return false, err
				}
				if cut = cut || !has; !has {
					continue
				}
			}
			seen[parent] = true
			queue = append(queue, parent)
		}
	}
	return cut, nil
}

// has tells whether the mirror has an object.
func (m *mirror) has(id plumbing.Hash) (bool, error) {
	_, err := m.size(id)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, nil
	}
	return err == nil, err
}

// shallow tells whether the mirror lacks commits on purpose.
func (m *mirror) shallow() (bool, error) {
	list, err := m.store.Shallow()
	if err != nil {
		return false, damaged("its shallow file", err)
	}
	return len(list) > 0, nil
}
