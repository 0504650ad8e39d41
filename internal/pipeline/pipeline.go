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

// Idler is a step that knows before it runs whether it has nothing to do. It
// is then done with the save of the step before it, without one of its own.
type Idler interface{ Idle() bool }

// Skip is returned by a step that has nothing to do here, and says why.
type Skip struct{ Reason string }

func (s *Skip) Error() string { return s.Reason }

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
}

// Begin gives the change the records of its steps, the first of them as doing:
// the save that pins the change is the one before its first step.
func (r *Runner) Begin(change *state.Change, steps []Step) {
	change.Tasks = nil
	for _, s := range steps {
		change.Tasks = append(change.Tasks, state.Task{Name: s.Name(), Status: state.Todo})
	}
	r.begin(&change.Tasks[0])
}

// Run goes on with a change from its first step that is not done. begun says
// that this step was saved as doing by this process. Run returns nil when all steps are done, a *StepError for a step that failed, the
// context's error when the run is ended, and any other error when a
// transition could not be saved, in which case nothing more was done.
func (r *Runner) Run(ctx context.Context, change *state.Change, steps []Step, begun bool) error {
	byName := make(map[string]Step, len(steps))
	for _, s := range steps {
		byName[s.Name()] = s
	}
	task, err := r.next(change, byName)
	for saved := begun; task != nil && err == nil; saved = true { // saved: task is on disk as doing
		if !saved {
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
		if idler, ok := step.(Idler); !ok || task.Status != state.Todo || !idler.Idle() {
			return task, nil
		}
		task.Status, task.Started, task.Ended = state.Done, r.Now(), r.Now()
		task.Detail = "skipped: there is nothing to do"
		r.Log.WithField("step", task.Name).Debug(task.Detail)
	}
	return nil, nil
}

func (r *Runner) begin(task *state.Task) {
	task.Status, task.BootID, task.Detail = state.Doing, r.BootID, ""
	task.Started, task.Ended = r.Now(), time.Time{}
	task.Attempts++
}

func (r *Runner) run(ctx context.Context, task *state.Task, step Step) error {
	log := r.Log.WithField("step", step.Name())
	log.Debug("started")
	err := step.Run(ctx)
	task.Ended = r.Now()
	var skip *Skip
	switch {
	case err == nil:
		task.Status = state.Done
		log.Debugf("finished in %s", task.Ended.Sub(task.Started).Round(time.Millisecond))
		return nil
	case errors.As(err, &skip):
		task.Status, task.Detail = state.Done, "skipped: "+skip.Reason
		log.Debug(task.Detail)
		return nil
	case ctx.Err() != nil:
		// Ended from outside: the step stays doing and the attempt is given back.
		task.Attempts--
		return errors.Join(ctx.Err(), r.Save())
	}
	task.Status, task.Detail = state.Failed, err.Error()
	return errors.Join(&StepError{Step: step.Name(), Err: err}, r.Save())
}
