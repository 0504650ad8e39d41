package lock_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock"
)

// The id is what systemd makes of a machine-id and our application id.
func TestID(t *testing.T) {
	id, err := lock.ID("0123456789abcdef0123456789abcdef")
	if want := "3b749c309f40483db2492473f6a1732f"; id != want || err != nil {
		t.Errorf("%s, %v, want %s", id, err, want)
	}
	// The same of this machine, where it has one and systemd is there to be asked.
	out, err := exec.Command("systemd-id128", "machine-id", "--app-specific=4f9e81f020ea41419889f76fc548ad98").Output()
	machine, unknown := exec.Command("systemd-id128", "machine-id").Output()
	if err == nil && unknown == nil {
		if id, err := lock.ID(strings.TrimSpace(string(machine))); id != strings.TrimSpace(string(out)) || err != nil {
			t.Errorf("this machine is %s (%v), systemd says %s", id, err, out)
		}
	}
	for _, wrong := range []string{"", "uninitialized", "0123", "0123456789abcdef0123456789abcdeg"} {
		if id, err := lock.ID(wrong); err == nil {
			t.Errorf("%q gives %s", wrong, id)
		}
	}
}

func TestErrors(t *testing.T) {
	since := time.Date(2027, 1, 9, 3, 0, 0, 0, time.UTC)
	for want, err := range map[string]error{
		"the fleet lock is busy (etcd): held by web1 since 2027-01-09T03:00:00Z (slot 1)": &lock.BusyError{Kind: "etcd", Holder: lock.Holder{Host: "web1", Since: since, Note: "slot 1"}},
		"the fleet lock is busy (fleetlock): lock_held":                                   &lock.BusyError{Kind: "fleetlock", Reason: "lock_held"},
		"the fleet lock (etcd) cannot be asked for: no route":                             &lock.UnsureError{Kind: "etcd", Err: errors.New("no route")},
	} {
		if err.Error() != want || !errors.Is(err, lock.ErrBusy) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
