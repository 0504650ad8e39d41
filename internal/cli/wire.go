package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/logging"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/units"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// machine is what every command needs of this host.
type machine struct {
	config config.Config
	host   *host.Host
	dirs   state.Dirs
	log    logrus.FieldLogger
	// secrets are the host's private keys, read when one is needed.
	secrets *secret.Keys
}

func (a *app) machine() (*machine, error) {
	log, err := logging.New(a.stderr, logging.Options{
		Level: a.logLevel, Format: a.logFormat, Color: a.colored(a.stderr), Journal: systemd.StderrIsJournal(),
	})
	if err != nil {
		return nil, &usageError{err}
	}
	if err := a.checkColor(); err != nil {
		return nil, err
	}
	if a.options.root == "" { // the working directory is never meant by a variable that is not set
		return nil, &usageError{errors.New("--root is empty")}
	}
	root, err := filepath.Abs(a.options.root)
	if err != nil {
		return nil, &usageError{err}
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, &usageError{fmt.Errorf("--root %s is no directory", root)}
	}
	m := &machine{host: host.New(root), log: log}
	path := a.config
	if path == "" {
		path = config.Path
	}
	if m.config, err = config.Load(path, a.config == "", os.Getenv("CREDENTIALS_DIRECTORY")); err != nil {
		return nil, err
	}
	m.secrets = secret.New(m.host, m.config.Secrets.Identities)
	m.dirs, err = a.dirs(m.host)
	return m, err
}

// dirs are where state, cache and run lie: --state-dir moves all three.
func (a *app) dirs(h *host.Host) (state.Dirs, error) {
	if a.stateDir != "" {
		dir, err := filepath.Abs(a.stateDir)
		return state.Dirs{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}, err
	}
	var dirs state.Dirs
	for _, one := range []struct {
		into *string
		path string
	}{{&dirs.State, "/var/lib/reconf-pull"}, {&dirs.Cache, "/var/cache/reconf-pull"}, {&dirs.Run, "/run/reconf-pull"}} {
		real, err := h.Path(one.path)
		if err != nil {
			return dirs, err
		}
		*one.into = real
	}
	return dirs, nil
}

// names are what this host may be called in the fleet repo, and whether the
// operator said so.
func (a *app) names(m *machine) ([]string, bool, error) {
	if want := m.config.Host.MachineID; want != "" && want != m.host.MachineID() {
		return nil, false, &config.Error{Err: fmt.Errorf("the configuration is for the machine with the id %s (host.machine_id), this one is %s", want, m.host.MachineID())}
	}
	switch {
	case a.host != "":
		return []string{a.host}, true, nil
	case m.config.Host.Name != "":
		return []string{m.config.Host.Name}, true, nil
	}
	var names []string
	full, err := m.host.Hostname()
	if err != nil {
		return nil, false, err
	}
	if full != "" {
		names = append(names, full)
		if label, _, ok := strings.Cut(full, "."); ok && m.config.Host.ShortName {
			names = append(names, label)
		}
	}
	if id := m.host.MachineID(); id != "" {
		names = append(names, id)
	}
	if len(names) == 0 {
		return nil, false, &config.Error{Err: fmt.Errorf("this host has neither a hostname nor a machine-id: say --host, or set name under [host] in config.toml")}
	}
	return names, false, nil
}

// reconciler wires one pull.
func (a *app) reconciler(m *machine, st *state.State) (*reconcile.Reconciler, error) {
	names, named, err := a.names(m)
	if err != nil {
		return nil, err
	}
	var src reconcile.Source // a checkout has none
	if a.checkout == "" {
		fetched, err := a.source(m, st)
		if err != nil {
			return nil, err
		}
		fetched.Start()
		src = fetched
	}
	u, err := a.update(m, st)
	if err != nil {
		return nil, err
	}
	trust, err := trust(m)
	if err != nil {
		return nil, err
	}
	opener := a.contents(m)
	opener.Secrets = m.secrets
	r := &reconcile.Reconciler{
		Host: m.host, Dirs: m.dirs, Source: src, Trust: trust, Author: a.checkout != "" && a.host != "", Names: names, Named: named, Strict: m.config.Translate.Strict, Limits: limits(m),
		Settings: plan.Settings{
			OnConflict: m.config.Apply.OnConflict, PruneModified: m.config.Apply.PruneModified,
			AllowMassRemoval: m.config.Apply.AllowMassRemoval, CorrectDrift: m.config.Drift.Mode == "correct",
			MaxFile: int64(m.config.Translate.MaxFile),
			Watches: m.config.Watches(), Protected: protected(m), Own: own(m),
		},
		Contents: opener,
		Accounts: accounts(m), OnChange: systemd.OnChange, Log: m.log,
		Update:   u,
		Hooks:    scripts(m),
		Choose:   chooser(m),
		Announce: func(*reconcile.Proposal) {},
	}
	r.Contents.Opaque = r.Author
	if r.Update.Reach != nil {
		r.Update.Reach = func(ctx context.Context) error { return a.reach(ctx, r.Trusted()) }
	}
	r.Services = func(context.Context) (reconcile.Services, error) {
		return offlineServices{systemd.Offline{Host: m.host}}, nil
	}
	if m.host.Live() {
		r.Services = liveServices
	}
	return r, nil
}

func accounts(m *machine) *host.Accounts { return &host.Accounts{Host: m.host, Runner: run.Host{}} }

// update wires what carries changes out and undoes them: it needs no source.
func (a *app) update(m *machine, st *state.State) (*update.Update, error) {
	u := &update.Update{
		Host: m.host, Dirs: m.dirs, State: st, Log: m.log, Secrets: m.secrets, Keep: m.config.Keep,
		Engine:      engines(m),
		Units:       &units.Offline{Host: m.host, Log: m.log},
		MaxAttempts: m.config.Retry.Attempts, Backoff: time.Duration(m.config.Retry.Backoff), KeepFailed: m.config.Apply.OnFailure == "keep",
		Lock: lock.None{}, LockReboots: m.config.Lock.Scope == "reboot",
	}
	if !m.host.Live() {
		return u, nil
	}
	var err error
	if u.Lock, err = a.fleetLock(m); err != nil {
		return nil, err
	}
	u.Units = &units.Live{
		Connect: systemd.Connect, Host: m.host, Runner: run.Host{}, Log: m.log, Watches: m.config.Watches(),
		JobTimeout: time.Duration(m.config.Service.JobTimeout), SettleTime: time.Duration(m.config.Service.Settle),
	}
	u.Hooks = func(dir string) update.Hooks { return scripts(m, dir) }
	u.Inhibit = inhibit
	u.Doing = func(step string) {
		if st.Change != nil {
			step = fmt.Sprintf("%s of change %s to %.12s", step, st.Change.ID, st.Change.Commit)
		}
		systemd.Notify("STATUS=" + step)
	}
	u.Rebooting = update.Rebooting{
		Machine: &rebooter{host: m.host, command: m.config.Reboot.Command}, Windows: m.config.Reboot.Windows,
		Timeout: time.Duration(m.config.Reboot.Timeout), Paths: m.config.RebootPaths(), Always: m.config.Reboot.WithoutScripts == "always",
	}
	u.Reach = func(ctx context.Context) error { return a.reach(ctx, "") }
	u.HealthSource = m.config.Health.Source
	of, keys := m.config.Source, m.config.Verify
	for _, path := range append(own(m), a.config, keys.AllowedSigners, keys.RevokedSigners, keys.Keyring, of.CAFile, of.SSHKey, of.KnownHosts, of.TokenFile, of.PasswordFile, of.ClientCert, of.ClientKey) {
		if path != "" {
			u.Lifeline = append(u.Lifeline, path)
		}
	}
	return u, nil
}

// scripts are the host's own, and before those that lie in others.
func scripts(m *machine, others ...string) *hooks.Runner {
	return &hooks.Runner{
		Host: m.host, Dirs: append([]string{hooks.Dir}, others...), Timeout: time.Duration(m.config.Hooks.Timeout), MaxLines: m.config.Hooks.MaxLines, Log: m.log,
		Output: func(script, line string) { m.log.Infof("%s: %s", script, line) },
		Sync:   atomicfile.SyncLocal,
	}
}

// limits bound what the host config may refer to.
func limits(m *machine) butane.Limits {
	t := m.config.Translate
	return butane.Limits{MaxText: int64(t.MaxText), MaxEntries: t.MaxEntries, MaxDepth: t.MaxDepth}
}

func (a *app) contents(m *machine) contents.Opener {
	return contents.Opener{Downloads: m.dirs.Downloads(), MaxFile: int64(m.config.Translate.MaxFile), Client: &http.Client{Timeout: time.Duration(m.config.Source.Timeout)}}
}

// inhibit takes a block lock on shutdown from logind, which may hang after the
// bus was restarted.
func inhibit(ctx context.Context, why string) (io.Closer, error) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	login, err := systemd.ConnectLogin(ctx)
	if err != nil {
		return nil, err
	}
	held, err := login.Inhibit(ctx, "shutdown", "reconf-pull", why, "block")
	if err != nil {
		login.Close()
		return nil, err
	}
	return &inhibitor{held, login}, nil
}

// inhibitor is a lock with the connection that it was taken through.
type inhibitor struct {
	io.Closer
	login *systemd.Login
}

func (i *inhibitor) Close() error {
	defer i.login.Close()
	return i.Closer.Close()
}

// protected are the agent's own directories as the host config would name them.
func protected(m *machine) []string {
	var inside []string
	for _, dir := range []string{m.dirs.State, m.dirs.Cache, m.dirs.Run} {
		if m.host.Live() {
			inside = append(inside, dir)
		} else if rest, ok := strings.CutPrefix(dir, m.host.Root+"/"); ok {
			inside = append(inside, "/"+rest)
		}
	}
	return inside
}

// own are files of the agent that a fleet repo may change and never removes.
func own(m *machine) []string {
	paths := []string{"/etc/reconf-pull"}
	if exe, err := os.Executable(); err == nil && m.host.Live() {
		paths = append(paths, exe)
	}
	return paths
}

// live asks the service manager of the running machine.
type live struct {
	*systemd.View
	manager *systemd.Manager
}

func liveServices(ctx context.Context) (reconcile.Services, error) {
	m, err := systemd.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("reaching systemd: %w", err)
	}
	return &live{View: m.View(ctx), manager: m}, nil
}

func (l *live) UnitFileState(ctx context.Context, unit string) (string, error) {
	return l.manager.UnitFileState(ctx, unit)
}

func (l *live) Close() { l.manager.Close() }

// offlineServices reads the unit files of a root.
type offlineServices struct{ systemd.Offline }

func (o offlineServices) UnitFileState(_ context.Context, unit string) (string, error) {
	return o.State(unit)
}

func (offlineServices) Err() error { return nil }

func (offlineServices) Close() {}

func (a *app) checkColor() error {
	if !slices.Contains([]string{"auto", "always", "never"}, a.color) {
		return &usageError{fmt.Errorf("--color %q is none of auto, always, never", a.color)}
	}
	return nil
}

// colored tells whether w gets colour.
func (a *app) colored(w io.Writer) bool {
	switch a.color {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && terminal(w)
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (a *app) planText(m *machine, diffs bool) *report.PlanText {
	return &report.PlanText{Host: m.host, Color: a.colored(a.stdout), Diffs: diffs}
}
