package fsat_test

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// unsafe is what speaks against giving what stands at a path to alice, for all to read.
func (w *tree) unsafe(p string) string {
	w.t.Helper()
	found, err := w.Look(p)
	w.check(err)
	return found.Unsafe(node(found.Kind, 0o644, alice))
}

// TestHidden: a file that everybody may read says nothing of who could get to it. She
// moved root's directory, which she cannot enter, to a name where something is appended.
func TestHidden(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "dir:0700:0 /home/alice/backup", "file:0644:0 /home/alice/backup/f secret",
		"dir:0755:0 /home/alice/backup/in", "file:0644:0 /home/alice/backup/in/f secret", "file:0600:4001 /home/alice/backup/hers x",
		"dir:0711:0 /home/alice/open", "file:0644:0 /home/alice/open/f x", "dir:0700:4001 /home/alice/own", "file:0644:0 /home/alice/own/f x")
	as(t, alice, func() error { return os.Rename(w.at("/home/alice/backup"), w.at("/home/alice/d")) })
	for p, hidden := range map[string]bool{
		"/home/alice/d/f": true, "/home/alice/d/in": true, "/home/alice/d/in/f": true,
		"/home/alice/d/hers": false, "/home/alice/open/f": false, "/home/alice/own/f": false,
	} {
		if why := w.unsafe(p); why != "" != hidden {
			t.Errorf("%s: %q", p, why)
		}
	}
}

// TestMovedToSticky: what root alone may read lay in her home, and she moved it into /tmp.
func TestMovedToSticky(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0600:0 /home/alice/secret x", "dir:1777 /tmp", "file:0644:0 /tmp/public x", "dir:0700:0 /tmp/roots")
	as(t, alice, func() error { return os.Rename(w.at("/home/alice/secret"), w.at("/tmp/report")) })
	if w.unsafe("/tmp/report") == "" || w.unsafe("/tmp/public") != "" || w.unsafe("/tmp/roots") != "" {
		t.Error(w.unsafe("/tmp/report"), w.unsafe("/tmp/public"), w.unsafe("/tmp/roots"))
	}
	err := w.Own("/tmp/report", like(disk.File, 0o644, alice), nil, disk.Node{})
	blocked(t, err, "/tmp/report", "/tmp:0", "would be opened to others")
}

// TestGuest: she can move a mount of root's in her home to another name. Root's files are
// written in it, and nothing of hers.
func TestGuest(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "dir:0755:4001 /home/alice/data", "dir:0755:4001 /home/alice/disk", "dir:0755:4001 /srv/hers", "file /srv/data/f x")
	for from, to := range map[string]string{"/srv/data": "/home/alice/data", "/srv/hers": "/home/alice/disk"} {
		w.check(unix.Mount(w.at(from), w.at(to), "", unix.MS_BIND, ""))
		t.Cleanup(func() { w.Forget(); w.check(unix.Unmount(w.at(to), unix.MNT_DETACH)) })
	}
	create := func(p string, uid int) error {
		id, err := w.Create(p, ".new.tmp", like(disk.File, 0o644, uid), nothing)
		if err == nil {
			_, err = w.Rename(p, ".new.tmp", id)
		}
		return err
	}
	w.check(errors.Join(create("/home/alice/data/new", 0), create("/home/alice/disk/new", alice)))
	const why = "a file system that is not his is mounted there"
	blocked(t, create("/home/alice/data/new", alice), "/home/alice/data/new", "/home/alice:4001", why)
	blocked(t, w.Mkdir("/home/alice/data/dir", like(disk.Directory, 0o755, alice)), "/home/alice/data/dir", "/home/alice:4001", why)
	blocked(t, second(w.Symlink("/home/alice/data/l", "l.tmp", "f", like(disk.Link, 0, alice))), "/home/alice/data/l", "/home/alice:4001", why)
	for _, p := range []string{"/home/alice/data", "/home/alice/data/f"} {
		found, err := w.Look(p)
		w.check(err)
		blocked(t, w.Own(p, like(found.Kind, 0o755, alice), nil, disk.Node{}), p, "/home/alice:4001", why)
	}
	w.check(w.Own("/home/alice/disk", like(disk.Directory, 0o750, bob), nil, disk.Node{}))
}

// TestAttributesThatHide: what root noted at a file of his is not hers to read.
func TestAttributesThatHide(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0600:0 /home/alice/f x")
	if err := unix.Setxattr(w.at("/home/alice/f"), "user.token", []byte("secret"), 0); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("LEFT OUT: no extended attributes here")
	}
	id, err := w.Create("/home/alice/f", "f.tmp", like(disk.File, 0o644, alice), nothing)
	w.check(errors.Join(err, second(w.Rename("/home/alice/f", "f.tmp", id))))
	if n, err := unix.Getxattr(w.at("/home/alice/f"), "user.token", make([]byte, 10)); err == nil {
		t.Errorf("she reads %d bytes", n)
	}
}

// TestExpect: the bytes of somebody's file are those that the plan saw, or the path is
// blocked; root changes his own when he likes.
func TestExpect(t *testing.T) {
	w := newTree(t, "file:0644:4001 /etc/hers seen", "file /etc/roots seen", "file:0644:4001 /etc/short seen")
	read := func(p, want string, change func(p string) error) error {
		f, err := w.Open(t.Context(), p, fsat.Most)
		w.check(err)
		defer f.Close()
		f.Expect(sum(want))
		w.check(change(w.at(p)))
		_, err = io.Copy(io.Discard, f)
		return err
	}
	same := func(string) error { return nil }
	other := func(p string) error { return os.WriteFile(p, []byte("else"), 0) }
	w.check(errors.Join(read("/etc/hers", "seen", same), read("/etc/roots", "seen", other)))
	blocked(t, read("/etc/hers", "seen", other), "/etc/hers", "/etc/hers:4001", "read: somebody put something else there meanwhile")
	blocked(t, read("/etc/short", "seen", func(p string) error { return os.Truncate(p, 1) }), "/etc/short", "/etc/short:4001", "read: somebody put something else there meanwhile")
}
