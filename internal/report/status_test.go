package report_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
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

// TestNext: every state of a host has one line that says what to do.
func TestNext(t *testing.T) {
	now := time.Date(2027, 1, 9, 3, 0, 0, 0, time.UTC)
	task := func(name string, status state.Status) []state.Task {
		w := state.Task{Name: name, Status: status, Attempts: 1}
		if status == state.Wait {
			w.Reboot = &state.Waiting{Reason: "kernel"}
		}
		return []state.Task{w}
	}
	applied := &state.Applied{Generation: 1, Host: "web1", Commit: "c0ffee"}
	held := &state.Hold{Digest: "d", Commit: "c0ffee", Step: "health", Reason: "ill"}
	for _, c := range []struct {
		name, last   string
		state        state.State
		health, next string
	}{
		{"nothing", "", state.State{}, "pending", "nothing was applied yet: `reconf-pull run`"},
		{"cut off", "", state.State{Change: &state.Change{Tasks: task("configure", state.Doing)}}, "pending", "a change is under way or was cut off: the next run finishes it (`reconf-pull run`)"},
		{"failed", "", state.State{Change: &state.Change{Tasks: task("update", state.Failed)}}, "failing",
			"step update failed and is begun again (retry.backoff): push a commit that mends it, or mend the host and say reconf-pull retry"},
		{"waits", "", state.State{Change: &state.Change{Tasks: task("reboot", state.Wait)}}, "pending", "a reboot is waited for: the first run after it goes on with the change"},
		{"on its way back", "", state.State{Change: &state.Change{Tasks: task("health", state.Failed), Rollback: task("rollback", state.Doing)}, Held: held}, "failing",
			"push a commit that mends it, or mend the host and say reconf-pull retry"},
		{"not back", "", state.State{Change: &state.Change{Tasks: task("health", state.Failed), Rollback: task("rollback", state.Failed)}, Held: held}, "failing",
			"rolling back did not end: mend what the step names and say reconf-pull retry; another commit goes on, too"},
		{"held", "", state.State{Held: held, Lock: &state.FleetLock{Kind: "etcd", Kept: true}}, "failing", "push a commit that mends it, or mend the host and say reconf-pull retry"},
		{"back by hand", "", state.State{Held: &state.Hold{Step: "rollback"}}, "failing", "rolled back by hand: push another commit, or say reconf-pull retry"},
		{"OS work held", "", state.State{HeldOSWork: &state.OSWorkHold{Step: "update"}}, "failing", "OS work is held: mend the host and say reconf-pull retry, or boot another OS deployment"},
		{"a broken question", `"error": "needs_update.d/10: exit status 127"`, state.State{}, "failing", "see the error above; every run tries again"},
		{"well", "", state.State{Applied: applied}, "healthy", "nothing to do"},
		{"a reboot that was put off", "", state.State{Applied: applied, Reboot: &state.Reboot{Reason: "kernel"}}, "pending",
			"a reboot is pending: the next run inside the window does it, and so does any other reboot"},
		{"the lock is kept", "", state.State{Applied: applied, Lock: &state.FleetLock{Kind: "etcd", Kept: true}}, "pending",
			"the fleet lock is kept after a failure: the next change that succeeds gives it back, and so does reconf-pull lock release"},
		{"the lock was taken by hand", "", state.State{Applied: applied, Lock: &state.FleetLock{Kind: "etcd", Changing: true, ByHand: true}}, "pending",
			"the fleet lock was taken by hand: reconf-pull lock release gives it back"},
		{"the lock was not released", "", state.State{Applied: applied, Lock: &state.FleetLock{Kind: "etcd", Changing: true}}, "pending",
			"the fleet lock may still be held: the next run gives it back"},
		{"outside the window", `"waiting": "outside the window"`, state.State{Applied: applied}, "pending", "something waits, see above; the next runs look again"},
		{"drift", `"drift": ["/etc/motd"]`, state.State{Applied: applied}, "pending", "paths drifted: `reconf-pull plan` shows them"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := next(t, c.state, c.last, now); got != c.health+": "+c.next {
				t.Errorf("%s, want %s: %s", got, c.health, c.next)
			}
		})
	}
}

// next is the health and what to do next of a host with that state, and what
// the last run left.
func next(t *testing.T, st state.State, last string, now time.Time) string {
	t.Helper()
	dir := t.TempDir()
	dirs := state.Dirs{State: dir + "/state", Cache: dir + "/cache", Run: dir + "/run"}
	st.Schema = state.Schema
	if err := errors.Join(dirs.Create(), state.Save(dirs, &st)); err != nil {
		t.Fatal(err)
	}
	if st.Applied != nil {
		g := dirs.Generation(st.Applied.Generation)
		err := errors.Join(os.MkdirAll(g, 0o700), state.WriteManifest(g+"/manifest", &state.Manifest{}),
			update.WriteGeneration(g, &update.Generation{Change: "1-c0ffee"}), os.WriteFile(g+"/inputs.json", []byte("{}"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	if last != "" {
		if err := os.WriteFile(dirs.Last(), []byte("{"+last+"}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := report.ReadStatus(dirs, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	return string(s.Health) + ": " + s.Next
}
