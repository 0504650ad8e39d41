package update

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// apply has the engine write. Of what migrations change besides the plan it saves
// beforehand that they were begun, since Salt may be killed, and afterwards what they
// did, also when they failed, since nothing undoes them: the next run of the same
// migrations would find it done and call no unit.
func (u *Update) apply(ctx context.Context, job *engine.Job) (engine.Result, error) {
	if len(job.Migrations) == 0 {
		return u.Engine.Apply(ctx, job)
	}
	var before state.Migrated
	if u.State.Migrated != nil {
		before = *u.State.Migrated
	}
	job.CutOff = before.CutOff
	if !before.CutOff {
		if err := u.saveMigrated(state.Migrated{Paths: before.Paths, CutOff: true}); err != nil {
			return engine.Result{}, err
		}
	}
	result, err := u.Engine.Apply(ctx, job)
	if !result.Ended {
		return result, err
	}
	paths := slices.Compact(slices.Sorted(slices.Values(slices.Concat(before.Paths, result.Changed))))
	if saved := u.saveMigrated(state.Migrated{Paths: paths}); err == nil {
		err = saved
	}
	return result, err
}

func (u *Update) saveMigrated(now state.Migrated) error {
	before := u.State.Migrated
	u.State.Migrated = &now
	if len(now.Paths) == 0 && !now.CutOff {
		u.State.Migrated = nil
	}
	err := state.Save(u.Dirs, u.State)
	if err != nil {
		u.State.Migrated = before
	}
	return err
}

// showMigrated adds to the plan what the files that migrations changed ask for, and
// saves what the units do that it did not know of. It may be called again after a
// crash.
func (u *Update) showMigrated(ctx context.Context, job *engine.Job) error {
	if u.State.Migrated == nil || len(u.State.Migrated.Paths) == 0 {
		return nil
	}
	in, err := ReadInputs(job.Dir)
	if err != nil {
		return err
	}
	p := job.Plan
	p.Migrated = u.State.Migrated.Paths
	effect, err := u.Units.Touched(ctx, p.Migrated, in.Watches)
	if err != nil {
		return err
	}
	p.Effect.Add(effect)
	if err := writeSynced(filepath.Join(job.Dir, "plan.json"), p); err != nil {
		return err
	}
	if err := writeLists(job.Dir, p); err != nil {
		return err
	}
	return u.Units.Before(ctx, job.Dir, p)
}
