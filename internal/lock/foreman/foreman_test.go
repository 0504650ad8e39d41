package foreman_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/foreman"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
	"github.com/reconf-pull/reconf-pull/internal/lock/locktest"
)

const name = "weekly updates/50%"

var changing = lock.Purpose{Commit: "c", Step: "changing"}

func newLock(server *locktest.Foreman, host string) *foreman.Lock {
	options := httpclient.Options{CA: server.CA.File, Timeout: 2 * time.Second, Pause: time.Millisecond}
	if host != "" {
		options.Cert, options.Key = server.CA.Issue(host)
	}
	return &foreman.Lock{HTTP: httpclient.New(options), URL: server.URL + "/", LockName: name}
}

func busy(t *testing.T, err error, want string) {
	t.Helper()
	var busy *lock.BusyError
	if !errors.As(err, &busy) || !errors.Is(err, lock.ErrBusy) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v (%T), want busy with %q", err, err, want)
	}
}

func well(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestAnswers(t *testing.T) {
	ctx := t.Context()
	server := locktest.NewForeman(t, nil, "web1", "web2")
	one, two := newLock(server, "web1"), newLock(server, "web2")
	if holders, err := two.Inspect(ctx); err != nil || holders != nil {
		t.Errorf("a lock that nobody has asked for: %v, %v", holders, err)
	}
	well(t, two.Release(ctx), one.Acquire(ctx, changing), one.Acquire(ctx, changing))
	busy(t, two.Acquire(ctx, changing), "held by web1 since 20")
	well(t, two.Release(ctx))
	if got := server.Holder(name); got != "web1" {
		t.Errorf("the release of another host: held by %q", got)
	}
	for l, mine := range map[*foreman.Lock]bool{one: true, two: false} {
		holders, err := l.Inspect(ctx)
		if err != nil || len(holders) != 1 || holders[0].Host != "web1" || holders[0].Mine != mine || time.Since(holders[0].Since) > time.Minute {
			t.Errorf("holders: %+v, %v, want mine: %v", holders, err, mine)
		}
	}
	well(t, one.Release(ctx), one.Release(ctx), two.Acquire(ctx, changing))

	server.Disable(name, true)
	busy(t, one.Acquire(ctx, changing), "held by web2")
	busy(t, two.Acquire(ctx, changing), "is disabled in Foreman")
	if err := two.Release(ctx); err == nil || !strings.Contains(err.Error(), "is disabled in Foreman") {
		t.Errorf("the release of a disabled lock: %v", err)
	}
	server.Disable(name, false)
	server.Forbid("web1")
	well(t, two.Release(ctx))
	busy(t, one.Acquire(ctx, changing), "can_acquire_update_locks")
	if diff := cmp.Diff([]string{"acquire web1", "release web1", "acquire web2", "release web2"}, server.Events()); diff != "" {
		t.Error(diff)
	}
	for what, l := range map[string]*foreman.Lock{"another host": newLock(server, "stranger"), "no certificate": newLock(server, "")} {
		var denied *lock.DeniedError
		for _, err := range []error{l.Acquire(ctx, changing), l.Release(ctx)} {
			if !errors.As(err, &denied) || !strings.Contains(err.Error(), "401: Unable to authenticate user") || !strings.Contains(denied.Hint(), "lock.cert") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := l.Inspect(ctx); !errors.As(err, &denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Nothing that stands between a host and Foreman is ever taken for a grant, and no
// mischief ends in a crash or in a wait without end.
func TestTrouble(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("a redirect to another host was followed")
		_, _ = w.Write([]byte(`{"id": 1, "name": "` + name + `"}`))
	}))
	defer elsewhere.Close()
	html := "<html>\n<title>Maintenance</title>"
	for what, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		unsure bool
		want   string
		asked  int32
	}{
		"an HTML page with 200": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(html)) }, false, `not the JSON of a lock server: "<html>"`, 1},
		"another's JSON":        {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"ok": true}`)) }, false, `no lock document: "{\"ok\": true}"`, 1},
		"a list":                {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[1]`)) }, false, "not the JSON", 1},
		"no body":               {func(http.ResponseWriter, *http.Request) {}, false, "an empty body", 1},
		"an HTML page with 502": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, html, http.StatusBadGateway) }, true, `answers with 502: "<html>"`, 3},
		"Foreman's own 500": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"error": {"message": "Internal Server Error"}}`))
		}, true, "answers with 500: Internal Server Error", 3},
		"no plugin":            {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, html, http.StatusNotFound) }, false, `answers with 404: "<html>"`, 1},
		"a proxy that forbids": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, html, http.StatusForbidden) }, false, `answers with 403`, 1},
		"a reset": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		}, true, "EOF", 3},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"id": 1,`))
		}, true, "unexpected EOF", 3},
		"a stall": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, true, "lock.timeout is", 1},
		"a huge body": {func(w http.ResponseWriter, _ *http.Request) {
			line := []byte(strings.Repeat("x", 1<<16))
			for range 1 << 10 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, false, "more than 1048576 bytes", 1},
		"a redirect elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, false, `a redirect to "` + elsewhere.URL, 1},
		"a PUT that would be a GET": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }, false, `a redirect to "/other"`, 1},
	} {
		t.Run(what, func(t *testing.T) {
			server := locktest.NewForeman(t, nil, "web1")
			var asked atomic.Int32
			server.First(func(w http.ResponseWriter, r *http.Request) bool {
				asked.Add(1)
				c.answer(w, r)
				return true
			})
			cert, key := server.CA.Issue("web1")
			l := &foreman.Lock{HTTP: httpclient.New(httpclient.Options{CA: server.CA.File, Cert: cert, Key: key, Timeout: 500 * time.Millisecond, Pause: time.Millisecond}), URL: server.URL, LockName: name}
			err := l.Acquire(t.Context(), changing)
			var unsure *lock.UnsureError
			var busy *lock.BusyError
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &unsure) != c.unsure || errors.As(err, &busy) {
				t.Errorf("%v (%T)", err, err)
			}
			if n := asked.Load(); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
			if err := l.Release(t.Context()); err == nil {
				t.Error("the release counts as confirmed")
			}
			if _, err := l.Inspect(t.Context()); err == nil && what != "a PUT that would be a GET" {
				t.Error("the look at it counts as answered")
			}
		})
	}
}

func TestUntrusted(t *testing.T) {
	server, other := locktest.NewForeman(t, nil, "web1"), locktest.NewCA(t)
	cert, key := other.Issue("web1")
	for what, options := range map[string]httpclient.Options{
		"another CA's server":      {CA: other.File},
		"another CA's certificate": {CA: server.CA.File, Cert: cert, Key: key},
		"no certificate there":     {CA: server.CA.File, Cert: "/nonexistent/cert", Key: "/nonexistent/key"},
		"no CA in the file":        {CA: key},
		"a key of another":         {CA: server.CA.File, Cert: cert, Key: os.DevNull},
	} {
		options.Timeout, options.Pause = 2*time.Second, time.Millisecond
		l := &foreman.Lock{HTTP: httpclient.New(options), URL: server.URL, LockName: name}
		if err := l.Acquire(t.Context(), changing); err == nil || errors.Is(err, lock.ErrBusy) {
			t.Errorf("%s: %v, want an error that waiting does not mend", what, err)
		}
	}
}

// A change of the host may replace the certificate that gives the lock back.
func TestFilesAreReadAgain(t *testing.T) {
	server := locktest.NewForeman(t, nil, "web1", "web2")
	cert, key := server.CA.Issue("web1")
	l := &foreman.Lock{HTTP: httpclient.New(httpclient.Options{CA: server.CA.File, Cert: cert, Key: key, Timeout: 2 * time.Second}), URL: server.URL, LockName: name}
	well(t, l.Acquire(t.Context(), changing), l.Release(t.Context()))
	cert2, key2 := server.CA.Issue("web2")
	well(t, os.Rename(cert2, cert), os.Rename(key2, key), l.Acquire(t.Context(), changing))
	if got := server.Holder(name); got != "web2" {
		t.Errorf("held by %q: the old certificate was shown", got)
	}
}

func TestEndsWithItsRun(t *testing.T) {
	server := locktest.NewForeman(t, nil, "web1")
	ctx, cancel := context.WithCancel(t.Context())
	server.First(func(_ http.ResponseWriter, r *http.Request) bool { cancel(); <-r.Context().Done(); return true })
	if err := newLock(server, "web1").Acquire(ctx, changing); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
