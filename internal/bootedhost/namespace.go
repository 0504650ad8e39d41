package bootedhost

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is an operating system thread in a mount namespace of its own. Mounts made
// there are seen by the processes started there and by nobody else: another host's
// namespace, a copy of this machine's, cannot keep them busy. With a network of its own
// the same is true of interfaces, addresses and ports.
type namespace struct {
	calls chan func()
}

func newNamespace(network bool) (*namespace, error) {
	ns := &namespace{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		flags := unix.CLONE_NEWNS
		if network {
			flags |= unix.CLONE_NEWNET
		}
		err := unix.Unshare(flags)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = hideNspawnState()
		}
		ready <- err
		for f := range ns.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		ns.close()
		return nil, fmt.Errorf("making a namespace: %w", err)
	}
	return ns, nil
}

// hideNspawnState gives nspawn a state directory that goes with the namespace. It leaves
// files there when it is killed.
func hideNspawnState() error {
	const dir = "/run/systemd/nspawn"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755")
}

// do runs f in the namespace. Processes that f starts stay there.
func (ns *namespace) do(f func() error) error {
	result := make(chan error)
	ns.calls <- func() { result <- f() }
	return <-result
}

func (ns *namespace) close() { close(ns.calls) }
