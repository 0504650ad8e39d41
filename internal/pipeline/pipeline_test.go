package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

type step struct {
	name string
	run  func() error
}

func (s step) Name() string              { return s.name }
func (s step) Run(context.Context) error { return s.run() }

var errStep, errSave = errors.New("step"), errors.New("save")

// TestRun: (tasks, step results) to (tasks, what was saved when, error).
// Results are, per step: ok, skip, fail, end (the context ends while it runs).
func TestRun(t *testing.T) {
	for _, c := range []struct {
		name     string
		tasks    string // status:attempts of a, b, c
		begun    bool
		results  string
		failSave int // the n-th save fails
		want     string
		log      string // steps and saves in order
		err      error
	}{
		{"all", "doing:1 todo:0 todo:0", true, "ok ok ok", 0, "done:1 done:1 done:1", "a save b save c", nil},
		{"found doing, after a crash", "doing:1 todo:0 todo:0", false, "ok ok ok", 0, "done:2 done:1 done:1", "save a save b save c", nil},
		{"found doing in the middle", "done:1 doing:1 todo:0", false, "fail ok ok", 0, "done:1 done:2 done:1", "save b save c", nil},
		{"found failed", "done:1 error:2 todo:0", false, "fail ok ok", 0, "done:1 done:3 done:1", "save b save c", nil},
		{"skipped", "doing:1 todo:0 todo:0", true, "skip ok ok", 0, "done:1 done:1 done:1", "a save b save c", nil},
		{"fails", "doing:1 todo:0 todo:0", true, "ok fail ok", 0, "done:1 error:1 todo:0", "a save b save", errStep},
		{"ended", "doing:1 todo:0 todo:0", true, "ok end ok", 0, "done:1 doing:0 todo:0", "a save b save", context.Canceled},
		{"the first save fails", "doing:1 todo:0 todo:0", false, "ok ok ok", 1, "doing:2 todo:0 todo:0", "save", errSave},
		{"a later save fails", "doing:1 todo:0 todo:0", true, "ok ok ok", 1, "done:1 doing:1 todo:0", "a save", errSave},
		{"the save of a failure fails", "doing:1 todo:0 todo:0", true, "fail ok ok", 1, "error:1 todo:0 todo:0", "a save", errStep},
		{"nothing left", "done:1 done:1 done:1", false, "fail fail fail", 0, "done:1 done:1 done:1", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var log []string
			change := &state.Change{ID: "1"}
			var steps []pipeline.Step
			results := strings.Fields(c.results)
			for i, word := range strings.Fields(c.tasks) {
				task := state.Task{Name: string(rune('a' + i))}
				status, attempts, _ := strings.Cut(word, ":")
				task.Status = state.Status(status)
				if _, err := fmt.Sscan(attempts, &task.Attempts); err != nil {
					t.Fatal(err)
				}
				change.Tasks = append(change.Tasks, task)
				steps = append(steps, step{task.Name, func() error {
					log = append(log, task.Name)
					switch results[i] {
					case "skip":
						return &pipeline.Skip{Reason: "nothing to do"}
					case "fail":
						return errStep
					case "end":
						cancel()
						return fmt.Errorf("stopped: %w", ctx.Err())
					}
					return nil
				}})
			}
			saves := 0
			quiet := logrus.New()
			quiet.SetOutput(io.Discard)
			r := &pipeline.Runner{BootID: "boot", Log: quiet, Now: func() time.Time { return time.Unix(1, 0) }, Save: func() error {
				log = append(log, "save")
				if saves++; saves == c.failSave {
					return errSave
				}
				return nil
			}}
			err := r.Run(ctx, change, steps, c.begun)
			if !errors.Is(err, c.err) {
				t.Errorf("err = %v, want %v", err, c.err)
			}
			var failed *pipeline.StepError
			if errors.As(err, &failed) != errors.Is(c.err, errStep) {
				t.Errorf("err = %v: a step's error, and no other, is a StepError", err)
			}
			var got []string
			for _, task := range change.Tasks {
				got = append(got, fmt.Sprintf("%s:%d", task.Status, task.Attempts))
			}
			if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("tasks (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.log, strings.Join(log, " ")); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBegin(t *testing.T) {
	change := &state.Change{Tasks: []state.Task{{Name: "old", Status: state.Failed}}}
	r := &pipeline.Runner{BootID: "boot", Now: func() time.Time { return time.Unix(1, 0) }}
	r.Begin(change, []pipeline.Step{step{name: "a"}, step{name: "b"}})
	want := []state.Task{{Name: "a", Status: state.Doing, BootID: "boot", Attempts: 1, Started: time.Unix(1, 0)}, {Name: "b", Status: state.Todo}}
	if diff := cmp.Diff(want, change.Tasks); diff != "" {
		t.Error(diff)
	}
}

// A change of another release may have steps that this one does not know.
func TestUnknownStep(t *testing.T) {
	change := &state.Change{Tasks: []state.Task{{Name: "from-the-future", Status: state.Todo}}}
	r := &pipeline.Runner{Now: time.Now, Save: func() error { return nil }}
	if err := r.Run(t.Context(), change, nil, false); err == nil || !strings.Contains(err.Error(), "from-the-future") {
		t.Errorf("err = %v", err)
	}
}
