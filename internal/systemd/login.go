package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Login is a connection to logind, which knows who must not be disturbed and
// reboots the machine.
type Login struct{ conn *dbus.Conn }

const (
	loginName    = "org.freedesktop.login1"
	loginManager = loginName + ".Manager"
	loginPath    = dbus.ObjectPath("/org/freedesktop/login1")
)

// ErrInhibited says that logind refused a reboot because of somebody's lock. Up
// to systemd 256 it never refuses root: look at Inhibitors before.
var ErrInhibited = errors.New("somebody inhibits the shutdown")

// ConnectLogin reaches logind over the system bus, which starts it if it does
// not run yet. The connection outlives ctx.
func ConnectLogin(ctx context.Context) (*Login, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := dbus.SystemBusPrivate()
	if err == nil {
		err = handshake(conn, true)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to the system bus: %w", err)
	}
	return &Login{conn: conn}, nil
}

// Close ends the connection. Locks that were taken stay until they are closed.
func (l *Login) Close() { _ = l.conn.Close() }

func (l *Login) call(ctx context.Context, method string, args ...any) *dbus.Call {
	return l.conn.Object(loginName, loginPath).CallWithContext(ctx, loginManager+"."+method, 0, args...)
}

// Inhibitor is a lock that somebody holds. systemd-inhibit(1) explains the words.
type Inhibitor struct {
	What []string // shutdown, sleep, idle, …
	Who  string
	Why  string
	Mode string // block, delay; from systemd 257 on also block-weak
	UID  uint32
	PID  uint32 // of whoever took it; another process may hold it now
}

// BlocksShutdown tells whether the machine should not be rebooted while it is
// held. A weak lock counts: that logind does not hold root to it is its only
// difference, and all locks were so before systemd 257.
func (i Inhibitor) BlocksShutdown() bool {
	return slices.Contains(i.What, "shutdown") && (i.Mode == "block" || i.Mode == "block-weak")
}

func (i Inhibitor) String() string { return fmt.Sprintf("%s (pid %d): %s", i.Who, i.PID, i.Why) }

// Inhibit takes a lock, which is held until it is closed or this process ends:
// programs that it starts do not inherit it.
func (l *Login) Inhibit(ctx context.Context, what, who, why, mode string) (io.Closer, error) {
	var fd dbus.UnixFD
	if err := l.call(ctx, "Inhibit", what, who, why, mode).Store(&fd); err != nil {
		return nil, fmt.Errorf("inhibiting %s: %w", what, err)
	}
	return os.NewFile(uintptr(fd), "inhibitor of "+what), nil
}

// Inhibitors are all locks that are held, our own too.
func (l *Login) Inhibitors(ctx context.Context) ([]Inhibitor, error) {
	var list []struct {
		What, Who, Why, Mode string
		UID, PID             uint32
	}
	if err := l.call(ctx, "ListInhibitors").Store(&list); err != nil {
		return nil, fmt.Errorf("listing inhibitors: %w", err)
	}
	var all []Inhibitor
	for _, i := range list {
		all = append(all, Inhibitor{What: strings.Split(i.What, ":"), Who: i.Who, Why: i.Why, Mode: i.Mode, UID: i.UID, PID: i.PID})
	}
	return all, nil
}

// Reboot asks for a reboot and returns when it has been accepted; the machine
// then ends this process like any other. Our own block on shutdown has to be
// closed before. ErrInhibited: somebody has one. The bus may go down before it
// has passed the answer on: only another boot id proves a reboot.
func (l *Login) Reboot(ctx context.Context) error {
	const interactive = false
	if !l.conn.Connected() {
		return fmt.Errorf("asking logind for a reboot: %w", dbus.ErrClosed)
	}
	err := l.call(ctx, "Reboot", interactive).Err
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, dbus.ErrClosed) {
		return nil
	}
	err = fmt.Errorf("asking logind for a reboot: %w", err)
	// The name of the refusal differs from one systemd to the next.
	var answer dbus.Error
	if errors.As(err, &answer) {
		if held, listing := l.Inhibitors(ctx); listing == nil && slices.ContainsFunc(held, Inhibitor.BlocksShutdown) {
			return fmt.Errorf("%w (%w)", ErrInhibited, err)
		}
	}
	return err
}

// BootState is how far the checks of this boot have come.
type BootState string

// The states of boot-complete.target.
const (
	BootUnchecked BootState = "unchecked" // nothing on this host asks for it
	BootPending   BootState = "pending"   // it has a job: checks still run
	BootComplete  BootState = "complete"
	BootFailed    BootState = "failed" // something that it requires has failed
)

// BootComplete tells what became of boot-complete.target; of a failed one, why
// names what it required.
func (m *Manager) BootComplete(ctx context.Context) (state BootState, why string, err error) {
	const target = "boot-complete.target"
	properties, err := m.conn.GetUnitPropertiesContext(ctx, target)
	if notFound(err) {
		return BootUnchecked, "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("asking for the state of %s: %w", target, err)
	}
	if text(properties["ActiveState"]) == "active" {
		return BootComplete, "", nil
	}
	// (id of the job, its path)
	if job, ok := properties["Job"].([]any); ok && len(job) > 0 && job[0] != uint32(0) {
		return BootPending, "", nil
	}
	required, _ := properties["Requires"].([]string)
	states, err := m.States(ctx, required)
	if err != nil {
		return "", "", err
	}
	var failed []string
	for unit, s := range states {
		if s.ActiveState == "failed" {
			failed = append(failed, unit)
		}
	}
	if len(failed) == 0 {
		return BootUnchecked, "", nil
	}
	slices.Sort(failed)
	return BootFailed, strings.Join(failed, ", "), nil
}
