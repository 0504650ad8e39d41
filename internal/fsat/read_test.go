package fsat_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// TestFIFOSwappedIn: somebody swaps a file for a FIFO, to and fro, while it is read.
func TestFIFOSwappedIn(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0644:4001 /home/alice/f hers", "fifo:0644:4001 /home/alice/fifo")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, w.at("/home/alice/f"), unix.AT_FDCWD, w.at("/home/alice/fifo"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	err := soon(t, "Read", func() error {
		for range 2000 {
			_, err := w.Read(context.Background(), "/home/alice/f", 10)
			var is *fsat.BlockedError
			if err != nil && !errors.As(err, &is) {
				return err
			}
		}
		return nil
	})
	close(stop)
	<-stopped
	w.check(err)
}

// TestLease: the owner of a file may have a lease on it, and lets whoever opens it wait
// for as long as the kernel lets him (lease-break-time: 45 s). It is his doing also
// where the file lies in root's place.
func TestLease(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0644:4001 /home/alice/f hers", "file:0644:4001 /etc/f hers", "file /etc/roots root's")
	for p, place := range map[string]string{"/home/alice/f": "/home/alice:4001", "/etc/f": "/etc/f:4001", "/etc/roots": ""} {
		f, err := os.Open(w.at(p))
		w.check(err)
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
		w.check(err)
		err = soon(t, "Read", func() error { return second(w.Read(context.Background(), p, 10)) })
		if place != "" {
			blocked(t, err, p, place, "open: resource temporarily unavailable")
		} else {
			failed(t, err, p, unix.EAGAIN)
		}
		w.check(f.Close())
		if found, err := w.Read(context.Background(), p, 10); err != nil || found.SHA256 == "" {
			t.Errorf("%s: %v when the lease is gone", p, err)
		}
	}
}

// TestFUSE: a file system that somebody serves, and whose server never answers, is not
// entered, and no call waits for it, also where only he may look into it (no allow_other).
func TestFUSE(t *testing.T) {
	for _, c := range []struct {
		mount string // on a directory of alice's
		uid   int
		other string // option
		place string
		why   string
	}{
		{"/home/alice/mnt", alice, ",allow_other", "/home/alice:4001", "/home/alice/mnt is a FUSE file system of uid 4001"},
		{"/home/alice/mnt", alice, "", "/home/alice:4001", "/home/alice/mnt is a FUSE file system of uid 4001"},
		{"/home/alice/mnt", 0, "", "/home/alice:4001", "/home/alice/mnt is a FUSE file system of uid 0"},
		{"/tmp/mnt", alice, ",allow_other", "/tmp/mnt:4001", "/tmp/mnt is a FUSE file system of uid 4001"},
		{"/tmp/mnt", alice, "", "/tmp/mnt:4001", "/tmp/mnt is a FUSE file system of uid 4001"},
		{"/srv/mnt", alice, "", "/srv/mnt:4001", "/srv/mnt is a FUSE file system of uid 4001"},
		{"/srv/mnt", alice, ",allow_other", "/srv/mnt:4001", "/srv/mnt is a FUSE file system of uid 4001"},
	} {
		t.Run(c.mount+c.other+fmt.Sprint(c.uid), func(t *testing.T) {
			w := newTree(t, "dir:0755:4001 /home/alice", "dir:1777 /tmp", "dir:0755:4001 "+c.mount)
			fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Skipf("LEFT OUT: this kernel has no FUSE: %v", err)
			}
			w.check(unix.Mount("test", w.at(c.mount), "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%[2]d%s", fd, c.uid, c.other)))
			t.Cleanup(func() { w.Forget(); w.check(errors.Join(unix.Unmount(w.at(c.mount), unix.MNT_DETACH), unix.Close(fd))) })
			for _, p := range []string{c.mount + "/x", c.mount + "/x/y"} {
				w.check(soon(t, p, func() error {
					for what, err := range everything(w, p) {
						var is *fsat.BlockedError
						if !errors.As(err, &is) || is.Path != p || is.Reason != c.why || owned(is.Place) != c.place {
							return fmt.Errorf("%s: %w", what, err)
						}
					}
					return nil
				}))
			}
			for what, call := range map[string]func() error{
				"Look":   func() error { return second(w.Look(c.mount)) },
				"Read":   func() error { return second(w.Read(context.Background(), c.mount, 10)) },
				"Open":   func() error { return second(w.Open(context.Background(), c.mount, 10)) },
				"Remove": func() error { return second(w.Remove(c.mount)) },
			} {
				blocked(t, soon(t, what, call), c.mount, c.place, c.why)
			}
		})
	}
}

// TestTooLarge: nobody lets us read without end by a file that costs him nothing.
func TestTooLarge(t *testing.T) {
	w := newTree(t, "dir:0755:4001 /home/alice", "file:0644:4001 /home/alice/f", "file:0644:4001 /etc/hers", "file:0644:0 /home/alice/roots",
		"dir:1777:0 /tmp", "file:0644:4001 /tmp/f", "file:0644:0 /etc/roots")
	var size int64
	for _, p := range []string{"/home/alice/f", "/etc/hers", "/home/alice/roots", "/tmp/f"} {
		for size = 8 << 40; os.Truncate(w.at(p), size) != nil; size /= 2 {
			continue
		}
	}
	for p, place := range map[string]string{
		"/home/alice/f": "/home/alice:4001", "/etc/hers": "/etc/hers:4001", "/home/alice/roots": "/home/alice:4001", "/tmp/f": "/tmp/f:4001",
	} {
		why := fmt.Sprintf("it has %d bytes, and at most 67108864 are read of it", size)
		for what, call := range map[string]func() error{
			"Read":     func() error { return second(w.Read(context.Background(), p, fsat.Most)) },
			"Open":     func() error { return second(w.Open(context.Background(), p, fsat.Most)) },
			"ReadFile": func() error { return second(w.ReadFile(p, fsat.Most)) },
		} {
			blocked(t, soon(t, what, call), p, place, why)
		}
		found, err := w.Look(p)
		if err != nil || found.Size() != size || found.Allocated != 0 {
			t.Errorf("%s: %d bytes, %d allocated, %v", p, found.Size(), found.Allocated, err)
		}
	}
	// Root's own are as large as they are, except for those that are read whole.
	w.check(os.Truncate(w.at("/etc/roots"), fsat.Most+1))
	if found, err := w.Read(context.Background(), "/etc/roots", fsat.Most); err != nil || found.SHA256 == "" {
		t.Errorf("%v", err)
	}
	failed(t, second(w.ReadFile("/etc/roots", fsat.Most)), "/etc/roots", unix.EFBIG)
	// Exactly as many as may be read are.
	w.check(os.Truncate(w.at("/home/alice/f"), 100))
	if found, err := w.Read(context.Background(), "/home/alice/f", 100); err != nil || found.SHA256 != sum(strings.Repeat("\x00", 100)) {
		t.Errorf("%v", err)
	}
}

// TestReadingEnds in the middle of a file with its context: with SIGTERM, or when the
// run has taken too long.
func TestReadingEnds(t *testing.T) {
	w := newTree(t, "file /etc/large")
	w.check(os.Truncate(w.at("/etc/large"), 1<<40)) // minutes
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := soon(t, "Read", func() error { return second(w.Read(ctx, "/etc/large", 0)) })
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
		t.Errorf("%v after %s", err, took)
	}
	ctx, cancel = context.WithCancel(context.Background())
	f, err := w.Open(ctx, "/etc/large", 0)
	w.check(err)
	defer f.Close()
	if _, err := f.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	cancel()
	into, err := os.CreateTemp(t.TempDir(), "")
	w.check(err)
	defer into.Close()
	if err := f.CopyTo(into, sha256.New()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestGrowsAndShrinks: a file has as many bytes as when it was opened, and may have
// fewer by now.
func TestGrowsAndShrinks(t *testing.T) {
	w := newTree(t, "file /grows 0123456789", "file /shrinks 0123456789")
	grows, err := w.Open(context.Background(), "/grows", 0)
	w.check(err)
	defer grows.Close()
	w.put("file /grows 0123456789abcdef")
	if data, err := grows.Whole(); err != nil || string(data) != "0123456789" {
		t.Errorf("%q, %v", data, err)
	}
	shrinks, err := w.Open(context.Background(), "/shrinks", 0)
	w.check(err)
	defer shrinks.Close()
	w.check(os.Truncate(w.at("/shrinks"), 3))
	if data, err := shrinks.Whole(); err != nil || string(data) != "012" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestCopies have the same bytes, the hash of them all, and the same holes.
func TestCopies(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name string
		size int64
		data []int64 // where there is something
	}{
		{"empty", 0, nil},
		{"dense", 10, []int64{0}},
		{"dense and large", 3 * mib, []int64{0, mib, 2 * mib}},
		{"only a hole", 20 * mib, nil},
		{"hole at the end", 20 * mib, []int64{0}},
		{"hole at the beginning", 20 * mib, []int64{19 * mib}},
		{"holes between", 20*mib + 17, []int64{0, 5 * mib, 9*mib + 4096, 20 * mib}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTree(t, "file /f")
			w.check(os.Truncate(w.at("/f"), c.size))
			writer, err := os.OpenFile(w.at("/f"), os.O_RDWR, 0)
			w.check(err)
			for _, at := range c.data {
				text := strings.Repeat("some bytes", mib/10+1)
				_, err := writer.WriteAt([]byte(text)[:min(mib, c.size-at)], at)
				w.check(err)
			}
			w.check(errors.Join(writer.Sync(), writer.Close()))
			f, err := w.Open(context.Background(), "/f", 0)
			w.check(err)
			defer f.Close()
			into, err := os.CreateTemp(t.TempDir(), "")
			w.check(err)
			defer into.Close()
			seen := sha256.New()
			w.check(f.CopyTo(into, seen))
			want, err := os.ReadFile(w.at("/f"))
			w.check(err)
			got, err := os.ReadFile(into.Name())
			w.check(errors.Join(err, into.Sync()))
			if string(got) != string(want) || hex.EncodeToString(seen.Sum(nil)) != sum(string(want)) {
				t.Errorf("%d bytes, want %d, or others, or another hash", len(got), len(want))
			}
			var st unix.Stat_t
			w.check(unix.Stat(into.Name(), &st))
			found, err := w.Look("/f")
			w.check(err)
			if most := found.Allocated + 64<<10; st.Blocks*512 > most {
				t.Errorf("the copy takes %d bytes, the file %d", st.Blocks*512, found.Allocated)
			}
		})
	}
}

// TestCopyOfWhatShrinks: it fails, or has the hash of what was copied. Whoever owns the
// file does not end more than the work on it with that.
func TestCopyOfWhatShrinks(t *testing.T) {
	w := newTree(t, "file /etc/sparse", "file:0644:4001 /etc/hers", "dir:0755:4001 /home/alice", "file /home/alice/f", "file /dense 0123456789", "file /into", "file /other")
	shrunk := func(p, into string, size int64) (string, error) {
		if size > 10 {
			w.check(os.Truncate(w.at(p), size))
		}
		f, err := w.Open(context.Background(), p, size)
		w.check(err)
		defer f.Close()
		w.check(os.Truncate(w.at(p), 3))
		to, err := os.OpenFile(w.at(into), os.O_RDWR, 0)
		w.check(err)
		defer to.Close()
		seen := sha256.New()
		err = f.CopyTo(to, seen)
		return hex.EncodeToString(seen.Sum(nil)), err
	}
	_, err := shrunk("/etc/sparse", "/other", 20<<20)
	var one *fs.PathError
	if !errors.As(err, &one) || one.Path != "/etc/sparse" {
		t.Error(err)
	}
	for p, place := range map[string]string{"/etc/hers": "/etc/hers:4001", "/home/alice/f": "/home/alice:4001"} {
		_, err := shrunk(p, "/other", 20<<20)
		blocked(t, err, p, place, "read: somebody put something else there meanwhile")
	}
	hash, err := shrunk("/dense", "/into", 10)
	if err != nil || hash != sum("012") || w.describe("/into") != "0644 0:0 012" {
		t.Errorf("%s, %v", w.describe("/into"), err)
	}
}

// TestUntil reads all that there is.
func TestUntil(t *testing.T) {
	data, err := io.ReadAll(fsat.Until(context.Background(), strings.NewReader("all of it")))
	if err != nil || string(data) != "all of it" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestReadIsLook and the hash.
func TestReadIsLook(t *testing.T) {
	w := newTree(t, "file:04755:4001:50 /f bytes", "dir:2750:4001 /d", "link:0777:4001 /l target", "file /two two")
	w.check(os.Link(w.at("/two"), w.at("/d/two")))
	for p, want := range map[string]disk.Node{
		"/f":      {Kind: disk.File, Mode: 0o4755, UID: alice, GID: staff, Size: 5},
		"/d":      {Kind: disk.Directory, Mode: 0o2750, UID: alice, GID: alice},
		"/l":      {Kind: disk.Link, Target: "target", UID: alice, GID: alice},
		"/absent": {},
	} {
		found, err := w.Look(p)
		if err != nil || found.Node != want || found.Path != p {
			t.Errorf("%+v, %v", found.Node, err)
		}
		read, err := w.Read(context.Background(), p, fsat.Most)
		if want.Kind == disk.File {
			want.SHA256 = sum("bytes")
		}
		if err != nil || read.Node != want || read.Stat != found.Stat {
			t.Errorf("%+v, %v", read.Node, err)
		}
	}
	one, _ := w.Look("/two")
	two, _ := w.Look("/d/two")
	three, _ := w.Look("/f")
	absent, _ := w.Look("/absent")
	if one.Links != 2 || !one.SameFile(&two) || one.SameFile(&three) || absent.SameFile(&absent) {
		t.Errorf("%+v %+v", one, two)
	}
}
