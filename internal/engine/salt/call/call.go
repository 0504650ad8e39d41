// Package call calls the salt-call of this host.
//
// Its one rule: a call leaves nothing running, neither when it is ended nor
// when the run that began it was killed.
package call

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// Host is the salt-call on the PATH.
type Host struct {
	Program string        // "" is salt-call
	Timeout time.Duration // of one call
}

// Name is salt.
func (h *Host) Name() string { return "salt" }

// Place is the path itself: Salt runs on the host.
func (h *Host) Place(path string) string { return path }

// MissingError is a host without salt-call.
type MissingError struct{ Program string }

func (e *MissingError) Error() string { return "there is no " + e.Program + " on this host" }

// Hint says how to go on without it.
func (e *MissingError) Hint() string {
	return "install Salt (salt-call is all that is needed), or set engine.kind = \"salt-container\""
}

func (h *Host) program() string {
	if h.Program != "" {
		return h.Program
	}
	return "salt-call"
}

// Prepare looks for the program.
func (h *Host) Prepare(context.Context) error {
	if !run.Has(h.program()) {
		return &MissingError{h.program()}
	}
	return nil
}

// mark is in the environment of a call and of all that it starts.
func mark(folder string) string { return "RECONF_PULL_SALT=" + folder }

// Call runs it in a session of its own.
func (h *Host) Call(ctx context.Context, c salt.Call) (salt.Answer, error) {
	stdout, stderr := &run.Capped{Most: salt.MaxOutput}, &run.Capped{Most: salt.MaxOutput}
	g := run.Group{
		Argv:    append([]string{h.program(), "-c", c.Folder}, c.Args...),
		Env:     []string{mark(c.Folder), "HOME=/root", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"},
		Timeout: h.Timeout, Output: stdout, Errors: stderr,
	}
	err := g.Run(ctx)
	answer := salt.Answer{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Cut: stdout.Cut}
	var failed *run.Error
	if errors.As(err, &failed) && failed.ExitCode() >= 0 {
		answer.Exit = failed.ExitCode()
		return answer, nil
	}
	if failed != nil {
		err = fmt.Errorf("%s: %w", h.program(), failed.Err)
	}
	return answer, err
}

// Stop kills what an earlier run's call left.
func (h *Host) Stop(ctx context.Context, folder string) error {
	return run.EndMarked(ctx, mark(folder))
}
