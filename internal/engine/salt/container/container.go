// Package container calls Salt in a podman container that has the host's
// directories.
//
// Its one rule: what Salt writes, it writes to the host, and no container of an
// earlier run is alive when one is started.
package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// Name is the name of the container. There is one at a time.
const Name = "reconf-pull-salt"

// removeTimeout is what podman has to end a container and to take it away.
const removeTimeout = time.Minute

// Caller calls Salt in a container.
type Caller struct {
	Runner run.Runner // for what podman answers at once
	Image  Image
	// Timeout bounds one call of Salt.
	Timeout time.Duration
	Log     logrus.FieldLogger
}

// Name is what status shows.
func (c *Caller) Name() string { return "salt-container" }

// Place is where Salt finds a path of the host. podman has files of its own
// at three of them, and what something is mounted on can be neither replaced
// nor removed: Salt gets to those through the second mount of /etc.
func (c *Caller) Place(path string) string {
	switch path {
	case "/etc/hosts", "/etc/hostname", "/etc/resolv.conf":
		return secondEtc + path[len("/etc"):]
	}
	return path
}

// Prepare looks for the image, and pulls or builds one that is missing.
func (c *Caller) Prepare(ctx context.Context) error {
	return missing(c.Image.prepare(ctx, c.Runner, c.Log))
}

// Stop ends and removes the container, whoever left it.
func (c *Caller) Stop(ctx context.Context, _ string) error {
	err := c.remove(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		return nil // without podman there is none
	}
	return err
}

// remove returns when the container is gone. podman kills its first process,
// and waits for it; the kernel ends all others of the container before that.
// It is done also when the run is being told to stop.
func (c *Caller) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	argv := []string{"podman", "rm", "--force", "--time=0", "--ignore", Name}
	_, err := c.Runner.Run(ctx, argv...)
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		// When its monitor was killed podman kills the container, fails for want of
		// an exit status, and takes it away the next time.
		_, err = c.Runner.Run(ctx, argv...)
	}
	if err != nil {
		return fmt.Errorf("ending the Salt container: %w", err)
	}
	return nil
}

// Call runs salt-call in a container of its own.
func (c *Caller) Call(ctx context.Context, call salt.Call) (salt.Answer, error) {
	mounts, err := c.mounts(call)
	if err != nil {
		return salt.Answer{}, err
	}
	image, err := c.Image.name()
	if err != nil {
		return salt.Answer{}, err
	}
	argv := c.command(ctx, image, mounts, call)
	if err := c.remove(ctx); err != nil {
		return salt.Answer{}, missing(err)
	}
	return c.run(ctx, argv)
}

// command says everything that containers.conf(5) or the image could say otherwise.
func (c *Caller) command(ctx context.Context, image string, mounts []mount, call salt.Call) []string {
	argv := []string{
		"podman", "run", "--rm", "--name=" + Name, "--pull=never",
		"--privileged", "--userns=host", "--user=0:0", "--network=none", "--no-hosts",
		"--log-driver=none", "--no-healthcheck", "--systemd=false", "--read-only=false", "--http-proxy=false",
		"--workdir=/", "--env=LC_ALL=C.UTF-8", "--entrypoint=salt-call",
	}
	// Older releases of podman always mount an /etc/hostname; Salt can write into
	// that, but not remove it.
	if _, err := c.Runner.Run(ctx, "podman", "run", "--no-hostname", "--help"); err == nil {
		argv = append(argv, "--no-hostname")
	}
	for _, m := range mounts {
		argv = append(argv, "--volume="+m.host+":"+m.inside)
	}
	return append(append(argv, image, "-c", call.Folder), call.Args...)
}

// run ends the container first and podman then when the time is over: salt-call
// is the container's init, which SIGTERM need not impress.
func (c *Caller) run(ctx context.Context, argv []string) (salt.Answer, error) {
	over := fmt.Errorf("its time limit of %s is over", c.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, over)
	defer cancel()
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = c.remove(ctx) // it is tried again below
		end()
	})
	stdout, stderr := &run.Capped{Most: salt.MaxOutput}, &run.Capped{Most: salt.MaxOutput}
	group := &run.Group{Argv: argv, Timeout: c.Timeout + removeTimeout, Output: stdout, Errors: stderr}
	err := group.Run(running)
	if !unhook() {
		<-ended
	}
	end()
	answer := salt.Answer{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Cut: stdout.Cut}
	var failed *run.Error
	if errors.As(err, &failed) {
		answer.Exit = failed.ExitCode()
	}
	if why := context.Cause(ctx); why != nil {
		// podman may have been about to start what was not there to be ended.
		return answer, errors.Join(fmt.Errorf("running salt-call in a container: %w", why), c.remove(ctx))
	}
	if err == nil || answer.Exit > 0 && answer.Exit < ownErrors {
		return answer, nil
	}
	if failed != nil {
		err = explain(answer, failed)
	}
	// The end of podman need not be that of its container.
	return answer, errors.Join(err, c.remove(ctx))
}

// From 125 on an exit status is podman's own (podman-run(1)), or says that
// salt-call was killed. Salt's are below.
const ownErrors = 125

func explain(answer salt.Answer, failed *run.Error) error {
	const lines = 5
	said := lastLines(answer.Stderr, lines)
	switch answer.Exit {
	case 125, 126:
		return fmt.Errorf("starting the Salt container: %s", said)
	case 127:
		return &Error{
			err:  fmt.Errorf("starting the Salt container: the image has no salt-call: %s", said),
			hint: "salt-call has to be on the image's PATH, and not below a directory that the plan writes to, because the host's is mounted there",
		}
	case 128 + 9:
		return fmt.Errorf("salt-call was killed in its container; was there not enough memory? %s", said)
	}
	if said == "" {
		return fmt.Errorf("running salt-call in a container: %w", failed.Err)
	}
	return fmt.Errorf("running salt-call in a container: %w: %s", failed.Err, said)
}

// Error is an error that says what to do about it.
type Error struct {
	err  error
	hint string
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Hint is what the error's reader can do.
func (e *Error) Hint() string { return e.hint }

// missing adds what to do when there is no podman.
func missing(err error) error {
	if !errors.Is(err, exec.ErrNotFound) {
		return err
	}
	return &Error{err: err, hint: "install podman, or salt-call and set kind = \"salt\" under [engine] in config.toml"}
}

func lastLines(text []byte, n int) string {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
