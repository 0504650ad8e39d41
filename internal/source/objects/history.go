package objects

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

const (
	// maxHistory bounds how many commits a question about the history may read.
	maxHistory = 1 << 20
	// firstBatch and largestBatch are how many commits are asked for at once: a host
	// that is followed every quarter of an hour needs one or two.
	firstBatch, largestBatch = 8, 1024
)

// Relation tells how the tip stands to an older commit, from the parents that
// every commit names. source.ErrShallow: the store holds too little of the tip's
// history to tell.
func (r Repo) Relation(ctx context.Context, older, tip string) (source.Relation, error) {
	if older == tip {
		return source.Same, nil
	}
	found := false
	seek := func(want string) func(string, int) bool {
		return func(id string, _ int) bool {
			found = found || id == want
			return !found
		}
	}
	cut, err := r.walk(ctx, tip, seek(older))
	if err != nil || found {
		return source.Ahead, err
	}
	_, err = r.Commit(ctx, older)
	if err == nil {
		if _, err = r.walk(ctx, older, seek(tip)); err == nil && found {
			return source.Behind, nil
		}
	}
	switch {
	case err != nil && !errors.Is(err, ErrMissing):
		return "", err
	case cut:
		return "", fmt.Errorf("%w: looking for %s in the history of %s", source.ErrShallow, older, tip)
	}
	return source.Diverged, nil
}

// Between lists the commits that the tip has in its history and an ancestor of
// it has not, the tip first. It may fail as Relation does.
func (r Repo) Between(ctx context.Context, ancestor, tip string) ([]string, error) {
	var list []string
	merges := false
	cut, err := r.walk(ctx, tip, func(id string, parents int) bool {
		if id == ancestor {
			return false
		}
		list, merges = append(list, id), merges || parents > 1
		return true
	})
	if err != nil {
		return nil, err
	}
	if merges { // of what branched off before the ancestor as well
		old := map[string]bool{}
		short, err := r.walk(ctx, ancestor, func(id string, _ int) bool {
			old[id] = true
			return true
		})
		if err != nil {
			return nil, err
		}
		cut = cut || short
		list = slices.DeleteFunc(list, func(id string) bool { return old[id] })
	}
	if cut {
		return nil, fmt.Errorf("%w: looking for what came between %s and %s", source.ErrShallow, ancestor, tip)
	}
	return list, nil
}

// walk visits a commit and its ancestors, each once, the near ones first; it
// does not go beyond one for which visit says false. cut: the store lacks some on
// purpose.
func (r Repo) walk(ctx context.Context, from string, visit func(id string, parents int) bool) (cut bool, err error) {
	ahead := &ahead{repo: r, known: map[string][]string{}, batch: firstBatch}
	seen := map[string]bool{from: true}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if len(seen) > maxHistory {
			return false, fmt.Errorf("the history of %s has more than %d commits", from, maxHistory)
		}
		parents, err := ahead.parents(ctx, queue[0])
		if errors.Is(err, source.ErrShallow) && queue[0] != from {
			cut = true
			continue
		}
		if err != nil {
			return false, err
		}
		if !visit(queue[0], len(parents)) {
			continue
		}
		for _, parent := range parents {
			if !seen[parent] {
				seen[parent] = true
				queue = append(queue, parent)
			}
		}
	}
	return cut, nil
}

// ahead knows the parents of commits that will be asked for soon: a question for
// each would cost more than its answer. What it knows was hashed, so that it does
// not matter what else the store sends.
type ahead struct {
	repo  Repo
	known map[string][]string
	batch int
}

func (a *ahead) parents(ctx context.Context, id string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if parents, ok := a.known[id]; ok {
		delete(a.known, id)
		return parents, nil
	}
	commits, err := a.repo.Store.Commits(ctx, id, a.batch)
	if err != nil {
		return nil, err
	}
	if len(commits) == 0 || len(commits) > a.batch {
		return nil, fmt.Errorf("%w: %d commits are there in place of %d from %s on", source.ErrDamaged, len(commits), a.batch, id)
	}
	a.batch = min(2*a.batch, largestBatch)
	clear(a.known) // of another branch: it is asked for again
	if err := verify(Commit, id, commits[0]); err != nil {
		return nil, err
	}
	for i, data := range commits {
		h := newHash(Commit, int64(len(data)))
		h.Write(data)
		name := hex.EncodeToString(h.Sum(nil))
		if err := compare(h, Commit, name); err != nil {
			return nil, err
		}
		_, parents, err := links(data)
		if err != nil && i > 0 {
			break // it may be of no interest
		}
		if err != nil {
			return nil, fmt.Errorf("commit %s: %w", id, err)
		}
		a.known[name] = parents
	}
	parents := a.known[id]
	delete(a.known, id)
	return parents, nil
}
