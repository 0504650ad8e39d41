package locktest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

// Etcd is a real cluster on this machine's loopback, with TLS and client certificates
// everywhere.
type Etcd struct {
	Endpoints []string
	CA        *CA
	// Cert and Key open the door for clients.
	Cert, Key string

	tb      testing.TB
	dir     string
	peers   []string
	members []*exec.Cmd
	logs    []string
}

// NewEtcd starts a cluster of so many members and waits until it is well.
func NewEtcd(tb testing.TB, members int) *Etcd {
	tb.Helper()
	for _, program := range []string{"etcd", "etcdctl"} {
		if _, err := exec.LookPath(program); err != nil {
			lacking.Skip(tb, "no %s: Debian's packages are etcd-server and etcd-client", program)
		}
	}
	e := &Etcd{tb: tb, CA: NewCA(tb), dir: tb.TempDir(), members: make([]*exec.Cmd, members)}
	// In memory, where there is room: members are killed, the machine is not.
	if dir, err := os.MkdirTemp("/dev/shm", "reconf-pull-etcd-"); err == nil {
		e.dir = dir
		tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	e.Cert, e.Key = e.CA.Issue("member")
	for n := range members {
		e.Endpoints = append(e.Endpoints, "https://"+freePort(tb))
		e.peers = append(e.peers, "https://"+freePort(tb))
		e.logs = append(e.logs, filepath.Join(e.dir, fmt.Sprint("log", n)))
	}
	tb.Cleanup(func() {
		for n := range e.members {
			e.Stop(n)
		}
		if tb.Failed() {
			e.dump()
		}
	})
	for n := range members {
		e.Start(n)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := e.Ctl("endpoint", "health")
		if err == nil {
			return e
		}
		if time.Now().After(end) {
			tb.Fatalf("etcd does not come up: %v\n%s", err, out)
		}
	}
}

func (e *Etcd) dump() {
	const enough = 4000
	for _, log := range e.logs {
		if data, err := os.ReadFile(log); err == nil {
			e.tb.Logf("%s ends with:\n%s", log, data[max(0, len(data)-enough):])
		}
	}
}

func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start starts a member that is stopped.
func (e *Etcd) Start(n int) {
	e.tb.Helper()
	var cluster []string
	for i, peer := range e.peers {
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, peer))
	}
	cmd := exec.Command("etcd", "--name", fmt.Sprint("m", n), "--data-dir", filepath.Join(e.dir, fmt.Sprint("data", n)), "--log-outputs", "stderr", "--logger", "zap", "--log-level", "warn",
		"--listen-client-urls", e.Endpoints[n], "--advertise-client-urls", e.Endpoints[n],
		"--listen-peer-urls", e.peers[n], "--initial-advertise-peer-urls", e.peers[n], "--initial-cluster", strings.Join(cluster, ","),
		"--cert-file", e.Cert, "--key-file", e.Key, "--trusted-ca-file", e.CA.File, "--client-cert-auth",
		"--peer-cert-file", e.Cert, "--peer-key-file", e.Key, "--peer-trusted-ca-file", e.CA.File, "--peer-client-cert-auth")
	log, err := os.OpenFile(e.logs[n], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.tb.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ctrl-C is for the test
	if err := cmd.Start(); err != nil {
		e.tb.Fatal(err)
	}
	e.members[n] = cmd
}

// Stop kills a member, as a power cut does but for what was not synced.
func (e *Etcd) Stop(n int) {
	if e.members[n] == nil {
		return
	}
	_ = e.members[n].Process.Kill()
	_ = e.members[n].Wait() // it was killed
	e.members[n] = nil
}

// Pause keeps a member from running until Resume: it answers nobody and loses nothing.
func (e *Etcd) Pause(n int) { _ = e.members[n].Process.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (e *Etcd) Resume(n int) { _ = e.members[n].Process.Signal(syscall.SIGCONT) }

func (e *Etcd) ctl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "etcdctl", append([]string{"--endpoints", strings.Join(e.Endpoints, ","), "--cacert", e.CA.File, "--cert", e.Cert, "--key", e.Key}, args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	return cmd
}

// Ctl runs etcd's own client.
func (e *Etcd) Ctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := e.ctl(ctx, args...).CombinedOutput()
	return string(out), err
}

// Event is a modification of a key as etcd has stored it; Value is nil for a deletion.
type Event struct {
	Revision int64
	Key      string
	Value    []byte
}

// History is everything that ever happened below a prefix, in order of revisions, as
// etcd's own client sees it.
func (e *Etcd) History(prefix string) []Event {
	e.tb.Helper()
	const sentinel = "/sentinel"
	if out, err := e.Ctl("put", sentinel, "end"); err != nil {
		e.tb.Fatalf("etcdctl: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := e.ctl(ctx, "watch", "--rev=1", "--write-out=json", "/", "0")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		e.tb.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // a watch has no end of its own
	}()
	var all []Event
	for dec := json.NewDecoder(out); ; {
		var answer struct {
			Events []struct {
				Type int `json:"type"`
				KV   struct {
					Key      []byte      `json:"key"`
					Value    []byte      `json:"value"`
					Revision json.Number `json:"mod_revision"`
				} `json:"kv"`
			}
		}
		if err := dec.Decode(&answer); err != nil {
			e.tb.Fatalf("reading the history: %v", err)
		}
		for _, event := range answer.Events {
			if string(event.KV.Key) == sentinel {
				return all
			}
			if !strings.HasPrefix(string(event.KV.Key), prefix) {
				continue
			}
			revision, err := strconv.ParseInt(event.KV.Revision.String(), 10, 64)
			if err != nil {
				e.tb.Fatal(err)
			}
			all = append(all, Event{revision, string(event.KV.Key), event.KV.Value})
		}
	}
}
