package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
)

// Lock is the run lock: a flock beside the state, which the kernel gives back
// however the run ends.
type Lock struct {
	f      *os.File
	holder string // where Say writes: on tmpfs, a quiet run writes nothing to disk
}

// BusyError says that another run holds the lock.
type BusyError struct{ Holder string }

func (e *BusyError) Error() string { return "another run is active: " + e.Holder }

// Acquire takes the run lock without waiting, or returns a *BusyError.
func Acquire(dirs Dirs) (*Lock, error) {
	// Not below /run: systemd may remove a runtime directory between two runs,
	// and a lock on a removed file excludes nobody.
	f, err := os.OpenFile(filepath.Join(dirs.State, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the run lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder, _ := os.ReadFile(holderFile(dirs)) // only for the message: what cannot be read is not named
			return nil, &BusyError{Holder: strings.TrimSpace(string(holder))}
		}
		return nil, fmt.Errorf("taking the run lock: %w", err)
	}
	return &Lock{f: f, holder: holderFile(dirs)}, nil
}

func holderFile(dirs Dirs) string { return filepath.Join(dirs.Run, "holder") }

// Say writes what the run does now, for whoever meets the lock.
func (l *Lock) Say(what string) error {
	return atomicfile.WriteVolatile(l.holder, fmt.Appendf(nil, "pid %d, %s\n", os.Getpid(), what), 0o644)
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Close() }
