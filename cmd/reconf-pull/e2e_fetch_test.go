package main_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// Who fetches is nobody on the host, owns its mirror and nothing else, and reads no
// state; a host on which nobody made the user has one all the same, and takes the
// user when he comes.
func TestFetchWithoutPrivileges(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	// What an older release left: a mirror of root's in the same place.
	m.Run("git", "clone", "--quiet", "--bare", bootedhost.RepoURL, "/var/cache/reconf-pull/mirror")
	m.Run("chmod", "700", "/var/cache/reconf-pull")
	m.push("storage: {files: [{path: /etc/one, contents: {inline: one}}]}")
	m.converge()
	m.gives("65521:65521 700", "stat", "--format=%u:%g %a", "/var/cache/reconf-pull/mirror")
	m.gives("/var/cache/reconf-pull/mirror\n/var/cache/reconf-pull/mirror/fleet.git", "find", "/var/cache/reconf-pull", "-mindepth", "1", "-maxdepth", "2")
	m.gives("root:root 711", "stat", "--format=%U:%G %a", "/var/cache/reconf-pull")
	m.gives("root:root 700", "stat", "--format=%U:%G %a", "/var/lib/reconf-pull")

	m.Write("/usr/lib/sysusers.d/reconf-pull.conf", mustRead(t, "../../packaging/sysusers.d/reconf-pull.conf"), 0o644)
	m.Run("systemd-sysusers")
	m.push("storage: {files: [{path: /etc/one, contents: {inline: two}}]}")
	m.converge()
	m.gives("two", "cat", "/etc/one")
	m.gives("reconf-pull:reconf-pull 700", "stat", "--format=%U:%G %a", "/var/cache/reconf-pull/mirror")
	m.gives("", "find", "/", "-xdev", "(", "-user", "reconf-pull", "-o", "-group", "reconf-pull", ")", "-not", "-path", "/var/cache/reconf-pull/mirror*")
	m.gives("", "find", "/var/cache/reconf-pull/mirror", "-not", "-user", "reconf-pull")

	// A repository that it may not read says so.
	m.Run("cp", "-r", strings.TrimPrefix(bootedhost.RepoURL, "file://"), "/root/fleet.git")
	m.Run("chmod", "700", "/root")
	m.config("/root/fleet.git")
	if status, said := m.pull(); status != 69 || !strings.Contains(said, "may not read it") || !strings.Contains(said, "chmod -R o+rX") {
		t.Errorf("a repository of root's: %d\n%s", status, said)
	}

	// While a server says nothing, there is time to look at it.
	silent := muteServer(t, "")
	m.config("git://" + silent.address + "/fleet")
	m.Run("systemctl", "start", "--no-block", agent)
	silent.waitFor(t)
	pid := strings.TrimSpace(m.Run("sh", "-c", "grep --files-with-matches [f]etch-child /proc/[0-9]*/cmdline | cut --delimiter=/ --fields=3"))
	status := m.Run("cat", "/proc/"+pid+"/status")
	uid := strings.TrimSpace(m.Run("id", "--user", "reconf-pull"))
	for _, line := range []string{"Uid:\t" + uid + "\t" + uid + "\t" + uid + "\t" + uid, "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Groups:\t \n"} {
		if !strings.Contains(status, line) {
			t.Errorf("its status lacks %q:\n%s", line, status)
		}
	}
	// Killed, the run says so and does not live on.
	m.Run("systemd-run", "--quiet", "--wait", "/bin/sh", "-c", "kill -KILL "+pid) // this machine counts processes in another way
	m.WaitFor(time.Minute, func() bool { return m.UnitState(agent).ActiveState == "failed" }, "the end of the run")
	if status, said := m.lastPull(); status != 1 || !strings.Contains(said, "the process that fetches ended before its time: signal: killed") {
		t.Errorf("killed: %d\n%s", status, said)
	}
	m.config(bootedhost.RepoURL)
	m.converge()
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// analyzed compares what systemd-analyze says of the units with docs/trust.md: the
// figures, and that each thing which is left open has its reason there.
func (m *machine) analyzed() {
	m.t.Helper()
	text := string(mustRead(m.t, "../../docs/trust.md"))
	_, section, _ := strings.Cut(text, "## What the unit may do")
	version := strings.Fields(m.Run("systemctl", "--version"))[1]
	for _, unit := range []string{agent, "reconf-pull-resume.service"} {
		out, _ := m.Try("systemd-analyze", "security", "--no-pager", unit)
		figure := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if figure == nil {
			m.t.Fatalf("systemd-analyze says no figure:\n%s", out)
		}
		if row := "| `" + unit + "` | " + version + " | " + figure[1] + " |"; !strings.Contains(section, row) {
			m.t.Errorf("docs/trust.md lacks %s", row)
		}
	}
	out, _ := m.Try("systemd-analyze", "security", "--no-pager", "--json=short", agent)
	var items []struct {
		Set      *bool
		Name     string
		Exposure *string
	}
	if err := json.Unmarshal([]byte(out), &items); err != nil || len(items) < 50 {
		m.t.Fatalf("%d items: %v\n%.2000s", len(items), err, out)
	}
	for _, item := range items {
		if item.Exposure != nil && !strings.Contains(section, "`"+item.Name+"`") {
			m.t.Errorf("docs/trust.md has no reason why %s is open", item.Name)
		}
	}
}
