package etcd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/etcd"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
	"github.com/reconf-pull/reconf-pull/internal/lock/locktest"
)

const (
	fleet = "the fleet"
	keys  = "/reconf-pull/the%20fleet/locks/"
)

var changing = lock.Purpose{Commit: "0123456789abcdef", Step: "changing"}

// host is a new process of host n.
func host(cluster *locktest.Etcd, n, slots int) *etcd.Lock {
	return &etcd.Lock{
		HTTP: httpclient.New(httpclient.Options{CA: cluster.CA.File, Cert: cluster.Cert, Key: cluster.Key, Timeout: time.Second, Pause: 50 * time.Millisecond}),
		// Every host asks another member first.
		Endpoints: append(append([]string{}, cluster.Endpoints[n%len(cluster.Endpoints):]...), cluster.Endpoints[:n%len(cluster.Endpoints)]...),
		Fleet:     fleet, Group: "web", Slots: slots, ID: fmt.Sprintf("id%d", n), Host: fmt.Sprintf("web%d", n), Now: time.Now,
	}
}

func well(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestSlots(t *testing.T) {
	ctx := t.Context()
	cluster := locktest.NewEtcd(t, 1)
	one, two, three := host(cluster, 1, 2), host(cluster, 2, 2), host(cluster, 3, 2)
	well(t, three.Release(ctx), one.Acquire(ctx, changing), two.Acquire(ctx, changing))
	err := three.Acquire(ctx, changing)
	var busy *lock.BusyError
	if !errors.As(err, &busy) || !strings.Contains(err.Error(), "commit 0123456789ab, changing") || !strings.Contains(err.Error(), "and 1 more") {
		t.Errorf("all slots are taken: %v", err)
	}
	well(t, one.Acquire(ctx, changing), one.Explain(ctx, lock.Purpose{Commit: "bad", Step: "health failed"}), three.Explain(ctx, changing))
	holders, err := three.Inspect(ctx)
	if err != nil || len(holders) != 2 {
		t.Fatalf("holders: %v, %v", holders, err)
	}
	for _, h := range holders {
		if h.Mine || h.Host == "web1" && !strings.Contains(h.Note, "commit bad, health failed") || time.Since(h.Since) > time.Minute {
			t.Errorf("holder: %+v", h)
		}
	}
	well(t, three.Release(ctx))
	if err := three.Acquire(ctx, changing); !errors.As(err, &busy) {
		t.Errorf("a release gave somebody else's slot away: %v", err)
	}
	// With fewer slots than are taken nobody is pushed out, and nobody gets in.
	if err := host(cluster, 3, 1).Acquire(ctx, changing); !errors.As(err, &busy) {
		t.Errorf("fewer slots: %v", err)
	}
	well(t, host(cluster, 2, 1).Acquire(ctx, changing), one.Release(ctx), one.Release(ctx))
	if err := host(cluster, 3, 1).Acquire(ctx, changing); !errors.As(err, &busy) {
		t.Errorf("fewer slots: %v", err)
	}
	well(t, three.Acquire(ctx, changing), two.Release(ctx), three.Release(ctx))
	other := host(cluster, 4, 1)
	other.Group = "w"
	well(t, one.Acquire(ctx, changing), two.Acquire(ctx, changing), other.Acquire(ctx, changing))
	if holders, err := other.Inspect(ctx); err != nil || len(holders) != 1 || !holders[0].Mine {
		t.Errorf("another group has %v, %v", holders, err)
	}

	// A key that is no slot's.
	if out, err := cluster.Ctl("put", keys+"web/mine", "x"); err != nil {
		t.Fatal(out)
	}
	if err := three.Acquire(ctx, changing); err == nil || errors.Is(err, lock.ErrBusy) || !strings.Contains(err.Error(), keys+"web/mine") {
		t.Errorf("a key that is no slot's: %v", err)
	}
}

// A request that got no answer may arrive when its run, and the run after it, are over.
// It must not take a slot then that nobody knows of.
func TestLateRequest(t *testing.T) {
	cluster := locktest.NewEtcd(t, 1)
	member, err := url.Parse(cluster.Endpoints[0])
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cluster.Cert, cluster.Key)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(member)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cluster.CA.Pool(), Certificates: []tls.Certificate{pair}}}
	for _, then := range []string{"release", "acquire", "nothing"} {
		t.Run("then "+then, func(t *testing.T) {
			var late []*http.Request
			var mu sync.Mutex
			var holding atomic.Bool
			holding.Store(true)
			network := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v3/kv/txn" || !holding.Load() {
					proxy.ServeHTTP(w, r)
					return
				}
				body, _ := io.ReadAll(r.Body)
				copied := r.Clone(context.Background())
				copied.Body = io.NopCloser(bytes.NewReader(body))
				mu.Lock()
				late = append(late, copied)
				mu.Unlock()
				<-r.Context().Done() // the host gives up
			}))
			defer network.Close()
			one := host(cluster, 1, 2)
			one.HTTP = httpclient.New(httpclient.Options{Timeout: 200 * time.Millisecond, Pause: time.Millisecond})
			one.Endpoints = []string{network.URL}
			var unsure *lock.UnsureError
			if err := one.Acquire(t.Context(), changing); !errors.As(err, &unsure) {
				t.Fatalf("%v", err)
			}
			holding.Store(false)
			one.HTTP = httpclient.New(httpclient.Options{Timeout: 10 * time.Second, Pause: time.Millisecond})
			want := 0
			switch then {
			case "release":
				well(t, one.Release(t.Context()))
			case "acquire":
				well(t, one.Acquire(t.Context(), changing))
				want = 1
			case "nothing":
				want = 1 // the last of them is as good as any, and the next run finds it
			}
			if len(late) < 2 {
				t.Fatalf("%d requests were held back", len(late))
			}
			for _, r := range late {
				w := httptest.NewRecorder()
				proxy.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					t.Fatalf("a late request: %d %s", w.Code, w.Body)
				}
			}
			holders, err := one.Inspect(t.Context())
			if err != nil || len(holders) != want {
				t.Errorf("the late requests left %v, %v", holders, err)
			}
			well(t, one.Release(t.Context()))
			if holders, err := one.Inspect(t.Context()); err != nil || len(holders) != 0 {
				t.Errorf("after the release: %v, %v", holders, err)
			}
		})
	}
}

func TestUserAndPassword(t *testing.T) {
	ctx := t.Context()
	cluster := locktest.NewEtcd(t, 1)
	for _, args := range [][]string{
		{"user", "add", "root:toor"}, {"user", "grant-role", "root", "root"}, {"role", "add", "hosts"},
		{"role", "grant-permission", "hosts", "readwrite", "--prefix=true", "/reconf-pull/"},
		{"user", "add", "host:s3cret"}, {"user", "grant-role", "host", "hosts"}, {"user", "add", "guest:guest"}, {"auth", "enable"},
	} {
		if out, err := cluster.Ctl(args...); err != nil {
			t.Fatalf("etcdctl %v: %s", args, out)
		}
	}
	file := filepath.Join(t.TempDir(), "password")
	nameless, key := cluster.CA.Issue("")
	as := func(user, password, cert, key string) *etcd.Lock {
		t.Helper()
		well(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
		l := host(cluster, 1, 1)
		l.HTTP = httpclient.New(httpclient.Options{CA: cluster.CA.File, Cert: cert, Key: key, Timeout: 10 * time.Second, Pause: 50 * time.Millisecond})
		if user != "" {
			l.User, l.PasswordFile = user, file
		}
		return l
	}
	for _, c := range []struct{ user, password, cert, key, says, advice string }{
		{"", "", nameless, key, "permission denied", "lock.user"},
		{"host", "wrong", nameless, key, "invalid user ID or password", "lock.user"},
		{"guest", "guest", nameless, key, "permission denied", "readwrite"},
		{"host", "s3cret", cluster.Cert, cluster.Key, "CommonName", "without a common name"},
	} {
		err := as(c.user, c.password, c.cert, c.key).Acquire(ctx, changing)
		var denied *lock.DeniedError
		if !errors.As(err, &denied) || !strings.Contains(err.Error(), c.says) || !strings.Contains(denied.Hint(), c.advice) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	l := as("host", "s3cret", nameless, key)
	well(t, l.Acquire(ctx, changing))
	cluster.Stop(0) // tokens are forgotten
	cluster.Start(0)
	for end := time.Now().Add(30 * time.Second); ; {
		err := l.Release(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, lock.ErrBusy) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	missing := as("host", "", nameless, key)
	missing.PasswordFile = "/nonexistent"
	if err := missing.Acquire(ctx, changing); err == nil || !strings.Contains(err.Error(), "lock.password_file") {
		t.Errorf("no password file: %v", err)
	}
}

// What is no etcd is never taken for one.
func TestNoEtcd(t *testing.T) {
	for what, c := range map[string]struct {
		status int
		body   string
		unsure bool
	}{
		"an HTML page": {200, "<html>", false}, "another's JSON": {200, `{"ok": true}`, false}, "an old gateway": {404, "Not Found", false},
		"a proxy's page": {502, "<html>", true}, "without a majority": {503, `{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}`, true},
		"a member that is stopped": {408, `{"error":"context canceled","message":"context canceled","code":1}`, true},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		l := &etcd.Lock{HTTP: httpclient.New(httpclient.Options{Timeout: time.Second, Pause: time.Millisecond}), Endpoints: []string{server.URL}, Fleet: "f", Group: "g", Slots: 1, ID: "a", Now: time.Now}
		for _, err := range []error{l.Acquire(t.Context(), changing), l.Release(t.Context())} {
			var unsure *lock.UnsureError
			if err == nil || errors.As(err, &unsure) != c.unsure {
				t.Errorf("%s: %v", what, err)
			}
		}
		server.Close()
	}
}

// TestContention: 50 hosts go for 3 slots again and again, some of them rebooting while
// they hold one, while members of the cluster are killed, kept from running and started
// again, a majority of them at times. etcd's own history says whether there were ever
// more than three holders.
func TestContention(t *testing.T) {
	const (
		hosts, slots = 50, 3
		chaos        = time.Minute
		limit        = 6 * time.Minute
	)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	cluster := locktest.NewEtcd(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var (
		calm   = make(chan struct{})
		inside atomic.Int32
		passed [hosts]int
		unsure atomic.Int32
		group  sync.WaitGroup
	)
	for n := range hosts {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			pause := func(most time.Duration) {
				select {
				case <-time.After(time.Duration(random.Int64N(int64(most)))):
				case <-ctx.Done():
				}
			}
			asked := func(what string, err error) bool {
				if err != nil && !errors.Is(err, lock.ErrBusy) {
					t.Errorf("web%d: %s: %v", n, what, err)
				}
				var dark *lock.UnsureError
				if errors.As(err, &dark) {
					unsure.Add(1)
				}
				return err == nil
			}
			quiet := false
			for !quiet && ctx.Err() == nil {
				select {
				case <-calm:
					quiet = true // once more, in peace: nobody is left behind
				default:
				}
				for ctx.Err() == nil && !asked("acquire", host(cluster, n, slots).Acquire(ctx, changing)) {
					pause(300 * time.Millisecond)
				}
				if ctx.Err() != nil {
					return
				}
				if now := inside.Add(1); now > slots {
					t.Errorf("%d hosts change at a time", now)
				}
				pause(50 * time.Millisecond)
				if random.IntN(3) == 0 { // a reboot: the host asks for its lock again
					err := host(cluster, n, slots).Acquire(ctx, changing)
					var lost *lock.BusyError
					if asked("acquire after a reboot", err); errors.As(err, &lost) {
						t.Errorf("web%d lost its slot by rebooting: %v", n, err)
					}
				}
				inside.Add(-1)
				for ctx.Err() == nil && !asked("release", host(cluster, n, slots).Release(ctx)) {
					pause(300 * time.Millisecond)
				}
				passed[n]++
				pause(500 * time.Millisecond)
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, hosts))
	for end := time.Now().Add(chaos); time.Now().Before(end); {
		order := random.Perm(3)[:1+random.IntN(2)] // two of three are the majority
		paused := random.IntN(2) == 0
		for _, n := range order {
			if paused {
				cluster.Pause(n)
			} else {
				cluster.Stop(n)
			}
		}
		time.Sleep(time.Duration(random.Int64N(int64(2 * time.Second))))
		for _, n := range order {
			if paused {
				cluster.Resume(n)
			} else {
				cluster.Start(n)
			}
		}
		time.Sleep(time.Duration(random.Int64N(int64(2 * time.Second))))
	}
	close(calm)
	group.Wait()
	least, most := passed[0], 0
	for n, times := range passed {
		least, most = min(least, times), max(most, times)
		if times == 0 {
			t.Errorf("web%d never got the lock", n)
		}
	}
	if ctx.Err() != nil {
		t.Error("some hosts were left waiting")
	}
	held, fullest, grants := map[string]string{}, 0, 0
	history := cluster.History(keys)
	for _, event := range history {
		if event.Value == nil {
			delete(held, event.Key)
			continue
		}
		var value struct{ ID string }
		if err := json.Unmarshal(event.Value, &value); err != nil {
			t.Fatal(err)
		}
		if held[event.Key] != "" && held[event.Key] != value.ID {
			t.Errorf("revision %d: %s of %s is taken by %s", event.Revision, event.Key, held[event.Key], value.ID)
		}
		for key, id := range held {
			if id == value.ID && key != event.Key {
				t.Errorf("revision %d: %s holds %s and %s", event.Revision, id, key, event.Key)
			}
		}
		held[event.Key] = value.ID
		grants++
		if fullest = max(fullest, len(held)); len(held) > slots {
			t.Errorf("revision %d: %d holders: %v", event.Revision, len(held), held)
		}
	}
	if len(held) > 0 {
		t.Errorf("in the end %v are held still", held)
	}
	if grants < hosts || fullest < slots {
		t.Errorf("the history has %d grants and %d holders at most: nothing was proved", grants, fullest)
	}
	t.Logf("%d grants in %d events, at most %d holders; each host %d to %d times; %d requests without an answer", grants, len(history), fullest, least, most, unsure.Load())
}
