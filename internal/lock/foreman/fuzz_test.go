package foreman_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock/foreman"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
)

// FuzzAnswer: whatever a server says to each question is taken for an answer or for
// an error, and ends.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(""))
	f.Add(200, []byte("null"))
	f.Add(500, []byte("<html>"))
	f.Add(409, []byte("{\"error\": {\"message\": \"x\x1b[31m\"}}"))
	f.Add(200, []byte(`{"name": "x", "acquired_by": "web1", "acquired_at": 1700000000}`))
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
		l := &foreman.Lock{HTTP: client, URL: server.URL, LockName: "x"}
		_ = l.Acquire(t.Context(), changing)
		if err := l.Release(t.Context()); err == nil && status >= 400 {
			t.Errorf("a release that the server answers with %d %q counts", status, body)
		}
		_, _ = l.Inspect(t.Context())
	})
}
