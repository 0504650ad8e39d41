package call_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt/call"
)

// program stands for salt-call, as a script.
func program(t *testing.T, script string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "salt-call")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCall(t *testing.T) {
	h := &call.Host{Timeout: time.Minute, Program: program(t, `echo "$@"; echo noise >&2; exit 2`)}
	if err := h.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer, err := h.Call(t.Context(), salt.Call{Folder: "/run/x", Args: []string{"--local", "state.apply"}})
	if err != nil || answer.Exit != 2 || string(answer.Stdout) != "-c /run/x --local state.apply\n" || string(answer.Stderr) != "noise\n" || answer.Cut {
		t.Errorf("%+v, %v", answer, err)
	}
}

func TestCallsThatDoNotEnd(t *testing.T) {
	h := &call.Host{Timeout: 100 * time.Millisecond, Program: program(t, "sleep 600 & wait")}
	if _, err := h.Call(t.Context(), salt.Call{Folder: "/run/x"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	h.Program = "no-such-salt-call"
	var missing *call.MissingError
	if err := h.Prepare(t.Context()); !errors.As(err, &missing) || !strings.Contains(missing.Hint(), "salt-container") {
		t.Errorf("got %v", err)
	}
}

func TestHugeOutputIsCut(t *testing.T) {
	h := &call.Host{Timeout: time.Minute, Program: program(t, "head -c 100000000 /dev/zero; exit 0")}
	answer, err := h.Call(t.Context(), salt.Call{Folder: "/run/x"})
	if err != nil || !answer.Cut || len(answer.Stdout) != salt.MaxOutput {
		t.Errorf("%d bytes, cut %v, %v", len(answer.Stdout), answer.Cut, err)
	}
}

// What the call of a killed run left is found by its folder, and by no other.
func TestStop(t *testing.T) {
	start := func(folder string) (*exec.Cmd, chan error) {
		cmd := exec.Command("sh", "-c", "sleep 600 & wait")
		cmd.Env = append(os.Environ(), "RECONF_PULL_SALT="+folder)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return cmd, ended
	}
	folder := t.TempDir()
	_, ended := start(folder)
	other, _ := start(folder + "-other")
	if err := (&call.Host{}).Stop(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("it ended by itself")
	}
	if stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(other.Process.Pid), "stat")); err != nil || strings.Contains(string(stat), ") Z ") {
		t.Errorf("another one was ended, too: %v", err)
	}
}
