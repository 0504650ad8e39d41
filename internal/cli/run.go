package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Fetch, and apply what changed",
		Long: `Run is one pull: it finishes what an earlier run could not, fetches the fleet repo
and applies this host's config if it, or a file that it refers to, has changed.

Typed on a terminal without any flag, it starts reconf-pull.service, or joins the run
that is under way there, and shows what that says: a connection that is lost ends no
update, and ctrl-C ends only the showing. It exits as the service does. With any flag,
from a script, or where there is no such service, it runs in place.
` + exitStatusHelp,
		Example: `  reconf-pull run
  reconf-pull run --url /srv/fleet.git --host web1 --root /tmp/root`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if typed(cmd) {
				if done, err := a.runService(cmd.Context()); done {
					return err
				}
			}
			return a.run(cmd.Context())
		},
	}
	a.sourceFlags(cmd)
	a.jsonFlag(cmd)
	cmd.Flags().Bool("in-place", false, "run here and not in reconf-pull.service, as any other flag does")
	return cmd
}

func (a *app) run(ctx context.Context) error {
	return a.locked("run", func(m *machine, st *state.State) error {
		err := a.pull(ctx, m, st)
		if errors.Is(err, lock.ErrBusy) && ctx.Err() == nil {
			pollLock(ctx, m)
		}
		return err
	})
}

// pull is one run, under the run lock.
func (a *app) pull(ctx context.Context, m *machine, st *state.State) error {
	if err := sweepSalt(ctx, m); err != nil {
		return err
	}
	r, err := a.reconciler(m, st)
	if err != nil {
		return err
	}
	if st.Applied == nil && st.Change == nil && len(st.Open) == 0 {
		if err := r.Update.Adopt(ctx); err != nil {
			return err
		}
	}
	r.Announce = func(p *reconcile.Proposal) {
		if a.json {
			return
		}
		if err := p.Findings.Write(a.stderr); err != nil {
			return // the run matters more than its text
		}
		text := a.planText(m, false)
		_ = text.Write(ctx, a.stdout, p.Plan) // likewise
		_ = text.WriteScripts(a.stdout, p.Runs)
		_ = report.WriteEngine(a.stdout, &p.Engine, p.Plan)
		if p.Reboot != "" {
			_ = a.print("The machine will be rebooted: " + p.Reboot + ".\n") // likewise
		}
	}
	systemd.Notify("STATUS=checking the fleet repo")
	out, err := limited(ctx, m, r)
	if err != nil {
		if !a.json && out.Result == reconcile.Applied {
			_ = a.print(done(st.Applied, out.Finished)) // the error matters more
		}
		return aside(err, out.Aside)
	}
	if a.json {
		if out.Plan != nil {
			out.Plan = report.Shown(out.Plan)
		}
		switch {
		case out.Aside == nil:
			return a.printJSON(out)
		case reconcile.OnlyBlocked(out.Aside): // which the outcome has
			return errors.Join(a.printJSON(out), exitStatus(exitFailure))
		}
		return aside(nil, out.Aside) // one document: what went wrong is in it
	}
	text := outcome(out)
	if out.Waiting != "" {
		text += "waiting: " + out.Waiting + "\n"
	}
	return errors.Join(a.print(text), aside(nil, out.Aside))
}

// asideError is what went wrong, or is held, beside what a run did. A unit that
// takes an unreachable source for a success must not take this for one.
type asideError struct{ err, aside error }

func aside(err, aside error) error {
	if aside == nil {
		return err
	}
	return &asideError{err, aside}
}

func (e *asideError) Error() string { return errors.Join(e.err, e.aside).Error() }

func (e *asideError) Unwrap() []error {
	if e.err == nil {
		return []error{e.aside}
	}
	return []error{e.err, e.aside}
}

// done is what a run did although it ended with an error.
func done(applied *state.Applied, finished string) string {
	text := fmt.Sprintf("%s is at %.12s (%s), generation %d", applied.Host, applied.Commit, strings.TrimPrefix(applied.Ref, "refs/heads/"), applied.Generation)
	if finished != "" {
		text += ": change " + finished + " was finished"
	}
	return text + "\n"
}

// limited is a run that ends in time.
func limited(ctx context.Context, m *machine, r *reconcile.Reconciler) (reconcile.Outcome, error) {
	limit := time.Duration(m.config.Run.Timeout)
	within, cancel := context.WithTimeoutCause(ctx, limit, &timeoutError{limit: limit})
	defer cancel()
	out, err := r.Run(within)
	if err == nil || within.Err() == nil || ctx.Err() != nil {
		return out, err
	}
	var step *pipeline.StepError
	if !errors.As(err, &step) {
		return out, &timeoutError{limit: limit, err: err}
	}
	r.Update.CutOff(ctx, step)
	return out, err
}

// timeoutError is a run that has used up its time; err is what it did then.
type timeoutError struct {
	limit time.Duration
	err   error
}

func (e *timeoutError) Error() string {
	text := fmt.Sprintf("run.timeout of %s is over", e.limit)
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	return text
}

// outcome is the one line that a run ends with.
func outcome(o reconcile.Outcome) string {
	took := o.Duration.Round(time.Millisecond).String()
	at := fmt.Sprintf("%.12s (%s)", o.Commit, strings.TrimPrefix(o.Ref, "refs/heads/"))
	if n := len(o.Blocked); n == 1 {
		at += " but for 1 path that is blocked"
	} else if n > 1 {
		at += fmt.Sprintf(" but for %d paths that are blocked", n)
	}
	switch {
	case o.Result == reconcile.Stale && o.Host == "":
		return fmt.Sprintf("the remote is stale, and nothing was done, took %s\n", took)
	case o.Result == reconcile.Stale:
		return fmt.Sprintf("%s stays at %s: the remote is stale, took %s\n", o.Host, at, took)
	case o.Result == reconcile.Suspended:
		return fmt.Sprintf("suspended %s; reconf-pull resume ends it\n", o.Suspended)
	case o.Result == reconcile.Retired:
		return fmt.Sprintf("%s is retired at %s: nothing is changed, took %s\n", o.Host, at, took)
	case o.Result == reconcile.UpToDate && o.Retired != "":
		return fmt.Sprintf("%s is retired at %s, and everything managed was removed, took %s\n", o.Host, at, took)
	case o.Result == reconcile.UpToDate && len(o.Drift) > 0:
		what := "1 managed path drifted, reconf-pull plan shows it"
		if n := len(o.Drift); n > 1 {
			what = fmt.Sprintf("%d managed paths drifted, reconf-pull plan shows them", n)
		}
		return fmt.Sprintf("%s is at %s; %s; took %s\n", o.Host, at, what, took)
	case o.Result == reconcile.UpToDate && o.Finished != "":
		return fmt.Sprintf("%s is up to date at %s after change %s was finished, took %s\n", o.Host, at, o.Finished, took)
	case o.Result == reconcile.UpToDate:
		return fmt.Sprintf("%s is up to date at %s, took %s\n", o.Host, at, took)
	case o.Result == reconcile.Recorded:
		return fmt.Sprintf("%s is now at %s, generation %d: nothing to change on the host, took %s\n", o.Host, at, o.Generation, took)
	case o.Plan != nil:
		return fmt.Sprintf("%s is now at %s, generation %d, took %s\n", o.Host, at, o.Generation, took)
	default:
		return fmt.Sprintf("%s is now at %s, generation %d: change %s was finished, took %s\n", o.Host, at, o.Generation, o.Finished, took)
	}
}

func (a *app) planCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan [DIR]",
		Short: "Show what a run would change, and change nothing",
		Long: `Plan fetches the fleet repo and shows what a run would do to this host, with diffs
of text files. With DIR it plans from that checkout instead, also what is not committed
there; with --host for any host, and with --root on a directory that stands for it: that
needs neither root nor a configured agent. It exits with 0 when there is nothing to do and with 3 when there is.
` + exitStatusHelp,
		Example: `  reconf-pull plan
  reconf-pull plan --host web1 --root /tmp/web1 .`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			if len(given) == 1 {
				a.checkout = given[0]
			}
			return a.plan(cmd.Context())
		},
	}
	a.sourceFlags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) plan(ctx context.Context) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	st, err := state.Load(m.dirs)
	if err != nil {
		return err
	}
	r, err := a.reconciler(m, st)
	if err != nil {
		return err
	}
	p, err := a.propose(ctx, r)
	var stale *reconcile.StaleError
	if errors.As(err, &stale) {
		m.log.Warn(stale)
		p, err = &reconcile.Proposal{Revision: source.Revision{Ref: stale.Ref, Commit: stale.Commit}, Plan: &plan.Plan{}}, nil
	}
	if p != nil && p.Plan != nil {
		if shown := a.showPlan(ctx, m, p); shown != nil {
			return shown
		}
	}
	if err != nil {
		return err
	}
	if !p.Changes() && len(p.Plan.Blocked()) == 0 {
		return nil
	}
	return exitStatus(exitChanges)
}

func (a *app) showPlan(ctx context.Context, m *machine, p *reconcile.Proposal) error {
	if a.json {
		return a.printJSON(report.NewPlanDocument(p))
	}
	if err := p.Findings.Write(a.stderr); err != nil {
		return err
	}
	if p.Retired == fleet.Retired {
		return a.print(fmt.Sprintf("%s is retired at %.12s: nothing is changed\n", p.Host, p.Revision.Commit))
	}
	text := a.planText(m, true)
	if err := text.Write(ctx, a.stdout, p.Plan); err != nil {
		return err
	}
	err := errors.Join(text.WriteScripts(a.stdout, p.Runs), report.WriteEngine(a.stdout, &p.Engine, p.Plan))
	if err != nil || p.Reboot == "" {
		return err
	}
	return a.print("The machine will be rebooted: " + p.Reboot + ".\n")
}
