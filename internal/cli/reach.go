package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/run"
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
// before the change.
func (a *app) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	args := []string{"reach", "--root", a.options.root, "--log-level", "error"}
	for flag, value := range map[string]string{"--config": a.config, "--state-dir": a.stateDir, "--url": a.url, "--branch": a.branch} {
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
	cmd := &cobra.Command{
		Use: "reach", Short: "Ask whether the fleet repo can be reached", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.reachOnce(cmd.Context()) },
	}
	a.sourceFlags(cmd)
	return cmd
}

func (a *app) reachOnce(ctx context.Context) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	m.config.Source.Timeout = config.Duration(reachTimeout)
	st, err := state.Load(m.dirs)
	if err != nil {
		return err
	}
	src, err := a.source(m, st.Ref)
	if err != nil {
		return err
	}
	_, err = src.Fetch(ctx)
	return errors.Join(err, src.Close())
}
