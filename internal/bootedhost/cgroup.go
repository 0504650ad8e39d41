package bootedhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Two hosts in one group would share their system.slice and stop each other's services.
const cgroupPrefix = "reconf-pull-test-"

// cgroupMount is where the unified hierarchy is mounted, which on older systems is
// beside the version 1 ones.
func cgroupMount() (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no unified cgroup hierarchy is mounted")
}

// cgroupPath names the group of a host, and removes what dead processes left.
func cgroupPath(machine string) (string, error) {
	mount, err := cgroupMount()
	if err != nil {
		return "", err
	}
	if err := removeStale(mount); err != nil {
		return "", err
	}
	return filepath.Join(mount, cgroupPrefix+machine), nil
}

// removeStale removes the groups of test processes that died without cleaning up.
func removeStale(mount string) error {
	paths, err := filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		parts := strings.Split(path, "-") // ... name, process, number
		pid, err := strconv.Atoi(parts[max(0, len(parts)-2)])
		if err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		if err := killCgroup(path); err != nil {
			return fmt.Errorf("removing what process %d left: %w", pid, err)
		}
	}
	return nil
}

// killCgroup kills all processes of the group and below, waits for their end and
// removes the group, and the one that nspawn made like it in systemd's version 1
// hierarchy. A killed group is of no further use: Linux 6.18 kills whatever is cloned
// into it later, too.
func killCgroup(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return ignoreGone(err)
	}
	dead := waitFor(30*time.Second, func() bool {
		b, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		return err != nil || strings.Contains(string(b), "populated 0")
	})
	if !dead {
		return fmt.Errorf("killing the processes in %s: some live on", path)
	}
	named := filepath.Join(filepath.Dir(filepath.Dir(path)), "systemd", filepath.Base(path))
	return errors.Join(removeGroups(path), removeGroups(named))
}

func removeGroups(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroups(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(path)
	// A group of version 1 is busy until the kernel has reaped its last process.
	for end := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = unix.Rmdir(path) {
		time.Sleep(10 * time.Millisecond)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
