package main_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// noRoom are those that ask for room: taking something away always works on a
// full disk.
var noRoom = func() watch {
	all := writing.with(nil)
	maps.DeleteFunc(all.names, func(_ uint64, name string) bool {
		return name == "unlinkat" || strings.Contains(name, "chmod") || strings.Contains(name, "chown") ||
			strings.Contains(name, "removexattr")
	})
	return all
}()

// TestRefusedWrites lets every system call that writes fail in turn, once
// and from there on: the disk is full, broken, read-only. The run ends with a
// clear error, and nothing is lost: either everything is back and the digest is
// held, or the next run ends where an undisturbed one does.
func TestRefusedWrites(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	first := tr.place()
	applied := tr.copyOf(first)
	tr.run(applied)
	hosts := []struct{ what, from string }{{"first run", first}, {"update", applied}}
	for i, on := range hosts {
		if i == 1 {
			tr.push(fewLater)
		}
		want := tr.copyOf(on.from)
		tr.run(want)
		for _, f := range []fault{
			{errno: syscall.ENOSPC, calls: noRoom, every: 1}, {errno: syscall.ENOSPC, calls: noRoom, every: 4, stays: true},
			{errno: syscall.EIO, calls: writing, every: 1}, {errno: syscall.EIO, calls: writing, every: 13, stays: true},
			{errno: syscall.EROFS, calls: writing, every: 13, stays: true}, {errno: syscall.EPERM, calls: writing, every: 13},
		} {
			f.what, f.from, f.before, f.want = on.what, on.from, onlyRoot(tr.end(on.from)), tr.end(want)
			tr.refuseEverywhere(f)
		}
	}
}

// A fault is what a disk does to the system calls of a run.
type fault struct {
	what, from string
	before     map[string]string // the host's tree, before the run
	want       map[string]string // everything, after an undisturbed one
	errno      syscall.Errno
	calls      watch
	every      int  // how many calls lie between those that are tried
	stays      bool // all calls after it fail as well
}

func (tr *trial) refuseEverywhere(f fault) {
	t := tr.t
	t.Helper()
	whole := tr.copyOf(f.from)
	var calls []int
	last, same := "", 0
	judged(t, tr.argv(whole), f.calls, func(c call) verdict {
		// A file that is written piece by piece need not fail at every piece.
		const pieces = 2
		if about := c.name + c.of(); about != last {
			last, same = about, 0
		}
		if same++; same <= pieces || durable.has(c.name) {
			calls = append(calls, c.n)
		}
		return verdict{}
	})
	tr.remove(whole)
	var points, held, passed atomic.Int64
	var mu sync.Mutex
	kinds := map[string]int{}
	parallel((len(calls)+f.every-1)/f.every, func(n int) {
		k := calls[(n-1)*f.every]
		dir := tr.copyOf(f.from)
		defer tr.remove(dir)
		var about string
		end := judged(t, tr.argv(dir), f.calls, func(c call) verdict {
			if c.n == k {
				about = c.name + " " + c.of()
			}
			if c.n == k || f.stays && c.n > k {
				return verdict{refuse: f.errno}
			}
			return verdict{}
		})
		if about == "" {
			return
		}
		points.Add(1)
		mu.Lock()
		kinds[strings.Fields(about)[0]]++
		mu.Unlock()
		point := fmt.Sprintf("%s, %q instead of %d: %s", f.what, f.errno, k, strings.ReplaceAll(about, dir, ""))
		switch code := end.status.ExitStatus(); {
		case !end.status.Exited():
			t.Errorf("%s: ended with %v:\n%s", point, end.status, end.said)
		case code == 0:
			passed.Add(1)
		case code != 1 && (code != 65 || f.errno != syscall.EROFS && f.errno != syscall.EPERM):
			t.Errorf("%s: exit status %d:\n%s", point, code, end.said)
		default:
			if wrong := unclear(end.said, f.errno); wrong != "" {
				t.Errorf("%s: %s:\n%s", point, wrong, end.said)
			}
		}
		if tr.afterFault(dir, point, end, f) {
			held.Add(1)
		}
	})
	if points.Load() == 0 || kinds["write"] == 0 || kinds["openat"]+kinds["openat2"] == 0 {
		t.Errorf("%s: the wrong system calls are watched: %v", f.what, kinds)
	}
	stays := "once"
	if f.stays {
		stays = "from there on"
	}
	counted(t, "%s, %q %s: %d calls were refused, %d runs did not mind, %d rolled the change back %v", f.what, f.errno, stays, points.Load(), passed.Load(), held.Load(), kinds)
}

// unclear tells what an error message lacks.
func unclear(said string, errno syscall.Errno) string {
	for _, word := range []string{"panic", "goroutine ", "internal error", "runtime error", "%!"} {
		if strings.Contains(said, word) {
			return "it says " + word
		}
	}
	var message string
	for line := range strings.Lines(said) {
		if strings.Contains(line, "error: ") && strings.Contains(line, errno.Error()) {
			message = line
		}
	}
	switch {
	case message == "":
		return fmt.Sprintf("no error that says %q", errno)
	case !strings.Contains(message, "/"):
		return "the error names no path"
	case strings.Count(said, errno.Error()) > 8: // of the step, the way back, the state, the last check
		return "it repeats itself"
	case strings.Contains(said, "(nothing was changed)") && strings.Contains(said, "the change is kept"):
		return "it contradicts itself"
	}
	return ""
}

// afterFault goes on when the disk is well again, and tells whether the change had
// been rolled back.
func (tr *trial) afterFault(dir, point string, end ended, f fault) (held bool) {
	t := tr.t
	state := filepath.Join(dir, "state/state.json")
	if _, err := os.Stat(state); err == nil {
		if _, held = tr.held(dir); held {
			if diff := cmp.Diff(f.before, onlyRoot(tr.end(dir))); diff != "" && end.status.ExitStatus() == 1 && strings.Contains(end.said, "was rolled back") {
				t.Errorf("%s: not everything is back (-before +after):\n%s\nthe run said:\n%s", point, diff, end.said)
			}
		}
	}
	code, said := tr.ran(tr.argv(dir))
	if code == 1 { // held, after the way back ended now or then
		if diff := cmp.Diff(f.before, onlyRoot(tr.end(dir))); diff != "" {
			t.Errorf("%s: not everything is back (-before +after):\n%s\nthe run said:\n%s\nthe next one:\n%s", point, diff, end.said, said)
			return held
		}
		held = true
		retry := tr.argv(dir)
		retry = append([]string{retry[0], "retry"}, retry[2:8]...)
		if code, said := tr.ran(retry); code != 0 {
			t.Errorf("%s: retry ends with %d:\n%s", point, code, said)
		}
		code, said = tr.ran(tr.argv(dir))
	}
	if code != 0 {
		t.Errorf("%s: the next run ends with %d:\n%s\nthe run said:\n%s", point, code, said, end.said)
		return held
	}
	got, want := tr.end(dir), f.want
	if held { // history has the failure
		got, want = onlyRoot(got), onlyRoot(want)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: ends elsewhere (-undisturbed +this):\n%s\nthe run said:\n%s\nthe next one:\n%s", point, diff, end.said, said)
	}
	return held
}

// TestSecretsOnBrokenDisk: whatever a disk refuses of an update of secrets, none of them
// lies in the state afterwards, and no error tells its hash, which is in the names of
// stored files.
func TestSecretsOnBrokenDisk(t *testing.T) {
	tr, from := newSecrets(t)
	for _, f := range []fault{
		{errno: syscall.ENOSPC, calls: noRoom, every: 3}, {errno: syscall.EIO, calls: writing, every: 3}, {errno: syscall.EROFS, calls: writing, every: 9, stays: true},
	} {
		whole, ops := tr.copyOf(from), 0
		judged(t, tr.argv(whole), f.calls, func(call) verdict { ops++; return verdict{} })
		tr.remove(whole)
		var failed atomic.Int64
		parallel((ops+f.every-1)/f.every, func(n int) {
			k, about := 1+(n-1)*f.every, ""
			dir := tr.copyOf(from)
			defer tr.remove(dir)
			end := judged(t, tr.argv(dir), f.calls, func(c call) verdict {
				if c.n == k {
					about = c.name + " " + c.of()
				}
				if c.n == k || f.stays && c.n > k {
					return verdict{refuse: f.errno}
				}
				return verdict{}
			})
			if end.status.ExitStatus() != 0 {
				failed.Add(1)
			}
			point := fmt.Sprintf("%q instead of %s", f.errno, about)
			tr.hidden(dir, point, end.said)
			_, said := tr.ran(tr.argv(dir))
			tr.hidden(dir, point+", the next run", said)
		})
		if failed.Load() == 0 {
			t.Errorf("%q: no run failed", f.errno)
		}
		counted(t, "%q: %d calls were refused, %d runs failed", f.errno, ops/f.every, failed.Load())
	}
}
