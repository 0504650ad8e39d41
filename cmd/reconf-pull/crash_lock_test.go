package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	agenthost "github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock/foreman"
	"github.com/reconf-pull/reconf-pull/internal/lock/httpclient"
	"github.com/reconf-pull/reconf-pull/internal/lock/locktest"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/units"
	agentupdate "github.com/reconf-pull/reconf-pull/internal/update"
)

// lockedRun is a run below a root that takes a fleet lock, which the program itself takes
// on a running host only: DIR REPO URL CA CERT KEY.
func lockedRun() {
	if err := lockedPull(os.Args[1], os.Args[2], os.Args[3], httpclient.Options{CA: os.Args[4], Cert: os.Args[5], Key: os.Args[6], Timeout: 30 * time.Second}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func lockedPull(dir, repo, server string, options httpclient.Options) error {
	log := logrus.New()
	log.SetOutput(io.Discard)
	h := agenthost.New(filepath.Join(dir, "root"))
	dirs := state.Dirs{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}
	if err := dirs.Create(); err != nil {
		return err
	}
	st, err := state.Load(dirs)
	if err != nil {
		return err
	}
	src, err := gogit.New(gogit.Options{URL: repo, Ref: st.Ref, Dir: dirs.Mirror(), Timeout: time.Minute, Log: log})
	if err != nil {
		return err
	}
	accounts := &agenthost.Accounts{Host: h, Runner: run.Host{}}
	r := reconcile.Reconciler{
		Host: h, Dirs: dirs, Source: src, Names: []string{"web1"}, Strict: true, Settings: plan.Settings{OnConflict: "replace"},
		Contents: contents.Opener{Downloads: dirs.Downloads(), MaxFile: 1 << 20}, Accounts: accounts,
		Services: func(context.Context) (reconcile.Services, error) { return unitFiles{systemd.Offline{Host: h}}, nil },
		OnChange: systemd.OnChange, Log: log, Announce: func(*reconcile.Proposal) {}, Hooks: &hooks.Runner{Host: h, Log: log},
		Update: &agentupdate.Update{
			Host: h, Dirs: dirs, State: st, Log: log, Keep: 5, MaxAttempts: 3, HealthSource: "never",
			Engine: &native.Engine{Host: h, Blobs: dirs.Blobs(), Accounts: accounts, Runner: run.Host{}}, Units: &units.Offline{Host: h, Log: log},
			Lock: &foreman.Lock{HTTP: httpclient.New(options), URL: server, LockName: filepath.Base(dir)},
		},
	}
	if st.Applied == nil && st.Change == nil && len(st.Open) == 0 {
		if err := r.Update.Adopt(context.Background()); err != nil {
			return err
		}
	}
	_, err = r.Run(context.Background())
	return err
}

// unitFiles answers about units below a root.
type unitFiles struct{ systemd.Offline }

func (u unitFiles) UnitFileState(_ context.Context, unit string) (string, error) {
	return u.State(unit)
}
func (unitFiles) Err() error { return nil }
func (unitFiles) Close()     {}

const (
	lockedFirst = `{variant: fcos, version: 1.7.0, storage: {files: [{path: /etc/one, contents: {inline: one}}]}}`
	lockedLater = `{variant: fcos, version: 1.7.0, storage: {files: [{path: /etc/one, contents: {inline: two}}]},
  systemd: {units: [{name: web.service, enabled: true, contents: "[Install]\nWantedBy=graphical.target\n"}]}}`
)

// TestCrashWithFleetLock ends a run that takes and gives back a fleet lock before its
// k-th durable operation, for every k, when the change succeeds and when it fails: the
// server is never left with a holder that does not know it, and what comes after the
// crash gives the lock back, or keeps it where the change has failed.
func TestCrashWithFleetLock(t *testing.T) {
	tr := newTrial(t)
	server := locktest.NewForeman(t, nil, "web1")
	cert, key := server.CA.Issue("web1")
	program, err := exec.LookPath("reconf-pull-locked")
	if err != nil {
		t.Fatal(err)
	}
	argv := func(dir string) []string {
		return []string{program, dir, tr.repo, server.URL, server.CA.File, cert, key}
	}
	belief := func(dir string) (lock *state.FleetLock, change, held bool) {
		t.Helper()
		var st state.State
		data, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
		if err == nil {
			err = json.Unmarshal(data, &st)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return st.Lock, st.Change != nil, st.Held != nil
	}
	tr.push(lockedFirst)
	good := tr.place()
	if code, said := tr.ran(argv(good)); code != 0 {
		t.Fatalf("the first run ends with %d: %s", code, said)
	}
	bad := tr.copyOf(good)
	if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(bad, stuck)), 0o755), os.WriteFile(filepath.Join(bad, stuck), []byte("in the way"), 0o644)); err != nil {
		t.Fatal(err)
	}
	tr.push(lockedLater)
	for what, from := range map[string]string{"a change": good, "a change that fails": bad} {
		fails := from == bad
		whole := tr.copyOf(from)
		held := 0 // operations while the server has a holder
		ops, status := traced(t, argv(whole), func(int, string) syscall.Signal {
			if server.Holder(filepath.Base(whole)) != "" {
				held++
			}
			return 0
		})
		if !status.Exited() || fails != (status.ExitStatus() == 1) || held == 0 || held == ops {
			t.Fatalf("%s: the traced run: %v, %d of %d operations with the lock", what, status, held, ops)
		}
		want := tr.end(whole)
		var group sync.WaitGroup
		points := make(chan int)
		for range runtime.NumCPU() {
			group.Go(func() {
				for k := range points {
					dir := tr.copyOf(from)
					traced(t, argv(dir), func(n int, _ string) syscall.Signal {
						if n == k {
							return syscall.SIGKILL
						}
						return 0
					})
					point := fmt.Sprintf("%s, killed at operation %d of %d", what, k, ops)
					name := filepath.Base(dir)
					if lock, _, _ := belief(dir); server.Holder(name) != "" && lock == nil {
						t.Errorf("%s: the host holds a lock that it does not know of", point)
					}
					code, said := tr.ran(argv(dir))
					lock, change, held := belief(dir)
					if fails && !held { // it was only now that it went back
						code, said = tr.ran(argv(dir))
						lock, change, held = belief(dir)
					}
					kept := lock != nil && lock.Kept
					if change || held != fails || kept != fails || (server.Holder(name) != "") != fails || fails == (code == 0) || !fails && lock != nil {
						t.Errorf("%s: the next run ends with %d, change %v, held %v, lock %+v, at the server %q:\n%s", point, code, change, held, lock, server.Holder(name), said)
					}
					if got := onlyRoot(tr.end(dir)); !slices.Equal(sorted(got), sorted(onlyRoot(want))) {
						t.Errorf("%s: the host ends elsewhere", point)
					}
					if err := os.RemoveAll(dir); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for k := 1; k <= ops; k++ {
			points <- k
		}
		close(points)
		group.Wait()
		t.Logf("%s: %d crash points, %d of them with the lock", what, ops, held)
	}
}

func sorted(end map[string]string) (lines []string) {
	for name, line := range end {
		lines = append(lines, name+" "+line)
	}
	slices.Sort(lines)
	return lines
}
