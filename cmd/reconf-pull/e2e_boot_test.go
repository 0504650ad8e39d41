package main_test

import (
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// configure adds lines to config.toml.
func (m *machine) configure(lines ...string) {
	m.t.Helper()
	m.Write("/etc/reconf-pull/config.toml", append(m.Read("/etc/reconf-pull/config.toml"), unlines(lines...)...), 0o644)
}

// generations is how many entries the history has.
func (m *machine) generations() int {
	m.t.Helper()
	return len(strings.Split(strings.TrimSpace(m.Run("reconf-pull", "history")), "\n"))
}

// A reboot that does not come is asked for three times and then undone; one that
// somebody else makes while it is waited for is as good.
func TestRebootThatNeverComes(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	m.configure("[reboot]", "paths = ['/etc/default/*']", "timeout = '2s'", `command = ['/bin/sh', '-c', 'echo asked >>/var/log/hooks']`)
	push := func(version string) {
		t.Helper()
		m.push("storage: {files: [{path: /etc/default/app, contents: {inline: " + version + "}}]}")
	}
	m.appPush("one")
	m.converge()
	boot := m.BootID()

	push("two")
	for range 2 { // the second one comes too early to ask again
		if status, said := m.pull(); status != 75 {
			t.Fatalf("the run ended with %d:\n%s", status, said)
		}
	}
	m.expect("the first time", strings.Fields(m.logged()), "asked")
	m.gives("two", "cat", "/etc/default/app")
	m.gives("success", "systemctl", "show", "--value", "--property=Result", agent)
	var (
		status int
		said   string
	)
	m.WaitFor(time.Minute, func() bool { status, said = m.pull(); return status != 75 }, "the end of the patience")
	if status != 1 {
		t.Errorf("the last run ended with %d", status)
	}
	m.says(said, "was asked for 3 times", "rolled back")
	// The way back was not rebooted into, so nothing is asked for it.
	m.expect("the others", strings.Fields(m.logged()), "asked", "asked")
	if _, status := m.Try("test", "-e", "/etc/default/app"); status == 0 {
		t.Error("the file of the change is there")
	}
	if m.BootID() != boot {
		t.Error("the host was rebooted")
	}
	m.fails("is held since")

	push("three")
	if status, said := m.pull(); status != 75 {
		t.Fatalf("the run ended with %d:\n%s", status, said)
	}
	m.expect("before the power cut", strings.Fields(m.logged()), "asked")
	m.PowerCut()
	m.settled()
	m.healthy()
	m.gives("three", "cat", "/etc/default/app")
	m.expect("after it", strings.Fields(m.logged()))
}

// What kills the machine in every apply is begun three times; then the host undoes it
// and takes the next push.
func TestMachineThatDiesInEveryApply(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	m.appPush("one")
	m.converge()
	m.hook("configure.d/10-die", "grep --quiet bad /etc/app.conf || exit 0", "echo begun >>/var/log/hooks; sync /var/log/hooks", "echo dying >/run/dying", "sleep infinity")
	m.hook("error.d/10-log", `echo "$RECONF_FAILED_STEP" >>/var/log/hooks`)
	m.appPush("bad")
	m.Run("systemctl", "start", "--no-block", agent)
	for range 3 {
		m.WaitFor(time.Minute, func() bool { return len(m.Peek("/run/dying")) > 0 }, "the apply to kill the machine")
		m.PowerOff()
		m.Start()
	}
	m.WaitFor(time.Minute, func() bool {
		out, status := m.Try("reconf-pull", "history")
		return status == 0 && strings.Contains(out, "rolled back")
	}, "the way back")
	m.settled()
	m.expect("what the scripts say", strings.Fields(m.logged()), "begun", "begun", "begun", "configure")
	m.gives("one", "cat", "/etc/app.conf")
	m.gives("active", "systemctl", "is-active", "app.service")
	out, status := m.Try("reconf-pull", "status")
	if status != 1 {
		t.Errorf("status ends with %d", status)
	}
	m.says(out, "held: ", "begun 3 times, and the machine or the run died every time")
	m.fails("is held since")
	m.appPush("two")
	m.converge()
	m.gives("two", "cat", "/etc/app.conf")
}

// The need for a reboot that shows while no window is open does not hold the change up.
// It is met in the next window, or by whoever boots the host before.
func TestRebootThatIsPutOff(t *testing.T) {
	for name, os := range map[string]bootedhost.OS{"Debian12": bootedhost.Debian12, "Debian13": bootedhost.Debian13} {
		t.Run(name, func(t *testing.T) {
			m := on(t, os)
			m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
			const boot = "cat /proc/sys/kernel/random/boot_id"
			m.hook("configure.d/10-kernel", boot+" >/var/old-kernel")
			m.hook("needs_reboot.d/10-kernel", `test "$(`+boot+`)" != "$(cat /var/old-kernel)"`)
			for _, phase := range []string{"pre_update", "post_update", "health"} {
				m.hook(phase+".d/10-log", `echo "$RECONF_PHASE" >>/var/log/hooks`)
			}
			day := strings.TrimSpace(m.Run("date", "--date=2 days", "+%a"))
			closed := "windows = ['" + day + " 00:00-24:00']"
			m.configure("[reboot]", "paths = ['/etc/default/*']", closed)

			first := m.BootID()
			m.appPush("one")
			if status, said := m.pull(); status != 0 {
				t.Fatalf("the run ended with %d:\n%s", status, said)
			}
			m.gives("one", "cat", "/etc/app.conf")
			m.expect("the scripts", strings.Fields(m.logged()), "pre_update", "post_update", "health")
			out, _ := m.Try("reconf-pull", "status")
			m.says(out, "reboot")
			if status, said := m.pull(); status != 0 || m.BootID() != first {
				t.Errorf("outside the window the run ended with %d:\n%s", status, said)
			}
			// What is known to reboot does not begin, and may still be replaced.
			m.push("storage: {files: [{path: /etc/default/app, contents: {inline: x}}]}")
			if status, said := m.pull(); status != 75 || !strings.Contains(said, "outside the window") || m.Exists("/etc/default/app") {
				t.Errorf("a change that reboots: the run ended with %d:\n%s", status, said)
			}
			m.appPush("one")
			if status, said := m.pull(); status != 0 {
				t.Errorf("without it the run ended with %d:\n%s", status, said)
			}
			m.expect("outside the window", strings.Fields(m.logged()))

			m.Run("sed", "-i", "/^windows/d", "/etc/reconf-pull/config.toml")
			m.reboots()
			m.settled()
			m.healthy()
			m.expect("inside the window", strings.Fields(m.logged()), "pre_update", "post_update", "health")
			second := m.BootID()
			m.converge()
			if m.BootID() != second {
				t.Error("it was rebooted twice")
			}

			m.configure(closed)
			m.appPush("two")
			m.pull()
			m.Reboot()
			m.logged()
			m.Run("sed", "-i", "/^windows/d", "/etc/reconf-pull/config.toml")
			third := m.BootID()
			m.converge()
			m.expect("after somebody else's boot", strings.Fields(m.logged()))
			if m.BootID() != third {
				t.Error("it was rebooted again")
			}
			if n := m.generations(); n != 3 {
				t.Errorf("the history has %d entries, want 3: two pushes and a reboot", n)
			}
		})
	}
}

// An OS that falls back to an older deployment brings the /etc of that one: the
// change that is under way puts its files back, and the units that the boot has
// started with the old ones follow.
func TestBootWithAnotherEtc(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	m.impatient()
	m.hook("post_update.d/10-wait", "[ ! -e /var/lib/wait ]")
	push := func(version string) {
		m.Repo().Write("app.service", unlines("# "+version, "[Service]", "ExecStart=/bin/sh -c 'cp /etc/app.conf /run/app.seen; exec sleep infinity'", "[Install]", "WantedBy=multi-user.target"))
		m.push(
			"storage: {files: [{path: /etc/app.conf, contents: {inline: "+version+"}}]}",
			"systemd: {units: [{name: app.service, enabled: true, contents_local: app.service}]}",
		)
	}
	push("one")
	m.converge()
	m.Run("cp", "-a", "/etc/app.conf", "/etc/systemd/system/app.service", "/root/")
	m.Run("touch", "/var/lib/wait")
	push("two")
	m.fails("post-update")
	m.gives("two", "cat", "/run/app.seen")

	m.Run("sh", "-c", "cp -a /root/app.conf /etc/ && cp -a /root/app.service /etc/systemd/system/ && rm /var/lib/wait")
	m.Reboot()
	m.settled()
	m.gives("two", "cat", "/etc/app.conf")
	m.gives("two", "cat", "/run/app.seen")
	m.healthy()
	_, said := m.lastPull()
	m.says(said, "configure is done again after a boot: 2 of its paths are not as it left them, /etc/app.conf is the first")
}
