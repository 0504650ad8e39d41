package bootedhost_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

const tickService = `[Unit]
Description=Tick
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo tick tock; : > /run/ticked'
`

const tickTimer = `[Timer]
OnActiveSec=10ms
AccuracySec=1ms
`

func TestTwoReleasesSideBySide(t *testing.T) {
	t.Parallel()
	repo := bootedhost.NewRepo(t)
	repo.Write("hosts/new.bu", "variant: fcos\n")
	commit := repo.Push("add new")

	hosts := []*bootedhost.Host{
		bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian13, Name: "new", Repo: repo}),
		bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12, Name: "old", Repo: repo}),
	}
	versions := []string{"systemd 257 ", "systemd 252 "}
	for i, h := range hosts {
		if got := h.Run("systemctl", "is-system-running"); got != "running" {
			t.Errorf("%s is %s:\n%s", h.Name, got, h.Run("systemctl", "list-units", "--failed"))
		}
		if got := h.Run("systemctl", "--version"); !strings.HasPrefix(got, versions[i]) {
			t.Errorf("%s runs %s, want %s", h.Name, got, versions[i])
		}
		if got := h.Run("hostname"); got != h.Name {
			t.Errorf("hostname = %s, want %s", got, h.Name)
		}
		if got := h.Run("busctl", "get-property", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
			"org.freedesktop.systemd1.Manager", "SystemState"); got != `s "running"` {
			t.Errorf("%s: over the bus SystemState is %s", h.Name, got)
		}
		if got := h.Run("git", "ls-remote", bootedhost.RepoURL, "main"); got != commit+"\trefs/heads/main" {
			t.Errorf("%s sees in the fleet repo: %s", h.Name, got)
		}

		h.Write("/etc/systemd/system/tick.service", []byte(tickService), 0o644)
		h.Write("/etc/systemd/system/tick.timer", []byte(tickTimer), 0o644)
		h.Run("systemctl", "daemon-reload")
		h.Run("systemctl", "start", "tick.timer")
		h.WaitFor(10*time.Second, func() bool { return h.Exists("/run/ticked") }, "the timer")
		h.WaitFor(10*time.Second, func() bool { return h.UnitState("tick.service").ActiveState == "inactive" }, "its service")
		if got := h.Journal("tick.service"); !strings.Contains(got, "tick tock\n") {
			t.Errorf("%s: journal of tick.service:\n%s", h.Name, got)
		}
	}

	// Each has its own services: stopping one's leaves the other's alone.
	for _, h := range hosts {
		h.Run("systemd-run", "--unit=sleeper", "sleep", "1000")
	}
	hosts[0].Run("systemctl", "stop", "sleeper")
	if got := hosts[1].UnitState("sleeper.service"); got.ActiveState != "active" {
		t.Errorf("sleeper on %s: %+v", hosts[1].Name, got)
	}
	if out, status := hosts[0].Try("systemctl", "is-active", "sleeper"); status == 0 {
		t.Errorf("sleeper on %s is %s", hosts[0].Name, out)
	}
	generator := "/usr/lib/systemd/system-generators/podman-system-generator"
	if !hosts[0].Exists(generator) || hosts[1].Exists(generator) {
		t.Errorf("quadlets: new %v, old %v; want them on new alone", hosts[0].Exists(generator), hosts[1].Exists(generator))
	}
}

func TestKill(t *testing.T) {
	t.Parallel()
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12, Files: map[string]string{
		"/etc/systemd/system/sleeper.service": writeTemp(t, "[Service]\nExecStart=/bin/sleep 1000\nRestart=always\nRestartSec=0\n"),
	}})
	if got := h.UnitState("absent.service").LoadState; got != "not-found" {
		t.Errorf("absent.service: LoadState = %s", got)
	}
	h.Run("systemctl", "start", "sleeper")
	before := h.UnitState("sleeper.service")
	if before.MainPID == 0 || before.InvocationID == "" || before.UnitFileState != "static" {
		t.Errorf("sleeper.service: %+v", before)
	}
	h.Kill("sleeper.service", syscall.SIGKILL)
	h.WaitFor(10*time.Second, func() bool {
		s := h.UnitState("sleeper.service")
		return s.SubState == "running" && s.InvocationID != before.InvocationID && s.MainPID != before.MainPID
	}, "another sleeper")
}

func TestRebootKeepsTheDisk(t *testing.T) {
	t.Parallel()
	for _, os := range []bootedhost.OS{bootedhost.Debian13, bootedhost.Debian12} {
		h := bootedhost.Boot(t, bootedhost.Options{OS: os})
		first := h.BootID()
		h.Run("sh", "-c", "echo kept > /root/kept; echo gone > /run/gone")
		h.Reboot()
		second := h.BootID()
		if second == first {
			t.Errorf("boot id %s is that of the boot before", second)
		}
		if got := string(h.Read("/root/kept")); got != "kept\n" {
			t.Errorf("kept = %q", got)
		}
		if h.Exists("/run/gone") {
			t.Error("/run survived a reboot")
		}
		if got := strings.Count(h.Run("journalctl", "--list-boots", "--quiet", "--no-pager"), "\n") + 1; got != 2 {
			t.Errorf("the journal knows %d boots, want 2", got)
		}

		// One that the host asks for by itself.
		h.Run("systemd-run", "--on-active=100ms", "--timer-property=AccuracySec=1ms", "systemctl", "reboot")
		h.WaitReboot(second)

		h.Shutdown()
		if _, status := h.Try("true"); status == 0 {
			t.Error("a command ran on a host that is off")
		}
		h.Write("/root/offline", []byte("written while off"), 0o600)
		h.PowerOn()
		if got := h.Run("cat", "/root/offline"); got != "written while off" {
			t.Errorf("offline = %q", got)
		}
		if got := h.Run("systemctl", "is-system-running"); got != "running" {
			t.Errorf("after all: %s", got)
		}
	}
}

// A power cut that lost nothing would prove nothing about missing fsyncs, and one that
// lost what was synced would accuse the innocent.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian13})
	before := h.BootID()
	h.Run("mkdir", "-p", "/srv/proof/synced", "/srv/proof/syncfs")
	h.Run("sh", "-ec", `
cd /srv/proof
echo old > replaced
echo old > torn
echo old > /srv/outside
sync -f .
`)
	// One fsync commits all that ext4 has in its journal until then. So the rename of torn
	// gets onto the disk, without the data that nobody synced; and what is to be lost
	// whole comes after the last sync.
	h.Run("sh", "-ec", `
cd /srv/proof
echo data > syncfs/file; sync -f syncfs/file
echo new > torn.tmp; mv torn.tmp torn
echo data > synced/file; sync synced/file synced
echo data > unsynced
echo new > replaced.tmp; mv replaced.tmp replaced
rm /srv/outside
`)
	if got := h.Run("cat", "/srv/proof/unsynced", "/srv/proof/replaced"); got != "data\nnew" {
		t.Fatalf("before the cut: %q", got)
	}
	h.PowerCut()
	if h.BootID() == before {
		t.Error("the boot id is that of the boot before")
	}
	for path, want := range map[string]string{
		"/srv/proof/synced/file": "data\n",
		"/srv/proof/syncfs/file": "data\n",
		"/srv/proof/torn":        "",
		"/srv/proof/replaced":    "old\n",
		"/srv/outside":           "old\n",
	} {
		if got, status := h.Try("cat", path); status != 0 || got != want {
			t.Errorf("%s after the cut: %q, want %q", path, got, want)
		}
	}
	if h.Exists("/srv/proof/unsynced") && len(h.Read("/srv/proof/unsynced")) > 0 {
		t.Error("a file that was never synced survived")
	}

	// Killing all processes is no power cut: the page cache stays. So the loss above is
	// the cut's doing.
	h.Run("sh", "-c", "echo data > /srv/proof/unsynced")
	h.Shutdown()
	h.PowerOn()
	if got := string(h.Read("/srv/proof/unsynced")); got != "data\n" {
		t.Errorf("after a shutdown: %q", got)
	}
}

// The machine that runs the tests must not be reachable through links of the host.
func TestLinksStayInTheHost(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "made", "file")
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12})
	h.Run("ln", "-s", filepath.Dir(outside), "/srv/link")
	h.Run("mkdir", "-p", filepath.Dir(outside))
	h.Write("/srv/link/file", []byte("inside"), 0o640)
	if _, err := os.Stat(outside); err == nil {
		t.Errorf("%s was written on this machine", outside)
	}
	if got := h.Run("stat", "--format=%a %U %s", outside); got != "640 root 6" {
		t.Errorf("written file: %s", got)
	}
	h.Write("/srv/made/deep/down", nil, 0o600)
	if !h.Exists("/srv/made/deep/down") || h.Exists("/srv/made/deep/up") {
		t.Error("Exists is wrong about /srv/made/deep")
	}
}

func TestProgramAndRepo(t *testing.T) {
	t.Parallel()
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12, Name: "web1"})
	program := writeTemp(t, "#!/bin/sh\nexec git clone --quiet "+bootedhost.RepoURL+" /root/fleet\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	repo := h.Repo()
	repo.Write("hosts/web1.bu", "variant: fcos\n")
	repo.Write("shared/motd", "hello\n")
	first := repo.Push("add web1")
	repo.Remove("shared")
	second := repo.Push("remove the message of the day")
	third := repo.Push("change nothing")

	h.Install(program)
	h.Run(filepath.Base(program))
	if got, want := h.Run("git", "-C", "/root/fleet", "log", "--format=%H"), strings.Join([]string{third, second, first}, "\n"); got != want {
		t.Errorf("the host got\n%s\nwant\n%s", got, want)
	}
	if got := string(h.Read("/root/fleet/hosts/web1.bu")); got != "variant: fcos\n" {
		t.Errorf("web1.bu = %q", got)
	}
	if h.Exists("/root/fleet/shared") {
		t.Error("shared was removed and is there")
	}
	if out, status := h.Try("sh", "-c", "echo x > "+strings.TrimPrefix(bootedhost.RepoURL, "file://")+"/HEAD"); status == 0 {
		t.Errorf("a host can write into the fleet repo: %s", out)
	}
}

func TestTry(t *testing.T) {
	t.Parallel()
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12})
	if out, status := h.Try("sh", "-c", "echo out; echo err >&2; exit 7"); out != "out\nerr\n" || status != 7 {
		t.Errorf("Try = %q, %d", out, status)
	}
	if _, status := h.Try("/no/such/program"); status != 127 {
		t.Errorf("status of a program that is not there = %d", status)
	}
	if got := h.Run("sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' '"); got != "HOME LANG PATH PWD SYSTEMD_COLORS SYSTEMD_PAGER TERM USER " {
		t.Errorf("the environment is %s", got)
	}
}

// A test binary that is killed, or panics because its time is up, runs no cleanup.
func TestNothingOutlivesTheProcess(t *testing.T) {
	if os.Getenv("BOOTEDHOST_CHILD") != "" {
		h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian12, PrivateNetwork: true})
		fmt.Printf("\ndisk=%s\n", h.Run("sed", "-n", "s,^/dev/\\(loop[0-9]*\\) / .*,\\1,p", "/proc/mounts"))
		select {}
	}
	t.Parallel()
	bootedhost.Require(t)
	child := exec.Command(os.Args[0], "-test.run=^TestNothingOutlivesTheProcess$")
	child.Env = append(os.Environ(), "BOOTEDHOST_CHILD=1", "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var loop string
	for s := bufio.NewScanner(out); loop == "" && s.Scan(); {
		loop, _ = strings.CutPrefix(s.Text(), "disk=")
		if loop == s.Text() {
			loop = ""
		}
	}
	image := backing(loop)
	if !strings.HasSuffix(image, " (deleted)\n") {
		t.Errorf("the image behind %s is %q, which somebody would have to remove", loop, image)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for end := time.Now().Add(10 * time.Second); backing(loop) == image; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is still attached, so something of the host lives", loop)
		}
	}

	// Control groups alone must be removed by somebody: the next host does it.
	bootedhost.Prepare(t, bootedhost.Options{OS: bootedhost.Debian12})
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		left, err := filepath.Glob(fmt.Sprintf("%s/reconf-pull-test-*-%d-*", pattern, child.Process.Pid))
		if err != nil || len(left) > 0 {
			t.Errorf("control groups left: %v, %v", left, err)
		}
	}
}

// backing names the file behind a loop device, if any.
func backing(loop string) string {
	b, err := os.ReadFile("/sys/block/" + loop + "/loop/backing_file")
	if err != nil {
		return ""
	}
	return string(b)
}

func BenchmarkHost(b *testing.B) {
	for name, os := range map[string]bootedhost.OS{"debian13": bootedhost.Debian13, "debian12": bootedhost.Debian12} {
		b.Run(name+"/prepare", func(b *testing.B) {
			for b.Loop() {
				bootedhost.Prepare(b, bootedhost.Options{OS: os})
			}
		})
		h := bootedhost.Boot(b, bootedhost.Options{OS: os})
		b.Run(name+"/boot", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				h.Shutdown()
				b.StartTimer()
				h.PowerOn()
			}
		})
		b.Run(name+"/reboot", func(b *testing.B) {
			for b.Loop() {
				h.Reboot()
			}
		})
		b.Run(name+"/powercut", func(b *testing.B) {
			for b.Loop() {
				h.PowerCut()
			}
		})
		b.Run(name+"/command", func(b *testing.B) {
			for b.Loop() {
				h.Run("true")
			}
		})
		b.Run(name+"/write", func(b *testing.B) {
			for b.Loop() {
				h.Write("/etc/written", nil, 0o600)
			}
		})
	}
}

func TestPodman(t *testing.T) {
	t.Parallel()
	program := buildProgram(t)
	h := bootedhost.Boot(t, bootedhost.Options{OS: bootedhost.Debian13, Files: map[string]string{
		"/root/image.tar": program,
		"/etc/containers/systemd/greeter.container": writeTemp(t,
			"[Container]\nImage=localhost/greeter:latest\nExec=/greet from a quadlet\nNetwork=none\nPull=never\n"),
	}})
	h.Run("podman", "import", "--quiet", "/root/image.tar", "localhost/greeter:latest")
	if got := h.Run("podman", "run", "--rm", "--network=none", "localhost/greeter:latest", "/greet", "by", "hand"); got != "hello by hand" {
		t.Errorf("podman run printed %q", got)
	}
	h.Run("systemctl", "start", "greeter.service")
	h.WaitFor(30*time.Second, func() bool {
		return strings.Contains(h.Journal("greeter.service"), "hello from a quadlet")
	}, "the quadlet's greeting")
}

func buildProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(`package main

import (
	"fmt"
	"os"
	"strings"
)

func main() { fmt.Println("hello", strings.Join(os.Args[1:], " ")) }
`), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "greet"), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "greet"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "greet", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeTemp(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
