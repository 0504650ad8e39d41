// Package host is the machine, or the root directory that stands for it.
//
// Its one rule: whatever it reads of the managed system it reads through Files, so
// that --root moves all of it, and no link leads out of the root.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// Host is a machine below Root. The zero Root and "/" are the running machine.
type Host struct {
	Root string
	Now  func() time.Time
	// Files is how managed paths are looked at and changed.
	Files *fsat.FS
}

// New returns the host below root.
func New(root string) *Host {
	if root == "" {
		root = "/"
	}
	root = filepath.Clean(root)
	return &Host{Root: root, Now: time.Now, Files: fsat.New(root)}
}

// Live tells whether this is the running machine: only there are systemd,
// hooks and the reboot.
func (h *Host) Live() bool { return h.Root == "/" }

// Path is where a path of the agent's own, its configuration or its state, lies on this
// machine. Symlinks in its parents are followed as if Root were the root directory; the
// last element is not. Managed paths are named to nobody: see Files.
func (h *Host) Path(path string) (string, error) {
	path = filepath.Clean("/" + path)
	if h.Live() || path == "/" {
		return filepath.Join(h.Root, path), nil
	}
	dir, name := filepath.Split(path)
	parent, err := securejoin.SecureJoin(h.Root, dir)
	if err != nil {
		return "", fmt.Errorf("resolving %s below %s: %w", dir, h.Root, err)
	}
	return filepath.Join(parent, name), nil
}

// most is the largest file of the system that is read whole: accounts, units.
const most = 16 << 20

// ReadFile reads a file of the host, also through a link.
func (h *Host) ReadFile(path string) ([]byte, error) { return h.Files.ReadFile(path, most) }

// Exists tells whether anything, also a dangling link, stands at the path.
func (h *Host) Exists(path string) bool { return h.Files.Exists(path) }

// Hostname is the static hostname: /etc/hostname, or the kernel's on a running
// machine that has no such file.
func (h *Host) Hostname() (string, error) {
	data, err := h.ReadFile("/etc/hostname")
	if name := firstLine(data); err == nil && name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading the static hostname: %w", err)
	}
	if h.Live() {
		return os.Hostname()
	}
	return "", nil
}

// firstLine is the first line that is neither empty nor a comment (hostname(5)).
func firstLine(data []byte) string {
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

// SELinux tells whether files of the running machine have SELinux contexts.
func (h *Host) SELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil && h.Live()
}

// MachineID is machine-id(5), "" where there is none.
func (h *Host) MachineID() string {
	data, err := h.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return firstLine(data)
}

// BootID tells this boot from every other one.
func (h *Host) BootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}

// Deployment names the operating system image that is booted: the ostree
// checksum, else IMAGE_VERSION or BUILD_ID of os-release(5), else "".
func (h *Host) Deployment() string {
	if h.Live() {
		if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil {
			for _, arg := range strings.Fields(string(cmdline)) {
				// ostree=/ostree/boot.1/fedora-coreos/<checksum>/0
				if value, ok := strings.CutPrefix(arg, "ostree="); ok {
					return "ostree:" + filepath.Base(filepath.Dir(value))
				}
			}
		}
	}
	release, err := h.ReadFile("/etc/os-release")
	if err != nil {
		if release, err = h.ReadFile("/usr/lib/os-release"); err != nil {
			return ""
		}
	}
	for _, key := range []string{"IMAGE_VERSION", "BUILD_ID"} {
		for line := range strings.Lines(string(release)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
				return key + ":" + strings.Trim(value, `"'`)
			}
		}
	}
	return ""
}
