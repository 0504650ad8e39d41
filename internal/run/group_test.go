package run_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// output may be read while a program still writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) lines() []string { return strings.Fields(o.String()) }

// shell is a script without what bash itself says of children that are killed before it.
func shell(t *testing.T, o *output, timeout time.Duration, script string) *run.Group {
	t.Helper()
	return &run.Group{Argv: []string{"/bin/bash", "-c", "exec 2>/dev/null; " + script}, Timeout: timeout, Output: o}
}

// alive tells whether a process that said its pid still runs.
func alive(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("%q is no pid", pid)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(n) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// whenPrinted ends the context as soon as n words were printed.
func whenPrinted(t *testing.T, o *output, n int) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for look := time.NewTicker(5 * time.Millisecond); len(o.lines()) < n && ctx.Err() == nil; <-look.C {
		}
	}()
	return ctx
}

func TestGroupEndsWell(t *testing.T) {
	var o output
	err := (&run.Group{
		Argv: []string{"/bin/bash", "-c", `echo "$A $PWD $$"; cut -d' ' -f5,6 /proc/$$/stat; readlink /proc/self/fd/0; env | grep -c . ; echo oops >&2`},
		Env:  []string{"A=b c"}, Timeout: time.Minute, Output: &o,
	}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := o.lines()
	// bash adds PWD, SHLVL and _ to PATH, LC_ALL and A.
	if len(f) != 9 || f[0] != "b" || f[2] != "/" || f[3] != f[4] || f[3] != f[5] || f[6] != "/dev/null" || f[7] != "6" || f[8] != "oops" {
		t.Errorf("got %q", o.String())
	}
}

func TestGroupErrors(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notExecutable, []byte("echo no interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		argv []string
		code int
		want string
	}{
		{"status", []string{"/bin/sh", "-c", "exit 3"}, 3, "exit status 3"},
		{"signal", []string{"/bin/sh", "-c", "kill -USR1 $$"}, -1, "signal: user defined signal 1"},
		{"not there", []string{"/no/such"}, -1, "no such file"},
		{"no interpreter", []string{notExecutable}, -1, "exec format error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := (&run.Group{Argv: test.argv, Timeout: time.Minute, Output: &output{}}).Run(t.Context())
			var failed *run.Error
			if !errors.As(err, &failed) || failed.ExitCode() != test.code || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q and status %d", err, test.want, test.code)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var o output
	if err := shell(t, &o, time.Minute, "echo started").Run(ctx); !errors.Is(err, context.Canceled) || o.String() != "" {
		t.Errorf("when the run has ended: %v, %q", err, o.String())
	}
}

// TestGroupIsEnded: whatever a program does to get away, it ends in time, and
// so does all that it started.
func TestGroupIsEnded(t *testing.T) {
	for _, test := range []struct {
		name, script string
		pids         int
		most         time.Duration
		later        int // of the pids, those that appear only when it is told to end
	}{
		{"itself", `echo $$; exec sleep 600`, 1, time.Second, 0},
		{"child", `sleep 600 & echo $! $$; wait`, 2, time.Second, 0},
		{"ignores TERM", `trap '' TERM; echo $$; while :; do sleep 600; done`, 1, run.Grace + time.Second, 0},
		{"a child ignores TERM", `(trap '' TERM; echo $BASHPID; while :; do read -t 600 <> <(:); done) & echo $$; wait`, 2, run.Grace + time.Second, 0},
		{"stopped", `echo $$; kill -STOP $$`, 1, time.Second, 0},
		{"grandchild in a session", `(setsid bash -c 'echo $$; exec sleep 600' &); echo $$; sleep 600`, 2, time.Second, 0},
		{"daemon with children", `(setsid bash -c 'echo $$; sleep 600 & echo $!; wait' &); echo $$; sleep 600`, 3, time.Second, 0},
		{"daemon that ignores TERM", `(setsid bash -c 'trap "" TERM; echo $$; while :; do sleep 600; done' &); echo $$; sleep 600`, 2, run.Grace + time.Second, 0},
		{"job control", `set -m; sleep 600 & echo $! $$; wait`, 2, time.Second, 0},
		{"forks when told to end", `trap 'setsid sleep 601 & echo $!; exit' TERM; echo $$; while :; do sleep 600 & wait; done`, 2, run.Grace + time.Second, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o output
			began := time.Now()
			err := shell(t, &o, time.Minute, test.script).Run(whenPrinted(t, &o, test.pids-test.later))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > test.most+2*time.Second {
				t.Errorf("took %s", took)
			}
			pids := o.lines()
			if len(pids) != test.pids {
				t.Fatalf("got %q, want %d pids", pids, test.pids)
			}
			for _, pid := range pids {
				if alive(t, pid) {
					t.Errorf("%s lives on", pid)
				}
			}
		})
	}
}

func TestGroupTimeLimit(t *testing.T) {
	var o output
	began := time.Now()
	err := shell(t, &o, 300*time.Millisecond, `(setsid bash -c 'echo $$; exec sleep 600' &); echo $$; sleep 600`).Run(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "time limit of 300ms is over") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	for _, pid := range o.lines() {
		if alive(t, pid) {
			t.Errorf("%s lives on", pid)
		}
	}
}

// TestGroupLeavesWhatItMay: a program that ends by itself may leave something,
// which is not waited for, and is not taken for a part of the next one.
func TestGroupLeavesWhatItMay(t *testing.T) {
	var o output
	began := time.Now()
	if err := shell(t, &o, time.Minute, `(setsid sleep 600 & echo $!)`).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	left := o.lines()[0]
	end := func() {
		if pid, err := strconv.Atoi(left); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
	defer end()
	// A child that somebody else in this process started is nobody's, too.
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	if err := shell(t, &o, 100*time.Millisecond, `sleep 600`).Run(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if !alive(t, left) || !alive(t, strconv.Itoa(other.Process.Pid)) {
		t.Error("what another program started was ended")
	}
}

// TestGroupLeavesOtherUnits: a daemon in a control group of its own is the
// service manager's.
func TestGroupLeavesOtherUnits(t *testing.T) {
	if os.Geteuid() != 0 {
		lacking.Skip(t, "not root: no control groups can be made")
	}
	group := ownControlGroup(t)
	var o output
	err := shell(t, &o, time.Minute, `(setsid bash -c 'echo $$ > `+group+`/cgroup.procs && echo $$; exec sleep 600' &); setsid bash -c 'echo $$; exec sleep 600' & sleep 600`).
		Run(whenPrinted(t, &o, 2))
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	inside, err := os.ReadFile(group + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.TrimSpace(string(inside))
	for _, pid := range o.lines() {
		if alive(t, pid) != (pid == moved) {
			t.Errorf("%s lives: %v; in the other control group: %s", pid, alive(t, pid), moved)
		}
	}
	pid, err := strconv.Atoi(moved)
	if err != nil {
		t.Fatalf("nothing lives in the other control group: %v", err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	_, _ = unix.Wait4(pid, nil, 0, nil)
}

func ownControlGroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			dir, err := os.MkdirTemp(f[1], "reconf-pull-run-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			})
			return dir
		}
	}
	lacking.Skip(t, "no unified control group hierarchy")
	return ""
}

func TestHostEndsWhatAProgramStarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	_, err := run.Host{Timeout: 300 * time.Millisecond}.Run(t.Context(), "bash", "-c", `sleep 600 & echo $! $$ > "$0"; setsid sleep 600 & echo $! >> "$0"; echo said >&2; wait`, file)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "said") {
		t.Errorf("got %v", err)
	}
	pids, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(strings.Fields(string(pids))) != 3 {
		t.Fatalf("got %q", pids)
	}
	for _, pid := range strings.Fields(string(pids)) {
		if alive(t, pid) {
			t.Errorf("%s lives on", pid)
		}
	}
}

func TestHostReturnsOutputAndStatus(t *testing.T) {
	out, err := run.Host{}.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 4")
	var failed *run.Error
	if !errors.As(err, &failed) || failed.ExitCode() != 4 || failed.Stderr != "err" || string(out) != "out\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestGroupKeepsErrorsApart(t *testing.T) {
	var out, errs bytes.Buffer
	group := &run.Group{Argv: []string{"sh", "-c", "echo answer; echo complaint >&2"}, Timeout: time.Minute, Output: &out, Errors: &errs}
	if err := group.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "answer\n" || errs.String() != "complaint\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}
