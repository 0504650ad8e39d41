package main_test

import (
	"crypto/sha512"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// mute is a server that says greeting to whoever asks, and then nothing.
type mute struct {
	address   string
	connected chan struct{}
}

func muteServer(t *testing.T, greeting string) *mute {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	m := &mute{listener.Addr().String(), make(chan struct{}, 100)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			// An answer that comes before its question is an error of HTTP's.
			if _, err := conn.Read(make([]byte, 4096)); err != nil {
				continue
			}
			if _, err := conn.Write([]byte(greeting)); err != nil {
				return
			}
			m.connected <- struct{}{}
		}
	}()
	return m
}

func (s *mute) waitFor(t *testing.T) {
	t.Helper()
	select {
	case <-s.connected:
	case <-time.After(time.Minute):
		t.Fatal("nobody connects")
	}
}

// stops ends the run and requires that it ends soon, and says so, in this step;
// "" is before there is a change.
func (m *machine) stops(what, step string) {
	m.t.Helper()
	began := time.Now()
	m.Run("systemctl", "stop", agent)
	if took := time.Since(began); took > 5*time.Second {
		m.t.Errorf("%s: stopping took %s", what, took)
	}
	if status, said := m.lastPull(); status != 75 || !strings.Contains(said, "ended by a signal; the next run goes on from here") {
		m.t.Errorf("%s: the run ended with %d:\n%s", what, status, said)
	}
	doing := ""
	if m.Exists("/var/lib/reconf-pull/state.json") {
		if change := m.openChange(); change != nil {
			doing = change.doing()
		}
	}
	if doing != step {
		m.t.Errorf("%s: what is left is %q, want %q", what, doing, step)
	}
}

func (m *machine) config(url string, more ...string) {
	m.t.Helper()
	m.write("/etc/reconf-pull/config.toml", append([]string{"[source]", "url = '" + url + "'", "[service]", "settle = '50ms'"}, more...)...)
}

// Wherever it is told to stop, a run stops within five seconds, and the next one
// ends where an undisturbed one would have.
func TestStopAnywhere(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	start := func() { m.Run("systemctl", "start", "--no-block", agent) }

	silent := muteServer(t, "")
	m.config("git://" + silent.address + "/fleet")
	start()
	silent.waitFor(t)
	m.stops("a fetch", "")
	m.config(bootedhost.RepoURL)

	part := muteServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome")
	m.push(fmt.Sprintf("storage: {files: [{path: /srv/got, contents: {source: 'http://%s/x', verification: {hash: sha512-%x}}}]}", part.address, sha512.Sum512(nil)))
	start()
	part.waitFor(t)
	m.stops("a download", "")

	// A script that dies of the same signal has not failed.
	m.hook("configure.d/10-sleeps", "touch /run/sleeps", "sleep 600")
	m.appPush("one")
	for range 5 {
		m.Run("rm", "--force", "/run/sleeps")
		m.begins("/run/sleeps")
		m.stops("a script", "configure")
	}
	m.Run("rm", "--force", "/run/sleeps")
	k := m.types("exec reconf-pull run --in-place")
	m.WaitFor(time.Minute, func() bool { return m.Exists("/run/sleeps") }, "the script")
	began := time.Now()
	if _, err := k.keys.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if status, shown := k.ends(); status != 75 || time.Since(began) > 5*time.Second || !strings.Contains(shown, "ended by a signal") {
		t.Errorf("ctrl-C: it ends with %d after %s and shows\n%s", status, time.Since(began), shown)
	}
	m.Run("rm", "/etc/reconf-pull/hooks/configure.d/10-sleeps")
	m.expect("after the script", m.during(func() { m.converge() }), "app.service started")

	m.Run("mkfifo", "/run/go")
	m.Repo().Write("hangs.service", sleeper("ExecStartPre=/bin/sh -c 'read line </run/go'", "TimeoutStartSec=infinity"))
	m.Repo().Write("hosts/web1.bu", unlines("variant: fcos", "version: 1.6.0", "systemd:", "  units:", "    - {name: hangs.service, enabled: true, contents_local: hangs.service}"))
	m.Repo().Push("a unit that hangs")
	for range 2 {
		start()
		m.WaitFor(time.Minute, func() bool {
			return m.property("hangs.service", "ActiveState") == "activating" && m.property(agent, "ActiveState") == "activating" && strings.HasPrefix(m.property(agent, "StatusText"), "post-configure of change ")
		}, "the job of hangs.service")
		m.stops("a unit that hangs", "post-configure")
	}
	m.Run("sh", "-c", "echo >/run/go")
	m.converge()
	m.gives("active", "systemctl", "is-active", "hangs.service")

	m.config(bootedhost.RepoURL, "[health]", "source = 'always'")
	m.hook("health.d/10-cut", "sed -i 's,^url = .*,url = \"git://"+silent.address+"/fleet\",' /etc/reconf-pull/config.toml")
	m.appPush("three")
	start()
	silent.waitFor(t)
	m.stops("the way to the fleet repo", "health")
	m.Run("rm", "/etc/reconf-pull/hooks/health.d/10-cut")
	m.config(bootedhost.RepoURL)
	m.converge()
	m.gives("three", "cat", "/etc/app.conf")
}

// While many files are staged and applied.
func TestStopWhileApplying(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.config(bootedhost.RepoURL)
	for n := range 6 {
		c := crowd{fmt.Sprint("version", n)}
		c.push(m)
		m.Run("systemctl", "start", "--no-block", agent)
		if n%2 == 0 {
			m.WaitFor(time.Minute, func() bool {
				return m.Exists("/var/lib/reconf-pull/changes") && m.Run("ls", "/var/lib/reconf-pull/changes") != ""
			}, "the staging")
		} else {
			m.WaitFor(time.Minute, func() bool { return m.openChange() != nil }, "the pin")
		}
		began := time.Now()
		m.Run("systemctl", "stop", agent)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopping took %s", took)
		}
		if status, said := m.lastPull(); status != 75 && status != 0 {
			t.Errorf("the run ended with %d:\n%s", status, said)
		}
		c.finish(m)
	}
}

// A run that takes longer than run.timeout ends, is gone on with, and is not
// begun for ever.
func TestRunTimeout(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.appPush("one")
	m.converge()
	m.config(bootedhost.RepoURL, "[run]", "timeout = '2s'")
	m.hook("configure.d/10-hangs", hangs)
	m.hook("error.d/10-log", `echo "$RECONF_FAILED_STEP $RECONF_ERROR" >>/var/log/hooks`)
	m.appPush("two")
	for n := 1; n <= 3; n++ {
		began := time.Now()
		m.fails("configure: run.timeout of 2s is over: configure.d/10-hangs: ", "hint: the change is kept; the next run goes on with it")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the run took %s", took)
		}
		m.gives("", "sh", "-c", "for pid in $(cat /run/pids); do kill -0 $pid 2>/dev/null && echo $pid; done")
		m.says(m.logged(), "configure run.timeout of 2s is over")
		if change := m.openChange(); change == nil || change.doing() != "configure" {
			t.Fatalf("after start %d the change is %+v", n, change)
		}
		m.gives("two", "cat", "/etc/app.conf")
	}
	m.fails("begun 3 times, and cut off every time: run.timeout of 2s is over", "is held since")
	m.gives("one", "cat", "/etc/app.conf")
	m.Run("rm", "/etc/reconf-pull/hooks/configure.d/10-hangs")
	m.Run("reconf-pull", "retry")
	m.converge()
	m.gives("two", "cat", "/etc/app.conf")

	silent := muteServer(t, "")
	m.config("git://"+silent.address+"/fleet", "[run]", "timeout = '1s'")
	m.fails("error: run.timeout of 1s is over: ")
}
