package fsat_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// TestLinksOfRoot are followed as the kernel does below a root of its own.
func TestLinksOfRoot(t *testing.T) {
	w := newTree(t, "file /real/deep/file inside",
		"link /relative real/deep", "link /absolute /real/deep", "link /dots real/../real/./deep/.",
		"link /slash real//deep/", "link /over ../../../../../../real/deep", "link /absoluteover /../../real/deep",
		"link /a/b/up ../../real/deep", "link /a/b/absolute /real/deep", "link /here .", "link /top /", "link /up ..",
		"link /real/deep/back ../../real", "link /lastlink real/deep/file", "link /lastabsolute /lastlink", "link /a/b/lastabsolute /real/deep/file",
		"link /home var/home", "file /var/home/core/f inside", "link /var/lib/x private/x", "file /var/lib/private/x/f inside")
	for asked, real := range map[string]string{
		"/relative/file": "/real/deep/file", "/absolute/file": "/real/deep/file", "/dots/file": "/real/deep/file",
		"/slash/file": "/real/deep/file", "/over/file": "/real/deep/file", "/absoluteover/file": "/real/deep/file",
		"/a/b/up/file": "/real/deep/file", "/a/b/absolute/file": "/real/deep/file", "/here/here/real/deep/file": "/real/deep/file",
		"/top/real/deep/file": "/real/deep/file", "/up/up/real/deep/file": "/real/deep/file",
		"/relative/back/deep/file": "/real/deep/file",
		"/home/core/f":             "/var/home/core/f", "/var/lib/x/f": "/var/lib/private/x/f",
	} {
		found, err := w.Read(context.Background(), asked, 0)
		if err != nil || found.Kind != disk.File || found.SHA256 != sum("inside") {
			t.Errorf("%s: %s, %v", asked, found.Kind, err)
		}
		dir := asked[:len(asked)-len("/file")]
		want := real[:len(real)-len("/file")]
		if real[len(real)-2:] == "/f" {
			dir, want = asked[:len(asked)-2], real[:len(real)-2]
		}
		if got := w.Resolve(dir); got != want {
			t.Errorf("%s is %s, want %s", dir, got, want)
		}
		ground, err := w.Ground(asked)
		if err != nil || ground.Path != dir {
			t.Errorf("the ground of %s is %s, %v", asked, ground.Path, err)
		}
		data, err := w.ReadFile(asked, 6)
		if err != nil || string(data) != "inside" {
			t.Errorf("%s: %q, %v", asked, data, err)
		}
	}
	if got := w.Resolve("/relative/not/there"); got != "/real/deep/not/there" {
		t.Error(got)
	}
	for _, asked := range []string{"/lastlink", "/lastabsolute", "/a/b/lastabsolute"} {
		found, err := w.Look(asked)
		if err != nil || found.Kind != disk.Link {
			t.Errorf("Look follows %s: %s, %v", asked, found.Kind, err)
		}
		found, err = w.Follow(asked)
		if err != nil || found.Path != "/real/deep/file" {
			t.Errorf("%s leads to %s, %v", asked, found.Path, err)
		}
		if data, err := w.ReadFile(asked, 6); err != nil || string(data) != "inside" {
			t.Errorf("%s: %q, %v", asked, data, err)
		}
		_, err = w.Open(context.Background(), asked, 10)
		failed(t, err, asked, unix.EINVAL)
	}
}

// TestRootIsNeverLeft: neither by "..", nor by an absolute link to what is outside.
func TestRootIsNeverLeft(t *testing.T) {
	w := newTree(t, "file /outside no", "file /root/outside yes",
		"link /root/up ../../../..", "link /root/file ../outside", "link /root/abs /outside", "link /root/rootdir /root")
	below := fsat.New(w.at("/root"))
	defer below.Forget()
	for _, p := range []string{"/up/outside", "/../outside", "/../../../outside", "/file", "/abs"} {
		if data, err := below.ReadFile(p, 10); err != nil || string(data) != "yes" {
			t.Errorf("%s: %q, %v", p, data, err)
		}
	}
	if found, err := below.Look("/rootdir/outside"); err != nil || found.Kind != disk.Absent {
		t.Errorf("/rootdir leads to %s, %v", found.Kind, err)
	}
}

// TestManyLinks: forty links are followed on one way, as by the kernel, and no more.
func TestManyLinks(t *testing.T) {
	w := newTree(t, "file /d/file", "link /l1 d", "link /loop loop", "link /a b", "link /b a/x", "link /self self/x")
	for i := 2; i <= 41; i++ {
		w.put(fmt.Sprintf("link /l%d l%d", i, i-1))
	}
	// Each of forty links may lead over others: they count together.
	w.put("link /twice l20", "link /l20/again ../l20")
	if !w.Exists("/l40/file") {
		t.Error("forty links are not followed")
	}
	for _, p := range []string{"/l41/file", "/l20/again/file", "/loop/file", "/a/file", "/self/file"} {
		for what, err := range map[string]error{
			"Look":     second(w.Look(p)),
			"Read":     second(w.Read(context.Background(), p, 10)),
			"Open":     second(w.Open(context.Background(), p, 10)),
			"Ground":   second(w.Ground(p)),
			"Follow":   second(w.Follow(p)),
			"ReadFile": second(w.ReadFile(p, 10)),
			"Names":    w.Names(p, func(string) bool { return true }),
			"Sync":     w.Sync(p),
		} {
			if !errors.Is(err, unix.ELOOP) {
				t.Errorf("%s %s: %v", what, p, err)
			}
		}
	}
	if err := second(w.Follow("/loop")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Follow /loop: %v", err)
	}
}

// TestLinksOfSomebody are not followed: not on the way and not at its end, whoever
// owns them, and wherever they lead.
func TestLinksOfSomebody(t *testing.T) {
	ctx := context.Background()
	w := newTree(t, "file:0600 /etc/shadow secret", "dir:0755:4001 /home/alice", "file /home/alice/real/file hers",
		"link:0777:4001 /home/alice/etc /etc", "link:0777:0 /home/alice/roots /etc", "link:0777:4001 /home/alice/relative real",
		"link:0777:4001 /home/alice/file real/file", "link:0777:4001 /home/alice/dangling nowhere",
		"link /in home/alice/etc", "link /direct home/alice/real", "link /last home/alice/file", "link /infile home/alice/real/file")
	for _, c := range []struct{ p, here string }{
		{"/home/alice/etc/shadow", "/home/alice/etc"}, {"/home/alice/roots/shadow", "/home/alice/roots"},
		{"/home/alice/relative/file", "/home/alice/relative"}, {"/home/alice/dangling/file", "/home/alice/dangling"},
		{"/in/shadow", "/home/alice/etc"}, {"/home/alice/etc/a/b/c", "/home/alice/etc"},
	} {
		why := c.here + " is a link, where a directory should be"
		for what, err := range everything(w, c.p) {
			if t.Log(what); what == "RemoveBeside" && err == nil {
				continue // nothing of ours lies there
			}
			blocked(t, err, c.p, "/home/alice:4001", why)
		}
		if got := w.Resolve(c.p); got == "/etc/shadow" {
			t.Errorf("Resolve %s is %s", c.p, got)
		}
	}
	for _, p := range []string{"/home/alice/etc", "/home/alice/file", "/last"} {
		found, err := w.Follow(p)
		if err != nil || found.Kind != disk.Link {
			t.Errorf("%s leads to %s, %v", p, found.Path, err)
		}
	}
	for _, p := range []string{"/home/alice/file", "/home/alice/etc"} {
		_, err := w.Open(ctx, p, 10)
		blocked(t, err, p, "/home/alice:4001", "it is no regular file")
	}
	if data, err := w.ReadFile("/infile", 10); err != nil || string(data) != "hers" {
		t.Errorf("%q, %v", data, err)
	}
	if data, err := w.ReadFile("/direct/file", 10); err != nil || string(data) != "hers" {
		t.Errorf("%q, %v", data, err)
	}
	if got := w.describe("/etc/shadow"); got != "0600 0:0 secret" {
		t.Error(got)
	}
}

// TestLinksThatWereMoved: a user can move root's link out of his own directory into a
// sticky one, and leave links of his own in a directory that becomes root's. Both may
// have been made for something else.
func TestLinksThatWereMoved(t *testing.T) {
	w := newTree(t, "file /etc/passwd root's", "dir:1777 /tmp", "dir:0755:4001 /home/alice", "link:0777:0 /home/alice/l /etc",
		"dir:0755:4001 /srv/once", "link:0777:4001 /srv/once/l /etc", "link:0777:4001 /srv/once/file /etc/passwd")
	as(t, alice, func() error { return os.Rename(w.at("/home/alice/l"), w.at("/tmp/l")) })
	w.check(os.Chown(w.at("/srv/once"), 0, 0))
	for dir, place := range map[string]string{"/tmp/l": "/tmp/l:0", "/srv/once/l": "/srv/once/l:4001"} {
		for what, err := range everything(w, dir+"/passwd") {
			if t.Log(what); what == "RemoveBeside" {
				continue
			}
			blocked(t, err, dir+"/passwd", place, dir+" is a link, where a directory should be")
		}
	}
	for _, p := range []string{"/tmp/l", "/srv/once/l", "/srv/once/file"} {
		if found, err := w.Follow(p); err != nil || found.Kind != disk.Link {
			t.Errorf("%s leads to %s, %v", p, found.Path, err)
		}
	}
	// They can be replaced and removed like anything else.
	id, err := w.Create("/srv/once/l", "l.tmp", fsat.Attributes{Node: disk.Node{Kind: disk.File, Mode: 0o644}}, nothing)
	w.check(errors.Join(err, second(w.Rename("/srv/once/l", "l.tmp", id)), second(w.Remove("/tmp/l")), second(w.Remove("/srv/once/file"))))
}

// everything is the error of every call about what lies at a path.
func everything(w *tree, p string) map[string]error {
	ctx, file := context.Background(), fsat.Attributes{Node: disk.Node{Kind: disk.File, Mode: 0o600}}
	return map[string]error{
		"Look": second(w.Look(p)), "Read": second(w.Read(ctx, p, 10)), "Open": second(w.Open(ctx, p, 10)),
		"Follow": second(w.Follow(p)), "ReadFile": second(w.ReadFile(p, 10)), "Ground": second(w.Ground(p)),
		"Names": w.Names(p, func(string) bool { return true }), "Sync": w.Sync(p), "SyncFS": w.SyncFS(p),
		"Create": second(w.Create(p, "x.tmp", file, nothing)), "Symlink": second(w.Symlink(p, "x.tmp", "t", file)),
		"Mkdir": w.Mkdir(p, file), "Own": w.Own(p, file, nil, disk.Node{}), "Remove": second(w.Remove(p)),
		"Link": second(w.Link("/hard", "x.tmp", p)), "Rename": second(w.Rename(p, "x.tmp", fsat.ID{})),
		"RemoveBeside": w.RemoveBeside(p, "x.tmp"),
	}
}

func second[T any](_ T, err error) error { return err }

// TestSwappedMeanwhile: the walk goes by what it opened, not by what is there now.
func TestSwappedMeanwhile(t *testing.T) {
	w := newTree(t, "file /etc/passwd root's", "dir:0755:4001 /home/alice", "dir:0755:4001 /home/alice/d", "file:0644:4001 /home/alice/d/passwd hers")
	if !w.Exists("/home/alice/d/passwd") {
		t.Fatal("it is not there")
	}
	w.check(os.Rename(w.at("/home/alice/d"), w.at("/home/alice/away")))
	w.put("link:0777:4001 /home/alice/d /etc")
	if data, err := w.ReadFile("/home/alice/d/passwd", 10); err != nil || string(data) != "hers" {
		t.Errorf("%q, %v", data, err)
	}
	w.Forget()
	_, err := w.ReadFile("/home/alice/d/passwd", 10)
	blocked(t, err, "/home/alice/d/passwd", "/home/alice:4001", "/home/alice/d is a link")
}
