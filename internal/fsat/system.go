package fsat

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// openat opens one component, and never follows it.
func openat(at int, name string, flags int) (fd int, err error) {
	err = again(func() error {
		fd, err = unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// shut closes a descriptor of O_PATH: nothing was written, and nothing can be lost.
func shut(fd int) { _ = unix.Close(fd) }

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// stat is what statx(2) says of an inode.
type stat struct {
	disk.Stat
	mode       uint32
	uid, gid   uint32
	links      uint32
	allocated  int64
	device     uint64
	mount      uint64
	born       int64 // 0 where the file system does not say
	attributes uint64
}

// statx looks at a name in a directory, or with an empty name at the descriptor
// itself. It asks no server: one of somebody's may never answer.
func statx(at int, name string) (stat, error) {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	var x unix.Statx_t
	err := again(func() error {
		return unix.Statx(at, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &x)
	})
	if err != nil {
		return stat{}, err
	}
	return stat{
		Stat: disk.Stat{
			Inode: x.Ino, Size: int64(x.Size),
			MTime: nanoseconds(x.Mtime), CTime: nanoseconds(x.Ctime),
		},
		mode: uint32(x.Mode), uid: x.Uid, gid: x.Gid, links: x.Nlink, allocated: int64(x.Blocks) * 512,
		device: unix.Mkdev(x.Dev_major, x.Dev_minor), mount: x.Mnt_id, born: nanoseconds(x.Btime),
		attributes: x.Attributes & x.Attributes_mask,
	}, nil
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

func (st *stat) kind() disk.Kind {
	switch st.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return disk.File
	case unix.S_IFDIR:
		return disk.Directory
	case unix.S_IFLNK:
		return disk.Link
	}
	return disk.Other
}

// what is the kind for a reader.
func (st *stat) what() string {
	switch st.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "a device"
}

func readlinkat(at int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// own is the path that leads to the inode of a descriptor, also to one of O_PATH, for
// calls that take no descriptor of that kind (proc_pid_fd(5)).
func own(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// hasACL tells whether a directory has an ACL: one that says more of who may do what than
// its mode, or one for what is made in it.
func hasACL(fd int, which string) bool {
	size, err := unix.Getxattr(own(fd), which, nil)
	return err == nil && size > 0
}

// dropACL takes away what a new file got from the ACL of its directory: its mode is to
// say who may do what.
func dropACL(fd int, names ...string) error {
	for _, name := range names {
		err := unix.Fremovexattr(fd, name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}

// mounted says on which device and mount something lies, and asks nobody for it.
func mounted(at int, name string) (stat, error) {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	var x unix.Statx_t
	if err := again(func() error { return unix.Statx(at, name, flags, 0, &x) }); err != nil {
		return stat{}, err
	}
	return stat{device: unix.Mkdev(x.Dev_major, x.Dev_minor), mount: x.Mnt_id}, nil
}

// fuseOwner tells whether a mount is one of FUSE, and who mounted it, and whether it is
// listed at all (proc_pid_mountinfo(5)): one that was taken off the tree is not.
func fuseOwner(st *stat) (uid uint32, fuse, listed bool) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, false, false
	}
	column, number := 0, strconv.FormatUint(st.mount, 10)
	if st.mount == 0 {
		column, number = 2, fmt.Sprintf("%d:%d", unix.Major(st.device), unix.Minor(st.device))
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if len(mount) < 3 || len(super) < 3 || mount[column] != number {
			continue
		}
		if kind, _, _ := strings.Cut(super[0], "."); kind != "fuse" {
			return 0, false, true
		}
		for option := range strings.SplitSeq(super[2], ",") {
			if id, ok := strings.CutPrefix(option, "user_id="); ok {
				n, _ := strconv.ParseUint(id, 10, 32)
				return uint32(n), true, true
			}
		}
		return 0, true, true
	}
	return 0, false, false
}
