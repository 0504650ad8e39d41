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
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
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

// demand is what is going to be written to one file system.
type demand struct {
	free, need uint64
	first      string // path that is written there
	own        bool   // there is one in root's place: others are blocked, each for itself
}

// checkSpace counts what lies beside the old files before they are replaced, and
// their copies in the state.
func (e *Engine) checkSpace(p *plan.Plan) error {
	demands := map[uint64]*demand{}
	for i := range p.Items {
		item := &p.Items[i]
		if item.NeedsContent() {
			if err := e.demand(demands, item); err != nil {
				return err
			}
		}
	}
	if err := e.demandCopies(demands, p); err != nil {
		return err
	}
	for _, d := range demands {
		if d.own && d.need > d.free {
			return fmt.Errorf("%w on the file system of %s: %d bytes are to be written, %d are free",
				syscall.ENOSPC, d.first, d.need, d.free)
		}
	}
	return nil
}

func (e *Engine) demand(demands map[uint64]*demand, item *plan.Item) error {
	ground, err := e.Host.Files.Ground(item.Path)
	var blocked *fsat.BlockedError
	if errors.As(err, &blocked) {
		return nil // nothing will be written
	}
	if err != nil {
		return fmt.Errorf("looking for free space at %s: %w", item.Path, err)
	}
	d := demands[ground.Device]
	if d == nil {
		d = &demand{free: ground.Free, first: item.Path}
		demands[ground.Device] = d
	}
	d.own = d.own || item.Place == nil
	d.need += (uint64(item.After.Size) + ground.Block - 1) / ground.Block * ground.Block
	return nil
}

// demandCopies counts the copies that the pin makes of what is replaced: as many bytes
// as the files take, holes left out.
func (e *Engine) demandCopies(demands map[uint64]*demand, p *plan.Plan) error {
	var need uint64
	for i := range p.Items {
		item := &p.Items[i]
		copied := item.Write && item.Before.Kind == disk.File && !item.After.SameContent(item.Before)
		if !copied {
			continue
		}
		found, err := e.Host.Files.Look(item.Path)
		if err != nil {
			continue // it will not be copied
		}
		size := uint64(found.Allocated)
		if item.Secret() { // encrypted, there are no holes
			size = uint64(found.Size())
		}
		if need += size; item.Pristine != nil {
			need += size
		}
	}
	if need == 0 {
		return nil
	}
	device, free, err := state.Free(e.Blobs)
	if err != nil {
		return err
	}
	d := demands[device]
	if d == nil {
		d = &demand{free: free, first: e.Blobs}
		demands[device] = d
	}
	d.own = true
	d.need += need
	return nil
}

// Apply carries the plan out: see the package's rule.
func (e *Engine) Apply(ctx context.Context, job *engine.Job) (engine.Result, error) {
	t := newTransaction(e, job)
	return t.conclude(t.run(ctx))
}

// untouched tells whether every path is as it was when the change was pinned.
func (t *transaction) untouched() (bool, error) {
	for _, item := range t.work() {
		now, err := t.read(context.Background(), item)
		var blocked *fsat.BlockedError
		if errors.As(err, &blocked) {
			continue // whatever it is, it is not our work
		}
		if err != nil || !now.Equal(item.Before) {
			return false, err
		}
	}
	return true, nil
}

// read is what stands at the path of an item, with the hash of its bytes. What the
// change found or writes may have as many as it has.
func (t *transaction) read(ctx context.Context, item *plan.Item) (fsat.Found, error) {
	return t.Host.Files.Read(ctx, item.Path, max(fsat.Most, item.Before.Size, item.After.Size))
}

// Clean removes temporary files; what was put in place stays.
func (e *Engine) Clean(_ context.Context, job *engine.Job) error {
	return (&transaction{Engine: e, job: job}).undoStaging()
}

func newTransaction(e *Engine, job *engine.Job) *transaction {
	return &transaction{
		Engine: e, job: job, staged: map[string]fsat.ID{}, blocked: map[string]state.Blocked{},
		dirs: map[string]bool{}, roots: map[uint64]string{}, labels: map[string]string{},
	}
}

type transaction struct {
	*Engine
	job    *engine.Job
	result engine.Result

	// begun: something that stood on the host was replaced or removed.
	begun bool
	made  []string // directories made for staging, parents first
	// staged is what lies beside its path, to be put in its place.
	staged map[string]fsat.ID
	// blocked are paths that somebody keeps from being written.
	blocked map[string]state.Blocked
	dirs    map[string]bool   // directories whose names changed
	roots   map[uint64]string // a directory on every file system that was written
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
	if err := t.write(ctx, items); err != nil {
		return err
	}
	if err := t.syncNames(); err != nil {
		return err
	}
	if t.job.Manifest == nil {
		return nil // a rollback: the generation before has its own
	}
	return t.fillManifest()
}

// write stages the items and puts them in place.
func (t *transaction) write(ctx context.Context, items []*plan.Item) error {
	for _, item := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.stage(ctx, item); err != nil && !t.leaves(item, err) {
			return fmt.Errorf("preparing %s: %w", item.Path, err)
		}
	}
	if err := t.sync(); err != nil {
		return err
	}
	for _, item := range giveAwayLast(Order(items)) {
		if _, blocked := t.blocked[item.Path]; blocked {
			continue
		}
		if err := t.commit(item); err != nil && !t.leaves(item, err) {
			return fmt.Errorf("writing %s: %w", item.Path, err)
		}
	}
	return nil
}

// leaves tells whether an error is that somebody blocks the path of an item. It is left
// as it is, and all else goes on.
func (t *transaction) leaves(item *plan.Item, err error) bool {
	var blocked *fsat.BlockedError
	if !errors.As(err, &blocked) {
		return false
	}
	t.blocked[item.Path] = state.Blocked{Path: item.Path, Reason: blocked.Reason, Place: blocked.Place, Late: true}
	// In vain where it is somewhere else by now: it is in his place, and as he may have it.
	_ = t.Host.Files.RemoveBeside(item.Path, t.temp(item.Path))
	return true
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
		now, err := t.Host.Files.Look(item.Path)
		if err != nil && !t.leaves(item, err) {
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

// giveAwayLast puts directories that are given away behind all else, the deepest first:
// what is in them is put in place while that is the place that the plan saw.
func giveAwayLast(items []*plan.Item) []*plan.Item {
	kept, given := []*plan.Item(nil), []*plan.Item(nil)
	for _, item := range items {
		if givesAway(item) {
			given = append(given, item)
		} else {
			kept = append(kept, item)
		}
	}
	slices.Reverse(given)
	return append(kept, given...)
}

// givesAway tells whether a directory goes to another user than root, or opens to more.
func givesAway(item *plan.Item) bool {
	const others, group = 0o002, 0o020
	before, after := item.Before, item.After
	if before.Kind != disk.Directory || after.Kind != disk.Directory {
		return false
	}
	return after.UID != 0 && after.UID != before.UID || after.Mode&^before.Mode&(others|group) != 0 ||
		after.GID != before.GID && after.Mode&group != 0
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

// temp is what the new content of a path is called while it waits beside it, so that a
// rename can put it in place.
func (t *transaction) temp(p string) string {
	name := path.Base(p)
	suffix := ".reconf-" + t.job.ID
	if len(name)+len(suffix)+1 > maxName {
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:8])
	}
	return "." + name + suffix
}

// stage puts what a path will be beside it, complete.
func (t *transaction) stage(ctx context.Context, item *plan.Item) error {
	now, err := t.read(ctx, item)
	if err != nil {
		return err
	}
	if t.isDone(item, now.Node) {
		// A crash may have come between the rename and this run: the leftover of a
		// half staged file goes.
		return t.Host.Files.RemoveBeside(item.Path, t.temp(item.Path))
	}
	if err := t.checkLate(ctx, item, now); err != nil {
		return err
	}
	switch item.After.Kind {
	case disk.Directory:
		return t.makeDirectory(item, &now)
	case disk.File:
		if item.NeedsContent() || now.Kind != disk.File {
			return t.stageFile(ctx, item)
		}
	case disk.Link:
		return t.stageLink(item)
	}
	return nil
}

// checkLate keeps what somebody put at the path since the change was pinned.
func (t *transaction) checkLate(ctx context.Context, item *plan.Item, now fsat.Found) error {
	if now.Kind == disk.Other {
		why := "a device, a socket or a pipe was put there while the update ran: reconf-pull does not replace it"
		if !now.Place.Root() {
			return &fsat.BlockedError{Path: item.Path, Place: now.Place, Reason: why}
		}
		return errors.New(why)
	}
	// A directory, or another owner or mode, may be half of our own work, also where
	// the contents are in place already.
	edited := !now.Node.SameContent(item.Before) && !now.Node.SameContent(item.After)
	if edited && now.Kind != disk.Absent && now.Kind != disk.Directory {
		if err := t.backupLate(ctx, item, now.Node); err != nil {
			return err
		}
	}
	return nil
}

// isDone tells whether an earlier run got as far as this path.
func (t *transaction) isDone(item *plan.Item, now disk.Node) bool {
	if item.After.Kind != disk.HardLink {
		return item.After.Equal(now)
	}
	return t.isLinked(item) && !t.Host.Files.Exists(path.Join(path.Dir(item.After.Target), t.temp(item.After.Target)))
}

// isLinked tells whether a path is a name of its target already.
func (t *transaction) isLinked(item *plan.Item) bool {
	one, err1 := t.Host.Files.Look(item.Path)
	two, err2 := t.Host.Files.Look(item.After.Target)
	return err1 == nil && err2 == nil && one.SameFile(&two)
}

// makeDirectory makes a directory while staging, because others are staged
// inside it. One that exists gets its owner and mode with the commit, but a half made one
// in somebody's place is made anew.
func (t *transaction) makeDirectory(item *plan.Item, now *fsat.Found) error {
	switch {
	case now.Kind == disk.Directory && (!now.HalfMade() || item.Known.Is(now)):
		return nil
	case now.Kind == disk.Absent:
	default:
		removed, err := t.Host.Files.Remove(item.Path)
		t.begun = t.begun || removed
		if now.Kind == disk.Directory && errors.Is(err, fsat.ErrNotEmpty) {
			return nil // it is somebody's
		}
		if err != nil {
			return err
		}
	}
	if err := t.Host.Files.Mkdir(item.Path, t.attributes(item)); err != nil {
		return err
	}
	if now.Kind == disk.Absent {
		t.made = append(t.made, item.Path)
	}
	t.wrote(item.Path)
	return nil
}

// attributes are the owner, mode and label that an item gets.
func (t *transaction) attributes(item *plan.Item) fsat.Attributes {
	return fsat.Attributes{Node: item.After, Label: t.labels[item.Path]}
}

func (t *transaction) stageFile(ctx context.Context, item *plan.Item) error {
	id, err := t.Host.Files.Create(item.Path, t.temp(item.Path), t.attributes(item), func(f *fsat.Draft) error {
		if item.After.SHA256 == "" {
			return nil
		}
		return t.copyBlob(ctx, f, item.After)
	})
	if err != nil {
		return err
	}
	t.staged[item.Path] = id
	t.wrote(item.Path)
	return nil
}

// copyBlob copies what the pin stored, sharing the blocks where the file
// system can, and checks every byte that it copies.
func (t *transaction) copyBlob(ctx context.Context, into *fsat.Draft, node disk.Node) error {
	stored, ok := t.backups[node.Stored()]
	if !ok {
		stored = filepath.Join(t.Blobs, node.Stored())
	}
	if node.Secret {
		return t.copySecret(ctx, into, stored, node)
	}
	blob, err := engine.Stored(stored, node, t.Secrets)
	if err != nil {
		return fmt.Errorf("%w: %w", engine.ErrDamaged, err)
	}
	defer blob.Close()
	seen := sha256.New()
	to := io.Writer(seen)
	if !into.Clone(blob) {
		to = io.MultiWriter(into, seen)
	}
	if _, err := io.Copy(to, fsat.Until(ctx, blob)); err != nil {
		return err
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != node.SHA256 {
		return fmt.Errorf("%w: %s hashes to %s", engine.ErrDamaged, stored, got)
	}
	return nil
}

// copySecret decrypts what the pin stored.
func (t *transaction) copySecret(ctx context.Context, into io.Writer, stored string, node disk.Node) error {
	r, err := engine.Stored(stored, node, t.Secrets)
	if err != nil {
		return err
	}
	defer r.Close()
	seen := sha256.New()
	if _, err := io.Copy(io.MultiWriter(into, seen), fsat.Until(ctx, r)); errors.Is(err, secret.ErrDamaged) {
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

func (t *transaction) stageLink(item *plan.Item) error {
	id, err := t.Host.Files.Symlink(item.Path, t.temp(item.Path), item.After.Target, t.attributes(item))
	if err != nil {
		return err
	}
	t.staged[item.Path] = id
	t.wrote(item.Path)
	return nil
}

// wrote remembers the file system and the directory of what was written.
func (t *transaction) wrote(p string) {
	dir := path.Dir(p)
	if t.dirs[dir] {
		return
	}
	t.dirs[dir] = true
	if ground, err := t.Host.Files.Ground(p); err == nil {
		t.roots[ground.Device] = dir
	}
}

// sync makes all that was staged durable, with one call per file system.
func (t *transaction) sync() error {
	for _, dir := range t.roots {
		err := t.Host.Files.SyncFS(dir)
		for fsat.Gone(err) && dir != "/" {
			dir = path.Dir(dir)
			err = t.Host.Files.SyncFS(dir)
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
		if err := t.Host.Files.Sync(dir); err != nil && !fsat.Gone(err) {
			return err
		}
	}
	return nil
}

// commit puts one path in place.
func (t *transaction) commit(item *plan.Item) error {
	switch item.After.Kind {
	case disk.Absent:
		return t.remove(item)
	case disk.Directory:
		t.begun = true
		return t.Host.Files.Own(item.Path, t.attributes(item), item.Known, item.Before)
	case disk.HardLink:
		return t.link(item)
	}
	id, staged := t.staged[item.Path]
	if staged {
		return t.replace(item, id)
	}
	now, err := t.Host.Files.Look(item.Path)
	if err != nil || now.Kind != item.After.Kind || item.After.Kind == disk.Link {
		return err // a link, or a file of another kind, was put in place before a crash
	}
	t.begun = true
	return t.Host.Files.Own(item.Path, t.attributes(item), nil, disk.Node{})
}

// replace renames what was staged over the path.
func (t *transaction) replace(item *plan.Item, id fsat.ID) error {
	t.wrote(item.Path)
	changed, err := t.Host.Files.Rename(item.Path, t.temp(item.Path), id)
	t.begun = t.begun || changed
	delete(t.staged, item.Path)
	return err
}

func (t *transaction) link(item *plan.Item) error {
	if t.isLinked(item) {
		return nil // rename(2) would do nothing and leave the temporary name
	}
	id, err := t.Host.Files.Link(item.Path, t.temp(item.Path), item.After.Target)
	if err != nil {
		return err
	}
	return t.replace(item, id)
}

func (t *transaction) remove(item *plan.Item) error {
	removed, err := t.Host.Files.Remove(item.Path)
	if removed || err != nil {
		t.wrote(item.Path)
	}
	t.begun = t.begun || removed
	if errors.Is(err, fsat.ErrNotEmpty) {
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
		if err := t.Host.Files.RemoveBeside(item.Path, t.temp(item.Path)); err != nil && !fsat.Gone(err) && first == nil {
			first = err
		}
	}
	for _, dir := range slices.Backward(t.made) {
		if _, err := t.Host.Files.Remove(dir); err != nil && !fsat.Gone(err) && first == nil {
			first = err
		}
	}
	return first
}

// fillManifest records what lies on the disk now, so that the next look at an
// unchanged file need not read it, and which paths are blocked. These keep their entries:
// a later Apply of this change may get to them.
func (t *transaction) fillManifest() error {
	entries := t.job.Manifest.Lookup()
	for _, item := range t.work() {
		entry := entries[item.Path]
		if _, blocked := t.blocked[item.Path]; blocked || entry == nil || item.After.Kind == disk.Absent {
			continue
		}
		now, err := t.Host.Files.Look(item.Path)
		if err != nil && !t.leaves(item, err) {
			return err
		}
		entry.Stat = now.Stat
		// Names of accounts that this change made; the manifest's file has no
		// names, so after a crash they are not in it.
		entry.UID, entry.GID, entry.User, entry.Group = item.After.UID, item.After.GID, "", ""
	}
	if err := state.SaveBlocked(t.job.Dir, slices.Collect(maps.Values(t.blocked))); err != nil {
		return err
	}
	return state.WriteManifest(filepath.Join(t.job.Dir, "manifest"), t.job.Manifest)
}
