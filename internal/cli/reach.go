package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// How often and how long a changed host may try to reach its fleet repo.
const (
	reachTries   = 3
	reachTimeout = 15 * time.Second
	reachWithin  = time.Minute
)

// reach asks the source as the next run will: in a process of its own, because
// this one remembers host names, name servers, CAs and open connections from
// before the change. trusted is a commit that this process trusts, by its
// signature, and that the keys which the change may have brought must not lock out;
// "" when there is none.
func (a *app) reach(ctx context.Context, trusted string) error {
	ctx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	args := []string{"reach", "--root", a.options.root, "--log-level", "error"}
	for flag, value := range map[string]string{"--config": a.config, "--state-dir": a.stateDir, "--url": a.url, "--branch": a.branch, "--trusted": trusted} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	var last error
	for range reachTries {
		last = run.Self{Timeout: 2 * reachTimeout}.Run(ctx, args...)
		if last == nil || ctx.Err() != nil {
			return last
		}
		select { // what was just restarted may need a moment
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	return last
}

// reachCommand is what reach starts. The configuration is read afresh: the change
// may have changed that too.
func (a *app) reachCommand() *cobra.Command {
	trusted := ""
	cmd := &cobra.Command{
		Use: "reach", Short: "Ask whether the fleet repo can be reached", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.reachOnce(cmd.Context(), trusted) },
	}
	a.sourceFlags(cmd)
	cmd.Flags().StringVar(&trusted, "trusted", "", "commit that has to be trusted still")
	return cmd
}

func (a *app) reachOnce(ctx context.Context, trusted string) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	m.config.Source.Timeout = config.Duration(reachTimeout)
	st, err := state.Load(m.dirs)
	if err != nil {
		return err
	}
	src, err := a.source(m, st)
	if err != nil {
		return err
	}
	if _, err := src.Fetch(ctx); err != nil {
		return err
	}
	keys, err := trust(m)
	if err != nil || keys.Verify == nil || trusted == "" {
		return err
	}
	commit, err := src.Commit(ctx, trusted)
	if errors.Is(err, source.ErrDamaged) {
		return nil // it was cloned anew, without that commit
	}
	if err == nil {
		_, err = keys.Verify(commit)
	}
	if err != nil {
		return fmt.Errorf("commit %.12s, which is being applied, would not be trusted any more: %w", trusted, err)
	}
	return nil
}
