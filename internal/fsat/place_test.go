package fsat_test

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// TestWhosePlace looks at a file in directories of all kinds. Open tells the same of
// the directory itself, as a plan has it that is to make one.
func TestWhosePlace(t *testing.T) {
	for _, c := range []struct {
		dir   string // mode, owner and group of /d
		place string
	}{
		{"0755:0:0", "root"}, {"0700:0:0", "root"}, {"0555:0:0", "root"},
		{"0775:0:0", "root"}, {"2775:0:0", "root"}, {"0755:0:50", "root"},
		{"0755:0:4001", "root"},
		{"0775:0:50", "/d:0"}, {"2775:0:50", "/d:0"}, {"0720:0:50", "/d:0"}, {"0777:0:0", "/d:0"}, {"0757:0:0", "/d:0"},
		{"0702:0:0", "/d:0"},
		{"1777:0:0", "root"}, {"1775:0:50", "root"}, {"1755:0:0", "root"},
		{"0755:4001:0", "/d:4001"}, {"0700:4001:4001", "/d:4001"}, {"0555:4001:4001", "/d:4001"},
		{"0000:4001:4001", "/d:4001"}, {"0777:4001:4001", "/d:4001"},
		{"1777:4001:4001", "/d:4001"}, {"1755:4001:4001", "/d:4001"}, {"2775:4001:50", "/d:4001"},
	} {
		t.Run(c.dir, func(t *testing.T) {
			w := newTree(t, "dir:"+c.dir+" /d", "file:0644:0 /d/file", "dir:0755:0 /d/below", "file:0644:4002 /d/below/file")
			for _, p := range []string{"/d/file", "/d/absent", "/d/below", "/d/below/file", "/d/below/a/b/absent"} {
				found, err := w.Look(p)
				w.check(err)
				if got := owned(found.Place); got != c.place {
					t.Errorf("%s lies in %s, want %s", p, got, c.place)
				}
				ground, err := w.Ground(p)
				w.check(err)
				if got := owned(ground.Place); got != c.place {
					t.Errorf("the ground of %s is %s, want %s", p, got, c.place)
				}
			}
			d, err := w.Look("/d")
			w.check(err)
			if got := owned(d.Place); got != "root" {
				t.Errorf("/d itself lies in %s", got)
			}
			if got, want := w.Opens(d.Node), c.place != "root"; got != want {
				t.Errorf("Opens says %v, want %v", got, want)
			}
		})
	}
}

// TestFirstPlace: below the first directory of somebody's everything is his, whoever
// owns it, and it is his also where a link of root's leads there.
func TestFirstPlace(t *testing.T) {
	w := newTree(t,
		"dir:0755:4001 /home/alice", "dir:0700:0 /home/alice/.config", "dir:0755:4002 /home/alice/.config/bob",
		"dir:1777:0 /home/alice/tmp", "file:0600:0 /home/alice/tmp/file",
		"link /in home/alice/.config", "link /out home/alice/..", "link /home/alice/back /etc", "dir /etc")
	for p, want := range map[string]string{
		"/home/alice":                   "root",
		"/home/alice/.config":           "/home/alice:4001",
		"/home/alice/.config/bob/x":     "/home/alice:4001",
		"/home/alice/tmp/file":          "/home/alice:4001",
		"/home/alice/back":              "/home/alice:4001",
		"/in":                           "root",
		"/in/x":                         "/home/alice:4001",
		"/in/bob/x":                     "/home/alice:4001",
		"/out/x":                        "root",
		"/home/alice/../../etc/x":       "root",
		"/home/alice/.config/../../../": "root",
	} {
		found, err := w.Look(p)
		if err != nil || owned(found.Place) != want {
			t.Errorf("%s lies in %s (%v), want %s", p, owned(found.Place), err, want)
		}
	}
}

// TestSticky: in a sticky directory of root's everybody can make names, and nobody can
// take away another's, so that what is root's stays that.
func TestSticky(t *testing.T) {
	w := newTree(t, "dir:1777:0 /tmp",
		"dir:0755:0 /tmp/root", "file:0644:0 /tmp/root/file", "file:0644:0 /tmp/file",
		"dir:0755:4001 /tmp/alice", "file:0644:0 /tmp/alice/file", "file:0644:4001 /tmp/hers", "link:0777:4001 /tmp/link ../etc",
		"dir:1777:0 /tmp/more", "file:0644:4002 /tmp/more/bobs", "dir /etc")
	for p, want := range map[string]string{
		"/tmp/root":       "root",
		"/tmp/root/file":  "root",
		"/tmp/root/new/x": "root",
		"/tmp/file":       "root",
		"/tmp/absent":     "root",
		"/tmp/absent/x":   "root",
		"/tmp/alice":      "/tmp/alice:4001",
		"/tmp/alice/file": "/tmp/alice:4001",
		"/tmp/hers":       "/tmp/hers:4001",
		"/tmp/link":       "/tmp/link:4001",
		"/tmp/more/bobs":  "/tmp/more/bobs:4002",
		"/tmp/more/x":     "root",
	} {
		found, err := w.Look(p)
		if err != nil || owned(found.Place) != want {
			t.Errorf("%s lies in %s (%v), want %s", p, owned(found.Place), err, want)
		}
	}
	_, err := w.Look("/tmp/link/x")
	blocked(t, err, "/tmp/link/x", "/tmp/link:4001", "/tmp/link is a link, where a directory should be")

	// Where somebody is quicker in making a name there, that name alone is blocked.
	is := fsat.Attributes{Node: disk.Node{Kind: disk.Directory, Mode: 0o755}}
	blocked(t, w.Mkdir("/tmp/hers", is), "/tmp/hers", "/tmp:0", "mkdir: file exists")
	id, err := w.Create("/tmp/new", "new.tmp", is, nothing)
	w.check(err)
	w.put("file:0644:4001 /tmp/other")
	w.check(os.Rename(w.at("/tmp/other"), w.at("/tmp/new.tmp")))
	_, err = w.Rename("/tmp/new", "new.tmp", id)
	blocked(t, err, "/tmp/new.tmp", "/tmp:0", "somebody put something else there meanwhile")
	w.put("dir:0755:4001 /tmp/new", "file:0644:4001 /tmp/new/x")
	id, err = w.Create("/tmp/new", "new.tmp", is, nothing)
	w.check(err)
	_, err = w.Rename("/tmp/new", "new.tmp", id)
	blocked(t, err, "/tmp/new", "/tmp:0", "rmdir: directory not empty")
}

// TestACL: whom an ACL lets write shows in the bits of the group only, which are what it
// lets anybody do at most.
func TestACL(t *testing.T) {
	w := newTree(t, "dir /acl", "dir /closed", "dir /default", "dir:1777 /sticky")
	setACL(t, w.at("/acl"), "system.posix_acl_access", alice)
	setACL(t, w.at("/closed"), "system.posix_acl_access", alice)
	w.check(os.Chmod(w.at("/closed"), 0o755)) // its mask, too
	setACL(t, w.at("/default"), "system.posix_acl_default", alice)
	w.check(os.Chmod(w.at("/default"), 0o775)) // of root's group
	setACL(t, w.at("/sticky"), "system.posix_acl_access", alice)
	w.check(os.Chmod(w.at("/sticky"), 0o1775|os.ModeSticky))
	for p, want := range map[string]string{"/acl": "/acl:0", "/closed": "root", "/default": "root", "/sticky": "root"} {
		found, err := w.Look(p + "/x")
		if err != nil || owned(found.Place) != want {
			t.Errorf("%s is %s (%v), want %s", p, owned(found.Place), err, want)
		}
	}
	as(t, alice, func() error { return os.WriteFile(w.at("/acl/proof"), nil, 0o644) })
	as(t, alice, func() error {
		if err := os.WriteFile(w.at("/closed/proof"), nil, 0o644); !errors.Is(err, unix.EACCES) {
			return errors.New("alice writes where she should not")
		}
		return nil
	})
}

// TestRootOfAUser: below a root directory that is not this machine's, the user who runs
// may change anything anyway. He is not root where others than he may.
func TestRootOfAUser(t *testing.T) {
	w := newTree(t, "dir /root/etc", "dir:0755:0 /root/roots", "dir:0755:4002 /root/bob", "dir:0775:4001:4001 /root/group", "dir:0775:4001:50 /root/staff",
		"dir:0777:4001 /root/all", "dir:1777:4001 /root/tmp", "link:0777:4001 /root/link etc", "file:0644:4002 /root/tmp/bobs", "file:0644:4001 /root/tmp/hers")
	w.check(os.Chown(w.at("/root"), alice, alice))
	w.check(os.Chown(w.at("/root/etc"), alice, alice))
	want := map[string]string{
		"/etc/x": "root", "/link/x": "root", "/roots/x": "root", "/bob/x": "/bob:4002", "/group/x": "root", "/staff/x": "/staff:0",
		"/all/x": "/all:0", "/tmp/x": "root", "/tmp/hers": "root", "/tmp/bobs": "/tmp/bobs:4002",
	}
	as(t, alice, func() error {
		hers := fsat.New(w.at("/root"))
		defer hers.Forget()
		got := map[string]string{}
		for p := range want {
			found, err := hers.Look(p)
			if err != nil {
				return err
			}
			got[p] = owned(found.Place)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		id, err := hers.Create("/etc/x", "x.tmp", fsat.Attributes{Node: disk.Node{Kind: disk.File, UID: alice, GID: alice, Mode: 0o640}}, nothing)
		if err != nil {
			return err
		}
		_, err = hers.Rename("/etc/x", "x.tmp", id)
		return err
	})
	if is := w.describe("/root/etc/x"); is != "0640 4001:4001 " {
		t.Error(is)
	}
	// To root she is somebody; to the root of this machine everybody is.
	found, err := w.Look("/root/etc/x")
	if err != nil || owned(found.Place) != "/root:4001" {
		t.Errorf("%s, %v", owned(found.Place), err)
	}
	as(t, alice, func() error {
		machine := fsat.New("/")
		defer machine.Forget()
		found, err := machine.Look(w.at("/root/etc/x"))
		if got, want := owned(found.Place), w.at("/root")+":4001"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		return err
	})
}
