// Package run starts external programs, for everybody.
//
// Its one rule: a program gets a clean environment and a time limit, and an
// error of it carries what it was and the end of what it said.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Runner starts a program and returns what it printed on stdout.
type Runner interface {
	Run(ctx context.Context, argv ...string) ([]byte, error)
}

// Error is a program that did not end well.
type Error struct {
	Argv   []string
	Stderr string // its last lines
	Err    error
}

func (e *Error) Error() string {
	text := strings.Join(e.Argv, " ") + ": " + e.Err.Error()
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// ExitCode is the program's exit status, -1 when it did not exit by itself.
func (e *Error) ExitCode() int {
	var exit *exec.ExitError
	if errors.As(e.Err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// Host runs programs on this machine, each at most Timeout (30 s when 0).
type Host struct{ Timeout time.Duration }

const defaultTimeout = 30 * time.Second

// Run starts argv[0], looked up in the standard directories and among systemd's
// own programs.
func (h Host) Run(ctx context.Context, argv ...string) ([]byte, error) {
	timeout := h.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(argv[0]), argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w after %s", ctx.Err(), timeout)
		}
		return stdout.Bytes(), &Error{Argv: argv, Stderr: tail(stderr.String()), Err: err}
	}
	return stdout.Bytes(), nil
}

// find knows where systemd keeps programs that are not for shells, such as
// systemd-sysctl. What is nowhere keeps its name, and fails under it.
func find(program string) string {
	const private = "/usr/lib/systemd/"
	if _, err := exec.LookPath(program); err != nil {
		if found, err := exec.LookPath(private + program); err == nil {
			return found
		}
	}
	return program
}

func tail(text string) string {
	const most = 1000
	text = strings.TrimSpace(text)
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	return text
}
