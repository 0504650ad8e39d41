package update

import (
	"context"
	"errors"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Locks tells whether there is a fleet lock at all.
func (u *Update) Locks() bool { return u.Lock != nil && u.Lock.Kind() != lock.NoLock }

// Acquire takes the fleet lock. The belief that this host may hold it is saved
// before it is asked for: a crash in between asks again, and gets its own lock.
func (u *Update) Acquire(ctx context.Context) error {
	if !u.Locks() {
		return nil
	}
	if err := u.firstSave(); err != nil {
		return err
	}
	before := u.State.Lock
	if before == nil {
		u.State.Lock = &state.FleetLock{Kind: u.Lock.Kind(), Changing: true, Since: u.Host.Now()}
	} else {
		belief := *before
		belief.Changing = true
		u.State.Lock = &belief
	}
	if err := state.Save(u.Dirs, u.State); err != nil {
		u.State.Lock = before
		return err
	}
	err := u.Lock.Acquire(ctx)
	if errors.Is(err, lock.ErrBusy) {
		u.State.Lock = nil
		if before != nil && before.Kept {
			u.State.Lock = before // ours by its own account: the failed change may still be in place
		}
		return errors.Join(err, state.Save(u.Dirs, u.State))
	}
	return err
}

// Release gives the fleet lock back, unless it is kept after a failure. What it
// cannot give back it only believes to hold, and every run tries again.
func (u *Update) Release(ctx context.Context) error {
	if u.State.Lock == nil || u.State.Lock.Kept {
		return nil
	}
	if !u.Locks() || u.Lock.Kind() != u.State.Lock.Kind {
		// The configuration names another one now: nobody is left to ask.
		u.Log.Warnf("the fleet lock (%s) is not configured any more: whatever this host held there has to be released there", u.State.Lock.Kind)
	} else if err := u.Lock.Release(ctx); err != nil {
		u.Log.Warnf("releasing the fleet lock (%s): %v; the next run tries again", u.State.Lock.Kind, err)
		return nil
	}
	u.State.Lock = nil
	return state.Save(u.Dirs, u.State)
}

// ReleaseLeft is Release for the start of a run: a lock without a pinned change
// was left by a crash, or by a server that did not answer.
func (u *Update) ReleaseLeft(ctx context.Context) error {
	if u.State.Change != nil {
		return nil
	}
	return u.Release(ctx)
}

// keepLock keeps others from the change that failed here. The caller saves.
func (u *Update) keepLock() {
	if u.State.Lock != nil {
		u.State.Lock.Kept = true
	}
}

// release gives the fleet lock back. Its failure never blocks anything.
type release struct{ u *Update }

func (s *release) Name() string { return "release" }

func (s *release) Idle() string {
	if s.u.State.Lock == nil {
		return "no fleet lock is held"
	}
	return ""
}

func (s *release) Run(ctx context.Context) error { return s.u.Release(ctx) }
