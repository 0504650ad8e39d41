package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/units"
	"github.com/reconf-pull/reconf-pull/internal/update"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// memory is a fleet repo in memory.
type memory struct {
	reconcile.Source // whose other methods nothing asks for
	bu               string
	commit           int
	err              error
	fetches          int
	tree             *sourcetest.Tree       // that was given out last
	files            map[string]string      // besides the host config
	damage           func(path string) bool // whether what stands there is damaged
	discards         int
}

func (r *memory) push(text string) {
	r.commit++
	r.bu = "variant: fcos\nversion: 1.6.0\nstorage: {links: [" + text + "]}\n"
}

func (r *memory) Fetch(context.Context) (source.Revision, error) {
	r.fetches++
	return source.Revision{Ref: "refs/heads/main", Commit: fmt.Sprintf("%040d", r.commit)}, r.err
}

func (r *memory) Tree(context.Context, string) (source.Tree, error) {
	files := map[string]string{"hosts/web1.bu": r.bu}
	maps.Copy(files, r.files)
	r.tree = sourcetest.Text(files)
	if r.damage != nil {
		return &damagedTree{r.tree, r.damage}, nil
	}
	return r.tree, nil
}

func (r *memory) Discard() error {
	r.discards++
	return nil
}

// damagedTree is a tree of a mirror that lacks something.
type damagedTree struct {
	source.Tree
	damage func(path string) bool
}

func (d *damagedTree) Open(e source.Entry) (io.ReadCloser, error) {
	if d.damage(e.Path) {
		return nil, fmt.Errorf("%w: %s", source.ErrDamaged, e.Path)
	}
	return d.Tree.Open(e)
}

// Relation: every push stands on the one before.
func (r *memory) Relation(_ context.Context, older, tip string) (source.Relation, error) {
	if older == tip {
		return source.Same, nil
	}
	return source.Ahead, nil
}

// noUnits answers about units of a directory that has none.
type noUnits struct{ systemd.Offline }

func (o noUnits) UnitFileState(_ context.Context, unit string) (string, error) { return o.State(unit) }
func (noUnits) Err() error                                                     { return nil }
func (noUnits) Close()                                                         {}

// server stands in for a lock server.
type server struct {
	calls      []string
	acquired   func() error
	releaseErr error
	why        lock.Purpose // of the last request
	name       string
}

func (*server) Kind() string   { return "stand-in" }
func (s *server) Name() string { return s.name }

func (s *server) Acquire(_ context.Context, why lock.Purpose) error {
	s.why = why
	s.calls = append(s.calls, "acquire")
	if s.acquired != nil {
		return s.acquired()
	}
	return nil
}

func (s *server) Explain(_ context.Context, why lock.Purpose) error {
	s.why = why
	return nil
}

func (s *server) Release(context.Context) error {
	s.calls = append(s.calls, "release")
	return s.releaseErr
}

func (*server) Inspect(context.Context) ([]lock.Holder, error) { return nil, nil }

// machine stands in for logind.
type machine struct{ boot, asks int }

func (m *machine) BootID() string                             { return fmt.Sprint("boot", m.boot) }
func (m *machine) Blockers(context.Context) ([]string, error) { return nil, nil }
func (m *machine) BootChecks(context.Context) error           { return nil }
func (m *machine) Reboot(context.Context) error               { m.asks++; return nil }

// scripts stands in for script directories: how a phase answers, or ends.
type scripts struct {
	log    []string
	answer map[hooks.Phase]error // nil is no, or well; errYes is yes
}

var errYes = errors.New("yes")

func (s *scripts) List(phase hooks.Phase) ([]hooks.Script, []hooks.Ignored, error) {
	if _, ok := s.answer[phase]; !ok {
		return nil, nil, nil
	}
	return []hooks.Script{{Path: "/hooks/" + string(phase)}}, nil, nil
}

func (s *scripts) Strays() ([]hooks.Ignored, error) { return nil, nil }

func (s *scripts) Run(_ context.Context, phase hooks.Phase, _ map[string]string) error {
	s.log = append(s.log, string(phase))
	return s.answer[phase]
}

func (s *scripts) Ask(_ context.Context, phase hooks.Phase, _ map[string]string) (bool, string, error) {
	s.log = append(s.log, string(phase)+"?")
	if errors.Is(s.answer[phase], errYes) {
		return true, "2 packages", nil
	}
	return false, "", s.answer[phase]
}

func (s *scripts) RunOnce(context.Context, hooks.Phase, map[string]string, func(string) (bool, error), func(string) error) error {
	return nil
}

// bench is a host in a directory.
type bench struct {
	*reconcile.Reconciler
	t       *testing.T
	now     time.Time
	repo    *memory
	lock    *server
	machine *machine
	scripts *scripts
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: links get owners")
	}
	dir := t.TempDir()
	b := &bench{
		t: t, now: time.Date(2027, 1, 9, 3, 0, 0, 0, time.UTC), repo: &memory{}, lock: &server{name: "one"}, machine: &machine{boot: 1},
		scripts: &scripts{answer: map[hooks.Phase]error{}},
	}
	h := host.New(filepath.Join(dir, "root"))
	h.Now = func() time.Time { return b.now }
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	dirs := state.Dirs{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}
	if err := errors.Join(dirs.Create(), os.MkdirAll(filepath.Join(h.Root, "etc/default"), 0o755)); err != nil {
		t.Fatal(err)
	}
	accounts := &host.Accounts{Host: h, Runner: run.Host{}}
	paths, err := service.ParseGlobs([]string{"/etc/default/*"})
	if err != nil {
		t.Fatal(err)
	}
	b.Reconciler = &reconcile.Reconciler{
		Host: h, Dirs: dirs, Source: b.repo, Names: []string{"web1"}, Strict: true, Settings: plan.Settings{OnConflict: "replace"},
		Contents: contents.Opener{Downloads: dirs.Downloads(), MaxFile: 1 << 20}, Accounts: accounts,
		Services: func(context.Context) (reconcile.Services, error) { return noUnits{systemd.Offline{Host: h}}, nil },
		OnChange: systemd.OnChange, Log: quiet, Announce: func(*reconcile.Proposal) {}, Hooks: &hooks.Runner{Host: h, Log: quiet},
		Update: &update.Update{
			Host: h, Dirs: dirs, State: &state.State{Schema: state.Schema}, Log: quiet, Keep: 5, MaxAttempts: 3, HealthSource: "never",
			Engine: &native.Engine{Host: h, Blobs: dirs.Blobs(), Accounts: accounts, Runner: run.Host{}}, Units: &units.Offline{Host: h, Log: quiet},
			Hooks: func(string) update.Hooks { return b.scripts }, Lock: lock.None{}, Backoff: time.Minute,
			Rebooting: update.Rebooting{Machine: b.machine, Timeout: 10 * time.Minute, Paths: paths},
		},
	}
	b.repo.push("{path: /etc/one, target: first}")
	b.pull("")
	b.repo.fetches, b.scripts.log = 0, nil
	return b
}

// pull is one run of a new process; want is a part of its error, "" for none.
func (b *bench) pull(want string) reconcile.Outcome {
	b.t.Helper()
	st, err := state.Load(b.Dirs)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Update.State, b.Update.Broken = st, nil
	out, err := b.Run(b.t.Context())
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		b.t.Errorf("the run ends with %v, want %q", err, want)
	}
	return out
}

func (b *bench) window(text string) {
	b.t.Helper()
	w, err := window.Parse(text)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Update.Rebooting.Windows = window.Windows{w}
}

// has compares the targets of the host's links; "" is none.
func (b *bench) has(path, want string) {
	b.t.Helper()
	if got, _ := os.Readlink(filepath.Join(b.Host.Root, path)); got != want {
		b.t.Errorf("%s leads to %q, want %q", path, got, want)
	}
}

func (b *bench) calls(want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.lock.calls); diff != "" {
		b.t.Errorf("what the lock server was asked (-want +got):\n%s", diff)
	}
	b.lock.calls = nil
}

// unable is an engine that can carry nothing out.
type unable struct{ engine.Engine }

func (unable) Check(context.Context, *engine.Job) (engine.Result, error) {
	return engine.Result{}, errors.New("out of cheese")
}

func TestFleetLock(t *testing.T) {
	second := "{path: /etc/one, target: second}"
	locked := func(t *testing.T) *bench {
		t.Helper()
		b := newBench(t)
		b.Update.Lock = b.lock
		return b
	}
	t.Run("taken and given back", func(t *testing.T) {
		b := locked(t)
		b.pull("")
		b.calls()
		b.repo.push(second)
		b.pull("")
		b.has("/etc/one", "second")
		b.calls("acquire", "release")
		if b.repo.fetches != 3 || b.Update.State.Lock != nil {
			t.Errorf("%d fetches, lock %+v", b.repo.fetches, b.Update.State.Lock)
		}
	})
	t.Run("busy", func(t *testing.T) {
		b := locked(t)
		b.repo.push("{path: /etc/one, target: bad}")
		b.lock.acquired = func() error { return &lock.BusyError{Kind: "stand-in", Holder: lock.Holder{Host: "web2"}} }
		b.pull("the fleet lock is busy (stand-in): held by web2")
		b.pull("the fleet lock is busy")
		b.calls("acquire", "acquire")
		if b.Update.State.Lock != nil || b.Update.State.Change != nil {
			t.Errorf("lock %+v, change %+v", b.Update.State.Lock, b.Update.State.Change)
		}
		b.has("/etc/one", "first")
		b.lock.acquired = nil
		b.repo.push(second)
		b.pull("")
		b.has("/etc/one", "second")
	})
	t.Run("not asked for what the engine cannot carry out", func(t *testing.T) {
		b := locked(t)
		b.Update.Engine = unable{b.Update.Engine}
		b.repo.push(second)
		b.pull("out of cheese")
		b.calls()
		b.has("/etc/one", "first")
	})
	t.Run("a push overtakes it in the queue", func(t *testing.T) {
		b := locked(t)
		b.repo.push("{path: /etc/one, target: bad}")
		b.lock.acquired = func() error { b.repo.push(second); return nil }
		b.pull("")
		b.has("/etc/one", "second")
		b.lock.acquired = func() error { b.repo.push(second); return nil }
		b.repo.push("{path: /etc/one, target: bad}")
		if out := b.pull(""); out.Result != reconcile.UpToDate {
			t.Errorf("a push that was taken back: %v", out.Result)
		}
		b.calls("acquire", "release", "acquire", "release")
	})
	t.Run("what fails after the grant gives it back", func(t *testing.T) {
		b := locked(t)
		b.repo.push(second)
		b.lock.acquired = func() error { b.repo.bu = "variant: nonsense\n"; return nil }
		b.pull("version is missing")
		b.calls("acquire", "release")
		b.repo.push(second)
		b.lock.acquired = func() error { b.repo.err = source.ErrUnavailable; return nil }
		b.pull(source.ErrUnavailable.Error())
		b.calls("acquire", "release")
	})
	t.Run("a release that fails is tried again", func(t *testing.T) {
		b := locked(t)
		b.repo.push(second)
		b.lock.releaseErr = errors.New("no route to host")
		b.pull("")
		b.pull("")
		b.lock.releaseErr = nil
		b.pull("")
		b.pull("")
		b.calls("acquire", "release", "release", "release")
	})
	t.Run("a crash while it is asked for", func(t *testing.T) {
		b := locked(t)
		b.Update.State.Lock = &state.FleetLock{Kind: "stand-in", Changing: true}
		if err := state.Save(b.Dirs, b.Update.State); err != nil {
			t.Fatal(err)
		}
		b.pull("")
		b.calls("release")
	})
	t.Run("another one is configured meanwhile", func(t *testing.T) {
		b := locked(t)
		b.repo.push(second)
		b.lock.releaseErr = errors.New("no route to host")
		b.pull("")
		b.lock.name = "other"
		b.pull("")
		b.calls("acquire", "release", "release")
		if b.Update.State.Lock != nil {
			t.Errorf("lock %+v", b.Update.State.Lock)
		}
	})
	t.Run("kept after a failure", func(t *testing.T) {
		b := locked(t)
		b.scripts.answer[hooks.Health] = errors.New("ill")
		b.repo.push(second)
		b.pull("ill")
		b.lock.why = lock.Purpose{} // what the server has forgotten, or never heard
		b.pull("is held since")
		b.calls("acquire")
		if l := b.Update.State.Lock; l == nil || !l.Kept {
			t.Errorf("lock %+v", l)
		}
		if want := fmt.Sprintf("%040d", b.repo.commit); b.lock.why.Commit != want || b.lock.why.Step != "health failed, the lock is kept" {
			t.Errorf("others hear of %+v", b.lock.why)
		}
		// What goes back to the applied digest changes nothing, and gives it back.
		b.repo.push("{path: /etc/one, target: first}")
		b.pull("")
		b.calls("release")
		if b.Update.State.Lock != nil {
			t.Errorf("lock %+v", b.Update.State.Lock)
		}
	})
}

// A server that gives no answer may have granted the lock.
func TestUnsureLock(t *testing.T) {
	b := newBench(t)
	b.Update.Lock = b.lock
	b.repo.push("{path: /etc/one, target: second}")
	b.lock.acquired = func() error { return &lock.UnsureError{Kind: "stand-in", Err: errors.New("no route to host")} }
	b.pull("the fleet lock (stand-in) cannot be asked for: no route to host")
	if b.Update.State.Lock == nil {
		t.Error("nobody knows of a lock that may have been granted")
	}
	b.pull("no route to host")
	b.lock.acquired = nil
	b.pull("")
	b.has("/etc/one", "second")
	b.calls("acquire", "release", "acquire", "release", "acquire", "release")
}

// A lock that is only for reboots is not taken for anything else, and nothing reboots
// without it.
func TestLockForReboots(t *testing.T) {
	b := newBench(t)
	b.Update.Lock, b.Update.LockReboots = b.lock, true
	b.repo.push("{path: /etc/one, target: second}")
	b.pull("")
	b.calls()
	// The need shows when the change is under way.
	b.scripts.answer[hooks.NeedsReboot] = errYes
	b.repo.push("{path: /etc/one, target: third}")
	b.pull("")
	b.calls()
	b.has("/etc/one", "third")
	if b.machine.asks != 0 || b.Update.State.Reboot == nil {
		t.Fatalf("%d questions, pending %+v", b.machine.asks, b.Update.State.Reboot)
	}
	b.lock.acquired = func() error { return &lock.BusyError{Kind: "stand-in"} }
	b.pull("the fleet lock is busy")
	b.lock.acquired = nil
	if b.pull("a reboot is pending (2 packages), asked for at"); b.machine.asks != 1 {
		t.Errorf("%d questions, want one", b.machine.asks)
	}
	b.calls("acquire", "acquire")
	delete(b.scripts.answer, hooks.NeedsReboot)
	b.machine.boot++
	b.pull("")
	b.calls("release")
	// A plan that shows the need takes it beforehand.
	b.repo.push("{path: /etc/default/one, target: first}")
	b.pull("/etc/default/one changes")
	b.calls("acquire")
	b.machine.boot++
	b.pull("")
	b.calls("release")
	if b.machine.asks != 2 {
		t.Errorf("%d questions, want two", b.machine.asks)
	}
}

func TestLockByHand(t *testing.T) {
	b := newBench(t)
	b.Update.Lock = b.lock
	b.lock.acquired = func() error { return &lock.BusyError{Kind: "stand-in"} }
	if err := b.Update.AcquireByHand(t.Context()); !errors.Is(err, lock.ErrBusy) || b.Update.State.Lock != nil {
		t.Errorf("busy: %v, %+v", err, b.Update.State.Lock)
	}
	b.lock.acquired = func() error { return &lock.UnsureError{Kind: "stand-in", Err: errors.New("no route")} }
	if err := b.Update.AcquireByHand(t.Context()); !errors.Is(err, lock.ErrBusy) || b.Update.State.Lock == nil || b.Update.State.Lock.ByHand {
		t.Errorf("no answer: %v, %+v", err, b.Update.State.Lock)
	}
	b.pull("")
	b.calls("acquire", "acquire", "release")
	b.lock.acquired = nil
	if err := b.Update.AcquireByHand(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.pull("")
	b.repo.push("{path: /etc/one, target: second}")
	b.pull("")
	b.has("/etc/one", "second")
	b.scripts.answer[hooks.Health] = errors.New("ill")
	b.repo.push("{path: /etc/one, target: bad}")
	b.pull("ill")
	b.scripts.answer[hooks.Health] = nil
	b.repo.push("{path: /etc/one, target: third}")
	b.pull("")
	b.calls("acquire", "acquire", "acquire", "acquire")
	if l := b.Update.State.Lock; l == nil || !l.ByHand || l.Kept {
		t.Errorf("lock %+v", l)
	}
	b.scripts.answer[hooks.PreUpdate] = errors.New("not yet")
	b.repo.push("{path: /etc/one, target: fourth}")
	b.pull("not yet")
	b.Update.State.Change.Tasks[3].Status = state.Doing
	if err := b.Update.ReleaseByHand(t.Context(), false); !errors.Is(err, update.ErrUnderWay) {
		t.Errorf("under way: %v", err)
	}
	b.lock.releaseErr = errors.New("no route")
	if err := b.Update.ReleaseByHand(t.Context(), true); err == nil || b.Update.State.Lock == nil {
		t.Errorf("no answer: %v", err)
	}
	b.lock.releaseErr = nil
	if err := b.Update.ReleaseByHand(t.Context(), true); err != nil || b.Update.State.Lock != nil {
		t.Errorf("%v, %+v", err, b.Update.State.Lock)
	}
}

// A change that waits for its next try does not lose its lock to a push that turns out
// to be broken.
func TestLockOfAChangeThatWaits(t *testing.T) {
	b := newBench(t)
	b.Update.Lock = b.lock
	b.scripts.answer[hooks.PreUpdate] = errors.New("not yet")
	b.repo.push("{path: /etc/one, target: second}")
	b.pull("not yet")
	b.repo.push("{path: /etc/one, target: third}")
	b.lock.acquired = func() error { b.repo.bu = "variant: nonsense\n"; return nil }
	b.pull("version is missing")
	b.calls("acquire", "acquire")
	if b.Update.State.Lock == nil || b.Update.State.Change == nil {
		t.Errorf("lock %+v, change %+v", b.Update.State.Lock, b.Update.State.Change)
	}
}

// Without a lock nothing is fetched twice, and a run with nothing new writes nothing.
func TestNothingNew(t *testing.T) {
	b := newBench(t)
	b.scripts.answer[hooks.NeedsUpdate] = nil
	before, err := os.Stat(b.Dirs.File())
	if err != nil {
		t.Fatal(err)
	}
	b.pull("")
	after, err := os.Stat(b.Dirs.File())
	if err != nil || !os.SameFile(before, after) || b.repo.fetches != 1 {
		t.Errorf("the state was written, or %d fetches: %v", b.repo.fetches, err)
	}
}

func TestWindows(t *testing.T) {
	b := newBench(t)
	b.window("Sun 02:00-05:00 UTC") // it is Saturday
	b.repo.push("{path: /etc/default/grub, target: reboots}")
	b.pull("outside the window, next opens Sun 2027-01-10 02:00 UTC (/etc/default/grub changes)")
	b.has("/etc/default/grub", "")
	if b.Update.State.Change != nil {
		t.Errorf("it is pinned: %+v", b.Update.State.Change)
	}
	b.repo.push("{path: /etc/one, target: second}") // replaces it
	b.pull("")
	b.has("/etc/one", "second")

	b.scripts.answer[hooks.NeedsUpdate], b.scripts.answer[hooks.Update] = errYes, nil
	b.pull("outside the window, next opens Sun 2027-01-10 02:00 UTC (OS work: 2 packages)")
	b.repo.push("{path: /etc/one, target: third}")
	if out := b.pull(""); !strings.Contains(out.Waiting, "OS work: 2 packages") || out.Result != reconcile.Applied {
		t.Errorf("%+v", out)
	}
	b.has("/etc/one", "third")
	b.scripts.log = nil
	b.now = b.now.Add(24 * time.Hour)
	b.pull("")
	if diff := cmp.Diff([]string{"needs_update?", "update", "needs_update?"}, b.scripts.log); diff != "" {
		t.Errorf("inside the window (-want +got):\n%s", diff)
	}
	// It still says yes: it is held, and the configuration is followed all the same.
	b.repo.push("{path: /etc/one, target: fourth}")
	if out := b.pull(""); out.Aside == nil || !strings.Contains(out.Aside.Error(), "OS work is held since") {
		t.Errorf("%+v", out)
	}
	b.has("/etc/one", "fourth")
}

// What the host itself needs goes on with what is applied, whatever the tip is.
func TestWithoutTheTip(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *bench)
		want  string
	}{
		"not reachable": {func(b *bench) { b.repo.err = source.ErrUnavailable }, source.ErrUnavailable.Error()},
		"not trusted":   {func(b *bench) { b.repo.err = source.ErrUntrusted }, source.ErrUntrusted.Error()},
		"held": {func(b *bench) {
			b.scripts.answer[hooks.Health] = errors.New("ill")
			b.repo.push("{path: /etc/one, target: bad}")
			b.pull("ill")
			delete(b.scripts.answer, hooks.Health)
		}, "is held since"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c.spoil(b)
			b.scripts.answer[hooks.NeedsUpdate], b.scripts.answer[hooks.Update], b.scripts.answer[hooks.NeedsReboot] = errYes, nil, errYes
			out := b.pull("a reboot is pending (2 packages)")
			b.pull("a reboot is pending")
			b.machine.boot++
			b.scripts.answer[hooks.NeedsUpdate] = nil
			b.pull(c.want)
			if b.machine.asks != 1 || b.Update.State.Applied.Generation != 2 || b.Update.State.Change != nil {
				t.Errorf("%d questions, %+v, %+v", b.machine.asks, out, b.Update.State.Applied)
			}
			b.has("/etc/one", "first")
			// The same for a reboot that was put off.
			b.Update.State.Reboot = &state.Reboot{Reason: "kernel", BootID: b.machine.BootID()}
			if err := state.Save(b.Dirs, b.Update.State); err != nil {
				t.Fatal(err)
			}
			b.pull("a reboot is pending (kernel)")
			b.machine.boot++
			b.pull(c.want)
			if b.machine.asks != 2 || b.Update.State.Reboot != nil {
				t.Errorf("%d questions, %+v", b.machine.asks, b.Update.State.Reboot)
			}
		})
	}
}

// A question without an answer stops nothing, and is not forgotten.
func TestBrokenQuestion(t *testing.T) {
	b := newBench(t)
	b.scripts.answer[hooks.NeedsUpdate] = errors.New("exit status 127")
	if out := b.pull(""); out.Result != reconcile.UpToDate || out.Aside == nil {
		t.Errorf("%+v", out)
	}
	b.repo.push("{path: /etc/one, target: second}")
	if out := b.pull(""); out.Result != reconcile.Applied || out.Aside == nil {
		t.Errorf("%+v", out)
	}
	b.has("/etc/one", "second")
}

// Between the starts of a step that failed, runs fetch and do no more.
func TestBackoff(t *testing.T) {
	b := newBench(t)
	b.scripts.answer[hooks.PreUpdate] = errors.New("busy")
	b.repo.push("{path: /etc/one, target: bad}")
	b.pull("pre-update: busy")
	b.pull("is not begun again before 2027-01-09T03:01:00Z: busy")
	b.repo.err = source.ErrUnavailable
	b.pull("is not begun again before")
	b.repo.err = nil
	b.now = b.now.Add(time.Minute)
	b.pull("pre-update: busy")
	b.pull("is not begun again before 2027-01-09T03:03:00Z")
	if diff := cmp.Diff([]string{"pre_update", "pre_update"}, b.scripts.log); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	delete(b.scripts.answer, hooks.PreUpdate)
	b.repo.push("{path: /etc/one, target: second}")
	b.pull("")
	b.has("/etc/one", "second")
}

// What a boot took away of a change that was cut off is written again, from what
// was pinned, and the machine is booted with it; what somebody edits is left alone.
func TestLostInABoot(t *testing.T) {
	spoil := func(t *testing.T, b *bench) {
		t.Helper()
		for path, target := range map[string]string{"etc/default/grub": "", "etc/two": "", "etc/one": "older", "etc/gone": "old"} {
			path = filepath.Join(b.Host.Root, path)
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if target == "" {
				continue
			}
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole := func(b *bench) {
		b.t.Helper()
		b.has("/etc/one", "second")
		b.has("/etc/two", "second")
		b.has("/etc/default/grub", "reboots")
		b.has("/etc/gone", "")
	}
	const next = "{path: /etc/one, target: second}, {path: /etc/two, target: second}, {path: /etc/default/grub, target: reboots}"
	begin := func(t *testing.T) *bench {
		t.Helper()
		b := newBench(t)
		b.repo.push("{path: /etc/one, target: first}, {path: /etc/gone, target: old}")
		b.pull("")
		b.scripts.answer[hooks.Configure] = nil
		b.repo.push(next)
		b.pull("a reboot is pending")
		return b
	}
	t.Run("the boot that was asked for", func(t *testing.T) {
		b := begin(t)
		spoil(t, b)
		b.machine.boot++
		b.pull("a reboot is pending")
		b.machine.boot++
		b.pull("")
		whole(b)
		if diff := cmp.Diff([]string{"configure", "configure"}, b.scripts.log); diff != "" || b.machine.asks != 2 {
			t.Errorf("%d questions, -want +got:\n%s", b.machine.asks, diff)
		}
	})
	t.Run("nothing was", func(t *testing.T) {
		b := begin(t)
		b.machine.boot++
		b.pull("")
		whole(b)
		if diff := cmp.Diff([]string{"configure"}, b.scripts.log); diff != "" || b.machine.asks != 1 {
			t.Errorf("%d questions, -want +got:\n%s", b.machine.asks, diff)
		}
	})
	t.Run("the same boot", func(t *testing.T) {
		b := begin(t)
		spoil(t, b)
		b.pull("a reboot is pending")
		b.has("/etc/one", "older")
		if len(b.scripts.log) != 1 {
			t.Errorf("%v", b.scripts.log)
		}
	})
	t.Run("in every boot", func(t *testing.T) {
		b := begin(t)
		for range 2 {
			spoil(t, b)
			b.machine.boot++
			b.pull("a reboot is pending")
		}
		spoil(t, b)
		b.machine.boot++
		b.pull("begun 3 times, and in this boot 4 of its paths are not as it left them")
		if b.Update.State.Held == nil || b.machine.asks != 3 {
			t.Errorf("held %+v, %d questions", b.Update.State.Held, b.machine.asks)
		}
		b.has("/etc/two", "")
		b.has("/etc/gone", "old")
	})
}

func TestWaits(t *testing.T) {
	failed := &pipeline.StepError{Step: "health", Err: errors.New("ill")}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&pipeline.WaitReboot{}, true},
		{&pipeline.WaitReboot{Failed: errors.New("no logind")}, false},
		{&update.RolledBackError{Failed: failed, Back: &pipeline.WaitReboot{}}, false},
		{&update.OutsideWindowError{}, true},
		{&lock.BusyError{}, true},
		{failed, false},
	} {
		if got := reconcile.Waits(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
