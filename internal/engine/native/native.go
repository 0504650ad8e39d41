// Package native carries a plan out in this process, as one transaction.
//
// Its one rule: new contents lie complete and durable beside their targets
// before the first target is replaced, and every temporary name follows from
// the change, so that whatever a crash leaves is found and finished.
package native

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Engine is the embedded engine.
type Engine struct {
	Host     *host.Host
	Blobs    string // directory of contents by SHA-256, complete for the plan
	Secrets  *secret.Keys
	Accounts plan.Accounts
	Runner   run.Runner
}

// Check makes sure that every file system has room for what will be written.
func (e *Engine) Check(_ context.Context, job *engine.Job) (engine.Result, error) {
	return engine.Result{}, e.checkSpace(job.Plan)
}

// checkSpace counts what lies beside the old files before they are replaced.
func (e *Engine) checkSpace(p *plan.Plan) error {
	type demand struct {
		free, need uint64
		first      string
	}
	demands := map[uint64]*demand{}
	for i := range p.Items {
		item := &p.Items[i]
		if !item.NeedsContent() {
			continue
		}
		dir, err := e.existingParent(item.Path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(dir, &fs)); err != nil {
			return fmt.Errorf("looking for free space at %s: %w", item.Path, err)
		}
		d := demands[st.Dev]
		if d == nil {
			d = &demand{free: fs.Bavail * uint64(fs.Bsize), first: item.Path}
			demands[st.Dev] = d
		}
		block := uint64(fs.Bsize)
		d.need += (uint64(item.After.Size) + block - 1) / block * block
	}
	for _, d := range demands {
		if d.need > d.free {
			return fmt.Errorf("%w on the file system of %s: %d bytes are to be written, %d are free", unix.ENOSPC, d.first, d.need, d.free)
		}
	}
	return nil
}

func (e *Engine) existingParent(p string) (string, error) {
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		real, err := e.Host.Path(dir)
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(real); err == nil && info.IsDir() {
			return real, nil
		}
		if dir == "/" {
			return real, nil
		}
	}
}

// Apply carries the plan out: see the package's rule.
func (e *Engine) Apply(ctx context.Context, job *engine.Job) (engine.Result, error) {
	t := newTransaction(e, job)
	return t.conclude(t.run(ctx))
}

// untouched tells whether every path is as it was when the change was pinned.
func (t *transaction) untouched() (bool, error) {
	for _, item := range t.work() {
		now, err := disk.At(t.Host, item.Path)
		if err != nil || !now.Equal(item.Before) {
			return false, err
		}
	}
	return true, nil
}

// Clean removes temporary files; what was put in place stays.
func (e *Engine) Clean(_ context.Context, job *engine.Job) error {
	return (&transaction{Engine: e, job: job}).undoStaging()
}

func newTransaction(e *Engine, job *engine.Job) *transaction {
	return &transaction{Engine: e, job: job, dirs: map[string]bool{}, roots: map[uint64]string{}, labels: map[string]string{}}
}

type transaction struct {
	*Engine
	job    *engine.Job
	result engine.Result

	// begun: something that stood on the host was replaced or removed.
	begun bool
	made  []string          // directories made for staging, of this machine, parents first
	dirs  map[string]bool   // directories of this machine whose names changed
	roots map[uint64]string // a path on every file system that was written
	// labels are the SELinux contexts of the final paths, where it is enabled.
	labels map[string]string
	// backups are where contents lie that are brought back, by their SHA-256.
	backups map[string]string
}

// begin makes what the files need, and returns the items that are still to be written.
func (t *transaction) begin(ctx context.Context) ([]*plan.Item, error) {
	if err := t.readLabels(ctx); err != nil {
		return nil, err
	}
	if err := t.sysusers(ctx); err != nil {
		return nil, err
	}
	return t.left()
}

func (t *transaction) run(ctx context.Context) error {
	items, err := t.begin(ctx)
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.stage(item); err != nil {
			return fmt.Errorf("preparing %s: %w", item.Path, err)
		}
	}
	if err := t.sync(); err != nil {
		return err
	}
	for _, item := range Order(items) {
		if err := t.commit(item); err != nil {
			return fmt.Errorf("writing %s: %w", item.Path, err)
		}
	}
	if err := t.syncNames(); err != nil {
		return err
	}
	if t.job.Manifest == nil {
		return nil // a rollback: the generation before has its own
	}
	return t.fillManifest()
}

// work are the items that this engine writes.
func (t *transaction) work() []*plan.Item {
	var items []*plan.Item
	for i := range t.job.Plan.Items {
		if item := &t.job.Plan.Items[i]; item.Write {
			items = append(items, item)
		}
	}
	return items
}

// left is work without what an earlier run removed together with the
// directory that held it: where a link or a file has taken the directory's
// place, the path below it leads elsewhere.
func (t *transaction) left() ([]*plan.Item, error) {
	var items []*plan.Item
	gone := map[string]bool{}
	for _, item := range t.work() { // sorted: a directory comes before what is in it
		if item.After.Kind == disk.Absent && gone[path.Dir(item.Path)] {
			gone[item.Path] = true
			continue
		}
		items = append(items, item)
		if !replacesDirectory(item) {
			continue
		}
		real, err := t.Host.Path(item.Path)
		if err != nil {
			return nil, err
		}
		now, _, err := disk.Look(real)
		if err != nil {
			return nil, err
		}
		gone[item.Path] = now.Kind != disk.Directory
	}
	return items, nil
}

func replacesDirectory(item *plan.Item) bool {
	return item.Before.Kind == disk.Directory && item.After.Kind != disk.Directory && item.After.Kind != disk.Absent
}

// Order sorts a plan's items as they are put in place: first what must be out
// of the way of another kind of file, then what is made, parents and units
// before their drop-ins, then what is removed, the other way round.
func Order(items []*plan.Item) []*plan.Item {
	obstructs := Obstructs(items)
	phase := func(item *plan.Item) int {
		switch {
		case obstructs(item):
			return 0
		case item.After.Kind == disk.Absent:
			return 3
		case item.After.Kind == disk.HardLink:
			return 2
		}
		return 1
	}
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b *plan.Item) int {
		pa, pb := phase(a), phase(b)
		if pa != pb {
			return pa - pb
		}
		if pa == 0 || pa == 3 {
			a, b = b, a
		}
		return strings.Compare(a.Path, b.Path)
	})
	return sorted
}

// Obstructs tells which items are removed because a directory above them gives
// way to another kind of file.
func Obstructs(items []*plan.Item) func(*plan.Item) bool {
	replaced := map[string]bool{}
	for _, item := range items {
		if replacesDirectory(item) {
			replaced[item.Path] = true
		}
	}
	return func(item *plan.Item) bool { return item.After.Kind == disk.Absent && below(item.Path, replaced) }
}

// maxName is the longest name in a directory (NAME_MAX).
const maxName = 255

// temp is where the new content of a path waits: beside it, so that a rename
// can put it in place.
func (t *transaction) temp(real string) string {
	name := filepath.Base(real)
	suffix := ".reconf-" + t.job.ID
	if len(name)+len(suffix)+1 > maxName {
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:8])
	}
	return filepath.Join(filepath.Dir(real), "."+name+suffix)
}

// stage puts what a path will be beside it, complete.
func (t *transaction) stage(item *plan.Item) error {
	real, err := t.Host.Path(item.Path)
	if err != nil {
		return err
	}
	now, _, err := disk.Read(real)
	if err != nil {
		return err
	}
	if t.isDone(item, real, now) {
		// A crash may have come between the rename and this run: the leftover of a
		// half staged file goes.
		return removeIfThere(t.temp(real))
	}
	if err := t.checkLate(item, real, now); err != nil {
		return err
	}
	switch item.After.Kind {
	case disk.Directory:
		return t.makeDirectory(item, real, now)
	case disk.File:
		if item.NeedsContent() || now.Kind != disk.File {
			return t.stageFile(item, real)
		}
	case disk.Link:
		return t.stageLink(item, real)
	}
	return nil
}

// checkLate keeps what somebody put at the path since the change was pinned.
func (t *transaction) checkLate(item *plan.Item, real string, now disk.Node) error {
	if now.Kind == disk.Other {
		return errors.New("a device, a socket or a pipe was put there while the update ran: reconf-pull does not replace it")
	}
	// A directory, or another owner or mode, may be half of our own work, also where
	// the contents are in place already.
	if !now.SameContent(item.Before) && !now.SameContent(item.After) && now.Kind != disk.Absent && now.Kind != disk.Directory {
		if err := t.backupLate(item, real, now); err != nil {
			return err
		}
	}
	return nil
}

// isDone tells whether an earlier run got as far as this path.
func (t *transaction) isDone(item *plan.Item, real string, now disk.Node) bool {
	if item.After.Kind != disk.HardLink {
		return item.After.Equal(now)
	}
	target, err := t.Host.Path(item.After.Target)
	if err != nil {
		return false
	}
	return sameFile(real, target) && !t.staged(target)
}

func (t *transaction) staged(real string) bool {
	_, err := os.Lstat(t.temp(real))
	return err == nil
}

func sameFile(a, b string) bool {
	one, err1 := os.Lstat(a)
	two, err2 := os.Lstat(b)
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}

func removeIfThere(p string) error {
	err := os.Remove(p)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// A read-only file system refuses before it looks.
	if _, look := os.Lstat(p); errors.Is(look, os.ErrNotExist) {
		return nil
	}
	return err
}

// makeDirectory makes a directory while staging, because others are staged
// inside it. One that exists gets its owner and mode with the commit.
func (t *transaction) makeDirectory(item *plan.Item, real string, now disk.Node) error {
	switch now.Kind {
	case disk.Directory:
		return nil
	case disk.Absent:
	default:
		if err := os.Remove(real); err != nil {
			return err
		}
		t.begun = true
		t.Host.Forget() // a link that led elsewhere
	}
	if err := os.Mkdir(real, 0o700); err != nil {
		return err
	}
	if now.Kind == disk.Absent {
		t.made = append(t.made, real)
	}
	t.wrote(real)
	return t.own(real, item)
}

func (t *transaction) stageFile(item *plan.Item, real string) (err error) {
	temp := t.temp(real)
	if err := removeIfThere(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if item.After.SHA256 != "" {
		err = t.copyBlob(f, item.After)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	t.wrote(real)
	keepAttributes(real, temp)
	return t.own(temp, item)
}

// copyBlob copies what the pin stored, sharing the blocks where the file
// system can, and checks every byte that it copies.
func (t *transaction) copyBlob(into *os.File, node disk.Node) error {
	stored, ok := t.backups[node.Stored()]
	if !ok {
		stored = filepath.Join(t.Blobs, node.Stored())
	}
	if node.Secret {
		return t.copySecret(into, stored, node)
	}
	sum := node.SHA256
	blob, err := os.Open(stored)
	if err != nil {
		return fmt.Errorf("%w: %w", engine.ErrDamaged, err)
	}
	defer blob.Close()
	seen := sha256.New()
	if err := unix.IoctlFileClone(int(into.Fd()), int(blob.Fd())); err == nil {
		_, err = io.Copy(seen, blob)
		if err != nil {
			return err
		}
	} else if _, err := io.Copy(io.MultiWriter(into, seen), blob); err != nil {
		return err
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != sum {
		return fmt.Errorf("%w: %s hashes to %s", engine.ErrDamaged, blob.Name(), got)
	}
	return nil
}

// copySecret decrypts what the pin stored.
func (t *transaction) copySecret(into io.Writer, stored string, node disk.Node) error {
	r, err := engine.Stored(stored, node, t.Secrets)
	if err != nil {
		return err
	}
	defer r.Close()
	seen := sha256.New()
	if _, err := io.Copy(io.MultiWriter(into, seen), r); errors.Is(err, secret.ErrDamaged) {
		return fmt.Errorf("%w: %w", engine.ErrDamaged, err)
	} else if err != nil {
		return err
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != node.SHA256 {
		return fmt.Errorf("%w: it is another secret", engine.ErrDamaged)
	}
	return nil
}

// Contents opens the wanted bytes of a file, as they were pinned.
func (e *Engine) Contents(node disk.Node) (io.ReadCloser, error) {
	return engine.Stored(filepath.Join(e.Blobs, node.Stored()), node, e.Secrets)
}

func (t *transaction) stageLink(item *plan.Item, real string) error {
	temp := t.temp(real)
	if err := removeIfThere(temp); err != nil {
		return err
	}
	if err := os.Symlink(item.After.Target, temp); err != nil {
		return err
	}
	t.wrote(real)
	return t.own(temp, item)
}

// own gives a file its owner, label and mode; the owner first, because
// chown(2) takes set-uid bits away.
func (t *transaction) own(real string, item *plan.Item) error {
	if err := os.Lchown(real, item.After.UID, item.After.GID); err != nil {
		return err
	}
	if label := t.labels[item.Path]; label != "" {
		if err := unix.Lsetxattr(real, "security.selinux", []byte(label), 0); err != nil {
			return fmt.Errorf("setting the SELinux label %s: %w", label, err)
		}
	}
	if item.After.Kind == disk.Link {
		return nil
	}
	return unix.Chmod(real, item.After.Mode)
}

// wrote remembers the file system and the directory of what was written.
func (t *transaction) wrote(real string) {
	dir := filepath.Dir(real)
	if t.dirs[dir] {
		return
	}
	t.dirs[dir] = true
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil {
		t.roots[st.Dev] = dir
	}
}

// sync makes all that was staged durable, with one call per file system.
func (t *transaction) sync() error {
	for _, dir := range t.roots {
		err := atomicfile.SyncFS(dir)
		for isGone(err) {
			dir = filepath.Dir(dir)
			err = atomicfile.SyncFS(dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// syncNames makes the renames durable: directory by directory while they are
// few, else again the whole file system.
func (t *transaction) syncNames() error {
	const few = 16
	if len(t.dirs) > few {
		return t.sync()
	}
	for dir := range t.dirs {
		if err := atomicfile.SyncDir(dir); err != nil && !isGone(err) {
			return err
		}
	}
	return nil
}

// isGone tells that a directory was removed since it was written to, or that
// one above it gave way to another kind of file.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// commit puts one path in place.
func (t *transaction) commit(item *plan.Item) error {
	real, err := t.Host.Path(item.Path)
	if err != nil {
		return err
	}
	switch item.After.Kind {
	case disk.Absent:
		return t.remove(item, real)
	case disk.Directory:
		t.begun = true
		return t.own(real, item)
	case disk.HardLink:
		return t.link(item, real)
	}
	if !t.staged(real) {
		if now, _, err := disk.Look(real); err != nil || now.Kind != item.After.Kind || item.After.Kind == disk.Link {
			return err // a link, or a file of another kind, was put in place before a crash
		}
		t.begun = true
		return t.own(real, item)
	}
	return t.replace(real)
}

// replace renames what was staged over the path.
func (t *transaction) replace(real string) error {
	t.wrote(real)
	if info, err := os.Lstat(real); err == nil && info.IsDir() {
		if err := os.Remove(real); err != nil {
			return err
		}
		t.begun = true
	}
	if err := os.Rename(t.temp(real), real); err != nil {
		return err
	}
	t.begun = true
	return nil
}

func (t *transaction) link(item *plan.Item, real string) error {
	target, err := t.Host.Path(item.After.Target)
	if err != nil {
		return err
	}
	if sameFile(real, target) {
		return nil // rename(2) would do nothing and leave the temporary name
	}
	temp := t.temp(real)
	if err := removeIfThere(temp); err != nil {
		return err
	}
	if err := os.Link(target, temp); err != nil {
		return err
	}
	return t.replace(real)
}

func (t *transaction) remove(item *plan.Item, real string) error {
	info, err := os.Lstat(real)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	t.wrote(real)
	if !info.IsDir() {
		err = os.Remove(real)
		t.begun = t.begun || err == nil
		return err
	}
	err = unix.Rmdir(real)
	t.begun = t.begun || err == nil
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		t.result.Notes = append(t.result.Notes, item.Path+" was kept: it is not empty")
		return nil
	}
	return err
}

// undoStaging takes away what was staged, when nothing was replaced yet. It tries
// every path, and returns the first error: a broken disk would say the same of all.
func (t *transaction) undoStaging() error {
	var first error
	for _, item := range t.work() {
		real, err := t.Host.Path(item.Path)
		if err == nil {
			err = removeIfThere(t.temp(real))
		}
		if err != nil && !errors.Is(err, unix.ENOTDIR) && first == nil {
			first = err
		}
	}
	for _, dir := range slices.Backward(t.made) {
		if err := removeIfThere(dir); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// fillManifest records what lies on the disk now, so that the next look at an
// unchanged file need not read it.
func (t *transaction) fillManifest() error {
	entries := t.job.Manifest.Lookup()
	for _, item := range t.work() {
		entry := entries[item.Path]
		if entry == nil || item.After.Kind == disk.Absent {
			continue
		}
		real, err := t.Host.Path(item.Path)
		if err != nil {
			return err
		}
		_, stat, err := disk.Look(real)
		if err != nil {
			return err
		}
		entry.Stat = stat
		// Names of accounts that this change made; the manifest's file has no
		// names, so after a crash they are not in it.
		entry.UID, entry.GID, entry.User, entry.Group = item.After.UID, item.After.GID, "", ""
	}
	return state.WriteManifest(filepath.Join(t.job.Dir, "manifest"), t.job.Manifest)
}
