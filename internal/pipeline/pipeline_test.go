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

var errStep, errSave, errAsk, errWait, errLate = errors.New("step"), errors.New("save"), errors.New("ask"), errors.New("wait"), errors.New("late")

// idle is a step that knows that it has nothing to do.
type idle struct{ step }

func (idle) Idle() string { return "nothing is due" }

// TestRun: (tasks, boot id, step results) to (tasks, what was saved when, error).
// A task is its status, starts, and of one that waits the boot and how often a
// reboot was asked for. Results are, per step: ok, skip, idle, fail, end (the
// context ends while it runs), late (its time does), ask, asked (the reboot ends the run at once),
// deaf (asking fails), wait (nothing new).
func TestRun(t *testing.T) {
	for _, c := range []struct {
		name     string
		tasks    string
		begun    bool
		results  string
		failSave int // the n-th save fails
		want     string
		log      string // steps, saves and questions in order
		err      error
	}{
		{"all", "doing:1 todo:0 todo:0", true, "ok ok ok", 0, "done:1 done:1 done:1", "a save b save c", nil},
		{"found doing, after a crash", "doing:1 todo:0 todo:0", false, "ok ok ok", 0, "done:2 done:1 done:1", "save a save b save c", nil},
		{"found doing in the middle", "done:1 doing:1 todo:0", false, "fail ok ok", 0, "done:1 done:2 done:1", "save b save c", nil},
		{"found failed", "done:1 error:2 todo:0", false, "fail ok ok", 0, "done:1 done:3 done:1", "save b save c", nil},
		{"skipped", "doing:1 todo:0 todo:0", true, "skip ok ok", 0, "done:1 done:1 done:1", "a save b save c", nil},
		{"idle", "doing:1 todo:0 todo:0", true, "ok idle ok", 0, "done:1 done:0 done:1", "a save c", nil},
		{"idle at the end", "doing:1 todo:0 todo:0", true, "ok ok idle", 0, "done:1 done:1 done:0", "a save b", nil},
		{"idle, but begun before", "done:1 doing:1 todo:0", false, "ok idle ok", 0, "done:1 done:2 done:1", "save b save c", nil},
		{"fails", "doing:1 todo:0 todo:0", true, "ok fail ok", 0, "done:1 error:1 todo:0", "a save b save", errStep},
		{"ended", "doing:1 todo:0 todo:0", true, "ok end ok", 0, "done:1 doing:0 todo:0", "a save b save", context.Canceled},
		{"out of time", "doing:1 todo:0 todo:0", true, "ok late ok", 0, "done:1 doing:1 todo:0", "a save b save", errLate},
		{"the first save fails", "doing:1 todo:0 todo:0", false, "ok ok ok", 1, "doing:2 todo:0 todo:0", "save", errSave},
		{"a later save fails", "doing:1 todo:0 todo:0", true, "ok ok ok", 1, "done:1 doing:1 todo:0", "a save", errSave},
		{"the save of a failure fails", "doing:1 todo:0 todo:0", true, "fail ok ok", 1, "error:1 todo:0 todo:0", "a save", errStep},
		{"nothing left", "done:1 done:1 done:1", false, "fail fail fail", 0, "done:1 done:1 done:1", "", nil},

		{"asks for a reboot, once it is saved", "doing:1 todo:0 todo:0", true, "ok ask ok", 0, "done:1 wait:1:now:1 todo:0", "a save b save ask", errWait},
		{"the reboot ends the run", "doing:1 todo:0 todo:0", true, "ok asked ok", 0, "done:1 wait:1:now:1 todo:0", "a save b save ask", context.Canceled},
		{"asking fails", "doing:1 todo:0 todo:0", true, "ok deaf ok", 0, "done:1 wait:1:now:1 todo:0", "a save b save ask", errAsk},
		{"what is not saved is not asked for", "doing:1 todo:0 todo:0", true, "ok ask ok", 2, "done:1 wait:1:now:1 todo:0", "a save b save", errSave},
		{"held off", "doing:1 todo:0 todo:0", true, "ok wait ok", 0, "done:1 wait:1:now:0 todo:0", "a save b save", errWait},
		{"another boot", "done:1 wait:1:old:1 todo:0", false, "ok fail ok", 0, "done:1 done:1 done:1", "save c", nil},
		{"another boot, at the end", "done:1 done:1 wait:1:old:1", false, "ok ok fail", 0, "done:1 done:1 done:1", "", nil},
		{"the same boot, nothing new", "done:1 wait:1:now:0 todo:0", false, "ok wait ok", 0, "done:1 wait:1:now:0 todo:0", "b", errWait},
		{"the same boot, asked again", "done:1 wait:1:now:1 todo:0", false, "ok ask ok", 0, "done:1 wait:1:now:2 todo:0", "b save ask", errWait},
		{"the same boot, put off", "done:1 wait:1:now:1 todo:0", false, "ok skip ok", 0, "done:1 done:1 done:1", "b save c", nil},
		{"the same boot, given up", "done:1 wait:1:now:3 todo:0", false, "ok fail ok", 0, "done:1 error:1 todo:0", "b save", errStep},
		{"the same boot, ended", "done:1 wait:1:now:1 todo:0", false, "ok end ok", 0, "done:1 wait:1:now:1 todo:0", "b", context.Canceled},
		{"a boot that nobody asked for", "done:1 doing:1 todo:0", false, "ok ok ok", 0, "done:1 done:2 done:1", "save b save c", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if strings.Contains(c.results, "late") {
				ctx, cancel = context.WithTimeoutCause(ctx, 50*time.Millisecond, errLate)
				defer cancel()
			}
			var log []string
			change := &state.Change{ID: "1"}
			var steps []pipeline.Step
			results := strings.Fields(c.results)
			for i, word := range strings.Fields(c.tasks) {
				task := state.Task{Name: string(rune('a' + i))}
				fields := strings.Split(word, ":")
				task.Status = state.Status(fields[0])
				if _, err := fmt.Sscan(fields[1], &task.Attempts); err != nil {
					t.Fatal(err)
				}
				if len(fields) > 2 {
					task.BootID, task.Reboot = fields[2], &state.Waiting{Reason: "why"}
					if _, err := fmt.Sscan(fields[3], &task.Reboot.Asks); err != nil {
						t.Fatal(err)
					}
				}
				change.Tasks = append(change.Tasks, task)
				one := step{task.Name, func() error {
					log = append(log, task.Name)
					wait := &pipeline.WaitReboot{Waiting: state.Waiting{Reason: "why"}}
					if task.Reboot != nil {
						wait.Waiting = *task.Reboot
					}
					switch results[i] {
					case "skip":
						return &pipeline.Skip{Reason: "nothing to do"}
					case "fail":
						return errStep
					case "end":
						cancel()
						return fmt.Errorf("stopped: %w", ctx.Err())
					case "wait":
						return wait
					case "ask", "asked", "deaf":
						wait.Asks++
						wait.Ask = func(context.Context) error {
							log = append(log, "ask")
							switch results[i] {
							case "asked":
								cancel()
							case "deaf":
								return errAsk
							}
							return nil
						}
						return wait
					case "late":
						<-ctx.Done()
						return fmt.Errorf("stopped: %w", ctx.Err())
					}
					return nil
				}}
				if results[i] == "idle" {
					steps = append(steps, idle{one})
				} else {
					steps = append(steps, one)
				}
			}
			saves := 0
			quiet := logrus.New()
			quiet.SetOutput(io.Discard)
			r := &pipeline.Runner{BootID: "now", Log: quiet, Now: func() time.Time { return time.Unix(1, 0) }, Save: func() error {
				log = append(log, "save")
				if saves++; saves == c.failSave {
					return errSave
				}
				return nil
			}}
			err := r.Run(ctx, change, steps, c.begun)
			var failed *pipeline.StepError
			var wait *pipeline.WaitReboot
			if errors.As(err, &wait) && wait.Failed == nil {
				err = errWait
			}
			if !errors.Is(err, c.err) {
				t.Errorf("err = %v, want %v", err, c.err)
			}
			if errors.As(err, &failed) != (errors.Is(c.err, errStep) || errors.Is(c.err, errLate)) {
				t.Errorf("err = %v: a step's error, and no other, is a StepError", err)
			}
			var got []string
			for i, task := range change.Tasks {
				text := fmt.Sprintf("%s:%d", task.Status, task.Attempts)
				if task.Status == state.Wait {
					text += fmt.Sprintf(":%s:%d", task.BootID, task.Reboot.Asks)
				}
				got = append(got, text)
				if why := map[string]string{"skip": "skipped: nothing to do", "idle": "skipped: nothing is due"}[results[i]]; why != "" && task.Attempts == 0 && task.Detail != why {
					t.Errorf("%s says %q, want %q", task.Name, task.Detail, why)
				}
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

// The first step with something to do is doing, and what is done stays.
func TestBegin(t *testing.T) {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	now := time.Unix(1, 0)
	over := state.Task{Name: "a", Status: state.Done, Detail: "before"}
	change := &state.Change{Tasks: []state.Task{{Name: "old", Status: state.Failed}, over}}
	r := &pipeline.Runner{BootID: "boot", Now: func() time.Time { return now }, Log: quiet}
	if err := r.Begin(change, []pipeline.Step{step{name: "a"}, idle{step{name: "b"}}, step{name: "c"}, step{name: "d"}}); err != nil {
		t.Fatal(err)
	}
	want := []state.Task{
		over, {Name: "b", Status: state.Done, Detail: "skipped: nothing is due", Started: now, Ended: now},
		{Name: "c", Status: state.Doing, BootID: "boot", Attempts: 1, Started: now}, {Name: "d", Status: state.Todo},
	}
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
