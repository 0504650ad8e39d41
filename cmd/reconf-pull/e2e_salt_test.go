package main_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// withHostSalt is a booted host that has a stand-in for salt-call on its PATH.
func withHostSalt(t *testing.T, settings ...string) *machine {
	m := on(t, bootedhost.Debian13)
	binary, err := standIn()
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/usr/bin/salt-call", binary, 0o755)
	m.write("/etc/reconf-pull/config.toml", append([]string{
		"[source]", "url = '" + bootedhost.RepoURL + "'",
		"[service]", "settle = '500ms'",
		"[[service.watch]]", "path = '/etc/migrated/{unit}.conf'", "unit = '{unit}.service'",
	}, settings...)...)
	m.Run("mkdir", "-p", "/run/stand-in", "/home/core")
	return m
}

// migrating is everywhere with a service whose configuration a migration writes.
func (m *machine) pushMigrating(version string, states ...string) {
	m.t.Helper()
	m.Repo().Write("hosts/web1/10-conf.sls", unlines(append([]string{
		"/etc/migrated:", "  file.directory:", "  - mode: '0755'",
		"/etc/migrated/old.conf:", "  file.managed:", "  - contents: " + version, "  - mode: '0600'",
	}, states...)...))
	m.Repo().Write("old.service", sleeper())
	m.Repo().Write("tool", "\x7fELF\x00"+version)
	config := slices.Insert(everywhere(version), 3, "    - {path: /etc/secret, mode: 0600, contents: {inline: hunter2 "+version+"}}")
	m.push(append(config, "    - {name: old.service, enabled: true, contents_local: old.service}")...)
}

func (m *machine) hasMigrated(version string) {
	m.t.Helper()
	m.hasEverywhere(version)
	m.gives(version, "cat", "/etc/migrated/old.conf")
	m.gives("hunter2 "+version, "cat", "/etc/secret")
	m.Run("journalctl", "--sync")
	m.gives("", "sh", "-c", "journalctl --quiet --boot | grep hunter2; grep -rl hunter2 /run /var/log /var/cache /tmp")
}

// The salt-call of the host carries out what the container does; files that
// migrations change reach the units that they belong to, once.
func TestSaltOnHost(t *testing.T) {
	m := withHostSalt(t, "[engine]", "kind = 'salt'")
	m.pushEverywhere("one")
	m.expect("the first run", m.during(func() { m.converge() }), "app.service started")
	m.expect("the calls of Salt", m.salts(), "mock", "test", "real")
	m.hasEverywhere("one")
	m.noSalt()
	m.gives("engine:   salt: engine.kind says so", "sh", "-c", "reconf-pull status | grep ^engine:")

	t.Log("a migration makes it Salt's by itself")
	m.Run("sed", "-i", "s/^kind = .*/kind = 'auto'/", "/etc/reconf-pull/config.toml")
	m.pushMigrating("two")
	m.expect("the second run", m.during(func() { m.converge() }), "app.service restarted", "old.service started")
	m.expect("the calls of Salt", m.salts(), "mock", "test", "real")
	m.hasMigrated("two")
	m.noSalt()
	m.gives("engine:   salt: the host config has *.sls migrations, and salt-call is there", "sh", "-c", "reconf-pull status | grep ^engine:")

	t.Log("only the migration is another one")
	m.Repo().Write("hosts/web1/10-conf.sls", "/etc/migrated/old.conf:\n  file.managed:\n  - contents: three\n  - mode: '0600'\n")
	m.Repo().Push("another migration")
	m.expect("the third run", m.during(func() { m.converge() }), "old.service restarted")
	m.gives("three", "cat", "/etc/migrated/old.conf")
	for list, want := range map[string]string{"paths_changed": "/etc/migrated/old.conf", "service_changed": "old.service"} {
		m.gives(want, "cat", "/var/lib/reconf-pull/generations/3/"+list+".list")
	}
	if shown := m.Run("reconf-pull", "show"); !strings.Contains(shown, "migrate    /etc/migrated/old.conf\n") || !strings.Contains(shown, "touched    old.service") {
		t.Errorf("show says:\n%s", shown)
	}
	m.salts()

	t.Log("it runs again, and changes nothing")
	m.Repo().Write("hosts/web1/20-other.bu", "variant: fcos\nversion: 1.6.0\nstorage: {files: [{path: /etc/other, contents: {inline: x}}]}\n")
	m.Repo().Git("mv", "hosts/web1.bu", "hosts/web1/10-web1.bu")
	m.Repo().Push("one more file")
	m.expect("the fourth run", m.during(func() { m.converge() }))
	m.expect("the calls of Salt", m.salts(), "mock", "test", "real")
	m.noSalt()
}

// What fails in the run is rolled back, but for migrations, and whoever their files
// belong to hears of them from the change that succeeds.
func TestSaltOnHostFails(t *testing.T) {
	m := withHostSalt(t)
	m.pushMigrating("one")
	m.Run("sh", "-c", "cp /etc/reconf-pull/config.toml /etc/before; printf \"[engine]\\nkind = 'native'\\n\" >>/etc/reconf-pull/config.toml")
	for _, want := range []string{"hosts/web1/10-conf.sls is a migration for Salt, and engine.kind is \"native\"", "hint: set engine.kind = \"auto\", or take the file out of the fleet repo"} {
		if status, said := m.pull(); status != 65 || !strings.Contains(said, want) {
			t.Errorf("the native engine: the run ended with %d:\n%s", status, said)
		}
	}
	m.Run("mv", "/etc/before", "/etc/reconf-pull/config.toml")
	m.converge()
	m.salts()
	m.pushMigrating("two", "something:", "  no.such: []")
	m.expect("a migration that fails", m.during(func() {
		status, said := m.pull()
		for _, want := range []string{"hosts/web1/10-conf.sls", "state something (no.such): State 'no.such' was not found"} {
			if status != 65 || !strings.Contains(said, want) {
				t.Errorf("%q: the run ended with %d:\n%s", want, status, said)
			}
		}
	}))
	m.expect("the calls of Salt", m.salts(), "mock", "test")
	m.hasMigrated("one")

	m.pushMigrating("two")
	m.write("/run/stand-in/fail-real")
	m.during(func() {
		if status, said := m.pull(); status != 1 || !strings.Contains(said, "rolled back") || !strings.Contains(said, "what the *.sls migrations did besides is not rolled back") {
			t.Errorf("the run ended with %d:\n%s", status, said)
		}
	})
	m.hasEverywhere("one")
	m.gives("two", "cat", "/etc/migrated/old.conf")
	m.noSalt()
	m.Run("rm", "/run/stand-in/fail-real")
	m.pushMigrating("two", "# another digest")
	m.expect("the run that succeeds", m.during(func() { m.converge() }), "app.service restarted", "old.service restarted")
	m.hasMigrated("two")
	m.pushMigrating("three")
	m.expect("the one after it", m.during(func() { m.converge() }), "app.service restarted", "old.service restarted")
}

// A Salt that is cut off half way is gone on with or rolled back, however it ended,
// and what it did is not forgotten.
func TestSaltOnHostIsCutOff(t *testing.T) {
	m := withHostSalt(t)
	m.pushMigrating("one")
	m.converge()
	alive := func() string { return m.Run("sh", "-c", "cat /var/lib/stand-in/alive 2>/dev/null || :") }
	hang := func(when, version string) {
		t.Helper()
		m.pushMigrating(version)
		m.Run("rm", "--force", "/var/lib/stand-in/alive")
		m.write("/run/stand-in/hang-" + when)
		m.Run("systemctl", "start", "--no-block", agent)
		m.WaitFor(time.Minute, func() bool { return alive() != "" }, "Salt to hang")
		m.gives(version, "cat", "/etc/app.conf") // it has begun
	}
	half := func(version string) { hang("half", version) }
	goOn := func(version string) {
		t.Helper()
		m.Run("rm", "--force", "/run/stand-in/hang-half", "/run/stand-in/hang-end")
		m.expect("the run that goes on", m.during(func() { m.converge() }), "app.service restarted", "old.service restarted")
		m.hasMigrated(version)
		m.noSalt()
	}

	t.Log("kill -9 of the agent")
	half("killed")
	m.Kill(agent, syscall.SIGKILL)
	m.WaitFor(time.Minute, func() bool { return m.property(agent, "ActiveState") == "failed" }, "the end of the agent")
	goOn("killed")

	t.Log("kill -9 of the agent when the migration is done and nobody knows")
	hang("end", "unknown")
	m.gives("unknown", "cat", "/etc/migrated/old.conf")
	m.Kill(agent, syscall.SIGKILL)
	m.WaitFor(time.Minute, func() bool { return m.property(agent, "ActiveState") == "failed" }, "the end of the agent")
	goOn("unknown")

	t.Log("SIGTERM")
	half("ended")
	m.Run("systemctl", "stop", agent)
	m.noSalt()
	if got := m.property(agent, "ExecMainStatus"); got != "75" {
		t.Errorf("the agent ended with %s", got)
	}
	goOn("ended")

	t.Log("kill -9 of Salt alone")
	half("salt-killed")
	m.Run("sh", "-c", "rm /run/stand-in/hang-half; kill -9 $(grep -lx salt-call /proc/[0-9]*/comm | cut -d/ -f3)")
	m.WaitFor(time.Minute, func() bool { return m.property(agent, "ActiveState") == "failed" }, "the end of the run")
	if status, said := m.lastPull(); status != 1 || !strings.Contains(said, "rolled back") || !strings.Contains(said, "salt-call: ") {
		t.Errorf("the run ended with %d:\n%s", status, said)
	}
	m.hasEverywhere("ended")
	m.noSalt()
	m.Run("reconf-pull", "retry")
	goOn("salt-killed")

	t.Log("a power cut")
	half("cut-off")
	m.PowerCut()
	m.Run("systemctl", "stop", "*.timer")
	m.Run("mkdir", "-p", "/run/stand-in")
	m.WaitFor(time.Minute, func() bool {
		return m.UnitState("reconf-pull-resume.service").ActiveState != "activating" && m.UnitState(agent).ActiveState != "activating"
	}, "the resume at boot")
	m.converge()
	m.hasMigrated("cut-off")
	m.noSalt()
}
