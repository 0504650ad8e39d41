package main_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A watch is a set of system calls that a traced program stops before.
type watch struct {
	names map[uint64]string // by number
	// opens tells that every open is watched: without it only one that may make a file is.
	opens bool
}

// with are these calls and some more.
func (w watch) with(more map[uint64]string) watch {
	names := maps.Clone(w.names)
	maps.Copy(names, more)
	return watch{names: names, opens: w.opens}
}

func (w watch) has(name string) bool {
	return slices.Contains(slices.Collect(maps.Values(w.names)), name)
}

// durable are the system calls that change what is on the disk, or make it last.
var durable = watch{names: map[uint64]string{
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_LINKAT: "linkat",
	unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_FCHOWNAT: "fchownat", unix.SYS_FCHOWN: "fchown",
	unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2", unix.SYS_FCHMOD: "fchmod",
	unix.SYS_SETXATTR: "setxattr", unix.SYS_LSETXATTR: "lsetxattr", unix.SYS_FSETXATTR: "fsetxattr",
	unix.SYS_REMOVEXATTR: "removexattr", unix.SYS_LREMOVEXATTR: "lremovexattr", unix.SYS_FREMOVEXATTR: "fremovexattr",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_SYNCFS: "syncfs",
}}.with(old)

// writing are the system calls that a disk can refuse.
var writing = durable.with(map[uint64]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FALLOCATE: "fallocate",
	unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_SENDFILE: "sendfile",
})

// lookups are the system calls that ask what a name, or an open file, is.
var lookups = watch{opens: true, names: map[uint64]string{
	unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2",
	unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_FSTAT: "fstat", unix.SYS_STATX: "statx",
	unix.SYS_FACCESSAT: "faccessat", unix.SYS_FACCESSAT2: "faccessat2",
	unix.SYS_READLINKAT: "readlinkat", unix.SYS_GETDENTS64: "getdents64",
	unix.SYS_GETXATTR: "getxattr", unix.SYS_LGETXATTR: "lgetxattr", unix.SYS_FGETXATTR: "fgetxattr",
	unix.SYS_LISTXATTR: "listxattr", unix.SYS_LLISTXATTR: "llistxattr", unix.SYS_FLISTXATTR: "flistxattr",
	unix.SYS_STATFS: "statfs", unix.SYS_FSTATFS: "fstatfs",
}}

// makesFile are the flags with which an open may make a file.
const makesFile = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY

// A call is a system call that a traced program is about to make.
type call struct {
	n    int // of those that are watched, from 1
	name string
	tid  int
	args [6]uint64
}

// of is the whole name of what the call is about: of a file that it moves or links
// to, the name that this gets. Links in the name are not followed.
func (c call) of() string {
	switch c.name {
	case "write", "pwrite64", "sendfile", "fsync", "fdatasync", "syncfs", "ftruncate", "fallocate",
		"fchmod", "fchown", "fsetxattr", "fremovexattr",
		"fstat", "getdents64", "fgetxattr", "flistxattr", "fstatfs":
		return c.file(c.args[0])
	case "copy_file_range":
		return c.file(c.args[2])
	case "chown", "lchown", "chmod", "setxattr", "lsetxattr", "removexattr", "lremovexattr",
		"getxattr", "lgetxattr", "listxattr", "llistxattr", "statfs":
		return c.path(here, c.args[0])
	case "symlinkat":
		return c.path(c.args[1], c.args[2])
	case "renameat", "renameat2", "linkat":
		return c.path(c.args[2], c.args[3])
	}
	return c.path(c.args[0], c.args[1])
}

// from is the whole name that a file has which the call moves or links to.
func (c call) from() string {
	switch c.name {
	case "renameat", "renameat2", "linkat":
		return c.path(c.args[0], c.args[1])
	}
	return ""
}

// counts tells whether a call that stopped is one that is watched, where its
// number alone does not.
func (c call) counts(w watch) bool {
	switch c.name {
	case "write": // but not what it says, a pipe, an eventfd
		return c.args[0] > 2 && filepath.IsAbs(c.file(c.args[0]))
	case "openat2":
		return w.opens || c.how().Flags&makesFile != 0
	}
	return true
}

// here is AT_FDCWD as it lies in a register.
const here = 1<<64 + unix.AT_FDCWD

// file is the name of an open file.
func (c call) file(fd uint64) string {
	if int32(fd) == unix.AT_FDCWD {
		return behind(fmt.Sprintf("/proc/%d/cwd", c.tid))
	}
	return behind(fmt.Sprintf("/proc/%d/fd/%d", c.tid, int32(fd)))
}

// behind is the name of the file that a link in /proc leads to: of one that was
// removed, the name that it had.
func behind(link string) string {
	name, _ := os.Readlink(link) // the program was killed meanwhile
	was, gone := strings.CutSuffix(name, " (deleted)")
	if !gone {
		return name
	}
	named, err := os.Lstat(name)
	open, openErr := os.Stat(link)
	if err == nil && openErr == nil && os.SameFile(named, open) {
		return name // it is called that
	}
	return was
}

// throughProc are the names in /proc of what a program has open.
var throughProc = regexp.MustCompile(`^/proc/(self|thread-self|\d+(?:/task/\d+)?)(/fd/\d+|/cwd)(/.*)?$`)

// path is the name that stands in the program's memory as a whole one: below the
// directory that is open as dir, or with no name what is open as dir.
func (c call) path(dir, at uint64) string {
	name := c.text(at)
	switch {
	case name == "":
		return c.file(dir)
	case c.name == "openat2" && c.how().Resolve&unix.RESOLVE_IN_ROOT != 0:
		name = filepath.Join(c.file(dir), filepath.Join("/", name))
	case !filepath.IsAbs(name):
		name = filepath.Join(c.file(dir), name)
	}
	open := throughProc.FindStringSubmatch(name)
	if open == nil {
		return name
	}
	process := open[1]
	if strings.HasSuffix(process, "self") {
		process = fmt.Sprint(c.tid)
	}
	return behind("/proc/"+process+open[2]) + open[3]
}

// how is what an openat2 asks for. It lies in memory, where the filter cannot look.
func (c call) how() (how unix.OpenHow) {
	memory := bytes.NewReader(c.memory(c.args[2], binary.Size(how)))
	_ = binary.Read(memory, binary.NativeEndian, &how) // killed meanwhile
	return how
}

// text is a string of the program's.
func (c call) text(at uint64) string {
	page := os.Getpagesize() // what follows it need not be there
	var text []byte
	for len(text) < unix.PathMax {
		part := c.memory(at, page-int(at%uint64(page)))
		before, _, ended := bytes.Cut(part, []byte{0})
		text = append(text, before...)
		if ended || len(part) == 0 {
			break
		}
		at += uint64(len(part))
	}
	return string(text)
}

// memory reads what the program has there. Unlike ptrace(2) it does so on any thread.
func (c call) memory(at uint64, size int) []byte {
	buf := make([]byte, size)
	local, remote := unix.Iovec{Base: &buf[0]}, unix.RemoteIovec{Base: uintptr(at), Len: size}
	local.SetLen(size)
	n, err := unix.ProcessVMReadv(c.tid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	if err != nil {
		return nil // killed meanwhile
	}
	return buf[:n]
}
