package fsat_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// node is what is wanted: a kind, a mode, an owner, who is his group, too.
func node(kind disk.Kind, mode uint32, uid int) disk.Node {
	return disk.Node{Kind: kind, Mode: mode, UID: uid, GID: uid}
}

func like(kind disk.Kind, mode uint32, uid int) fsat.Attributes {
	return fsat.Attributes{Node: node(kind, mode, uid)}
}

// TestUnsafe says of everything that somebody may have put in his place whether it may
// become something else as it is.
func TestUnsafe(t *testing.T) {
	const opened, setID, names = "would be opened to others", "would get set-id bits", "has 2 names"
	hers, nobodys := fsat.Place{Path: "/home/alice", UID: alice}, fsat.Place{Path: "/usr/local"}
	file, dir := disk.File, disk.Directory
	for _, c := range []struct {
		place  fsat.Place
		is     disk.Node
		links  uint64
		wanted disk.Node
		why    string
	}{
		// In root's place nobody else moves anything about.
		{fsat.Place{}, node(file, 0o600, 0), 2, node(file, 0o4777, alice), ""},
		// Her own files get any owner and mode but set-id bits.
		{hers, node(file, 0o600, alice), 1, node(file, 0o644, 0), ""},
		{hers, node(file, 0o600, alice), 1, node(file, 0o666, bob), ""},
		{hers, node(file, 0o644, alice), 1, node(file, 0o4755, 0), setID},
		{hers, node(file, 0o644, alice), 1, node(file, 0o4755, alice), setID},
		{hers, node(file, 0o644, alice), 1, node(file, 0o2755, alice), setID},
		{hers, node(file, 0o4755, alice), 1, node(file, 0o755, alice), ""},
		{hers, node(file, 0o644, alice), 2, node(file, 0o644, 0), names},
		{hers, node(file, 0o644, alice), 2, node(file, 0o600, alice), names},
		// Nothing is done to what is as it should be.
		{hers, node(file, 0o4755, 0), 2, node(file, 0o4755, 0), ""},
		{hers, node(file, 0o600, 0), 2, node(file, 0o600, 0), ""},
		// Of others that everybody may read nothing comes out.
		{hers, node(file, 0o644, 0), 1, node(file, 0o600, alice), ""},
		{hers, node(file, 0o644, bob), 1, node(file, 0o666, alice), ""},
		{hers, node(file, 0o4755, 0), 1, node(file, 0o755, 0), ""}, // becomes less
		{hers, node(file, 0o4755, 0), 1, node(file, 0o755, alice), opened},
		{hers, node(file, 0o2755, 0), 1, node(file, 0o755, alice), opened},
		{hers, node(file, 0o644, 0), 2, node(file, 0o644, alice), names},
		// Root's and bob's secrets stay theirs.
		{hers, node(file, 0o600, 0), 1, node(file, 0o600, alice), opened},
		{hers, node(file, 0o600, 0), 1, node(file, 0o644, 0), opened},
		{hers, node(file, 0o640, 0), 1, node(file, 0o600, 0), ""},
		{hers, node(file, 0o640, 0), 1, node(file, 0o604, 0), opened},
		{hers, node(file, 0o600, bob), 1, node(file, 0o600, alice), opened},
		{hers, node(file, 0o600, bob), 1, node(file, 0o000, bob), ""},
		{hers, disk.Node{Kind: file, Mode: 0o640, GID: staff}, 1, node(file, 0o640, 0), opened},
		// Directories of root's that only he could enter lie in hers, moved there by her.
		{hers, node(dir, 0o755, 0), 2, node(dir, 0o700, alice), ""},
		{hers, node(dir, 0o2755, 0), 2, node(dir, 0o755, alice), ""},
		{hers, node(dir, 0o1777, 0), 2, node(dir, 0o755, alice), ""},
		{hers, node(dir, 0o700, 0), 2, node(dir, 0o700, alice), opened},
		{hers, node(dir, 0o700, 0), 2, node(dir, 0o755, 0), opened},
		{hers, node(dir, 0o750, 0), 2, node(dir, 0o700, 0), ""},
		{hers, node(dir, 0o754, 0), 2, node(dir, 0o755, 0), opened}, // they may see names only
		{hers, node(dir, 0o711, 0), 2, node(dir, 0o755, 0), opened},
		{hers, node(dir, 0o700, alice), 2, node(dir, 0o755, 0), ""},
		{hers, node(dir, 0o700, alice), 2, node(dir, 0o2755, bob), ""},
		{hers, node(dir, 0o700, bob), 2, node(dir, 0o700, alice), opened},
		// Where many may write, nothing is anybody's own.
		{nobodys, node(file, 0o600, alice), 1, node(file, 0o644, 0), opened},
		{nobodys, node(file, 0o600, 0), 1, node(file, 0o644, 0), opened},
		{nobodys, node(file, 0o644, 0), 1, node(file, 0o600, 0), ""},
		{nobodys, node(dir, 0o2775, 0), 2, node(dir, 0o755, 0), ""},
		// Links, and what is absent, hide nothing.
		{hers, disk.Node{Kind: disk.Link, Target: "/etc/shadow"}, 1, disk.Node{Kind: disk.Link, Target: "/etc/shadow", UID: alice}, ""},
		{hers, disk.Node{}, 0, node(file, 0o4755, 0), ""},
	} {
		f := fsat.Found{Node: c.is, Place: c.place, Links: c.links}
		why := f.Unsafe(c.wanted)
		if c.why == "" && why != "" || !strings.Contains(why, c.why) {
			t.Errorf("%s %04o of %d in %s is to be %04o of %d: %q, want %q", c.is.Kind, c.is.Mode, c.is.UID, c.place, c.wanted.Mode, c.wanted.UID, why, c.why)
		}
	}
}

// places are where everything is made: root's, alice's, and one with an ACL that things
// made in it would inherit.
var places = []string{"/etc", "/home/alice", "/tmp", "/acl"}

func newPlaces(t *testing.T) *tree {
	w := newTree(t, "dir /etc", "dir:2775:4001:50 /home/alice", "dir:1777 /tmp", "dir:0755:4001 /acl")
	setACL(t, w.at("/acl"), "system.posix_acl_default", bob)
	return w
}

// noACL requires that the mode says who may do what.
func (w *tree) noACL(p string) {
	w.t.Helper()
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		if n, err := unix.Getxattr(w.at(p), name, nil); err == nil {
			w.t.Errorf("%s of %s has %d bytes", name, p, n)
		}
	}
}

// TestCreate: nobody but root can do anything with a file before it is whole, and it has
// its owner before its set-id bits.
func TestCreate(t *testing.T) {
	for _, dir := range places {
		t.Run(dir, func(t *testing.T) {
			w := newPlaces(t)
			for i, is := range []fsat.Attributes{
				like(disk.File, 0o644, 0), like(disk.File, 0o600, alice), like(disk.File, 0o4755, 0), like(disk.File, 0o6711, alice),
				like(disk.File, 0o000, bob), {Node: disk.Node{Kind: disk.File, Mode: 0o2755, GID: staff}}, like(disk.File, 0o1666, 0),
			} {
				p, temp := fmt.Sprintf("%s/f%d", dir, i), dir+"/.f.tmp"
				id, err := w.Create(p, ".f.tmp", is, func(d *fsat.Draft) error {
					_, err := d.Write([]byte("half"))
					var st unix.Stat_t
					w.check(errors.Join(err, unix.Lstat(w.at(temp), &st)))
					if st.Mode != unix.S_IFREG|0o600 || st.Uid != 0 {
						t.Errorf("it is %o of %d before it is whole", st.Mode, st.Uid)
					}
					return nil
				})
				w.check(err)
				want := fmt.Sprintf("%04o %d:%d half", is.Node.Mode, is.Node.UID, is.Node.GID)
				if got := w.describe(temp); got != want {
					t.Errorf("%s, want %s", got, want)
				}
				if _, err := os.Lstat(w.at(p)); err == nil {
					t.Error("it is in its place already")
				}
				changed, err := w.Rename(p, ".f.tmp", id)
				if got := w.describe(p); err != nil || !changed || got != want {
					t.Errorf("%s, %v, want %s", got, err, want)
				}
				w.noACL(p)
			}
		})
	}
}

// TestLeftovers of a crash are not taken over, whatever somebody made of them.
func TestLeftovers(t *testing.T) {
	for _, dir := range places {
		for _, kind := range []string{"file:0666", "file:0400", "link:0777", "fifo:0666"} {
			w := newPlaces(t)
			w.put("file /victim untouched", kind+":4002 "+dir+"/.f.tmp /victim")
			id, err := w.Create(dir+"/f", ".f.tmp", like(disk.File, 0o644, 0), func(d *fsat.Draft) error { _, err := d.Write([]byte("new")); return err })
			if w.check(err); w.describe(dir+"/.f.tmp") != "0644 0:0 new" {
				t.Errorf("%s in %s: %s", kind, dir, w.describe(dir+"/.f.tmp"))
			}
			w.put("file " + dir + "/f old")
			w.check(second(w.Rename(dir+"/f", ".f.tmp", id)))
			w.put(kind + ":4002 " + dir + "/.f.tmp /victim")
			w.check(second(w.Symlink(dir+"/l", ".f.tmp", "target", like(disk.Link, 0, bob))))
			if got := w.describe(dir + "/.f.tmp"); got != "4002:4002 -> target" {
				t.Error(got)
			}
			w.check(os.Remove(w.at(dir + "/.f.tmp")))
			w.put(kind + ":4002 " + dir + "/.f.tmp /victim")
			w.check(second(w.Link(dir+"/h", ".f.tmp", dir+"/f")))
			if got := w.describe(dir + "/.f.tmp"); got != "0644 0:0 new" {
				t.Error(got)
			}
			w.check(w.RemoveBeside(dir+"/h", ".f.tmp"))
			w.check(w.RemoveBeside(dir+"/h", ".f.tmp"))
			if got := w.describe("/victim"); got != "0644 0:0 untouched" {
				t.Error(got)
			}
		}
		// A directory is nothing that we left there.
		w := newPlaces(t)
		w.put("dir:0755:4001 " + dir + "/.f.tmp")
		for what, err := range map[string]error{
			"Create":       second(w.Create(dir+"/f", ".f.tmp", like(disk.File, 0o644, 0), nothing)),
			"Symlink":      second(w.Symlink(dir+"/f", ".f.tmp", "target", like(disk.Link, 0, bob))),
			"RemoveBeside": w.RemoveBeside(dir+"/f", ".f.tmp"),
		} {
			switch dir {
			case "/etc":
				failed(t, err, dir+"/.f.tmp", unix.EISDIR)
			case "/tmp":
				blocked(t, err, dir+"/.f.tmp", "/tmp:0", "remove: is a directory")
			default:
				if blocked(t, err, dir+"/.f.tmp", dir+":4001", "remove: is a directory"); t.Failed() {
					t.Log(what)
				}
			}
		}
	}
}

// TestFailedCreate: in somebody's place nothing of it is left, because the change goes
// on; in root's the change ends, and takes away what it left.
func TestFailedCreate(t *testing.T) {
	w := newPlaces(t)
	broken := errors.New("the disk is broken")
	for dir, left := range map[string]bool{"/etc": true, "/home/alice": false} {
		_, err := w.Create(dir+"/f", "f.tmp", like(disk.File, 0o644, 0), func(*fsat.Draft) error { return broken })
		if _, stat := os.Lstat(w.at(dir + "/f.tmp")); !errors.Is(err, broken) || (stat == nil) != left {
			t.Errorf("%s: %v, %v", dir, err, stat)
		}
	}
	// A full disk is the fault of whoever has the place, as far as one can tell.
	for dir, owner := range map[string]int{"/full": 0, "/hers": alice} {
		w.check(errors.Join(os.Mkdir(w.at(dir), 0o755), unix.Mount("tmpfs", w.at(dir), "tmpfs", 0, fmt.Sprintf("size=64k,mode=0755,uid=%d", owner))))
		t.Cleanup(func() { w.Forget(); w.check(unix.Unmount(w.at(dir), unix.MNT_DETACH)) })
		_, err := w.Create(dir+"/f", "f.tmp", like(disk.File, 0o644, 0), func(d *fsat.Draft) error {
			_, err := d.Write(make([]byte, 1<<20))
			return err
		})
		if owner == 0 {
			failed(t, err, dir+"/f.tmp", unix.ENOSPC)
		} else {
			blocked(t, err, dir+"/f.tmp", dir+":4001", "write: no space left on device")
		}
	}
}

// TestOwnAttributesAreKept: those that a user gave the file that is replaced.
func TestOwnAttributesAreKept(t *testing.T) {
	for _, dir := range []string{"/etc", "/home/alice"} {
		w := newPlaces(t)
		w.put("file:0644:4001 " + dir + "/f old")
		w.check(unix.Setxattr(w.at(dir+"/f"), "user.note", []byte("mine"), 0))
		w.check(unix.Setxattr(w.at(dir+"/f"), "trusted.other", []byte("no"), 0))
		setACL(t, w.at(dir+"/f"), "system.posix_acl_access", bob)
		id, err := w.Create(dir+"/f", "f.tmp", like(disk.File, 0o640, 0), nothing)
		w.check(errors.Join(err, second(w.Rename(dir+"/f", "f.tmp", id))))
		value := make([]byte, 10)
		if n, err := unix.Getxattr(w.at(dir+"/f"), "user.note", value); err != nil || string(value[:n]) != "mine" {
			t.Errorf("%s: %q, %v", dir, value, err)
		}
		if _, err := unix.Getxattr(w.at(dir+"/f"), "trusted.other", value); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s: %v", dir, err)
		}
		w.noACL(dir + "/f")
		if got := w.describe(dir + "/f"); got != "0640 0:0 " {
			t.Error(got)
		}
	}
}

// TestRename puts in place what was made and nothing else.
func TestRename(t *testing.T) {
	w := newPlaces(t)
	is := like(disk.File, 0o644, 0)
	for _, dir := range []string{"/etc", "/home/alice", "/tmp"} {
		place := map[string]string{"/home/alice": "/home/alice:4001", "/tmp": "/tmp:0"}[dir]
		wrong := func(err error, p, why string, errno error) {
			t.Helper()
			if dir == "/etc" {
				failed(t, err, p, errno)
			} else {
				blocked(t, err, p, place, why)
			}
		}
		id, err := w.Create(dir+"/f", "f.tmp", is, nothing)
		w.check(err)
		w.put("file:0644:4001 "+dir+"/other hers", "file "+dir+"/f before")
		// It was swapped.
		w.check(os.Rename(w.at(dir+"/other"), w.at(dir+"/f.tmp")))
		changed, err := w.Rename(dir+"/f", "f.tmp", id)
		var is1 *fsat.BlockedError
		if dir == "/etc" && (err == nil || errors.As(err, &is1)) {
			t.Errorf("%s: %v", dir, err)
		} else if dir != "/etc" {
			blocked(t, err, dir+"/f.tmp", place, "rename: somebody put something else there meanwhile")
		}
		if got := w.describe(dir + "/f"); changed || got != "0644 0:0 before" {
			t.Errorf("%v, %s", changed, got)
		}
		// It is gone.
		w.check(os.Remove(w.at(dir + "/f.tmp")))
		changed, err = w.Rename(dir+"/f", "f.tmp", id)
		if wrong(err, dir+"/f.tmp", "rename: no such file or directory", unix.ENOENT); changed {
			t.Error("nothing was changed")
		}
		// An empty directory makes room, another one does not.
		w.put("dir "+dir+"/empty", "file:0644:4001 "+dir+"/full/x")
		id, err = w.Create(dir+"/empty", "f.tmp", is, nothing)
		w.check(err)
		if changed, err := w.Rename(dir+"/empty", "f.tmp", id); err != nil || !changed || w.describe(dir+"/empty") != "0644 0:0 " {
			t.Errorf("%v, %v", changed, err)
		}
		id, err = w.Create(dir+"/full", "f.tmp", is, nothing)
		w.check(err)
		changed, err = w.Rename(dir+"/full", "f.tmp", id)
		if wrong(err, dir+"/full", "rmdir: directory not empty", unix.ENOTEMPTY); changed || w.describe(dir+"/full/x") != "0644 4001:4001 " {
			t.Error("something was changed")
		}
		w.check(w.RemoveBeside(dir+"/full", "f.tmp"))
		// A link is replaced, not followed.
		w.put("file:0600 /victim untouched", "link:0777:4001 "+dir+"/link /victim")
		id, err = w.Create(dir+"/link", "f.tmp", is, nothing)
		w.check(errors.Join(err, second(w.Rename(dir+"/link", "f.tmp", id))))
		if w.describe(dir+"/link") != "0644 0:0 " || w.describe("/victim") != "0600 0:0 untouched" {
			t.Errorf("%s, %s", w.describe(dir+"/link"), w.describe("/victim"))
		}
	}
}

// TestMkdir: a directory is root's alone until it has its owner, and inherits nothing.
func TestMkdir(t *testing.T) {
	for _, dir := range places {
		w := newPlaces(t)
		for i, is := range []fsat.Attributes{like(disk.Directory, 0o755, 0), like(disk.Directory, 0o700, alice), like(disk.Directory, 0o2775, bob), like(disk.Directory, 0o1777, 0)} {
			p := fmt.Sprintf("%s/d%d", dir, i)
			w.check(w.Mkdir(p, is))
			if got, want := w.describe(p), fmt.Sprintf("%04o %d:%d /", is.Node.Mode, is.Node.UID, is.Node.GID); got != want {
				t.Errorf("%s: %s, want %s", p, got, want)
			}
			w.noACL(p)
			err := w.Mkdir(p, is)
			switch dir {
			case "/etc":
				failed(t, err, p, unix.EEXIST)
			case "/tmp":
				blocked(t, err, p, "/tmp:0", "mkdir: file exists")
			default:
				blocked(t, err, p, dir+":4001", "mkdir: file exists")
			}
		}
	}
}

// TestOwn changes what was looked at, and only what may be.
func TestOwn(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0600 /home/alice/roots secret", "file:0600:4001 /home/alice/hers x",
		"dir:0700 /home/alice/dir", "link:0777:4001 /home/alice/link /etc/f", "file:0600 /etc/f f", "dir:0700 /etc/d", "link /etc/link f", "link /etc/other f")
	own := func(p string, is fsat.Attributes, known *fsat.Known, had disk.Node, want string) {
		t.Helper()
		w.check(w.Own(p, is, known, had))
		if got := w.describe(p); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	own("/etc/f", like(disk.File, 0o4755, alice), nil, disk.Node{}, "4755 4001:4001 f")
	own("/etc/f", like(disk.File, 0o4750, alice), nil, disk.Node{}, "4750 4001:4001 f")
	own("/etc/f", like(disk.File, 0o755, bob), nil, disk.Node{}, "0755 4002:4002 f")
	blocked(t, w.Own("/etc/f", like(disk.File, 0o4755, 0), nil, disk.Node{}), "/etc/f", "/etc/f:4002", "what is there would get set-id bits")
	own("/etc/d", like(disk.Directory, 0o2775, alice), nil, disk.Node{}, "2775 4001:4001 /")
	own("/etc/link", like(disk.Link, 0, alice), nil, disk.Node{}, "4001:4001 -> f")
	own("/home/alice/hers", like(disk.File, 0o644, 0), nil, disk.Node{}, "0644 0:0 x")
	own("/home/alice/link", like(disk.Link, 0, 0), nil, disk.Node{}, "0:0 -> /etc/f")

	blocked(t, w.Own("/home/alice/roots", like(disk.File, 0o644, alice), nil, disk.Node{}), "/home/alice/roots", "/home/alice:4001", "would be opened to others")
	roots, err := w.Look("/home/alice/roots")
	w.check(err)
	blocked(t, w.Own("/home/alice/roots", like(disk.File, 0o644, alice), roots.Known(), roots.Node), "/home/alice/roots", "/home/alice:4001", "would be opened to others")
	d, err := w.Look("/home/alice/dir")
	w.check(err)
	blocked(t, w.Own("/home/alice/dir", like(disk.Directory, 0o755, alice), nil, disk.Node{}), "/home/alice/dir", "/home/alice:4001", "would be opened to others")
	another, changed := *d.Known(), d.Node
	another.Born, changed.Mode = another.Born+1, 0o711
	for known, had := range map[*fsat.Known]disk.Node{&another: d.Node, d.Known(): changed} {
		blocked(t, w.Own("/home/alice/dir", like(disk.Directory, 0o755, alice), known, had), "/home/alice/dir", "/home/alice:4001", "would be opened to others")
	}
	if got := w.describe("/home/alice/dir"); got != "0700 0:0 /" {
		t.Error(got)
	}
	own("/home/alice/dir", like(disk.Directory, 0o755, alice), d.Known(), d.Node, "0755 4001:4001 /")

	// Another kind stands there.
	for _, p := range []string{"/home/alice/link", "/home/alice/dir"} {
		blocked(t, w.Own(p, like(disk.File, 0o644, 0), nil, disk.Node{}), p, "/home/alice:4001", "chown: somebody put something else there meanwhile")
	}
	var is *fsat.BlockedError
	if err := w.Own("/etc/other", like(disk.File, 0o644, 0), nil, disk.Node{}); err == nil || errors.As(err, &is) {
		t.Error(err)
	}
	failed(t, w.Own("/etc/absent", like(disk.File, 0o644, 0), nil, disk.Node{}), "/etc/absent", unix.ENOENT)
	if got := w.describe("/etc/f"); got != "0755 4002:4002 f" {
		t.Errorf("a link was followed: %s", got)
	}
}

// TestLink: no file of somebody's gets a name in root's place, where he could go on to
// write to it. Root's may get one in his.
func TestLink(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0644:4001 /home/alice/hers hers", "file:0644:0 /home/alice/roots roots",
		"file:0600 /etc/f root's", "dir:1777 /tmp", "file:0644:4001 /tmp/hers", "link /etc/l f", "file:0644:4001 /etc/given")
	for _, target := range []string{"/home/alice/hers", "/home/alice/roots"} {
		for _, p := range []string{"/etc/new", "/tmp/new"} {
			blocked(t, second(w.Link(p, "new.tmp", target)), p, "/home/alice:4001", "it would be a name for "+target)
		}
		w.check(second(w.Link("/home/alice/new", "new.tmp", target)))
	}
	blocked(t, second(w.Link("/etc/new", "new.tmp", "/tmp/hers")), "/etc/new", "/tmp/hers:4001", "it would be a name for /tmp/hers")
	for _, p := range []string{"/etc/new", "/home/alice/new", "/tmp/new"} {
		for _, target := range []string{"/etc/f", "/etc/given"} {
			id, err := w.Link(p, "new.tmp", target)
			w.check(errors.Join(err, second(w.Rename(p, "new.tmp", id))))
			one, err1 := w.Look(p)
			two, err2 := w.Look(target)
			if err1 != nil || err2 != nil || !one.SameFile(&two) {
				t.Errorf("%s is not %s: %v %v", p, target, err1, err2)
			}
			w.check(os.Remove(w.at(p)))
		}
	}
	failed(t, second(w.Link("/etc/new", "new.tmp", "/etc/l")), "/etc/l", unix.EINVAL)
	failed(t, second(w.Link("/etc/new", "new.tmp", "/etc")), "/etc", unix.EINVAL)
	failed(t, second(w.Link("/etc/new", "new.tmp", "/etc/absent")), "/etc/absent", unix.ENOENT)
	failed(t, second(w.Link("/absent/new", "new.tmp", "/etc/f")), "/absent/new", unix.ENOENT)
	if _, err := os.Lstat(w.at("/etc/new.tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a leftover")
	}
}

// TestRemove removes what is there, of directories only an empty one, and no link's end.
func TestRemove(t *testing.T) {
	for _, dir := range []string{"/etc", "/home/alice", "/tmp"} {
		w := newPlaces(t)
		w.put("file:0644:4001 "+dir+"/f", "file "+dir+"/full/x", "dir "+dir+"/empty", "link "+dir+"/l full", "fifo "+dir+"/fifo")
		for _, name := range []string{"f", "empty", "l", "fifo"} {
			if removed, err := w.Remove(dir + "/" + name); !removed || err != nil {
				t.Errorf("%s: %v, %v", name, removed, err)
			}
			if removed, err := w.Remove(dir + "/" + name); removed || err != nil {
				t.Errorf("%s again: %v, %v", name, removed, err)
			}
		}
		if removed, err := w.Remove(dir + "/full"); removed || !errors.Is(err, fsat.ErrNotEmpty) {
			t.Errorf("%v, %v", removed, err)
		}
		if removed, err := w.Remove(dir + "/absent/x"); removed || err != nil {
			t.Errorf("%v, %v", removed, err)
		}
		w.check(errors.Join(w.Sync(dir), w.SyncFS(dir), w.RemoveBeside(dir+"/absent/x", "x.tmp"), w.RemoveBeside(dir+"/full/x/y", "x.tmp")))
		if got := w.describe(dir + "/full/x"); got != "0644 0:0 " {
			t.Error(got)
		}
	}
}

// TestImmutable: chattr(1) is root's doing, also in somebody's place, where all else
// goes on.
func TestImmutable(t *testing.T) {
	w := newTree(t, "file /etc/f", "dir:0755:4001 /home/alice", "file:0644:4001 /home/alice/f")
	for _, p := range []string{"/etc/f", "/home/alice/f"} {
		flags := func(n int) error {
			f, err := os.Open(w.at(p))
			w.check(err)
			defer f.Close()
			return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, n)
		}
		if err := flags(unix.STATX_ATTR_IMMUTABLE); err != nil {
			t.Skipf("LEFT OUT: no inode flags: %v", err)
		}
		t.Cleanup(func() { _ = flags(0) })
		if found, err := w.Look(p); err != nil || !found.Immutable {
			t.Errorf("%s is not immutable, %v", p, err)
		}
		for what, err := range map[string]error{"Own": w.Own(p, like(disk.File, 0o600, 0), nil, disk.Node{}), "Remove": second(w.Remove(p))} {
			var is *fsat.BlockedError
			if !errors.Is(err, unix.EPERM) || errors.As(err, &is) != (p != "/etc/f") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}
