// Package etcd is a fleet lock with slots, kept in etcd and spoken to over its JSON
// gateway.
//
// Its one rule: a slot is taken by a transaction that no later request of this host can
// be overtaken by. Every attempt begins by writing this host's fence, and the transaction
// compares it, so that one that got no answer can never take a slot after the next
// attempt, or a release, has begun. There are no leases: a holder that reboots keeps its
// slot.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
)

const kind = "etcd"

// Lock is a group of slots in one etcd cluster.
type Lock struct {
	HTTP      *httpclient.Client
	Endpoints []string
	// Fleet and Group name the slots: /reconf-pull/FLEET/locks/GROUP/1 and so on.
	Fleet, Group string
	Slots        int
	// ID is what slots are told apart by; Host is for people.
	ID, Host string
	// User and PasswordFile are for clusters with authentication; the gateway takes no
	// certificate for a user.
	User, PasswordFile string
	Now                func() time.Time

	first int    // the endpoint that answered last
	token string // of User
}

// value is what a slot says.
type value struct {
	ID     string    `json:"id"`
	Host   string    `json:"host"`
	Commit string    `json:"commit,omitempty"`
	Step   string    `json:"step,omitempty"`
	Since  time.Time `json:"since"`
}

// slot is one that somebody holds.
type slot struct {
	number   int
	key      string
	revision string // of its last modification
	value
}

func (s *slot) holder(id string) lock.Holder {
	note := fmt.Sprintf("slot %d", s.number)
	if s.Commit != "" {
		note += fmt.Sprintf(", commit %.12s", s.Commit)
	}
	if s.Step != "" {
		note += ", " + s.Step
	}
	return lock.Holder{Host: s.Host, Since: s.Since, Note: note, Mine: s.ID == id}
}

// Kind is the word of the configuration.
func (*Lock) Kind() string { return kind }

// Name is where the slots are; the members of a cluster may be others tomorrow.
func (l *Lock) Name() string { return l.prefix() }

func (l *Lock) prefix() string {
	return "/reconf-pull/" + url.PathEscape(l.Fleet) + "/locks/" + url.PathEscape(l.Group) + "/"
}

func (l *Lock) fence() string {
	return "/reconf-pull/" + url.PathEscape(l.Fleet) + "/hosts/" + url.PathEscape(l.Group) + "/" + l.ID
}

// errUnclear is a transaction without an answer, or one that others came before: whether
// it took a slot shows only when it is looked for again.
var errUnclear = errors.New("what became of the request is not known")

// Acquire takes a slot, or finds the one that this host has.
func (l *Lock) Acquire(ctx context.Context, why lock.Purpose) error {
	return l.attempts(ctx, func(ctx context.Context) error { return l.acquire(ctx, why) })
}

// attempts calls one until its outcome is known.
func (l *Lock) attempts(ctx context.Context, one func(ctx context.Context) error) error {
	err := l.HTTP.Retry(ctx, func(ctx context.Context) (bool, error) {
		err := one(ctx)
		var unanswered *httpclient.UnansweredError
		return errors.Is(err, errUnclear) || errors.As(err, &unanswered), err
	})
	var unanswered *httpclient.UnansweredError
	if errors.Is(err, errUnclear) || errors.As(err, &unanswered) {
		return &lock.UnsureError{Kind: kind, Err: err}
	}
	return err
}

func (l *Lock) acquire(ctx context.Context, why lock.Purpose) error {
	mine := value{ID: l.ID, Host: l.Host, Commit: why.Commit, Step: why.Step, Since: l.Now().UTC().Truncate(time.Second)}
	text, err := json.Marshal(mine)
	if err != nil {
		return err
	}
	var put answer
	if err := l.call(ctx, "kv/put", map[string]any{"key": []byte(l.fence()), "value": text}, &put); err != nil {
		return err
	}
	fence := map[string]any{"key": []byte(l.fence()), "target": "MOD", "result": "EQUAL", "mod_revision": put.Header.Revision}
	slots, err := l.slots(ctx)
	if err != nil {
		return err
	}
	taken := map[int]bool{}
	for i := range slots {
		if slots[i].ID == l.ID {
			return l.explain(ctx, &slots[i], why)
		}
		taken[slots[i].number] = true
	}
	// Also those above the configured number count: the number may have been lowered.
	if len(slots) < l.Slots {
		for _, i := range rand.Perm(l.Slots) {
			number := i + 1
			if taken[number] {
				continue
			}
			key := []byte(l.prefix() + strconv.Itoa(number))
			got, err := l.txn(ctx, map[string]any{
				"compare": []any{fence, map[string]any{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}},
				"success": []any{map[string]any{"request_put": map[string]any{"key": key, "value": text}}},
				"failure": []any{map[string]any{"request_range": map[string]any{"key": key}}},
			})
			if err != nil {
				return err
			}
			if got.Succeeded {
				return nil
			}
			if len(got.Responses) == 0 || len(got.Responses[0].Range.KVs) == 0 {
				return errUnclear // it is free, so it was the fence: an earlier request of ours arrived late
			}
		}
		if slots, err = l.slots(ctx); err != nil {
			return err
		}
	}
	return l.busy(slots)
}

func (l *Lock) busy(slots []slot) error {
	if len(slots) == 0 {
		return errUnclear // all were given back between two looks
	}
	oldest, others := slots[0], len(slots)-1
	for _, s := range slots[1:] {
		if s.Since.Before(oldest.Since) {
			oldest = s
		}
	}
	busy := &lock.BusyError{Kind: kind, Holder: oldest.holder(l.ID)}
	if others > 0 {
		busy.Reason = fmt.Sprintf("and %d more, see reconf-pull lock status", others)
	}
	return busy
}

// Explain replaces the purpose in this host's slot.
func (l *Lock) Explain(ctx context.Context, why lock.Purpose) error {
	return l.attempts(ctx, func(ctx context.Context) error {
		slots, err := l.slots(ctx)
		if err != nil {
			return err
		}
		for i := range slots {
			if slots[i].ID == l.ID {
				return l.explain(ctx, &slots[i], why)
			}
		}
		return nil
	})
}

func (l *Lock) explain(ctx context.Context, s *slot, why lock.Purpose) error {
	changed := s.value
	changed.Host, changed.Commit, changed.Step = l.Host, why.Commit, why.Step
	if changed == s.value {
		return nil
	}
	text, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	got, err := l.txn(ctx, map[string]any{
		"compare": []any{s.unchanged()},
		"success": []any{map[string]any{"request_put": map[string]any{"key": []byte(s.key), "value": text}}},
	})
	if err == nil && !got.Succeeded {
		return errUnclear
	}
	return err
}

// unchanged compares with what was read: a slot is touched only as its holder's.
func (s *slot) unchanged() map[string]any {
	return map[string]any{"key": []byte(s.key), "target": "MOD", "result": "EQUAL", "mod_revision": s.revision}
}

// Release gives back whatever this host holds. The fence goes first: from then on no
// earlier request can take a slot any more, and all that did can be seen.
func (l *Lock) Release(ctx context.Context) error {
	return l.attempts(ctx, func(ctx context.Context) error {
		if err := l.call(ctx, "kv/deleterange", map[string]any{"key": []byte(l.fence())}, &answer{}); err != nil {
			return err
		}
		slots, err := l.slots(ctx)
		if err != nil {
			return err
		}
		for i := range slots {
			if slots[i].ID != l.ID {
				continue
			}
			got, err := l.txn(ctx, map[string]any{
				"compare": []any{slots[i].unchanged()},
				"success": []any{map[string]any{"request_delete_range": map[string]any{"key": []byte(slots[i].key)}}},
			})
			if err != nil {
				return err
			}
			if !got.Succeeded {
				return errUnclear
			}
		}
		return nil
	})
}

// Inspect names the holders.
func (l *Lock) Inspect(ctx context.Context) ([]lock.Holder, error) {
	var holders []lock.Holder
	err := l.attempts(ctx, func(ctx context.Context) error {
		slots, err := l.slots(ctx)
		holders = nil
		for i := range slots {
			holders = append(holders, slots[i].holder(l.ID))
		}
		return err
	})
	return holders, err
}

// slots are those that somebody holds. The read is linearizable: a member that has lost
// the others does not answer it.
func (l *Lock) slots(ctx context.Context) ([]slot, error) {
	prefix := l.prefix()
	end := prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
	var got answer
	if err := l.call(ctx, "kv/range", map[string]any{"key": []byte(prefix), "range_end": []byte(end)}, &got); err != nil {
		return nil, err
	}
	var all []slot
	for _, kv := range got.KVs {
		s := slot{key: string(kv.Key), revision: kv.ModRevision}
		number, err := strconv.Atoi(strings.TrimPrefix(s.key, prefix))
		if err == nil {
			err = json.Unmarshal(kv.Value, &s.value)
		}
		if err != nil {
			return nil, fmt.Errorf("the key %s in etcd is no slot of reconf-pull: %w", s.key, err)
		}
		s.number = number
		all = append(all, s)
	}
	return all, nil
}

// answer is what the gateway says, as far as it is used. Numbers of 64 bits are strings.
type answer struct {
	Header *struct {
		Revision string `json:"revision"`
	} `json:"header"`
	Succeeded bool  `json:"succeeded"`
	KVs       []kv  `json:"kvs"`
	Responses []got `json:"responses"`
	Token     string
	// Of errors:
	Message string `json:"message"`
	Code    int    `json:"code"`
}

type got struct {
	Range struct {
		KVs []kv `json:"kvs"`
	} `json:"response_range"`
}

type kv struct {
	Key         []byte `json:"key"`
	Value       []byte `json:"value"`
	ModRevision string `json:"mod_revision"`
}

// txn is sent once: when its answer is lost, sending it again would not tell whose slot
// it finds taken.
func (l *Lock) txn(ctx context.Context, request any) (*answer, error) {
	var got answer
	err := l.send(ctx, l.endpoint(0), "kv/txn", request, &got)
	var unanswered *httpclient.UnansweredError
	if errors.As(err, &unanswered) {
		l.first++ // the next attempt asks another member
		return nil, fmt.Errorf("%w: %w", errUnclear, err)
	}
	return &got, err
}

func (l *Lock) endpoint(n int) string {
	return strings.TrimSuffix(l.Endpoints[(l.first+n)%len(l.Endpoints)], "/")
}

// call asks the members in turn, which is for requests that may be repeated.
func (l *Lock) call(ctx context.Context, path string, request any, into *answer) error {
	var all []string
	for n := range l.Endpoints {
		err := l.send(ctx, l.endpoint(n), path, request, into)
		var unanswered *httpclient.UnansweredError
		if err == nil || !errors.As(err, &unanswered) {
			l.first += n
			return err
		}
		all = append(all, err.Error())
		if ctx.Err() != nil {
			break
		}
	}
	return &httpclient.UnansweredError{Err: errors.New(strings.Join(all, "; "))}
}

// The codes of gRPC that the gateway passes on.
const (
	codeInvalidArgument  = 3
	codePermissionDenied = 7
	codeUnauthenticated  = 16
)

// send is one request to one member, with a fresh token where the old one has expired.
func (l *Lock) send(ctx context.Context, endpoint, path string, request any, into *answer) error {
	for fresh := false; ; fresh = true {
		header := http.Header{"Content-Type": {"application/json"}}
		if l.User != "" {
			if l.token == "" {
				if err := l.authenticate(ctx, endpoint); err != nil {
					return err
				}
				fresh = true
			}
			header.Set("Authorization", l.token)
		}
		*into = answer{}
		status, err := l.post(ctx, endpoint, path, header, request, into)
		if err != nil || status == http.StatusOK {
			return err
		}
		if into.Code == codeUnauthenticated && l.User != "" && !fresh {
			l.token = ""
			continue
		}
		return denied(endpoint, status, into)
	}
}

// maxPassword bounds the file in bytes.
const maxPassword = 64 << 10

func (l *Lock) authenticate(ctx context.Context, endpoint string) error {
	password, err := host.ReadSecret(l.PasswordFile, maxPassword)
	if err != nil {
		return fmt.Errorf("reading lock.password_file: %w", err)
	}
	var got answer
	status, err := l.post(ctx, endpoint, "auth/authenticate", http.Header{"Content-Type": {"application/json"}},
		map[string]string{"name": l.User, "password": strings.TrimRight(string(password), "\r\n")}, &got)
	if err != nil {
		return err
	}
	if status != http.StatusOK || got.Token == "" {
		return denied(endpoint, status, &got)
	}
	l.token = got.Token
	return nil
}

// post is one request. Whatever a member says because it cannot reach the others counts
// as no answer.
func (l *Lock) post(ctx context.Context, endpoint, path string, header http.Header, request any, into *answer) (status int, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return 0, err
	}
	a, err := l.HTTP.Send(ctx, http.MethodPost, endpoint+"/v3/"+path, header, body)
	if err != nil {
		return 0, err
	}
	err = a.JSON(into)
	if httpclient.ServerError(a) {
		text := into.Message
		if err != nil || text == "" {
			text = a.FirstLine()
		}
		return a.Status, &httpclient.UnansweredError{Err: fmt.Errorf("%s answers with %d: %s", endpoint, a.Status, text)}
	}
	if err == nil && a.Status == http.StatusOK && (into.Header == nil || into.Header.Revision == "" && into.Token == "") {
		err = fmt.Errorf("the answer is not etcd's: %s", a.FirstLine())
	}
	if err != nil && a.Status != http.StatusOK {
		into.Message = a.FirstLine()
		return a.Status, nil
	}
	if err != nil {
		return a.Status, fmt.Errorf("asking %s: %w", endpoint, err)
	}
	return a.Status, nil
}

func denied(endpoint string, status int, a *answer) error {
	e := &lock.DeniedError{Kind: kind, Reason: fmt.Sprintf("%s answers with %d: %s", endpoint, status, a.Message)}
	switch {
	case strings.Contains(a.Message, "CommonName"):
		e.Advice = "with authentication the gateway of etcd takes certificates without a common name only; the user is lock.user"
	case a.Code == codeInvalidArgument, a.Code == codeUnauthenticated:
		e.Advice = "see lock.user and lock.password_file: for a user the gateway of etcd takes a password and no certificate"
	case a.Code == codePermissionDenied:
		e.Advice = "the role of lock.user needs readwrite on the prefix /reconf-pull/"
	default:
		e.Advice = "lock.endpoints have to be members of an etcd cluster, version 3.4 or later"
	}
	return e
}
