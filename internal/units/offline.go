package units

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// Offline is a root that is not running: only enablement is carried out, by
// the links that systemctl --root would make.
type Offline struct {
	Host *host.Host
	Log  logrus.FieldLogger
}

// Touched is nothing: no migration runs there.
func (o *Offline) Touched(context.Context, []string, []service.Watch) (service.Effect, error) {
	return service.Effect{}, nil
}

// Before disables, by their old files, the units that go or whose [Install]
// changes.
func (o *Offline) Before(_ context.Context, _ string, p *plan.Plan) error {
	return o.disable(disabledFirst(p))
}

// After enables and disables the others, and says what a running machine
// would have done.
func (o *Offline) After(_ context.Context, _ string, p *plan.Plan) error {
	for _, command := range p.Effect.Commands {
		o.Log.Debugf("would run: %v", command.Args(o.Host.Exists))
	}
	for _, touch := range p.Effect.Touches {
		o.Log.Debugf("would %s %s", touch.Action, touch.Unit)
	}
	for _, u := range p.Units {
		var err error
		if u.Enable {
			err = o.enable(u.Name)
		} else {
			err = o.disable([]string{u.Name})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// BeforeBack disables, by their new files, the units that came or whose [Install]
// changed.
func (o *Offline) BeforeBack(_ context.Context, _ string, p *plan.Plan) error {
	var units []string
	for _, u := range p.Units {
		if u.Enable || u.Again {
			units = append(units, u.Name)
		}
	}
	return o.disable(units)
}

// Back undoes the enablement that the plan carried out.
func (o *Offline) Back(_ context.Context, _ string, p *plan.Plan) error {
	var errs []error
	for _, u := range p.Units {
		if u.Enable && !u.Again {
			errs = append(errs, o.disable([]string{u.Name}))
		} else {
			errs = append(errs, o.enable(u.Name))
		}
	}
	return errors.Join(errs...)
}

// Healthy has nothing to look at where nothing runs.
func (o *Offline) Healthy(context.Context, string, *plan.Plan) error { return nil }

// Late has nothing to do where nothing runs.
func (o *Offline) Late(context.Context, *plan.Plan) error { return nil }

func (o *Offline) enable(unit string) error {
	links, err := systemd.Offline{Host: o.Host}.Links(unit)
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := o.link(link); err != nil {
			return fmt.Errorf("enabling %s: %w", unit, err)
		}
	}
	return nil
}

// link puts a symbolic link in place durably, over whatever link is there.
func (o *Offline) link(link systemd.Link) error {
	files, dir := o.Host.Files, path.Dir(link.Path)
	if now, err := files.Look(link.Path); err != nil || now.Kind == disk.Link && now.Target == link.Target {
		return err
	}
	if err := o.mkdir(dir); err != nil {
		return errors.Join(err, o.removeEmpty(dir))
	}
	temp := "." + path.Base(link.Path) + ".reconf"
	made, err := files.Symlink(link.Path, temp, link.Target, fsat.Plain(0))
	if err == nil {
		_, err = files.Rename(link.Path, temp, made)
	}
	if err != nil {
		// A directory without links would be nobody's: only a link tells whose it was.
		_ = files.RemoveBeside(link.Path, temp)
		return errors.Join(err, o.removeEmpty(dir))
	}
	return errors.Join(files.Sync(dir), files.Sync(path.Dir(dir)))
}

// mkdir makes a directory of links, and those that it lies in.
func (o *Offline) mkdir(dir string) error {
	found, err := o.Host.Files.Follow(dir)
	switch {
	case err != nil || found.Kind == disk.Directory || dir == "/":
		return err
	case found.Kind != disk.Absent:
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if err := o.mkdir(path.Dir(dir)); err != nil {
		return err
	}
	return o.Host.Files.Mkdir(dir, fsat.Plain(0o755))
}

func (o *Offline) disable(units []string) error {
	offline := systemd.Offline{Host: o.Host}
	for _, unit := range units {
		// A crash may have come between the last link and its directory, so those
		// that enabling would make links in are looked at too.
		would, err := offline.Links(unit)
		if err != nil {
			would = nil // what cannot be enabled has made no directory
		}
		links, err := offline.Unlinks(unit)
		if err != nil && !errors.Is(err, systemd.ErrNoUnit) {
			return err
		}
		for _, link := range links {
			if err := o.unlink(link); err != nil {
				return fmt.Errorf("disabling %s: %w", unit, err)
			}
		}
		for _, link := range would {
			if err := o.removeEmpty(path.Dir(link.Path)); err != nil {
				return fmt.Errorf("disabling %s: %w", unit, err)
			}
		}
	}
	return nil
}

// unlink removes a link and, as systemctl does, the directory that it leaves empty.
func (o *Offline) unlink(link string) error {
	if _, err := o.Host.Files.Remove(link); err != nil {
		return err
	}
	if err := o.Host.Files.Sync(path.Dir(link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return o.removeEmpty(path.Dir(link))
}

// removeEmpty removes a directory of links (multi-user.target.wants) that has none.
func (o *Offline) removeEmpty(dir string) error {
	if path.Ext(dir) == "" {
		return nil
	}
	if found, err := o.Host.Files.Look(dir); err != nil || found.Kind != disk.Directory {
		return err
	}
	_, err := o.Host.Files.Remove(dir)
	if errors.Is(err, fsat.ErrNotEmpty) {
		return nil
	}
	return err
}
