// Package lock is the port of fleet locks: how many hosts of a fleet may change
// at the same time.
//
// Its one rule: nothing waits in here. Whoever does not get the lock comes again
// with the next run.
package lock

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Lock is one lock of one server, asked for under the name of this host.
type Lock interface {
	// Kind is the word of the configuration: none, foreman, fleetlock, etcd.
	Kind() string
	// Name tells it from other locks of its kind.
	Name() string
	// Acquire takes the lock. This host may hold it already. A *BusyError says that
	// others have it and this host does not; after any other error, an *UnsureError
	// among them, this host may hold it or not.
	Acquire(ctx context.Context, why Purpose) error
	// Release gives it back, also where it is not held. Only nil confirms that.
	Release(ctx context.Context) error
	// Inspect tells who holds it; ErrUntold where the server does not say.
	Inspect(ctx context.Context) ([]Holder, error)
}

// ErrUntold says that the server tells nobody who holds the lock.
var ErrUntold = errors.New("this kind of lock server does not tell who holds the lock")

// Purpose is what a host wants the lock for. Servers that keep it show it to others.
type Purpose struct {
	Commit string
	Step   string
}

// Explainer is a Lock whose server keeps the purpose.
type Explainer interface {
	// Explain replaces the purpose of a lock that this host holds, and does nothing
	// where it holds none.
	Explain(ctx context.Context, why Purpose) error
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
	if text == "" {
		text = "nobody"
	}
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

// UnsureError is ErrBusy without an answer: the server, or most of its members, cannot
// be reached or broke off. The lock may be this host's all the same.
type UnsureError struct {
	Kind string
	Err  error
}

func (e *UnsureError) Error() string {
	return fmt.Sprintf("the fleet lock (%s) cannot be asked for: %v", e.Kind, e.Err)
}

func (e *UnsureError) Unwrap() []error { return []error{ErrBusy, e.Err} }

// Hint says how it goes on.
func (e *UnsureError) Hint() string {
	return "without an answer nothing is changed; the next run asks again. reconf-pull lock status asks the server at once"
}

// DeniedError is a server that knows this host, or its request, and will not have it:
// nothing that waiting mends.
type DeniedError struct {
	Kind   string
	Reason string
	Advice string
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("the lock server (%s) %s", e.Kind, e.Reason)
}

// Hint says what to look at.
func (e *DeniedError) Hint() string { return e.Advice }

// ID names this machine to lock servers without showing its machine-id: the
// application-specific id of sd_id128_get_machine_app_specific(3).
func ID(machineID string) (string, error) {
	// Made by systemd-id128 new. Never another program's: the release at Zincati's start
	// would give back what this program holds.
	app, _ := hex.DecodeString("4f9e81f020ea41419889f76fc548ad98")
	key, err := hex.DecodeString(machineID)
	if err != nil || len(key) != len(app) {
		return "", fmt.Errorf("the machine-id %q is none: a lock server could not tell this machine from others", machineID)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(app)
	id := mac.Sum(nil)[:len(app)]
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant 1
	return hex.EncodeToString(id), nil
}

// None is no lock: every host may change at any time.
type None struct{}

// NoLock is the Kind of None.
const NoLock = "none"

// Kind is NoLock.
func (None) Kind() string { return NoLock }

// Name is none, too.
func (None) Name() string { return NoLock }

// Acquire has nothing to wait for.
func (None) Acquire(context.Context, Purpose) error { return nil }

// Release has nothing to give back.
func (None) Release(context.Context) error { return nil }

// Inspect knows no holders.
func (None) Inspect(context.Context) ([]Holder, error) { return nil, nil }

// Kinds are the words of lock.kind.
var Kinds = []string{NoLock, "foreman", "fleetlock", "etcd"}
