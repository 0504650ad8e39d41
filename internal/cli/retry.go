package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

func (a *app) retryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "retry",
		Short: "Let the next run try a held digest again",
		Long: `A change that failed for good holds its digest: nothing is tried until another commit
mends it. Retry ends that, for when it was the host that had to be mended.`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return a.locked("retry", func(r *reconcile.Reconciler, st *state.State) error {
				if st.Held == nil && (st.Change == nil || !st.Change.Ended()) {
					return a.print("nothing is held\n")
				}
				if err := r.Update.Retry(); err != nil {
					return err
				}
				return a.print("the next run tries again: systemctl start reconf-pull, or reconf-pull run\n")
			})
		},
	}
}

func (a *app) rollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback",
		Short: "Undo the applied change, and hold its digest",
		Long: `Rollback brings back the files, the enablement and the units of the generation before
the applied one, from the change's own backups. What was edited since is kept and
named. The digest stays held until another one arrives or reconf-pull retry. It goes
one generation back; for an older one, revert the commit and push.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.locked("rollback", func(r *reconcile.Reconciler, st *state.State) error {
				if err := r.Update.Back(cmd.Context()); err != nil {
					return err
				}
				return a.print(fmt.Sprintf("%s is back at %.12s, generation %d\n", st.Applied.Host, st.Applied.Commit, st.Applied.Generation))
			})
		},
	}
}

// locked runs an operator's command on the state, while no run is active.
func (a *app) locked(what string, command func(*reconcile.Reconciler, *state.State) error) (err error) {
	m, err := a.machine()
	if err != nil {
		return err
	}
	if err := m.dirs.Create(); err != nil {
		return err
	}
	lock, err := state.Acquire(m.dirs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := lock.Say(what); err != nil {
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
	return command(r, st)
}
