package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stuck is a file where enabling web.service of fewLater needs a directory.
const stuck = "root/etc/systemd/system/graphical.target.wants"

// ran is a run of any command, with its exit status.
func (tr *trial) ran(argv []string) (status int, said string) {
	tr.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tr.t.Errorf("%v: %v", argv, err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func (tr *trial) rollback(dir string) []string {
	config := filepath.Join(tr.scratch, "config.toml")
	return []string{tr.binary, "rollback", "--root", filepath.Join(dir, "root"), "--state-dir", dir, "--config", config}
}

// held tells what the state says about a change and a hold.
func (tr *trial) held(dir string) (change, held bool) {
	tr.t.Helper()
	var st struct{ Change, Held any }
	data, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		tr.t.Error(err)
	}
	return st.Change != nil, st.Held != nil
}

// onlyRoot is the host without the agent's state.
func onlyRoot(end map[string]string) map[string]string {
	root := map[string]string{}
	for name, line := range end {
		if strings.HasPrefix(name, "root/") {
			root[name] = line
		}
	}
	return root
}

// TestCrashWhileRollingBack ends the program before its k-th durable operation,
// for every k of a change that fails and is rolled back, and of a rollback by
// hand, once and twice; runs that go on end in the same tree and hold the same digest.
func TestCrashWhileRollingBack(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	applied := tr.place()
	tr.run(applied)
	good := tr.copyOf(applied)
	if err := os.WriteFile(filepath.Join(applied, stuck), []byte("in the way"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr.push(fewLater)
	tr.crashAndGoOn("a change that fails", applied, tr.argv, tr.argv, onlyRoot(tr.end(applied)))

	before := onlyRoot(tr.end(good))
	tr.run(good)
	config := fmt.Sprintf("[source]\nurl = '%s'\n[host]\nname = 'web1'\n", tr.repo)
	if err := os.WriteFile(filepath.Join(tr.scratch, "config.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	tr.crashAndGoOn("rollback", good, tr.rollback, tr.argv, before)
}

// crashAndGoOn kills a command at each of its operations, once and twice. The next
// run goes on and says what is held; only a command that nothing was saved of is
// given again.
func (tr *trial) crashAndGoOn(what, from string, command, run func(string) []string, root map[string]string) {
	t := tr.t
	t.Helper()
	whole := tr.copyOf(from)
	ops, status := traced(t, command(whole), func(int, string) syscall.Signal { return 0 })
	if !status.Exited() {
		t.Fatalf("%s: the traced run: %v", what, status)
	}
	if diff := cmp.Diff(root, onlyRoot(tr.end(whole))); diff != "" {
		t.Fatalf("%s: not everything is back (-before +after):\n%s", what, diff)
	}
	code, said := tr.ran(run(whole))
	if change, held := tr.held(whole); code != 1 || change || !held || !strings.Contains(said, "is held since") {
		t.Fatalf("%s: the run after it ends with %d, change %v, held %v:\n%s", what, code, change, held, said)
	}
	want := tr.end(whole)
	next := func(dir string) []string {
		if change, held := tr.held(dir); !change && !held { // nothing of it was saved
			return command(dir)
		}
		return run(dir)
	}
	counted(t, "%s", tr.crashTwice(course{
		what: what, from: from, ops: ops, next: next,
		settle: func(dir, point string) {
			code, said := tr.ran(next(dir))
			if change, held := tr.held(dir); change || !held || code == 0 { // it was only now that it began
				code, said = tr.ran(run(dir))
			}
			if code != 1 {
				t.Errorf("%s: the next run ends with %d:\n%s", point, code, said)
			}
			if diff := cmp.Diff(want, tr.end(dir)); diff != "" {
				t.Errorf("%s: ends elsewhere (-uninterrupted +crashed):\n%s\nthe next run said:\n%s", point, diff, said)
			}
		},
	}))
}

// TestStepThatKillsTheRun: a change whose every try dies in configure is rolled
// back after three starts, and the host takes the next good push.
func TestStepThatKillsTheRun(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	dir := tr.place()
	tr.run(dir)
	before := onlyRoot(tr.end(dir))
	tr.push(fewLater)
	for try := 1; try <= 3; try++ {
		_, status := traced(t, tr.argv(dir), func(_ int, _ string) syscall.Signal {
			if name, attempts := tr.doing(dir); name == "configure" && attempts == try {
				return syscall.SIGKILL
			}
			return 0
		})
		if !status.Signaled() {
			t.Fatalf("start %d was not killed in configure: %v", try, status)
		}
	}
	code, said := tr.ran(tr.argv(dir))
	if code != 1 || !strings.Contains(said, "begun 3 times, and the machine or the run died every time") {
		t.Errorf("the fourth start ends with %d:\n%s", code, said)
	}
	if diff := cmp.Diff(before, onlyRoot(tr.end(dir))); diff != "" {
		t.Errorf("not everything is back (-before +after):\n%s", diff)
	}
	if change, held := tr.held(dir); change || !held {
		t.Errorf("change %v, held %v", change, held)
	}
	if code, said := tr.ran(tr.argv(dir)); code != 1 || !strings.Contains(said, "is held since") {
		t.Errorf("the run after it ends with %d:\n%s", code, said)
	}
	tr.push(strings.Replace(fewLater, "one more", "mended", 1))
	tr.run(dir)
	if data, err := os.ReadFile(filepath.Join(dir, "root/etc/app/one")); err != nil || string(data) != "mended" {
		t.Errorf("the good push did not arrive: %q, %v", data, err)
	}
	if change, held := tr.held(dir); change || held {
		t.Errorf("after the good push: change %v, held %v", change, held)
	}
}

// doing is the step that the state file says is under way, and its starts.
func (tr *trial) doing(dir string) (name string, attempts int) {
	var st struct {
		Change struct {
			Tasks []struct {
				Name, Status string
				Attempts     int
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		tr.t.Error(err)
	}
	for _, task := range st.Change.Tasks {
		if task.Status == "doing" {
			return task.Name, task.Attempts
		}
	}
	return "", 0
}

// TestBackToTheAppliedCommit: what a change that was kept half way wrote goes
// when the fleet repo goes back.
func TestBackToTheAppliedCommit(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	dir := tr.place()
	tr.run(dir)
	if err := os.WriteFile(filepath.Join(dir, stuck), []byte("in the way"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := onlyRoot(tr.end(dir))
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("[apply]\non_failure = 'keep'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr.push(fewLater)
	argv := tr.argv(dir)
	for i := range argv {
		if argv[i] == os.DevNull {
			argv[i] = config
		}
	}
	if code, said := tr.ran(argv); code != 1 || strings.Contains(said, "rolled back") {
		t.Fatalf("the change ends with %d:\n%s", code, said)
	}
	tr.push(few)
	if code, said := tr.ran(argv); code != 0 {
		t.Fatalf("going back ends with %d:\n%s", code, said)
	}
	if diff := cmp.Diff(want, onlyRoot(tr.end(dir))); diff != "" {
		t.Errorf("the host is half of each (-applied +now):\n%s", diff)
	}
}
