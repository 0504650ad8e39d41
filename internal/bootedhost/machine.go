package bootedhost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PowerOn boots a host that is off and waits until it is up.
func (h *Host) PowerOn() {
	h.tb.Helper()
	h.Start()
	h.waitBoot("")
}

// Start boots a host that is off and does not wait.
func (h *Host) Start() {
	h.tb.Helper()
	if h.up() {
		h.tb.Fatalf("%s is on already", h.Name)
	}
	if err := h.disk.mount(); err != nil {
		h.tb.Fatal(err)
	}
	if err := h.start(); err != nil {
		h.tb.Fatalf("starting %s: %v", h.Name, err)
	}
}

func (h *Host) start() error {
	args := []string{
		"--pid", "--fork", "--kill-child", "--mount-proc", "--",
		// Kept in its control group, nspawn leaves a reboot to its caller and says so by
		// status 133.
		"sh", "-c", `while systemd-nspawn "$@"; s=$?; [ $s = 133 ]; do :; done; exit $s`, "sh",
		"--quiet", "--boot", "--directory=" + h.disk.dir,
		"--machine=" + h.machine, "--hostname=" + h.Name,
		"--register=no", "--keep-unit", "--settings=no", "--console=read-only",
		"--link-journal=no", "--timezone=off",
		// podman
		"--capability=all", "--system-call-filter=@keyring bpf",
		"--bind-ro=" + h.repo.bare + ":" + repoPath,
	}
	if h.network {
		args = append(args, "--network-bridge="+bridge, "--resolv-conf=off")
	} else {
		args = append(args, "--resolv-conf=copy-host")
	}
	console, err := os.OpenFile(h.console, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	if err := os.Mkdir(h.cgroup, 0o755); err != nil {
		return fmt.Errorf("making a control group: %w", err)
	}
	cgroup, err := os.Open(h.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()

	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
		// The death of the namespace's thread, hence of this process, is the death of
		// unshare, of its PID namespace and of the host.
		Pdeathsig: syscall.SIGKILL,
	}
	if err := h.ns.do(cmd.Start); err != nil {
		return err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		// The status says nothing: most hosts are killed.
		_ = cmd.Wait()
		close(p.exited)
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nspawn, h.leader = p, 0
	return nil
}

// waitBoot waits until a boot with another id than the given one has finished.
func (h *Host) waitBoot(before string) {
	h.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	answer := "nothing yet"
	for ctx.Err() == nil {
		select {
		case <-h.nspawn.exited:
			h.tb.Fatalf("%s went off instead of booting", h.Name)
		case <-time.After(10 * time.Millisecond):
		}
		if before != "" {
			if id, err := h.bootID(); err != nil || id == before {
				continue
			}
		}
		cmd, err := h.command(ctx, "systemctl", "is-system-running", "--wait")
		if err != nil {
			answer = err.Error()
			continue
		}
		out, _ := cmd.CombinedOutput() // any state but running has a status
		answer = strings.TrimSpace(string(out))
		if answer == "running" || answer == "degraded" {
			return
		}
	}
	h.tb.Fatalf("%s is not up after %v: %s", h.Name, bootTimeout, answer)
}

// up says whether the host has power; it may be booting.
func (h *Host) up() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nspawn == nil {
		return false
	}
	select {
	case <-h.nspawn.exited:
		return false
	default:
		return true
	}
}

// BootID is the host's boot id. nspawn mounts one of its own over the kernel's, so it
// changes with every boot as on a real machine.
func (h *Host) BootID() string {
	h.tb.Helper()
	id, err := h.bootID()
	if err != nil {
		h.tb.Fatal(err)
	}
	return id
}

func (h *Host) bootID() (string, error) {
	b, err := h.read("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Reboot reboots the host in good order and waits until it is up again.
func (h *Host) Reboot() {
	h.tb.Helper()
	before := h.BootID()
	// The answer may be lost with the bus.
	_, _ = h.Try("systemctl", "reboot")
	h.waitBoot(before)
}

// WaitReboot waits until the host, which something else reboots, is up with another
// boot id than the given one.
func (h *Host) WaitReboot(before string) {
	h.tb.Helper()
	h.waitBoot(before)
}

// Shutdown powers the host off in good order.
func (h *Host) Shutdown() {
	h.tb.Helper()
	_, _ = h.Try("systemctl", "poweroff")
	select {
	case <-h.nspawn.exited:
	case <-time.After(bootTimeout):
		h.tb.Fatalf("%s does not power off", h.Name)
	}
	if err := errors.Join(h.kill(), h.disk.unmount()); err != nil {
		h.tb.Fatal(err)
	}
}

// PowerOff cuts the power: what was not synced to the disk is lost, and the host stays
// off until PowerOn.
func (h *Host) PowerOff() {
	h.tb.Helper()
	if err := h.disk.cutPower(); err != nil {
		h.tb.Fatalf("cutting the power of %s: %v", h.Name, err)
	}
	if err := errors.Join(h.kill(), h.disk.unmount()); err != nil {
		h.tb.Fatal(err)
	}
}

// CommitNames has the host's file system commit its journal, as it does when any
// process syncs a file: what was renamed, made and removed until then is on the disk,
// what was written is not. It works at any instant, also in the middle of a boot.
func (h *Host) CommitNames() {
	h.tb.Helper()
	if err := h.disk.commit(); err != nil {
		h.tb.Fatalf("committing the journal of %s: %v", h.Name, err)
	}
}

// PowerCut cuts the power, gives it back and waits until the host is up.
func (h *Host) PowerCut() {
	h.tb.Helper()
	h.PowerOff()
	h.PowerOn()
}

// kill ends every process of the host at once.
func (h *Host) kill() error {
	if err := killCgroup(h.cgroup); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nspawn != nil {
		<-h.nspawn.exited
	}
	h.nspawn, h.leader = nil, 0
	return nil
}

var errNoLeader = errors.New("the host has no PID 1")

// findLeader returns the host's PID 1, another one after each reboot.
func (h *Host) findLeader() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leader != 0 && isLeader(h.leader) {
		return h.leader, nil
	}
	h.leader = 0
	err := filepath.WalkDir(h.cgroup, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "cgroup.procs" {
			return ignoreGone(err)
		}
		pids, err := os.ReadFile(path)
		if err != nil {
			return ignoreGone(err)
		}
		for line := range strings.Lines(string(pids)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && isLeader(pid) {
				h.leader = pid
				return fs.SkipAll
			}
		}
		return nil
	})
	if err == nil && h.leader == 0 {
		err = errNoLeader
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", h.Name, err)
	}
	return h.leader, nil
}

// isLeader says whether the process is PID 1 of a namespace two levels down: unshare
// makes the first, nspawn the second, and a container of the host would be the third.
func isLeader(pid int) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if ids, ok := strings.CutPrefix(s.Text(), "NSpid:"); ok {
			levels := strings.Fields(ids)
			return len(levels) == 3 && levels[2] == "1"
		}
	}
	return false
}

// ignoreGone drops the errors of a group or process that went away while it was read.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
