// Package pipeline runs the steps of a change and records every transition.
//
// Its one rule: a step is saved as doing before it runs and as done or error
// after it, so that a crash at any instant leaves a record that the next run
// goes on from. Steps are therefore idempotent.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Step is one thing that a change does.
type Step interface {
	// Name is stable: it stands in the state file, the journal and the metrics.
	Name() string
	// Run does the step, or goes on with it after a crash. It may return Skip.
	Run(ctx context.Context) error
}

// Idler is a step that knows before it runs whether it has nothing to do, and
// why. It is then done with the save of the step before it, without one of its
// own. An empty reason means that there is something to do.
type Idler interface{ Idle() string }

// Skip is returned by a step that has nothing to do here, and says why.
type Skip struct{ Reason string }

func (s *Skip) Error() string { return s.Reason }

// WaitReboot is returned by a step that is done once the machine has been
// booted anew, and by Run as long as it has not.
type WaitReboot struct {
	// Waiting is saved with the task before Ask is called.
	state.Waiting
	// Ask asks for the reboot. Nil: it is not asked for now.
	Ask func(ctx context.Context) error
	// Failed is why it could not be asked for.
	Failed error
}

func (w *WaitReboot) Error() string {
	switch {
	case w.Failed != nil:
		return fmt.Sprintf("a reboot is pending (%s), and asking for it failed: %v", w.Reason, w.Failed)
	case w.Veto != "":
		return fmt.Sprintf("a reboot is pending (%s), held off since %s by %s", w.Reason, w.Since.UTC().Format(time.RFC3339), w.Veto)
	}
	return fmt.Sprintf("a reboot is pending (%s), asked for at %s", w.Reason, w.Asked.UTC().Format(time.RFC3339))
}

func (w *WaitReboot) Unwrap() error { return w.Failed }

// StepError is a step that ended in an error.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// Runner runs steps. Save makes the change's tasks durable.
type Runner struct {
	Save   func() error
	Now    func() time.Time
	BootID string
	Log    logrus.FieldLogger
	// Doing is told the name of each step that is run; it may be nil.
	Doing func(step string)
}

// Begin gives the change the records of its steps, the first one that has
// something to do as doing: the save that pins the change is the one before its
// first step. Tasks that the change has already, it keeps.
func (r *Runner) Begin(change *state.Change, steps []Step) error {
	before := change.Tasks
	change.Tasks = nil
	byName := make(map[string]Step, len(steps))
	for _, s := range steps {
		task := state.Task{Name: s.Name(), Status: state.Todo}
		if i := slices.IndexFunc(before, func(t state.Task) bool { return t.Name == s.Name() }); i >= 0 {
			task = before[i]
		}
		change.Tasks = append(change.Tasks, task)
		byName[s.Name()] = s
	}
	task, err := r.next(change, byName)
	if task != nil {
		r.begin(task)
	}
	return err
}

// Run goes on with a change from its first step that is not done. begun says
// that this step was saved as doing by this process. A step that waits is done
// when there was another boot; in the same one it is asked again what to do,
// which is no further start of it.
//
// Run returns nil when all steps are done, a *StepError for a step that failed,
// a *WaitReboot for one that waits, the context's error when the run is ended,
// and any other error when a transition could not be saved, in which case
// nothing more was done.
func (r *Runner) Run(ctx context.Context, change *state.Change, steps []Step, begun bool) error {
	byName := make(map[string]Step, len(steps))
	for _, s := range steps {
		byName[s.Name()] = s
	}
	task, err := r.next(change, byName)
	for saved := begun; task != nil && err == nil; saved = true { // saved: task is on disk as doing
		if !saved && task.Status != state.Wait {
			r.begin(task)
			if err := r.Save(); err != nil {
				return err
			}
		}
		if err := r.run(ctx, task, byName[task.Name]); err != nil {
			return err
		}
		// The save after a step is the one before the next step: a task that
		// follows is marked in the same write. The last step commits by itself.
		if task, err = r.next(change, byName); task != nil && err == nil {
			r.begin(task)
			err = r.Save()
		}
	}
	return err
}

// next is the first task that is not done, nil when there is none. A step that
// has nothing to do is done.
func (r *Runner) next(change *state.Change, steps map[string]Step) (*state.Task, error) {
	for i := range change.Tasks {
		task := &change.Tasks[i]
		if task.Status == state.Done {
			continue
		}
		step, ok := steps[task.Name]
		if !ok {
			return nil, fmt.Errorf("internal error: the change has a step %q that this release does not know", task.Name)
		}
		if task.Status == state.Wait && task.BootID != r.BootID {
			task.Status, task.Ended, task.Detail = state.Done, r.Now(), "rebooted: "+task.Reboot.Reason
			r.Log.WithField("step", task.Name).Info(task.Detail)
			continue
		}
		idler, ok := step.(Idler)
		if !ok || task.Status != state.Todo {
			return task, nil
		}
		why := idler.Idle()
		if why == "" {
			return task, nil
		}
		r.skip(task, why)
	}
	return nil, nil
}

func (r *Runner) skip(task *state.Task, why string) {
	task.Status, task.Detail, task.Reboot = state.Done, "skipped: "+why, nil
	if task.Started.IsZero() {
		task.Started = r.Now()
	}
	task.Ended = r.Now()
	r.Log.WithField("step", task.Name).Debug(task.Detail)
}

func (r *Runner) begin(task *state.Task) {
	task.Status, task.BootID, task.Detail, task.Reboot = state.Doing, r.BootID, "", nil
	task.Started, task.Ended = r.Now(), time.Time{}
	task.Attempts++
}

func (r *Runner) run(ctx context.Context, task *state.Task, step Step) error {
	log := r.Log.WithField("step", step.Name())
	log.Debug("started")
	if r.Doing != nil {
		r.Doing(step.Name())
	}
	err := step.Run(ctx)
	var (
		skip *Skip
		wait *WaitReboot
	)
	if errors.As(err, &wait) {
		return r.wait(ctx, task, wait)
	}
	task.Ended = r.Now()
	switch {
	case err == nil:
		task.Status = state.Done
		log.Debugf("finished in %s", task.Ended.Sub(task.Started).Round(time.Millisecond))
		return nil
	case errors.As(err, &skip):
		r.skip(task, skip.Reason)
		return nil
	case ctx.Err() != nil && task.Status == state.Wait:
		return ctx.Err()
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// The run has used up its time: the step stays doing and is gone on with, and
		// the attempt counts, so that one which never ends is not begun for ever.
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		task.Detail = err.Error()
		return errors.Join(&StepError{Step: step.Name(), Err: err}, r.Save())
	case ctx.Err() != nil:
		// Ended from outside: the step stays doing and the attempt is given back.
		task.Attempts--
		return errors.Join(ctx.Err(), r.Save())
	}
	task.Status, task.Detail, task.Reboot = state.Failed, err.Error(), nil
	return errors.Join(&StepError{Step: step.Name(), Err: err}, r.Save())
}

// wait saves that the step waits, and then asks for the reboot: should the
// machine go down at once, the next boot knows what it was for.
func (r *Runner) wait(ctx context.Context, task *state.Task, wait *WaitReboot) error {
	if task.Status != state.Wait || *task.Reboot != wait.Waiting {
		task.Status, task.BootID, task.Reboot = state.Wait, r.BootID, &wait.Waiting
		if err := r.Save(); err != nil {
			return err
		}
	}
	if wait.Ask == nil {
		return wait
	}
	r.Log.WithField("step", task.Name).Infof("asking for a reboot: %s", wait.Reason)
	wait.Failed = wait.Ask(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // the reboot ends us, too
	}
	return wait
}
