package fsat_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// obstacles are what may stand where a directory should be, with the words for it.
var obstacles = map[string]string{
	"fifo": "a FIFO", "sock": "a socket", "dev": "a device", "file": "a file", "link": "a link",
}

// TestNoDirectoryOnTheWay: in root's place nothing lies below what is no directory, and
// to make something there is an error that is not about this path alone. In somebody's
// place he has blocked what is to lie below it, for every call.
func TestNoDirectoryOnTheWay(t *testing.T) {
	for kind, words := range obstacles {
		t.Run(kind, func(t *testing.T) {
			w := newTree(t, kind+" /etc/x nowhere", "dir:0755:4001 /home/alice", kind+":0644:4001 /home/alice/x nowhere")
			errno := unix.ENOTDIR
			if kind == "link" {
				errno = unix.ENOENT // it dangles
			}
			for _, p := range []string{"/etc/x/y", "/etc/x/y/z"} {
				for what, err := range everything(w, p) {
					switch what {
					case "Look", "Read", "Follow", "Ground", "Remove", "RemoveBeside":
						w.check(err) // nothing is there
					case "SyncFS":
						if !errors.Is(err, errno) {
							t.Errorf("%s: %v", what, err)
						}
					default:
						failed(t, err, p, map[bool]error{true: unix.ENOENT, false: errno}[what == "ReadFile"])
					}
				}
				found, err := w.Look(p)
				if err != nil || found.Kind != disk.Absent || !found.Place.Root() || w.Exists(p) {
					t.Errorf("%s: %s in %s, %v", p, found.Kind, found.Place, err)
				}
				if ground, err := w.Ground(p); err != nil || ground.Path != "/etc" {
					t.Errorf("the ground is %s, %v", ground.Path, err)
				}
			}
			for _, p := range []string{"/home/alice/x/y", "/home/alice/x/y/z"} {
				for what, err := range everything(w, p) {
					if what == "RemoveBeside" {
						w.check(err)
						continue
					}
					blocked(t, err, p, "/home/alice:4001", "/home/alice/x is "+words+", where a directory should be")
					if !fsat.Gone(err) {
						t.Errorf("%s: it is not gone", what)
					}
				}
				if w.Exists(p) {
					t.Error("it exists")
				}
			}
		})
	}
}

// TestNoFileAtItsEnd: what is no regular file is named and never opened, so that
// nothing waits.
func TestNoFileAtItsEnd(t *testing.T) {
	ctx := context.Background()
	for _, kind := range []string{"fifo", "sock", "dev", "dir", "link"} {
		t.Run(kind, func(t *testing.T) {
			w := newTree(t, kind+" /etc/x nowhere", "dir:0755:4001 /home/alice", kind+":0644:4001 /home/alice/x nowhere")
			want := disk.Other
			switch kind {
			case "dir":
				want = disk.Directory
			case "link":
				want = disk.Link
			}
			for _, p := range []string{"/etc/x", "/home/alice/x"} {
				for what, call := range map[string]func() (fsat.Found, error){
					"Look": func() (fsat.Found, error) { return w.Look(p) },
					"Read": func() (fsat.Found, error) { return w.Read(ctx, p, 10) },
				} {
					found, err := call()
					if err != nil || found.Kind != want || found.SHA256 != "" {
						t.Errorf("%s %s: %s, %v", what, p, found.Kind, err)
					}
				}
				_, err := w.Open(ctx, p, 10)
				if p == "/etc/x" {
					failed(t, err, p, unix.EINVAL)
				} else {
					blocked(t, err, p, "/home/alice:4001", "open: it is no regular file")
				}
				if kind == "dir" {
					continue
				}
				err = w.Names(p, func(string) bool { return true })
				switch {
				case p != "/etc/x":
					blocked(t, err, p, "/home/alice:4001", "where a directory should be")
				case kind == "link":
					failed(t, err, p, unix.ENOENT)
				default:
					failed(t, err, p, unix.ENOTDIR)
				}
			}
		})
	}
}

// TestNames are all the names of a directory, also of a large one, until enough.
func TestNames(t *testing.T) {
	w := newTree(t, "dir /d", "link /l d", "dir:0755:4001 /hers", "file /hers/one")
	const many = 700
	for i := range many {
		w.put(fmt.Sprintf("file /d/%d", i))
	}
	for _, p := range []string{"/d", "/l", "/d/../l/"} {
		seen := map[string]bool{}
		w.check(w.Names(p, func(name string) bool { seen[name] = true; return true }))
		if len(seen) != many {
			t.Errorf("%d names in %s", len(seen), p)
		}
	}
	n := 0
	w.check(w.Names("/d", func(string) bool { n++; return n < 3 }))
	if n != 3 {
		t.Errorf("%d names were visited", n)
	}
	w.check(w.Names("/hers", func(name string) bool { return name == "one" }))
	failed(t, w.Names("/absent", nil), "/absent", unix.ENOENT)
	blocked(t, w.Names("/hers/absent", nil), "/hers/absent", "/hers:4001", "open: no such file or directory")
}

// TestGround is where something will lie.
func TestGround(t *testing.T) {
	w := newTree(t, "dir /here", "dir:0755:4001 /home/alice")
	shm := w.at("/mnt")
	w.check(errors.Join(unix.Mkdir(shm, 0o755), unix.Mount("tmpfs", shm, "tmpfs", unix.MS_RDONLY, "")))
	t.Cleanup(func() { w.Forget(); w.check(unix.Unmount(shm, unix.MNT_DETACH)) })
	one, err := w.Ground("/here/a/b/c")
	w.check(err)
	if one.Path != "/here" || one.Free == 0 || one.Block == 0 || one.ReadOnly || one.Immutable {
		t.Errorf("%+v", one)
	}
	two, err := w.Ground("/mnt/x")
	w.check(err)
	if two.Device == one.Device || two.Mount == one.Mount || !two.ReadOnly || two.Path != "/mnt" {
		t.Errorf("%+v", two)
	}
	if mnt, err := w.Look("/mnt"); err != nil || !mnt.Mounted {
		t.Errorf("nothing is mounted there: %v", err)
	}
	if _, err := w.Create("/mnt/x", "x.tmp", fsat.Attributes{}, nothing); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	w.check(w.RemoveBeside("/mnt/x", "x.tmp")) // there is none
	if _, err := fsat.New(w.at("/nowhere")).Look("/x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere") {
		t.Error(err)
	}
}
