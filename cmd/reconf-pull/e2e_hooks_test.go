package main_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// hook makes a script of the host's own; without #! it is for sh.
func (m *machine) hook(script string, lines ...string) {
	m.t.Helper()
	if !strings.HasPrefix(lines[0], "#!") {
		lines = append([]string{"#!/bin/sh"}, lines...)
	}
	m.Write("/etc/reconf-pull/hooks/"+script, []byte(unlines(lines...)), 0o755)
}

// repoHook makes a script of web1's in the fleet repo, for the next push.
func (m *machine) repoHook(script string, lines ...string) {
	m.t.Helper()
	m.Repo().WriteScript("hosts/web1/hooks/"+script, unlines(append([]string{"#!/bin/sh"}, lines...)...))
}

// logged is what scripts wrote to their log since the last time.
func (m *machine) logged() string {
	m.t.Helper()
	text, _ := m.Try("cat", "/var/log/hooks")
	m.write("/var/log/hooks", "")
	return strings.TrimSpace(text)
}

// impatient lets a step that failed be begun again by the very next run.
func (m *machine) impatient() {
	m.t.Helper()
	m.Run("sed", "-i", "$a [retry]\\nbackoff = '0s'", "/etc/reconf-pull/config.toml")
}

// held is the digest that is not tried again.
func (m *machine) held() string {
	m.t.Helper()
	var st struct{ Held struct{ Digest string } }
	if err := json.Unmarshal(m.Read("/var/lib/reconf-pull/state.json"), &st); err != nil {
		m.t.Fatal(err)
	}
	return st.Held.Digest
}

// fails pulls and expects exit status 1 and the words.
func (m *machine) fails(words ...string) {
	m.t.Helper()
	status, said := m.pull()
	if status != 1 {
		m.t.Errorf("the run ended with %d", status)
	}
	m.says(said, words...)
}

func (m *machine) says(text string, words ...string) {
	m.t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			m.t.Errorf("%q is not said:\n%s", word, text)
		}
	}
}

// begins starts the agent and waits until one of its scripts has made a file.
func (m *machine) begins(file string) {
	m.t.Helper()
	m.Run("systemctl", "start", "--no-block", agent)
	m.WaitFor(time.Minute, func() bool { return m.Exists(file) }, file)
}

func (m *machine) ends() (int, string) {
	m.t.Helper()
	m.WaitFor(time.Minute, func() bool {
		state := m.UnitState(agent).ActiveState
		return state == "inactive" || state == "failed"
	}, "the end of the run")
	return m.lastPull()
}

// appPush is a config with one file and one unit that both say the version.
func (m *machine) appPush(version string, more ...string) (commit string) {
	m.t.Helper()
	m.Repo().Write("app.service", "# "+version+"\n"+sleeper())
	m.push(append([]string{
		"storage: {files: [{path: /etc/app.conf, contents: {inline: " + version + "}}]}",
		"systemd: {units: [{name: app.service, enabled: true, contents_local: app.service}]}",
	}, more...)...)
	return m.Repo().Git("rev-parse", "HEAD")
}

func TestScriptsRunAroundAChange(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	first := m.appPush("one")
	m.converge()
	for _, phase := range []string{"pre_update", "pre_configure", "configure", "post_configure", "migration", "post_update", "health", "error"} {
		m.hook(phase+".d/10-log", `{
echo "$RECONF_PHASE file=$(cat /etc/app.conf) app=$(systemctl show --value --property=InvocationID app.service)"
env | grep ^RECONF_ | grep -v _FILE= | grep -v ^RECONF_PHASE= | sort
tr '\n' ' ' <"$RECONF_CHANGED_UNITS_FILE"; echo
tr '\n' ' ' <"$RECONF_CHANGED_PATHS_FILE"; echo
} >>/var/log/hooks`)
	}
	m.hook("needs_update.d/10-no", "exit 0")
	m.hook("update.d/10-never", "echo update >>/var/log/hooks") // there is no OS work
	m.hook("needs_reboot.d/10-no", "exit 0")
	m.hook("pre-update.d/10-never", "echo never >>/var/log/hooks")

	before := m.property("app.service", "InvocationID")
	second := m.appPush("two")
	said := m.converge()
	after := m.property("app.service", "InvocationID")
	var applied struct{ Applied struct{ Digest string } }
	if err := json.Unmarshal(m.Read("/var/lib/reconf-pull/state.json"), &applied); err != nil {
		t.Fatal(err)
	}
	block := func(phase, file, unit string) string {
		return unlines(phase+" file="+file+" app="+unit,
			"RECONF_COMMIT="+second, "RECONF_DIGEST="+applied.Applied.Digest, "RECONF_HOST=web1",
			"RECONF_PREVIOUS_COMMIT="+first, "RECONF_REASONS=the host config changed",
			"app.service ", "/etc/app.conf /etc/systemd/system/app.service ")
	}
	m.expect("what the scripts saw", strings.Split(m.logged(), "\n"), strings.Split(strings.TrimSpace(
		block("pre_update", "one", before)+block("pre_configure", "one", before)+block("configure", "two", before)+
			block("post_configure", "two", after)+block("migration", "two", after)+block("post_update", "two", after)+block("health", "two", after)), "\n")...)
	if n := strings.Count(said, "/etc/reconf-pull/hooks/pre-update.d"); n != 1 {
		t.Errorf("the run names pre-update.d %d times:\n%s", n, said)
	}
	m.says(said, "is it meant to be pre_update.d?")

	quiet := func(what string) {
		t.Helper()
		m.expect(what, m.during(func() { m.says(m.converge(), "/etc/reconf-pull/hooks/pre-update.d") }))
		m.expect(what, strings.Fields(m.logged()))
	}
	quiet("a second run")
	m.appPush("two", "# a comment")
	quiet("a comment")

	// What migrated is done for good, also under another name; another content is not.
	m.Run("mv", "/etc/reconf-pull/hooks/migration.d/10-log", "/etc/reconf-pull/hooks/migration.d/30-log")
	m.hook("migration.d/20-new", "echo migrated >>/var/log/hooks")
	m.appPush("two", "# another comment")
	m.expect("a new migration", m.during(func() { m.converge() }))
	if log := m.logged(); strings.Count(log, "migrated") != 1 || strings.Contains(log, "migration ") {
		t.Errorf("a new migration: the log has\n%s", log)
	}
	m.appPush("three")
	m.converge()
	if log := m.logged(); strings.Contains(log, "migrat") || !strings.Contains(log, "health file=three") {
		t.Errorf("after the migration: the log has\n%s", log)
	}
}

func TestScriptThatFailsBeforeTheChange(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.impatient()
	m.appPush("one")
	m.converge()
	m.hook("pre_update.d/10-drain", "echo pre_update >>/var/log/hooks", "echo the database is busy >&2", "exit 3")
	m.hook("pre_configure.d/10-log", "echo pre_configure >>/var/log/hooks")
	m.hook("post_update.d/10-log", "echo post_update >>/var/log/hooks")
	m.hook("error.d/10-log", `echo "$RECONF_PHASE $RECONF_FAILED_STEP $RECONF_ERROR" >>/var/log/hooks`)
	m.hook("error.d/20-bad", "exit 9")
	m.appPush("two")
	const failed = "error pre-update pre_update.d/10-drain: exit status 3: the database is busy"
	m.expect("three runs", m.during(func() {
		for attempt := 1; attempt <= 3; attempt++ {
			m.fails("pre_update.d/10-drain: exit status 3: the database is busy", "error.d/20-bad: exit status 9")
			m.gives("one", "cat", "/etc/app.conf")
			want := []string{"pre_update", failed}
			if attempt == 3 { // what pre_update.d stopped is started again before anybody is told
				want = []string{"pre_update", "post_update", failed}
			}
			m.expect(fmt.Sprintf("the log of start %d", attempt), strings.Split(m.logged(), "\n"), want...)
			if change := m.openChange(); (change == nil) != (attempt == 3) {
				t.Errorf("after start %d the change under way is %+v", attempt, change)
			}
		}
		if m.held() == "" {
			t.Error("no digest is held")
		}
		for range 2 {
			m.fails("is held since", "the database is busy", "reconf-pull retry")
		}
	}))
	m.expect("the log while it is held", strings.Fields(m.logged()))
	m.gives("one", "cat", "/etc/app.conf")
	if out, status := m.Try("reconf-pull", "status"); status != 1 || !strings.Contains(out, "pre-update: pre_update.d/10-drain") {
		t.Errorf("status ends with %d:\n%s", status, out)
	}

	m.hook("pre_update.d/10-drain", "echo pre_update >>/var/log/hooks")
	m.Run("reconf-pull", "retry")
	m.expect("the retry", m.during(func() { m.converge() }), "app.service restarted")
	m.expect("its log", strings.Fields(m.logged()), "pre_update", "pre_configure", "post_update")
	m.gives("two", "cat", "/etc/app.conf")
}

// A step that is tried again goes on from itself: what was done before it is
// not done twice.
func TestScriptThatFailsOnce(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.impatient()
	m.hook("pre_update.d/10-log", "echo pre_update >>/var/log/hooks")
	m.hook("post_update.d/10-once", "echo post_update >>/var/log/hooks", "test -e /run/once || { touch /run/once; exit 1; }")
	m.appPush("one")
	m.fails("post_update.d/10-once: exit status 1")
	m.expect("the first run", strings.Fields(m.logged()), "pre_update", "post_update")
	m.expect("the second run", m.during(func() { m.converge() }))
	m.expect("the second run", strings.Fields(m.logged()), "post_update")
}

func TestUnhealthyChangeIsUndone(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.hook("health.d/10-app", "cat /etc/app.conf; ! grep --quiet ill /etc/app.conf")
	repo := m.Repo()
	repo.Write("leaves.service", sleeper())
	repo.Write("comes.service", sleeper())
	push := func(version, units string) {
		t.Helper()
		repo.Write("app.service", sleeper("Environment=VERSION="+version))
		m.push("storage: {files: [{path: /etc/app.conf, contents: {inline: "+version+"}}]}",
			"systemd: {units: [{name: app.service, enabled: true, contents_local: app.service}"+units+"]}")
	}
	push("well", ", {name: leaves.service, enabled: true, contents_local: leaves.service}")
	m.converge()
	before := m.Run("find", "/etc", "-not", "-path", "/etc/systemd/system", "-printf", "%p %y %m %u %s %l\n")
	push("ill", ", {name: comes.service, enabled: true, contents_local: comes.service}")
	m.expect("the bad push", m.during(func() {
		m.fails("health: health.d/10-app: exit status 1: ill", "rolled back")
	}), "app.service restarted", "leaves.service restarted")
	after := m.Run("find", "/etc", "-not", "-path", "/etc/systemd/system", "-printf", "%p %y %m %u %s %l\n")
	m.expect("/etc after it", strings.Split(after, "\n"), strings.Split(before, "\n")...)
	m.gives("well", "cat", "/etc/app.conf")
	m.gives("VERSION=well", "sh", "-c", "tr '\\0' '\\n' </proc/$(systemctl show --value --property=MainPID app.service)/environ | grep VERSION")
	m.gives("enabled", "systemctl", "is-enabled", "leaves.service")
	m.gives("not-found", "systemctl", "show", "--value", "--property=LoadState", "comes.service")
	m.gives("inactive", "systemctl", "is-active", "comes.service")
	if m.held() == "" {
		t.Error("no digest is held")
	}
	out, status := m.Try("reconf-pull", "status")
	if status != 1 {
		t.Errorf("status ends with %d", status)
	}
	m.says(out, "health: health.d/10-app: exit status 1: ill", "held:")
	m.expect("the next run", m.during(func() { m.fails("is held since") }))
	push("better", ", {name: comes.service, enabled: true, contents_local: comes.service}")
	m.expect("the fixed push", m.during(func() { m.converge() }), "app.service restarted", "comes.service started", "leaves.service stopped")
}

// hangs is a script with everything that makes it hard to end.
const hangs = `#!/bin/bash
trap '' TERM HUP INT
echo $$ >>/run/pids
(trap '' TERM; echo $BASHPID >>/run/pids; while :; do sleep 600; done) &
(setsid bash -c 'trap "" TERM; echo $$ >>/run/pids; touch /run/hangs-$1; while :; do sleep 600; done' sh "$RECONF_PHASE" &)
while :; do sleep 600; done`

func TestScriptThatHangs(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[hooks]", "timeout = '2s'")
	allGone := func() {
		t.Helper()
		pids := strings.Fields(string(m.Read("/run/pids")))
		if len(pids) != 3 {
			t.Errorf("the processes were %q", pids)
		}
		for _, pid := range pids {
			if _, status := m.Try("kill", "-0", pid); status == 0 {
				t.Errorf("%s lives on", pid)
			}
		}
		m.Run("rm", "/run/pids")
	}
	m.hook("pre_update.d/10-hangs", hangs)
	m.appPush("one")
	began := time.Now()
	m.fails("pre_update.d/10-hangs: its time limit of 2s is over")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the run took %s", took)
	}
	allGone()

	// A run that is stopped gives the attempt back, however often.
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[retry]", "backoff = '0s'")
	m.Run("mkdir", "--parents", "/etc/reconf-pull/hooks/configure.d")
	m.Run("mv", "/etc/reconf-pull/hooks/pre_update.d/10-hangs", "/etc/reconf-pull/hooks/configure.d/")
	for range 4 {
		m.Run("rm", "--force", "/run/hangs-configure")
		m.begins("/run/hangs-configure")
		began = time.Now()
		m.Run("systemctl", "stop", agent)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopping took %s", took)
		}
		if status, said := m.lastPull(); status != 75 || !strings.Contains(said, "ended by a signal") {
			t.Errorf("the run ended with %d:\n%s", status, said)
		}
		allGone()
		if change := m.openChange(); change == nil || change.doing() != "configure" {
			t.Fatalf("the change under way is %+v", change)
		}
	}
	m.Run("rm", "/etc/reconf-pull/hooks/configure.d/10-hangs")
	m.expect("the last run", m.during(func() { m.converge() }), "app.service started")
	m.gives("one", "cat", "/etc/app.conf")
}

// A push after which the host cannot pull any more undoes itself.
func TestPushThatCutsTheHostOff(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	const name = "fleet.invalid"
	_, port, _ := strings.Cut(daemon(t, filepath.Dir(m.Repo().Dir())), ":")
	url := "git://" + name + ":" + port + "/fleet.git"
	config := func(url string) string {
		return unlines("[source]", "url = '"+url+"'", "[service]", "settle = '500ms'")
	}
	hosts := unlines("127.0.0.1 localhost " + name)
	m.Write("/etc/hosts", []byte(hosts), 0o644)
	m.Write("/etc/reconf-pull/config.toml", []byte(config(url)), 0o644)
	push := func(version, config, hosts string) {
		t.Helper()
		m.Repo().Write("config.toml", config)
		m.Repo().Write("hosts.txt", hosts)
		m.push("storage:", "  files:",
			"    - {path: /etc/version, contents: {inline: "+version+"}}",
			"    - {path: /etc/reconf-pull/config.toml, overwrite: true, contents: {local: config.toml}}",
			"    - {path: /etc/hosts, overwrite: true, contents: {local: hosts.txt}}")
	}
	push("first", config(url), hosts)
	m.converge()
	for _, bad := range []struct{ what, config, hosts string }{
		{"another fleet repo", config("git://" + name + ":1/fleet.git"), hosts},
		{"no name", config(url), unlines("127.0.0.1 localhost")},
		{"no configuration", "[source]\nurll = 'x'\n", hosts},
	} {
		t.Log(bad.what)
		push("bad", bad.config, bad.hosts)
		began := time.Now()
		m.fails("health: the fleet repo cannot be reached any more from the changed host", "the change was rolled back")
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("%s: it took %s", bad.what, took)
		}
		m.gives("first", "cat", "/etc/version")
		m.gives(strings.TrimSpace(hosts), "cat", "/etc/hosts")
		m.gives(strings.TrimSpace(config(url)), "cat", "/etc/reconf-pull/config.toml")
		m.fails("is held since", "the fleet repo cannot be reached")
	}
	push("good", config(url)+"# changed\n", unlines("# changed")+hosts)
	m.converge()
	m.gives("good", "cat", "/etc/version")
}

// locks are reconf-pull's inhibitors: how they act, and their whole line.
func (m *machine) locks() (lines []string) {
	m.t.Helper()
	for line := range strings.Lines(m.Run("systemd-inhibit", "--list", "--no-pager", "--no-legend")) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "reconf-pull" {
			lines = append(lines, fields[len(fields)-1]+" "+line)
		}
	}
	return lines
}

func TestShutdownIsHeldOff(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.hook("configure.d/10-slow", "touch /run/slow", "read line </run/go")
	m.Run("mkfifo", "/run/go")
	m.expect("the locks before", m.locks())
	m.appPush("one")
	m.begins("/run/slow")
	if got := m.locks(); len(got) != 1 || !strings.HasPrefix(got[0], "block ") || !strings.Contains(got[0], " shutdown ") {
		t.Errorf("the locks meanwhile are %q", got)
	}
	m.Run("sh", "-c", "echo >/run/go")
	if status, said := m.ends(); status != 0 {
		t.Errorf("the run ended with %d:\n%s", status, said)
	}
	m.healthy()
	m.expect("the locks afterwards", m.locks())
}

// What a killed run leaves of the way back is done by the next one, which tells
// error.d and holds off a shutdown, too.
func TestKilledOnTheWayBack(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	m.Run("mkfifo", "/run/go")
	m.hook("health.d/10-ill", "exit 1")
	m.hook("post_update.d/10-slow", "grep --quiet two /etc/app.conf && exit", "touch /run/slow", "read line </run/go")
	m.hook("error.d/10-log", `echo "$RECONF_FAILED_STEP" >>/var/log/hooks`)
	m.appPush("two")
	for range 2 {
		m.begins("/run/slow")
		if got := m.locks(); len(got) != 1 {
			t.Errorf("the locks on the way back are %q", got)
		}
		m.Kill(agent, syscall.SIGKILL)
		m.ends()
		m.Run("rm", "/run/slow")
	}
	m.begins("/run/slow")
	m.Run("sh", "-c", "echo >/run/go")
	if status, said := m.ends(); status != 1 || !strings.Contains(said, "is held since") {
		t.Errorf("the run ended with %d:\n%s", status, said)
	}
	m.expect("what error.d was told", strings.Fields(m.logged()), "health")
	m.expect("the locks afterwards", m.locks())
	m.gives("one", "cat", "/etc/app.conf")
}

// Scripts of the fleet repo are merged with the host's own, by name.
func TestScriptsOfTheFleetRepo(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	const log = `echo "$RECONF_PHASE ${0##*/} $(cat /etc/app.conf) of the repo" >>/var/log/hooks`
	const own = `echo "$RECONF_PHASE ${0##*/} $(cat /etc/app.conf) of the host" >>/var/log/hooks`
	for _, name := range []string{"10-repo", "20-both", "30-masked"} {
		m.repoHook("post_update.d/"+name, log)
	}
	m.Repo().Write("hosts/web1/hooks/post_update.d/40-off", unlines("#!/bin/sh", log))
	m.repoHook("migration.d/10-schema", log)
	m.hook("post_update.d/15-own", own)
	m.hook("post_update.d/20-both", own)
	m.Run("ln", "--symbolic", "/dev/null", "/etc/reconf-pull/hooks/post_update.d/30-masked")
	logs := func(what, version string, scripts ...string) {
		t.Helper()
		var want []string
		for _, script := range scripts {
			phase, whose, _ := strings.Cut(script, " of ")
			want = append(want, phase+" "+version+" of "+whose)
		}
		got := strings.Split(m.logged(), "\n")
		if got[0] == "" {
			got = nil
		}
		m.expect(what, got, want...)
	}
	common := []string{"post_update 10-repo of the repo", "post_update 15-own of the host", "post_update 20-both of the host"}
	m.appPush("one")
	m.says(m.converge(), "hooks/post_update.d/40-off is not run: not executable")
	logs("the first run", "one", append([]string{"migration 10-schema of the repo"}, common...)...)
	m.appPush("two")
	m.converge()
	logs("the second run", "two", common...)
	m.appPush("two", "# a comment")
	m.converge()
	logs("a comment", "two")

	// A new script is work, although no file and no unit changes.
	m.repoHook("pre_update.d/50-new", log)
	m.appPush("two", "# a comment")
	out, status := m.Try("reconf-pull", "plan")
	if status != 3 {
		t.Errorf("plan ends with %d", status)
	}
	m.expect("the plan", strings.Split(strings.TrimSpace(out), "\n"),
		"Plan: nothing to change.",
		"Scripts:",
		"  run pre_update.d/50-new (hosts/web1/hooks/pre_update.d/50-new of the fleet repo, new)",
		"  run post_update.d/10-repo (hosts/web1/hooks/post_update.d/10-repo of the fleet repo)",
		"  run post_update.d/15-own (/etc/reconf-pull/hooks/post_update.d/15-own)",
		"  run post_update.d/20-both (/etc/reconf-pull/hooks/post_update.d/20-both)",
		"  note: /etc/reconf-pull/hooks/post_update.d/30-masked is not run: a mask: a link to /dev/null",
		"  note: hosts/web1/hooks/post_update.d/20-both is not run: /etc/reconf-pull/hooks/post_update.d/20-both takes its place",
		"  note: hosts/web1/hooks/post_update.d/30-masked is not run: masked by /etc/reconf-pull/hooks/post_update.d/30-masked",
		"  note: hosts/web1/hooks/post_update.d/40-off is not run: not executable")
	m.expect("the run of a new script", m.during(func() { m.converge() }))
	logs("a new script", "two", append([]string{"pre_update 50-new of the repo"}, common...)...)

	// One that is gone runs no more, and taking it away is no work.
	m.Repo().Remove("hosts/web1/hooks/pre_update.d")
	m.Repo().Remove("hosts/web1/hooks/post_update.d/20-both")
	m.appPush("two", "# a comment")
	m.says(m.converge(), "nothing to change on the host")
	logs("the removal", "two")
	m.Run("rm", "/etc/reconf-pull/hooks/post_update.d/20-both")
	m.appPush("three")
	m.converge()
	logs("after the removal", "three", common[:2]...)

	// A rollback uses the scripts that were pinned with the change.
	m.repoHook("health.d/10-ill", log, "exit 1")
	m.repoHook("post_update.d/10-repo", "# edited", log)
	m.appPush("four")
	m.fails("health.d/10-ill: exit status 1", "rolled back")
	want := []string{
		"post_update 10-repo four of the repo", "post_update 15-own four of the host", "health 10-ill four of the repo",
		"post_update 10-repo three of the repo", "post_update 15-own three of the host",
	}
	m.expect("a rollback", strings.Split(m.logged(), "\n"), want...)
}

// Neither the mirror nor the fleet repo is asked for what a change that was cut
// off still has to do.
func TestPinnedScriptsAreTheOnesThatRun(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("mkfifo", "/run/go")
	m.repoHook("configure.d/10-slow", "touch /run/slow", "read line </run/go")
	m.repoHook("health.d/10-log", "echo the pinned one >>/var/log/hooks")
	m.appPush("one")
	m.begins("/run/slow")
	m.Kill(agent, syscall.SIGKILL)
	m.ends()
	m.Run("rm", "--recursive", "/var/cache/reconf-pull/mirror", "/run/slow")
	m.Repo().Remove("hosts/web1/hooks/configure.d")
	m.repoHook("health.d/10-log", "echo another one >>/var/log/hooks")
	m.Repo().Git("add", "--all")
	m.Repo().Git("commit", "--quiet", "--amend", "--message=rewritten")
	m.Repo().Git("push", "--quiet", "--force", "origin", "HEAD:main")
	m.begins("/run/slow")
	m.gives("", "sh", "-c", "cat /var/log/hooks 2>/dev/null || true")
	m.Run("sh", "-c", "echo >/run/go")
	status, said := m.ends()
	if status != 65 {
		t.Errorf("the run ended with %d:\n%s", status, said)
	}
	m.says(said, "was finished", "the history of main was rewritten")
	m.expect("the log", strings.Split(m.logged(), "\n"), "the pinned one")
	// What was rewritten comes after it once somebody accepts it, as a change of its own.
	m.Run("reconf-pull", "accept-history", m.Repo().Git("rev-parse", "HEAD"))
	m.converge()
	m.expect("the log after it", strings.Split(m.logged(), "\n"), "another one")
	m.gives("the pinned one", "sh", "-c", "sh /var/lib/reconf-pull/generations/1/hooks/health.d/10-log; tail -n 1 /var/log/hooks; : >/var/log/hooks")
	m.gives("700 root root", "stat", "--format=%a %U %G", "/var/lib/reconf-pull/generations/1/hooks")
	m.gives("755 root root", "stat", "--format=%a %U %G", "/var/lib/reconf-pull/generations/1/hooks/health.d/10-log")

	// What was pinned and is gone, or was changed, is not gone over.
	m.hook("configure.d/10-slow", "touch /run/slow", "read line </run/go")
	m.Run("rm", "--force", "/run/slow")
	m.appPush("two")
	m.begins("/run/slow")
	m.Kill(agent, syscall.SIGKILL)
	m.ends()
	m.Run("sh", "-c", "rm /run/slow /etc/reconf-pull/hooks/configure.d/10-slow; echo '#!/bin/sh' >/var/lib/reconf-pull/changes/"+m.openChange().ID+"/hooks/health.d/10-log")
	m.says(m.converge(), "is made anew from its source", "hooks/health.d/10-log is not what was stored")
	m.expect("the log after damage", strings.Split(m.logged(), "\n"), "another one")
	m.gives("two", "cat", "/etc/app.conf")
}
