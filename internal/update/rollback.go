package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// backSteps is the order of the way back.
func (u *Update) backSteps(c *state.Change, job *engine.Job) []pipeline.Step {
	return []pipeline.Step{
		&rollbackFiles{u, job},                              // from the change's own backups
		&rollbackUnits{u, job},                              // enablement, and what units did before
		&reboot{u: u, change: c, back: true},                // where the machine was booted into the change
		&script{u, c, job, "post-update", hooks.PostUpdate}, // so that what pre_update.d stopped runs again
		&recordFailure{u, c, job},                           // the change goes to failed/, its digest is held
	}
}

// RolledBackError is a change that failed for good and was undone.
type RolledBackError struct {
	Failed *pipeline.StepError
	Back   error // nil: everything that was there is back
	// OSWork: OS work is held, not the digest.
	OSWork bool
	// Untouched: nothing was written that would have had to be brought back.
	Untouched bool
	// Left: the way back failed as often as a step may, and no run goes on with it by itself.
	Left bool
	// Stays is what cannot be undone, for people.
	Stays string
}

func (e *RolledBackError) Error() string {
	if e.Back != nil {
		return fmt.Sprintf("%v\nrolling back did not end: %v", e.Failed, e.Back)
	}
	held := "its digest"
	if e.OSWork {
		held = "OS work"
	}
	done := "the change was rolled back"
	if e.Untouched {
		done = "nothing was written"
	}
	text := fmt.Sprintf("%v\n%s, and %s is held", e.Failed, done, held)
	if errors.Is(e.Failed, ErrDamaged) {
		text = fmt.Sprintf("%v\n%s, and is made anew from its source", e.Failed, done)
	}
	if e.Stays != "" {
		text += "\n" + e.Stays
	}
	return text
}

// Unwrap is the step that failed, and what the way back waits for or failed with.
func (e *RolledBackError) Unwrap() []error {
	if e.Back == nil {
		return []error{e.Failed}
	}
	return []error{e.Failed, e.Back}
}

// KeptError is a change that failed for good and was left as it is, because
// the operator wants it so.
type KeptError struct{ Failed *pipeline.StepError }

func (e *KeptError) Error() string {
	return fmt.Sprintf("%v\nwhat the change did is kept (apply.on_failure), and its digest is held", e.Failed)
}

func (e *KeptError) Unwrap() error { return e.Failed }

// failed decides what becomes of a change one of whose steps failed. Steps
// that touched the host roll back at once; a record that could not be written
// is simply tried again.
func (u *Update) failed(ctx context.Context, change *state.Change, job *engine.Job, err *pipeline.StepError) error {
	switch {
	case err.Step == (&release{}).Name():
		return err // the change is recorded
	case err.Step == (&record{}).Name(), u.triesLeft(change, err.Step):
		u.failedHook(ctx, change, job, err)
		u.explainLock(ctx, lock.Purpose{Commit: change.Commit, Step: err.Step + " failed, it is tried again"})
		return err
	case u.KeepFailed && errors.Is(err, ErrDamaged):
		return err // it is made anew, and what it wrote counts as base
	case u.KeepFailed:
		// What waits beside its target is nobody's: it would be in the way of the next push.
		if cleanup := u.Engine.Clean(ctx, job); cleanup != nil {
			u.Log.Warnf("what change %s left beside its targets stays there: %v", change.ID, cleanup)
		}
		u.failedHook(ctx, change, job, err)
		u.hold(change, err.Step, err.Err)
		saved := state.Save(u.Dirs, u.State)
		u.explainLock(ctx, failedAndKept(change.Commit, err.Step))
		return errors.Join(&KeptError{err}, saved)
	}
	return u.rollBack(ctx, change, job, err)
}

// hold keeps what failed from being tried again: the digest, or OS work where
// that is what failed. The fleet lock is kept. The caller saves.
func (u *Update) hold(change *state.Change, step string, why error) {
	u.keepLock()
	if heldAsOSWork(change, step) {
		u.State.HeldOSWork = &state.OSWorkHold{Deployment: u.Host.Deployment(), Step: step, Reason: why.Error(), Time: u.Host.Now()}
		return
	}
	u.State.Held = &state.Hold{Digest: change.Digest, Commit: change.Commit, Step: step, Reason: why.Error(), Time: u.Host.Now()}
}

func heldAsOSWork(change *state.Change, step string) bool {
	return change.OnlyOS || step == "update"
}

// why is the failure that the way back is for.
func (u *Update) why(change *state.Change) *pipeline.StepError {
	if h := u.State.Held; h != nil && h.Digest == change.Digest {
		return &pipeline.StepError{Step: h.Step, Err: errors.New(h.Reason)}
	}
	if h := u.State.HeldOSWork; h != nil && heldAsOSWork(change, h.Step) {
		return &pipeline.StepError{Step: h.Step, Err: errors.New(h.Reason)}
	}
	return &pipeline.StepError{Step: "rollback", Err: errors.New("begun by an earlier run")}
}

// rollBack begins the way back: the save that says so is the one before its
// first step.
func (u *Update) rollBack(ctx context.Context, change *state.Change, job *engine.Job, failed *pipeline.StepError) error {
	u.Log.WithField("change", change.ID).Warnf("rolling back: %v", failed)
	u.inhibit(ctx, change)
	if u.rebooted(change) {
		change.Back = &state.Reboot{Reason: "rolling back " + change.ID, BootID: u.bootID(), Since: u.Host.Now()}
	}
	if err := u.beginBack(change, job); err != nil {
		return err
	}
	if errors.Is(failed, ErrDamaged) {
		u.keepLock() // the digest is not at fault: its source has it whole
	} else {
		u.hold(change, failed.Step, failed.Err)
	}
	if err := state.Save(u.Dirs, u.State); err != nil {
		return errors.Join(failed, err)
	}
	return u.wentBack(ctx, change, job, failed, u.goBack(ctx, change, job, true))
}

// beginBack gives the change the tasks of its way back.
func (u *Update) beginBack(change *state.Change, job *engine.Job) error {
	back := &state.Change{ID: change.ID}
	if untouched(change) {
		now := u.Host.Now()
		for _, name := range []string{"rollback", "rollback-units"} {
			back.Tasks = append(back.Tasks, state.Task{Name: name, Status: state.Done, Detail: "skipped: nothing was written", Started: now, Ended: now})
		}
	}
	err := u.runner(change).Begin(back, u.backSteps(change, job))
	change.Rollback = back.Tasks
	return err
}

// untouched tells whether a change ended before its first file: configure was not begun.
func untouched(change *state.Change) bool {
	i := slices.IndexFunc(change.Tasks, func(t state.Task) bool { return t.Name == "configure" })
	return i >= 0 && change.Tasks[i].Attempts == 0 && (change.Tasks[i].Status == state.Todo || change.Tasks[i].Status == state.Done)
}

// started tells whether a step of a change was ever begun.
func started(change *state.Change, step string) bool {
	return slices.ContainsFunc(change.Tasks, func(t state.Task) bool { return t.Name == step && t.Attempts > 0 })
}

// wentBack says how the way back ended. error.d hears of the failure once, when
// it is over.
func (u *Update) wentBack(ctx context.Context, change *state.Change, job *engine.Job, failed *pipeline.StepError, back error) error {
	var wait *pipeline.WaitReboot
	if !errors.As(back, &wait) && ctx.Err() == nil && !change.ByHand {
		u.failedHook(ctx, change, job, failed)
		u.explainLock(ctx, failedAndKept(change.Commit, failed.Step))
	}
	return &RolledBackError{
		Failed: failed, Back: back, OSWork: heldAsOSWork(change, failed.Step), Untouched: untouched(change), Left: u.Ended(change), Stays: u.stays(change, job),
	}
}

// stays names what update.d installed: no rollback takes that away.
func (u *Update) stays(change *state.Change, job *engine.Job) string {
	if !started(change, "update") || u.Hooks == nil {
		return ""
	}
	scripts, _, err := u.hooks(job).List(hooks.Update)
	if err != nil || len(scripts) == 0 {
		return "what update.d did stays"
	}
	var paths []string
	for _, script := range scripts {
		paths = append(paths, script.Path)
	}
	return "what these did stays: " + strings.Join(paths, ", ")
}

// goBack runs the tasks of the way back, or goes on with them.
func (u *Update) goBack(ctx context.Context, change *state.Change, job *engine.Job, begun bool) error {
	// The tasks are one array with the change's: what is saved is what is done.
	err := u.runner(change).Run(ctx, &state.Change{ID: change.ID, Tasks: change.Rollback}, u.backSteps(change, job), begun)
	if err != nil {
		return err
	}
	return u.Prune()
}

// Ended tells whether a change is left alone: a step failed, or the way back
// failed as often as a step may.
func (u *Update) Ended(c *state.Change) bool {
	for i := range c.Rollback {
		if t := &c.Rollback[i]; t.Status == state.Failed {
			return t.Attempts >= u.MaxAttempts
		}
	}
	return len(c.Rollback) == 0 && c.Ended()
}

// exhausted is the step that a crash ended every time it was begun: a kernel
// that dies in every apply must not be sent there for ever. It is marked as failed,
// so that further runs fetch before they look at it again: the push that repairs it
// must get through. The caller saves.
func (u *Update) exhausted(tasks []state.Task) *pipeline.StepError {
	for i := range tasks {
		task := &tasks[i]
		if task.Status == state.Doing && u.MaxAttempts > 0 && task.Attempts >= u.MaxAttempts {
			died := fmt.Errorf("begun %d times, and the machine or the run died every time", task.Attempts)
			if task.Detail != "" { // of the last time
				died = fmt.Errorf("begun %d times, and cut off every time: %s", task.Attempts, task.Detail)
			}
			task.Status, task.Detail, task.Ended = state.Failed, died.Error(), u.Host.Now()
			return &pipeline.StepError{Step: task.Name, Err: died}
		}
	}
	return nil
}

type rollbackFiles struct {
	u   *Update
	job *engine.Job
}

func (s *rollbackFiles) Name() string { return "rollback" }

func (s *rollbackFiles) Run(ctx context.Context) error {
	units := s.u.Units.BeforeBack(ctx, s.job.Dir, s.job.Plan)
	result, err := s.u.Engine.Rollback(ctx, s.job)
	for _, note := range result.Notes {
		s.u.Log.Warn(note)
	}
	return errors.Join(units, err)
}

type rollbackUnits struct {
	u   *Update
	job *engine.Job
}

func (s *rollbackUnits) Name() string { return "rollback-units" }

func (s *rollbackUnits) Run(ctx context.Context) error {
	return s.u.Units.Back(ctx, s.job.Dir, s.job.Plan)
}

// recordFailure takes the change out of the way: what it was stays in failed/
// for history, and its digest is held.
type recordFailure struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *recordFailure) Name() string { return "record-failure" }

func (s *recordFailure) Run(context.Context) error {
	u := s.u
	g := u.generation(s.change, s.job.Plan, 0)
	g.Result = "rolled back"
	if untouched(s.change) {
		g.Result = "failed"
	}
	if u.State.Held != nil || u.State.HeldOSWork != nil {
		g.Error = u.why(s.change).Error()
	} else if failed := s.change.Failure(); failed != nil {
		g.Error = failed.Name + ": " + failed.Detail
	}
	if err := keep(s.job, u.Dirs.Failed(s.change.ID), g); err != nil {
		return err
	}
	before := *u.State
	u.State.Change = nil
	u.settle(s.change.Back)
	if s.change.ByHand {
		if err := u.applyEarlier(); err != nil {
			*u.State = before
			return err
		}
	}
	if err := state.Save(u.Dirs, u.State); err != nil {
		*u.State = before
		return err
	}
	return nil
}

// applyEarlier makes the generation before the applied one the applied one.
func (u *Update) applyEarlier() error {
	number := u.State.Applied.Generation - 1
	g, err := ReadGeneration(u.Dirs.Generation(number))
	if err != nil {
		return fmt.Errorf("going back to generation %d: %w", number, err)
	}
	u.State.Applied = &state.Applied{
		Generation: number, Host: g.Host, Ref: g.Ref, Commit: g.Commit, Digest: g.Digest,
		Deployment: u.Host.Deployment(), Time: u.Host.Now(), Blocked: g.Blocked,
	}
	return nil
}

// BackError says why an operator's rollback is refused.
type BackError struct{ Reason string }

func (e *BackError) Error() string { return e.Reason }

// Back undoes the applied generation at an operator's wish, and holds its
// digest. It goes one generation back, once.
func (u *Update) Back(ctx context.Context) error {
	st := u.State
	switch {
	case st.Change != nil && len(st.Change.Rollback) > 0 && u.Ended(st.Change):
		fresh(st.Change.Rollback)
		if err := state.Save(u.Dirs, st); err != nil {
			return err
		}
		return u.Resume(ctx)
	case st.Change != nil:
		return &BackError{"a change is under way, or failed: reconf-pull run goes on with it"}
	case st.Applied == nil || st.Applied.Generation < 2:
		return &BackError{"there is no earlier generation"}
	case st.Held != nil && st.Held.Step == byHand:
		return &BackError{"one generation back is all that is kept ready: revert the commit with git and push"}
	}
	dir := u.Dirs.Generation(st.Applied.Generation)
	g, err := ReadGeneration(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", state.ErrUnreadable, err)
	}
	if _, err := ReadGeneration(u.Dirs.Generation(st.Applied.Generation - 1)); err != nil {
		return &BackError{"the generation before this one is not kept"}
	}
	job, err := readJob(g.Change, dir)
	if err != nil {
		return fmt.Errorf("%w: %w", state.ErrUnreadable, err)
	}
	change := &state.Change{
		ID: g.Change, Host: g.Host, Ref: g.Ref, Commit: g.Commit, Previous: g.Previous, Digest: g.Digest,
		Reasons: g.Reasons, Pinned: g.Started, Tasks: g.Steps, ByHand: true,
	}
	if why := u.WillReboot(job.Plan); why != "" {
		change.Back = &state.Reboot{Reason: why, BootID: u.bootID(), Since: u.Host.Now()}
	}
	u.inhibit(ctx, change)
	defer u.letGo()
	if err := u.beginBack(change, job); err != nil {
		return err
	}
	st.Change = change
	st.Held = &state.Hold{Digest: g.Digest, Commit: g.Commit, Step: byHand, Reason: "by hand", Time: u.Host.Now()}
	if err := os.WriteFile(u.Dirs.Resume(), nil, 0o600); err != nil {
		return err
	}
	if err := state.Save(u.Dirs, st); err != nil {
		return err
	}
	return u.goBack(ctx, change, job, true)
}

// byHand is the step that a hold names when an operator went back.
const byHand = "rollback"

// Failures are the records of changes that were rolled back.
func Failures(dirs state.Dirs) ([]*Generation, error) {
	names, err := os.ReadDir(dirs.Failed(""))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Generation
	for _, name := range names {
		g, err := ReadGeneration(dirs.Failed(name.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *Generation) int { return a.Ended.Compare(b.Ended) })
	return all, nil
}

// Retry ends a hold, so that the next run tries the digest again.
func (u *Update) Retry() error {
	u.State.Held, u.State.HeldOSWork, u.State.Updated = nil, nil, nil
	if c := u.State.Change; c != nil {
		fresh(c.Tasks)
		fresh(c.Rollback)
	}
	return state.Save(u.Dirs, u.State)
}

// fresh lets tasks that are not done be begun as if they never were.
func fresh(tasks []state.Task) {
	for i := range tasks {
		if tasks[i].Status != state.Done {
			tasks[i].Attempts = 0
		}
		if w := tasks[i].Reboot; w != nil {
			tasks[i].Reboot = &state.Waiting{Reason: w.Reason}
		}
	}
}
