package bootedhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// OS is an operating system that hosts can run.
type OS struct {
	suite    string
	packages []string
}

var base = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "iproute2", "ca-certificates", "openssh-client", "git", "nftables",
}

var (
	// Debian13 has systemd 257 and podman with quadlets.
	Debian13 = OS{"trixie", append([]string{"podman", "crun", "netavark"}, base...)}
	// Debian12 has systemd 252 and no podman.
	Debian12 = OS{"bookworm", base}
)

const (
	defaultCache  = "/var/cache/reconf-pull-test"
	defaultMirror = "http://deb.debian.org/debian"
	imageSize     = 3 << 30 // sparse
)

// trim makes a fresh debootstrap tree small and quick to boot. What is masked either
// cannot work in a container or would reach out to the network by itself. The two
// .updated files keep the first boot from rebuilding caches. podman in nspawn can
// neither raise limits nor set sysctls.
const trim = `
cd "$1"
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/info/* usr/share/locale/* usr/share/man/*
rm -f etc/machine-id etc/hostname etc/resolv.conf var/lib/dbus/machine-id
for unit in \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	console-getty.service container-getty@.service modprobe@.service \
	netavark-dhcp-proxy.service netavark-dhcp-proxy.socket \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount
do
	ln -sf /dev/null etc/systemd/system/$unit
done
mkdir -p etc/containers srv/fleet.git
cat > etc/containers/containers.conf <<'EOF'
[containers]
default_sysctls = []
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
keyring = false
pids_limit = 0

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
EOF
mkdir -p -m 2755 var/log/journal
touch etc/.updated var/.updated
`

// cachedImage returns the ext4 image that hosts of this OS are copied from; it makes
// it on first use, once for all processes of this machine.
func cachedImage(tb testing.TB, o OS) (string, error) {
	tb.Helper()
	cache := os.Getenv("RECONF_TEST_CACHE")
	if cache == "" {
		cache = defaultCache
	}
	args := []string{
		"--force-check-gpg", "--variant=minbase", "--include=" + strings.Join(o.packages, ","),
		o.suite, mirror(),
	}
	sum := sha256.Sum256(fmt.Append(nil, args, imageSize, trim))
	image := filepath.Join(cache, o.suite+"-"+hex.EncodeToString(sum[:8])+".ext4")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}

	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, o.suite+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(image); err == nil { // made while we waited
		return image, nil
	}

	start := time.Now()
	tree, unfinished := filepath.Join(cache, o.suite+".tree"), filepath.Join(cache, o.suite+".unfinished")
	if err := errors.Join(os.RemoveAll(tree), os.RemoveAll(unfinished)); err != nil {
		return "", fmt.Errorf("removing what an interrupted run left: %w", err)
	}
	defer os.RemoveAll(tree)
	// debootstrap mounts below the tree. In a namespace of its own these mounts die
	// with it, and removing the tree can never reach through them. It must not live on
	// when this process, and with it the lock, is gone; death is signalled by thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	private := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"}
	for _, argv := range [][]string{
		append(append([]string{"unshare"}, private...), append([]string{"debootstrap"}, append(args[:3:3], o.suite, tree, mirror())...)...),
		{"sh", "-eu", "-c", trim, "trim", tree},
		{"truncate", fmt.Sprintf("--size=%d", imageSize), unfinished},
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", tree, unfinished},
		{"sync", unfinished},
	} {
		cmd := exec.CommandContext(tb.Context(), argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("running %s: %w\n%s", strings.Join(argv, " "), err, lastLines(out, 30))
		}
	}
	if err := os.Rename(unfinished, image); err != nil {
		return "", err
	}
	tb.Logf("made %s in %v", image, time.Since(start).Round(time.Second))
	return image, nil
}

// mirror is the one that this machine's apt uses, if it is a Debian.
func mirror() string {
	b, err := os.ReadFile("/etc/apt/sources.list.d/debian.sources")
	if errors.Is(err, fs.ErrNotExist) {
		return defaultMirror
	}
	for line := range strings.Lines(string(b)) {
		if uri, ok := strings.CutPrefix(line, "URIs:"); ok {
			if f := strings.Fields(uri); len(f) > 0 {
				return f[0]
			}
		}
	}
	return defaultMirror
}
