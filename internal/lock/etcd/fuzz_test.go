package etcd_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock/etcd"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
)

// FuzzAnswer: whatever a server says to each question is taken for an answer or for
// an error, and ends.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(""))
	f.Add(200, []byte("null"))
	f.Add(500, []byte("<html>"))
	f.Add(409, []byte("{\"error\": {\"message\": \"x\x1b[31m\"}}"))
	f.Add(200, []byte(`{"header": {"revision": "7"}, "succeeded": true, "kvs": [{"key": "L3gvMA==", "value": "eyJpZCI6ICJ4In0=", "mod_revision": "7"}], "responses": [{"response_range": {"kvs": [{"key": "eA==", "value": "e30="}]}}]}`))
	type said struct {
		status int
		body   []byte
	}
	var next atomic.Pointer[said]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer := next.Load()
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body)
	}))
	f.Cleanup(server.Close)
	client := httpclient.New(httpclient.Options{Timeout: 5 * time.Second, Pause: time.Microsecond})
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 || status == http.StatusNoContent || status == http.StatusNotModified {
			return
		}
		next.Store(&said{status, body})
		l := &etcd.Lock{HTTP: client, Endpoints: []string{server.URL}, Fleet: "x", Group: "x", Slots: 2, ID: "x", Host: "x", Now: time.Now}
		_ = l.Acquire(t.Context(), changing)
		if err := l.Release(t.Context()); err == nil && status >= 400 {
			t.Errorf("a release that the server answers with %d %q counts", status, body)
		}
		_, _ = l.Inspect(t.Context())
	})
}
