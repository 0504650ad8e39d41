package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/state"
)

func (a *app) retryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "retry",
		Short: "Let the next run try again what is held or waits",
		Long: `A change that failed for good holds its digest, or OS work: nothing of it is tried
until another commit, or another OS deployment, mends it. Retry ends that, for when it
was the host that had to be mended. A step that failed and a reboot that did not come
are then tried again without waiting any longer.`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return a.locked("retry", func(m *machine, st *state.State) error {
				if st.Held == nil && st.HeldOSWork == nil && (st.Change == nil || !st.Change.Ended() && st.Change.Waits() == nil) {
					return a.print("nothing is held\n")
				}
				u, err := a.update(m, st)
				if err != nil {
					return err
				}
				if err := u.Retry(); err != nil {
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
			return a.locked("rollback", func(m *machine, st *state.State) error {
				u, err := a.update(m, st)
				if err != nil {
					return err
				}
				if err := u.Back(cmd.Context()); err != nil {
					return err
				}
				return a.print(fmt.Sprintf("%s is back at %.12s, generation %d\n", st.Applied.Host, st.Applied.Commit, st.Applied.Generation))
			})
		},
	}
}
