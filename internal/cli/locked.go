package cli

import (
	"errors"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/state"
)

// locked runs a command that may change the host or its state, while no other
// one does.
func (a *app) locked(what string, command func(*machine, *state.State) error) (err error) {
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
	if err := lock.Say(what + " since " + m.host.Now().UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	st, err := state.Load(m.dirs)
	if err != nil {
		return err
	}
	return command(m, st)
}
