// Package foreman is the fleet lock of Foreman's plugin foreman_dlm: one holder for each
// name, which is the host of the client certificate.
//
// Its one rule: only a lock document grants and confirms; a 200 without one is a page of
// something that stands in between.
package foreman

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
)

const kind = "foreman"

// Lock is one lock of a Foreman.
type Lock struct {
	HTTP     *httpclient.Client
	URL      string // of Foreman
	LockName string
}

// document is a lock as the API shows it, or an error with its message.
type document struct {
	ID        int       `json:"id"`
	Name      string    `json:"name"`
	Enabled   *bool     `json:"enabled"`
	UpdatedAt time.Time `json:"updated_at"`
	Host      *struct {
		Name string `json:"name"`
		Self *bool  `json:"self"` // only when asked with a client certificate
	} `json:"host"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
}

func (d *document) holder() lock.Holder {
	return lock.Holder{Host: d.Host.Name, Since: d.UpdatedAt, Mine: d.Host.Self != nil && *d.Host.Self}
}

// Kind is the word of the configuration.
func (*Lock) Kind() string { return kind }

// Name is the lock's, at its Foreman.
func (l *Lock) Name() string { return l.LockName + " of " + l.URL }

func (l *Lock) ask(ctx context.Context, method string) (*httpclient.Answer, error) {
	address := strings.TrimSuffix(l.URL, "/") + "/api/dlmlocks/" + url.PathEscape(l.LockName) + "/lock"
	answer, err := l.HTTP.Do(ctx, method, address, http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}, nil, httpclient.ServerError)
	var unanswered *httpclient.UnansweredError
	if errors.As(err, &unanswered) {
		return nil, &lock.UnsureError{Kind: kind, Err: err}
	}
	if err == nil && httpclient.ServerError(answer) {
		return nil, &lock.UnsureError{Kind: kind, Err: fmt.Errorf("%s answers with %d: %s", l.URL, answer.Status, said(answer))}
	}
	return answer, err
}

// said is the server's own reason, or the first line of what is not its own.
func said(a *httpclient.Answer) string {
	var d document
	if a.JSON(&d) == nil && d.Error != nil && d.Error.Message != "" {
		return d.Error.Message
	}
	return a.FirstLine()
}

// Acquire takes the lock.
func (l *Lock) Acquire(ctx context.Context, _ lock.Purpose) error {
	answer, err := l.ask(ctx, http.MethodPut)
	switch {
	case err != nil:
		return err
	case answer.Status == http.StatusOK:
		d, err := l.document(answer)
		if err == nil && d.Host != nil && d.Host.Self != nil && !*d.Host.Self {
			err = fmt.Errorf("the lock server (%s) grants %s to another host, %s: is this host's certificate that of another one?", kind, l.LockName, d.Host.Name)
		}
		return err
	case answer.Status == http.StatusPreconditionFailed:
		return l.busy(ctx, answer)
	case answer.Status == http.StatusForbidden && answer.JSON(&document{}) == nil:
		return &lock.BusyError{Kind: kind, Reason: said(answer) + " (this host may not have the lock: see its parameter can_acquire_update_locks in Foreman)"}
	}
	return l.denied(answer)
}

// document is a lock document, which is the only thing that confirms anything.
func (l *Lock) document(answer *httpclient.Answer) (*document, error) {
	var d document
	err := answer.JSON(&d)
	if err == nil && (d.ID == 0 || d.Name == "") {
		err = fmt.Errorf("the answer (status %d) is no lock document: %s", answer.Status, answer.FirstLine())
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s for the lock %s: %w", l.URL, l.LockName, err)
	}
	return &d, nil
}

// busy finds out why a lock is not to be had: the refusal itself does not say.
func (l *Lock) busy(ctx context.Context, refusal *httpclient.Answer) error {
	busy := &lock.BusyError{Kind: kind, Reason: said(refusal)}
	d, err := l.show(ctx)
	switch {
	case err != nil || d == nil:
	case d.Enabled != nil && !*d.Enabled:
		busy.Reason = "the lock " + l.LockName + " is disabled in Foreman"
		if d.Host != nil {
			busy.Holder = d.holder()
		}
	case d.Host != nil:
		busy.Holder, busy.Reason = d.holder(), ""
	default:
		busy.Reason = "the lock " + l.LockName + " is free and this host did not get it: is its parameter can_acquire_update_locks false?"
	}
	return busy
}

// show is the lock as it is, nil when there is none yet.
func (l *Lock) show(ctx context.Context) (*document, error) {
	answer, err := l.ask(ctx, http.MethodGet)
	switch {
	case err != nil:
		return nil, err
	case answer.Status == http.StatusNotFound && answer.JSON(&document{}) == nil:
		return nil, nil // made by the first host that asks for it
	case answer.Status != http.StatusOK:
		return nil, l.denied(answer)
	}
	return l.document(answer)
}

// Release gives the lock back.
func (l *Lock) Release(ctx context.Context) error {
	answer, err := l.ask(ctx, http.MethodDelete)
	switch {
	case err != nil:
		return err
	case answer.Status == http.StatusOK:
		_, err := l.document(answer)
		return err
	case answer.Status != http.StatusPreconditionFailed:
		return l.denied(answer)
	}
	d, err := l.show(ctx)
	if err != nil {
		return err
	}
	if d == nil || d.Host == nil || d.Host.Self != nil && !*d.Host.Self {
		return nil // another one's: there is nothing of ours to give back
	}
	if d.Enabled != nil && !*d.Enabled {
		return fmt.Errorf("the lock %s cannot be given back: it is disabled in Foreman", l.LockName)
	}
	return fmt.Errorf("the lock %s cannot be given back: %s", l.LockName, said(answer))
}

// Inspect names the holder, if there is one.
func (l *Lock) Inspect(ctx context.Context) ([]lock.Holder, error) {
	d, err := l.show(ctx)
	if err != nil || d == nil {
		return nil, err
	}
	disabled := d.Enabled != nil && !*d.Enabled
	switch {
	case d.Host == nil && disabled:
		return []lock.Holder{{Note: "disabled in Foreman"}}, nil
	case d.Host == nil:
		return nil, nil
	}
	h := d.holder()
	if disabled {
		h.Note = "disabled in Foreman"
	}
	return []lock.Holder{h}, nil
}

// denied is an answer that asking again does not change.
func (l *Lock) denied(a *httpclient.Answer) error {
	e := &lock.DeniedError{Kind: kind, Reason: fmt.Sprintf("answers with %d: %s", a.Status, said(a))}
	switch a.Status {
	case http.StatusUnauthorized:
		e.Advice = "Foreman does not know this host by its certificate: see lock.cert and lock.key, and the name that the certificate is for"
	case http.StatusForbidden:
		e.Advice = "this host may not have the lock: see its parameter can_acquire_update_locks in Foreman"
	case http.StatusNotFound:
		e.Advice = "is the plugin foreman_dlm installed there, and lock.url the address of Foreman itself?"
	default:
		e.Advice = "see lock.url, and what stands between this host and Foreman"
	}
	return e
}
