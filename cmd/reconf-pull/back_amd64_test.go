package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCrashThenBackToTheAppliedCommit: a change to B ends before its k-th durable
// operation, for every k, and the fleet repo goes back to A before the next run.
// The host ends with all of A and nothing of B: either B was finished first and
// undone by a change, or it was given up half way.
func TestCrashThenBackToTheAppliedCommit(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	applied := tr.place()
	tr.run(applied)
	want := onlyRoot(tr.end(applied))
	config := filepath.Join(tr.scratch, "keep.toml")
	if err := os.WriteFile(config, []byte("[apply]\non_failure = 'keep'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr.push(fewLater)
	whole := tr.copyOf(applied)
	ops, _ := traced(t, tr.argv(whole), func(int, string) syscall.Signal { return 0 })
	type host struct {
		dir, point string
		argv       []string
	}
	hosts := make([]host, 2*ops)
	parallel(len(hosts), func(n int) {
		k := (n + 1) / 2
		h := host{dir: tr.copyOf(applied), point: fmt.Sprintf("killed at operation %d of %d", k, ops)}
		h.argv = tr.argv(h.dir)
		stop := verdict{signal: syscall.SIGKILL}
		if n%2 == 0 { // half of a failed change is kept
			h.point = fmt.Sprintf("an I/O error at operation %d of %d, kept", k, ops)
			h.argv[slices.Index(h.argv, os.DevNull)] = config
			stop = verdict{refuse: syscall.EIO}
		}
		judged(t, h.argv, durable, func(c call) verdict {
			if c.n == k {
				return stop
			}
			return verdict{}
		})
		hosts[n-1] = h
	})
	tr.push(few)
	parallel(len(hosts), func(n int) {
		h := hosts[n-1]
		code, said := tr.ran(h.argv)
		if code != 0 {
			t.Errorf("%s: the next run ends with %d:\n%s", h.point, code, said)
		} else if diff := cmp.Diff(want, onlyRoot(tr.end(h.dir))); diff != "" {
			t.Errorf("%s: the host is half of each (-applied +now):\n%s\nthe run said:\n%s", h.point, diff, said)
		}
		tr.remove(h.dir)
	})
	counted(t, "%d changes were cut off or failed before the fleet repo went back", len(hosts))
}
