package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

const unit = "reconf-pull.service"

// serviceError is a run in the service that could not be begun, or that nobody
// follows any more.
type serviceError struct {
	text, hint string
	status     int
}

func (e *serviceError) Error() string { return e.text }

// Hint says how to go on.
func (e *serviceError) Hint() string { return e.hint }

const inPlaceHint = "reconf-pull run --in-place runs here, without the service"

// typed tells whether a person typed the command, and nothing but the command:
// such a run must outlive the terminal.
func typed(cmd *cobra.Command) bool { return cmd.Flags().NFlag() == 0 && terminal(os.Stdin) }

// runService lets the service do the run, and follows it. It does nothing, and
// says so, where there is no such service or where this process is part of it.
func (a *app) runService(ctx context.Context) (done bool, err error) {
	if !systemd.Booted() {
		return false, nil
	}
	state, err := service(ctx)
	if err != nil {
		if ctx.Err() == nil {
			fmt.Fprintf(a.stderr, "reconf-pull: warning: %v: running here\n", err)
		}
		return false, nil
	}
	switch {
	case state.LoadState == "not-found", state.InvocationID != "" && os.Getenv("INVOCATION_ID") == state.InvocationID:
		return false, nil
	case state.LoadState == "masked":
		return true, &serviceError{unit + " is masked", "systemctl unmask " + unit + " ends that; " + inPlaceHint, exitFailure}
	case state.LoadState != "loaded":
		return true, &serviceError{fmt.Sprintf("%s cannot be loaded (%s)", unit, state.LoadState), "systemctl status " + unit + " says why; " + inPlaceHint, exitFailure}
	case os.Geteuid() != 0:
		return true, &serviceError{"starting " + unit + " needs root", "sudo reconf-pull run", exitFailure}
	}
	return true, a.follow(ctx)
}

func service(ctx context.Context) (systemd.ServiceState, error) {
	m, err := systemd.Connect(ctx)
	if err != nil {
		return systemd.ServiceState{}, err
	}
	defer m.Close()
	return m.Service(ctx, unit)
}

// follow starts the service, or joins the run that is under way, and ends as
// that ends.
func (a *app) follow(ctx context.Context) error {
	i, err := systemd.Begin(ctx, unit)
	if err != nil {
		return notBegun(ctx, err)
	}
	defer i.Close()
	screen := &screen{app: a}
	if i.Joined {
		doing := ""
		if i.State.StatusText != "" {
			doing = ", " + i.State.StatusText
		}
		screen.say("%s runs already (pid %d%s): following that run; ctrl-C ends only the following", unit, i.State.MainPID, doing)
	} else {
		screen.say("started %s: ctrl-C ends only the following", unit)
	}
	end, err := i.Follow(ctx, run.Host{}, screen.entry, func(err error) { screen.say("warning: what it says cannot be shown: %v", err) })
	switch {
	case ctx.Err() != nil:
		return &serviceError{
			"not followed any more; the run goes on in " + unit,
			fmt.Sprintf("journalctl --follow --unit %s follows it, systemctl stop %s ends it", unit, unit),
			exitTempFail,
		}
	case err != nil:
		return &serviceError{err.Error(), "reconf-pull status shows how it ended", exitFailure}
	}
	status, why := i.ExitStatus(end)
	if why != "" {
		return &serviceError{unit + ": " + why, "journalctl --unit " + unit + " shows all of it; the next run goes on from here", status}
	}
	return exitStatus(status)
}

func notBegun(ctx context.Context, err error) error {
	e := &serviceError{text: err.Error(), hint: "systemctl status " + unit + " says more; " + inPlaceHint, status: exitFailure}
	var not *systemd.NotBegunError
	switch {
	case ctx.Err() != nil:
		e.text, e.hint, e.status = "not waited for any more; "+unit+" is queued", "systemctl list-jobs shows what it waits for, systemctl stop "+unit+" takes it back", exitTempFail
	case !errors.As(err, &not):
	case not.State.Result == "start-limit-hit":
		e.hint = "it was started too often: systemctl reset-failed " + unit
	case not.State.Skipped:
		e.status = exitTempFail
	}
	return e
}

// screen is where the lines of the service and our own meet.
type screen struct {
	app *app
	mu  sync.Mutex
}

func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.app.stderr, "reconf-pull: "+format+"\n", args...)
}

// entry prints a line of the journal, coloured as journalctl does.
func (s *screen) entry(e systemd.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const failure, warning, notice, debug = 3, 4, 5, 7
	color := ""
	if s.app.colored(s.app.stdout) {
		switch {
		case e.Priority <= failure:
			color = "\x1b[31m"
		case e.Priority == warning:
			color = "\x1b[33m"
		case e.Priority == notice:
			color = "\x1b[1m"
		case e.Priority == debug:
			color = "\x1b[90m"
		}
	}
	if color == "" {
		fmt.Fprintln(s.app.stdout, e.Message)
		return
	}
	for line := range strings.SplitSeq(e.Message, "\n") {
		fmt.Fprintf(s.app.stdout, "%s%s\x1b[0m\n", color, line)
	}
}
