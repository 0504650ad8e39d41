package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// Machine is the running machine as far as a reboot goes.
type Machine interface {
	// BootID tells this boot from every other one.
	BootID() string
	// Blockers are whoever holds off a shutdown; logind does not ask them when root does.
	Blockers(ctx context.Context) ([]string, error)
	// Reboot asks for a reboot and returns when it was accepted. ErrVeto: somebody
	// holds it off after all.
	Reboot(ctx context.Context) error
	// BootChecks waits for the checks of this boot if any are queued; an error says
	// that they failed.
	BootChecks(ctx context.Context) error
}

// ErrVeto says that somebody holds off the reboot.
var ErrVeto = errors.New("somebody holds off the reboot")

// Rebooting is how and when this machine is rebooted.
type Rebooting struct {
	// Machine is nil where nothing is rebooted: below another root.
	Machine Machine
	Windows window.Windows
	// Timeout is how long a reboot that was asked for may take to come.
	Timeout time.Duration
	// Paths need a reboot when they change.
	Paths service.Globs
	// Always reboot after OS work where no needs_reboot.d decides.
	Always bool
}

const (
	// maxAsks is how often a reboot that does not come is asked for.
	maxAsks = 3
	// maxVeto is how long somebody may hold it off before it is put off.
	maxVeto = time.Hour
	// maxReboots is how often a digest may reboot the machine within a day.
	maxReboots = 3
	day        = 24 * time.Hour
)

func (u *Update) bootID() string {
	if u.Rebooting.Machine != nil {
		return u.Rebooting.Machine.BootID()
	}
	return u.Host.BootID()
}

// WillReboot says why a plan needs a reboot, as far as that shows before it is
// carried out; "" is no.
func (u *Update) WillReboot(p *plan.Plan) string {
	if u.Rebooting.Machine == nil {
		return ""
	}
	var reasons []string
	for _, changed := range p.Changed() {
		if u.Rebooting.Paths.Match(changed) {
			reasons = append(reasons, changed+" changes")
		}
	}
	for _, touch := range p.Effect.Touches {
		if touch.Reboot {
			reasons = append(reasons, touch.Unit+" asks for it")
		}
	}
	return strings.Join(reasons, ", ")
}

// SpentReboots says why the machine is not rebooted again for a digest, "" if it
// may be.
func SpentReboots(st *state.State, digest string, now time.Time) string {
	var first time.Time
	n := 0
	for _, asked := range st.Reboots {
		if asked.Digest == digest && recent(asked, now) {
			if n == 0 {
				first = asked.Time
			}
			n++
		}
	}
	if n < maxReboots {
		return ""
	}
	return fmt.Sprintf("it was rebooted %d times within a day for this digest; not again before %s", n, first.Add(day).UTC().Format(time.RFC3339))
}

// recent: within a day. A clock that was ahead must not put reboots off until then.
func recent(asked state.Asked, now time.Time) bool { return now.Sub(asked.Time).Abs() < day }

// needsReboot asks whether what was done needs a reboot.
type needsReboot struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *needsReboot) Name() string { return "needs-reboot" }

func (s *needsReboot) Idle() string {
	switch {
	case s.change.Reboot != nil:
		return "a reboot is due already"
	case s.u.Rebooting.Machine == nil:
		return "nothing is rebooted below another root"
	case s.u.WillReboot(s.job.Plan) == "" && !s.u.has(hooks.NeedsReboot, s.job) && !s.always():
		return "nothing asks for a reboot"
	}
	return ""
}

func (s *needsReboot) always() bool { return s.change.OSWork && s.u.Rebooting.Always }

func (s *needsReboot) Run(ctx context.Context) error {
	var reasons []string
	if why := s.u.WillReboot(s.job.Plan); why != "" {
		reasons = append(reasons, why)
	}
	if s.u.Hooks != nil && runnable(s.u.hooks(s.job), hooks.NeedsReboot) {
		yes, why, err := s.u.hooks(s.job).Ask(ctx, hooks.NeedsReboot, environment(s.change, s.job, nil))
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.u.broken(err)
		}
		if yes {
			reasons = append(reasons, why)
		}
	} else if s.always() {
		reasons = append(reasons, "OS work was done")
	}
	if len(reasons) == 0 {
		return &pipeline.Skip{Reason: "nothing asks for a reboot"}
	}
	s.change.Reboot = &state.Reboot{Reason: strings.Join(reasons, "; "), BootID: s.u.bootID(), Since: s.u.Host.Now()}
	return nil
}

// reboot is the step that boots the machine anew, of a change or of its way
// back. Any other boot than the one in which the need was found satisfies it.
type reboot struct {
	u      *Update
	change *state.Change
	back   bool
}

func (s *reboot) Name() string {
	if s.back {
		return "rollback-reboot"
	}
	return "reboot"
}

func (s *reboot) need() *state.Reboot {
	if s.back {
		return s.change.Back
	}
	return s.change.Reboot
}

func (s *reboot) Idle() string {
	switch {
	case s.need() != nil:
		return ""
	case s.back:
		return "the change did not reboot"
	}
	return "no reboot is needed"
}

// task is the record of this step.
func (s *reboot) task() *state.Task {
	tasks := s.change.Tasks
	if s.back {
		tasks = s.change.Rollback
	}
	i := slices.IndexFunc(tasks, func(t state.Task) bool { return t.Name == s.Name() })
	return &tasks[i]
}

func (s *reboot) Run(ctx context.Context) error {
	u, need := s.u, s.need()
	switch {
	case need == nil:
		return &pipeline.Skip{Reason: s.Idle()}
	case u.Rebooting.Machine == nil:
		return &pipeline.Skip{Reason: "nothing is rebooted below another root"}
	case need.BootID != u.bootID():
		return nil // somebody else did it
	case !s.back && u.Locks() && u.LockReboots && u.State.Lock == nil:
		return putOff("this change did not take the fleet lock, which is for reboots")
	}
	now := u.Host.Now()
	w := state.Waiting{Reason: need.Reason}
	if was := s.task().Reboot; was != nil {
		w = *was
	}
	// A clock that was set back must not make it wait for years.
	if since := now.Sub(w.Asked); !w.Asked.IsZero() && since >= 0 && since < u.Rebooting.Timeout {
		return &pipeline.WaitReboot{Waiting: w}
	}
	if w.Asks >= maxAsks {
		return fmt.Errorf("a reboot (%s) was asked for %d times, and the machine was not booted anew", w.Reason, w.Asks)
	}
	if !u.Rebooting.Windows.Open(now) {
		return putOff("no window is open, the next one opens " + u.Rebooting.opens(now))
	}
	if spent := SpentReboots(u.State, s.change.Digest, now); spent != "" && w.Asks == 0 {
		return putOff(spent)
	}
	u.letGo()
	if veto := u.Veto(ctx); veto != "" {
		if held := now.Sub(w.Since); w.Veto == "" || held < 0 {
			w.Since = now
		} else if held >= maxVeto {
			return putOff(fmt.Sprintf("held off for %s by %s", held.Round(time.Minute), veto))
		}
		w.Veto = veto
		return &pipeline.WaitReboot{Waiting: w}
	}
	w.Veto, w.Since, w.Asked = "", time.Time{}, now
	if w.Asks++; w.Asks == 1 {
		u.State.Reboots = slices.DeleteFunc(u.State.Reboots, func(a state.Asked) bool { return !recent(a, now) })
		u.State.Reboots = append(u.State.Reboots, state.Asked{Time: now, Digest: s.change.Digest})
	}
	wait := &pipeline.WaitReboot{Waiting: w}
	wait.Ask = func(ctx context.Context) error {
		err := u.Rebooting.Machine.Reboot(ctx)
		if !errors.Is(err, ErrVeto) {
			return err
		}
		// It came between our look and the question: it was not asked for.
		if w.Asks--; w.Asks == 0 {
			u.State.Reboots = u.State.Reboots[:len(u.State.Reboots)-1]
		}
		w.Asked, w.Veto, w.Since = time.Time{}, err.Error(), now
		wait.Waiting, s.task().Reboot = w, &w
		return state.Save(u.Dirs, u.State)
	}
	return wait
}

// putOff is the end of a reboot step whose reboot comes some other time: the
// change goes on, and its record says that a reboot is pending.
func putOff(why string) error { return &pipeline.Skip{Reason: "the reboot is put off: " + why} }

// opens is when the next window opens, for people.
func (r *Rebooting) opens(now time.Time) string {
	return r.Windows.Next(now).Format("Mon 2006-01-02 15:04 MST")
}

// Veto names whoever holds off a reboot, "" when nobody does.
func (u *Update) Veto(ctx context.Context) string {
	blockers, err := u.Rebooting.Machine.Blockers(ctx)
	if err != nil {
		// Where there is no logind nobody can hold anything off; where it does not
		// answer, it will not take the question either.
		u.Log.Debugf("listing who holds off a reboot: %v", err)
		return ""
	}
	return strings.Join(blockers, ", ")
}

// rebooted tells whether the machine was booted anew since the change found
// that it has to be.
func (u *Update) rebooted(c *state.Change) bool {
	return c.Reboot != nil && c.Reboot.BootID != u.bootID()
}

// settle keeps in mind a reboot that was put off, or that there is none to
// think of any more. The caller saves.
func (u *Update) settle(need *state.Reboot) {
	switch {
	case need == nil:
	case need.BootID == u.bootID():
		u.State.Reboot = need
	default:
		u.State.Reboot = nil
	}
}

// Booted forgets what another boot, or another OS deployment, has ended. It
// writes only where there was something to forget.
func (u *Update) Booted() error {
	st, before := u.State, *u.State
	if st.Reboot != nil && st.Reboot.BootID != u.bootID() {
		st.Reboot = nil
	}
	if st.HeldOSWork != nil && st.HeldOSWork.Deployment != u.Host.Deployment() {
		st.HeldOSWork = nil
	}
	if st.Reboot == before.Reboot && st.HeldOSWork == before.HeldOSWork {
		return nil
	}
	if err := state.Save(u.Dirs, st); err != nil {
		*st = before
		return err
	}
	return nil
}

// PendingReboot is the reboot that waits and may be done now, nil if there is
// none.
func (u *Update) PendingReboot(ctx context.Context) *state.Reboot {
	st, now := u.State, u.Host.Now()
	if st.Reboot == nil || st.Applied == nil || u.Rebooting.Machine == nil || st.HeldOSWork != nil {
		return nil
	}
	why := ""
	switch {
	case !u.Rebooting.Windows.Open(now):
		why = "the next window opens " + u.Rebooting.opens(now)
	case SpentReboots(st, st.Applied.Digest, now) != "":
		why = SpentReboots(st, st.Applied.Digest, now)
	default:
		// Databases are not stopped for a reboot that somebody holds off.
		why = u.Veto(ctx)
	}
	if why != "" {
		u.Log.Infof("a reboot is pending (%s): %s", st.Reboot.Reason, why)
		return nil
	}
	return st.Reboot
}

// OutsideWindowError says that a change would reboot, or is OS work, and that no
// window is open. It stays a candidate.
type OutsideWindowError struct {
	Why   string
	Opens string
}

func (e *OutsideWindowError) Error() string {
	return fmt.Sprintf("outside the window, next opens %s (%s)", e.Opens, e.Why)
}

// Hint says how it goes on.
func (e *OutsideWindowError) Hint() string {
	return "nothing was touched; a newer push replaces this one, and the first run inside the window begins it (reboot.windows)"
}

// Gate keeps what will reboot, or is OS work, out of the hours in which that is
// not wanted. An empty why passes.
func (u *Update) Gate(why string) error {
	now := u.Host.Now()
	if why == "" || u.Rebooting.Windows.Open(now) {
		return nil
	}
	return &OutsideWindowError{Why: why, Opens: u.Rebooting.opens(now)}
}
