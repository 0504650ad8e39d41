package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/host"
)

func newHost(t *testing.T, files map[string]string) *host.Host {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		real := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
			t.Fatal(err)
		}
		target, ok := strings.CutPrefix(data, "-> ")
		err := os.WriteFile(real, []byte(data), 0o644)
		if ok {
			err = errors.Join(os.Remove(real), os.Symlink(target, real))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return host.New(root)
}

// No link and no .. leads out of the root; the last element is never followed.
func TestPathStaysInside(t *testing.T) {
	h := newHost(t, map[string]string{
		"etc/x": "x", "srv/x": "x", "abs": "-> /srv", "out": "-> /../../../srv", "rel": "-> ../../../../etc", "chain": "-> abs", "etc/final": "-> /srv/x", "loop": "-> loop",
	})
	for path, want := range map[string]string{
		"/": "", "/etc/x": "etc/x", "/../../etc/x": "etc/x", "etc//./x": "etc/x", "/abs/x": "srv/x", "/out/x": "srv/x", "/rel/x": "etc/x", "/chain/x": "srv/x",
		"/etc/final": "etc/final", "/abs": "abs", "/no/such/x": "no/such/x", "/abs/new/x": "srv/new/x",
	} {
		if got, err := h.Path(path); err != nil || got != filepath.Join(h.Root, want) {
			t.Errorf("%s: %s, %v; want %s below the root", path, got, err, want)
		}
	}
	if got, err := h.Path("/loop/x"); err == nil {
		t.Errorf("a loop leads to %s", got)
	}
	if data, err := h.ReadFile("/etc/final"); err != nil || string(data) != "x" {
		t.Errorf("a link is read inside the root: %q, %v", data, err)
	}
}

func TestWhoAndWhat(t *testing.T) {
	h := newHost(t, map[string]string{
		"etc/hostname": "# comment\n\n web1.example.com \nother\n", "etc/machine-id": "abc\n", "etc/os-release": "-> ../usr/lib/os-release",
		"usr/lib/os-release": "ID=x\nBUILD_ID=\"7\"\nIMAGE_VERSION='39.1'\n",
	})
	if name, err := h.Hostname(); name != "web1.example.com" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	if id := h.MachineID(); id != "abc" {
		t.Errorf("%q", id)
	}
	if d := h.Deployment(); d != "IMAGE_VERSION:39.1" {
		t.Errorf("%q", d)
	}
	empty := newHost(t, nil)
	name, err := empty.Hostname()
	if name != "" || err != nil || empty.MachineID() != "" || empty.Deployment() != "" {
		t.Errorf("%q %v %q %q", name, err, empty.MachineID(), empty.Deployment())
	}
}

func TestAccountsOfARoot(t *testing.T) {
	h := newHost(t, map[string]string{
		"etc/passwd": "root:x:0:0::/:/bin/sh\nweb:x:7:8::/:/bin/sh\nbad:x:seven:8::/:\nshort:x\n", "etc/group": "web:x:8:\n",
		"usr/lib/passwd": "web:x:70:80::/:\nsystem:x:9:9::/:\n",
	})
	a := &host.Accounts{Host: h}
	ctx := context.Background()
	for name, want := range map[string]int{"root": 0, "web": 7, "system": 9} {
		if id, err := a.User(ctx, name); id != want || err != nil {
			t.Errorf("user %s: %d, %v", name, id, err)
		}
	}
	for _, name := range []string{"nobody", "bad", "short", "x"} {
		if id, err := a.User(ctx, name); !errors.Is(err, host.ErrNoAccount) {
			t.Errorf("user %s: %d, %v", name, id, err)
		}
	}
	if id, err := a.Group(ctx, "web"); id != 8 || err != nil {
		t.Errorf("group: %d, %v", id, err)
	}
	// One that was not there may come while the run goes on.
	if err := os.WriteFile(filepath.Join(h.Root, "etc/passwd"), []byte("nobody:x:99:99::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if id, err := a.User(ctx, "nobody"); id != 99 || err != nil {
		t.Errorf("after it came: %d, %v", id, err)
	}
}
