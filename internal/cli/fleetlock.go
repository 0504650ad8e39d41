package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/etcd"
	"github.com/reconf-pull/reconf-pull/internal/lock/fleetlock"
	"github.com/reconf-pull/reconf-pull/internal/lock/foreman"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// puppet is where Puppet keeps the certificates that Foreman knows hosts by.
const puppet = "/etc/puppetlabs/puppet/ssl"

// fleetLock is the lock that the configuration asks for.
func (a *app) fleetLock(m *machine) (lock.Lock, error) {
	c := m.config.Lock
	if c.Kind == lock.NoLock {
		return lock.None{}, nil
	}
	names, _, err := a.names(m)
	if err != nil {
		return nil, err
	}
	host := names[0]
	name, err := c.LockName(host)
	if err != nil {
		return nil, &config.Error{Err: err}
	}
	const pause = 500 * time.Millisecond
	options := httpclient.Options{CA: c.CA, Cert: c.Cert, Key: c.Key, Timeout: time.Duration(c.Timeout), Pause: pause}
	if c.Kind == "foreman" {
		if options.Cert == "" {
			full, err := m.host.Hostname()
			if err != nil {
				return nil, err
			}
			certname := strings.ToLower(full)
			options.Foreign = true
			options.Cert, options.Key = puppet+"/certs/"+certname+".pem", puppet+"/private_keys/"+certname+".pem"
			if options.CA == "" {
				options.CA = puppet + "/certs/ca.pem"
			}
		}
		return &foreman.Lock{HTTP: httpclient.New(options), URL: c.URL, LockName: name}, nil
	}
	id, err := lock.ID(m.host.MachineID())
	if err != nil {
		return nil, &config.Error{Err: err}
	}
	if c.Kind == "fleetlock" {
		return &fleetlock.Lock{HTTP: httpclient.New(options), URL: c.URL, Group: c.Group, ID: id}, nil
	}
	return &etcd.Lock{
		HTTP: httpclient.New(options), Endpoints: c.Endpoints, Fleet: name, Group: c.Group, Slots: c.Slots,
		ID: id, Host: host, User: c.User, PasswordFile: c.PasswordFile, Now: m.host.Now,
	}, nil
}

// pollUnit is the transient timer that starts the service again. There is one: each
// run that finds the lock busy replaces it.
const pollUnit = "reconf-pull-poll"

// pollLock has the service started again after lock.poll, more or less, so that those
// who wait do not come all at once.
func pollLock(ctx context.Context, m *machine) {
	if !m.host.Live() || !systemd.Booted() || os.Geteuid() != 0 {
		return
	}
	if s, err := service(ctx); err != nil || s.LoadState != "loaded" {
		m.log.Debugf("nothing asks for the fleet lock again before the next run: %s is not there (%v)", unit, err)
		return
	}
	const spread = 5 // a fifth to either side
	poll := time.Duration(m.config.Lock.Poll)
	after := poll - poll/spread + rand.N(2*poll/spread+1)
	var systemctl run.Host
	// One that an earlier run left; most often there is none.
	if _, err := systemctl.Run(ctx, "systemctl", "stop", pollUnit+".timer"); err != nil {
		m.log.Debug(err)
	}
	_, err := systemctl.Run(ctx, "systemd-run", "--quiet", "--collect", "--unit="+pollUnit, "--description=Ask for the fleet lock again",
		fmt.Sprintf("--on-active=%dms", after.Milliseconds()), "--timer-property=AccuracySec=1s",
		"systemctl", "start", "--no-block", unit)
	if err != nil {
		m.log.Warnf("asking for the fleet lock again: %v; the next run of the timer does it", err)
		return
	}
	m.log.Infof("asking for the fleet lock again in %s", after.Round(time.Second))
}

func (a *app) lockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Show, take or give back the fleet lock",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.lockStatusCommand(), a.lockAcquireCommand(), a.lockReleaseCommand())
	return cmd
}

// withLock runs a command that asks the lock server, under the run lock.
func (a *app) withLock(what string, command func(*machine, *update.Update) error) error {
	return a.locked(what, func(m *machine, st *state.State) error {
		if err := lockable(m); err != nil {
			return err
		}
		u, err := a.update(m, st)
		if err != nil {
			return err
		}
		return command(m, u)
	})
}

func lockable(m *machine) error {
	if !m.host.Live() {
		return &usageError{errors.New("a host below --root is not running and has no fleet lock")}
	}
	return nil
}

func (a *app) lockAcquireCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "acquire",
		Short: "Take the fleet lock and keep it",
		Long: `Acquire takes the fleet lock for this host, which keeps it over runs, changes and
reboots until reconf-pull lock release: a freeze of everybody who waits for the lock.
This host itself goes on changing; reconf-pull suspend is for that. A lock of several
slots loses one of them.

It exits with 75 when others have the lock, and when the server does not answer.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLock("lock acquire", func(m *machine, u *update.Update) error {
				if !u.Locks() {
					return &config.Error{Err: errNoLock}
				}
				if err := u.AcquireByHand(cmd.Context()); err != nil {
					return err
				}
				return a.print(fmt.Sprintf("this host holds the fleet lock (%s) until reconf-pull lock release\n", lockText(m.config.Lock)))
			})
		},
	}
}

var errNoLock = errors.New("no fleet lock is configured: see lock.kind in " + config.Path)

func (a *app) lockReleaseCommand() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Give the fleet lock back",
		Long: `Release gives back what this host holds of the fleet lock: taken by hand, kept after
a failure, or left behind where nobody knows of it. After a failure it lets the other
hosts take the change that failed here, if that is still what the fleet repo says.

A change that is under way gives the lock back itself; --force does it now, and other
hosts may then change at the same time.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLock("lock release", func(m *machine, u *update.Update) error {
				before := u.State.Lock
				if !u.Locks() && before == nil {
					return &config.Error{Err: errNoLock}
				}
				if err := u.ReleaseByHand(cmd.Context(), force); err != nil {
					return &releaseError{err}
				}
				text := "this host does not hold the fleet lock"
				switch {
				case before == nil:
				case before.Kept && u.State.Held != nil:
					text = fmt.Sprintf("the fleet lock, kept since %.12s failed here, is given back: other hosts may take that commit now, this one still holds it off", u.State.Held.Commit)
				case before.Kept:
					text = "the fleet lock, kept after a failure, is given back: other hosts may go on now"
				default:
					text = "the fleet lock is given back"
				}
				return a.print(text + " (" + lockText(m.config.Lock) + ")\n")
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while a change is under way")
	return cmd
}

// releaseError is a lock that could not be given back by hand.
type releaseError struct{ err error }

func (e *releaseError) Error() string { return "releasing the fleet lock: " + e.err.Error() }
func (e *releaseError) Unwrap() error { return e.err }

// Hint says how to go on.
func (e *releaseError) Hint() string {
	var hinted interface{ Hint() string }
	switch {
	case errors.Is(e.err, update.ErrUnderWay):
		return "reconf-pull status shows it; --force releases the lock under it"
	case !errors.Is(e.err, lock.ErrBusy) && errors.As(e.err, &hinted):
		return hinted.Hint()
	}
	return "this host still counts as a holder; docs/locks.md says how to give its place back at the server"
}

// lockText is which lock is meant.
func lockText(c config.Lock) string {
	switch c.Kind {
	case lock.NoLock:
		return "none configured"
	case "foreman":
		name, _ := c.LockName("") // was looked at when the configuration was read
		return "foreman, " + name
	}
	return c.Kind + ", group " + c.Group
}

// LockStatus is what lock status prints as JSON.
type lockStatus struct {
	Schema int    `json:"schema"`
	Kind   string `json:"kind"`
	Group  string `json:"group,omitempty"`
	Name   string `json:"name,omitempty"`
	Scope  string `json:"scope,omitempty"`
	// Servers are lock.url or lock.endpoints.
	Servers []string `json:"servers,omitempty"`
	// Slots is how many may hold it at a time, 0 where only the server knows.
	Slots int `json:"slots,omitempty"`
	// Belief is what this host has written down.
	Belief *state.FleetLock `json:"belief,omitempty"`
	// Holders are null where the server does not tell.
	Holders []lock.Holder `json:"holders"`
	// Free is how many slots are left, null where that is not known.
	Free *int `json:"free"`
}

func (a *app) lockStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who holds the fleet lock",
		Long: `Status asks the lock server who holds the lock, and shows what this host believes to
hold. It exits with 0 when the lock is to be had, as far as the server tells, with 3
when it is not or when this host holds it, and with 75 when the server does not answer.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := a.machine()
			if err == nil {
				err = lockable(m)
			}
			if err != nil {
				return err
			}
			st, err := state.Load(m.dirs)
			if err != nil {
				return err
			}
			server, err := a.fleetLock(m)
			if err != nil {
				return err
			}
			return a.lockStatus(cmd.Context(), m, st, server)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) lockStatus(ctx context.Context, m *machine, st *state.State, server lock.Lock) error {
	c := m.config.Lock
	s := lockStatus{Schema: 1, Kind: c.Kind, Belief: st.Lock}
	if c.Kind != lock.NoLock {
		s.Group, s.Scope, s.Servers = c.Group, c.Scope, c.Endpoints
	}
	switch c.Kind {
	case "foreman":
		s.Name, _ = c.LockName("")
		s.Slots = 1
	case "etcd":
		s.Slots = c.Slots
	}
	if c.Kind == "foreman" || c.Kind == "fleetlock" {
		s.Servers = []string{c.URL}
	}
	holders, asked := server.Inspect(ctx)
	untold := errors.Is(asked, lock.ErrUntold)
	if untold {
		asked = nil
	}
	mine := s.Belief != nil
	if asked == nil && !untold {
		s.Holders = append([]lock.Holder{}, holders...)
		for _, h := range holders {
			mine = mine || h.Mine
		}
	}
	if s.Slots > 0 && s.Holders != nil {
		free := max(0, s.Slots-len(holders))
		s.Free = &free
	}
	var err error
	switch {
	case a.json && asked != nil:
		return asked // one document: the error's
	case a.json:
		err = a.printJSON(s)
	default:
		err = s.write(a.stdout, untold)
	}
	if err = errors.Join(err, asked); err != nil {
		return err
	}
	if mine || s.Free != nil && *s.Free == 0 {
		return exitStatus(exitChanges)
	}
	return nil
}

func (s *lockStatus) write(w io.Writer, untold bool) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	if s.Kind == lock.NoLock {
		row("lock", "none is configured")
	} else {
		what := s.Kind + ", group " + s.Group
		if s.Name != "" {
			what = s.Kind + ", " + s.Name
		}
		if s.Slots > 1 {
			what += fmt.Sprintf(", %d slots", s.Slots)
		}
		row("lock", "%s, scope %s", what, s.Scope)
		row("server", "%s", strings.Join(s.Servers, " "))
	}
	if s.Belief != nil {
		row("here", "%s", s.Belief)
	} else if s.Kind != lock.NoLock {
		row("here", "not held")
	}
	for _, h := range s.Holders {
		mine := ""
		if h.Mine {
			mine = " this host"
		}
		row("holder", "%s%s", h, mine)
	}
	switch {
	case untold:
		row("holders", "known to the server only: this kind does not tell")
	case s.Holders != nil && len(s.Holders) == 0 && s.Kind != lock.NoLock:
		row("holders", "nobody")
	}
	if s.Free != nil && s.Slots > 1 {
		row("free", "%d", *s.Free)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
