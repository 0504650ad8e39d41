// Package fleetlock is the fleet lock of servers that speak Zincati's FleetLock protocol.
//
// Its one rule: whatever is not a success means "not now".
package fleetlock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
)

const kind = "fleetlock"

// Lock is a group of a FleetLock server.
type Lock struct {
	HTTP  *httpclient.Client
	URL   string // base: v1/… is below it
	Group string
	ID    string // of this host, as lock.ID makes it
}

// refusal is the body of an error.
type refusal struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

func (r refusal) String() string {
	if r.Value == "" {
		return r.Kind
	}
	return r.Kind + ": " + r.Value
}

// Kind is the word of the configuration.
func (*Lock) Kind() string { return kind }

// Name is the group, at its server.
func (l *Lock) Name() string { return l.Group + " of " + l.URL }

// ask sends one of the two requests that there are. refused is nil after a success.
func (l *Lock) ask(ctx context.Context, endpoint string) (refused *refusal, status int, err error) {
	body, err := json.Marshal(map[string]any{"client_params": map[string]string{"id": l.ID, "group": l.Group}})
	if err != nil {
		return nil, 0, err
	}
	header := http.Header{"Fleet-Lock-Protocol": {"true"}, "Content-Type": {"application/json"}}
	answer, err := l.HTTP.Do(ctx, http.MethodPost, strings.TrimSuffix(l.URL, "/")+endpoint, header, body, func(a *httpclient.Answer) bool {
		return httpclient.ServerError(a) && read(a).Kind == generic(a) // not the server's own words
	})
	var unanswered *httpclient.UnansweredError
	switch {
	case errors.As(err, &unanswered):
		return nil, 0, &lock.UnsureError{Kind: kind, Err: fmt.Errorf("client_failed_request: %w", err)}
	case err != nil:
		return nil, 0, err
	case answer.OK():
		return nil, answer.Status, nil
	}
	r := read(answer)
	return &r, answer.Status, nil
}

func generic(a *httpclient.Answer) string { return fmt.Sprintf("generic_http_%d", a.Status) }

func read(a *httpclient.Answer) refusal {
	var r refusal
	if a.JSON(&r) != nil || r.Kind == "" {
		return refusal{Kind: generic(a), Value: a.FirstLine()}
	}
	return r
}

// Acquire takes a slot of the group.
func (l *Lock) Acquire(ctx context.Context, _ lock.Purpose) error {
	refused, status, err := l.ask(ctx, "/v1/pre-reboot")
	if refused == nil {
		return err
	}
	if full(*refused, status) {
		return &lock.BusyError{Kind: kind, Reason: refused.String()}
	}
	return &lock.UnsureError{Kind: kind, Err: errors.New(refused.String())}
}

// full tells whether the server has decided against this host. Another failure, such as
// of the server's own database, may have come after the slot was taken.
func full(r refusal, status int) bool {
	return status >= 400 && status < 500 || r.Kind == "failed_lock_semaphore_full" || strings.Contains(r.Value, "slots currently locked")
}

// Release gives this host's slot back.
func (l *Lock) Release(ctx context.Context) error {
	refused, _, err := l.ask(ctx, "/v1/steady-state")
	if refused == nil {
		return err
	}
	return &lock.UnsureError{Kind: kind, Err: errors.New(refused.String())}
}

// Inspect knows no holders: the protocol has no question for it.
func (*Lock) Inspect(context.Context) ([]lock.Holder, error) { return nil, lock.ErrUntold }
