package main_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// vendorUnit is what a release ships: enabled, and not the fleet repo's.
func (m *machine) vendorUnit(name string) {
	m.t.Helper()
	m.write("/usr/lib/systemd/system/"+name, strings.TrimSuffix(sleeper(), "\n"))
	m.Run("systemctl", "enable", "--now", "--quiet", name)
}

// A push reaches a host with everything that a config can name, restarts what it
// touched and nothing else.
func TestConverge(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.vendorUnit("vendor.service")
	m.Run("sh", "-ec", "tar --create --dereference --directory=/ usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*') | podman import --quiet - localhost/sleep")

	repo := m.Repo()
	repo.Write("app.service", sleeper())
	repo.Write("other.service", sleeper())
	repo.Write("box.container", unlines(
		"[Container]", "Image=localhost/sleep", "Exec=/usr/bin/sleep infinity", "Network=none", "Pull=never", "StopTimeout=0",
		"[Install]", "WantedBy=multi-user.target"))
	repo.Write("tool", "\x7fbinary\x00\xff\n")
	repo.Write("tree/etc/app.conf", "one\n")
	repo.Write("tree/share/data", "two\n")
	storage := unlines(
		"storage:",
		"  files:",
		"    - {path: /opt/tool/bin/tool, mode: 0755, contents: {local: tool}}",
		"    - {path: /etc/containers/systemd/box.container, contents: {local: box.container}}",
		"  links: [{path: /usr/local/bin/tool, target: /opt/tool/bin/tool}]",
		"  trees: [{local: tree, path: /opt/app}]",
		"systemd:",
		"  units:",
	)
	app := func(nice string) string {
		return "    - {name: app.service, enabled: true, contents_local: app.service, dropins: [{name: 10-nice.conf, contents: \"[Service]\\nNice=" + nice + "\\n\"}]}\n"
	}
	const (
		other  = "    - {name: other.service, enabled: true, contents_local: other.service}\n"
		masked = "    - {name: vendor.service, mask: true}\n"
	)
	push := func(config ...string) { m.t.Helper(); m.push(strings.Join(config, "")) }

	push(storage, app("1"), other, masked)
	did := m.during(func() { m.converge() })
	m.expect("the first run", did, "app.service started", "box.service started", "other.service started", "vendor.service stopped")
	m.gives("1", "systemctl", "show", "--value", "--property=Nice", "app.service")
	m.gives("enabled", "systemctl", "is-enabled", "app.service")
	m.gives("true", "podman", "inspect", "--format={{.State.Running}}", "systemd-box")
	m.gives("755 root:root", "stat", "--format=%a %U:%G", "/opt/tool/bin/tool")
	if got := string(m.Read("/usr/local/bin/tool")); got != "\x7fbinary\x00\xff\n" {
		t.Errorf("the binary is %q", got)
	}
	m.gives("/opt/tool/bin/tool", "readlink", "/usr/local/bin/tool")
	m.gives("one\ntwo", "cat", "/opt/app/etc/app.conf", "/opt/app/share/data")
	m.gives("masked", "systemctl", "is-enabled", "vendor.service")

	t.Log("a drop-in changes")
	push(storage, app("2"), other, masked)
	m.expect("a changed drop-in", m.during(func() { m.converge() }), "app.service restarted")
	m.gives("2", "systemctl", "show", "--value", "--property=Nice", "app.service")

	t.Log("the quadlet, the binary and the tree change")
	repo.Write("box.container", unlines(
		"[Container]", "Image=localhost/sleep", "Exec=/usr/bin/sleep infinity", "Network=none", "Pull=never", "StopTimeout=0", "Environment=CHANGED=yes",
		"[Install]", "WantedBy=multi-user.target"))
	repo.Write("tool", "\x7fnewer\n")
	repo.Remove("tree/share/data")
	repo.Write("tree/share/more", "three\n")
	push(storage, app("2"), other, masked)
	m.expect("a changed quadlet", m.during(func() { m.converge() }), "box.service restarted")
	m.gives("CHANGED=yes", "sh", "-c", "podman inspect --format='{{range .Config.Env}}{{println .}}{{end}}' systemd-box | grep CHANGED")
	m.gives("\x7fnewer", "cat", "/usr/local/bin/tool")
	m.gives("/opt/app/share/more", "find", "/opt/app/share", "-type", "f")

	t.Log("another host's config changes, and a comment in this one's")
	before := m.state()
	repo.Write("hosts/web2.bu", "variant: fcos\nversion: 1.6.0\n")
	repo.Push("change web2")
	m.expect("another host's change", m.during(func() {
		if said := m.converge(); !strings.Contains(said, "web1 is up to date at ") {
			t.Errorf("the run says:\n%s", said)
		}
	}))
	// Only the mark moves, below which no later push may fall.
	others := func(state string) []string {
		return slices.DeleteFunc(strings.Split(state, "\n"), func(line string) bool {
			return strings.HasPrefix(line, "/var/lib/reconf-pull ") || strings.HasPrefix(line, "/var/lib/reconf-pull/verified.json ")
		})
	}
	m.expect("the state after it", others(m.state()), others(before)...)
	push("# only a comment\n", storage, app("2"), other, masked)
	m.expect("a comment", m.during(func() { m.converge() }))

	t.Log("a unit and the quadlet leave, the other unit is unmasked")
	m.Run("sed", "-i", "1i [apply]\\nallow_mass_removal = true", "/etc/reconf-pull/config.toml")
	push(strings.Replace(storage, "    - {path: /etc/containers/systemd/box.container, contents: {local: box.container}}\n", "", 1),
		other, "    - {name: vendor.service, mask: false}\n")
	did = m.during(func() { m.converge() })
	m.expect("the removal", did, "app.service stopped", "box.service stopped", "vendor.service started")
	m.gives("not-found", "systemctl", "show", "--value", "--property=LoadState", "app.service")
	m.gives("not-found", "systemctl", "show", "--value", "--property=LoadState", "box.service")
	m.gives("", "find", "/etc/systemd/system", "/etc/containers/systemd", "-name", "*app*", "-o", "-name", "*box*")
	m.gives("", "podman", "ps", "--all", "--quiet")
	m.gives("enabled", "systemctl", "is-enabled", "vendor.service")

	t.Log("masked again, and the mask leaves the config")
	push(storage, other, masked)
	m.expect("the mask", m.during(func() { m.converge() }), "box.service started", "vendor.service stopped")
	push(storage, other)
	m.expect("the end of the mask", m.during(func() { m.converge() }), "vendor.service started")
	m.gives("character special file 1:3 666", "stat", "--format=%F %t:%T %a", "/dev/null")

	t.Log("the boot starts the same units")
	want := m.running()
	m.Reboot()
	for _, unit := range []string{"other.service", "vendor.service", "box.service"} {
		if want[unit] == "" {
			t.Errorf("%s did not run before the boot", unit)
		}
		m.WaitFor(time.Minute, func() bool { return m.UnitState(unit).ActiveState == "active" }, unit+" after the boot")
	}
	m.healthy()
}

func TestConvergeOnDebian12(t *testing.T) {
	m := on(t, bootedhost.Debian12)
	m.vendorUnit("vendor.service")
	m.Repo().Write("app.service", sleeper())
	config := func(nice string) string {
		return unlines("systemd: {units: [",
			"  {name: app.service, enabled: true, contents_local: app.service, dropins: [{name: 10-nice.conf, contents: \"[Service]\\nNice="+nice+"\\n\"}]},",
			"  {name: vendor.service, mask: true},",
			"]}")
	}
	m.push(config("1"))
	m.expect("the first run", m.during(func() { m.converge() }), "app.service started", "vendor.service stopped")
	m.gives("enabled", "systemctl", "is-enabled", "app.service")
	m.push(config("2"))
	m.expect("a changed drop-in", m.during(func() { m.converge() }), "app.service restarted")
	m.gives("2", "systemctl", "show", "--value", "--property=Nice", "app.service")
	m.push("systemd: {units: [{name: vendor.service, mask: false}]}")
	m.expect("the removal", m.during(func() { m.converge() }), "app.service stopped", "vendor.service started")
	m.gives("", "find", "/etc/systemd/system", "-name", "*app*")
	m.gives("character special file 1:3 666", "stat", "--format=%F %t:%T %a", "/dev/null")
	m.gives("running", "systemctl", "is-system-running")
}
