// Package bootedhost boots real systemd hosts in systemd-nspawn for tests, with a
// disk of their own whose power can be cut. Its one rule: nothing that it starts,
// mounts or attaches outlives the test process, however that process ends.
//
// A host is a copy of a cached Debian image, loop-mounted as plain ext4 in a mount
// namespace that only this host sees, booted in a PID namespace and a control group
// of its own. The network is the machine's, or one where only the test is.
package bootedhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

// RepoURL is where a host finds its fleet repo.
const RepoURL = "file://" + repoPath

const repoPath = "/srv/fleet.git"

// bootTimeout is what a boot on an overloaded machine may take; it is about one
// second otherwise.
const bootTimeout = 2 * time.Minute

// Options describes one host.
type Options struct {
	OS   OS
	Name string // the host name; "host" if empty

	// Files are put onto the disk before the first boot: host path -> local file,
	// whose permission bits are kept.
	Files map[string]string

	// Repo is the fleet repo at RepoURL; a new one if nil. Hosts may share one.
	Repo *Repo

	// PrivateNetwork gives the host an interface and an address of its own instead of
	// this machine's network. Nobody is there but the test, at Gateway: see Listen.
	PrivateNetwork bool
}

// Host is one booted host. Its methods fail the test instead of returning errors;
// call them from the test's goroutine.
type Host struct {
	OS   OS
	Name string

	tb      testing.TB
	machine string // unique on this machine
	repo    *Repo
	ns      *namespace
	disk    *disk
	network bool   // of its own
	cgroup  string // in the unified hierarchy; there while the host is on
	console string // what the boots printed

	mu     sync.Mutex
	nspawn *process // nil while the host is off
	leader int      // PID 1 of the host as seen from here; 0: look for it
}

// process is a started command that somebody waits for.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

var hosts atomic.Int64

// Require skips the test if this machine cannot boot hosts. With CI in the
// environment it fails instead: there a missing layer must not go unseen.
func Require(tb testing.TB) {
	tb.Helper()
	missing := lacks()
	if len(missing) == 0 {
		return
	}
	lacking.Skip(tb, "no host is booted here: %s", strings.Join(missing, "; "))
}

func lacks() []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "not root")
	}
	for _, tool := range []string{"systemd-nspawn", "debootstrap", "mkfs.ext4", "unshare", "nsenter", "git", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, "no "+tool)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		missing = append(missing, "no loop devices")
	}
	if _, err := cgroupMount(); err != nil {
		missing = append(missing, err.Error())
	}
	return missing
}

// Boot makes a host, boots it and waits until it is up. The host is destroyed when
// the test ends; if the test failed its last journal lines are logged first.
func Boot(tb testing.TB, o Options) *Host {
	tb.Helper()
	h := Prepare(tb, o)
	h.PowerOn()
	return h
}

// Prepare is Boot without the boot: the host is off, its disk can be written.
func Prepare(tb testing.TB, o Options) *Host {
	tb.Helper()
	Require(tb)
	if o.Name == "" {
		o.Name = "host"
	}
	if o.Repo == nil {
		o.Repo = NewRepo(tb)
	}
	scratch := tb.TempDir()
	h := &Host{
		OS:      o.OS,
		Name:    o.Name,
		tb:      tb,
		machine: fmt.Sprintf("%s-%d-%d", o.Name, os.Getpid(), hosts.Add(1)),
		repo:    o.Repo,
		network: o.PrivateNetwork,
		console: filepath.Join(scratch, "console"),
	}
	template, err := cachedImage(tb, o.OS)
	if err != nil {
		tb.Fatalf("making the %s image: %v", o.OS.suite, err)
	}
	h.cgroup, err = cgroupPath(h.machine)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(h.destroy)
	h.ns, err = newNamespace(o.PrivateNetwork)
	if err != nil {
		tb.Fatal(err)
	}
	h.disk, err = newDisk(h.ns, template, filepath.Join(scratch, "root"))
	if err != nil {
		tb.Fatalf("making the disk of %s: %v", h.Name, err)
	}

	// An empty machine-id would make every boot a first boot, which presets all units.
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		tb.Fatal(err)
	}
	h.Write("/etc/machine-id", []byte(hex.EncodeToString(id)+"\n"), 0o444)
	h.Write("/etc/hostname", []byte(h.Name+"\n"), 0o644)
	h.Write("/etc/hosts", []byte("127.0.0.1 localhost\n127.0.1.1 "+h.Name+"\n"), 0o644)
	if o.PrivateNetwork {
		h.connect()
	}
	for path, local := range o.Files {
		h.copyFrom(local, path)
	}
	return h
}

// destroy must work on a host that is half made.
func (h *Host) destroy() {
	if h.tb.Failed() {
		h.dump()
	}
	if err := h.kill(); err != nil {
		h.tb.Errorf("ending %s: %v", h.Name, err)
	}
	if h.disk != nil {
		if err := h.disk.close(); err != nil {
			h.tb.Errorf("detaching the disk of %s: %v", h.Name, err)
		}
	}
	if h.ns != nil {
		h.ns.close()
	}
}

// dump logs what a person needs to see why a test with this host failed.
func (h *Host) dump() {
	if h.up() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if cmd, err := h.command(ctx, "journalctl", "--boot", "--no-pager", "--lines=100"); err == nil {
			if out, err := cmd.CombinedOutput(); err == nil {
				h.tb.Logf("the journal of %s ends with:\n%s", h.Name, out)
				return
			}
		}
	}
	if out, err := os.ReadFile(h.console); err == nil {
		h.tb.Logf("the console of %s ends with:\n%s", h.Name, lastLines(out, 60))
	}
}

func lastLines(b []byte, n int) string {
	lines := bytes.Split(bytes.TrimRight(b, "\r\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// Repo is the fleet repo that this host finds at RepoURL.
func (h *Host) Repo() *Repo { return h.repo }

// Command is a command on the host, not started, with a clean environment.
func (h *Host) Command(args ...string) *exec.Cmd {
	h.tb.Helper()
	cmd, err := h.command(context.Background(), args...)
	if err != nil {
		h.tb.Fatal(err)
	}
	return cmd
}

func (h *Host) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := h.findLeader()
	if err != nil {
		return nil, err
	}
	// A shutdown stops all processes before it ends them. An nsenter that forks stops
	// itself when its child is stopped, is never continued, and holds the shutdown up.
	argv := append([]string{"--target", fmt.Sprint(pid), "--all", "--no-fork", "--", "sh", "-c", `"$@"; exit $?`, "sh"}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=dumb",
		"SYSTEMD_PAGER=", "SYSTEMD_COLORS=0",
	}
	return cmd, nil
}

// Run runs a command on the host and returns its standard output without the last
// newlines. A status other than 0 ends the test.
func (h *Host) Run(args ...string) string {
	h.tb.Helper()
	cmd := h.Command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.tb.Fatalf("%s: %s: %v\n%s%s", h.Name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return strings.TrimRight(string(out), "\n")
}

// Try runs a command on the host and returns what it printed, standard error
// included, and its exit status: -1 if it was killed or the host is not up.
func (h *Host) Try(args ...string) (string, int) {
	h.tb.Helper()
	cmd, err := h.command(context.Background(), args...)
	if err != nil {
		return err.Error(), -1
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return string(out), 0
	case errors.As(err, &exit):
		return string(out), exit.ExitCode()
	}
	h.tb.Fatalf("%s: starting %s: %v", h.Name, strings.Join(args, " "), err)
	return "", -1
}

// WaitFor ends the test if cond does not come true in time; what says what was
// waited for.
func (h *Host) WaitFor(timeout time.Duration, cond func() bool, what string) {
	h.tb.Helper()
	if !waitFor(timeout, cond) {
		h.tb.Fatalf("%s: waited %v in vain for %s", h.Name, timeout, what)
	}
}

func waitFor(timeout time.Duration, cond func() bool) bool {
	for end := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
