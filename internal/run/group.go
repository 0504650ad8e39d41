package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Grace is what a program has to end after SIGTERM; then it is killed. With
// what follows a kill, a run that is told to stop stops within five seconds.
const Grace = 3 * time.Second

const (
	// afterKill bounds the wait for what was killed: a process that hangs in the
	// kernel ends when the kernel lets it.
	afterKill = time.Second
	// outputDelay is how long the output of a program that has ended is read on,
	// when something that it left behind keeps the pipe open.
	outputDelay = 500 * time.Millisecond
	lookAgain   = 20 * time.Millisecond
)

// Group is a program together with everything that it starts.
//
// It runs in a session of its own, without a terminal, with /dev/null as its
// input and / as its directory. When its time is over all of it is ended:
// SIGTERM, Grace, SIGKILL, also for children that have left the session; of
// those that have been made daemons, only the ones that are still in our
// control group, because one that was moved to another belongs to a unit of its
// own (as the monitor of a podman container does). What a program that ends by
// itself leaves behind is not touched.
//
// Groups of one process run one after the other: whose daemon is whose could
// not be told otherwise.
type Group struct {
	Argv    []string
	Env     []string // besides PATH and LC_ALL
	Timeout time.Duration
	Output  io.Writer // gets stdout and stderr, in the order of writing
	Errors  io.Writer // gets stderr instead, unless it is nil
}

var groups sync.Mutex

// Run returns an *Error if the program ended badly: it wraps *exec.ExitError,
// context.DeadlineExceeded after Timeout, or the error of ctx.
func (g *Group) Run(ctx context.Context) error {
	groups.Lock()
	defer groups.Unlock()
	// What a child of a child leaves becomes a child of this process and can be found.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the reaper of %s: %w", g.Argv[0], err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	before := map[process]bool{}
	for _, orphan := range (&session{}).orphans(processes()) {
		before[orphan.process] = true
	}
	err := start(ctx, g.Timeout, g.command(), &session{adopts: true, before: before})
	if err != nil {
		return &Error{Argv: g.Argv, Err: err}
	}
	return nil
}

func (g *Group) command() *exec.Cmd {
	cmd := command(g.Argv)
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, g.Env...)
	cmd.Stdout, cmd.Stderr = g.Output, g.Output
	if g.Errors != nil {
		cmd.Stderr = g.Errors
	}
	return cmd
}

// command is a program with a clean environment.
func command(argv []string) *exec.Cmd {
	cmd := exec.Command(find(argv[0]), argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	return cmd
}

// start runs a command to its end, or to the end of its time.
func start(ctx context.Context, timeout time.Duration, cmd *exec.Cmd, s *session) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = outputDelay
	leaders.Lock()
	err := cmd.Start()
	if err == nil {
		s.leader = cmd.Process.Pid
		leaders.pids = append(leaders.pids, s.leader)
	}
	leaders.Unlock()
	if err != nil {
		return err
	}
	defer s.forget()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	ended := s.ended()
	var why error
	select {
	case <-ended:
	case <-limit.C:
		why = limitError(timeout)
	case <-ctx.Done():
		why = ctx.Err()
	}
	if why != nil {
		if left := s.end(); left > 0 {
			why = fmt.Errorf("%w, and %d of its processes cannot be killed", why, left)
		}
		select {
		case <-ended:
		case <-time.After(afterKill): // Wait would hang, too
			return &stuckError{why}
		}
	}
	// Only now the leader is reaped: until here nobody else could get its pid.
	err = cmd.Wait()
	s.reap()
	if why != nil {
		return why
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

// limitError is a program that has used up its time.
type limitError time.Duration

func (e limitError) Error() string {
	return fmt.Sprintf("its time limit of %s is over", time.Duration(e))
}
func (e limitError) Unwrap() error { return context.DeadlineExceeded }

// stuckError is a program that hangs in the kernel: it may still write.
type stuckError struct{ why error }

func (e *stuckError) Error() string { return e.why.Error() }
func (e *stuckError) Unwrap() error { return e.why }

// leaders are the sessions that this process has started.
var leaders struct {
	sync.Mutex
	pids []int
}

// session is everything that one program started.
type session struct {
	leader int
	adopts bool             // whether daemons that left the session count, too
	before map[process]bool // those that were there earlier do not
}

func (s *session) forget() {
	leaders.Lock()
	defer leaders.Unlock()
	leaders.pids = slices.DeleteFunc(leaders.pids, func(pid int) bool { return pid == s.leader })
}

// ended is closed when the leader has ended; it is not reaped by that.
func (s *session) ended() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			err := unix.Waitid(unix.P_PID, s.leader, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return ended
}

// end ends all processes and returns how many could not be ended.
func (s *session) end() int {
	s.signal(unix.SIGTERM)
	// Stopped processes get a signal only when they go on.
	s.signal(unix.SIGCONT)
	if s.gone(Grace, 0) {
		return 0
	}
	if s.gone(afterKill, unix.SIGKILL) {
		return 0
	}
	return len(s.members())
}

// gone waits until no process is left. Each look also signals the new ones, so
// that nobody escapes by forking.
func (s *session) gone(patience time.Duration, sig syscall.Signal) bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		if sig != 0 {
			s.signal(sig)
		}
		if s.empty() {
			return true
		}
		select {
		case <-look.C:
		case <-limit.C:
			return s.empty()
		}
	}
}

// empty looks twice: proc(5) is no snapshot, and a child that was made while it
// was being read by a parent that has gone since is in no list yet.
func (s *session) empty() bool {
	for range 2 {
		if len(s.members()) > 0 {
			return false
		}
	}
	return true
}

func (s *session) signal(sig syscall.Signal) {
	for _, pid := range s.members() {
		_ = unix.Kill(pid, sig) // it may be gone already
	}
}

// members are the processes that live.
func (s *session) members() []int {
	all := processes()
	roots := map[int]bool{s.leader: true}
	if s.adopts {
		for _, orphan := range s.adopted(all) {
			roots[orphan.pid] = true
		}
	}
	var members []int
	for _, p := range all {
		if p.zombie {
			continue
		}
		for at, depth := p, 0; depth < len(all); depth++ {
			if roots[at.pid] || at.session == s.leader {
				members = append(members, p.pid)
				break
			}
			parent, ok := all[at.parent]
			if !ok {
				break
			}
			at = parent
		}
	}
	return members
}

// orphans are the children of this process that it did not start: what it
// starts itself is in its own session or leads one, and nobody can join a session.
func (s *session) orphans(all map[int]status) []status {
	leaders.Lock()
	defer leaders.Unlock()
	own, err := unix.Getsid(0)
	if err != nil {
		return nil
	}
	var orphans []status
	for _, p := range all {
		started := p.session == own || slices.Contains(leaders.pids, p.session)
		if p.parent == os.Getpid() && !started && !s.before[p.process] {
			orphans = append(orphans, p)
		}
	}
	return orphans
}

// adopted are the orphans in our control group.
func (s *session) adopted(all map[int]status) []status {
	ours, err := os.ReadFile("/proc/self/cgroup")
	return slices.DeleteFunc(s.orphans(all), func(p status) bool {
		if err != nil {
			return false
		}
		theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		return err == nil && !p.zombie && !bytes.Equal(ours, theirs)
	})
}

// reap buries the orphans that have ended, also those of earlier programs.
func (s *session) reap() {
	if !s.adopts {
		return
	}
	for _, p := range (&session{}).orphans(processes()) {
		if p.zombie {
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
		}
	}
}

// process is one for ever: a pid is used again, with another start.
type process struct {
	pid   int
	start string
}

type status struct {
	process
	parent, session int
	zombie          bool
}

// processes reads proc(5).
func processes() map[int]status {
	all := map[int]status{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 {
			continue
		}
		p := status{process: process{pid: pid, start: fields[19]}, zombie: fields[0] == "Z" || fields[0] == "X"}
		p.parent, _ = strconv.Atoi(fields[1])
		p.session, _ = strconv.Atoi(fields[3])
		all[pid] = p
	}
	return all
}
