package child

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/reconf-pull/reconf-pull/internal/run"
)

// agent is a socket for the other user that leads to this user's ssh-agent.
type agent struct {
	path     string
	listener *net.UnixListener
}

// newAgent makes the socket in a directory of this user.
func newAgent(dir, to string, user *run.User) (_ *agent, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	a := &agent{path: filepath.Join(dir, fmt.Sprintf("agent-%d", os.Getpid()))}
	if err := os.Remove(a.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if a.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"}); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(a.path, 0o600), os.Lchown(a.path, int(user.UID), int(user.GID))); err != nil {
		return nil, errors.Join(err, a.listener.Close())
	}
	go func() {
		for {
			theirs, err := a.listener.AcceptUnix()
			if err != nil {
				return // closed
			}
			go func() {
				defer func() { _ = theirs.Close() }()
				ours, err := net.Dial("unix", to)
				if err != nil {
					return // as an agent that has ended
				}
				defer func() { _ = ours.Close() }()
				go func() {
					_, _ = io.Copy(ours, theirs) // who asks sees where it broke off
					_ = ours.Close()
				}()
				_, _ = io.Copy(theirs, ours)
			}()
		}
	}()
	return a, nil
}

// close removes the socket.
func (a *agent) close() {
	if a != nil {
		_ = a.listener.Close()
	}
}
