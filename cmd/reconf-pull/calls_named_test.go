package main_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestCallsAreNamed: of every system call that can be watched the harness tells the
// whole name of the file, however the program names it.
func TestCallsAreNamed(t *testing.T) {
	program, err := exec.LookPath("reconf-pull-calls")
	if err != nil {
		t.Fatal(err)
	}
	all := lookups.with(writing.names)
	deeds := (&hands{}).deeds()
	for _, name := range all.names {
		if !slices.ContainsFunc(deeds, func(d deed) bool { return d.name() == name }) {
			t.Errorf("no %s is made", name)
		}
	}
	needs(t, "all", all, deeds)
	needs(t, "durable", durable, slices.Concat((&hands{}).changes(), (&hands{}).metadata()))
	needs(t, "lookups", lookups, (&hands{}).looks())
	for _, watched := range []watch{all, writing, durable, lookups} {
		dir := placeForCalls(t)
		var want, got []string
		for _, d := range (&hands{dir: dir}).deeds() {
			if watched.has(d.name()) && (watched.opens || !d.onlyOpens) {
				want = append(want, d.call)
			}
		}
		end := judged(t, []string{program, dir}, watched, func(c call) verdict {
			of, below := strings.CutPrefix(c.of(), dir+"/")
			if !below && c.of() != dir { // the runtime's own
				return verdict{}
			}
			line := c.name + " " + of
			if from := c.from(); from != "" {
				line += " from " + strings.TrimPrefix(from, dir+"/")
			}
			got = append(got, line)
			return verdict{}
		})
		if !end.status.Exited() || end.status.ExitStatus() != 0 {
			t.Errorf("ended with %v: %s", end.status, end.said)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("calls (-made +seen):\n%s", diff)
		}
	}
}

// needs looks that a set of calls has those of the deeds.
func needs(t *testing.T, what string, w watch, deeds []deed) {
	t.Helper()
	for _, d := range deeds {
		if !w.has(d.name()) {
			t.Errorf("%s has no %s", what, d.name())
		}
	}
}

// TestCallIsJudgedBeforeItIsMade: what the judge does to a file is there when the call
// that it looks at is made, even where the judge makes calls that are watched.
func TestCallIsJudgedBeforeItIsMade(t *testing.T) {
	program, err := exec.LookPath("reconf-pull-calls")
	if err != nil {
		t.Fatal(err)
	}
	dir := placeForCalls(t)
	judged(t, []string{program, dir}, lookups.with(writing.names), func(c call) verdict {
		if c.name == "mkdirat" && c.of() == filepath.Join(dir, "made") {
			if err := os.WriteFile(c.of(), []byte("in the way"), 0o600); err != nil {
				t.Error(err)
			}
		}
		return verdict{}
	})
	if data, err := os.ReadFile(filepath.Join(dir, "renamed")); string(data) != "in the way" {
		t.Errorf("the directory was made before the judge was through: %q, %v", data, err)
	}
}

// odd is a name that looks like that of a file that is gone.
const odd = "odd (deleted)"

// long is a name of which two are longer than what a peek at the program gets.
var long = strings.Repeat("long", 60)

// placeForCalls is a directory with what everyCall takes in hand.
func placeForCalls(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sub", "sub/deep", long} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sub/file", "sub/" + odd} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("some bytes"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("file", filepath.Join(dir, "sub/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// everyCall makes every system call that can be watched: DIR. What a call says is of
// no concern, as it is seen before it is made.
func everyCall() {
	// The directory that names begin in belongs to the thread.
	runtime.LockOSThread()
	h := &hands{dir: os.Args[1]}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := unix.Chdir(filepath.Join(h.dir, "sub")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	h.proc, _ = unix.Open("/proc/thread-self/fd", unix.O_PATH|unix.O_DIRECTORY, 0)
	for _, d := range h.deeds() {
		d.do()
	}
}

// hands are what everyCall has open.
type hands struct {
	dir                                             string
	proc, top, sub, file, link, fresh, odd, renamed int
}

// A deed is a system call, and what it is called: its name, the name of its file below
// the directory, and the name from which it moves or links it.
type deed struct {
	call      string
	onlyOpens bool // makes no file
	do        func()
}

func (d deed) name() string {
	name, _, _ := strings.Cut(d.call, " ")
	return name
}

func (h *hands) deeds() []deed {
	return slices.Concat(h.opens(), h.changes(), h.metadata(), h.contents(), h.looks(), h.ends())
}

// open is an open by openat(2).
func (h *hands) open(call string, into, dir *int, name string, flags int) deed {
	return deed{call: call, onlyOpens: flags&makesFile == 0, do: func() {
		*into, _ = unix.Openat(*dir, name, flags, 0o600)
	}}
}

func (h *hands) opens() []deed {
	cwd, other := unix.AT_FDCWD, 0
	open2 := func(call, name string, how unix.OpenHow) deed {
		return deed{call: call, onlyOpens: how.Flags&makesFile == 0, do: func() {
			_, _ = unix.Openat2(h.sub, name, &how)
		}}
	}
	return []deed{
		h.open("openat "+h.dir, &h.top, &cwd, h.dir, unix.O_PATH|unix.O_DIRECTORY),
		h.open("openat sub", &h.sub, &h.top, "sub", unix.O_RDONLY|unix.O_DIRECTORY),
		h.open("openat sub", &other, &h.sub, ".", unix.O_PATH),
		h.open("openat "+h.dir, &other, &h.sub, "..", unix.O_PATH),
		h.open("openat sub/file", &h.file, &h.sub, "file", unix.O_RDWR),
		h.open("openat sub/file", &other, &cwd, "file", unix.O_RDONLY),
		h.open("openat sub/link", &h.link, &h.sub, "link", unix.O_PATH|unix.O_NOFOLLOW),
		h.open("openat sub/fresh", &h.fresh, &h.sub, "fresh", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL),
		h.open("openat sub/"+odd, &h.odd, &h.sub, odd, unix.O_RDWR),
		h.open("openat sub/deep", &other, &h.sub, "deep", unix.O_WRONLY|unix.O_TMPFILE),
		open2("openat2 sub/deep", "deep", unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_BENEATH}),
		open2("openat2 sub/second", "second", unix.OpenHow{Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o600}),
		open2("openat2 sub/deep", "/../deep", unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT}),
		open2("openat2 sub/deep", filepath.Join(h.dir, "sub/deep"), unix.OpenHow{Flags: unix.O_PATH}),
	}
}

func (h *hands) changes() []deed {
	cwd := unix.AT_FDCWD
	return []deed{
		{call: "mkdirat made", do: func() { _ = unix.Mkdirat(h.top, "made", 0o700) }},
		h.open("openat made", &h.renamed, &h.top, "made", unix.O_PATH),
		{call: "renameat renamed from made", do: func() { _ = unix.Renameat(h.top, "made", h.top, "renamed") }},
		{call: "mkdirat renamed/in", do: func() { _ = unix.Mkdirat(h.renamed, "in", 0o700) }},
		{call: "mkdirat sub/here", do: func() { _ = unix.Mkdirat(cwd, "here", 0o700) }},
		{call: "mkdirat " + long + "/" + long, do: func() { _ = unix.Mkdir(filepath.Join(h.dir, long, long), 0o700) }},
		{call: "symlinkat sub/symbolic", do: func() { _ = unix.Symlinkat("file", h.sub, "symbolic") }},
		{call: "linkat hard from sub/file", do: func() { _ = unix.Linkat(h.sub, "file", h.top, "hard", 0) }},
		{call: "linkat second from sub/file", do: func() {
			_ = unix.Linkat(cwd, behindProc(h.file), h.top, "second", unix.AT_SYMLINK_FOLLOW)
		}},
		{call: "linkat third from sub/file", do: func() {
			_ = unix.Linkat(h.file, "", h.top, "third", unix.AT_EMPTY_PATH)
		}},
		{call: "renameat sub/moved from hard", do: func() { _ = unix.Renameat(h.top, "hard", h.sub, "moved") }},
		{call: "renameat2 moved from sub/moved", do: func() {
			_ = unix.Renameat2(h.sub, "moved", h.top, "moved", unix.RENAME_NOREPLACE)
		}},
		{call: "renameat moved from sub/moved", do: func() {
			_ = unix.Renameat(cwd, behindProc(h.sub)+"/moved", cwd, behindProc(h.top)+"/moved")
		}},
		{call: "unlinkat moved", do: func() { _ = unix.Unlinkat(h.top, "moved", 0) }},
		{call: "unlinkat sub/here", do: func() { _ = unix.Unlinkat(cwd, "here", unix.AT_REMOVEDIR) }},
	}
}

func (h *hands) metadata() []deed {
	cwd, value := unix.AT_FDCWD, []byte("x")
	all := []deed{
		{call: "fchown sub/file", do: func() { _ = unix.Fchown(h.file, -1, -1) }},
		{call: "fchownat sub/link", do: func() { _ = unix.Fchownat(h.sub, "link", -1, -1, unix.AT_SYMLINK_NOFOLLOW) }},
		{call: "fchownat sub/link", do: func() { _ = unix.Fchownat(h.link, "", -1, -1, unix.AT_EMPTY_PATH) }},
		{call: "fchmod sub/file", do: func() { _ = unix.Fchmod(h.file, 0o600) }},
		{call: "fchmodat sub/file", do: func() { _ = unix.Fchmodat(h.sub, "file", 0o600, 0) }},
		{call: "fchmodat sub/file", do: func() { _ = unix.Fchmodat(cwd, behindProc(h.file), 0o600, 0) }},
		{call: "fchmodat sub/file", do: func() { _ = unix.Fchmodat(h.proc, fmt.Sprint(h.file), 0o600, 0) }},
		{call: "fchmodat sub/file", do: func() { _ = unix.Fchmodat(cwd, "/proc/self/cwd/file", 0o600, 0) }},
		{call: "fchmodat2 sub/file", do: func() { _ = unix.Fchmodat(h.file, "", 0o600, unix.AT_EMPTY_PATH) }},
		{call: "fchmodat2 sub/link", do: func() { _ = unix.Fchmodat(h.sub, "link", 0o600, unix.AT_SYMLINK_NOFOLLOW) }},
		{call: "fsetxattr sub/file", do: func() { _ = unix.Fsetxattr(h.file, "user.x", value, 0) }},
		{call: "setxattr sub/file", do: func() { _ = unix.Setxattr(behindProc(h.file), "user.x", value, 0) }},
		{call: "lsetxattr sub/link", do: func() { _ = unix.Lsetxattr(behindProc(h.sub)+"/link", "user.x", value, 0) }},
		{call: "fremovexattr sub/file", do: func() { _ = unix.Fremovexattr(h.file, "user.x") }},
		{call: "removexattr sub/file", do: func() { _ = unix.Removexattr("file", "user.x") }},
		{call: "lremovexattr sub/link", do: func() { _ = unix.Lremovexattr("link", "user.x") }},
	}
	for _, nr := range slices.Sorted(maps.Keys(old)) { // of the owner 0, of the mode 0
		all = append(all, deed{call: old[nr] + " sub/link", do: func() {
			name, _ := unix.BytePtrFromString(behindProc(h.sub) + "/link")
			_, _, _ = unix.Syscall(uintptr(nr), uintptr(unsafe.Pointer(name)), 0, 0)
		}})
	}
	return all
}

func (h *hands) contents() []deed {
	return []deed{
		{call: "write sub/fresh", do: func() { _, _ = unix.Write(h.fresh, []byte("x")) }},
		{call: "pwrite64 sub/fresh", do: func() { _, _ = unix.Pwrite(h.fresh, []byte("x"), 0) }},
		{call: "ftruncate sub/fresh", do: func() { _ = unix.Ftruncate(h.fresh, 1) }},
		{call: "fallocate sub/fresh", do: func() { _ = unix.Fallocate(h.fresh, 0, 0, 1) }},
		{call: "copy_file_range sub/fresh", do: func() { _, _ = unix.CopyFileRange(h.file, nil, h.fresh, nil, 1, 0) }},
		{call: "sendfile sub/fresh", do: func() { _, _ = unix.Sendfile(h.fresh, h.file, nil, 1) }},
		{call: "fsync sub/fresh", do: func() { _ = unix.Fsync(h.fresh) }},
		{call: "fdatasync sub/fresh", do: func() { _ = unix.Fdatasync(h.fresh) }},
		{call: "syncfs sub", do: func() { _ = unix.Syncfs(h.sub) }},
	}
}

func (h *hands) looks() []deed {
	var st unix.Stat_t
	var stx unix.Statx_t
	var fs unix.Statfs_t
	buf := make([]byte, 1024)
	return []deed{
		{call: "newfstatat sub/file", do: func() { _ = unix.Fstatat(h.sub, "file", &st, unix.AT_SYMLINK_NOFOLLOW) }},
		{call: "newfstatat sub/link", do: func() { _ = unix.Fstatat(h.link, "", &st, unix.AT_EMPTY_PATH) }},
		{call: "fstat sub/file", do: func() { _ = unix.Fstat(h.file, &st) }},
		{call: "statx sub/link", do: func() { _ = unix.Statx(h.sub, "link", 0, unix.STATX_ALL, &stx) }},
		{call: "statx sub", do: func() { _ = unix.Statx(h.sub, "", unix.AT_EMPTY_PATH, unix.STATX_ALL, &stx) }},
		{call: "faccessat sub/file", do: func() { _ = unix.Faccessat(h.sub, "file", unix.R_OK, 0) }},
		{call: "faccessat2 sub/file", do: func() { _ = unix.Faccessat2(h.sub, "file", unix.R_OK, unix.AT_EACCESS) }},
		{call: "readlinkat sub/link", do: func() { _, _ = unix.Readlinkat(h.sub, "link", buf) }},
		{call: "readlinkat sub/link", do: func() { _, _ = unix.Readlinkat(h.link, "", buf) }},
		{call: "readlinkat sub/file", do: func() { _, _ = unix.Readlink(behindProc(h.file), buf) }},
		{call: "getdents64 sub", do: func() { _, _ = unix.Getdents(h.sub, buf) }},
		{call: "getxattr sub/file", do: func() { _, _ = unix.Getxattr(behindProc(h.file), "user.x", buf) }},
		{call: "lgetxattr sub/link", do: func() { _, _ = unix.Lgetxattr(behindProc(h.sub)+"/link", "user.x", buf) }},
		{call: "fgetxattr sub/file", do: func() { _, _ = unix.Fgetxattr(h.file, "user.x", buf) }},
		{call: "listxattr sub/file", do: func() { _, _ = unix.Listxattr("file", buf) }},
		{call: "llistxattr sub/link", do: func() { _, _ = unix.Llistxattr(filepath.Join(h.dir, "sub/link"), buf) }},
		{call: "flistxattr sub/file", do: func() { _, _ = unix.Flistxattr(h.file, buf) }},
		{call: "statfs sub/file", do: func() { _ = unix.Statfs(behindProc(h.file), &fs) }},
		{call: "fstatfs sub/file", do: func() { _ = unix.Fstatfs(h.file, &fs) }},
	}
}

// ends are calls on files that are gone, or seem to be.
func (h *hands) ends() []deed {
	return []deed{
		{call: "unlinkat sub/fresh", do: func() { _ = unix.Unlinkat(h.sub, "fresh", 0) }},
		{call: "fchmod sub/fresh", do: func() { _ = unix.Fchmod(h.fresh, 0o600) }},
		{call: "fchmodat sub/fresh", do: func() { _ = unix.Chmod(behindProc(h.fresh), 0o600) }},
		{call: "fchmod sub/" + odd, do: func() { _ = unix.Fchmod(h.odd, 0o600) }},
		{call: "unlinkat renamed/in", do: func() { _ = unix.Unlinkat(h.renamed, "in", unix.AT_REMOVEDIR) }},
		{call: "unlinkat renamed", do: func() { _ = unix.Unlinkat(h.top, "renamed", unix.AT_REMOVEDIR) }},
		{call: "mkdirat renamed/in", do: func() { _ = unix.Mkdirat(h.renamed, "in", 0o700) }},
	}
}

func behindProc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
