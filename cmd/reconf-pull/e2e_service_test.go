package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// keyboard is a terminal of a host, with a command that was typed on it.
type keyboard struct {
	m      *machine
	cmd    *exec.Cmd
	keys   io.WriteCloser
	screen *screen
}

type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(s.b.String(), "\r\n", "\n")
}

// types starts a command on a terminal of its own.
func (m *machine) types(command string) *keyboard {
	m.t.Helper()
	k := &keyboard{m: m, screen: &screen{}}
	k.cmd = m.Command("script", "--quiet", "--return", "--command", command, "/dev/null")
	k.cmd.Stdout, k.cmd.Stderr = k.screen, k.screen
	k.cmd.WaitDelay = time.Second // for what a killed terminal leaves
	var err error
	if k.keys, err = k.cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	return k
}

func (k *keyboard) shows(word string) {
	k.m.t.Helper()
	k.m.WaitFor(time.Minute, func() bool { return strings.Contains(k.screen.String(), word) }, word)
}

// ends waits for the command and returns its exit status and what was shown.
func (k *keyboard) ends() (int, string) {
	k.m.t.Helper()
	limit := time.AfterFunc(time.Minute, func() { _ = k.cmd.Process.Kill() })
	err := k.cmd.Wait()
	if !limit.Stop() {
		k.m.t.Fatalf("it does not end, and shows\n%s", k.screen)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		k.m.t.Fatal(err)
	}
	return k.cmd.ProcessState.ExitCode(), k.screen.String()
}

// typed is types and ends.
func (m *machine) typed(command string) (int, string) {
	m.t.Helper()
	return m.types(command).ends()
}

// journaled lets the service write to the journal, as it does everywhere else.
func (m *machine) journaled(more ...string) {
	m.t.Helper()
	m.write("/etc/systemd/system/reconf-pull.service.d/test.conf", append([]string{"[Unit]", "StartLimitIntervalSec=0", "[Service]"}, more...)...)
	m.Run("systemctl", "daemon-reload")
}

const startedLine = "reconf-pull: started reconf-pull.service: ctrl-C ends only the following\n"

func TestRunTypedOnATerminal(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.journaled()
	m.appPush("one")
	began := func() string { return m.property(agent, "ExecMainStartTimestampMonotonic") }

	// Exactly what it says, and nothing of earlier runs.
	status, shown := m.typed("reconf-pull run")
	if status != 0 || !strings.HasPrefix(shown, startedLine) || strings.Count(shown, "web1 is now at ") != 1 || !strings.Contains(shown, "+ /etc/app.conf") {
		t.Errorf("the first run ends with %d and shows\n%s", status, shown)
	}
	for n := range 10 {
		before := began()
		status, shown = m.typed("reconf-pull run")
		rest, ok := strings.CutPrefix(shown, startedLine)
		if status != 0 || !ok || strings.Count(rest, "\n") != 1 || !strings.HasPrefix(rest, "web1 is up to date at ") || before == began() {
			t.Errorf("run %d ends with %d and shows\n%s", n, status, shown)
		}
	}
	// So also without the timer, when nothing keeps the unit loaded.
	m.Run("systemctl", "disable", "--now", "--quiet", "reconf-pull.timer")
	m.Repo().Remove("hosts/web1.bu")
	m.Repo().Push("nobody")
	for _, want := range []struct {
		what, url string
		status    int
		says      string
	}{
		{"a failure", bootedhost.RepoURL, 66, "reconf-pull: error: "},
		{"an outage", "file:///nowhere.git", 69, "reconf-pull: error: "},
	} {
		m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+want.url+"'")
		status, shown = m.typed("reconf-pull run")
		if status != want.status || strings.Count(shown, want.says) != 1 || !strings.Contains(shown, "\x1b[31mreconf-pull: error: ") || strings.Contains(shown, "Failed to start") {
			t.Errorf("%s ends with %d and shows\n%s", want.what, status, shown)
		}
	}
	if status, shown = m.typed("NO_COLOR=1 reconf-pull run"); strings.Contains(shown, "\x1b") {
		t.Errorf("NO_COLOR: it ends with %d and shows\n%q", status, shown)
	}

	// In place: by any flag, by a script, and inside the service.
	before := began()
	for _, command := range []string{"reconf-pull run --in-place", "reconf-pull run --log-level debug", "reconf-pull run </dev/null"} {
		if status, shown := m.typed(command); status != 69 || strings.Contains(shown, "started") {
			t.Errorf("%s ends with %d and shows\n%s", command, status, shown)
		}
	}
	if before != began() {
		t.Error("a run in place started the service")
	}
	m.journaled("StandardInput=tty-force", "TTYPath=/dev/console")
	if _, shown := m.typed("reconf-pull run"); strings.Contains(shown, "runs already") {
		t.Errorf("in the service it shows\n%s", shown)
	}
}

// A run that says much, and something in its very last moment.
func TestAllOfARunIsShown(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.journaled("LogRateLimitIntervalSec=0")
	m.hook("health.d/10-says", "seq --format='line %05g' 5000", `printf 'a\033[31mb\n'`)
	m.appPush("one")
	status, shown := m.typed("reconf-pull run")
	if status != 0 {
		t.Errorf("it ends with %d", status)
	}
	lines := strings.Split(shown, "\n")
	next := 1
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, "health.d/10-says: line "); ok {
			if rest != fmt.Sprintf("%05d", next) {
				t.Fatalf("after line %d comes %q", next-1, rest)
			}
			next++
		}
	}
	if next != 5001 || !strings.Contains(lines[len(lines)-2], "web1 is now at ") || strings.Contains(shown, "a\x1b") {
		t.Errorf("%d lines, and the last is %q", next-1, lines[len(lines)-2])
	}
}

func TestFollowingARun(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.journaled()
	m.Run("mkfifo", "/run/go")
	m.hook("configure.d/10-slow", "echo it begins", "touch /run/slow", "read line </run/go", "echo it goes on")
	m.appPush("one")

	// One that runs already is joined from its first line on, by as many as like to.
	m.begins("/run/slow")
	pid := m.property(agent, "MainPID")
	first, second := m.types("exec reconf-pull run"), m.types("exec reconf-pull run") // dash would die by ctrl-C itself
	for _, k := range []*keyboard{first, second} {
		k.shows("reconf-pull.service runs already (pid " + pid + ", ")
		k.shows("10-slow: it begins")
	}
	m.says(first.screen.String(), "configure")
	// ctrl-C leaves it alone, and so does a terminal that is gone.
	if _, err := first.keys.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	status, shown := first.ends()
	if status != 75 {
		t.Errorf("after ctrl-C it ends with %d", status)
	}
	m.says(shown, "error: not followed any more; the run goes on in reconf-pull.service", "hint: journalctl --follow --unit reconf-pull.service follows it, systemctl stop reconf-pull.service ends it")
	third := m.types("echo $PPID >/run/terminal; exec reconf-pull run")
	third.shows("10-slow: it begins")
	m.Run("sh", "-c", "kill -KILL $(cat /run/terminal)")
	third.ends()
	if got := m.property(agent, "MainPID"); got != pid {
		t.Errorf("the run of pid %s is now that of %s", pid, got)
	}
	// A bus that is restarted, as an update of its package does it, ends nothing.
	m.Run("systemctl", "restart", "dbus.service")
	m.Run("sh", "-c", "echo >/run/go")
	status, shown = second.ends()
	if status != 0 || strings.Count(shown, "it begins") != 1 || strings.Count(shown, "it goes on") != 1 || strings.Count(shown, "web1 is now at ") != 1 {
		t.Errorf("the one that stayed ends with %d and shows\n%s", status, shown)
	}
	m.healthy()
	m.WaitFor(10*time.Second, func() bool { // the one without a terminal has nobody who waits for it
		_, status := m.Try("sh", "-c", "grep --quiet --line-regexp journalctl /proc/[0-9]*/comm")
		return status == 1
	}, "the end of every journalctl")

	// How it ends is told, however it ends.
	m.appPush("two")
	k := m.startsSlowly()
	m.Kill(agent, syscall.SIGKILL)
	if status, shown = k.ends(); status != 128+9 || !strings.Contains(shown, "killed by signal 9") {
		t.Errorf("a killed run ends with %d and shows\n%s", status, shown)
	}
	k = m.startsSlowly()
	m.Run("systemctl", "stop", agent)
	if status, shown = k.ends(); status != 75 || !strings.Contains(shown, "ended by a signal") {
		t.Errorf("a stopped run ends with %d and shows\n%s", status, shown)
	}
	k = m.startsSlowly()
	m.Run("sh", "-c", "echo >/run/go")
	if status, shown = k.ends(); status != 0 {
		t.Errorf("it ends with %d and shows\n%s", status, shown)
	}
	m.healthy()
}

// startsSlowly types a run and waits for its script.
func (m *machine) startsSlowly() *keyboard {
	m.t.Helper()
	m.Run("rm", "--force", "/run/slow")
	k := m.types("reconf-pull run")
	m.WaitFor(time.Minute, func() bool { return m.Exists("/run/slow") }, "the script")
	return k
}

func TestServiceThatCannotBeStarted(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.push()
	for _, test := range []struct {
		what   string
		before []string // lines of a drop-in
		run    string
		status int
		says   []string
	}{
		{"a condition", []string{"[Unit]", "ConditionPathExists=/nowhere"}, "", 75, []string{"error: reconf-pull.service was not started: one of its conditions is not met", "hint: systemctl status reconf-pull.service"}},
		{"ExecCondition", []string{"[Service]", "ExecCondition=/bin/false"}, "", 1, []string{"its ExecCondition= says no"}},
		{"a bad unit", []string{"[Service]", "ExecStart="}, "", 1, []string{"cannot be loaded (bad-setting)", "run --in-place"}},
		{"no program", []string{"[Service]", "ExecStart=", "ExecStart=/no/such/program"}, "", 203, []string{"/no/such/program"}},
		{"a step before it", []string{"[Service]", "ExecStartPre=/bin/false"}, "", 1, []string{"its program was not started: exit-code"}},
		{"a time limit", []string{"[Service]", "ExecStart=", "ExecStart=/bin/sleep 600", "TimeoutStartSec=1s"}, "", 143, []string{"TimeoutStartSec="}},
		{"too often", []string{"[Unit]", "StartLimitIntervalSec=1h", "StartLimitBurst=1"}, "systemctl start reconf-pull", 1, []string{"start-limit-hit", "systemctl reset-failed reconf-pull.service"}},
		{"a dependency", []string{"[Unit]", "Requires=needed.service", "After=needed.service"}, "", 1, []string{"was not started: dependency"}},
		{"masked", nil, "systemctl mask --runtime reconf-pull", 1, []string{"error: reconf-pull.service is masked", "hint: systemctl unmask reconf-pull.service ends that"}},
		{"not there", nil, "systemctl unmask --runtime reconf-pull; mv /usr/lib/systemd/system/reconf-pull.service /root/; rm -r /etc/systemd/system/reconf-pull.service.d", 0, []string{"web1 is up to date at "}},
	} {
		m.write("/etc/systemd/system/needed.service", "[Service]", "Type=oneshot", "ExecStart=/bin/false")
		if len(test.before) == 0 {
			test.before = []string{"[Unit]"}
		}
		m.write("/etc/systemd/system/reconf-pull.service.d/test.conf", test.before...)
		if test.run != "" {
			m.Run("systemctl", "daemon-reload")
			m.Run("sh", "-c", test.run)
		}
		m.Run("systemctl", "daemon-reload")
		status, shown := m.typed("reconf-pull run")
		if status != test.status {
			t.Errorf("%s: it ends with %d and shows\n%s", test.what, status, shown)
		}
		m.says(shown, test.says...)
		_, _ = m.Try("systemctl", "reset-failed", agent)
	}
}

// Without root, and without a journal that can be read.
func TestFollowingWithoutMeans(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.journaled()
	m.push()
	status, shown := m.typed("setpriv --reuid=nobody --clear-groups reconf-pull run")
	if status != 1 {
		t.Errorf("without root it ends with %d", status)
	}
	m.says(shown, "error: starting reconf-pull.service needs root", "hint: sudo reconf-pull run")
	if m.Exists("/var/lib/reconf-pull/state.json") {
		t.Error("there was a run")
	}
	m.Run("mv", "/usr/bin/journalctl", "/usr/bin/journalctl.away")
	if status, shown = m.typed("reconf-pull run"); status != 0 || !strings.Contains(shown, "warning: what it says cannot be shown: ") {
		t.Errorf("without journalctl it ends with %d and shows\n%s", status, shown)
	}
	m.healthy()
	m.Run("mv", "/usr/bin/journalctl.away", "/usr/bin/journalctl")
	m.write("/etc/systemd/journald.conf.d/none.conf", "[Journal]", "Storage=none")
	m.Run("systemctl", "restart", "systemd-journald.service")
	if status, shown = m.typed("reconf-pull run"); status != 0 || !strings.Contains(shown, "the journal has nothing of this run") {
		t.Errorf("without a journal it ends with %d and shows\n%s", status, shown)
	}
}

// A touch of the trigger makes a run, also while there is one, and one that fails
// makes no more of them.
func TestTrigger(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--now", "--quiet", "reconf-pull.path")
	m.Run("mkfifo", "/run/go")
	m.hook("configure.d/10-slow", "touch /run/slow", "read line </run/go")
	m.appPush("one")
	m.Run("touch", "/run/reconf-pull/trigger")
	m.WaitFor(time.Minute, func() bool { return m.Exists("/run/slow") }, "a run by the trigger")
	first := m.property(agent, "InvocationID")
	m.Run("touch", "/run/reconf-pull/trigger")
	m.Run("sh", "-c", "echo >/run/go")
	ended := func() bool {
		return m.property(agent, "InvocationID") != first && m.UnitState(agent).ActiveState != "activating"
	}
	m.WaitFor(time.Minute, ended, "another run")
	if status, said := m.lastPull(); status != 0 || !strings.Contains(said, "web1 is up to date at ") {
		t.Errorf("the second run ended with %d:\n%s", status, said)
	}
	m.healthy()
	first = m.property(agent, "InvocationID")
	m.write("/etc/reconf-pull/config.toml", "nonsense = 1")
	m.Run("touch", "/run/reconf-pull/trigger")
	m.WaitFor(time.Minute, ended, "a run that fails")
	m.gives("failed", "systemctl", "is-failed", agent)
	m.gives("active", "systemctl", "is-active", "reconf-pull.path")
	if m.Exists("/run/reconf-pull/trigger") {
		t.Error("the trigger is left")
	}
}
