package native_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// backUp keeps what the plan replaces, as the pin does.
func (b *bench) backUp() {
	b.t.Helper()
	for i, item := range b.job.Plan.Items {
		if item.Before.Kind == disk.File && !item.After.SameContent(item.Before) {
			data, err := os.ReadFile(b.at(item.Path))
			b.check(err)
			b.write(filepath.Join(b.job.Dir, "backups", strconv.Itoa(i)), string(data))
		}
	}
}

// rollBack undoes the job and wants exactly these notes.
func (b *bench) rollBack(notes ...string) {
	b.t.Helper()
	result, err := b.engine.Rollback(b.t.Context(), b.job)
	b.check(err)
	if diff := cmp.Diff(notes, slices.Clip(result.Notes)); diff != "" && len(notes)+len(result.Notes) > 0 {
		b.t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func (b *bench) own(p string, mode uint32, uid, gid int) {
	b.t.Helper()
	b.check(os.Lchown(b.at(p), uid, gid))
	b.check(unix.Chmod(b.at(p), mode))
}

// everyKind is a host and a change that does everything to it.
func everyKind(t *testing.T) *bench {
	b := newBench(t)
	b.put("/etc/a", "v1")
	b.own("/etc/a", 0o4751, 3, 4)
	b.put("/etc/dir-file/in/deep", "v1")
	b.own("/etc/dir-file", 0o2750, 5, 6)
	b.own("/etc/dir-file/in", 0o700, 5, 6)
	b.put("/etc/dir-link/x", "v1")
	b.put("/srv/x", "not ours")
	b.put("/etc/file-dir", "v1")
	b.own("/etc/file-dir", 0o600, 7, 8)
	b.put("/etc/file-link", "v1")
	b.put("/etc/gone/sub/x", "v1")
	b.own("/etc/gone", 0o1777, 9, 9)
	b.check(os.Symlink("/srv", b.at("/etc/link-dir")))
	b.check(os.Symlink("x", b.at("/etc/link-file")))
	b.check(os.Lchown(b.at("/etc/link-file"), 3, 3))
	b.check(os.Symlink("x", b.at("/etc/link-gone")))
	b.check(os.Symlink("x", b.at("/etc/link-link")))
	b.put("/etc/mode", "same")
	b.own("/etc/mode", 0o640, 1, 2)
	b.put("/etc/z-hard", "v1")
	b.check(os.Link(b.at("/etc/z-hard"), b.at("/etc/hard-gone")))
	b.check(os.Link(b.at("/etc/z-hard"), b.at("/etc/hard")))

	b.want("/etc/a", b.file(0o644, "v2"))
	b.want("/etc/dir-file", b.file(0o644, "v2"))
	b.remove("/etc/dir-file/in", "/etc/dir-file/in/deep")
	b.want("/etc/dir-link", link("/srv"))
	b.remove("/etc/dir-link/x")
	b.want("/etc/file-dir", dir(0o755))
	b.want("/etc/file-dir/in", b.file(0o600, "in"))
	b.want("/etc/file-link", link("a"))
	b.remove("/etc/gone", "/etc/gone/sub", "/etc/gone/sub/x")
	b.want("/etc/hard", hard("/etc/z-hard"))
	b.remove("/etc/hard-gone")
	for i := range b.job.Plan.Items {
		if item := &b.job.Plan.Items[i]; strings.HasPrefix(item.Path, "/etc/hard") {
			item.Linked = "/etc/z-hard"
		}
	}
	b.want("/etc/link-dir", dir(0o755))
	b.job.Plan.Items = append(b.job.Plan.Items, plan.Item{Path: "/etc/link-dir/x", After: b.file(0o644, "not ours"), Write: true})
	b.want("/etc/link-file", b.file(0o644, "v2"))
	b.remove("/etc/link-gone")
	b.want("/etc/link-link", link("y"))
	mode := b.file(0o400, "same")
	mode.UID = 9
	b.want("/etc/mode", mode)
	b.want("/etc/new", dir(0o755))
	b.want("/etc/new/er", dir(0o755))
	b.want("/etc/new/er/file", b.file(0o644, "v2"))
	b.want("/etc/new-hard", hard("/etc/a"))
	b.want("/etc/z-hard", b.file(0o644, "v2"))
	slices.SortFunc(b.job.Plan.Items, func(x, y plan.Item) int { return strings.Compare(x.Path, y.Path) })
	b.backUp()
	return b
}

// linked requires that the hard links are some again.
func (b *bench) linked(what string) {
	b.t.Helper()
	for _, p := range []string{"/etc/hard", "/etc/hard-gone"} {
		one, err1 := os.Stat(b.at(p))
		two, err2 := os.Stat(b.at("/etc/z-hard"))
		b.check(err1)
		b.check(err2)
		if !os.SameFile(one, two) {
			b.t.Errorf("%s: %s is no hard link to /etc/z-hard any more", what, p)
		}
	}
}

func TestRollbackOfEveryKind(t *testing.T) {
	b := everyKind(t)
	before := b.tree()
	b.mustApply()
	b.rollBack()
	b.expect(before)
	b.linked("rolled back")
	b.rollBack() // nothing is left to do
	b.expect(before)
	b.mustApply() // and it can be applied again
	b.rollBack()
	b.expect(before)
	b.linked("rolled back again")
}

// A change that got to any of its paths, or staged them all, is undone; and so
// is a way back that got to any of its own.
func TestRollbackFromEveryState(t *testing.T) {
	whole := everyKind(t)
	want := whole.tree()
	n := len(whole.job.Plan.Items)
	litter := func(b *bench, id string) {
		for _, item := range b.job.Plan.Items {
			real := b.at(item.Path)
			_ = os.WriteFile(filepath.Join(filepath.Dir(real), "."+filepath.Base(real)+".reconf-"+id), []byte("half"), 0o600)
		}
	}
	for done := range n + 1 {
		b := everyKind(t)
		var ordered []*plan.Item
		for i := range b.job.Plan.Items {
			ordered = append(ordered, &b.job.Plan.Items[i])
		}
		part := *b.job
		part.Plan, part.Manifest = &plan.Plan{}, &state.Manifest{}
		for _, item := range native.Order(ordered)[:done] {
			part.Plan.Items = append(part.Plan.Items, *item)
		}
		_, _ = b.engine.Apply(t.Context(), &part) // what it got to is the point, not whether it could
		litter(b, b.job.ID)
		b.rollBack()
		if diff := cmp.Diff(want, b.tree()); diff != "" {
			t.Errorf("after %d of %d paths:\n%s", done, n, diff)
		}
		b.linked("after a part")
	}
}

// What somebody edited since is kept and named; everything else comes back.
func TestRollbackKeepsEdits(t *testing.T) {
	b := everyKind(t)
	want := b.tree()
	b.mustApply()
	b.put("/etc/a", "edited")
	b.own("/etc/a", 0o600, 0, 0)
	want["/etc/a"] = "file 0600 0:0 edited"
	b.put("/etc/new/er/mine", "mine")
	for _, p := range []string{"/etc/new", "/etc/new/er"} {
		want[p] = "directory 0755 0:0"
	}
	want["/etc/new/er/mine"] = "file 0644 0:0 mine"
	b.check(os.Remove(b.at("/etc/dir-link")))
	b.check(os.Symlink("/opt", b.at("/etc/dir-link"))) // what was below must not land in /opt
	b.mkdir("/opt")
	want["/etc/dir-link"], want["/opt"] = "link /opt", "directory 0755 0:0"
	delete(want, "/etc/dir-link/x")
	b.put("/etc/file-dir/mine", "mine")
	want["/etc/file-dir"], want["/etc/file-dir/mine"] = "directory 0755 0:0", "file 0644 0:0 mine"
	b.check(os.Remove(b.at("/etc/link-file")))
	delete(want, "/etc/link-file")
	b.rollBack(
		"/etc/a was changed since and is kept as it is",
		"/etc/dir-link was changed since and is kept as it is",
		"/etc/link-file was changed since and is kept as it is",
		"/etc/file-dir is kept as it is: there is something in it that the change did not make",
		"/etc/new/er was kept: it is not empty",
		"/etc/new was kept: it is not empty",
	)
	b.expect(want)
}
