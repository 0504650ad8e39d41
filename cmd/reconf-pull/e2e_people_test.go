package main_test

import (
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// What a real systemd, a real user and mounts make of a host is managed as what root
// alone has: the state of a service with DynamicUser, a home with files of root's in it,
// directories that are bound elsewhere, and /var/tmp with what systemd-tmpfiles makes.
func TestPlacesOfPeople(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.write("/etc/systemd/system/dynamic.service",
		"[Service]", "Type=oneshot", "RemainAfterExit=yes", "DynamicUser=yes", "StateDirectory=dynamic", "UMask=0027",
		"ExecStart=sh -c 'id -u >$STATE_DIRECTORY/uid; cat $STATE_DIRECTORY/conf >$STATE_DIRECTORY/seen || true'")
	m.write("/etc/tmpfiles.d/people.conf", "d /var/tmp/theirs 0750 carol carol -", "d /var/tmp/ours 0755 root root -")
	m.Run("useradd", "--create-home", "--shell=/bin/sh", "carol")
	m.Run("install", "-d", "/srv/data", "/home/carol/.config", "/mnt/bound", "/home/carol/bound")
	m.Run("mount", "--bind", "/srv/data", "/mnt/bound")
	m.Run("mount", "--bind", "/srv/data", "/home/carol/bound")
	m.Run("systemd-tmpfiles", "--create", "people.conf")
	m.Run("systemctl", "start", "dynamic")
	m.gives("private/dynamic", "readlink", "/var/lib/dynamic")

	config := func(text string) []string {
		file := func(path, more string) string {
			return "    - {path: " + path + more + ", overwrite: true, contents: {inline: '" + text + "'}}"
		}
		const carols = ", user: {name: carol}, group: {name: carol}"
		return []string{
			"storage:", "  files:",
			file("/var/lib/dynamic/conf", ""),
			file("/home/carol/.config/environment.d/10.conf", carols), file("/home/carol/.profile", carols),
			file("/home/carol/roots", ", mode: 0600"),
			file("/mnt/bound/a", ""), file("/home/carol/bound/b", ""),
			file("/var/tmp/theirs/conf", carols), file("/var/tmp/ours/conf", ""), file("/var/tmp/conf", ""),
			"  directories:", "    - {path: /var/tmp/carol, mode: 0700" + carols + "}",
		}
	}
	check := func(text string) {
		t.Helper()
		m.gives("root:root 644 "+text, "sh", "-c", "echo $(stat -c '%U:%G %a' /var/lib/private/dynamic/conf) $(cat /var/lib/dynamic/conf)")
		m.gives(text, "runuser", "-u", "carol", "--", "cat", "/home/carol/.config/environment.d/10.conf")
		m.gives("carol:carol 644\nroot:root 600\nroot:root 644\nroot:root 644\ncarol:carol 644\nroot:root 644\nroot:root 644\ncarol:carol 700", "stat", "-c", "%U:%G %a",
			"/home/carol/.profile", "/home/carol/roots", "/srv/data/a", "/srv/data/b", "/var/tmp/theirs/conf", "/var/tmp/ours/conf", "/var/tmp/conf", "/var/tmp/carol")
	}
	run := func(what string) {
		t.Helper()
		if status, said := m.pull(); status != 0 {
			t.Fatalf("%s: the run ended with %d:\n%s", what, status, said)
		}
	}
	m.push(config("one")...)
	run("first")
	check("one")
	m.push(config("two")...)
	run("update")
	check("two")

	// What systemd does to its places is no drift, and the service reads what is there.
	m.Run("systemctl", "restart", "dynamic")
	m.gives("two", "cat", "/var/lib/dynamic/seen")
	m.Run("systemd-tmpfiles", "--create")
	m.Run("systemd-tmpfiles", "--clean")
	m.Reboot() // the mounts are gone: what lay behind them is there alone
	m.Run("mount", "--bind", "/srv/data", "/mnt/bound")
	m.Run("mount", "--bind", "/srv/data", "/home/carol/bound")
	run("again")
	check("two")
	if out, status := m.Try("reconf-pull", "plan"); status != 0 {
		t.Errorf("there is something to do:\n%s", out)
	}

	m.push()
	run("removal")
	m.gives("carol", "stat", "-c", "%U", "/home/carol/.profile")
	for _, p := range []string{"/var/lib/dynamic/conf", "/home/carol/.config/environment.d", "/home/carol/roots", "/srv/data/a", "/srv/data/b", "/var/tmp/theirs/conf", "/var/tmp/ours/conf", "/var/tmp/conf", "/var/tmp/carol"} {
		if m.Exists(p) {
			t.Errorf("%s is there", p)
		}
	}
	m.Run("test", "-d", "/home/carol/.config", "-a", "-d", "/var/tmp/theirs", "-a", "-d", "/var/tmp/ours", "-a", "-e", "/var/lib/dynamic/uid")
}
