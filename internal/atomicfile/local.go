package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// SyncLocal makes everything durable that anybody wrote to a file system of this
// machine. Unlike sync(2) it waits for no file server and for no other container. A
// file system that cannot be synced is in the error; the others are.
func SyncLocal() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing file systems: %w", err)
	}
	kinds, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("listing file systems: %w", err)
	}
	var failed []error
	for _, dir := range localMounts(string(mounts), string(kinds)) {
		// Some are below a mount or a directory that hides them.
		if err := SyncFS(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// localMounts are where the file systems of proc_pid_mountinfo(5) are mounted that can
// be written and lie on a block device, once each.
func localMounts(mounts, kinds string) []string {
	local := map[string]bool{"zfs": true}
	for line := range strings.Lines(kinds) {
		if name := strings.TrimSpace(line); !strings.HasPrefix(name, "nodev") {
			local[name] = true
		}
	}
	var dirs []string
	seen := map[string]bool{}
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(super) < 3 {
			continue
		}
		device, dir := mount[2], mount[4]
		readOnly := super[2] == "ro" || strings.HasPrefix(super[2], "ro,")
		if !local[super[0]] || readOnly || seen[device] {
			continue
		}
		seen[device] = true
		dirs = append(dirs, unescape.Replace(dir))
	}
	return dirs
}

// unescape reads a path as the kernel writes it there.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
