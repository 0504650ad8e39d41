// Package lock is the port of fleet locks: how many hosts of a fleet may change
// at the same time.
//
// Its one rule: nothing waits in here. Whoever does not get the lock comes again
// with the next run.
package lock

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Lock is one lock of one server, asked for under the name of this host.
type Lock interface {
	// Kind is the word of the configuration: none, foreman, fleetlock, etcd.
	Kind() string
	// Acquire takes the lock. This host may hold it already. A *BusyError, which
	// wraps ErrBusy, says that others have it, or that nobody can tell; after any
	// other error this host may hold it or not.
	Acquire(ctx context.Context) error
	// Release gives it back, also where it is not held. Only nil confirms that.
	Release(ctx context.Context) error
	// Inspect tells who holds it, as far as the server does.
	Inspect(ctx context.Context) ([]Holder, error)
}

// ErrBusy says that the lock is not to be had now.
var ErrBusy = errors.New("the fleet lock is busy")

// Holder is a host that holds the lock. Unknown fields are empty.
type Holder struct {
	Host  string    `json:"host"`
	Since time.Time `json:"since,omitzero"`
	// Note is what else the server says of it: a commit, a step, a slot.
	Note string `json:"note,omitempty"`
	// Mine: it is this host.
	Mine bool `json:"mine,omitempty"`
}

func (h Holder) String() string {
	text := h.Host
	if !h.Since.IsZero() {
		text += " since " + h.Since.UTC().Format(time.RFC3339)
	}
	if h.Note != "" {
		text += " (" + h.Note + ")"
	}
	return text
}

// BusyError is ErrBusy with what the server said.
type BusyError struct {
	Kind   string
	Holder Holder // zero where it is not known
	Reason string // in the server's words, "" where the holder says all
}

func (e *BusyError) Error() string {
	text := ErrBusy.Error() + " (" + e.Kind + ")"
	if e.Holder.Host != "" {
		text += ": held by " + e.Holder.String()
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

func (e *BusyError) Unwrap() error { return ErrBusy }

// Hint says how it goes on.
func (e *BusyError) Hint() string {
	return "nothing was touched; the next run asks again, and a newer push replaces this one"
}

// None is no lock: every host may change at any time.
type None struct{}

// NoLock is the Kind of None.
const NoLock = "none"

// Kind is NoLock.
func (None) Kind() string { return NoLock }

// Acquire has nothing to wait for.
func (None) Acquire(context.Context) error { return nil }

// Release has nothing to give back.
func (None) Release(context.Context) error { return nil }

// Inspect knows no holders.
func (None) Inspect(context.Context) ([]Holder, error) { return nil, nil }

// Kinds are the kinds that this release has.
var Kinds = []string{NoLock}

// later are the kinds of the design that are not built yet.
var later = []string{"foreman", "fleetlock", "etcd"}

// Check says what is wrong with a kind.
func Check(kind string) error {
	for _, known := range Kinds {
		if kind == known {
			return nil
		}
	}
	for _, planned := range later {
		if kind == planned {
			return fmt.Errorf("lock.kind = %q comes with a later release; this one has %q", kind, NoLock)
		}
	}
	return fmt.Errorf("lock.kind = %q is no kind of lock; this release has %q", kind, NoLock)
}
