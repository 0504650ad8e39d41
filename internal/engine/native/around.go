package native

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// MakeWay does what another engine must not do, before it writes: it makes the
// accounts that the plan's sysusers.d files declare, so that every owner is a
// number, writes what lies in somebody's place (see Theirs), keeps what somebody
// changed since the change was pinned, and takes away what stands where another kind
// of file is wanted, directories only when they are empty. It may be called again after
// a crash, and its errors are those of Apply.
func (e *Engine) MakeWay(ctx context.Context, job *engine.Job) (engine.Result, error) {
	t := newTransaction(e, job)
	err := t.makeWay(ctx)
	return t.conclude(err)
}

func (t *transaction) makeWay(ctx context.Context) error {
	items, err := t.begin(ctx)
	if err != nil {
		return err
	}
	theirs, others := t.apart(items)
	if err := t.writeTheirs(ctx, items, theirs); err != nil {
		return err
	}
	for _, item := range others {
		if err := t.keepLate(ctx, item); err != nil {
			return fmt.Errorf("preparing %s: %w", item.Path, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	obstructs := Obstructs(items)
	for _, item := range Order(others) {
		if item.After.Kind == disk.Absent && !obstructs(item) {
			continue
		}
		if err := t.clear(item); err != nil {
			return fmt.Errorf("making way for %s: %w", item.Path, err)
		}
	}
	return nil
}

// Theirs tells whether a path lies in somebody's place, or will: no other engine is
// given it, because that opens it by its name.
func (e *Engine) Theirs(item *plan.Item) bool {
	if item.Place != nil {
		return true
	}
	found, err := e.Host.Files.Look(item.Path)
	var blocked *fsat.BlockedError
	return errors.As(err, &blocked) || err == nil && !found.Place.Root()
}

// apart parts what lies in somebody's place from the others.
func (t *transaction) apart(items []*plan.Item) (theirs, others []*plan.Item) {
	for _, item := range items {
		if t.Theirs(item) {
			theirs = append(theirs, item)
		} else {
			others = append(others, item)
		}
	}
	return theirs, others
}

// writeTheirs writes what lies in somebody's place, and the directories of the plan
// that this lies in.
func (t *transaction) writeTheirs(ctx context.Context, items, theirs []*plan.Item) error {
	if len(theirs) == 0 {
		return state.SaveBlocked(t.job.Dir, nil)
	}
	above := map[string]bool{}
	for _, item := range theirs {
		above[item.Path] = true
		for dir := path.Dir(item.Path); dir != "/"; dir = path.Dir(dir) {
			above[dir] = true
		}
	}
	written := slices.DeleteFunc(slices.Clone(items), func(item *plan.Item) bool {
		return !above[item.Path] || item.After.Kind != disk.Directory && !slices.Contains(theirs, item)
	})
	if err := t.write(ctx, written); err != nil {
		return err
	}
	return errors.Join(t.syncNames(), state.SaveBlocked(t.job.Dir, slices.Collect(maps.Values(t.blocked))))
}

// keepLate keeps what was changed since the pin, as stage does.
func (t *transaction) keepLate(ctx context.Context, item *plan.Item) error {
	now, err := t.read(ctx, item)
	if err != nil || t.isDone(item, now.Node) {
		return err
	}
	return t.checkLate(ctx, item, now)
}

// clear takes away what the path must not be found as.
func (t *transaction) clear(item *plan.Item) error {
	if item.After.Kind == disk.Absent {
		return t.remove(item)
	}
	now, err := t.Host.Files.Look(item.Path)
	if err != nil || now.Kind == disk.Absent {
		return err
	}
	if !t.inTheWay(item, now.Node) {
		return t.tighten(item, now.Node)
	}
	t.wrote(item.Path)
	removed, err := t.Host.Files.Remove(item.Path)
	t.begun = t.begun || removed
	return err
}

// tighten keeps others from reading the new bytes of a file before it has its
// new owner and mode, and from reading the old ones because it has them.
func (t *transaction) tighten(item *plan.Item, now disk.Node) error {
	sameOwner := now.UID == item.After.UID && now.GID == item.After.GID
	mode := now.Mode & item.After.Mode
	if !item.NeedsContent() || now.Kind != disk.File || sameOwner && mode == now.Mode {
		return nil
	}
	t.begun = true
	become := func() error { return t.Host.Files.Own(item.Path, fsat.Attributes{Node: now}, nil, disk.Node{}) }
	if now.Mode = mode; sameOwner {
		return become()
	}
	now.Mode = 0
	err := become()
	now.UID, now.GID = item.After.UID, item.After.GID
	return errors.Join(err, become())
}

// inTheWay tells whether what stands at the path is more than something to be
// overwritten. A link is overwritten by contents, but others look through it for
// the owner and mode of what they write, and for a file whose contents are
// nobody's business.
func (t *transaction) inTheWay(item *plan.Item, now disk.Node) bool {
	switch item.After.Kind {
	case disk.Directory:
		return now.Kind != disk.Directory
	case disk.File:
		if now.Kind != disk.Link {
			return now.Kind == disk.Directory
		}
		behind, err := t.Host.Files.Follow(item.Path)
		return item.After.SHA256 == "" || err == nil && (behind.Kind == disk.Directory || behind.Kind == disk.File)
	case disk.Link:
		// Two spellings of one target are one to others.
		same := now.Kind == disk.Link && now.Target != item.After.Target && filepath.Clean(now.Target) == filepath.Clean(item.After.Target)
		return now.Kind == disk.Directory || same
	}
	return now.Kind != disk.File // a hard link
}

// Finish does what another engine leaves to be done when it has written: it
// removes what is left to be removed, directories only when they are empty,
// labels what was written, makes all of it durable and fills in the manifest.
// It says which paths are not what the plan wants, and how.
func (e *Engine) Finish(ctx context.Context, job *engine.Job) (result engine.Result, differing []string, err error) {
	t := newTransaction(e, job)
	t.begun = true
	e.Host.Files.Forget()
	differing, err = t.finish(ctx)
	return t.result, differing, err
}

func (t *transaction) finish(ctx context.Context) (differing []string, err error) {
	blocked, err := state.ReadBlocked(t.job.Dir)
	if err != nil {
		return nil, err
	}
	for _, b := range blocked {
		t.blocked[b.Path] = b
	}
	if err := t.readLabels(ctx); err != nil {
		return nil, err
	}
	items, err := t.left()
	if err != nil {
		return nil, err
	}
	_, others := t.apart(items)
	for _, item := range Order(others) {
		if _, blocked := t.blocked[item.Path]; blocked {
			continue
		}
		t.wrote(item.Path)
		if item.After.Kind == disk.Absent {
			if err := t.remove(item); err != nil {
				return nil, fmt.Errorf("removing %s: %w", item.Path, err)
			}
			continue
		}
		now, err := t.read(ctx, item)
		if err == nil && t.labels[item.Path] != "" {
			err = t.Host.Files.Own(item.Path, fsat.Attributes{Node: now.Node, Label: t.labels[item.Path]}, nil, disk.Node{})
		}
		if err != nil {
			return nil, fmt.Errorf("looking at %s: %w", item.Path, err)
		}
		if !t.isDone(item, now.Node) {
			is, should := describe(now.Node, item.Secret()), describe(item.After, item.Secret())
			differing = append(differing, fmt.Sprintf("%s (%s instead of %s)", item.Path, is, should))
		}
	}
	if err := t.sync(); err != nil {
		return nil, err
	}
	return differing, t.fillManifest()
}

// describe is a node without its bytes, which may be a secret.
func describe(n disk.Node, secret bool) string {
	switch n.Kind {
	case disk.Absent:
		return "nothing"
	case disk.HardLink, disk.Link:
		return fmt.Sprintf("%s to %s of %d:%d", n.Kind, n.Target, n.UID, n.GID)
	}
	text := fmt.Sprintf("%s %04o of %d:%d", n.Kind, n.Mode, n.UID, n.GID)
	if n.SHA256 != "" && !secret {
		text += fmt.Sprintf(" with the SHA-256 %.12s", n.SHA256)
	}
	return text
}

// conclude ends a part of a transaction: see engine.UntouchedError.
func (t *transaction) conclude(err error) (engine.Result, error) {
	if err == nil || t.begun {
		return t.result, err
	}
	if cleanup := t.undoStaging(); cleanup != nil {
		return t.result, errors.Join(err, cleanup)
	}
	// This run changed nothing; an earlier one of the same change may have.
	if untouched, look := t.untouched(); !untouched {
		return t.result, errors.Join(err, look)
	}
	return t.result, &engine.UntouchedError{Err: err}
}

// Untouched tells whether every path of the plan is as it was when the change
// was pinned.
func (e *Engine) Untouched(job *engine.Job) bool {
	untouched, err := newTransaction(e, job).untouched()
	return untouched && err == nil
}
