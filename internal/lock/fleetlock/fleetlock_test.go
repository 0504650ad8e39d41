package fleetlock_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/lock/fleetlock"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
	"github.com/reconf-pull/reconf-pull/internal/lock/locktest"
)

var changing = lock.Purpose{}

func host(t *testing.T, url, group string, n int) *fleetlock.Lock {
	t.Helper()
	id, err := lock.ID(fmt.Sprintf("%032x", n))
	if err != nil {
		t.Fatal(err)
	}
	return &fleetlock.Lock{HTTP: httpclient.New(httpclient.Options{Timeout: 5 * time.Second, Pause: time.Millisecond}), URL: url, Group: group, ID: id}
}

// Every server gets the same treatment: the stand-ins, and a real airlock where there is
// one on PATH.
func TestServers(t *testing.T) {
	slots := map[string]int{"default": 1, "workers": 3}
	airlock, poseidon := locktest.NewFleetLock(t, slots), locktest.NewFleetLock(t, slots)
	poseidon.Poseidon = true
	servers := map[string]string{"stand-in for airlock": airlock.URL, "stand-in for Poseidon's": poseidon.URL + "/"}
	if url := realAirlock(t, slots); url != "" {
		servers["airlock"] = url
	}
	for name, url := range servers {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			var held []*fleetlock.Lock
			for n := range 3 {
				l := host(t, url, "workers", n)
				if err := errors.Join(l.Release(ctx), l.Acquire(ctx, changing), l.Acquire(ctx, changing)); err != nil {
					t.Fatal(err)
				}
				held = append(held, l)
			}
			fourth := host(t, url, "workers", 4)
			err := fourth.Acquire(ctx, changing)
			var busy *lock.BusyError
			if !errors.As(err, &busy) {
				t.Errorf("all slots are taken: %v", err)
			}
			t.Log(err)
			if err := host(t, url, "default", 4).Acquire(ctx, changing); err != nil {
				t.Errorf("another group: %v", err)
			}
			if err := errors.Join(fourth.Release(ctx), fourth.Release(ctx)); err != nil {
				t.Errorf("a release of what is not held: %v", err)
			}
			if err := fourth.Acquire(ctx, changing); !errors.Is(err, lock.ErrBusy) {
				t.Errorf("that release gave somebody else's slot away: %v", err)
			}
			if err := errors.Join(held[1].Release(ctx), fourth.Acquire(ctx, changing)); err != nil {
				t.Errorf("a slot that was given back: %v", err)
			}
			if err := host(t, url, "unheard", 5).Acquire(ctx, changing); !errors.As(err, &busy) || !strings.Contains(err.Error(), "unknown_group") {
				t.Errorf("a group that is not there: %v", err)
			}
			if _, err := fourth.Inspect(ctx); !errors.Is(err, lock.ErrUntold) {
				t.Errorf("holders: %v", err)
			}
		})
	}
}

// realAirlock starts an airlock of this machine over a real etcd; "" where there is none.
func realAirlock(t *testing.T, slots map[string]int) string {
	t.Helper()
	program, err := exec.LookPath("airlock")
	if err != nil {
		return ""
	}
	address := free(t)
	begin(t, exec.Command("etcd", "--data-dir", t.TempDir(), "--listen-client-urls", "http://"+address, "--advertise-client-urls", "http://"+address, "--listen-peer-urls", "http://127.0.0.1:0"))
	service := free(t)
	_, port, _ := net.SplitHostPort(service)
	config := fmt.Sprintf("[service]\naddress = \"127.0.0.1\"\nport = %s\ntls = false\n[status]\nenabled = false\n[etcd3]\nendpoints = [\"http://%s\"]\n[lock]\ndefault_group_name = \"default\"\ndefault_slots = %d\n[[lock.groups]]\nname = \"workers\"\nslots = %d\n",
		port, address, slots["default"], slots["workers"])
	file := filepath.Join(t.TempDir(), "airlock.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	begin(t, exec.Command(program, "serve", "--config", file))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := host(t, "http://"+service, "default", 99).Release(t.Context()); err == nil {
			return "http://" + service
		} else if time.Now().After(end) {
			t.Fatalf("airlock does not come up: %v", err)
		}
	}
}

func begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTrouble(t *testing.T) {
	for what, c := range map[string]struct {
		status int
		body   string
		want   string
		unsure bool
		asked  int
	}{
		"a proxy's page":           {502, "<html>\nBad Gateway", `generic_http_502: "<html>"`, true, 3},
		"no body":                  {500, "", "generic_http_500: an empty body", true, 3},
		"JSON of something else":   {503, `{"error": "x"}`, "generic_http_503", true, 3},
		"a page that is not there": {404, "404 page not found", `generic_http_404: "404 page not found"`, false, 1},
		"its database is gone":     {500, `{"kind": "failed_lock", "value": "context deadline exceeded"}`, "failed_lock: context deadline exceeded", true, 1},
		"the protocol's example":   {500, `{"kind": "failed_lock_semaphore_full", "value": "semaphore currently full, all slots are locked already"}`, "semaphore currently full", false, 1},
		"a redirect":               {302, "", "generic_http_302: a redirect to", true, 1},
	} {
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked++
			w.Header().Set("Location", "https://elsewhere.example.com/")
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		l := host(t, server.URL, "default", 1)
		err := l.Acquire(t.Context(), changing)
		var unsure *lock.UnsureError
		if !errors.Is(err, lock.ErrBusy) || !strings.Contains(err.Error(), c.want) || errors.As(err, &unsure) != c.unsure || asked != c.asked {
			t.Errorf("%s: asked %d times: %v", what, asked, err)
		}
		if err := l.Release(t.Context()); err == nil {
			t.Errorf("%s: the release counts as confirmed", what)
		}
		server.Close()
		if err := l.Acquire(t.Context(), changing); !errors.As(err, &unsure) || !strings.Contains(err.Error(), "client_failed_request") {
			t.Errorf("no server: %v", err)
		}
	}
}
