package native

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/secret"
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
			if err := t.stage(item); err != nil {
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
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil || !t.Host.Live() {
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

// keepAttributes copies the user's own extended attributes from the file that
// is replaced. File systems without them, and new files, have none.
func keepAttributes(from, to string) {
	size, err := unix.Llistxattr(from, nil)
	if err != nil || size == 0 {
		return
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(from, names); err != nil {
		return
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		if n, err := unix.Lgetxattr(from, name, value); err == nil {
			// An attribute that does not fit the file system is not worth a failed change.
			_ = unix.Lsetxattr(to, name, value[:n], 0)
		}
	}
}

// backupLate keeps what somebody put at the path after the change was pinned,
// before it is replaced.
func (t *transaction) backupLate(item *plan.Item, real string, now disk.Node) error {
	dir := filepath.Join(t.job.Dir, "late")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The whole path would make a name that is too long for some.
	sum := sha256.Sum256([]byte(item.Path))
	prefix, suffix := hex.EncodeToString(sum[:8])+"-", ""
	if item.Secret() {
		suffix = secret.Suffix
	}
	base := filepath.Base(item.Path)
	var name string
	for n := 0; ; n++ {
		suffix := "." + strconv.Itoa(n) + suffix
		name = filepath.Join(dir, prefix+base[:min(len(base), maxName-len(prefix)-len(suffix))]+suffix)
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	var err error
	if now.Kind == disk.Link {
		err = os.Symlink(now.Target, name)
	} else {
		err = t.copyFile(real, name)
	}
	if err != nil {
		return err
	}
	t.result.Notes = append(t.result.Notes, fmt.Sprintf("%s was changed while the update ran; that version is kept in %s", item.Path, name))
	return atomicfile.SyncDir(dir)
}

// copyFile makes a backup: encrypted, if its name says so.
func (t *transaction) copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if strings.HasSuffix(to, secret.Suffix) {
		err = t.Secrets.Encrypt(out, in)
	} else {
		_, err = io.Copy(out, in)
	}
	if err != nil {
		return err
	}
	return out.Sync()
}
