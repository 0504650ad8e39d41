package update_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// logind stands in for logind and the boots of a machine: nothing can be
// rebooted in a unit test.
type logind struct {
	boot   int
	held   []string
	late   bool // somebody holds it off between the look and the question
	asks   int
	checks error // of boot-complete.target
	called func(what string)
}

func (l *logind) BootID() string { return fmt.Sprint("boot", l.boot) }

func (l *logind) Blockers(context.Context) ([]string, error) {
	l.called("inhibitors")
	return l.held, nil
}

func (l *logind) BootChecks(context.Context) error {
	l.called("boot-complete")
	return l.checks
}

func (l *logind) Reboot(context.Context) error {
	l.called("reboot")
	if l.late {
		return fmt.Errorf("%w: backup", update.ErrVeto)
	}
	l.asks++
	return nil
}

// died is what a process leaves that is killed.
type died struct{}

// scripts stands in for script directories: phases that exist, and how they end.
type scripts struct {
	log []string
	// called is told of everything that a change does to the world.
	called func(what string)
	fail   map[hooks.Phase]bool
	yes    map[hooks.Phase]bool
	full   error // of the disk, when the engine writes
}

func (s *scripts) List(phase hooks.Phase) ([]hooks.Script, []hooks.Ignored, error) {
	_, fails := s.fail[phase]
	_, answers := s.yes[phase]
	if !fails && !answers {
		return nil, nil, nil
	}
	return []hooks.Script{{Path: "/hooks/" + string(phase) + ".d/10"}}, nil, nil
}

func (s *scripts) Strays() ([]hooks.Ignored, error) { return nil, nil }

func (s *scripts) Run(_ context.Context, phase hooks.Phase, _ map[string]string) error {
	s.called(string(phase))
	s.log = append(s.log, string(phase))
	if s.fail[phase] {
		return errors.New("exit status 1")
	}
	return nil
}

func (s *scripts) Ask(_ context.Context, phase hooks.Phase, _ map[string]string) (bool, string, error) {
	s.called(string(phase) + "?")
	s.log = append(s.log, string(phase)+"?")
	return s.yes[phase], string(phase) + ".d/10", nil
}

func (s *scripts) RunOnce(context.Context, hooks.Phase, map[string]string, func(string) (bool, error), func(string) error) error {
	return nil
}

// native is an engine that has nothing to write.
type native struct{ scripts *scripts }

func (n native) Name() string { return "native" }

func (n native) Check(context.Context, *engine.Job) (engine.Result, error) {
	return engine.Result{}, nil
}

func (n native) Apply(context.Context, *engine.Job) (engine.Result, error) {
	n.scripts.called("apply")
	n.scripts.log = append(n.scripts.log, "apply")
	if n.scripts.full != nil {
		return engine.Result{}, &engine.UntouchedError{Err: n.scripts.full}
	}
	return engine.Result{}, nil
}

func (n native) Rollback(context.Context, *engine.Job) (engine.Result, error) {
	n.scripts.called("undo")
	n.scripts.log = append(n.scripts.log, "undo")
	return engine.Result{}, nil
}

func (n native) Clean(context.Context, *engine.Job) error { return nil }

// idleUnits is a service manager that no plan touches.
type idleUnits struct{}

func (idleUnits) Touched(context.Context, []string, []service.Watch) (service.Effect, error) {
	return service.Effect{}, nil
}
func (idleUnits) Before(context.Context, string, *plan.Plan) error     { return nil }
func (idleUnits) After(context.Context, string, *plan.Plan) error      { return nil }
func (idleUnits) BeforeBack(context.Context, string, *plan.Plan) error { return nil }
func (idleUnits) Back(context.Context, string, *plan.Plan) error       { return nil }
func (idleUnits) Healthy(context.Context, string, *plan.Plan) error    { return nil }
func (idleUnits) Late(context.Context, *plan.Plan) error               { return nil }

// bench is a host on which only the clock, the boots and the scripts are not real.
type bench struct {
	*update.Update
	t       *testing.T
	now     time.Time
	machine *logind
	scripts *scripts
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		t: t, now: time.Date(2027, 1, 9, 3, 0, 0, 0, time.UTC), machine: &logind{boot: 1},
		scripts: &scripts{fail: map[hooks.Phase]bool{}, yes: map[hooks.Phase]bool{}, called: func(string) {}},
	}
	b.machine.called = func(what string) { b.scripts.called(what) }
	dir := t.TempDir()
	h := host.New(filepath.Join(dir, "root"))
	h.Now = func() time.Time { return b.now }
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	dirs := state.Dirs{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}
	if err := errors.Join(dirs.Create(), os.MkdirAll(filepath.Join(h.Root, "etc"), 0o755)); err != nil {
		t.Fatal(err)
	}
	b.Update = &update.Update{
		Host: h, Dirs: dirs, State: &state.State{Schema: state.Schema}, Engine: native{b.scripts}, Units: idleUnits{}, Log: quiet,
		Keep: 5, MaxAttempts: 3, Hooks: func(string) update.Hooks { return b.scripts }, HealthSource: "never", Backoff: time.Minute,
	}
	paths, err := service.ParseGlobs([]string{"/etc/default/**"})
	if err != nil {
		t.Fatal(err)
	}
	b.Rebooting = update.Rebooting{Machine: b.machine, Timeout: 10 * time.Minute, Paths: paths}
	b.deployment("1")
	return b
}

func (b *bench) deployment(version string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.Host.Root, "etc/os-release"), []byte("IMAGE_VERSION="+version+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) window(text string) {
	b.t.Helper()
	w, err := window.Parse(text)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Rebooting.Windows = window.Windows{w}
}

// begin pins a change and carries it out; path is what it writes.
func (b *bench) begin(change *state.Change, path string) error {
	b.t.Helper()
	p := &plan.Plan{}
	if path != "" {
		p.Items = []plan.Item{{Path: path, Action: plan.Create, Write: true, After: disk.Node{Kind: disk.Link, Target: "x"}}}
	}
	change.Host, change.Commit, change.Deployment = "web1", "c0ffee", b.Host.Deployment()
	if change.Digest == "" {
		change.Digest = "digest00"
	}
	if err := b.Pin(b.t.Context(), change, p, update.Inputs{}); err != nil {
		b.t.Fatal(err)
	}
	return b.Apply(b.t.Context(), p, update.Inputs{})
}

// again is a new process: everything is read back.
func (b *bench) again() error {
	b.t.Helper()
	b.reload()
	if err := b.Booted(); err != nil {
		b.t.Fatal(err)
	}
	if b.State.Change == nil {
		return nil
	}
	return b.Resume(b.t.Context())
}

func (b *bench) reload() {
	b.t.Helper()
	st, err := state.Load(b.Dirs)
	if err != nil {
		b.t.Fatal(err)
	}
	b.State = st
}

// said is how a run ended, in one word.
func said(err error) string {
	var (
		wait   *pipeline.WaitReboot
		back   *update.RolledBackError
		failed *pipeline.StepError
	)
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &wait) && wait.Veto != "":
		return "veto"
	case errors.As(err, &wait):
		return "wait"
	case errors.As(err, &back) && back.Back == nil:
		return "back:" + back.Failed.Step
	case errors.As(err, &failed):
		return "error:" + failed.Step
	}
	return err.Error()
}

// seen is where the host stands: how often a reboot was asked for, the step that
// is not done, what is applied, pending and held.
func (b *bench) seen() string {
	var words []string
	words = append(words, fmt.Sprintf("asks=%d", b.machine.asks))
	if c := b.State.Change; c != nil {
		for _, task := range slices.Concat(c.Tasks, c.Rollback) {
			if !slices.Contains([]state.Status{state.Done, state.Todo}, task.Status) {
				words = append(words, task.Name+"="+string(task.Status))
			}
		}
	}
	if a := b.State.Applied; a != nil {
		words = append(words, fmt.Sprintf("applied=%d", a.Generation))
	}
	if b.State.Reboot != nil {
		words = append(words, "pending")
	}
	if b.State.Held != nil {
		words = append(words, "held")
	}
	if b.State.HeldOSWork != nil {
		words = append(words, "os-work-held")
	}
	return strings.Join(words, " ")
}

// TestReboot: what happens to a change that needs a reboot, move by move. A move
// is "run", a time that passes, "boot", or something that changes around it; what
// is expected stands for each run.
func TestReboot(t *testing.T) {
	const window = "Sat 02:00-05:00 UTC" // it is Saturday, 03:00
	for _, c := range []struct {
		name  string
		moves []string
		want  []string
	}{
		{"it comes", []string{"run", "boot", "run"}, []string{"wait: asks=1 reboot=wait", "ok: asks=1 applied=1"}},
		{"nothing is done twice while it is waited for", []string{"run", "5m", "run", "boot", "run", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=1 reboot=wait", "ok: asks=1 applied=1", "ok: asks=1 applied=1",
		}},
		{"it never comes", []string{"run", "10m", "run", "10m", "run", "9m", "run", "1m", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=2 reboot=wait", "wait: asks=3 reboot=wait", "wait: asks=3 reboot=wait", "back:reboot: asks=3 held",
		}},
		{"it comes late", []string{"run", "10m", "run", "3h", "boot", "run"}, []string{"wait: asks=1 reboot=wait", "wait: asks=2 reboot=wait", "ok: asks=2 applied=1"}},
		{"a clock that is set back", []string{"run", "-1000h", "run"}, []string{"wait: asks=1 reboot=wait", "wait: asks=2 reboot=wait"}},
		{"no window is open", []string{"window", "3h", "run", "boot", "run"}, []string{"ok: asks=0 applied=1 pending", "ok: asks=0 applied=1"}},
		{"the window closes", []string{"window", "run", "2h", "run"}, []string{"wait: asks=1 reboot=wait", "ok: asks=1 applied=1 pending"}},
		{"the window closes while it is on its way", []string{"window", "119m", "run", "2m", "run", "boot", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=1 reboot=wait", "ok: asks=1 applied=1",
		}},
		{"held off for a while", []string{"veto", "run", "30m", "run", "free", "run", "boot", "run"}, []string{
			"veto: asks=0 reboot=wait", "veto: asks=0 reboot=wait", "wait: asks=1 reboot=wait", "ok: asks=1 applied=1",
		}},
		{"held off for an hour", []string{"veto", "run", "30m", "run", "30m", "run"}, []string{
			"veto: asks=0 reboot=wait", "veto: asks=0 reboot=wait", "ok: asks=0 applied=1 pending",
		}},
		{"held off in the last moment", []string{"late", "run", "run", "free", "run", "boot", "run"}, []string{
			"veto: asks=0 reboot=wait", "veto: asks=0 reboot=wait", "wait: asks=1 reboot=wait", "ok: asks=1 applied=1",
		}},
		{"held off, and booted by somebody else", []string{"veto", "run", "boot", "run"}, []string{"veto: asks=0 reboot=wait", "ok: asks=0 applied=1"}},
		{"ill after it, and back", []string{"ill", "run", "boot", "run", "boot", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=2 health=error rollback-reboot=wait held", "back:health: asks=2 held",
		}},
		{"ill after it, and no window", []string{"window", "ill", "run", "boot", "3h", "run", "boot", "run"}, []string{
			"wait: asks=1 reboot=wait", "back:health: asks=1 pending held", "ok: asks=1 held",
		}},
		{"back, and that reboot never comes", []string{"ill", "run", "boot", "run", "10m", "run", "10m", "run", "10m", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=2 health=error rollback-reboot=wait held", "wait: asks=3 health=error rollback-reboot=wait held",
			"wait: asks=4 health=error rollback-reboot=wait held", "error:health: asks=4 health=error rollback-reboot=error held",
		}},
		{"a boot that fails its checks", []string{"bad boot", "run", "boot", "run"}, []string{
			"wait: asks=1 reboot=wait", "wait: asks=2 health=error rollback-reboot=wait held",
		}},
		{"too many", []string{"often", "run"}, []string{"ok: asks=0 applied=1 pending"}},
		{"too many, by a clock that was ahead", []string{"often", "-1000h", "run"}, []string{"wait: asks=1 reboot=wait"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			begun := false
			var got []string
			for _, move := range c.moves {
				if d, err := time.ParseDuration(move); err == nil {
					b.now = b.now.Add(d)
					continue
				}
				switch move {
				case "run":
					var err error
					if begun {
						err = b.again()
					} else {
						err = b.begin(&state.Change{}, "/etc/default/grub")
					}
					begun = true
					got = append(got, said(err)+": "+b.seen())
				case "boot":
					b.machine.boot++
				case "window":
					b.window(window)
				case "veto":
					b.machine.held = []string{"backup (pid 1): at work"}
				case "late":
					b.machine.late = true
				case "free":
					b.machine.held, b.machine.late = nil, false
				case "ill":
					b.scripts.fail[hooks.Health] = true
				case "bad boot":
					b.machine.checks = errors.New("boot-complete.target failed")
				case "often":
					for range 3 {
						b.State.Reboots = append(b.State.Reboots, state.Asked{Time: b.now.Add(-time.Hour), Digest: "digest00"})
					}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// One entry of the history has all fifteen steps, in their order, with the
// reason of every one that had nothing to do.
func TestStepsOfAGeneration(t *testing.T) {
	names := []string{
		"needs-update", "check", "lock", "pre-update", "pre-configure", "configure", "post-configure", "migration", "update", "needs-reboot", "reboot",
		"post-update", "health", "record", "release",
	}
	for _, c := range []struct {
		name   string
		change state.Change
		path   string
		want   map[string]string // details
	}{
		{"config", state.Change{}, "/etc/motd", map[string]string{"update": "skipped: no OS work is due", "reboot": "skipped: no reboot is needed"}},
		{"OS work", state.Change{OSWork: true, OnlyOS: true}, "", map[string]string{"configure": "skipped: only OS work is due", "migration": "skipped: only OS work is due"}},
		{"both, and a reboot", state.Change{OSWork: true}, "/etc/default/x", map[string]string{"reboot": "rebooted: /etc/default/x changes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.scripts.fail[hooks.Update] = false
			err := b.begin(&c.change, c.path)
			if said(err) == "wait" {
				b.machine.boot++
				err = b.again()
			}
			if err != nil {
				t.Fatal(err)
			}
			g, err := update.ReadGeneration(b.Dirs.Generation(1))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, task := range g.Steps {
				got = append(got, task.Name)
				if want := c.want[task.Name]; want != "" && task.Detail != want {
					t.Errorf("%s: %q, want %q", task.Name, task.Detail, want)
				}
			}
			if diff := cmp.Diff(names, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if ran := slices.Contains(b.scripts.log, "update"); ran != c.change.OSWork {
				t.Errorf("update.d ran: %v", ran)
			}
			if wrote := slices.Contains(b.scripts.log, "apply"); wrote == c.change.OnlyOS {
				t.Errorf("the engine wrote: %v", wrote)
			}
		})
	}
}

// A pending reboot is a change of its own: 4, and 11 to 15.
func TestPendingReboot(t *testing.T) {
	b := newBench(t)
	b.window("Sat 02:00-05:00 UTC")
	b.scripts.fail[hooks.PreUpdate], b.scripts.fail[hooks.PostUpdate] = false, false
	b.now = b.now.Add(5 * time.Hour)
	if err := b.begin(&state.Change{}, "/etc/default/grub"); err != nil {
		t.Fatal(err)
	}
	if b.PendingReboot(t.Context()) != nil {
		t.Error("outside the window it is a reason")
	}
	b.now = b.now.Add(7*24*time.Hour - 5*time.Hour)
	b.machine.held = []string{"backup"}
	if b.PendingReboot(t.Context()) != nil {
		t.Error("it is a reason while somebody holds it off")
	}
	b.machine.held = nil
	pending := b.PendingReboot(t.Context())
	if pending == nil {
		t.Fatal("inside the window it is no reason")
	}
	b.scripts.log = nil
	if err := b.begin(&state.Change{OnlyOS: true, Reboot: pending}, ""); said(err) != "wait" {
		t.Fatal(err)
	}
	b.machine.boot++
	if err := b.again(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"pre_update", "post_update"}, b.scripts.log); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := b.seen(); got != "asks=1 applied=2" {
		t.Error(got)
	}

	// One that never comes is no failure of the host config.
	b.State.Reboot = &state.Reboot{Reason: "again", BootID: b.machine.BootID()}
	err := b.begin(&state.Change{OnlyOS: true, Reboot: b.State.Reboot}, "")
	for range 3 {
		b.now = b.now.Add(10 * time.Minute)
		err = b.again()
	}
	if got := said(err) + ": " + b.seen(); got != "back:reboot: asks=4 applied=2 pending os-work-held" {
		t.Error(got)
	}
	if b.PendingReboot(t.Context()) != nil {
		t.Error("what is held is a reason")
	}
}

// OS work that would be done for ever is held until there is another deployment,
// or an operator says retry.
func TestOSWorkIsHeld(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(b *bench) error
		why  string
	}{
		{"it fails", func(b *bench) error {
			b.scripts.fail[hooks.Update] = true
			err := b.begin(&state.Change{OSWork: true}, "/etc/motd")
			for range 2 {
				err = b.again()
			}
			if said(err) != "back:update" || !slices.Contains(b.scripts.log, "undo") || !strings.Contains(err.Error(), "what these did stays: /hooks/update.d/10") {
				return err
			}
			return nil
		}, "exit status 1"},
		{"it changes nothing", func(b *bench) error {
			return b.begin(&state.Change{OSWork: true, OnlyOS: true}, "")
		}, "update.d was run, and needs_update.d still says yes"},
		{"the reboot changes nothing", func(b *bench) error {
			b.scripts.yes[hooks.NeedsReboot] = true
			_ = b.begin(&state.Change{OSWork: true, OnlyOS: true}, "")
			b.machine.boot++
			return b.again()
		}, "update.d was run, and needs_update.d still says yes"},
		{"the deployment comes back", func(b *bench) error {
			b.scripts.yes[hooks.NeedsReboot] = true
			_ = b.begin(&state.Change{OSWork: true, OnlyOS: true}, "")
			b.machine.boot++
			b.deployment("2")
			if err := b.again(); err != nil {
				return err
			}
			if why, err := b.AskOSWork(b.t.Context()); why == "" || err != nil {
				return fmt.Errorf("OS work of the new deployment: %q, %w", why, err)
			}
			b.machine.boot++
			b.deployment("1")
			why, err := b.AskOSWork(b.t.Context())
			if why != "" {
				return errors.New("it is done once more")
			}
			return err
		}, "is booted again"},
		{"the reboot that was put off changes nothing", func(b *bench) error {
			b.window("Sun 02:00-05:00 UTC")
			b.scripts.yes[hooks.NeedsReboot] = true
			if err := b.begin(&state.Change{OSWork: true, OnlyOS: true}, ""); err != nil {
				return err
			}
			if why, err := b.AskOSWork(b.t.Context()); why != "" || err != nil || b.State.HeldOSWork != nil {
				return fmt.Errorf("before the reboot: %q, %w", why, err)
			}
			b.machine.boot++
			if err := b.again(); err != nil {
				return err
			}
			_, err := b.AskOSWork(b.t.Context())
			return err
		}, "is booted again"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.scripts.fail[hooks.Update], b.scripts.yes[hooks.NeedsUpdate] = false, true
			if err := c.run(b); err != nil {
				t.Fatal(err)
			}
			b.reload()
			if b.State.Held != nil || b.State.HeldOSWork == nil || !strings.Contains(b.State.HeldOSWork.Reason, c.why) {
				t.Fatalf("held %+v, OS work %+v", b.State.Held, b.State.HeldOSWork)
			}
			if why, err := b.AskOSWork(t.Context()); why != "" || err != nil {
				t.Errorf("while it is held: %q, %v", why, err)
			}
			held := *b.State
			if err := b.Retry(); err != nil || b.State.HeldOSWork != nil {
				t.Errorf("after retry: %+v, %v", b.State.HeldOSWork, err)
			}
			b.State = &held
			b.deployment("3")
			if err := b.Booted(); err != nil || b.State.HeldOSWork != nil {
				t.Errorf("on another deployment: %+v, %v", b.State.HeldOSWork, err)
			}
		})
	}
}

// A package-based system keeps its deployment for ever: what comes next week is
// other OS work.
func TestOSWorkComesAgain(t *testing.T) {
	b := newBench(t)
	b.scripts.fail[hooks.Update], b.scripts.yes[hooks.NeedsUpdate] = false, false
	if err := b.begin(&state.Change{OSWork: true, OnlyOS: true}, ""); err != nil {
		t.Fatal(err)
	}
	b.scripts.yes[hooks.NeedsUpdate] = true
	if why, err := b.AskOSWork(t.Context()); why == "" || err != nil {
		t.Errorf("%q, %v", why, err)
	}
}

// A step that failed waits before its next start, twice as long each time.
func TestBackoff(t *testing.T) {
	b := newBench(t)
	b.scripts.fail[hooks.PreUpdate], b.scripts.fail[hooks.PostUpdate] = true, false
	err := b.begin(&state.Change{}, "/etc/motd")
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute} {
		if said(err) != "error:pre-update" || !b.NotBefore().Equal(b.now.Add(want)) {
			t.Errorf("%v, not before %v, want %v", err, b.NotBefore().Sub(b.now), want)
		}
		err = b.again()
	}
	if got := said(err) + ": " + b.seen() + ": " + strings.Join(b.scripts.log, " "); got != "back:pre-update: asks=0 held: pre_update pre_update pre_update post_update" {
		t.Error(got)
	}
	g, err := update.Failures(b.Dirs)
	if err != nil || len(g) != 1 || g[0].Result != "failed" {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestCrashAnywhere ends the process at everything that it does to the world, in
// a change that reboots and in one that is undone by another reboot, with and
// without the machine going down too. Runs that go on end in the same state.
func TestCrashAnywhere(t *testing.T) {
	for _, ill := range []bool{false, true} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("ill=%v power=%v", ill, cut), func(t *testing.T) {
				total := 0
				want := crash(t, ill, cut, 0, &total)
				if total < 9 {
					t.Fatalf("only %d points", total)
				}
				for at := 1; at <= total; at++ {
					if diff := cmp.Diff(want, crash(t, ill, cut, at, new(int))); diff != "" {
						t.Errorf("killed at %d of %d (-uninterrupted +killed):\n%s", at, total, diff)
					}
				}
			})
		}
	}
}

// crash carries a change out, killed once at a point (0: never), and returns
// where it ends.
func crash(t *testing.T, ill, cut bool, at int, points *int) []string {
	t.Helper()
	b := newBench(t)
	for _, phase := range []hooks.Phase{hooks.PreUpdate, hooks.PostConfigure, hooks.Update, hooks.PostUpdate, hooks.Health} {
		b.scripts.fail[phase] = false
	}
	b.scripts.fail[hooks.Health], b.scripts.yes[hooks.NeedsReboot] = ill, true
	b.scripts.called = func(string) {
		if *points++; *points == at {
			panic(died{})
		}
	}
	// attempt runs a process to its end, however that comes.
	attempt := func(run func() error) (err error) {
		defer func() {
			if p := recover(); p == (any)(died{}) {
				if cut {
					b.machine.boot++
				}
				err = errors.New("killed")
			} else if p != nil {
				panic(p)
			}
		}()
		return run()
	}
	err := attempt(func() error { return b.begin(&state.Change{OSWork: true}, "/etc/motd") })
	for range 20 {
		if said(err) == "wait" {
			b.machine.boot++
		} else if b.reload(); b.State.Change == nil {
			break
		} else {
			b.now = b.now.Add(10 * time.Minute)
		}
		err = attempt(b.again)
	}
	b.reload()
	b.machine.asks = 0 // one that was saved and not asked for is asked for again
	end := []string{b.seen()}
	if _, err := os.Stat(b.Dirs.Resume()); err == nil {
		end = append(end, "the marker is left")
	}
	failures, err := update.Failures(b.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := update.ReadGeneration(b.Dirs.Generation(1)); err == nil {
		failures = append(failures, g)
	}
	for _, g := range failures {
		end = append(end, g.Result)
		for _, task := range g.Steps {
			end = append(end, task.Name+" "+string(task.Status))
		}
	}
	return end
}

// A change that an earlier release has pinned has none of the new steps, and goes
// on without them.
func TestChangeOfAnEarlierRelease(t *testing.T) {
	b := newBench(t)
	b.scripts.fail[hooks.PreUpdate] = true
	if err := b.begin(&state.Change{}, "/etc/default/grub"); said(err) != "error:pre-update" {
		t.Fatal(err)
	}
	c := b.State.Change
	c.Tasks = slices.DeleteFunc(c.Tasks, func(task state.Task) bool {
		return slices.Contains([]string{"needs-update", "check", "lock", "update", "needs-reboot", "reboot", "release"}, task.Name)
	})
	if err := state.Save(b.Dirs, b.State); err != nil {
		t.Fatal(err)
	}
	b.scripts.fail[hooks.PreUpdate] = false
	if err := b.again(); err != nil || b.seen() != "asks=0 applied=1" {
		t.Errorf("%v: %s", err, b.seen())
	}
}

// A way back that fails as often as a step may is left alone until an operator
// goes on with it.
func TestRollbackThatDoesNotEnd(t *testing.T) {
	b := newBench(t)
	b.scripts.fail[hooks.Health], b.scripts.fail[hooks.PostUpdate] = true, false
	b.scripts.called = func(what string) {
		b.scripts.fail[hooks.PostUpdate] = b.scripts.fail[hooks.PostUpdate] || what == "undo"
	}
	err := b.begin(&state.Change{}, "/etc/motd")
	for range 2 {
		err = b.again()
	}
	if said(err) != "error:health" || !b.Ended(b.State.Change) || b.State.Held == nil {
		t.Fatalf("%v: %s", err, b.seen())
	}
	b.scripts.called = func(string) {}
	b.scripts.fail[hooks.PostUpdate] = false
	if err := b.Back(t.Context()); said(err) != "back:health" || b.seen() != "asks=0 held" {
		t.Errorf("%v: %s", err, b.seen())
	}
}

// A change that found no room is taken back before its first file: what
// pre_update.d stopped is started again, and nothing is held.
func TestNoRoom(t *testing.T) {
	b := newBench(t)
	b.scripts.fail[hooks.PreUpdate], b.scripts.fail[hooks.PostUpdate], b.scripts.fail[hooks.Error] = false, false, false
	b.scripts.full = syscall.ENOSPC
	err := b.begin(&state.Change{}, "/etc/motd")
	if got := fmt.Sprint(said(err), ": ", b.seen(), ": ", b.scripts.log); got != "error:configure: asks=0: [pre_update apply post_update error]" || b.State.Change != nil {
		t.Error(got)
	}
}

// A step that dies as often as it may is left to the next push: whatever step it
// is, and whatever becomes of what it did, no run is stuck in it.
func TestDiesEveryTime(t *testing.T) {
	for _, c := range []struct {
		name, dies string
		keep       bool
		want       string // how the last run ended, and where the host stands
	}{
		{"configure", "apply", false, "back:configure: asks=0 held"},
		{"configure, and it is kept", "apply", true, "error:configure: asks=0 configure=error held"},
		{"rollback", "undo", false, "error:health: asks=0 health=error rollback=error held"},
		{"record", "needs_update?", false, "error:record: asks=0 record=error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.KeepFailed = c.keep
			b.scripts.fail[hooks.Health] = c.dies == "undo"
			b.scripts.fail[hooks.Update] = false
			if c.dies == "needs_update?" {
				b.scripts.yes[hooks.NeedsUpdate] = true // the record asks once more
			}
			b.scripts.called = func(what string) {
				if what == c.dies {
					panic(died{})
				}
			}
			life := func(run func() error) (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = errors.New("killed")
					}
				}()
				return run()
			}
			err := life(func() error { return b.begin(&state.Change{OSWork: c.dies == "needs_update?"}, "/etc/motd") })
			for range 3 {
				if err.Error() != "killed" {
					t.Fatalf("too early: %v", err)
				}
				err = life(b.again)
			}
			if got := said(err) + ": " + b.seen(); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			b.reload()
			if change := b.State.Change; change != nil && !b.Ended(change) {
				t.Errorf("the next run begins it again before it fetches: %s", b.seen())
			}
		})
	}
}

// error.d hears of a failure, whatever step it is: also of a record that cannot be
// written, which is not rolled back.
func TestErrorScripts(t *testing.T) {
	for _, phase := range []hooks.Phase{hooks.PreUpdate, hooks.PreConfigure, hooks.PostConfigure, hooks.Health, "record"} {
		t.Run(string(phase), func(t *testing.T) {
			b := newBench(t)
			b.scripts.fail[hooks.Error] = true // what it says changes nothing
			b.scripts.fail[phase] = true
			if phase == "record" {
				if err := os.RemoveAll(filepath.Join(b.Dirs.State, "generations")); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(b.Dirs.State, "generations"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.begin(&state.Change{}, "/etc/motd"); err == nil {
				t.Fatal("nothing failed")
			}
			if n := len(slices.DeleteFunc(slices.Clone(b.scripts.log), func(s string) bool { return s != "error" })); n != 1 {
				t.Errorf("error.d ran %d times: %v", n, b.scripts.log)
			}
		})
	}
}
