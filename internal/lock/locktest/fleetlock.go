package locktest

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

var quiet = log.New(io.Discard, "", 0)

// FleetLock is a stand-in for servers of the FleetLock protocol. It answers as airlock
// does, or as Poseidon's server.
type FleetLock struct {
	URL      string
	Poseidon bool

	mu      sync.Mutex
	slots   map[string]int
	holders map[string][]string
}

// NewFleetLock starts one with groups of so many slots.
func NewFleetLock(tb testing.TB, slots map[string]int) *FleetLock {
	tb.Helper()
	f := &FleetLock{slots: slots, holders: map[string][]string{}}
	server := httptest.NewServer(f)
	tb.Cleanup(server.Close)
	f.URL = server.URL
	return f
}

// Holders of a group.
func (f *FleetLock) Holders(group string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.holders[group])
}

// ServeHTTP is the protocol.
func (f *FleetLock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in struct {
		Params struct{ ID, Group string } `json:"client_params"`
	}
	if r.Method != http.MethodPost {
		f.fail(w, http.StatusMethodNotAllowed, "method_not_allowed", "POST only")
		return
	}
	if r.Header.Get("fleet-lock-protocol") != "true" || json.NewDecoder(r.Body).Decode(&in) != nil || in.Params.ID == "" {
		f.fail(w, http.StatusBadRequest, "invalid_client_identity", "failed to validate client identity")
		return
	}
	slots, known := f.slots[in.Params.Group]
	if !known {
		f.fail(w, http.StatusBadRequest, "unknown_group", fmt.Sprintf("unknown group %q", in.Params.Group))
		return
	}
	held := f.holders[in.Params.Group]
	mine := slices.Index(held, in.Params.ID)
	switch {
	case r.URL.Path == "/v1/steady-state" && mine >= 0:
		f.holders[in.Params.Group] = slices.Delete(held, mine, mine+1)
	case r.URL.Path == "/v1/steady-state" || mine >= 0:
	case len(held) < slots:
		f.holders[in.Params.Group] = append(held, in.Params.ID)
	case f.Poseidon:
		f.fail(w, http.StatusLocked, "lock_held", "the lock is held by "+held[0])
	default:
		f.fail(w, http.StatusInternalServerError, "failed_lock", fmt.Sprintf("all %d semaphore slots currently locked", slots))
	}
}

// fail sends JSON as text/plain, as http.Error does.
func (f *FleetLock) fail(w http.ResponseWriter, status int, kind, value string) {
	text, _ := json.Marshal(map[string]string{"kind": kind, "value": value}) // of two strings: never fails
	http.Error(w, string(text), status)
}
