package run

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// EndMarked kills every process that has this line in the environment that it
// was started with (NAME=value), and all of its session if it leads one: what
// an earlier run of ours started, and did not live to end. It returns when they
// are gone.
func EndMarked(ctx context.Context, mark string) error {
	limit := time.NewTimer(afterKill + Grace)
	defer limit.Stop()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		left := marked(mark)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
		}
		select {
		case <-look.C:
		case <-limit.C:
			return fmt.Errorf("%d processes cannot be killed", len(left))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// marked are the living processes with the mark, and their sessions'.
func marked(mark string) []int {
	all := processes()
	sessions := map[int]bool{}
	var found []int
	for pid, p := range all {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || p.zombie || pid == os.Getpid() {
			continue
		}
		if slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(line []byte) bool { return string(line) == mark }) {
			found = append(found, pid)
			sessions[pid] = p.session == pid
		}
	}
	for pid, p := range all {
		if sessions[p.session] && !p.zombie && !slices.Contains(found, pid) {
			found = append(found, pid)
		}
	}
	return found
}

// Capped keeps the first Most bytes that are written to it, and takes the rest.
type Capped struct {
	Most int
	Cut  bool
	// Not embedded: io.Copy would go past Write, to the buffer's ReadFrom.
	kept bytes.Buffer
}

// Write never fails: the program that prints too much must not be stopped by a
// pipe that nobody reads.
func (c *Capped) Write(p []byte) (int, error) {
	room := max(0, c.Most-c.kept.Len())
	if len(p) > room {
		c.Cut = true
	}
	c.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}

// Bytes are what was kept.
func (c *Capped) Bytes() []byte { return c.kept.Bytes() }
