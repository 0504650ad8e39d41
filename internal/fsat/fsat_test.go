package fsat_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

// alice and bob are users that no host has; staff is a group of Debian.
const alice, bob, staff = 4001, 4002, 50

// tree is a root of real files.
type tree struct {
	*fsat.FS
	t    *testing.T
	root string
}

// newTree makes files that are said in lines, with their parents of root:
//
//	KIND[:MODE[:UID[:GID]]] PATH [TARGET or CONTENTS]
//
// KIND is dir, file, link, fifo, sock or dev. When the test ends, and Forget was
// called, no descriptor of anything below the root may be open.
func newTree(t *testing.T, lines ...string) *tree {
	t.Helper()
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: directories get owners")
	}
	w := &tree{t: t, root: t.TempDir()}
	w.check(os.Chmod(filepath.Dir(w.root), 0o755)) // for what alice does
	w.FS = fsat.New(w.root)
	w.put(lines...)
	t.Cleanup(func() {
		w.Forget()
		if open := w.open(); len(open) > 0 {
			t.Errorf("still open: %q", open)
		}
	})
	return w
}

func (w *tree) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *tree) at(p string) string { return filepath.Join(w.root, p) }

func (w *tree) put(lines ...string) {
	w.t.Helper()
	for _, line := range lines {
		head, rest, _ := strings.Cut(line, " ")
		p, rest, _ := strings.Cut(rest, " ")
		is := strings.Split(head, ":")
		w.check(os.MkdirAll(filepath.Dir(w.at(p)), 0o755))
		switch is[0] {
		case "dir":
			if err := os.Mkdir(w.at(p), 0o755); !errors.Is(err, fs.ErrExist) {
				w.check(err)
			}
		case "file":
			w.check(os.WriteFile(w.at(p), []byte(rest), 0o644))
		case "link":
			w.check(os.Symlink(rest, w.at(p)))
		default:
			kind := map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "dev": unix.S_IFCHR}[is[0]]
			w.check(unix.Mknod(w.at(p), kind|0o644, int(unix.Mkdev(1, 3)))) // null
		}
		n := []int{-1, 0, 0}
		for i, text := range is[1:] {
			number, err := strconv.ParseInt(text, map[bool]int{true: 8, false: 10}[i == 0], 32)
			w.check(err)
			n[i] = int(number)
		}
		if len(is) == 3 {
			n[2] = n[1]
		}
		w.check(os.Lchown(w.at(p), n[1], n[2]))
		if n[0] >= 0 && is[0] != "link" {
			w.check(unix.Chmod(w.at(p), uint32(n[0])))
		}
	}
}

// open lists what this process has open below the root.
func (w *tree) open() (open []string) {
	fds, err := os.ReadDir("/proc/self/fd")
	w.check(err)
	for _, fd := range fds {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(name, w.root) {
			open = append(open, strings.TrimPrefix(name, w.root)+"/")
		}
	}
	return open
}

// as does something as another user. Credentials are a thread's, which ends with it.
func as(t *testing.T, uid int, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, set := range []struct{ call, a, b, c uintptr }{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(set.call, set.a, set.b, set.c); errno != 0 {
				done <- fmt.Errorf("becoming uid %d: %w", uid, errno)
				return
			}
		}
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// soon fails the test where something waits for what somebody may never do.
func soon(t *testing.T, what string, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s waits", what)
		return nil
	}
}

// blocked requires that an error is that a path is blocked, where and why; %s in why is
// the path of the root.
func blocked(t *testing.T, err error, p, place, why string) {
	t.Helper()
	var is *fsat.BlockedError
	if !errors.As(err, &is) {
		t.Fatalf("%s: %v, want a blocked path", p, err)
	}
	if is.Path != p || owned(is.Place) != place || !strings.Contains(is.Reason, why) {
		t.Fatalf("%s in %s: %s; want %s in %s: …%s…", is.Path, owned(is.Place), is.Reason, p, place, why)
	}
}

// owned is a place in few letters.
func owned(p fsat.Place) string {
	if p.Root() {
		return "root"
	}
	return fmt.Sprintf("%s:%d", p.Path, p.UID)
}

// failed requires an error of a system call that concerns more than one path.
func failed(t *testing.T, err error, p string, errno error) {
	t.Helper()
	var (
		is  *fsat.BlockedError
		one *fs.PathError
	)
	if errors.As(err, &is) || !errors.Is(err, errno) || !errors.As(err, &one) || one.Path != p {
		t.Fatalf("%v, want %v of %s", err, errno, p)
	}
}

// setACL gives a user all rights by an ACL (acl(5)), which setfacl(1) writes so.
func setACL(t *testing.T, dir, name string, uid uint32) {
	t.Helper()
	data := []byte{2, 0, 0, 0}
	const userObj, user, groupObj, mask, other, nobody = 1, 2, 4, 16, 32, ^uint32(0)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{userObj, 7, nobody}, {user, 7, uid}, {groupObj, 5, nobody}, {mask, 7, nobody}, {other, 5, nobody}} {
		data = append(data, byte(e.tag), byte(e.tag>>8), byte(e.perm), byte(e.perm>>8),
			byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	if err := unix.Setxattr(dir, name, data, 0); err != nil {
		t.Fatal(err)
	}
}

func nothing(*fsat.Draft) error { return nil }

func sum(data string) string {
	s := sha256.Sum256([]byte(data))
	return hex.EncodeToString(s[:])
}

// describe is mode, owner and bytes of a file, or where a link leads.
func (w *tree) describe(p string) string {
	w.t.Helper()
	var st unix.Stat_t
	w.check(unix.Lstat(w.at(p), &st))
	text := fmt.Sprintf("%04o %d:%d ", st.Mode&0o7777, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(w.at(p))
		w.check(err)
		return fmt.Sprintf("%d:%d -> %s", st.Uid, st.Gid, target)
	case unix.S_IFDIR:
		return text + "/"
	case unix.S_IFREG:
		data, err := os.ReadFile(w.at(p))
		w.check(err)
		return text + string(data)
	}
	return text + "?"
}
