package native

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// Rollback brings back what the change found, from the change's own backups
// and in the same kind of transaction. It may be called again after a crash.
// What somebody edited since the change wrote it is kept and named.
func (e *Engine) Rollback(ctx context.Context, job *engine.Job) (engine.Result, error) {
	// First what an unfinished Apply staged and never put in place.
	if err := e.Clean(ctx, job); err != nil {
		return engine.Result{}, err
	}
	back, backups, notes, err := e.inverse(job)
	if err != nil {
		return engine.Result{}, err
	}
	t := newTransaction(e, &engine.Job{ID: job.ID + "-back", Dir: job.Dir, Plan: back})
	t.backups = backups
	err = t.run(ctx)
	e.Host.Forget()
	t.result.Notes = append(notes, t.result.Notes...)
	return t.result, err
}

// inverse is the plan that undoes what the change did to the disk as it is
// now, and where the earlier contents lie.
func (e *Engine) inverse(job *engine.Job) (*plan.Plan, map[string]string, []string, error) {
	back, backups := &plan.Plan{}, map[string]string{}
	var notes []string
	for i := range job.Plan.Items {
		item := &job.Plan.Items[i]
		if !item.Write {
			continue
		}
		now, err := disk.At(e.Host, item.Path)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("looking at %s: %w", item.Path, err)
		}
		switch undone, edited := judge(item, now); {
		case undone:
			continue
		case edited:
			notes = append(notes, item.Path+" was changed since and is kept as it is")
			continue
		}
		if item.Before.Kind == disk.File && !item.After.SameContent(item.Before) {
			backups[item.Before.SHA256] = filepath.Join(job.Dir, "backups", strconv.Itoa(i))
		}
		back.Items = append(back.Items, plan.Item{Path: item.Path, Before: now, After: item.Before, Origin: item.Origin, Write: true})
	}
	return back, backups, notes, nil
}

// judge tells whether a path is as it was before the change, or as neither the
// change found nor left it. An owner or mode that is half ours is ours.
func judge(item *plan.Item, now disk.Node) (undone, edited bool) {
	if item.Before.Equal(now) {
		return true, false
	}
	if item.After.Kind == disk.HardLink {
		return false, now.Kind != disk.File
	}
	return false, !item.After.SameContent(now) && !item.Before.SameContent(now)
}
