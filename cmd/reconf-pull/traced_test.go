package main_test

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verdict is what becomes of a call: a signal for the whole program before the
// call, or an error in its place.
type verdict struct {
	signal syscall.Signal
	refuse syscall.Errno
}

// ended is how a traced program ended.
type ended struct {
	ops    int
	status syscall.WaitStatus
	said   string
}

// traced runs a program under ptrace and asks, before each of the durable calls of
// all its threads, which signal it gets. Other processes that it starts run
// undisturbed.
func traced(t *testing.T, argv []string, signal func(n int, name string) syscall.Signal) (ops int, status syscall.WaitStatus) {
	t.Helper()
	end := judged(t, argv, durable, func(c call) verdict { return verdict{signal: signal(c.n, c.name)} })
	return end.ops, end.status
}

// judged is traced for any set of calls. The thread that makes one waits while judge
// looks at it, and judge may do whatever it likes, such as changing the file.
func judged(t *testing.T, argv []string, watched watch, judge func(call) verdict) ended {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "said-")
	if err != nil {
		t.Error(err)
		return ended{}
	}
	defer out.Close()
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		t.Error(err)
		return ended{}
	}
	defer nothing.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nothing, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	end := ended{}
	done := make(chan error)
	go func() {
		// Never unlocked: the filter cannot be taken off the thread, which ends with
		// this goroutine and takes what it still traces with it.
		runtime.LockOSThread()
		err := filter(watched)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			err = end.trace(cmd.Process.Pid, watched, judge)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("tracing %v: %v", argv, err)
	}
	said, err := os.ReadFile(out.Name())
	if err := errors.Join(err, os.Remove(out.Name())); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	end.said = string(said)
	return end
}

// filter makes the watched system calls of this thread, and of what it starts,
// stop for a tracer (seccomp(2)): all others run at full speed.
func filter(watched watch) error {
	const number, openFlags, retAllow, retTrace = 0, 16 + 2*8, 0x7fff0000, 0x7ff00000
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(what uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what} }
	program := []unix.SockFilter{load(number)}
	for _, nr := range slices.Sorted(maps.Keys(watched.names)) {
		if nr != unix.SYS_OPENAT || watched.opens {
			program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)}, ret(retTrace))
			continue
		}
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 4, K: uint32(nr)},
			load(openFlags), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: makesFile}, ret(retTrace), ret(retAllow))
	}
	program = append(program, ret(retAllow))
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// trace drives a program that was started for it until it has ended.
func (end *ended) trace(pid int, watched watch, judge func(call) verdict) error {
	const options = syscall.PTRACE_O_TRACECLONE | syscall.PTRACE_O_TRACEFORK | syscall.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_EXITKILL
	// What it started and left.
	defer func() { _ = syscall.Kill(-pid, syscall.SIGKILL) }()
	if _, err := syscall.Wait4(pid, &end.status, syscall.WALL, nil); err != nil {
		return err
	}
	if err := errors.Join(syscall.PtraceSetOptions(pid, options), syscall.PtraceCont(pid, 0)); err != nil {
		return err
	}
	known := map[int]bool{pid: true}
	for {
		var status syscall.WaitStatus
		tid, err := syscall.Wait4(-pid, &status, syscall.WALL, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if tid == pid && (status.Exited() || status.Signaled()) {
			end.status = status
			return nil
		}
		if !status.Stopped() {
			continue // another thread or process ended
		}
		deliver := 0
		switch stop := status.StopSignal(); {
		case stop == syscall.SIGTRAP && status.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			if err := end.stopped(pid, tid, watched, judge); err != nil {
				return err
			}
		case stop == syscall.SIGTRAP:
		case stop == syscall.SIGSTOP && !known[tid]:
			known[tid] = true
		default:
			deliver = int(stop)
		}
		_ = syscall.PtraceCont(tid, deliver) // gone when it was killed
	}
}

func (end *ended) stopped(pid, tid int, watched watch, judge func(call) verdict) error {
	// Not a look into /proc: this thread has the filter as well.
	if err := unix.Tgkill(pid, tid, 0); err != nil {
		return nil // a program that it started
	}
	// PTRACE_GET_SYSCALL_INFO
	const getSyscallInfo, seccomp = 0x420e, 3
	var info [88]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, getSyscallInfo, uintptr(tid), uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info[0] != seccomp {
		return nil // killed meanwhile
	}
	c := call{n: end.ops + 1, name: watched.names[binary.NativeEndian.Uint64(info[24:])], tid: tid}
	for i := range c.args {
		c.args[i] = binary.NativeEndian.Uint64(info[32+8*i:])
	}
	var v verdict
	// On another thread, which the filter refuses nothing.
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c.counts(watched) {
			end.ops++
			v = judge(c)
		}
	}()
	<-done
	if v.refuse != 0 {
		return refuse(tid, v.refuse)
	}
	if v.signal != 0 {
		return syscall.Kill(pid, v.signal)
	}
	return nil
}
