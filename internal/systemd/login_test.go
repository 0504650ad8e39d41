package systemd_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

func login(t *testing.T, role string) (context.Context, *systemd.Login) {
	t.Helper()
	if os.Getenv(onHostEnv) != role {
		t.Skip("not on a booted host: TestBootedHost and TestLogindReboots run this there")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	l, err := systemd.ConnectLogin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return ctx, l
}

// inhibitors are those whose Who begins with "test-": logind and others have some, too.
func inhibitors(ctx context.Context, t *testing.T, l *systemd.Login) []systemd.Inhibitor {
	t.Helper()
	all, err := l.Inhibitors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(i systemd.Inhibitor) bool { return !strings.HasPrefix(i.Who, "test-") })
}

// someoneElse holds a lock until the returned function is called.
func someoneElse(t *testing.T, what, mode string) (pid int, release func()) {
	t.Helper()
	cmd := exec.Command("systemd-inhibit", "--what="+what, "--who=test-other", "--why=backs up", "--mode="+mode, "sh", "-c", "echo held; read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(release)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("systemd-inhibit: %q, %v", line, err)
	}
	return cmd.Process.Pid, release
}

// gone waits until no lock is held any more: logind notices a closed one a moment later.
func gone(ctx context.Context, t *testing.T, l *systemd.Login) {
	t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for limit := time.After(10 * time.Second); ; {
		left := inhibitors(ctx, t, l)
		if len(left) == 0 {
			return
		}
		select {
		case <-look.C:
		case <-limit:
			t.Fatalf("still held: %v", left)
		}
	}
}

func TestOnHostInhibitors(t *testing.T) {
	ctx, l := login(t, "1")
	pid, release := someoneElse(t, "shutdown:sleep", "block")
	lock, err := l.Inhibit(ctx, "shutdown", "test-ours", "changes this host", "block")
	if err != nil {
		t.Fatal(err)
	}
	got := inhibitors(ctx, t, l)
	slices.SortFunc(got, func(a, b systemd.Inhibitor) int { return strings.Compare(a.Who, b.Who) })
	want := []systemd.Inhibitor{
		{What: []string{"shutdown", "sleep"}, Who: "test-other", Why: "backs up", Mode: "block", PID: uint32(pid)},
		{What: []string{"shutdown"}, Who: "test-ours", Why: "changes this host", Mode: "block", PID: uint32(os.Getpid())},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	release()
	// A program that we start and that lives on must not hold our lock.
	child := exec.Command("sleep", "600")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	// Neither does the connection.
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	gone(ctx, t, l)

	for _, test := range []struct {
		what, mode string
		blocks     bool
	}{{"sleep", "block", false}, {"shutdown", "delay", false}, {"idle:shutdown", "block", true}} {
		lock, err := l.Inhibit(ctx, test.what, "test-ours", "changes this host", test.mode)
		if err != nil {
			t.Fatal(err)
		}
		got := inhibitors(ctx, t, l)
		if len(got) != 1 || got[0].BlocksShutdown() != test.blocks {
			t.Errorf("%s in mode %s: %v", test.what, test.mode, got)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
		gone(ctx, t, l)
	}
	if lock, err := l.Inhibit(ctx, "nonsense", "test-ours", "changes this host", "block"); err == nil {
		_ = lock.Close()
		t.Error("a lock on nonsense was granted")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.Inhibitors(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("when the run has ended: %v", err)
	}
}

func TestOnHostBootComplete(t *testing.T) {
	ctx, m := connect(t, "1")
	says := func(want systemd.BootState, wantWhy string) {
		t.Helper()
		if got, why, err := m.BootComplete(ctx); got != want || why != wantWhy || err != nil {
			t.Errorf("got %s, %q, %v, want %s, %q", got, why, err, want, wantWhy)
		}
	}
	says(systemd.BootUnchecked, "")
	fifo := filepath.Join(t.TempDir(), "go")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	units(ctx, t, m, map[string]string{
		// The status comes through the fifo.
		"check.service":                     "[Unit]\nBefore=boot-complete.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'read status < " + fifo + "; exit $status'\n",
		"boot-complete.target.d/check.conf": "[Unit]\nRequires=check.service\n",
	})
	for _, test := range []struct {
		status string
		state  systemd.BootState
		why    string
	}{{"1", systemd.BootFailed, "check.service"}, {"0", systemd.BootComplete, ""}} {
		start := exec.CommandContext(ctx, "systemctl", "start", "boot-complete.target")
		if err := start.Start(); err != nil {
			t.Fatal(err)
		}
		// Opening it waits for the check to do the same: then the job is there.
		status, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		says(systemd.BootPending, "")
		if _, err := status.WriteString(test.status + "\n"); err != nil {
			t.Fatal(err)
		}
		_ = status.Close()
		_ = start.Wait() // it fails as the check does
		says(test.state, test.why)
	}
	if out, err := exec.Command("systemctl", "stop", "boot-complete.target").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestLogindReboots: a reboot that was asked for happens. Where logind holds
// root to the locks of others, it is refused while there is one.
func TestLogindReboots(t *testing.T) {
	if os.Getenv(onHostEnv) != "" {
		t.Skip("this is the host")
	}
	if testing.Short() {
		t.Skip("boots hosts")
	}
	bootedhost.Require(t)
	binary := testBinary(t)
	for _, test := range []struct {
		name string
		os   bootedhost.OS
	}{{"Debian12", bootedhost.Debian12}, {"Debian13", bootedhost.Debian13}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := bootedhost.Boot(t, bootedhost.Options{OS: test.os, Name: strings.ToLower(test.name)})
			h.Install(binary)
			if test.name == "Debian13" {
				out, status := h.Try("env", onHostEnv+"=refused", "/usr/bin/systemd.test", "-test.run=^TestRefusedReboot$", "-test.v")
				if status != 0 || !strings.Contains(out, "--- PASS") {
					t.Errorf("with a lock of somebody else: %s", out)
				}
			}
			before := h.BootID()
			// The host may be gone before the test has said so.
			out, _ := h.Try("env", onHostEnv+"=reboot", "/usr/bin/systemd.test", "-test.run=^TestAskForReboot$", "-test.v")
			if strings.Contains(out, "--- FAIL") || strings.Contains(out, "--- SKIP") {
				t.Fatalf("asking: %s", out)
			}
			h.WaitReboot(before)
		})
	}
}

func TestRefusedReboot(t *testing.T) {
	ctx, l := login(t, "refused")
	_, release := someoneElse(t, "shutdown", "block")
	if err := l.Reboot(ctx); !errors.Is(err, systemd.ErrInhibited) {
		t.Errorf("got %v", err)
	}
	release()
	gone(ctx, t, l)
}

func TestAskForReboot(t *testing.T) {
	ctx, l := login(t, "reboot")
	// As an update does it: our own lock is held, and given back before.
	var lock io.Closer
	lock, err := l.Inhibit(ctx, "shutdown", "test-ours", "changes this host", "block")
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	gone(ctx, t, l)
	if err := l.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
}
