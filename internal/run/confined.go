package run

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Confined is this very program, started anew as a process that may do less than
// this one: it gains no privileges, has no capabilities, and where the kernel has
// Landlock it opens only what is named here, and signals no process but its own
// children. It ends with this process. What it has to do itself is Closed.
type Confined struct {
	Args   []string // behind the name of the program
	Env    []string // all of it
	User   *User    // nil: whoever runs this
	Read   []string // files, and directories with all below; what is not there is passed over
	Write  []string // directories, with all below
	Stdin  *os.File
	Stdout *os.File
	Stderr io.Writer
	Files  []*os.File // from descriptor 3 on
}

// User is a user with no other group than the one that is named.
type User struct{ UID, GID uint32 }

// Process is a Confined that runs.
type Process struct {
	// Landlock is the version of the interface that confines it, 0 when the kernel
	// has none.
	Landlock int
	cmd      *exec.Cmd
	ended    chan struct{}
	err      error
}

// Start starts it.
func (c *Confined) Start() (*Process, error) {
	cmd := exec.Command("/proc/self/exe", c.Args...)
	cmd.Args[0] = "reconf-pull"
	cmd.Dir, cmd.Env = "/", append([]string{}, c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = c.Stdin, c.Stdout, c.Stderr, c.Files
	cmd.WaitDelay = outputDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID}
	}
	p := &Process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	onOwnThread(func() {
		err := c.confine(p)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	})
	return p, <-started
}

// onOwnThread runs f on a thread that ends with it: what is taken from the thread
// is gone for good, and inherited by what it starts. It ends no sooner than that:
// to a child the end of the thread that started it is the death of its parent. The
// main thread, which cannot end and stands for the whole process, is not taken.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		other := make(chan struct{})
		go func() {
			runtime.LockOSThread() // another one, because the main one is taken
			close(other)
			f()
		}()
		<-other
		runtime.UnlockOSThread()
	}()
}

// Kill ends it, if it has not ended.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// Pid is its process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Ended is closed once it has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err is how it ended, nil for status 0. It waits for the end.
func (p *Process) Err() error {
	<-p.ended
	if errors.Is(p.err, exec.ErrWaitDelay) {
		return nil
	}
	return p.err
}

// confine takes from this thread what the process must not have.
func (c *Confined) confine(p *Process) (err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	// What this process was started with is not its to hand on. An old kernel does
	// not know the call; what Go opens needs it not.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if p.Landlock, err = c.landlock(); err != nil {
		return fmt.Errorf("setting up Landlock: %w", err)
	}
	for capability := uintptr(0); ; capability++ {
		if c.User == nil && (capability == unix.CAP_DAC_OVERRIDE || capability == unix.CAP_DAC_READ_SEARCH) {
			continue // root itself stays able to use others' directories
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // the last one was the last one
		}
		if errors.Is(err, unix.EPERM) && c.User == nil {
			return nil // who is not root has none to lose
		}
		if err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
	}
}

// Closed is the first thing that a Confined does: nobody looks into its memory,
// which may hold credentials, it leaves no core, and signals that are for all
// processes of a terminal do not end it before the one that needs it.
func Closed() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	return errors.Join(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

const (
	accessRead  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	accessFirst = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 // of version 1
	// accessFiles are those that a rule for a file may name.
	accessFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// Landlock is the version of Landlock's interface in this kernel, 0 when it has
// none or it is turned off.
func Landlock() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// landlock restricts this thread (landlock(7)).
func (c *Confined) landlock() (version int, err error) {
	if version = Landlock(); version == 0 {
		return 0, nil
	}
	rules := unix.LandlockRulesetAttr{Handled_access_fs: accessFirst}
	for _, since := range []struct {
		version int
		add     unix.LandlockRulesetAttr
	}{
		{2, unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER}},
		{3, unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_TRUNCATE}},
		{5, unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}},
		{6, unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL}},
	} {
		if version >= since.version {
			rules.Handled_access_fs |= since.add.Handled_access_fs
			rules.Scoped |= since.add.Scoped
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return version, errno
	}
	defer func() { _ = unix.Close(int(fd)) }()
	allow := func(path string, access uint64) error {
		at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer func() { _ = unix.Close(at) }()
		var stat unix.Stat_t
		if err := unix.Fstat(at, &stat); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			access &= accessFiles
		}
		rule := unix.LandlockPathBeneathAttr{Allowed_access: access & rules.Handled_access_fs, Parent_fd: int32(at)}
		if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
			return &os.PathError{Op: "allow", Path: path, Err: errno}
		}
		return nil
	}
	for _, path := range append([]string{"/proc/self/exe"}, c.Read...) {
		if err := allow(path, accessRead); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return version, err
		}
	}
	for _, path := range append([]string{os.DevNull}, c.Write...) {
		if err := allow(path, rules.Handled_access_fs); err != nil {
			return version, err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return version, errno
	}
	return version, nil
}
