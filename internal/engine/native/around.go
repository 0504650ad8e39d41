package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// MakeWay does what another engine must not do, before it writes: it makes the
// accounts that the plan's sysusers.d files declare, so that every owner is a
// number, keeps what somebody changed since the change was pinned, and takes
// away what stands where another kind of file is wanted, directories only when
// they are empty. It may be called again after a crash, and its errors are those
// of Apply.
func (e *Engine) MakeWay(ctx context.Context, job *engine.Job) (engine.Result, error) {
	t := newTransaction(e, job)
	err := t.makeWay(ctx)
	return t.conclude(err)
}

func (t *transaction) makeWay(ctx context.Context) error {
	items, err := t.begin(ctx)
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := t.keepLate(item); err != nil {
			return fmt.Errorf("preparing %s: %w", item.Path, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	obstructs := Obstructs(items)
	for _, item := range Order(items) {
		if item.After.Kind == disk.Absent && !obstructs(item) {
			continue
		}
		if err := t.clear(item); err != nil {
			return fmt.Errorf("making way for %s: %w", item.Path, err)
		}
	}
	return nil
}

// keepLate keeps what was changed since the pin, as stage does.
func (t *transaction) keepLate(item *plan.Item) error {
	real, err := t.Host.Path(item.Path)
	if err != nil {
		return err
	}
	now, _, err := disk.Read(real)
	if err != nil || t.isDone(item, real, now) {
		return err
	}
	return t.checkLate(item, real, now)
}

// clear takes away what the path must not be found as.
func (t *transaction) clear(item *plan.Item) error {
	real, err := t.Host.Path(item.Path)
	if err != nil {
		return err
	}
	if item.After.Kind == disk.Absent {
		return t.remove(item, real)
	}
	now, _, err := disk.Look(real)
	if err != nil || now.Kind == disk.Absent {
		return err
	}
	if !inTheWay(item, real, now) {
		return t.tighten(item, real, now)
	}
	t.wrote(real)
	if err := os.Remove(real); err != nil { // of a directory: rmdir
		return err
	}
	t.begun = true
	t.Host.Forget() // a link that led elsewhere
	return nil
}

// tighten keeps others from reading the new bytes of a file before it has its
// new owner and mode, and from reading the old ones because it has them.
func (t *transaction) tighten(item *plan.Item, real string, now disk.Node) error {
	sameOwner := now.UID == item.After.UID && now.GID == item.After.GID
	mode := now.Mode & item.After.Mode
	if !item.NeedsContent() || now.Kind != disk.File || sameOwner && mode == now.Mode {
		return nil
	}
	t.begun = true
	if sameOwner {
		return unix.Chmod(real, mode)
	}
	return errors.Join(unix.Chmod(real, 0), os.Lchown(real, item.After.UID, item.After.GID))
}

// inTheWay tells whether what stands at the path is more than something to be
// overwritten. A link is overwritten by contents, but others look through it for
// the owner and mode of what they write, and for a file whose contents are
// nobody's business.
func inTheWay(item *plan.Item, real string, now disk.Node) bool {
	switch item.After.Kind {
	case disk.Directory:
		return now.Kind != disk.Directory
	case disk.File:
		if now.Kind != disk.Link {
			return now.Kind == disk.Directory
		}
		info, err := os.Stat(real)
		return item.After.SHA256 == "" || err == nil && (info.IsDir() || info.Mode().IsRegular())
	case disk.Link:
		// Two spellings of one target are one to others.
		same := now.Kind == disk.Link && now.Target != item.After.Target && filepath.Clean(now.Target) == filepath.Clean(item.After.Target)
		return now.Kind == disk.Directory || same
	}
	return now.Kind != disk.File // a hard link
}

// Finish does what another engine leaves to be done when it has written: it
// removes what is left to be removed, directories only when they are empty,
// labels what was written, makes all of it durable and fills in the manifest.
// It says which paths are not what the plan wants, and how.
func (e *Engine) Finish(ctx context.Context, job *engine.Job) (result engine.Result, differing []string, err error) {
	t := newTransaction(e, job)
	t.begun = true
	e.Host.Forget()
	differing, err = t.finish(ctx)
	e.Host.Forget()
	return t.result, differing, err
}

func (t *transaction) finish(ctx context.Context) (differing []string, err error) {
	if err := t.readLabels(ctx); err != nil {
		return nil, err
	}
	items, err := t.left()
	if err != nil {
		return nil, err
	}
	for _, item := range Order(items) {
		real, err := t.Host.Path(item.Path)
		if err != nil {
			return nil, err
		}
		t.wrote(real)
		if item.After.Kind == disk.Absent {
			if err := t.remove(item, real); err != nil {
				return nil, fmt.Errorf("removing %s: %w", item.Path, err)
			}
			continue
		}
		if label := t.labels[item.Path]; label != "" {
			if err := unix.Lsetxattr(real, "security.selinux", []byte(label), 0); err != nil {
				return nil, fmt.Errorf("setting the SELinux label %s of %s: %w", label, item.Path, err)
			}
		}
		now, _, err := disk.Read(real)
		if err != nil {
			return nil, fmt.Errorf("looking at %s: %w", item.Path, err)
		}
		if !t.isDone(item, real, now) {
			differing = append(differing, fmt.Sprintf("%s (%s instead of %s)", item.Path, describe(now, item.Secret()), describe(item.After, item.Secret())))
		}
	}
	if err := t.sync(); err != nil {
		return nil, err
	}
	return differing, t.fillManifest()
}

// describe is a node without its bytes, which may be a secret.
func describe(n disk.Node, secret bool) string {
	switch n.Kind {
	case disk.Absent:
		return "nothing"
	case disk.HardLink, disk.Link:
		return fmt.Sprintf("%s to %s of %d:%d", n.Kind, n.Target, n.UID, n.GID)
	}
	text := fmt.Sprintf("%s %04o of %d:%d", n.Kind, n.Mode, n.UID, n.GID)
	if n.SHA256 != "" && !secret {
		text += fmt.Sprintf(" with the SHA-256 %.12s", n.SHA256)
	}
	return text
}

// conclude ends a part of a transaction: see engine.UntouchedError.
func (t *transaction) conclude(err error) (engine.Result, error) {
	t.Host.Forget()
	if err == nil || t.begun {
		return t.result, err
	}
	if cleanup := t.undoStaging(); cleanup != nil {
		return t.result, errors.Join(err, cleanup)
	}
	// This run changed nothing; an earlier one of the same change may have.
	if untouched, look := t.untouched(); !untouched {
		return t.result, errors.Join(err, look)
	}
	return t.result, &engine.UntouchedError{Err: err}
}

// Untouched tells whether every path of the plan is as it was when the change
// was pinned.
func (e *Engine) Untouched(job *engine.Job) bool {
	untouched, err := newTransaction(e, job).untouched()
	return untouched && err == nil
}
