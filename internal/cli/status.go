package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
	"github.com/reconf-pull/reconf-pull/internal/version"
)

func (a *app) statusCommand() *cobra.Command {
	oneline := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what this host has, what failed and what to do next",
		Long: `Status exits with 0 when the host is healthy, with 1 when something failed and with
3 when something is pending.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd, oneline) },
	}
	cmd.Flags().BoolVar(&oneline, "oneline", false, "print one line, for prompts")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) status(cmd *cobra.Command, oneline bool) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	s, err := report.ReadStatus(m.dirs, m.config.Reboot.Windows, m.host.Now())
	if err != nil {
		return err
	}
	s.Version, s.Source = version.String(), m.config.Source.URL
	// The mirror is only a cache: without it the status lacks the subject.
	if _, err := os.Lstat(m.dirs.Fetched()); err == nil && s.Applied != nil {
		if src, err := a.source(m, &state.State{}); err == nil {
			if info, err := src.Describe(cmd.Context(), s.Applied.Commit); err == nil {
				s.Subject = &info
			}
		}
	}
	switch {
	case a.json:
		err = a.printJSON(s)
	case oneline:
		err = a.print(s.OneLine() + "\n")
	default:
		err = s.Write(a.stdout, m.host.Now())
	}
	if err != nil {
		return err
	}
	switch s.Health {
	case report.Failing:
		return exitStatus(exitFailure)
	case report.Pending:
		return exitStatus(exitChanges)
	}
	return nil
}

func (a *app) historyCommand() *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use: "history", Short: "List the changes that ended, the newest first", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			all, err := a.history()
			if err != nil {
				return err
			}
			if limit > 0 && len(all) > limit {
				all = all[:limit]
			}
			if a.json {
				return a.printJSON(all)
			}
			return report.WriteHistory(a.stdout, all)
		},
	}
	cmd.Flags().IntVarP(&limit, "number", "n", 0, "list at most this many (0: all that are kept)")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) history() ([]*update.Generation, error) {
	m, err := a.machine()
	if err != nil {
		return nil, err
	}
	return report.History(m.dirs)
}

func (a *app) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show [GENERATION | CHANGE]", Short: "Show the record of a change (default: the newest)",
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, given []string) error {
			g, err := a.generation(given)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(g)
			}
			return report.WriteGeneration(a.stdout, g)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) generation(given []string) (*update.Generation, error) {
	all, err := a.history()
	if err != nil {
		return nil, err
	}
	if len(given) == 0 {
		if len(all) == 0 {
			return nil, fmt.Errorf("nothing was applied yet")
		}
		return all[0], nil
	}
	for _, g := range all {
		if g.Change == given[0] || g.Number > 0 && strconv.Itoa(g.Number) == given[0] {
			return g, nil
		}
	}
	number, _, _ := strings.Cut(given[0], "-") // 12, or 12-c0ffee00
	if _, err := strconv.Atoi(number); err != nil {
		return nil, &usageError{fmt.Errorf("%q is no generation and no change: reconf-pull history lists them", given[0])}
	}
	return nil, fmt.Errorf("%q is neither a generation nor a change that is kept: reconf-pull history lists those that are", given[0])
}
