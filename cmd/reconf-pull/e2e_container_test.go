package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// standIn is a stand-in for salt-call, built once: there is no Salt to be had.
var standIn = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "stand-in")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "salt-call")
	cmd := exec.Command("go", "build", "-o", binary, "./testdata/stand-in")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the stand-in: %w\n%s", err, out)
	}
	return os.ReadFile(binary)
})

const (
	saltBase   = "localhost/stand-in-base"
	saltFolder = "/run/reconf-pull/salt"
)

// withSalt is a booted host whose changes a stand-in for Salt carries out, in a
// real container; settings go to its config.toml.
func withSalt(t *testing.T, settings ...string) *machine {
	m := on(t, bootedhost.Debian13)
	binary, err := standIn()
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/usr/libexec/stand-in", binary, 0o755)
	// What a RUN of the build needs, and Salt's stand-in.
	m.Run("sh", "-ec", "tar --create --dereference --directory=/ usr/libexec/stand-in usr/bin/sh usr/bin/ln bin/sh $(ldd /bin/sh /usr/bin/ln | grep -o '/lib[^ :]*' | sort -u) | podman import --quiet - "+saltBase)
	m.write("/etc/containers/containers.conf.d/build.conf", "[engine]", `env = ["BUILDAH_ISOLATION=chroot"]`) // nspawn allows no other
	m.write("/etc/reconf-pull/Containerfile", "ARG BASE=registry.invalid/salt", "FROM ${BASE}", "RUN ln -s /usr/libexec/stand-in /usr/bin/salt-call")
	m.engine(append([]string{"file = '/etc/reconf-pull/Containerfile'"}, settings...)...)
	m.Run("mkdir", "-p", "/run/stand-in", "/home/core")
	return m
}

// engine sets the keys of [engine.container].
func (m *machine) engine(container ...string) {
	m.t.Helper()
	m.write("/etc/reconf-pull/config.toml", append([]string{
		"[source]", "url = '" + bootedhost.RepoURL + "'",
		"[service]", "settle = '500ms'",
		"[engine]", "kind = 'salt-container'", "[engine.container]",
	}, container...)...)
}

// salts are the stages in which Salt was called since the last time.
func (m *machine) salts() []string {
	m.t.Helper()
	calls := m.Run("sh", "-c", "mkdir -p /var/lib/stand-in; touch /var/lib/stand-in/calls; cat /var/lib/stand-in/calls; rm /var/lib/stand-in/calls")
	var stages []string
	for line := range strings.Lines(calls) {
		switch {
		case !strings.HasPrefix(line, "-c "+saltFolder+" --local --retcode-passthrough --out=json "):
			m.t.Errorf("Salt was called with %q", line)
		case strings.Contains(line, "mock=True"):
			stages = append(stages, "mock")
		case strings.Contains(line, "test=True"):
			stages = append(stages, "test")
		default:
			stages = append(stages, "real")
		}
	}
	return stages
}

// noSalt expects that nothing is left of Salt: no container, no process, no folder.
func (m *machine) noSalt() {
	m.t.Helper()
	m.gives("", "podman", "ps", "--all", "--quiet")
	m.gives("", "sh", "-c", "grep -lxE 'salt-call|stand-in' /proc/[0-9]*/comm")
	if m.Exists(saltFolder) {
		m.t.Errorf("%s is still there", saltFolder)
	}
	if m.Exists("/run/reconf-pull/salt-image") {
		m.t.Error("the files of the build are still there")
	}
	m.gives("systemd-nspawn", "systemd-detect-virt") // no /run/.containerenv came to the host
}

// pinned are the names of all that the agent keeps: what a refused change must not add to.
func (m *machine) pinned() []string {
	m.t.Helper()
	return strings.Fields(m.Run("find", "/var/lib/reconf-pull"))
}

func (m *machine) images() []string {
	m.t.Helper()
	return strings.Fields(m.Run("podman", "images", "--quiet", "--filter=reference=localhost/reconf-pull-salt"))
}

// everywhere is a host config that writes to every part of the file system that
// a host may have.
func everywhere(version string) []string {
	return []string{
		"storage:",
		"  directories: [{path: /opt/app, mode: 0750}]",
		"  files:",
		"    - {path: /etc/app.conf, contents: {inline: \"" + version + "\\n\"}}",
		"    - {path: /etc/hosts, overwrite: true, contents: {inline: \"127.0.0.1 localhost\\n127.0.1.1 web1 " + version + "\\n\"}}",
		"    - {path: /opt/app/file, mode: 0600, contents: {inline: \"" + version + "\"}}",
		"    - {path: /srv/data, contents: {inline: \"" + version + "\"}}",
		"    - {path: /home/core/file, user: {id: 1000}, group: {id: 1000}, contents: {inline: \"" + version + "\"}}",
		"    - {path: /root/file, contents: {inline: \"" + version + "\"}}",
		"    - {path: /var/lib/app, contents: {inline: \"" + version + "\"}}",
		"    - {path: /usr/local/bin/tool, mode: 0755, contents: {local: tool}}",
		"  links: [{path: /mnt/link, target: /opt/app/file}]",
		"systemd:", "  units:",
		"    - {name: app.service, enabled: true, contents: \"[Service]\\nEnvironment=VERSION=" + version + "\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n\"}",
	}
}

func (m *machine) hasEverywhere(version string) {
	m.t.Helper()
	for _, want := range []struct{ path, content, stat string }{
		{"/etc/app.conf", version + "\n", "644 0:0"},
		{"/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 web1 " + version + "\n", "644 0:0"},
		{"/opt/app/file", version, "600 0:0"},
		{"/srv/data", version, "644 0:0"},
		{"/home/core/file", version, "644 1000:1000"},
		{"/root/file", version, "644 0:0"},
		{"/var/lib/app", version, "644 0:0"},
		{"/usr/local/bin/tool", "\x7fELF\x00" + version, "755 0:0"},
	} {
		if got := string(m.Read(want.path)); got != want.content {
			m.t.Errorf("%s has %q, want %q", want.path, got, want.content)
		}
		m.gives(want.stat, "stat", "--format=%a %u:%g", want.path)
	}
	m.gives("750 0:0", "stat", "--format=%a %u:%g", "/opt/app")
	m.gives("/opt/app/file", "readlink", "/mnt/link")
	m.gives("VERSION="+version, "systemctl", "show", "--value", "--property=Environment", "app.service")
}

// pushEverywhere pushes a version of it.
func (m *machine) pushEverywhere(version string) {
	m.t.Helper()
	m.Repo().Write("tool", "\x7fELF\x00"+version)
	m.push(everywhere(version)...)
}

// The image is built once, Salt writes to the host and nowhere else, and units are
// the host's business; the next update needs neither a build nor a network.
func TestSaltContainer(t *testing.T) {
	m := withSalt(t, "base = '"+saltBase+"'")
	m.pushEverywhere("one")
	var said string
	m.expect("the first run", m.during(func() { said = m.converge() }), "app.service started")
	if !strings.Contains(said, "building the Salt image localhost/reconf-pull-salt:") {
		t.Errorf("the run says nothing of a build:\n%s", said)
	}
	m.expect("the calls of Salt", m.salts(), "mock", "test", "real")
	m.hasEverywhere("one")
	m.noSalt()
	if images := m.images(); len(images) != 1 {
		t.Errorf("there are the images %q", images)
	}
	mounts := m.Run("sh", "-c", "cut -d' ' -f5 /var/lib/stand-in/mounts-real")
	for _, want := range []string{"/etc", "/host_etc", "/var", "/run", "/home", "/root", "/opt", "/srv", "/mnt", "/usr/local"} {
		if !slices.Contains(strings.Fields(mounts), want) {
			t.Errorf("the container has no %s of the host", want)
		}
	}
	for _, own := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if slices.Contains(strings.Fields(mounts), own) {
			t.Errorf("podman has mounted a file of its own at %s, which cannot be renamed over", own)
		}
	}

	t.Log("another change, without the base and without a network")
	m.Run("podman", "rmi", "--force", saltBase)
	m.pushEverywhere("two")
	m.expect("the second run", m.during(func() { said = m.converge() }), "app.service restarted")
	if strings.Contains(said, "image") {
		t.Errorf("the second run says of an image:\n%s", said)
	}
	m.salts()
	m.hasEverywhere("two")
	m.noSalt()

	before := m.pinned()
	for config, wants := range map[string]string{
		"storage: {files: [{path: /etc/app.conf, contents: {inline: three}}, {path: /usr/lib/app, contents: {inline: three}}]}": "/usr/lib/app cannot be written by the Salt container: ",
		"storage: {files: [{path: /etc/app.conf}], links: [{path: /srv/link, target: /etc/app.conf, hard: true}]}":              "/srv/link cannot be made a hard link to /etc/app.conf by the Salt container: ",
	} {
		t.Log("what the container cannot have: " + config)
		m.push(config)
		if status, said := m.pull(); status != 65 || !strings.Contains(said, wants) {
			t.Errorf("it ends with %d:\n%s", status, said)
		}
		m.expect("what is pinned after it", m.pinned(), before...)
		m.expect("the calls of Salt for it", m.salts())
	}
	m.hasEverywhere("two")
	m.noSalt()

	t.Log("files leave the config")
	m.Run("sed", "-i", "1i [apply]\\nallow_mass_removal = true", "/etc/reconf-pull/config.toml")
	m.push("storage: {files: [{path: /etc/app.conf, contents: {inline: \"two\\n\"}}]}")
	m.expect("the removal", m.during(func() { m.converge() }), "app.service stopped")
	for _, gone := range []string{"/opt/app", "/srv/data", "/home/core/file", "/usr/local/bin/tool", "/mnt/link", "/etc/systemd/system/app.service"} {
		if m.Exists(gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	m.noSalt()
}

// What Salt finds stops the update at the step that found it.
func TestSaltContainerFails(t *testing.T) {
	m := withSalt(t, "base = '"+saltBase+"'")
	m.pushEverywhere("one")
	m.converge()
	m.salts()
	m.pushEverywhere("two")
	for stage, calls := range map[string][]string{"mock": {"mock"}, "test": {"mock", "test"}} {
		m.write("/run/stand-in/fail-" + stage)
		before := m.pinned()
		m.expect(stage, m.during(func() {
			if status, said := m.pull(); status != 65 || !strings.Contains(said, "the stand-in was told to fail") {
				t.Errorf("%s: the run ended with %d:\n%s", stage, status, said)
			}
		}))
		m.expect("the calls of Salt when "+stage+" fails", m.salts(), calls...)
		m.expect("what is pinned after "+stage, m.pinned(), before...)
		m.hasEverywhere("one")
		m.noSalt()
		m.Run("rm", "/run/stand-in/fail-"+stage)
	}

	m.write("/run/stand-in/fail-real")
	m.expect("the real run", m.during(func() {
		if status, said := m.pull(); status != 1 || !strings.Contains(said, "the stand-in was told to fail") || !strings.Contains(said, "rolled back") {
			t.Errorf("real: the run ended with %d:\n%s", status, said)
		}
	}))
	m.expect("the calls of Salt when real fails", m.salts(), "mock", "test", "real")
	m.hasEverywhere("one")
	m.noSalt()
	m.Run("rm", "/run/stand-in/fail-real")
	m.Run("reconf-pull", "retry")
	m.converge()
	m.hasEverywhere("two")
}

// However a run ends, its Salt ends with it or before the next one's begins.
func TestSaltContainerIsEnded(t *testing.T) {
	m := withSalt(t, "base = '"+saltBase+"'")
	m.pushEverywhere("one")
	m.converge()
	alive := func() string { return m.Run("sh", "-c", "cat /var/lib/stand-in/alive 2>/dev/null || :") }
	hang := func(stage string) {
		t.Helper()
		m.Run("rm", "--force", "/var/lib/stand-in/alive")
		m.write("/run/stand-in/hang-" + stage)
		m.Run("systemctl", "start", "--no-block", agent)
		m.WaitFor(time.Minute, func() bool { return alive() != "" }, "Salt to hang in "+stage)
	}

	for _, stage := range []string{"test", "real"} {
		t.Log("kill -9 in " + stage)
		m.pushEverywhere("killed-in-" + stage)
		hang(stage)
		m.Kill(agent, syscall.SIGKILL)
		m.WaitFor(time.Minute, func() bool { return m.property(agent, "ActiveState") == "failed" }, "the end of the agent")
		last := alive()
		m.WaitFor(time.Minute, func() bool { return alive() != last }, "a sign of life of the Salt that outlives it")
		if !m.Exists(saltFolder) {
			t.Error("the folder is gone although its Salt runs")
		}
		m.Run("rm", "/run/stand-in/hang-"+stage)
		m.converge()
		m.hasEverywhere("killed-in-" + stage)
		m.noSalt()

		t.Log("SIGTERM in " + stage)
		m.pushEverywhere("ended-in-" + stage)
		hang(stage)
		start := time.Now()
		m.Run("systemctl", "stop", agent)
		t.Logf("the agent ended in %v", time.Since(start).Round(time.Millisecond))
		m.noSalt()
		if got := m.property(agent, "ExecMainStatus"); got != "75" {
			t.Errorf("the agent ended with %s", got)
		}
		m.Run("rm", "/run/stand-in/hang-"+stage)
		m.converge()
		m.hasEverywhere("ended-in-" + stage)
		m.noSalt()
	}

	t.Log("a container of that name is in the way, and its monitor is dead")
	m.pushEverywhere("in-the-way")
	m.write("/run/stand-in/hang-real")
	m.Run("rm", "--force", "/var/lib/stand-in/alive")
	m.Run("podman", "run", "--detach", "--name=reconf-pull-salt", "--privileged", "--network=none", "--volume=/run:/run", "--volume=/var:/var", "--entrypoint=salt-call", m.images()[0])
	m.WaitFor(time.Minute, func() bool { return alive() != "" }, "it to run")
	m.Run("sh", "-c", "kill -9 $(grep -lx conmon /proc/[0-9]*/comm | cut -d/ -f3)")
	m.Run("rm", "/run/stand-in/hang-real")
	m.converge()
	m.hasEverywhere("in-the-way")
	m.noSalt()

	t.Log("the time limit")
	m.Run("sed", "-i", "s/^kind = .*/&\\ntimeout = '1s'/", "/etc/reconf-pull/config.toml")
	m.pushEverywhere("too-late")
	m.write("/run/stand-in/hang-real")
	if status, said := m.pull(); status != 1 || !strings.Contains(said, "its time limit of 1s is over") {
		t.Errorf("the run ended with %d:\n%s", status, said)
	}
	m.hasEverywhere("in-the-way")
	m.noSalt()
}

// An image that cannot be had stops the run before anything is touched, and says
// why; one that is ready is not built.
func TestSaltImage(t *testing.T) {
	m := withSalt(t)
	m.pushEverywhere("one")
	fails := func(wants ...string) {
		t.Helper()
		status, said := m.pull()
		if status != 1 {
			t.Errorf("the run ended with %d", status)
		}
		for _, want := range append(wants, "reconf-pull: hint: ") {
			if !strings.Contains(said, want) {
				t.Errorf("the run does not say %q:\n%s", want, said)
			}
		}
		m.expect("the calls of Salt", m.salts())
		if m.Exists("/etc/app.conf") {
			t.Error("a path was written")
		}
	}
	fails("pulling the base image registry.invalid/salt of /etc/reconf-pull/Containerfile: exit status 125", "lookup registry.invalid")
	m.write("/etc/reconf-pull/Containerfile", "FROM "+saltBase, "RUN echo out of cheese >&2; exit 3")
	fails("building the Salt image from /etc/reconf-pull/Containerfile: exit status 3", "out of cheese")
	m.write("/etc/reconf-pull/Containerfile", "FROM "+saltBase)
	fails("the image has no salt-call")
	m.engine("file = '/etc/reconf-pull/Containerfile'", "base = 'x'")
	fails("/etc/reconf-pull/Containerfile has no ARG BASE")
	m.engine("file = '/etc/reconf-pull/No'")
	fails("reading the Containerfile of the Salt image: open /etc/reconf-pull/No: no such file or directory")
	m.engine("image = 'registry.invalid/salt:1'")
	fails("pulling the Salt image registry.invalid/salt:1: exit status 125", "lookup registry.invalid")
	m.Run("mv", "/usr/bin/podman", "/usr/bin/podman.away")
	fails("podman", "executable file not found", "install podman, or salt-call")
	m.Run("mv", "/usr/bin/podman.away", "/usr/bin/podman")
	m.noSalt()

	ready := "localhost/ready:1"
	m.Run("sh", "-ec", "printf 'FROM "+saltBase+"\\nRUN ln -s /usr/libexec/stand-in /usr/bin/salt-call\\nUSER 1000\\nENTRYPOINT [\"/nothing\"]\\n' | BUILDAH_ISOLATION=chroot podman build --quiet --tag="+ready+" -")
	m.engine("image = '" + ready + "'")
	built := m.images()
	m.expect("an image that is ready", m.during(func() {
		if said := m.converge(); strings.Contains(said, "building") || strings.Contains(said, "pulling") {
			t.Errorf("the run says:\n%s", said)
		}
	}), "app.service started")
	m.hasEverywhere("one")
	m.expect("the images that were built", m.images(), built...)
	m.noSalt()
}
