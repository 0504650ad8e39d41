package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// play lets a run go on while a resident swaps something, and then another one, and
// tells what he did and whether it blocked a path.
func (tr *trial) play(
	what, dir string, s swap, watched watch, want map[string]thing, free bool,
) (did *try, blocked bool) {
	t := tr.t
	before := survey(t, dir)
	pl := &player{swap: s, root: filepath.Join(dir, "root")}
	end := tr.ends(dir, watched, pl.judge)
	if pl.did == nil {
		return nil, false
	}
	point := fmt.Sprintf("%s, %s swaps %s for a %s before call %d of his (%s)",
		what, s.who.name, pl.did.part, pl.did.kind, s.call, pl.about)
	if s.back > 0 {
		point += fmt.Sprintf(", and back %d calls later", s.back)
	}
	if pl.err != nil {
		t.Errorf("%s: undoing it: %v", point, pl.err)
	}
	wrong := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s; the run said:\n%s", point, fmt.Sprintf(format, args...), strings.ReplaceAll(end.said, dir, ""))
	}
	if sane(end.status.Exited(), end.status.ExitStatus(), end.said, wrong) {
		harmless(before, survey(t, dir), want, s.who, wrong)
	}
	blocked = end.status.ExitStatus() == 1
	names := blockedPaths.FindAllStringSubmatch(end.said, -1)

	if free {
		point += ", and at last he undoes it"
		if err := pl.swapBack(); err != nil {
			t.Errorf("%s: %v", point, err)
		}
	}
	age(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), swapTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, tr.argv(dir)[0], tr.argv(dir)[1:]...)
	said, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
	first := end.said
	wrong = func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s; the run said:\n%s\nand the next one:\n%s", point, fmt.Sprintf(format, args...),
			strings.ReplaceAll(first, dir, ""), strings.ReplaceAll(string(said), dir, ""))
	}
	if !sane(cmd.ProcessState.Exited(), cmd.ProcessState.ExitCode(), string(said), wrong) {
		return pl.did, blocked
	}
	now := survey(t, dir)
	harmless(before, now, want, s.who, wrong)
	if !blocked || !free || !pl.undone {
		return pl.did, blocked
	}
	if cmd.ProcessState.ExitCode() != 0 {
		wrong("the way is free, and it ends with %d", cmd.ProcessState.ExitCode())
		return pl.did, blocked
	}
	for _, name := range names {
		at := "root" + name[1]
		got, was := now[at], want[at]
		if got.String() != was.String() && !strings.HasSuffix(got.holds, appended(was.holds)) {
			wrong("the way is free, and %s is %v, not %v", name[1], got, was)
		}
	}
	return pl.did, blocked
}

// blockedPaths are those that a run names.
var blockedPaths = regexp.MustCompile(`(?m)(/\S+) is blocked: `)

// appended is the last line of a file: what comes before it is the resident's own.
func appended(holds string) string {
	lines := strings.SplitAfter(strings.TrimSuffix(holds, "\n"), "\n")
	return "\n" + lines[len(lines)-1] + "\n"
}

// tried is when a blocked path was tried last.
var tried = regexp.MustCompile(`("tried": *)"[^"]*"`)

// age lets the time pass that the agent waits before it tries a blocked path again.
func age(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "state/state.json")
	data, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, tried.ReplaceAll(data, []byte(`$1"2026-01-01T00:00:00Z"`)), 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}

// sane looks at how a run ended.
func sane(exited bool, status int, said string, wrong func(string, ...any)) bool {
	switch {
	case !exited:
		wrong("it was killed after %s", swapTime)
		return false
	case status != 0 && status != 1:
		wrong("it ends with %d", status)
	case strings.Contains(said, "panic") || strings.Contains(said, "goroutine "):
		wrong("it panics")
	case status == 1 && !strings.Contains(said, " is blocked: "):
		wrong("it does not say what is blocked")
	}
	return true
}

// harmless looks that a resident got nothing by what he did: before is the host as it
// was, after as it is, and want as it is after a run that nobody disturbs.
func harmless(before, after, want map[string]thing, who *resident, wrong func(string, ...any)) {
	outside(after, want, wrong)
	kept := map[uint64]thing{}
	for _, th := range before {
		kept[th.inode] = th
	}
	for name, th := range after {
		if !strings.HasPrefix(name, "root/home/") && strings.HasPrefix(name, "root/") {
			continue // is as it should be
		}
		was, known := kept[th.inode]
		// What is not his, and nothing that the config speaks of, is at most moved.
		if known && was.uid != who.uid && !was.managed && was.String() != th.String() {
			wrong("%s was %v, and is %v", name, was, th)
		}
		for _, uid := range th.secret {
			for _, reader := range th.readers {
				if reader != uid {
					wrong("uid %d can read %s, where a secret of uid %d is: %v", reader, name, uid, th)
				}
			}
		}
		regular := th.mode&unix.S_IFMT == unix.S_IFREG
		same := regular && known && was.mode == th.mode
		if th.mode&(unix.S_ISUID|unix.S_ISGID) != 0 && !same && (th.holds != "tool" || th.uid != 0) {
			wrong("%s has set-id bits: %v", name, th)
		}
		others := th.mode&0o002 != 0 || th.mode&0o020 != 0 && th.gid != 0
		if others && th.uid == 0 && th.mode&unix.S_IFMT != unix.S_IFLNK {
			wrong("%s is root's, and others may write it: %v", name, th)
		}
	}
}

// outside looks that all is well where no resident has a say.
func outside(after, want map[string]thing, wrong func(string, ...any)) {
	var names []string
	for name := range after {
		names = append(names, name)
	}
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !strings.HasPrefix(name, "root/") || strings.HasPrefix(name, "root/home/") && path.Dir(name) != "root/home" {
			continue
		}
		got, is := after[name]
		should, was := want[name]
		switch {
		case !is:
			wrong("%s is gone", name)
		case !was:
			wrong("%s is new: %v", name, got)
		case got.String() != should.String():
			wrong("%s is %v, and should be %v", name, got, should)
		}
	}
}
