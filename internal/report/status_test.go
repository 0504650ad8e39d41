package report_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// TestStatusOfWaiting: what a host waits for, or is kept from, is said with the
// one thing to do about it.
func TestStatusOfWaiting(t *testing.T) {
	now := time.Date(2027, 1, 9, 3, 0, 0, 0, time.UTC)
	w, err := window.Parse("Sun 02:00-05:00 UTC")
	if err != nil {
		t.Fatal(err)
	}
	waiting := &state.Waiting{Reason: "kernel", Asked: now.Add(-5 * time.Minute), Asks: 2}
	vetoed := &state.Waiting{Reason: "kernel", Veto: "backup (pid 7): at work", Since: now.Add(-time.Minute)}
	change := func(w *state.Waiting) *state.Change {
		return &state.Change{ID: "2-c0ffee00", Commit: "c0ffee", Reasons: []string{"the host config changed"}, Tasks: []state.Task{{Name: "reboot", Status: state.Wait, Reboot: w}}}
	}
	for _, c := range []struct {
		name  string
		state state.State
		want  []string
	}{
		{"a reboot that was asked for", state.State{Change: change(waiting)}, []string{
			"health:   pending", "step:     reboot: wait: kernel; asked for 5 min ago, for the 2. time", "next:     a reboot is waited for: the first run after it goes on with the change",
		}},
		{"a reboot that is held off", state.State{Change: change(vetoed)}, []string{
			"step:     reboot: wait: kernel; held off since 2027-01-09T02:59:00Z by backup (pid 7): at work",
		}},
		{"OS work", state.State{HeldOSWork: &state.OSWorkHold{Step: "update", Reason: "exit status 1", Time: now}}, []string{
			"health:   failing", "held:     OS work since 2027-01-09T03:00:00Z", "because:  update: exit status 1",
			"next:     OS work is held: mend the host and say reconf-pull retry, or boot another OS deployment",
		}},
		{"the fleet lock", state.State{Lock: &state.FleetLock{Kind: "etcd", Kept: true, Since: now}}, []string{"lock:     etcd, kept after a failure, since 2027-01-09T03:00:00Z"}},
		{"a window", state.State{}, []string{"window:   opens Sun 2027-01-10 02:00 UTC; Sun 02:00-05:00 UTC"}},
		{"a pending reboot", state.State{Reboot: &state.Reboot{Reason: "kernel", Since: now}}, []string{"reboot:   pending since 2027-01-09T03:00:00Z: kernel"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			dirs := state.Dirs{State: dir + "/state", Cache: dir + "/cache", Run: dir + "/run"}
			c.state.Schema = state.Schema
			if err := dirs.Create(); err != nil {
				t.Fatal(err)
			}
			if err := state.Save(dirs, &c.state); err != nil {
				t.Fatal(err)
			}
			s, err := report.ReadStatus(dirs, window.Windows{w}, now)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := s.Write(&out, now); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, want := range c.want {
				if strings.Contains("\n"+out.String(), "\n"+want+"\n") {
					got = append(got, want)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s\nthe status is\n%s", diff, out.String())
			}
		})
	}
}
