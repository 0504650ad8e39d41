package native_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// bench is a root with an engine and one job.
type bench struct {
	t      *testing.T
	root   string
	engine *native.Engine
	job    *engine.Job
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: files get owners")
	}
	b := &bench{t: t, root: t.TempDir()}
	h := host.New(b.root)
	b.engine = &native.Engine{Host: h, Blobs: t.TempDir(), Accounts: &host.Accounts{Host: h}}
	b.job = &engine.Job{ID: "1-abcdef", Dir: t.TempDir(), Plan: &plan.Plan{}, Manifest: &state.Manifest{}}
	return b
}

func sum(data string) string {
	s := sha256.Sum256([]byte(data))
	return hex.EncodeToString(s[:])
}

// file is a wanted file, whose bytes are stored.
func (b *bench) file(mode uint32, data string) disk.Node {
	b.write(filepath.Join(b.engine.Blobs, sum(data)), data)
	return disk.Node{Kind: disk.File, Mode: mode, SHA256: sum(data), Size: int64(len(data))}
}

var absent = disk.Node{}

func dir(mode uint32) disk.Node     { return disk.Node{Kind: disk.Directory, Mode: mode} }
func link(target string) disk.Node  { return disk.Node{Kind: disk.Link, Target: target} }
func hard(target string) disk.Node  { return disk.Node{Kind: disk.HardLink, Target: target} }
func (b *bench) at(p string) string { return filepath.Join(b.root, p) }
func (b *bench) put(p, data string) { b.write(b.at(p), data) }
func (b *bench) check(err error)    { b.t.Helper(); fatal(b.t, err) }
func (b *bench) mkdir(p string)     { b.t.Helper(); b.check(os.MkdirAll(b.at(p), 0o755)) }
func (b *bench) remove(paths ...string) {
	for _, p := range paths {
		b.want(p, absent)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) write(real, data string) {
	b.t.Helper()
	b.check(errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(data), 0o644)))
}

// want adds to the plan what a path is to become; it is now as it will be found.
func (b *bench) want(p string, after disk.Node) {
	b.t.Helper()
	before := b.node(p)
	b.job.Plan.Items = append(b.job.Plan.Items, plan.Item{Path: p, Before: before, After: after, Write: true})
	slices.SortFunc(b.job.Plan.Items, func(x, y plan.Item) int { return strings.Compare(x.Path, y.Path) })
	if after.Kind != disk.Absent {
		b.job.Manifest.Entries = append(b.job.Manifest.Entries, state.Entry{Path: p, Node: after, Origin: state.Created})
	}
}

// node is what stands at a path now, with the hash of its bytes.
func (b *bench) node(p string) disk.Node {
	b.t.Helper()
	found, err := b.engine.Host.Files.Read(b.t.Context(), p, fsat.Most)
	b.check(err)
	return found.Node
}

func (b *bench) apply() (engine.Result, error) {
	return b.engine.Apply(b.t.Context(), b.job)
}

func (b *bench) mustApply() engine.Result {
	b.t.Helper()
	result, err := b.apply()
	b.check(err)
	return result
}

// tree is the root in words.
func (b *bench) tree() map[string]string {
	b.t.Helper()
	all := map[string]string{}
	b.check(filepath.WalkDir(b.root, func(real string, _ fs.DirEntry, err error) error {
		if err != nil || real == b.root {
			return err
		}
		n, err := b.engine.Host.Files.Look(strings.TrimPrefix(real, b.root))
		text := fmt.Sprintf("%s %04o %d:%d", n.Kind, n.Mode, n.UID, n.GID)
		switch n.Kind {
		case disk.Link:
			text = "link " + n.Target
		case disk.File:
			data, failed := os.ReadFile(real)
			text, err = text+" "+string(data), errors.Join(err, failed)
		}
		all[strings.TrimPrefix(real, b.root)] = text
		return err
	}))
	return all
}

func (b *bench) expect(want map[string]string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.tree()); diff != "" {
		b.t.Errorf("tree differs (-want +got):\n%s", diff)
	}
}

func TestEveryKind(t *testing.T) {
	b := newBench(t)
	b.put("/etc/old", "v1")
	b.put("/etc/gone/deep/file", "v1")
	b.put("/etc/mode", "same")
	b.check(os.Chown(b.at("/etc/old"), 3, 4))
	b.check(unix.Setxattr(b.at("/etc/old"), "user.note", []byte("kept"), 0))
	owned := b.file(0o6711, "tool")
	owned.UID, owned.GID = 7, 8
	b.want("/etc/tool", owned)
	b.want("/etc/old", b.file(0o640, "v2"))
	again := b.file(0o4755, "same")
	again.UID = 9
	b.want("/etc/mode", again)
	b.want("/etc/link", link("tool"))
	b.want("/etc/hard", hard("/etc/tool"))
	b.want("/etc/dir", dir(0o2750))
	b.want("/etc/dir/in", b.file(0o600, ""))
	b.want("/etc/empty", disk.Node{Kind: disk.File, Mode: 0o644})
	b.remove("/etc/gone", "/etc/gone/deep", "/etc/gone/deep/file")
	b.mustApply()
	b.expect(map[string]string{
		"/etc": "directory 0755 0:0", "/etc/tool": "file 6711 7:8 tool", "/etc/hard": "file 6711 7:8 tool", "/etc/old": "file 0640 0:0 v2", "/etc/mode": "file 4755 9:0 same",
		"/etc/link": "link tool", "/etc/dir": "directory 2750 0:0", "/etc/dir/in": "file 0600 0:0 ", "/etc/empty": "file 0644 0:0 ",
	})
	value := make([]byte, 8)
	if n, err := unix.Getxattr(b.at("/etc/old"), "user.note", value); err != nil || string(value[:n]) != "kept" {
		t.Errorf("the extended attribute is lost: %v", err)
	}
	m, err := state.ReadManifest(filepath.Join(b.job.Dir, "manifest"))
	fatal(t, err)
	for _, e := range m.Entries {
		if found, err := b.engine.Host.Files.Look(e.Path); err != nil || found.Stat != e.Stat {
			t.Errorf("%s: the manifest says %+v, it is %+v (%v)", e.Path, e.Stat, found.Stat, err)
		}
	}
	before := b.tree()
	b.mustApply()
	b.expect(before)
}

func TestKindChanges(t *testing.T) {
	b := newBench(t)
	b.put("/a", "file")
	b.put("/srv/x", "not ours")
	b.check(os.Symlink("/srv", b.at("/b")))
	b.put("/c/x", "ours")
	b.mkdir("/d")
	b.put("/e", "file")
	b.want("/a", dir(0o755))
	b.want("/a/x", b.file(0o644, "new"))
	b.engine.Host.Exists("/b/x") // the way through the link is known before it goes
	b.want("/b", dir(0o755))
	b.job.Plan.Items = append(b.job.Plan.Items, plan.Item{Path: "/b/x", After: b.file(0o644, "new"), Write: true})
	b.want("/c", link("/srv"))
	b.remove("/c/x")
	b.want("/d", b.file(0o644, "file"))
	b.want("/e", link("a"))
	b.mustApply()
	want := map[string]string{
		"/a": "directory 0755 0:0", "/a/x": "file 0644 0:0 new", "/b": "directory 0755 0:0", "/b/x": "file 0644 0:0 new",
		"/c": "link /srv", "/d": "file 0644 0:0 file", "/e": "link a", "/srv": "directory 0755 0:0", "/srv/x": "file 0644 0:0 not ours",
	}
	b.expect(want)
	b.mustApply() // /c/x leads into /srv now
	b.expect(want)
}

// A drop-in comes after its unit and goes before it; what is in the way of
// another kind goes first; hard links come after what they lead to.
func TestOrder(t *testing.T) {
	f, d := disk.Node{Kind: disk.File}, disk.Node{Kind: disk.Directory}
	var items []*plan.Item
	for _, item := range []plan.Item{
		{Path: "/a.hard", After: hard("/z")}, {Path: "/b.service", After: f}, {Path: "/b.service.d", After: d}, {Path: "/b.service.d/x.conf", After: f},
		{Path: "/c.service", Before: f}, {Path: "/c.service.d", Before: d}, {Path: "/c.service.d/x.conf", Before: f},
		{Path: "/y", Before: d, After: f}, {Path: "/y/sub", Before: d}, {Path: "/y/sub/x", Before: f}, {Path: "/z", After: f},
	} {
		items = append(items, &item)
	}
	var got []string
	for _, item := range native.Order(items) {
		got = append(got, item.Path)
	}
	want := []string{
		"/y/sub/x", "/y/sub", "/b.service", "/b.service.d", "/b.service.d/x.conf", "/y", "/z", "/a.hard",
		"/c.service.d/x.conf", "/c.service.d", "/c.service",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// untouched checks an error before the first rename: nothing is left behind.
func (b *bench) untouched(want error) {
	b.t.Helper()
	before := b.tree()
	_, err := b.apply()
	if !errors.Is(err, engine.ErrUntouched) || !errors.Is(err, want) {
		b.t.Errorf("err = %v, want %v, untouched", err, want)
	}
	b.expect(before)
}

func TestFailureBeforeTheFirstRename(t *testing.T) {
	prepare := func(t *testing.T) *bench {
		b := newBench(t)
		b.put("/etc/a", "v1")
		b.want("/etc/a", b.file(0o644, "v2"))
		b.want("/new", dir(0o755))
		b.want("/new/deep", dir(0o755))
		b.want("/new/deep/b", b.file(0o644, "b"))
		b.want("/new/l", link("x"))
		b.want("/z", b.file(0o644, "z"))
		return b
	}
	t.Run("damaged contents", func(t *testing.T) {
		b := prepare(t)
		b.write(filepath.Join(b.engine.Blobs, sum("z")), "y")
		b.untouched(engine.ErrDamaged)
	})
	t.Run("missing contents", func(t *testing.T) {
		b := prepare(t)
		b.check(os.Remove(filepath.Join(b.engine.Blobs, sum("z"))))
		b.untouched(engine.ErrDamaged)
	})
	t.Run("full disk", func(t *testing.T) {
		b := prepare(t)
		b.mkdir("/small")
		b.check(unix.Mount("tmpfs", b.at("/small"), "tmpfs", 0, "size=64k"))
		t.Cleanup(func() { _ = unix.Unmount(b.at("/small"), unix.MNT_DETACH) })
		b.want("/small/one", b.file(0o644, strings.Repeat("1", 40<<10)))
		b.want("/small/two", b.file(0o644, strings.Repeat("2", 40<<10)))
		if _, err := b.engine.Check(t.Context(), b.job); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "/small/one") {
			t.Errorf("Check: %v", err)
		}
		b.untouched(unix.ENOSPC)
	})
	t.Run("immutable directory", func(t *testing.T) {
		b := prepare(t)
		b.mkdir("/y")
		b.want("/y/x", b.file(0o644, "x"))
		b.immutable("/y")
		b.untouched(unix.EPERM)
	})
	t.Run("read-only file system", func(t *testing.T) {
		b := prepare(t)
		b.mkdir("/y")
		b.check(unix.Mount("tmpfs", b.at("/y"), "tmpfs", unix.MS_RDONLY, ""))
		t.Cleanup(func() { _ = unix.Unmount(b.at("/y"), unix.MNT_DETACH) })
		b.want("/y/x", b.file(0o644, "x"))
		b.untouched(unix.EROFS)
	})
	t.Run("vanished parent", func(t *testing.T) {
		b := prepare(t)
		b.job.Plan.Items = append(b.job.Plan.Items, plan.Item{Path: "/zz/gone/x", After: b.file(0o644, "x"), Write: true})
		b.untouched(os.ErrNotExist)
	})
	t.Run("a pipe put there late", func(t *testing.T) {
		b := prepare(t)
		b.check(unix.Mkfifo(b.at("/z"), 0o600))
		if _, err := b.apply(); err == nil || !strings.Contains(err.Error(), "/z: a device, a socket or a pipe") {
			t.Errorf("err = %v", err)
		}
		if n := b.node("/z"); n.Kind != disk.Other {
			t.Errorf("the pipe is %v now", n)
		}
	})
	t.Run("ended from outside", func(t *testing.T) {
		b := prepare(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		before := b.tree()
		if _, err := b.engine.Apply(ctx, b.job); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		b.expect(before)
	})
	t.Run("hard link to another file system", func(t *testing.T) {
		b := newBench(t)
		b.mkdir("/m")
		b.put("/a", "a")
		b.check(unix.Mount("tmpfs", b.at("/m"), "tmpfs", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(b.at("/m"), unix.MNT_DETACH) })
		b.want("/m/h", hard("/a"))
		b.untouched(unix.EXDEV)
	})
}

// immutable is chattr +i until the test, or undo, ends it.
func (b *bench) immutable(p string) (undo func()) {
	b.t.Helper()
	f, err := os.Open(b.at(p))
	b.check(err)
	set := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	if err := set(unix.STATX_ATTR_IMMUTABLE); err != nil {
		lacking.Skip(b.t, "no attributes here: %v", err)
	}
	undo = func() { _ = set(0) }
	b.t.Cleanup(func() { undo(); f.Close() })
	return undo
}

// A failure after the first rename keeps what was begun; the next Apply of the
// same change finishes it.
func TestFailureAfterTheFirstRename(t *testing.T) {
	b := newBench(t)
	b.put("/etc/m", "v1")
	b.want("/etc/a", b.file(0o644, "a"))
	b.want("/etc/m", b.file(0o644, "v2"))
	b.want("/etc/z", b.file(0o644, "z"))
	undo := b.immutable("/etc/m")
	_, err := b.apply()
	if errors.Is(err, engine.ErrUntouched) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "/etc/m") {
		t.Fatalf("err = %v", err)
	}
	if got := b.tree()["/etc/a"]; got != "file 0644 0:0 a" {
		t.Errorf("/etc/a: %q", got)
	}
	undo()
	b.mustApply()
	b.expect(map[string]string{"/etc": "directory 0755 0:0", "/etc/a": "file 0644 0:0 a", "/etc/m": "file 0644 0:0 v2", "/etc/z": "file 0644 0:0 z"})
}

// A run that goes on after a crash, and fails before it renames anything, must
// not say that nothing was changed: an earlier run had begun.
func TestResumedRunThatFailsEarly(t *testing.T) {
	b := newBench(t)
	b.mkdir("/etc")
	b.want("/etc/a", b.file(0o644, "a"))
	b.want("/etc/z", b.file(0o644, "z"))
	b.put("/etc/z", "z")
	b.check(os.Remove(filepath.Join(b.engine.Blobs, sum("a"))))
	if _, err := b.apply(); err == nil || errors.Is(err, engine.ErrUntouched) {
		t.Errorf("err = %v", err)
	}
}

// Whatever an earlier run got to, the next one ends in the same tree.
func TestResumeFromEveryState(t *testing.T) {
	prepare := func() *bench {
		b := newBench(t)
		b.put("/etc/a", "v1")
		b.put("/etc/d/x", "v1")
		b.put("/etc/gone/x", "v1")
		b.put("/etc/f", "v1")
		b.check(os.Symlink("x", b.at("/etc/l")))
		b.want("/etc/a", b.file(0o4755, "v2"))
		b.want("/etc/d", link("/srv"))
		b.remove("/etc/d/x", "/etc/gone", "/etc/gone/x")
		b.want("/etc/f", dir(0o700))
		b.want("/etc/f/in", b.file(0o600, "in"))
		b.want("/etc/h", hard("/etc/a"))
		b.want("/etc/l", link("y"))
		b.want("/etc/n", dir(0o755))
		b.want("/etc/n/e", b.file(0o644, "e"))
		return b
	}
	whole := prepare()
	whole.mustApply()
	want := whole.tree()
	for done := range len(whole.job.Plan.Items) + 1 {
		b := prepare()
		all := b.job.Plan
		var ordered []*plan.Item
		for i := range all.Items {
			ordered = append(ordered, &all.Items[i])
		}
		part := *b.job
		part.Plan, part.Manifest = &plan.Plan{}, &state.Manifest{}
		for _, item := range native.Order(ordered)[:done] {
			part.Plan.Items = append(part.Plan.Items, *item)
		}
		_, _ = b.engine.Apply(t.Context(), &part) // what it got to is the point, not whether it could
		for _, item := range all.Items {
			if item.After.Kind == disk.Absent || item.After.Kind == disk.Directory {
				continue
			}
			// Half of a staged file lies beside each target.
			real := b.at(item.Path)
			_ = os.WriteFile(filepath.Join(filepath.Dir(real), "."+filepath.Base(real)+".reconf-"+b.job.ID), []byte("half"), 0o600)
		}
		result := b.mustApply()
		if diff := cmp.Diff(want, b.tree()); diff != "" {
			t.Errorf("after %d of %d paths:\n%s", done, len(all.Items), diff)
		}
		if len(result.Notes) > 0 {
			t.Errorf("after %d paths our own work is called a change of somebody else: %v", done, result.Notes)
		}
	}
}

func TestLateChanges(t *testing.T) {
	b := newBench(t)
	long := "/etc/" + strings.Repeat("n", 255)
	b.put("/etc/a", "v1")
	b.put(long, "v1")
	b.put("/etc/gone", "v1")
	b.mkdir("/etc/kept")
	b.want("/etc/a", b.file(0o644, "v2"))
	b.want("/etc/new", b.file(0o644, "new"))
	b.want(long, b.file(0o644, "v2"))
	b.remove("/etc/gone", "/etc/kept")
	for _, p := range []string{"/etc/a", "/etc/new", long, "/etc/gone"} {
		b.put(p, "late "+filepath.Base(p)[:1])
	}
	b.put("/etc/kept/mine", "x")
	result := b.mustApply()
	b.expect(map[string]string{"/etc": "directory 0755 0:0", "/etc/a": "file 0644 0:0 v2", "/etc/new": "file 0644 0:0 new", long: "file 0644 0:0 v2",
		"/etc/kept": "directory 0755 0:0", "/etc/kept/mine": "file 0644 0:0 x"})
	if len(result.Notes) != 5 {
		t.Errorf("notes: %q", result.Notes)
	}
	late, err := os.ReadDir(filepath.Join(b.job.Dir, "late"))
	fatal(t, err)
	var kept []string
	for _, entry := range late {
		data, err := os.ReadFile(filepath.Join(b.job.Dir, "late", entry.Name()))
		fatal(t, err)
		kept = append(kept, string(data))
	}
	slices.Sort(kept)
	if diff := cmp.Diff([]string{"late a", "late g", "late n", "late n"}, kept); diff != "" {
		t.Error(diff)
	}
}

// A file that has its contents and not yet its mode is half of our own work: chown(2)
// takes set-uid bits away for a moment.
func TestHalfPermissionsAreNoLateChange(t *testing.T) {
	b := newBench(t)
	b.want("/etc/tool", b.file(0o4755, "tool"))
	b.put("/etc/tool", "tool")
	if result := b.mustApply(); len(result.Notes) > 0 {
		t.Errorf("notes: %q", result.Notes)
	}
	b.expect(map[string]string{"/etc": "directory 0755 0:0", "/etc/tool": "file 4755 0:0 tool"})
}

// More directories than are synced one by one, all of them removed.
func TestManyDirectoriesGo(t *testing.T) {
	b := newBench(t)
	for n := range 20 {
		dir := fmt.Sprintf("/etc/%02d", n)
		b.put(dir+"/x", "x")
		b.remove(dir, dir+"/x")
	}
	b.mustApply()
	b.expect(map[string]string{"/etc": "directory 0755 0:0"})
}

func TestClean(t *testing.T) {
	b := newBench(t)
	b.put("/etc/a", "v1")
	b.want("/etc/a", b.file(0o644, "v2"))
	b.put("/etc/.a.reconf-1-abcdef", "half")
	b.check(b.engine.Clean(t.Context(), b.job))
	b.expect(map[string]string{"/etc": "directory 0755 0:0", "/etc/a": "file 0644 0:0 v1"})
}

// sysusers stands for systemd-sysusers: it makes the account once its file is there.
type sysusers struct {
	b    *bench
	runs int
}

func (s *sysusers) Run(_ context.Context, argv ...string) ([]byte, error) {
	s.runs++
	if want := []string{"systemd-sysusers", "--root=" + s.b.root, s.b.at("/etc/sysusers.d/w.conf")}; !slices.Equal(argv, want) {
		return nil, fmt.Errorf("unexpected command %q", argv)
	}
	if _, err := os.Stat(argv[2]); err != nil {
		return nil, err
	}
	s.b.put("/etc/passwd", "web:x:77:78::/:/bin/sh\n")
	s.b.put("/etc/group", "web:x:78:\n")
	return nil, nil
}

func TestOwnersThatTheChangeDeclares(t *testing.T) {
	b := newBench(t)
	b.engine.Runner = &sysusers{b: b}
	owned := b.file(0o640, "a")
	owned.User, owned.Group = "web", "web"
	b.want("/etc", dir(0o755))
	b.want("/etc/a", owned)
	b.want("/etc/sysusers.d", dir(0o755))
	b.want("/etc/sysusers.d/w.conf", b.file(0o644, "u web - web"))
	b.job.Plan.Sysusers = []string{"/etc/sysusers.d/w.conf"}
	// What a run after a crash reads: the manifest's file has no names.
	manifest := filepath.Join(b.job.Dir, "manifest")
	b.check(state.WriteManifest(manifest, b.job.Manifest))
	again := *b.job
	items := slices.Clone(b.job.Plan.Items)
	again.Plan = &plan.Plan{Items: items, Sysusers: b.job.Plan.Sysusers}
	var err error
	again.Manifest, err = state.ReadManifest(manifest)
	b.check(err)
	b.mustApply()
	for _, job := range []*engine.Job{b.job, &again} {
		if _, err := b.engine.Apply(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		if got := b.tree()["/etc/a"]; got != "file 0640 77:78 a" {
			t.Errorf("/etc/a: %q", got)
		}
		m, err := state.ReadManifest(manifest)
		b.check(err)
		if e := m.Lookup()["/etc/a"]; e.UID != 77 || e.GID != 78 {
			t.Errorf("the manifest says %d:%d", e.UID, e.GID)
		}
	}
}

// What is put in the place of a secret while the change runs is kept encrypted, and
// comes back with the key that it was encrypted to.
func TestSecretsAreKeptEncrypted(t *testing.T) {
	b := newBench(t)
	private, err := age.GenerateX25519Identity()
	fatal(t, err)
	key := filepath.Join(t.TempDir(), "key")
	fatal(t, os.WriteFile(key, []byte(private.String()), 0o600))
	keys := secret.New(nil, []string{key})
	b.engine.Secrets = keys
	stored := func(path, data string) {
		t.Helper()
		var out bytes.Buffer
		b.check(errors.Join(keys.Encrypt(&out, strings.NewReader(data)), os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, out.Bytes(), 0o600)))
	}
	before, after, late := "hunter2 before", "hunter2 after", "hunter2 late"
	b.put("/etc/db", before)
	node := disk.Node{Kind: disk.File, Mode: 0o600, SHA256: sum(after), Size: int64(len(after)), Secret: true}
	stored(filepath.Join(b.engine.Blobs, node.Stored()), after)
	b.want("/etc/db", node)
	item := &b.job.Plan.Items[0]
	item.Before.Secret = true
	stored(filepath.Join(b.job.Dir, "backups", engine.Backup(0, item.Before)), before)
	b.put("/etc/db", late)
	_, err = b.engine.Apply(t.Context(), b.job)
	b.check(err)
	if data, err := os.ReadFile(b.at("/etc/db")); string(data) != after {
		t.Errorf("%q, %v", data, err)
	}
	_, err = b.engine.Rollback(t.Context(), b.job)
	b.check(err)
	if data, err := os.ReadFile(b.at("/etc/db")); string(data) != before {
		t.Errorf("rolled back to %q, %v", data, err)
	}
	files := 0
	for _, dir := range []string{b.job.Dir, b.engine.Blobs} {
		fatal(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if bytes.Contains(data, []byte("hunter2")) {
				t.Errorf("%s is in plain text", path)
			}
			if strings.Contains(path, "/late/") {
				files++
				r, err := keys.OpenStored(path)
				fatal(t, err)
				defer r.Close()
				if data, err := io.ReadAll(r); string(data) != late {
					t.Errorf("%q, %v", data, err)
				}
			}
			return err
		}))
	}
	if files != 1 {
		t.Errorf("%d late versions are kept", files)
	}
}

// The copies that the pin makes take room in the state: as much as the files do, and
// not as they are long.
func TestCheckCountsCopies(t *testing.T) {
	b := newBench(t)
	small := filepath.Join(t.TempDir(), "state")
	b.check(os.Mkdir(small, 0o700))
	b.check(unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	b.put("/etc/a", "")
	b.check(os.Truncate(b.at("/etc/a"), 64<<20))
	b.want("/etc/a", b.file(0o644, "v2"))
	b.engine.Blobs = small
	if _, err := b.engine.Check(t.Context(), b.job); err != nil {
		t.Errorf("of holes: %v", err)
	}
	b.put("/etc/a", strings.Repeat("x", 2<<20))
	if _, err := b.engine.Check(t.Context(), b.job); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), small) {
		t.Errorf("of bytes: %v", err)
	}
}

// A path that is blocked while the change is carried out stays known: a run that is cut
// off before the record begins again with what the manifest's file has, and may get to it.
func TestBlockedLate(t *testing.T) {
	b := newBench(t)
	b.mkdir("/home")
	b.mkdir("/home/alice")
	b.check(os.Chown(b.at("/home/alice"), 4001, 4001))
	b.put("/home/alice/old", "v1")
	b.want("/home/alice/new", b.file(0o644, "new"))
	b.want("/home/alice/old", b.file(0o644, "v2"))
	b.want("/etc/security-fix", b.file(0o644, "fixed"))
	base := state.Entry{Path: "/home/alice/old", Node: b.job.Plan.Items[2].Before, Origin: state.Created}
	b.job.Plan.Items[2].Base = &base
	for _, p := range []string{"/home/alice/new", "/home/alice/old"} {
		_ = os.Remove(b.at(p))
		b.check(unix.Mkfifo(b.at(p), 0o644))
	}
	b.mkdir("/etc")
	b.mustApply()
	late, err := state.ReadBlocked(b.job.Dir)
	if b.check(err); len(late) != 2 || !late[0].Late || b.tree()["/etc/security-fix"] != "file 0644 0:0 fixed" {
		t.Fatalf("%+v\n%v", late, b.tree())
	}
	read := func() map[string]*state.Entry {
		m, err := state.ReadManifest(filepath.Join(b.job.Dir, "manifest"))
		b.check(err)
		b.job.Manifest = m
		return m.Lookup()
	}
	read()
	b.check(errors.Join(os.Remove(b.at("/home/alice/new")), os.Remove(b.at("/home/alice/old"))))
	b.mustApply()
	if late, err = state.ReadBlocked(b.job.Dir); err != nil || len(late) > 0 {
		t.Errorf("%+v, %v", late, err)
	}
	entries := read()
	for _, p := range []string{"/home/alice/new", "/home/alice/old", "/etc/security-fix"} {
		if found, err := b.engine.Host.Files.Look(p); err != nil || entries[p] == nil || entries[p].Stat != found.Stat {
			t.Errorf("%s: the manifest says %+v, it is %+v (%v)", p, entries[p], found.Stat, err)
		}
	}
}
