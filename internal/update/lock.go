package update

import (
	"context"
	"errors"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Locks tells whether there is a fleet lock at all.
func (u *Update) Locks() bool { return u.Lock != nil && u.Lock.Kind() != lock.NoLock }

// LocksFor tells whether a change takes the fleet lock. reboots: it will, as far as that
// shows, reboot the machine, or does OS work.
func (u *Update) LocksFor(reboots bool) bool { return u.Locks() && (reboots || !u.LockReboots) }

// Acquire takes the fleet lock. The belief that this host may hold it is saved
// before it is asked for: a crash in between asks again, and gets its own lock.
func (u *Update) Acquire(ctx context.Context, why lock.Purpose) error {
	return u.acquire(ctx, why, false)
}

// AcquireByHand is Acquire for an operator: no run gives the lock back.
func (u *Update) AcquireByHand(ctx context.Context) error {
	return u.acquire(ctx, lock.Purpose{Step: "taken by hand"}, true)
}

func (u *Update) acquire(ctx context.Context, why lock.Purpose, byHand bool) error {
	if !u.Locks() {
		return nil
	}
	if err := u.firstSave(); err != nil {
		return err
	}
	before := u.State.Lock
	belief := state.FleetLock{Kind: u.Lock.Kind(), Name: u.Lock.Name(), Since: u.Host.Now()}
	switch {
	case before == nil:
	case !u.configured(before):
		u.notConfigured(before)
		before = nil
	default:
		belief = *before
	}
	belief.Changing = true
	u.State.Lock = &belief
	if err := state.Save(u.Dirs, u.State); err != nil {
		u.State.Lock = before
		return err
	}
	err := u.Lock.Acquire(ctx, why)
	var busy *lock.BusyError
	switch {
	case err == nil && byHand:
		// Only now: until then the next run gives back what is left of the attempt.
		belief.ByHand = true
	case !errors.As(err, &busy):
		return err
	case before != nil && (before.Kept || before.ByHand):
		u.State.Lock = before // ours by its own account: the failed change may still be in place
	default:
		u.State.Lock = nil
	}
	return errors.Join(err, state.Save(u.Dirs, u.State))
}

// configured tells whether it is the lock that the configuration names.
func (u *Update) configured(l *state.FleetLock) bool {
	return u.Locks() && l.Kind == u.Lock.Kind() && (l.Name == u.Lock.Name() || l.Name == "")
}

// notConfigured names a lock that the configuration has forgotten: nobody is left to ask.
func (u *Update) notConfigured(l *state.FleetLock) {
	u.Log.Warnf("the fleet lock (%s, %s) is not configured any more: whatever this host held there has to be released there", l.Kind, l.Name)
}

// Release gives the fleet lock back, unless it is kept after a failure or was taken by
// hand. What it cannot give back it only believes to hold, and every run tries again.
func (u *Update) Release(ctx context.Context) error {
	held := u.State.Lock
	if held == nil || held.Kept || held.ByHand {
		return nil
	}
	if err := u.giveBack(ctx); err != nil {
		u.Log.Warnf("releasing the fleet lock (%s): %v; the next run tries again", held.Kind, err)
		return nil
	}
	return state.Save(u.Dirs, u.State)
}

// giveBack releases the lock at its server. The caller saves.
func (u *Update) giveBack(ctx context.Context) error {
	held := u.State.Lock
	gone := held != nil && !u.configured(held)
	if u.Locks() {
		// Also where another one is meant: it may be the same server by another name.
		if err := u.Lock.Release(ctx); err != nil && !gone {
			return err
		}
	}
	if gone {
		u.notConfigured(held)
	}
	u.State.Lock = nil
	return nil
}

// ErrUnderWay says that a change will give the lock back itself.
var ErrUnderWay = errors.New("a change is under way, and gives the fleet lock back when it has ended")

// ReleaseByHand gives the lock back whatever it is held for, also one of which the state
// knows nothing. With force, also under a change that is under way.
func (u *Update) ReleaseByHand(ctx context.Context, force bool) error {
	if change := u.State.Change; change != nil && !change.Ended() && u.State.Lock != nil && !force {
		return ErrUnderWay
	}
	if err := u.giveBack(ctx); err != nil {
		return err
	}
	return state.Save(u.Dirs, u.State)
}

// explainLock tells whoever waits for the lock what has become of the change. It is not
// worth much waiting.
func (u *Update) explainLock(ctx context.Context, why lock.Purpose) {
	const enough = 10 * time.Second
	server, ok := u.Lock.(lock.Explainer)
	if !ok || u.State.Lock == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, enough)
	defer cancel()
	if err := server.Explain(ctx, why); err != nil {
		u.Log.Warnf("telling others why the fleet lock (%s) is held: %v", u.Lock.Kind(), err)
	}
}

func failedAndKept(commit, step string) lock.Purpose {
	return lock.Purpose{Commit: commit, Step: step + " failed, the lock is kept"}
}

// NameLock says in every run what keeps other hosts waiting, and tells them what it may
// not have been able to tell them before.
func (u *Update) NameLock(ctx context.Context) {
	held := u.State.Lock
	if held == nil || !held.Kept && !held.ByHand {
		return
	}
	u.Log.Warnf("other hosts wait for the fleet lock (%s), see reconf-pull lock release", held)
	if failed := u.State.Held; held.Kept && failed != nil {
		u.explainLock(ctx, failedAndKept(failed.Commit, failed.Step))
	}
}

// ReleaseLeft is Release of a lock without a pinned change: one that was granted in
// vain, or left by a crash, or by a server that did not answer.
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
	switch held := s.u.State.Lock; {
	case held == nil:
		return "no fleet lock is held"
	case held.ByHand:
		return "the fleet lock was taken by hand"
	}
	return ""
}

func (s *release) Run(ctx context.Context) error { return s.u.Release(ctx) }
