package native

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// sysusers writes the plan's sysusers.d files before everything else, runs
// systemd-sysusers on them and turns the owners that they declare into ids.
func (t *transaction) sysusers(ctx context.Context) error {
	if len(t.job.Plan.Sysusers) == 0 {
		return nil
	}
	argv := []string{"systemd-sysusers"}
	if !t.Host.Live() {
		argv = append(argv, "--root="+t.Host.Root)
	}
	for _, item := range t.work() {
		for _, file := range t.job.Plan.Sysusers {
			if item.Path != file && (item.After.Kind != disk.Directory || !strings.HasPrefix(file, item.Path+"/")) {
				continue
			}
			if err := t.stage(ctx, item); err != nil && !t.leaves(item, err) {
				return fmt.Errorf("preparing %s: %w", item.Path, err)
			}
			if item.Path == file {
				if err := t.sync(); err != nil {
					return err
				}
				if err := t.commit(item); err != nil {
					return fmt.Errorf("writing %s: %w", item.Path, err)
				}
			}
		}
	}
	for _, file := range t.job.Plan.Sysusers {
		real, err := t.Host.Path(file)
		if err != nil {
			return err
		}
		argv = append(argv, real)
	}
	if _, err := t.Runner.Run(ctx, argv...); err != nil {
		return err
	}
	return t.resolve(ctx)
}

func (t *transaction) resolve(ctx context.Context) error {
	for _, item := range t.work() {
		if item.After.User != "" {
			id, err := t.Accounts.User(ctx, item.After.User)
			if err != nil {
				return fmt.Errorf("user %s of %s after systemd-sysusers: %w", item.After.User, item.Path, err)
			}
			item.After.UID, item.After.User = id, ""
		}
		if item.After.Group != "" {
			id, err := t.Accounts.Group(ctx, item.After.Group)
			if err != nil {
				return fmt.Errorf("group %s of %s after systemd-sysusers: %w", item.After.Group, item.Path, err)
			}
			item.After.GID, item.After.Group = id, ""
		}
	}
	return nil
}

// readLabels asks once for the SELinux contexts of all final paths.
func (t *transaction) readLabels(ctx context.Context) error {
	if !t.Host.SELinux() {
		return nil
	}
	argv := []string{"matchpathcon"}
	for _, item := range t.work() {
		if item.After.Kind != disk.Absent && item.After.Kind != disk.HardLink {
			argv = append(argv, item.Path)
		}
	}
	if len(argv) == 1 {
		return nil
	}
	out, err := t.Runner.Run(ctx, argv...)
	if err != nil {
		return fmt.Errorf("asking for SELinux labels: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if p, label, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && label != "<<none>>" {
			t.labels[p] = label
		}
	}
	return nil
}

// backupLate keeps what somebody put at the path after the change was pinned,
// before it is replaced.
func (t *transaction) backupLate(ctx context.Context, item *plan.Item, now disk.Node) error {
	var in io.Reader
	if now.Kind == disk.File {
		f, err := t.Host.Files.Open(ctx, item.Path, max(fsat.Most, item.Before.Size, item.After.Size))
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	now.Secret = item.Secret()
	name, err := state.KeepLate(t.job.Dir, item.Path, now, in, t.Secrets)
	if err != nil {
		return err
	}
	t.result.Notes = append(t.result.Notes, fmt.Sprintf("%s was changed while the update ran; that version is kept in %s", item.Path, name))
	return nil
}
