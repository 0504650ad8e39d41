package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Booted tells whether systemd is this machine's service manager (sd_booted(3)).
func Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// ServiceState is what systemd knows of the present run of a service, or of its
// last one.
type ServiceState struct {
	LoadState    string // loaded, not-found, masked, bad-setting, error, …
	ActiveState  string
	Result       string // success, exit-code, signal, timeout, exec-condition, start-limit-hit, …
	InvocationID string
	MainPID      int
	StatusText   string // what the run said of itself by STATUS=
	Skipped      bool   // a condition kept it from starting

	began     uint64 // it left the inactive state; µs of the monotonic clock
	beganAt   uint64 // the same by the wall clock
	mainBegan uint64 // the last start of its main process; monotonic
	code      int    // CLD_… of waitid(2): how that ended
	status    int    // its exit status, or the signal
}

// Running tells whether the service of a oneshot is at work.
func (s ServiceState) Running() bool { return s.ActiveState == "activating" }

func (s ServiceState) ended() bool { return s.ActiveState == "inactive" || s.ActiveState == "failed" }

// Service asks for the state of a service, all of it at one moment.
func (m *Manager) Service(ctx context.Context, unit string) (ServiceState, error) {
	var p map[string]dbus.Variant
	err := m.unit(unit).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, "").Store(&p)
	if err != nil {
		return ServiceState{}, fmt.Errorf("asking for the state of %s: %w", unit, err)
	}
	text := func(name string) string { return text(p[name].Value()) }
	number := func(name string) uint64 {
		switch n := p[name].Value().(type) {
		case uint64:
			return n
		case uint32:
			return uint64(n)
		case int32:
			return uint64(max(n, 0))
		}
		return 0
	}
	s := ServiceState{
		LoadState: text("LoadState"), ActiveState: text("ActiveState"), Result: text("Result"), StatusText: text("StatusText"),
		MainPID: int(number("MainPID")), began: number("InactiveExitTimestampMonotonic"), beganAt: number("InactiveExitTimestamp"),
		mainBegan: number("ExecMainStartTimestampMonotonic"), code: int(number("ExecMainCode")), status: int(number("ExecMainStatus")),
	}
	if id, ok := p["InvocationID"].Value().([]byte); ok {
		s.InvocationID = hex.EncodeToString(id)
	}
	s.Skipped = p["ConditionResult"].Value() == false && number("ConditionTimestampMonotonic") > 0
	return s, nil
}

func (m *Manager) unit(name string) dbus.BusObject {
	return m.raw.Object(busName, dbus.ObjectPath("/org/freedesktop/systemd1/unit/"+sddbus.PathBusEscape(name)))
}

// Invocation is one run of a oneshot service that somebody else watches.
type Invocation struct {
	Unit  string
	ID    string
	State ServiceState // when it was begun, or joined
	// Joined: it ran before we came.
	Joined bool

	m      *Manager
	before uint64 // when the main process of the run before it began
	done   chan string
}

// NotBegunError is a start that came to nothing.
type NotBegunError struct {
	Unit  string
	Job   string // what became of the job
	State ServiceState
}

func (e *NotBegunError) Error() string {
	why := e.Job
	switch {
	case e.State.Skipped && e.State.Result != "start-limit-hit":
		why = "one of its conditions is not met"
	case e.State.Result != "" && e.State.Result != "success":
		why = e.State.Result
	}
	return fmt.Sprintf("%s was not started: %s", e.Unit, why)
}

const lookAgain = 100 * time.Millisecond

// Begin starts a oneshot service, or joins the run that is under way, and
// returns as soon as the run has begun. It may return a *NotBegunError. The
// caller closes the invocation.
func Begin(ctx context.Context, unit string) (_ *Invocation, err error) {
	m, err := connectBus(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	m.keep(ctx, unit)
	before, err := m.Service(ctx, unit)
	if err != nil {
		return nil, err
	}
	i := &Invocation{Unit: unit, m: m, before: before.mainBegan, done: make(chan string, 1)}
	// The start of a service that is being started is the same job, and ends with it.
	if _, err := m.conn.StartUnitContext(ctx, unit, "replace", i.done); err != nil {
		return nil, fmt.Errorf("starting %s: %w", unit, err)
	}
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for answer := ""; ; {
		now, err := m.Service(ctx, unit)
		if err != nil {
			return nil, err
		}
		i.ID, i.State = now.InvocationID, now
		i.Joined = before.Running() && now.InvocationID == before.InvocationID
		if i.Joined || now.InvocationID != before.InvocationID {
			if answer != "" {
				i.done <- answer
			}
			return i, nil
		}
		if answer != "" {
			return nil, &NotBegunError{Unit: unit, Job: answer, State: now}
		}
		select {
		case answer = <-i.done:
		case <-look.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keep asks systemd not to forget how a run ended: without a timer, or anybody
// else who refers to the unit, it does so at once. Over the private socket
// nobody can ask, and then a unit that is forgotten is found gone.
func (m *Manager) keep(ctx context.Context, unit string) {
	_ = m.unit(unit).CallWithContext(ctx, busName+".Unit.Ref", 0).Err
}

// Close ends the connection; the service goes on.
func (i *Invocation) Close() { i.m.Close() }

// ErrOvertaken says that another run began before anybody saw how the watched
// one had ended.
var ErrOvertaken = errors.New("the next run began before it could be seen how this one had ended")

// Wait returns how the run ended. It goes on over a bus that is restarted.
func (i *Invocation) Wait(ctx context.Context) (ServiceState, error) {
	const patience = 30 * time.Second // for a bus that is gone
	look := time.NewTicker(5 * lookAgain)
	defer look.Stop()
	lost := time.Duration(0)
	for {
		select {
		case <-i.done: // whatever it says: the unit says more
		case <-look.C:
		case <-ctx.Done():
			return ServiceState{}, ctx.Err()
		}
		now, err := i.m.Service(ctx, i.Unit)
		switch {
		case err != nil && lost >= patience:
			return now, err
		case err != nil:
			lost += 5 * lookAgain
			i.reconnect(ctx)
		case now.InvocationID != i.ID && now.InvocationID != "":
			return now, ErrOvertaken
		case now.InvocationID == "":
			return now, fmt.Errorf("systemd has forgotten how %s ended", i.Unit)
		case now.ended():
			return now, nil
		default:
			lost = 0
		}
	}
}

func (i *Invocation) reconnect(ctx context.Context) {
	fresh, err := connectBus(ctx)
	if err != nil {
		return // the next look tries again
	}
	i.m.Close()
	i.m = fresh
	i.m.keep(ctx, i.Unit)
}

// ExitStatus is the status of the run's main process, 128 and the signal if one
// killed it, and 1 where the service failed without it. why says what the status
// does not: "" after a run that exited by itself.
func (i *Invocation) ExitStatus(end ServiceState) (status int, why string) {
	const exited = 1 // CLD_EXITED
	switch {
	case end.Result == "exec-condition":
		return 1, "its ExecCondition= says no"
	case end.mainBegan == 0, !i.Joined && end.mainBegan == i.before:
		return 1, "its program was not started: " + end.Result
	case end.code != exited:
		status, why = 128+end.status, fmt.Sprintf("killed by signal %d", end.status)
	default:
		status = end.status
	}
	switch end.Result {
	case "success", "exit-code", "signal", "core-dump":
	case "timeout":
		why = "systemd ended it after its time limit (TimeoutStartSec=)"
	default:
		why = end.Result
	}
	if status == 0 && end.ActiveState == "failed" {
		return 1, why
	}
	return status, why
}
