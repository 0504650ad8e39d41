package systemd_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// TestBootedHost runs the TestOnHost… tests of this package on real hosts: the
// oldest and the newest systemd.
func TestBootedHost(t *testing.T) {
	if os.Getenv(onHostEnv) != "" {
		t.Skip("this is the host")
	}
	if testing.Short() {
		t.Skip("boots hosts")
	}
	bootedhost.Require(t)
	binary := testBinary(t)
	for _, test := range []struct {
		name string
		os   bootedhost.OS
	}{{"Debian12", bootedhost.Debian12}, {"Debian13", bootedhost.Debian13}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := bootedhost.Boot(t, bootedhost.Options{OS: test.os, Name: strings.ToLower(test.name)})
			h.Install(binary)
			out, status := h.Try("env", onHostEnv+"=1", "/usr/bin/systemd.test", "-test.run=^(TestOnHost.*|TestAsSystemctl|TestUpheldBy)$", "-test.v")
			if status != 0 || strings.Contains(out, "--- SKIP") {
				t.Errorf("on %s:\n%s", test.name, out)
			}
			// What waits for the agent's own unit can only be seen from inside it.
			h.Write("/etc/systemd/system/reconf-pull.service", []byte(unlines(
				"[Service]", "Type=oneshot", "Environment="+onHostEnv+"=own", "StandardOutput=file:/run/own.log", "StandardError=file:/run/own.log",
				"ExecStart=/usr/bin/systemd.test -test.run=^TestInsideOwnUnit$ -test.v",
			)), 0o644)
			h.Run("systemctl", "daemon-reload")
			_, status = h.Try("timeout", "60", "systemctl", "start", "reconf-pull.service")
			if out := string(h.Read("/run/own.log")); status != 0 || !strings.Contains(out, "--- PASS") {
				t.Errorf("in reconf-pull.service on %s: status %d\n%s", test.name, status, out)
			}
			// It was not waited for, and it is not forgotten.
			h.WaitFor(10*time.Second, func() bool { return h.UnitState("own-through.service").ActiveState == "active" }, "own-through.service")
			h.WaitFor(10*time.Second, func() bool { return h.UnitState("own-direct.service").ActiveState == "active" }, "own-direct.service")
		})
	}
}

// testBinary is these tests as a program that runs on a host.
func testBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "systemd.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the tests: %v\n%s", err, out)
	}
	return binary
}

const onHostEnv = "RECONF_ON_HOST"

func unlines(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

// connect is for the tests that run on a booted host.
func connect(t *testing.T, role string) (context.Context, *systemd.Manager) {
	t.Helper()
	if os.Getenv(onHostEnv) != role {
		t.Skip("not on a booted host: TestBootedHost runs this there")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	m, err := systemd.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return ctx, m
}

// units writes units, sees to it that systemd knows them, and takes them away
// when the test ends.
func units(ctx context.Context, t *testing.T, m *systemd.Manager, contents map[string]string) {
	t.Helper()
	const dir = "/etc/systemd/system/"
	var names []string
	for name, content := range contents {
		if err := os.MkdirAll(filepath.Dir(dir+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(name, "/") && !strings.Contains(name, "@.") {
			names = append(names, name)
		}
	}
	if err := m.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("systemctl", append([]string{"stop"}, names...)...).Run()
		for name := range contents {
			_ = os.Remove(dir + name)
		}
		_ = exec.Command("systemctl", "daemon-reload").Run()
		_ = exec.Command("systemctl", append([]string{"reset-failed"}, names...)...).Run()
	})
}

const (
	sleeper = "[Service]\nExecStart=/bin/sleep infinity\n"
	install = "[Install]\nWantedBy=multi-user.target\n"
)

func state(ctx context.Context, t *testing.T, m *systemd.Manager, unit string) systemd.UnitState {
	t.Helper()
	states, err := m.States(ctx, []string{unit})
	if err != nil {
		t.Fatal(err)
	}
	return states[unit]
}

// apply returns the outcomes in the order of queuing: "web.service done".
func apply(ctx context.Context, t *testing.T, m *systemd.Manager, timeout time.Duration, jobs ...systemd.Job) ([]string, []systemd.Result) {
	t.Helper()
	results, err := m.Apply(ctx, jobs, timeout)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, result := range results {
		failed := result.Outcome == systemd.Failed || result.Outcome == systemd.Unknown ||
			result.Outcome == systemd.TimedOut || result.Outcome == systemd.Canceled
		if failed != (result.Err != nil) {
			t.Errorf("%s: outcome %s with error %v", result.Unit, result.Outcome, result.Err)
		}
		all = append(all, result.Unit+" "+string(result.Kind)+" "+string(result.Outcome))
	}
	return all, results
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOnHostReload(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{"hello.service": sleeper})
	equal(t, first(apply(ctx, t, m, time.Minute, systemd.Job{Unit: "hello.service", Kind: systemd.Start})), "hello.service start done")
	was := state(ctx, t, m, "hello.service")
	if !was.Active() || was.InvocationID == "" || was.NeedDaemonReload || was.Type != "simple" || was.UnitFileState != "static" {
		t.Errorf("after start: %+v", was)
	}
	if err := os.WriteFile("/etc/systemd/system/hello.service", []byte(sleeper+"Nice=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes("/etc/systemd/system/hello.service", time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !state(ctx, t, m, "hello.service").NeedDaemonReload {
		t.Error("a changed file goes unnoticed")
	}
	if err := m.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	now := state(ctx, t, m, "hello.service")
	if now.NeedDaemonReload || now.InvocationID != was.InvocationID {
		t.Errorf("after reload: %+v", now)
	}
	equal(t, first(apply(ctx, t, m, time.Minute, systemd.Job{Unit: "hello.service", Kind: systemd.Restart})), "hello.service restart done")
	if state(ctx, t, m, "hello.service").InvocationID == was.InvocationID {
		t.Error("a restart is the same invocation")
	}
	equal(t, first(apply(ctx, t, m, time.Minute,
		systemd.Job{Unit: "hello.service", Kind: systemd.Stop}, systemd.Job{Unit: "gone.service", Kind: systemd.Stop})),
		"hello.service stop done", "gone.service stop done")
	equal(t, first(apply(ctx, t, m, time.Minute, systemd.Job{Unit: "hello.service", Kind: systemd.TryRestart})), "hello.service try-restart done")
	equal(t, first(apply(ctx, t, m, time.Minute, systemd.Job{Unit: "hello.service", Kind: systemd.Reload})), "hello.service reload done")
	if state(ctx, t, m, "hello.service").Active() {
		t.Error("what was stopped was started")
	}
}

func first(all []string, _ []systemd.Result) []string { return all }

func TestOnHostStates(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"wanted.service": sleeper, "wanting.service": "[Unit]\nWants=wanted.service\n" + sleeper,
		"tpl@.service": sleeper + install, "unasked.service": sleeper,
	})
	states, err := m.States(ctx, []string{"gone.service", "tpl@.service", "dbus.socket", "wanted.service", "console-getty.service"})
	if err != nil {
		t.Fatal(err)
	}
	if s := states["gone.service"]; s.Exists() || s.Active() {
		t.Errorf("gone.service: %+v", s)
	}
	if s := states["tpl@.service"]; s.UnitFileState != "disabled" {
		t.Errorf("tpl@.service: %+v", s)
	}
	if s := states["dbus.socket"]; !s.Active() || !s.Wanted || s.ID != "dbus.socket" {
		t.Errorf("dbus.socket: %+v", s)
	}
	if s := states["console-getty.service"]; s.LoadState != "masked" || s.UnitFileState != "masked" {
		t.Errorf("console-getty.service: %+v", s)
	}
	if states["wanted.service"].Wanted {
		t.Error("wanted by a unit that does not run")
	}
	apply(ctx, t, m, time.Minute, systemd.Job{Unit: "wanting.service", Kind: systemd.Start})
	if !state(ctx, t, m, "wanted.service").Wanted {
		t.Error("not wanted by a unit that runs")
	}
	if s := state(ctx, t, m, "unasked.service"); s.Wanted || !s.Exists() {
		t.Errorf("unasked.service: %+v", s)
	}
	if _, err := m.States(ctx, []string{"bad name"}); err == nil {
		t.Error("a name that is none has a state")
	}
}

func TestOnHostEnable(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"web.service": sleeper + install, "tpl@.service": sleeper + install + "DefaultInstance=zero\n",
		"plain.service": sleeper,
	})
	links, err := m.Enable(ctx, []string{"gone.service", "tpl@.service", "tpl@one.service", "plain.service", "web.service"})
	if err == nil || !strings.Contains(err.Error(), "gone.service") || strings.Contains(err.Error(), "web.service") {
		t.Errorf("error %v, want one about gone.service only", err)
	}
	const wants = "/etc/systemd/system/multi-user.target.wants/"
	want := []systemd.LinkChange{
		{Path: wants + "tpl@zero.service", Target: "/etc/systemd/system/tpl@.service"},
		{Path: wants + "tpl@one.service", Target: "/etc/systemd/system/tpl@.service"},
		{Path: wants + "web.service", Target: "/etc/systemd/system/web.service"},
	}
	if diff := cmp.Diff(want, links); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for unit, want := range map[string]string{
		"web.service": "enabled", "tpl@one.service": "enabled", "tpl@two.service": "disabled",
		"plain.service": "static", "gone.service": "",
	} {
		if got, err := m.UnitFileState(ctx, unit); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", unit, got, err, want)
		}
	}
	if again, err := m.Enable(ctx, []string{"web.service"}); len(again) > 0 || err != nil {
		t.Errorf("enabling again: %v, %v", again, err)
	}
	if err := m.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if !state(ctx, t, m, "web.service").Wanted {
		t.Error("an enabled unit is not wanted")
	}
	links, err = m.Disable(ctx, []string{"gone.service", "tpl@one.service", "web.service"})
	if err != nil {
		t.Error(err)
	}
	if len(links) != 2 {
		t.Errorf("disabling: %v", links)
	}
	links, err = m.Disable(ctx, []string{"tpl@.service"})
	if err != nil || len(links) != 1 || links[0].Path != wants+"tpl@zero.service" {
		t.Errorf("disabling a template: %v, %v", links, err)
	}
}

func TestOnHostQuestions(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		`esc\x2d@.service`: sleeper, "tpl@.service": sleeper + install, "listen.service": sleeper,
		"listen.socket":               "[Unit]\nX-Reconf-OnChange=none\n[Socket]\nListenStream=/run/listen.sock\nService=other.service\n",
		"other.service":               "[Unit]\nX-Reconf-OnChange=none\n" + sleeper,
		"other.service.d/reload.conf": "[Unit]\nX-Reconf-OnChange=reload\n",
	})
	apply(ctx, t, m, time.Minute,
		systemd.Job{Unit: "tpl@b.service", Kind: systemd.Start}, systemd.Job{Unit: "tpl@a.service", Kind: systemd.Start},
		systemd.Job{Unit: `esc\x2d@a.service`, Kind: systemd.Start})
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "tpl@*", `esc*`).Run() })
	view := m.View(ctx)
	equal(t, view.Instances("tpl@.service"), "tpl@a.service", "tpl@b.service")
	equal(t, view.Instances(`esc\x2d@.service`), `esc\x2d@a.service`)
	equal(t, view.Instances("gone@.service"))
	for unit, want := range map[string]bool{
		"tpl@.service": true, "tpl@a.service": true, "tpl@c.service": false, "gone@.service": false, "gone@x.service": false,
		"listen.service": true, "gone.service": false, "dbus.service": true,
	} {
		if got := view.Exists(unit); got != want {
			t.Errorf("%s exists: %v", unit, got)
		}
	}
	equal(t, view.Triggers("listen.socket"), "other.service")
	equal(t, view.Triggers("gone.socket"))
	for unit, want := range map[string]string{
		"listen.socket": "none", "other.service": "reload", "listen.service": "", "gone.service": "", "tpl@.service": "",
	} {
		if got := view.OnChange(unit); got != want {
			t.Errorf("%s: OnChange %q, want %q", unit, got, want)
		}
	}
	if err := view.Err(); err != nil {
		t.Error(err)
	}
}

func TestOnHostRestartOrder(t *testing.T) {
	ctx, m := connect(t, "1")
	log := filepath.Join(t.TempDir(), "log")
	step := func(name, more string) string {
		return unlines("[Unit]", more, "[Service]", "Type=oneshot", "RemainAfterExit=yes",
			"ExecStart=/bin/sh -c 'sleep 0.3; echo "+name+" >> "+log+"'")
	}
	units(ctx, t, m, map[string]string{
		"z-first.service":  step("first", ""),
		"m-second.service": step("second", "After=z-first.service"),
		"a-third.service":  step("third", "After=m-second.service"),
	})
	jobs := []systemd.Job{
		{Unit: "a-third.service", Kind: systemd.Restart}, {Unit: "m-second.service", Kind: systemd.Restart},
		{Unit: "z-first.service", Kind: systemd.Restart},
	}
	for range 2 { // from nothing, and when they run
		if err := os.RemoveAll(log); err != nil {
			t.Fatal(err)
		}
		equal(t, first(apply(ctx, t, m, time.Minute, jobs...)),
			"z-first.service restart done", "m-second.service restart done", "a-third.service restart done")
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, strings.Fields(string(data)), "first", "second", "third")
	}
}

func TestOnHostFailures(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"good.service":  sleeper,
		"good2.service": sleeper,
		"bad.service":   unlines("[Service]", "Type=oneshot", "ExecStart=/bin/sh -c 'echo what went wrong; exit 3'"),
		"needy.service": "[Unit]\nRequires=bad.service\nAfter=bad.service\n" + sleeper,
	})
	got, results := apply(ctx, t, m, time.Minute,
		systemd.Job{Unit: "good.service", Kind: systemd.Restart}, systemd.Job{Unit: "gone.service", Kind: systemd.Restart},
		systemd.Job{Unit: "needy.service", Kind: systemd.Start}, systemd.Job{Unit: "bad.service", Kind: systemd.Restart},
		systemd.Job{Unit: "no name", Kind: systemd.Restart}, systemd.Job{Unit: "good2.service", Kind: systemd.Start})
	equal(t, got, "bad.service restart failed", "gone.service restart unknown", "good.service restart done",
		"good2.service start done", "needy.service start failed", "no name restart failed")
	for i, want := range map[int]string{0: "exit-code 3", 1: "no such unit", 4: "dependency"} {
		if err := results[i].Err; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", results[i].Unit, err, want)
		}
	}
	failed := state(ctx, t, m, "bad.service")
	for _, invocation := range []string{failed.InvocationID, ""} {
		lines, err := systemd.JournalTail(ctx, run.Host{}.Run, "bad.service", invocation, 10)
		if err != nil || !slices.Contains(lines, "what went wrong") {
			t.Errorf("journal of invocation %q: %q, %v", invocation, lines, err)
		}
	}
	if err := m.ResetFailed(ctx, []string{"bad.service", "gone.service", "tpl@.service"}); err != nil {
		t.Error(err)
	}
	if s := state(ctx, t, m, "bad.service"); s.ActiveState != "inactive" {
		t.Errorf("after reset-failed: %+v", s)
	}
}

func TestOnHostTimeout(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"long.service":  "[Service]\nType=oneshot\nExecStart=/bin/sleep 60\n",
		"stuck.service": "[Service]\nType=notify\nTimeoutStartSec=60\nExecStart=/bin/sleep 60\n",
		"quick.service": sleeper,
	})
	start := time.Now()
	got, _ := apply(ctx, t, m, time.Second,
		systemd.Job{Unit: "long.service", Kind: systemd.Start}, systemd.Job{Unit: "stuck.service", Kind: systemd.Start},
		systemd.Job{Unit: "quick.service", Kind: systemd.Start})
	equal(t, got, "long.service start running", "quick.service start done", "stuck.service start timeout")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	ended, cancel := context.WithCancel(ctx)
	time.AfterFunc(200*time.Millisecond, cancel)
	results, err := m.Apply(ended, []systemd.Job{{Unit: "stuck.service", Kind: systemd.Restart}}, time.Minute)
	if !errors.Is(err, context.Canceled) || len(results) != 1 || results[0].Outcome != systemd.Canceled {
		t.Errorf("told to stop: %+v, %v", results, err)
	}
	if !state(ctx, t, m, "quick.service").Active() {
		t.Error("the connection is gone with the context")
	}
}

func TestOnHostSettle(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"fine.service":  sleeper,
		"done.service":  "[Service]\nExecStart=/bin/true\n",
		"falls.service": "[Service]\nExecStart=/bin/sh -c 'sleep 1; exit 1'\n",
		"loops.service": "[Service]\nRestart=always\nRestartSec=100ms\nStartLimitBurst=100\nExecStart=/bin/sh -c 'sleep 0.1; exit 2'\n",
		"waits.service": "[Service]\nRestart=on-failure\nRestartSec=1h\nExecStart=/bin/sh -c 'exit 4'\n",
		"old.service":   "[Service]\nType=oneshot\nExecStart=/bin/false\n",
	})
	apply(ctx, t, m, time.Minute, systemd.Job{Unit: "old.service", Kind: systemd.Start})
	names := []string{"fine.service", "done.service", "falls.service", "loops.service", "waits.service", "old.service", "gone.service", "tpl@.service"}
	before, err := m.States(ctx, names[:6])
	if err != nil {
		t.Fatal(err)
	}
	var jobs []systemd.Job
	for _, unit := range names[:5] {
		jobs = append(jobs, systemd.Job{Unit: unit, Kind: systemd.Restart})
	}
	apply(ctx, t, m, time.Minute, jobs...)
	start := time.Now()
	failures, err := m.Settle(ctx, names, before, 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var fell []string
	for _, failure := range failures {
		fell = append(fell, failure.Unit)
		if failure.Why == "" || failure.State.InvocationID == "" {
			t.Errorf("%+v says too little", failure)
		}
	}
	equal(t, fell, "falls.service", "loops.service", "waits.service")
	if took := time.Since(start); took < 3*time.Second || took > 6*time.Second {
		t.Errorf("watched for %s", took)
	}
}

func TestOnHostSocket(t *testing.T) {
	ctx, m := connect(t, "1")
	units(ctx, t, m, map[string]string{
		"sock.service": "[Service]\nExecStart=/bin/sleep infinity\n",
		"sock.socket":  "[Socket]\nListenStream=/run/sock.sock\n",
	})
	apply(ctx, t, m, time.Minute, systemd.Job{Unit: "sock.socket", Kind: systemd.Start}, systemd.Job{Unit: "sock.service", Kind: systemd.Start})
	was := state(ctx, t, m, "sock.service")
	// This is why the service goes first.
	if got, _ := apply(ctx, t, m, time.Minute, systemd.Job{Unit: "sock.socket", Kind: systemd.Restart}); !slices.Contains(got, "sock.socket restart done") {
		t.Logf("without stopping the service: %q", got)
	}
	apply(ctx, t, m, time.Minute, systemd.Job{Unit: "sock.service", Kind: systemd.Start})
	got, _ := apply(ctx, t, m, time.Minute, systemd.Job{Unit: "sock.socket", Kind: systemd.Restart, StopFirst: []string{"sock.service", "gone.service"}})
	equal(t, got, "sock.socket stop done", "gone.service stop done", "sock.service stop done",
		"sock.socket restart done", "sock.service start done")
	now := state(ctx, t, m, "sock.service")
	if !now.Active() || now.InvocationID == was.InvocationID {
		t.Errorf("the service after its socket: %+v", now)
	}
	conn, err := net.Dial("unix", "/run/sock.sock")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	// The connection was never accepted: a service that is only stopped is started by it again.
	restart := systemd.Job{Unit: "sock.socket", Kind: systemd.Restart, StopFirst: []string{"sock.service"}}
	got, _ = apply(ctx, t, m, time.Minute, restart)
	equal(t, got, "sock.socket stop done", "sock.service stop done", "sock.socket restart done", "sock.service start done")
	// A service that did not run stays stopped.
	apply(ctx, t, m, time.Minute, systemd.Job{Unit: "sock.service", Kind: systemd.Stop})
	got, _ = apply(ctx, t, m, time.Minute, restart)
	equal(t, got, "sock.socket stop done", "sock.service stop done", "sock.socket restart done")
}

// TestInsideOwnUnit runs as reconf-pull.service: what is ordered after it is
// queued and not waited for, and everything else is.
func TestInsideOwnUnit(t *testing.T) {
	ctx, m := connect(t, "own")
	// They stay: the test that started this one looks at them.
	const dir = "/etc/systemd/system/"
	for name, content := range map[string]string{
		"own-direct.service":  "[Unit]\nAfter=reconf-pull.service\n" + sleeper,
		"own-between.service": "[Unit]\nAfter=reconf-pull.service\n" + sleeper,
		"own-through.service": "[Unit]\nAfter=own-between.service\n" + sleeper,
		"own-free.service":    sleeper,
	} {
		if err := os.WriteFile(dir+name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	got, _ := apply(ctx, t, m, 30*time.Second,
		systemd.Job{Unit: "own-direct.service", Kind: systemd.Restart}, systemd.Job{Unit: "own-free.service", Kind: systemd.Restart},
		systemd.Job{Unit: "own-through.service", Kind: systemd.Start}, systemd.Job{Unit: "own-between.service", Kind: systemd.Start})
	equal(t, got, "own-between.service start queued", "own-direct.service restart queued",
		"own-free.service restart done", "own-through.service start queued")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if state(ctx, t, m, "own-direct.service").ActiveState == "active" {
		t.Error("it did not have to wait: this test proves nothing")
	}
	late, err := m.AfterOwn(ctx)
	if err != nil || late["own-free.service"] || len(late) > 100 {
		t.Errorf("after our own: %d units, %v", len(late), err)
	}
	systemd.Notify("STATUS=done")
}
