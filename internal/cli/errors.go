package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/survey"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// The exit statuses; systemd prints these names (systemd.exec(5)).
const (
	exitSuccess         = 0
	exitFailure         = 1
	exitInvalidArgument = 2
	exitChanges         = 3
	exitDataErr         = 65
	exitNoInput         = 66
	exitUnavailable     = 69
	exitSoftware        = 70
	exitTempFail        = 75
	exitConfig          = 78
)

// exitStatus ends a command that printed its result with a status of its own.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// statusOf is the contract of docs/operations.md, section "Exit statuses".
func statusOf(err error) int {
	var (
		exit    exitStatus
		service *serviceError
		usage   *usageError
		timeout *timeoutError
		busy    *state.BusyError
		conf    *config.Error
		step    *pipeline.StepError
		noHost  *fleet.NoHostError
		nobody  *survey.NoHostError
		nothing *survey.NothingError
		other   *reconcile.OtherHostError
		machine *fleet.OtherMachineError
		stale   *reconcile.StaleError
		refused *plan.RefusedError
		invalid *finding.Failure
		choice  *engine.ChoiceError
		wait    *pipeline.WaitReboot
		held    *reconcile.HeldError
		outside *update.OutsideWindowError
		beside  *asideError
		keys    *secret.KeyError
		noKey   *noKeyError
	)
	switch {
	case err == nil:
		return exitSuccess
	case errors.As(err, &wait) && wait.Failed == nil:
		return exitTempFail
	case errors.As(err, &held), errors.As(err, &beside):
		return exitFailure
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &service):
		return service.status
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return exitInvalidArgument
	case errors.Is(err, errEnded), errors.Is(err, context.Canceled), errors.As(err, &busy):
		return exitTempFail
	case errors.As(err, &conf):
		return exitConfig
	case errors.Is(err, state.ErrUnreadable), strings.HasPrefix(err.Error(), "internal error"):
		return exitSoftware
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO), errors.As(err, &step), errors.As(err, &timeout), errors.Is(err, source.ErrLocal):
		return exitFailure
	case errors.As(err, &keys):
		return exitConfig
	case errors.As(err, &noHost), errors.As(err, &noKey), errors.As(err, &nobody), errors.As(err, &nothing), errors.As(err, &other), errors.As(err, &machine):
		return exitNoInput
	case errors.Is(err, source.ErrUnavailable):
		return exitUnavailable
	case errors.Is(err, source.ErrUntrusted), errors.Is(err, source.ErrMalformed), errors.Is(err, source.ErrNotFastForward), errors.As(err, &refused), errors.As(err, &invalid), errors.As(err, &choice):
		return exitDataErr
	case errors.As(err, &outside), errors.As(err, &stale), errors.Is(err, lock.ErrBusy):
		return exitTempFail
	default:
		return exitFailure
	}
}

// finish prints the error, and what to do about it, and returns its status.
func (a *app) finish(err error) int {
	status := statusOf(err)
	var exit exitStatus
	if err == nil || errors.As(err, &exit) {
		return status
	}
	if a.json {
		enc := json.NewEncoder(a.stdout)
		document := map[string]any{"error": err.Error(), "hint": hint(err), "exit_status": status, "findings": findings(err)}
		var blocked *reconcile.BlockedError
		if errors.As(err, &blocked) {
			document["blocked"] = blocked.Paths
		}
		if enc.Encode(document) != nil {
			return exitFailure
		}
		return status
	}
	// A person who cannot be told that telling failed cannot be helped further.
	_ = findings(err).Write(a.stderr)
	a.tell(3, "reconf-pull: error: "+summary(err))
	if h := hint(err); h != "" {
		a.tell(5, "reconf-pull: hint: "+h)
	}
	return status
}

// tell writes to stderr, for the journal with the priority (sd-daemon(3)) of each line.
func (a *app) tell(priority int, text string) {
	prefix := ""
	if systemd.StderrIsJournal() {
		prefix = fmt.Sprintf("<%d>", priority)
	}
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintf(a.stderr, "%s%s\n", prefix, line)
	}
}

// summary is the error in one line where its findings were printed already.
func summary(err error) string {
	var conf *config.Error
	n := len(findings(err).Errors())
	what := "the host config"
	if errors.As(err, &conf) {
		what = "the configuration"
	}
	switch n {
	case 0:
		return err.Error()
	case 1:
		return "1 error in " + what + "; nothing was changed"
	default:
		return fmt.Sprintf("%d errors in %s; nothing was changed", n, what)
	}
}

func findings(err error) finding.List {
	var invalid *finding.Failure
	if errors.As(err, &invalid) {
		return invalid.Findings
	}
	return nil
}

// hint is what the error's reader can do, "" when the error says it.
func hint(err error) string {
	var (
		hinted  interface{ Hint() string }
		fetch   *source.Error
		refused *plan.RefusedError
		usage   *usageError
		step    *pipeline.StepError
		back    *update.RolledBackError
		kept    *update.KeptError
		wait    *pipeline.WaitReboot
		beside  *asideError
	)
	switch {
	case errors.As(err, &beside):
		if beside.err != nil && hint(beside.err) != "" {
			return hint(beside.err)
		}
		return hint(beside.aside)
	case errors.As(err, &wait):
		return "the run after the boot goes on; reconf-pull status shows what it waits for"
	case errors.As(err, &back) && back.Back == nil && back.OSWork:
		return "the host is as it was before, but for what update.d did; mend the host and say reconf-pull retry, or boot another OS deployment"
	case errors.As(err, &back) && back.Back == nil:
		return "the host is as it was before; push a commit that mends it, or mend the host and say reconf-pull retry"
	case errors.As(err, &kept):
		return "push a commit that mends it, or mend the host and say reconf-pull retry"
	case errors.As(err, &back) && back.Left:
		return "mend what the step names and say reconf-pull retry or reconf-pull rollback; another commit goes on, too"
	case errors.As(err, &back):
		return "the next run goes on rolling back; reconf-pull status shows what is left"
	case errors.Is(err, engine.ErrUntouched) && !errors.Is(err, syscall.ENOSPC):
		return "mend the host, or push a commit that mends it; the next run tries again"
	case errors.As(err, &step) && !errors.Is(err, engine.ErrUntouched):
		return "the change is kept; the next run goes on with it, a new push replaces it, and reconf-pull status shows it"
	case errors.As(err, &hinted):
		return hinted.Hint()
	case errors.As(err, &fetch):
		return fetch.Hint
	case errors.As(err, &refused):
		return refused.Hint
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return "reconf-pull --help lists commands and flags"
	case errors.Is(err, state.ErrUnreadable):
		return "nothing was changed. Restore the file from a backup, use the newer release that wrote it, or move the state directory aside: the next run then adopts everything and deletes nothing"
	case errors.Is(err, syscall.EACCES):
		return "this needs root"
	case errors.Is(err, syscall.ENOSPC):
		return "make room and run again: nothing was lost"
	default:
		return ""
	}
}
