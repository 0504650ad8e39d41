package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// everyUnit are the invocations of all units, active or not, the agent's apart.
func (m *machine) everyUnit() string {
	m.t.Helper()
	var lines []string
	for unit := range strings.SplitSeq(m.Run("systemctl", "show", "--property=Id,InvocationID", "*"), "\n\n") {
		if !strings.Contains(unit, "Id="+agent) {
			lines = append(lines, strings.ReplaceAll(unit, "\n", " "))
		}
	}
	return strings.Join(lines, "\n")
}

// A comment in the Butane file runs no script and restarts nothing.
func TestCommentDoesNothing(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	for _, phase := range []string{"pre_update", "pre_configure", "configure", "post_configure", "post_update", "health", "error"} {
		m.hook(phase+".d/10-log", "echo $RECONF_PHASE >>/var/log/hooks")
	}
	m.appPush("one", "# a comment")
	before, etc := m.everyUnit(), m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n")
	if said := m.converge(); !strings.Contains(said, "generation 2: nothing to change on the host") {
		t.Errorf("the run says\n%s", said)
	}
	m.expect("the invocations", strings.Split(m.everyUnit(), "\n"), strings.Split(before, "\n")...)
	m.expect("/etc", strings.Split(m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n"), "\n"), strings.Split(etc, "\n")...)
	if m.Exists("/var/log/hooks") {
		t.Errorf("scripts ran:\n%s", m.logged())
	}
}

// A digest that is held costs nothing: the timer's runs fail, and write nothing.
func TestHeldRunsDoNothing(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	m.Repo().Write("app.service", unlines("[Service]", "ExecStart=/no/such/program", "[Install]", "WantedBy=multi-user.target"))
	m.Repo().Push("a unit that cannot start")
	m.fails("app.service: ", "was rolled back")
	m.gives("active", "systemctl", "is-active", "app.service")
	state, etc := m.state(), m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n")
	m.expect("two more runs", m.during(func() {
		for range 2 {
			m.fails("is held since", "hint: push a commit that mends it, or mend the host and say reconf-pull retry")
		}
	}))
	m.expect("the state", strings.Split(m.state(), "\n"), strings.Split(state, "\n")...)
	m.expect("/etc", strings.Split(m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n"), "\n"), strings.Split(etc, "\n")...)
	out, status := m.Try("reconf-pull", "status")
	if status != 1 {
		t.Errorf("status ends with %d", status)
	}
	m.says(out, "health:   failing", "held: ", "because:  post-configure: ", "next:     push a commit that mends it")
	m.appPush("two")
	m.expect("the mended push", m.during(func() { m.converge() }), "app.service restarted")
}

// A state that is garbage stops everything and loses nothing; what the hint says
// brings the host back.
func TestGarbageState(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	good := m.Read("/var/lib/reconf-pull/state.json")
	m.write("/var/lib/reconf-pull/state.json", "{garbage")
	m.appPush("two")
	before := m.state()
	m.expect("two runs", m.during(func() {
		for range 2 {
			status, said := m.pull()
			if status != 70 {
				t.Errorf("the run ended with %d", status)
			}
			m.says(said, "error: state cannot be read: /var/lib/reconf-pull/state.json: ", "hint: nothing was changed. Restore the file from a backup", "move the state directory aside")
		}
	}))
	for _, command := range []string{"status", "plan", "history", "retry", "rollback"} {
		if out, status := m.Try("reconf-pull", command); status != 70 {
			t.Errorf("%s ends with %d:\n%s", command, status, out)
		}
	}
	m.expect("the state", strings.Split(m.state(), "\n"), strings.Split(before, "\n")...)
	m.gives("one", "cat", "/etc/app.conf")
	m.gives("failed", "systemctl", "is-failed", agent)

	// From a backup.
	m.Write("/var/lib/reconf-pull/state.json", good, 0o600)
	m.expect("with the backup", m.during(func() { m.converge() }), "app.service restarted")
	m.gives("two", "cat", "/etc/app.conf")
	// Without one.
	m.write("/var/lib/reconf-pull/state.json", "{garbage")
	m.Run("mv", "/var/lib/reconf-pull", "/var/lib/reconf-pull.broken")
	m.expect("with the state aside", m.during(func() { m.converge() }))
	m.gives("two", "cat", "/etc/app.conf")
	m.appPush("three")
	m.expect("the next push", m.during(func() { m.converge() }), "app.service restarted")
}

// smallDisk mounts a new ext4 of 20 MiB, with what is there now.
func (m *machine) smallDisk(dir string) {
	m.t.Helper()
	image := filepath.Join(m.t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 20<<20)); err != nil {
		m.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		m.t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Write("/var/disk.img", data, 0o600)
	m.Run("sh", "-ec", `
test -e /dev/loop-control || mknod /dev/loop-control c 10 237
for n in $(seq 0 255); do test -e /dev/loop$n || mknod /dev/loop$n b 7 $n; done
mkdir -p /run/small
mount -o loop /var/disk.img /run/small
rmdir /run/small/lost+found
cp -a "$1"/. /run/small/
mount --bind /run/small "$1"
umount --lazy /run/small`, "sh", dir)
}

// immutable is chattr +i, which the host does not have; 0 takes it back.
func (m *machine) immutable(path, flags string) {
	m.t.Helper()
	m.Run("perl", "-e", `open F, "<", $ARGV[0] or die $!; my $flags = pack "l!", $ARGV[1]; ioctl F, 0x40086602, $flags or die $!`, path, flags)
}

func TestFullDisks(t *testing.T) {
	const big = 4 << 20
	for _, test := range []struct{ what, dir, says string }{
		{"the state", "/var/lib/reconf-pull", "/var/lib/reconf-pull"},
		{"/etc", "/etc", "/etc"},
	} {
		t.Run(strings.ReplaceAll(test.what, "/", ""), func(t *testing.T) {
			m := on(t, bootedhost.Debian13)
			m.appPush("one")
			m.converge()
			m.smallDisk(test.dir)
			m.Run("sh", "-c", "dd if=/dev/zero of="+test.dir+"/fill bs=64k status=none 2>/dev/null; true")
			m.Run("truncate", "--size=-1M", test.dir+"/fill")
			m.Repo().Write("big", strings.Repeat("0123456789abcdef", big/16))
			m.Repo().Write("app.service", "# two\n"+sleeper())
			m.push("storage: {files: [{path: /etc/app.conf, contents: {inline: two}}, {path: /etc/big, contents: {local: big}}]}",
				"systemd: {units: [{name: app.service, enabled: true, contents_local: app.service}]}")
			m.expect("two runs", m.during(func() {
				for range 2 {
					m.fails("error: ", test.says, "hint: ")
				}
			}))
			_, said := m.lastPull()
			if !strings.Contains(said, "no space left on device") && !strings.Contains(said, "free") {
				t.Errorf("it is not said that something is full:\n%s", said)
			}
			t.Log(said)
			m.gives("one", "cat", "/etc/app.conf")
			m.Run("rm", test.dir+"/fill")
			m.expect("with space", m.during(func() { m.converge() }), "app.service restarted")
			m.gives("two", "cat", "/etc/app.conf")
		})
	}
}

// /etc cannot be written, or one file of it cannot be replaced.
func TestReadOnlyAndImmutable(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	m.appPush("two")
	m.immutable("/etc/app.conf", "16")
	before := m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n")
	refused := func(words ...string) {
		t.Helper()
		m.expect("the run", m.during(func() {
			status, said := m.pull()
			if status != 65 {
				t.Errorf("the run ended with %d", status)
			}
			m.says(said, words...)
		}))
		m.expect("/etc", strings.Split(m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n"), "\n"), strings.Split(before, "\n")...)
	}
	refused("/etc/app.conf is immutable or append-only on this host (chattr -ia)")
	m.immutable("/etc/app.conf", "0")
	m.Run("mount", "--bind", "/etc", "/etc")
	m.Run("mount", "-o", "remount,bind,ro", "/etc")
	before = m.Run("find", "/etc", "-printf", "%p %i %T@ %C@\n")
	refused("/etc/app.conf lies on a read-only file system")
	m.Run("umount", "/etc")
	m.expect("when it can be written", m.during(func() { m.converge() }), "app.service restarted")
	m.gives("two", "cat", "/etc/app.conf")
}
