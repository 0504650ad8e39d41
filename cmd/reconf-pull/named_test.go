package main_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// named are all calls that may name a file.
var named = swapWatch.with(map[uint64]string{
	unix.SYS_TRUNCATE: "truncate", unix.SYS_CHDIR: "chdir", unix.SYS_CHROOT: "chroot",
	unix.SYS_UTIMENSAT: "utimensat", unix.SYS_MKNODAT: "mknodat",
	unix.SYS_INOTIFY_ADD_WATCH: "inotify_add_watch", unix.SYS_NAME_TO_HANDLE_AT: "name_to_handle_at",
})

// byName are the files that a call names itself, instead of in a directory that is open.
func (c call) byName() (names []string) {
	at := func(dir, name uint64) {
		switch text := c.text(name); {
		case filepath.IsAbs(text):
			names = append(names, filepath.Clean(text))
		case text != "" && int32(dir) == unix.AT_FDCWD:
			names = append(names, filepath.Join(c.file(dir), text))
		}
	}
	const cwd = here
	switch c.name {
	case "write", "pwrite64", "sendfile", "copy_file_range", "fsync", "fdatasync", "syncfs", "ftruncate", "fallocate",
		"fchmod", "fchown", "fsetxattr", "fremovexattr", "fstat", "getdents64", "fgetxattr", "flistxattr", "fstatfs":
	case "chown", "lchown", "chmod", "setxattr", "lsetxattr", "removexattr", "lremovexattr",
		"getxattr", "lgetxattr", "listxattr", "llistxattr", "statfs", "truncate", "chdir", "chroot":
		at(cwd, c.args[0])
	case "inotify_add_watch":
		at(cwd, c.args[1])
	case "symlinkat":
		at(c.args[1], c.args[2])
	case "renameat", "renameat2", "linkat":
		at(c.args[0], c.args[1])
		at(c.args[2], c.args[3])
	default:
		at(c.args[0], c.args[1])
	}
	return names
}

// ownLooks are names below the root that the agent looks up as they are: whether the root
// is a directory, and on the way to the scripts that are installed on the host, which are
// trusted only where nobody but root can write.
var ownLooks = []string{"newfstatat ", "newfstatat /etc", "newfstatat /etc/reconf-pull"}

// TestNoCallNamesAManagedPath: below the root directory everything is found from that
// directory's descriptor. A path that is handed to the kernel as a whole leads wherever a
// user of the host lets it lead.
func TestNoCallNamesAManagedPath(t *testing.T) {
	tr := newTrial(t)
	look := func(what, dir string) {
		root := filepath.Join(dir, "root")
		below, opened := 0, 0
		var wrong []string
		end := judged(t, tr.argv(dir), named, func(c call) verdict {
			if strings.HasPrefix(c.of(), root+"/") {
				below++
			}
			for _, name := range c.byName() {
				rel, here := strings.CutPrefix(name, root)
				switch call := c.name + " " + rel; {
				case !here || rel != "" && rel[0] != '/' || slices.Contains(ownLooks, call):
				case rel == "" && strings.HasPrefix(c.name, "openat"):
					opened++ // as a descriptor: the way to everything else
				default:
					wrong = append(wrong, call)
				}
			}
			return verdict{}
		})
		if !end.status.Exited() || end.status.ExitStatus() != 0 {
			t.Errorf("%s: ended with %v:\n%s", what, end.status, end.said)
		}
		slices.Sort(wrong)
		if wrong = slices.Compact(wrong); len(wrong) > 0 {
			t.Errorf("%s: named by a path:\n%s", what, strings.Join(wrong, "\n"))
		}
		if below == 0 || opened == 0 {
			t.Errorf("%s: %d calls below the root, which is opened %d times: the wrong calls are watched", what, below, opened)
		}
		counted(t, "%s: %d calls below the root, which is opened %d times", what, below, opened)
	}
	tr.push(few)
	dir := tr.place()
	look("first run", dir)
	look("nothing to do", dir)
	tr.push(fewLater)
	look("update", dir)
}
