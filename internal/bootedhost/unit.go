package bootedhost

import (
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

// Kill sends a signal to all processes of a unit.
func (h *Host) Kill(unit string, sig syscall.Signal) {
	h.tb.Helper()
	h.Run("systemctl", "kill", "--signal="+unix.SignalName(sig), "--", unit)
}
