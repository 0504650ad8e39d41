package main_test

import (
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// reboots starts the agent and waits until the host, which it reboots, has
// finished or undone the change.
func (m *machine) reboots() {
	m.t.Helper()
	before := m.BootID()
	m.Run("systemctl", "start", "--no-block", agent)
	m.WaitReboot(before)
}

func (m *machine) settled() {
	m.t.Helper()
	m.WaitFor(time.Minute, func() bool { return m.UnitState(agent).ActiveState != "activating" && m.openChange() == nil }, "the end of the change")
}

// A change that needs a reboot goes through it, and is one change.
func TestRebootInAChange(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	m.Run("sed", "-i", "$a [reboot]\\npaths = ['/etc/default/*']", "/etc/reconf-pull/config.toml")
	for _, phase := range []string{"pre_update", "post_update", "health"} {
		m.hook(phase+".d/10-log", `echo "$RECONF_PHASE $(cat /proc/sys/kernel/random/boot_id)" >>/var/log/hooks`)
	}
	m.appPush("one")
	m.converge()
	m.logged()

	first := m.BootID()
	m.appPush("two", "# a reboot comes")
	m.Repo().Write("default", "two\n")
	m.push("storage: {files: [{path: /etc/default/app, contents: {local: default}}]}")
	if out, status := m.Try("reconf-pull", "plan"); status != 3 || !strings.Contains(out, "The machine will be rebooted: /etc/default/app changes.") {
		t.Errorf("plan ends with %d:\n%s", status, out)
	}

	// Somebody holds it off: nothing is asked for, and every run says so.
	m.Run("systemd-run", "--quiet", "--unit=backup", "systemd-inhibit", "--what=shutdown", "--who=backup", "--why=at work", "--mode=block", "sleep", "infinity")
	m.WaitFor(10*time.Second, func() bool { return strings.Contains(m.Run("systemd-inhibit", "--list", "--no-pager"), "backup") }, "the inhibitor")
	for range 2 {
		if status, said := m.pull(); status != 75 || !strings.Contains(said, "held off since") || !strings.Contains(said, "backup") {
			t.Fatalf("held off: the run ends with %d:\n%s", status, said)
		}
	}
	out, status := m.Try("reconf-pull", "status")
	if status != 3 || !strings.Contains(out, "reboot: wait: /etc/default/app changes; held off since") {
		t.Errorf("held off: status ends with %d:\n%s", status, out)
	}
	m.expect("the locks while it waits", m.locks())
	m.Run("systemctl", "stop", "backup")

	m.reboots()
	m.settled()
	m.healthy()
	second := m.BootID()
	m.expect("the scripts", strings.Split(m.logged(), "\n"), "pre_update "+first, "post_update "+second, "health "+second)
	if n := len(strings.Split(strings.TrimSpace(m.Run("reconf-pull", "history")), "\n")); n != 2 {
		t.Errorf("the history has %d entries", n)
	}
	m.says(m.Run("reconf-pull", "show"), "rebooted: /etc/default/app changes", "update          skipped: no OS work is due")

	// One that makes the host ill is undone, and undone in the running system, too.
	m.hook("health.d/20-app", "! grep --quiet ill /etc/default/app")
	m.Repo().Write("default", "ill\n")
	m.push("storage: {files: [{path: /etc/default/app, contents: {local: default}}]}")
	m.Run("systemctl", "start", "--no-block", agent)
	m.WaitFor(2*time.Minute, func() bool {
		out, status := m.Try("reconf-pull", "history")
		return status == 0 && strings.Contains(out, "rolled back")
	}, "the way back")
	m.WaitReboot(second)
	m.gives("two", "cat", "/etc/default/app")
	if n := len(strings.Split(strings.TrimSpace(m.Run("journalctl", "--list-boots", "--no-pager", "--quiet")), "\n")); n != 4 {
		t.Errorf("there were %d boots, want 4: into the good change, into the bad one and out of it", n)
	}
	m.fails("is held since", "health.d/20-app")
}

// OS work is done for itself, and a reboot that it needs outside the window is
// put off and done inside it.
func TestOSWork(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	m.appPush("one")
	m.converge()
	m.hook("needs_update.d/10-package", "test -e /var/installed || { echo 1 package; exit 1; }")
	m.hook("update.d/10-package", "touch /var/installed")
	m.hook("needs_reboot.d/10-kernel", "test ! -e /var/installed || { echo another kernel; exit 1; }")
	window := "windows = ['" + strings.TrimSpace(m.Run("date", "--date=2 days", "+%a")) + " 00:00-24:00']"
	m.Run("sed", "-i", "$a [reboot]\\n"+window, "/etc/reconf-pull/config.toml")
	if status, said := m.pull(); status != 75 || !strings.Contains(said, "outside the window, next opens") || !strings.Contains(said, "reboot.windows") {
		t.Errorf("outside the window: the run ends with %d:\n%s", status, said)
	}
	if out, status := m.Try("reconf-pull", "status"); status != 3 || !strings.Contains(out, "waiting:  outside the window") {
		t.Errorf("outside the window: status ends with %d:\n%s", status, out)
	}
	// What needs no reboot does not wait.
	m.appPush("two")
	if status, said := m.pull(); status != 0 {
		t.Errorf("another push: the run ends with %d:\n%s", status, said)
	}
	m.gives("two", "cat", "/etc/app.conf")
	if m.Exists("/var/installed") {
		t.Error("OS work was done outside the window")
	}

	m.Run("sed", "-i", "/^windows/d", "/etc/reconf-pull/config.toml")
	m.reboots()
	m.settled()
	if !m.Exists("/var/installed") {
		t.Error("OS work was not done")
	}
	m.says(m.Run("reconf-pull", "show"), "OS work: needs_update.d/10-package: 1 package", "configure       skipped: only OS work is due", "rebooted: needs_reboot.d/10-kernel: another kernel")
	m.converge()

	// A need that shows only when the change is in place is put off.
	m.Run("sed", "-i", "$a "+window, "/etc/reconf-pull/config.toml")
	boot := m.BootID()
	m.appPush("three")
	if status, said := m.pull(); status != 0 || !strings.Contains(said, "waiting: a reboot is pending: needs_reboot.d/10-kernel: another kernel") {
		t.Errorf("put off: the run ends with %d:\n%s", status, said)
	}
	out, status := m.Try("reconf-pull", "status")
	if status != 3 {
		t.Errorf("put off: status ends with %d:\n%s", status, out)
	}
	m.says(out, "reboot:   pending since", "window:   opens ", "next:     a reboot is pending: ")
	before := m.state()
	if status, _ := m.pull(); status != 0 || m.state() != before || m.BootID() != boot {
		t.Errorf("outside the window: the run ends with %d, or wrote something, or rebooted", status)
	}
	m.Run("sed", "-i", "/^windows/d", "/etc/reconf-pull/config.toml")
	m.reboots()
	m.settled()
	m.converge()
	m.says(m.Run("reconf-pull", "show"), "a reboot is pending: needs_reboot.d/10-kernel", "update          skipped: only the pending reboot is due")
}
