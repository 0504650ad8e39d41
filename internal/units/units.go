// Package units carries out what a plan asks of the service manager, or of
// the links that stand for it below a root that is not running.
//
// Its one rule: what units did before the change is saved first and decides
// what is restarted, so that a run that goes on after a crash touches nothing
// twice.
package units

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// Live is the running machine.
type Live struct {
	Connect    func(context.Context) (*systemd.Manager, error)
	Host       *host.Host
	Runner     run.Runner
	Log        logrus.FieldLogger
	Watches    []service.Watch // of the host's configuration
	JobTimeout time.Duration
	SettleTime time.Duration
}

// saved is what units did before the change; it lies in the change's directory.
type saved struct {
	BootID string                       `json:"boot_id"`
	Units  map[string]systemd.UnitState `json:"units"`
}

// Touched asks the service manager, as the plan did about its own paths.
func (l *Live) Touched(ctx context.Context, paths []string, watches []service.Watch) (service.Effect, error) {
	m, err := l.Connect(ctx)
	if err != nil {
		return service.Effect{}, err
	}
	defer m.Close()
	view := m.View(ctx)
	effect, err := service.Of(paths, slices.Concat(l.Watches, watches), view.OnChange, view)
	return effect, errors.Join(err, view.Err())
}

// Before saves the state of all touched units once, then disables and stops
// those that lose their file or are masked.
func (l *Live) Before(ctx context.Context, dir string, p *plan.Plan) error {
	if !p.TouchesUnits() {
		return nil
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	before, err := readSaved(savedFile(dir))
	running := before.Units
	switch {
	case errors.Is(err, os.ErrNotExist):
		before, err = l.save(ctx, m, dir, p)
		running = before.Units
	case err == nil && before.BootID == l.Host.BootID():
		if err = l.saveMore(ctx, m, dir, &before, p); err == nil {
			running = before.Units
		}
	case err == nil:
		// This boot began with some of the old files, and its units are not what ran then.
		if running, err = m.States(ctx, names(p)); err == nil {
			err = writeSaved(bootFile(dir), saved{BootID: l.Host.BootID()})
		}
	}
	if err != nil {
		return err
	}
	if gone := disabledFirst(p); len(gone) > 0 {
		if _, err := m.Disable(ctx, gone); err != nil {
			return fmt.Errorf("disabling units: %w", err)
		}
	}
	var jobs []systemd.Job
	for _, unit := range p.Stopped {
		if running[unit].Active() {
			jobs = append(jobs, systemd.Job{Unit: unit, Kind: systemd.Stop})
		}
	}
	results, err := m.Apply(ctx, jobs, l.JobTimeout)
	if err != nil {
		return fmt.Errorf("stopping units: %w", err)
	}
	return l.failures(ctx, m, results, nil)
}

func (l *Live) save(ctx context.Context, m *systemd.Manager, dir string, p *plan.Plan) (saved, error) {
	states, err := m.States(ctx, names(p))
	if err != nil {
		return saved{}, fmt.Errorf("asking for the state of units: %w", err)
	}
	s := saved{BootID: l.Host.BootID(), Units: states}
	return s, writeSaved(savedFile(dir), s)
}

// saveMore saves what units do that turned out to be touched when others were saved.
func (l *Live) saveMore(ctx context.Context, m *systemd.Manager, dir string, s *saved, p *plan.Plan) error {
	more := slices.DeleteFunc(names(p), func(unit string) bool { _, known := s.Units[unit]; return known })
	if len(more) == 0 {
		return nil
	}
	states, err := m.States(ctx, more)
	if err != nil {
		return fmt.Errorf("asking for the state of units: %w", err)
	}
	if s.Units == nil {
		s.Units = states
	}
	maps.Copy(s.Units, states)
	return writeSaved(savedFile(dir), *s)
}

// disabledFirst are the units that are disabled by their old file.
func disabledFirst(p *plan.Plan) []string {
	var first []string
	for _, u := range p.Units {
		if u.Again || !u.Enable && slices.Contains(p.Stopped, u.Name) {
			first = append(first, u.Name)
		}
	}
	return first
}

func names(p *plan.Plan) []string {
	all := slices.Clone(p.Stopped)
	for _, u := range p.Units {
		all = append(all, u.Name)
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches) {
		all = append(append(all, touch.Unit), touch.StopFirst...)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), systemd.Template)
}

// After runs the programs that have to see changed files, reloads, enables
// and disables, then restarts by the saved states and watches.
func (l *Live) After(ctx context.Context, dir string, p *plan.Plan) error {
	errs := l.commands(ctx, p)
	if !p.TouchesUnits() {
		return errs
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return errors.Join(errs, err)
	}
	defer m.Close()
	before, err := readSaved(savedFile(dir))
	if err != nil {
		return errors.Join(errs, err)
	}
	if p.Effect.Reload {
		if err := m.Reload(ctx); err != nil {
			return errors.Join(errs, fmt.Errorf("reloading units: %w", err))
		}
	}
	stale, err := l.stale(ctx, m, dir, p)
	if err != nil {
		return errors.Join(errs, err)
	}
	if err := m.ResetFailed(ctx, names(p)); err != nil {
		errs = errors.Join(errs, fmt.Errorf("forgetting old failures: %w", err))
	}
	errs = errors.Join(errs, l.enablement(ctx, m, p))
	return errors.Join(errs, l.restart(ctx, m, before, stale, p))
}

// stale are the units that this boot has started before the change's files were in
// place and read, where the change was cut off by the boot in the middle of its files.
// They are saved once, so that none is restarted twice.
func (l *Live) stale(ctx context.Context, m *systemd.Manager, dir string, p *plan.Plan) (map[string]systemd.UnitState, error) {
	s, err := readSaved(bootFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if s.BootID != l.Host.BootID() {
		return nil, nil // the files were all there when this boot began
	}
	if s.Units != nil {
		return s.Units, nil
	}
	if s.Units, err = m.States(ctx, names(p)); err != nil {
		return nil, fmt.Errorf("asking for the state of units: %w", err)
	}
	return s.Units, writeSaved(bootFile(dir), s)
}

func (l *Live) commands(ctx context.Context, p *plan.Plan) error {
	var errs []error
	for _, command := range p.Effect.Commands {
		argv := command.Args(l.Host.Exists)
		if len(argv) == 0 {
			continue
		}
		if _, err := l.Runner.Run(ctx, argv...); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *Live) enablement(ctx context.Context, m *systemd.Manager, p *plan.Plan) error {
	var enable, disable []string
	for _, u := range p.Units {
		switch {
		case u.Enable:
			enable = append(enable, u.Name)
		case !slices.Contains(p.Stopped, u.Name):
			disable = append(disable, u.Name)
		}
	}
	disabled, err1 := m.Disable(ctx, disable)
	enabled, err2 := m.Enable(ctx, enable)
	var err3 error
	if len(disabled)+len(enabled) > 0 {
		err3 = m.Reload(ctx)
	}
	return errors.Join(err1, err2, err3)
}

// restart queues the jobs that the saved states ask for, waits for them and
// watches for units that fall over.
func (l *Live) restart(ctx context.Context, m *systemd.Manager, before saved, stale map[string]systemd.UnitState, p *plan.Plan) error {
	now, err := m.States(ctx, names(p))
	if err != nil {
		return fmt.Errorf("asking for the state of units: %w", err)
	}
	d := decision{before: before, now: now, stale: stale, sameBoot: before.BootID == l.Host.BootID()}
	var all []systemd.Result
	for _, jobs := range [][]systemd.Job{d.jobs(p.Effect.Early), append(d.jobs(p.Effect.Touches), d.byEnablement(p)...)} {
		results, err := m.Apply(ctx, jobs, l.JobTimeout)
		if err != nil {
			return fmt.Errorf("restarting units: %w", err)
		}
		all = append(all, results...)
	}
	if len(all) == 0 {
		return nil
	}
	watched := make([]string, 0, len(all))
	for _, r := range all {
		if r.Kind != systemd.Stop && r.Outcome == systemd.Done {
			watched = append(watched, r.Unit)
		}
	}
	fell, err := m.Settle(ctx, watched, now, l.SettleTime)
	if err != nil {
		return err
	}
	return l.failures(ctx, m, all, fell)
}

// decision turns touches into jobs.
type decision struct {
	before   saved
	now      map[string]systemd.UnitState
	stale    map[string]systemd.UnitState // what may run with old files though this is another boot
	sameBoot bool
}

func (d *decision) jobs(touches []service.Touch) []systemd.Job {
	var jobs []systemd.Job
	for _, touch := range touches {
		if kind := d.kind(touch); kind != "" {
			jobs = append(jobs, systemd.Job{Unit: touch.Unit, Kind: kind, StopFirst: touch.StopFirst})
		}
	}
	return jobs
}

func (d *decision) kind(touch service.Touch) systemd.Kind {
	was, is := d.before.Units[touch.Unit], d.now[touch.Unit]
	if is.LoadState != "loaded" {
		return "" // it was removed or masked, and stopped before
	}
	if !d.sameBoot {
		switch old, found := d.stale[touch.Unit]; {
		case !is.Active() && (startsByItself(is) || is.Wanted):
			return systemd.Start
		case !is.Active() || !found || old.InvocationID != is.InvocationID:
			return "" // what runs, runs with the new files
		case touch.Action == service.Restart:
			return systemd.Restart
		case touch.Action == service.Reload:
			return systemd.Reload
		}
		return ""
	}
	if is.InvocationID != was.InvocationID && is.Active() {
		// An earlier run of this change got to it, and may not have seen how it went.
		return waitedFor(is)
	}
	switch {
	case was.Active() && touch.Action == service.Restart:
		return systemd.Restart
	case was.Active() && touch.Action == service.Reload:
		return systemd.Reload
	case was.Active() || is.Active():
		return ""
	case startsByItself(is) || is.Wanted:
		return systemd.Start
	}
	return ""
}

// waitedFor is the job that only waits: systemd has that of a unit which is
// being started already.
func waitedFor(s systemd.UnitState) systemd.Kind {
	if s.ActiveState == "activating" {
		return systemd.Start
	}
	return ""
}

func startsByItself(s systemd.UnitState) bool {
	return s.UnitFileState == "enabled" || s.UnitFileState == "enabled-runtime"
}

// byEnablement starts what became enabled and stops what became disabled,
// where no touch has decided about it.
func (d *decision) byEnablement(p *plan.Plan) []systemd.Job {
	var jobs []systemd.Job
	for _, u := range p.Units {
		touched := slices.ContainsFunc(p.Effect.Touches, func(t service.Touch) bool { return t.Unit == u.Name })
		is := d.now[u.Name]
		switch {
		case systemd.Template(u.Name) || service.Own(u.Name) || is.LoadState != "loaded":
		case u.Enable && !touched && (!is.Active() || waitedFor(is) != ""):
			jobs = append(jobs, systemd.Job{Unit: u.Name, Kind: systemd.Start})
		case !u.Enable && is.Active():
			jobs = append(jobs, systemd.Job{Unit: u.Name, Kind: systemd.Stop})
		}
	}
	return jobs
}

// failures reports every unit that did not do what it should, with the last
// lines of its journal.
func (l *Live) failures(ctx context.Context, m *systemd.Manager, results []systemd.Result, fell []systemd.Failure) error {
	var errs []error
	said := map[string]bool{}
	report := func(unit, text string) {
		if said[unit] {
			return
		}
		said[unit] = true
		states, _ := m.States(ctx, []string{unit}) // only for the journal: without it all of this boot is shown
		lines, err := systemd.JournalTail(ctx, l.Runner.Run, unit, states[unit].InvocationID, 10)
		if err == nil && len(lines) > 0 {
			text += "\n    " + strings.Join(lines, "\n    ")
		}
		errs = append(errs, fmt.Errorf("%s: %s", unit, text))
	}
	for _, r := range results {
		if r.Err != nil {
			report(r.Unit, fmt.Sprintf("%s: %v", r.Kind, r.Err))
		}
	}
	for _, f := range fell {
		report(f.Unit, "fell over after its start: "+f.Why)
	}
	return errors.Join(errs...)
}

// Late restarts the agent's own timer and path units once the change is
// recorded; the run itself is never restarted.
func (l *Live) Late(ctx context.Context, p *plan.Plan) error {
	if len(p.Effect.Late) == 0 {
		return nil
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	var jobs []systemd.Job
	for _, touch := range p.Effect.Late {
		jobs = append(jobs, systemd.Job{Unit: touch.Unit, Kind: systemd.TryRestart})
	}
	_, err = m.Apply(ctx, jobs, l.JobTimeout)
	return err
}

func savedFile(dir string) string { return filepath.Join(dir, "units.json") }

func bootFile(dir string) string { return filepath.Join(dir, "units-boot.json") }

func readSaved(file string) (saved, error) {
	var s saved
	data, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("reading %s: %w", file, err)
	}
	return s, nil
}

func writeSaved(file string, s saved) error {
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return fmt.Errorf("saving what units do: %w", err)
	}
	return nil
}
