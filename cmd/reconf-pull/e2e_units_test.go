package main_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// A push whose units cannot start is rolled back whole: files, enablement, and
// what every unit of it did. Its digest is held until a mended push.
func TestFailingUnit(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	repo := m.Repo()
	units := []string{
		"systemd:", "  units:",
		"    - {name: bad.service, enabled: true, contents_local: bad.service}",
		"    - {name: good.service, enabled: true, contents_local: good.service}",
	}
	repo.Write("bad.service", sleeper())
	repo.Write("good.service", sleeper())
	m.push(append(units, "storage: {files: [{path: /etc/written, contents: {inline: first}}]}")...)
	m.converge()
	m.Run("systemctl", "stop", "good.service") // by the admin: it stays stopped
	before := m.Run("sh", "-c", "cat /etc/systemd/system/*.service; find /etc/systemd/system -name '*.service' | sort")

	repo.Write("bad.service", unlines("[Service]", "ExecStart=/bin/sh -c 'echo out of cheese >&2; exit 3'", "[Install]", "WantedBy=multi-user.target"))
	repo.Write("good.service", sleeper("Nice=3"))
	repo.Write("fresh.service", sleeper())
	repo.Write("lost.service", unlines("[Service]", "Type=oneshot", "ExecStart=/no/such/program", "[Install]", "WantedBy=multi-user.target"))
	bad := append(slices.Clone(units),
		"    - {name: fresh.service, enabled: true, contents_local: fresh.service}",
		"    - {name: lost.service, enabled: true, contents_local: lost.service}",
		"storage: {files: [{path: /etc/written, contents: {inline: second}}]}")
	m.push(bad...)
	m.expect("the bad push", m.during(func() {
		status, said := m.pull()
		if status != 1 {
			t.Errorf("the run ended with %d", status)
		}
		for _, want := range []string{"bad.service: ", "exit-code 3", "    out of cheese\n", "lost.service: ", "/no/such/program", "was rolled back", "reconf-pull: hint: the host is as it was before"} {
			if !strings.Contains(said, want) {
				t.Errorf("the run does not say %q:\n%s", want, said)
			}
		}
		for _, innocent := range []string{"good.service: ", "fresh.service: "} {
			if strings.Contains(said, innocent) && !strings.Contains(said, innocent+"/etc/") {
				t.Errorf("the run blames %s\n%s", innocent, said)
			}
		}
	}), "bad.service restarted") // it failed, and runs again by its old file
	m.gives("first", "cat", "/etc/written")
	if after := m.Run("sh", "-c", "cat /etc/systemd/system/*.service; find /etc/systemd/system -name '*.service' | sort"); after != before {
		t.Errorf("the units are not what they were:\n%s\nwant:\n%s", after, before)
	}
	m.gives("active", "systemctl", "is-active", "bad.service")
	for _, stopped := range []string{"good.service", "fresh.service", "lost.service"} {
		if out, _ := m.Try("systemctl", "is-active", stopped); strings.TrimSpace(out) != "inactive" {
			t.Errorf("%s is %s", stopped, out)
		}
	}
	m.gives("failed", "systemctl", "is-failed", agent)
	out, status := m.Try("reconf-pull", "status")
	if status != 1 {
		t.Errorf("status ends with %d", status)
	}
	for _, want := range []string{"health:   failing\n", "held: ", "because:  post-configure: ", "bad.service: ", "next:     push a commit that mends it, or mend the host and say reconf-pull retry\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	m.expect("the next run", m.during(func() {
		if status, said := m.pull(); status != 1 || !strings.Contains(said, "is held since") {
			t.Errorf("it ended with %d:\n%s", status, said)
		}
	}))
	m.gives("first", "cat", "/etc/written")

	repo.Write("bad.service", sleeper("Nice=1"))
	repo.Write("lost.service", sleeper())
	m.push(bad...)
	m.expect("the mended push", m.during(func() { m.converge() }), "bad.service restarted", "fresh.service started", "good.service started", "lost.service started")
	m.gives("second", "cat", "/etc/written")
	m.gives("running", "systemctl", "is-system-running")
}

// What a change does to a unit depends on what kind of unit it is, and on what
// the unit says about itself.
func TestKindsOfUnits(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	// Of its own UTS namespace, unlike most other settings of the kernel.
	m.Run("mount", "-o", "remount,bind,rw", "/proc/sys")
	repo := m.Repo()
	write := func(version string) {
		comment := "# " + version
		repo.Write("sysusers", unlines(comment, "u app - 'The app' /opt/app"))
		repo.Write("tmpfiles", unlines(comment, "d /run/app 0750 app app -", "f /run/app/"+version+" 0640 app app - "+version))
		repo.Write("sysctl", unlines(comment, "kernel.domainname = "+version+".example"))
		repo.Write("echo@.service", comment+"\n"+sleeper())
		repo.Write("door.socket", unlines(comment, "[Socket]", "ListenStream=/run/door", "[Install]", "WantedBy=sockets.target"))
		repo.Write("door.service", unlines("[Service]", "ExecStart=/bin/sleep infinity"))
		repo.Write("none.service", unlines(comment, "[Unit]", "X-Reconf-OnChange=none")+sleeper())
		repo.Write("reload.service", unlines(comment, "[Unit]", "X-Reconf-OnChange=reload")+sleeper("ExecReload=/bin/touch /run/reloaded-"+version))
		repo.Write("srv-scratch.mount", unlines(comment, "[Mount]", "What=tmpfs", "Type=tmpfs", "Where=/srv/scratch", "Options=size="+map[string]string{"one": "1M", "two": "2M"}[version],
			"[Install]", "WantedBy=multi-user.target"))
	}
	config := func(units ...string) []string {
		return append([]string{
			"storage:",
			"  directories: [{path: /opt/app, mode: 0750, user: {name: app}, group: {name: app}}]",
			"  files:",
			"    - {path: /etc/sysusers.d/app.conf, contents: {local: sysusers}}",
			"    - {path: /etc/tmpfiles.d/app.conf, contents: {local: tmpfiles}}",
			"    - {path: /etc/sysctl.d/app.conf, contents: {local: sysctl}}",
			"    - {path: /opt/app/secret, mode: 0600, user: {name: app}, group: {name: app}, contents: {inline: x}}",
			"systemd:",
			"  units:",
			"    - {name: none.service, enabled: true, contents_local: none.service}",
		}, units...)
	}
	units := []string{
		"    - {name: echo@.service, contents_local: echo@.service}",
		"    - {name: echo@one.service, enabled: true}",
		"    - {name: echo@two.service, enabled: true}",
		"    - {name: door.socket, enabled: true, contents_local: door.socket}",
		"    - {name: door.service, contents_local: door.service}",
		"    - {name: reload.service, enabled: true, contents_local: reload.service}",
		"    - {name: srv-scratch.mount, enabled: true, contents_local: srv-scratch.mount}",
	}

	write("one")
	m.push(config(units...)...)
	m.expect("the first run", m.during(func() { m.converge() }),
		"door.socket started", "echo@one.service started", "echo@two.service started", "none.service started", "reload.service started",
		"srv-scratch.mount started", "system-echo.slice started")
	m.gives("app app 750", "stat", "--format=%U %G %a", "/opt/app")
	m.gives("app app 600", "stat", "--format=%U %G %a", "/opt/app/secret")
	m.gives("app app 750", "stat", "--format=%U %G %a", "/run/app")
	m.gives("one", "cat", "/run/app/one")
	m.gives("one.example", "cat", "/proc/sys/kernel/domainname")
	m.gives("enabled", "systemctl", "is-enabled", "echo@one.service")
	m.Run("systemctl", "stop", "echo@two.service") // by the admin
	m.Run("systemctl", "start", "door.service")    // as a connection does

	write("two")
	repo.Push("change all of them")
	m.expect("the change", m.during(func() { m.converge() }),
		"door.service restarted", "door.socket restarted", "echo@one.service restarted", "echo@two.service started")
	m.gives("two", "cat", "/run/app/two")
	m.gives("two.example", "cat", "/proc/sys/kernel/domainname")
	m.gives("/run/reloaded-two", "sh", "-c", "ls /run/reloaded-*")
	m.gives("no", "systemctl", "show", "--value", "--property=NeedDaemonReload", "srv-scratch.mount")
	m.gives("1M", "sh", "-c", "df --output=size --block-size=1M /srv/scratch | tail -1 | tr -d ' ' | sed s/$/M/")

	m.push(config()...)
	m.expect("the removal", m.during(func() { m.converge() }),
		"door.service stopped", "door.socket stopped", "echo@one.service stopped", "echo@two.service stopped", "reload.service stopped",
		"srv-scratch.mount stopped")
	m.gives("", "find", "/etc/systemd/system", "-name", "echo*", "-o", "-name", "door*", "-o", "-name", "srv*")
	m.gives("running", "systemctl", "is-system-running")
}

// The fleet repo changes the agent's own units, and no run is hurt by it.
func TestOwnUnits(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("rm", "-r", "/etc/systemd/system/reconf-pull.timer.d")
	timer := func(interval string) {
		m.Repo().Write("reconf-pull.timer", unlines("[Timer]", "OnBootSec=1h", "OnUnitInactiveSec="+interval, "AccuracySec=1ms", "[Install]", "WantedBy=timers.target"))
	}
	units := []string{
		"    - {name: reconf-pull.timer, enabled: true, contents_local: reconf-pull.timer}",
		"    - {name: reconf-pull.service, dropins: [{name: 10-nice.conf, contents: \"[Service]\\nNice=5\\n\"}]}",
	}
	push := func(units ...string) {
		t.Helper()
		m.push(append([]string{
			"storage: {files: [{path: /etc/written, contents: {inline: yes}}]}",
			"systemd:", "  units:", "    - {name: systemd-nothing.service, mask: true}",
		}, units...)...)
	}
	timer("1s")
	push(units...)
	m.expect("the push", m.during(func() { m.converge() }), "reconf-pull.timer restarted")
	m.gives("5", "systemctl", "show", "--value", "--property=Nice", agent)

	// From now on it comes by itself, and it is such a run that ends this.
	timer("1h")
	m.Repo().Push("a longer interval")
	m.WaitFor(time.Minute, func() bool { return m.Exists("/var/lib/reconf-pull/generations/2") }, "a run by the new timer")
	m.WaitFor(time.Minute, func() bool { return m.UnitState(agent).ActiveState == "inactive" }, "its end")
	if status, said := m.lastPull(); status != 0 {
		t.Errorf("the run by the timer ended with %d:\n%s", status, said)
	}
	m.healthy()
	if got := m.property("reconf-pull.timer", "TimersMonotonic"); !strings.Contains(got, "OnUnitInactiveUSec=1h") {
		t.Errorf("the timer has %s", got)
	}

	// They are never taken away.
	push()
	m.expect("the push without them", m.during(func() { m.pull() }))
	m.gives("active", "systemctl", "is-active", "reconf-pull.timer")
	m.gives("enabled", "systemctl", "is-enabled", "reconf-pull.timer")
}
