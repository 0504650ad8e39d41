// Package run starts external programs, for everybody.
//
// Its one rule: a program gets a clean environment and a time limit, and an
// error of it carries what it was and the end of what it said.
package run

import (
	"bytes"
	"context"
	"errors"
	"io"
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
// own programs. What it started ends with its time, as of a Group, but for
// daemons.
func (h Host) Run(ctx context.Context, argv ...string) ([]byte, error) {
	timeout := h.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	cmd := command(argv)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := start(ctx, timeout, cmd, &session{}); err != nil {
		var stuck *stuckError
		if errors.As(err, &stuck) {
			return nil, &Error{Argv: argv, Err: err}
		}
		return stdout.Bytes(), &Error{Argv: argv, Stderr: tail(stderr.String()), Err: err}
	}
	return stdout.Bytes(), nil
}

// Stream hands over what a program prints as it comes, for as long as the
// program runs, and ends it when ctx is over; Timeout is not for it.
func (Host) Stream(ctx context.Context, stdout io.Writer, argv ...string) error {
	const forever = 1<<63 - 1
	cmd := command(argv)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	err := start(ctx, forever, cmd, &session{})
	var stuck *stuckError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &stuck): // it may still write
		return &Error{Argv: argv, Err: err}
	}
	return &Error{Argv: argv, Stderr: tail(stderr.String()), Err: err}
}

// Has tells whether there is such a program in the standard directories.
func Has(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
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
