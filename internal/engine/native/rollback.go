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
)

// Rollback brings back what the change found, from the change's own backups
// and in the same kind of transaction. It may be called again after a crash.
// What somebody edited since the change wrote it is kept and named.
func (e *Engine) Rollback(ctx context.Context, job *engine.Job) (engine.Result, error) {
	undo := &engine.Job{ID: job.ID + "-back", Dir: job.Dir, Plan: job.Plan}
	// First what an unfinished Apply, or an earlier try of this, staged and never
	// put in place.
	for _, staged := range []*engine.Job{job, undo} {
		if err := e.Clean(ctx, staged); err != nil {
			return engine.Result{}, err
		}
	}
	back, backups, notes, err := e.inverse(ctx, job)
	if err != nil {
		return engine.Result{}, err
	}
	undo.Plan = back
	t := newTransaction(e, undo)
	t.backups = backups
	err = t.run(ctx)
	for _, p := range slices.Sorted(maps.Keys(t.blocked)) {
		notes = append(notes, fmt.Sprintf("%s is kept as it is: %s", p, t.blocked[p].Reason))
	}
	t.result.Notes = append(notes, t.result.Notes...)
	return t.result, err
}

// inverse is the plan that undoes what the change did to the disk as it is
// now, and where the earlier contents lie.
func (e *Engine) inverse(ctx context.Context, job *engine.Job) (*plan.Plan, map[string]string, []string, error) {
	e.Host.Files.Forget()
	back, backups := &plan.Plan{}, map[string]string{}
	t, notes := newTransaction(e, job), []string(nil)
	// What stands where a directory was or became leads elsewhere: nothing of the
	// change lies below it. Below what is kept nothing is touched.
	elsewhere, kept := map[string]bool{}, map[string]bool{}
	for i := range job.Plan.Items { // sorted: a directory comes before what is in it
		item := &job.Plan.Items[i]
		if !item.Write || below(item.Path, kept) {
			continue
		}
		var now disk.Node
		if !below(item.Path, elsewhere) {
			found, err := t.read(ctx, item)
			var blocked *fsat.BlockedError
			if errors.As(err, &blocked) {
				notes = append(notes, fmt.Sprintf("%s is kept as it is: %s", item.Path, blocked.Reason))
				continue
			}
			if err != nil {
				return nil, nil, nil, fmt.Errorf("looking at %s: %w", item.Path, err)
			}
			now = found.Node
		}
		if now.Kind != disk.Directory && isOrWasDirectory(item) {
			elsewhere[item.Path] = true
		}
		switch undone, edited := judge(item, now); {
		case undone && item.Linked == "":
			continue
		case edited:
			kept[item.Path] = now.Kind != disk.Directory
			notes = append(notes, item.Path+" was changed since and is kept as it is")
			continue
		}
		after := item.Before
		if item.Linked != "" {
			after = disk.Node{Kind: disk.HardLink, Target: item.Linked, UID: after.UID, GID: after.GID}
		} else if after.Kind == disk.File && !item.After.SameContent(after) {
			backups[after.Stored()] = filepath.Join(job.Dir, "backups", engine.Backup(i, after))
		}
		now.Secret = item.Secret()
		back.Items = append(back.Items, plan.Item{
			Path: item.Path, Before: now, After: after, Origin: item.Origin, Write: true,
			Place: item.Place, Anew: item.Anew, Known: item.Known,
		})
	}
	full, err := e.keepFull(back)
	return back, backups, append(notes, full...), err
}

// keepFull leaves directories out that have to make room for another kind of
// file, and cannot: somebody put something of their own there.
func (e *Engine) keepFull(back *plan.Plan) (notes []string, err error) {
	goes := map[string]bool{}
	for i := range back.Items {
		goes[back.Items[i].Path] = back.Items[i].After.Kind == disk.Absent
	}
	back.Items = slices.DeleteFunc(back.Items, func(item plan.Item) bool {
		if !replacesDirectory(&item) || err != nil {
			return false
		}
		var full bool
		if full, err = e.holdsMore(item.Path, goes); full {
			notes = append(notes, item.Path+" is kept as it is: there is something in it that the change did not make")
		}
		return full
	})
	return notes, err
}

// holdsMore tells whether there is anything in a directory besides what goes.
func (e *Engine) holdsMore(dir string, goes map[string]bool) (bool, error) {
	var names []string
	err := e.Host.Files.Names(dir, func(name string) bool {
		names = append(names, path.Join(dir, name))
		return goes[path.Join(dir, name)]
	})
	if err != nil {
		return false, err
	}
	for _, p := range names {
		if !goes[p] {
			return true, nil
		}
		found, err := e.Host.Files.Look(p)
		if err != nil {
			return false, err
		}
		if found.Kind != disk.Directory {
			continue
		}
		if more, err := e.holdsMore(p, goes); more || err != nil {
			return more, err
		}
	}
	return false, nil
}

func below(p string, dirs map[string]bool) bool {
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if dirs[dir] {
			return true
		}
	}
	return false
}

func isOrWasDirectory(item *plan.Item) bool {
	return item.Before.Kind == disk.Directory || item.After.Kind == disk.Directory
}

// judge tells whether a path is as it was before the change, or as neither the
// change found nor left it. An owner or mode that is half ours is ours.
func judge(item *plan.Item, now disk.Node) (undone, edited bool) {
	switch {
	case item.Before.Equal(now):
		return true, false
	case now.Kind == disk.Absent && isOrWasDirectory(item):
		return false, false // a crash came between the removal of one kind and the making of the other
	case item.After.Kind == disk.HardLink:
		return false, now.Kind != disk.File
	}
	return false, !item.After.SameContent(now) && !item.Before.SameContent(now)
}
