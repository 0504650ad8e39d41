package bootedhost

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// UnitState is what the host's systemd knows of a unit.
type UnitState struct {
	LoadState     string
	ActiveState   string
	SubState      string
	UnitFileState string
	Result        string
	InvocationID  string // another one after each start
	MainPID       int    // as the host sees it
}

// UnitState asks the host's systemd about a unit.
func (h *Host) UnitState(unit string) UnitState {
	h.tb.Helper()
	out := h.Run("systemctl", "show",
		"--property=LoadState,ActiveState,SubState,UnitFileState,Result,InvocationID,MainPID", "--", unit)
	var s UnitState
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "LoadState":
			s.LoadState = value
		case "ActiveState":
			s.ActiveState = value
		case "SubState":
			s.SubState = value
		case "UnitFileState":
			s.UnitFileState = value
		case "Result":
			s.Result = value
		case "InvocationID":
			s.InvocationID = value
		case "MainPID":
			pid, err := strconv.Atoi(value)
			if err != nil {
				h.tb.Fatalf("%s: main process of %s: %v", h.Name, unit, err)
			}
			s.MainPID = pid
		}
	}
	return s
}

// Journal returns the messages of a unit, and systemd's about it, since this boot. It
// makes journald write out what it has, which syncs the host's disk.
func (h *Host) Journal(unit string) string {
	h.tb.Helper()
	h.Run("journalctl", "--sync")
	return h.Run("journalctl", "--boot", "--no-pager", "--quiet", "--output=cat", "--unit="+unit)
}

// KillNow kills the processes of a unit from outside, because a command on the host
// would come late, and says how many it killed: the main process alone, as the kernel
// does when memory is short, or all.
func (h *Host) KillNow(unit string, main bool) (killed int) {
	h.tb.Helper()
	err := filepath.WalkDir(h.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "cgroup.procs" || filepath.Base(filepath.Dir(path)) != unit {
			return ignoreGone(err)
		}
		pids, err := os.ReadFile(path)
		if err != nil {
			return ignoreGone(err)
		}
		var all []int
		for field := range strings.FieldsSeq(string(pids)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				all = append(all, pid)
			}
		}
		slices.Sort(all)
		if main && len(all) > 0 {
			all = all[:1] // the one that started the others
		}
		for _, pid := range all {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			killed++
		}
		return fs.SkipAll
	})
	if err != nil {
		h.tb.Fatalf("%s: killing %s: %v", h.Name, unit, err)
	}
	return killed
}

// Kill sends a signal to all processes of a unit.
func (h *Host) Kill(unit string, sig syscall.Signal) {
	h.tb.Helper()
	h.Run("systemctl", "kill", "--signal="+unix.SignalName(sig), "--", unit)
}
