package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// BeforeBack disables and stops what was not enabled and did not run before the
// change, while the files that say how are still there: systemd finds no links of
// a unit without a file.
func (l *Live) BeforeBack(ctx context.Context, dir string, p *plan.Plan) error {
	if !p.TouchesUnits() {
		return nil
	}
	before, err := readSaved(savedFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil // the change did not get to its units
	}
	if err != nil {
		return err
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	var disable []string
	for _, u := range p.Units {
		state, err := m.UnitFileState(ctx, u.Name)
		if err != nil {
			return err
		}
		if state == "enabled" && (u.Again || !startsByItself(before.Units[u.Name])) {
			disable = append(disable, u.Name)
		}
	}
	_, disabled := m.Disable(ctx, disable)
	now, err := m.States(ctx, names(p))
	if err != nil {
		return errors.Join(disabled, fmt.Errorf("asking for the state of units: %w", err))
	}
	var jobs []systemd.Job
	for _, unit := range names(p) {
		if !before.Units[unit].Active() && now[unit].Active() && !service.Own(unit) {
			jobs = append(jobs, systemd.Job{Unit: unit, Kind: systemd.Stop})
		}
	}
	results, err := m.Apply(ctx, jobs, l.JobTimeout)
	if err != nil {
		return errors.Join(disabled, fmt.Errorf("stopping units: %w", err))
	}
	return errors.Join(disabled, l.failures(ctx, m, results, nil))
}

// Back brings units back to what Before saved, once their files are back:
// enablement, and of those that the change restarted, started or stopped, what
// they did. It touches nothing twice when it is run again after a crash.
func (l *Live) Back(ctx context.Context, dir string, p *plan.Plan) error {
	errs := l.commands(ctx, p)
	if !p.TouchesUnits() {
		return errs
	}
	before, err := readSaved(savedFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return errs // the change did not get to its units
	}
	if err != nil {
		return errors.Join(errs, err)
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return errors.Join(errs, err)
	}
	defer m.Close()
	if p.Effect.Reload {
		if err := m.Reload(ctx); err != nil {
			return errors.Join(errs, fmt.Errorf("reloading units: %w", err))
		}
	}
	if err := m.ResetFailed(ctx, names(p)); err != nil {
		errs = errors.Join(errs, fmt.Errorf("forgetting old failures: %w", err))
	}
	errs = errors.Join(errs, l.enablementBack(ctx, m, before, p))
	now, err := m.States(ctx, names(p))
	if err != nil {
		return errors.Join(errs, fmt.Errorf("asking for the state of units: %w", err))
	}
	// What they did when the way back began: one that runs in another invocation
	// than then was restarted by an earlier try of it.
	began, err := readSaved(backFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		began = saved{BootID: l.Host.BootID(), Units: now}
		err = writeSaved(backFile(dir), began)
	}
	if err != nil {
		return errors.Join(errs, err)
	}
	var jobs []systemd.Job
	for _, unit := range names(p) {
		if kind := backKind(before.Units[unit], began.Units[unit], now[unit]); kind != "" && !service.Own(unit) {
			jobs = append(jobs, systemd.Job{Unit: unit, Kind: kind})
		}
	}
	results, err := m.Apply(ctx, jobs, l.JobTimeout)
	if err != nil {
		return errors.Join(errs, fmt.Errorf("bringing units back: %w", err))
	}
	return errors.Join(errs, l.failures(ctx, m, results, nil))
}

// Healthy tells whether the touched units that ran before, or that the change
// started, run: it is asked after everything else, when they had time to fall
// over.
func (l *Live) Healthy(ctx context.Context, dir string, p *plan.Plan) error {
	if !p.TouchesUnits() {
		return nil
	}
	m, err := l.Connect(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	before, err := readSaved(savedFile(dir))
	if err != nil {
		return err
	}
	now, err := m.States(ctx, names(p))
	if err != nil {
		return fmt.Errorf("asking for the state of units: %w", err)
	}
	var fell []systemd.Failure
	for _, unit := range names(p) {
		is := now[unit]
		if is.ActiveState == "failed" && before.Units[unit].ActiveState != "failed" {
			fell = append(fell, systemd.Failure{Unit: unit, State: is, Why: systemd.Why(is)})
		}
	}
	return l.failures(ctx, m, nil, fell)
}

// backKind decides about one unit: was is before the change, began when the
// way back began, is now.
func backKind(was, began, is systemd.UnitState) systemd.Kind {
	switch {
	case !was.Active() && is.Active():
		return systemd.Stop // also one that has no file any more
	case !was.Active() || is.LoadState != "loaded":
		return ""
	case is.Active() && (is.InvocationID == was.InvocationID || is.InvocationID != began.InvocationID):
		return "" // never touched, or brought back already
	}
	return systemd.Restart
}

// enablementBack brings back what is-enabled said before the change.
func (l *Live) enablementBack(ctx context.Context, m *systemd.Manager, before saved, p *plan.Plan) error {
	var enable, disable []string
	for _, u := range p.Units {
		state, err := m.UnitFileState(ctx, u.Name)
		if err != nil {
			return fmt.Errorf("asking for the state of %s: %w", u.Name, err)
		}
		switch was := startsByItself(before.Units[u.Name]); {
		case u.Again && was:
			disable, enable = append(disable, u.Name), append(enable, u.Name) // the links of the other [Install]
		case was && state != "enabled":
			enable = append(enable, u.Name)
		case !was && state == "enabled":
			disable = append(disable, u.Name)
		}
	}
	gone, err1 := m.Disable(ctx, disable)
	made, err2 := m.Enable(ctx, enable)
	if len(gone)+len(made) == 0 {
		return errors.Join(err1, err2)
	}
	return errors.Join(err1, err2, m.Reload(ctx))
}

func backFile(dir string) string { return filepath.Join(dir, "units-back.json") }
