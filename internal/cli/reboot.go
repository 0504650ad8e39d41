package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// rebooter is the running machine, as logind and systemd know it.
type rebooter struct {
	host    *host.Host
	command []string // instead of logind
}

func (r *rebooter) BootID() string { return r.host.BootID() }

// Blockers asks logind; our own lock was released before.
func (r *rebooter) Blockers(ctx context.Context) ([]string, error) {
	login, err := systemd.ConnectLogin(ctx)
	if err != nil {
		return nil, err
	}
	defer login.Close()
	held, err := login.Inhibitors(ctx)
	var who []string
	for _, one := range held {
		if one.BlocksShutdown() && int(one.PID) != os.Getpid() {
			who = append(who, one.String())
		}
	}
	return who, err
}

func (r *rebooter) Reboot(ctx context.Context) error {
	if len(r.command) > 0 {
		_, err := run.Host{}.Run(ctx, r.command...)
		return err
	}
	login, err := systemd.ConnectLogin(ctx)
	if err != nil {
		return err
	}
	defer login.Close()
	err = login.Reboot(ctx)
	if errors.Is(err, systemd.ErrInhibited) {
		return fmt.Errorf("%w: %w", update.ErrVeto, err)
	}
	return err
}

// How long the checks of a boot are waited for, and how often they are looked at.
const (
	bootChecksWithin = 5 * time.Minute
	bootChecksEvery  = 2 * time.Second
)

func (r *rebooter) BootChecks(ctx context.Context) error {
	m, err := systemd.Connect(ctx)
	if err != nil {
		return fmt.Errorf("reaching systemd: %w", err)
	}
	defer m.Close()
	limit := time.NewTimer(bootChecksWithin)
	defer limit.Stop()
	for {
		state, why, err := m.BootComplete(ctx)
		switch {
		case err != nil:
			return err
		case state == systemd.BootFailed:
			return fmt.Errorf("the boot after the change failed its checks (boot-complete.target): %s", why)
		case state != systemd.BootPending:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("the checks of the boot after the change (boot-complete.target) did not end within %s", bootChecksWithin)
		case <-time.After(bootChecksEvery):
		}
	}
}
