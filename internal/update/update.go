// Package update is one change of the host: what is pinned before it begins,
// and its ordered steps.
//
// Its one rule: once a change is pinned, everything that it needs lies in the
// state directory; no step asks the network or the mirror for anything.
package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Units carries out what a plan asks of the service manager. Below another
// root there is none, and only enablement is carried out.
type Units interface {
	// Touched tells what paths ask for that migrations changed, by the watches of the
	// fleet repo and those of the host.
	Touched(ctx context.Context, paths []string, watches []service.Watch) (service.Effect, error)
	// Before runs before the files are written, and again when more units turn out to
	// be touched: it remembers what the touched units do, and disables and stops those
	// that go.
	Before(ctx context.Context, dir string, p *plan.Plan) error
	// After runs when the files are written.
	After(ctx context.Context, dir string, p *plan.Plan) error
	// BeforeBack runs before the files are brought back: it disables and stops
	// what came with the change, by the files that it came with.
	BeforeBack(ctx context.Context, dir string, p *plan.Plan) error
	// Back brings units back to what Before saved, when the files are back.
	Back(ctx context.Context, dir string, p *plan.Plan) error
	// Healthy looks whether the units that the change touched still do what they did.
	Healthy(ctx context.Context, dir string, p *plan.Plan) error
	// Late touches the agent's own timer and path units, after the record.
	Late(ctx context.Context, p *plan.Plan) error
}

// Update carries changes out.
type Update struct {
	Host   *host.Host
	Dirs   state.Dirs
	State  *state.State
	Engine engine.Engine
	Units  Units
	Log    logrus.FieldLogger
	// Secrets are the host's keys: backups and contents of secrets are kept encrypted.
	Secrets *secret.Keys
	// Keep is how many generations stay on disk, at least 1.
	Keep int
	// MaxAttempts is how often a step is begun before it counts as failed for good.
	MaxAttempts int
	// Hooks are the host's script directories merged with those in dir, which are
	// the fleet repo's; nil below a root that is not running.
	Hooks func(dir string) Hooks
	// Reach asks the source once more, with the configuration read afresh; nil
	// where the host that is changed is not the one that asks.
	Reach func(ctx context.Context) error
	// Inhibit keeps others from shutting the machine down while a change is carried
	// out; nil where nobody could.
	Inhibit func(ctx context.Context, why string) (io.Closer, error)
	// Lifeline are further paths without which the source cannot be reached, the
	// agent's configuration and what that names.
	Lifeline []string
	// HealthSource is auto, always or never: when the health step asks the source.
	HealthSource string
	// Rebooting is how and when the machine is rebooted.
	Rebooting Rebooting
	// Backoff is how long a step that failed is left alone after its first start.
	Backoff time.Duration
	// Lock is the fleet lock; nil is none.
	Lock lock.Lock
	// LockReboots: it is for reboots and OS work only, not for every change.
	LockReboots bool
	// Broken are questions without an answer: the run that asked them ends with it.
	Broken error
	// KeepFailed leaves what a failed change did (apply.on_failure = "keep").
	KeepFailed bool
	// Doing is told the present step; it may be nil.
	Doing func(step string)

	inhibitor io.Closer
}

// Inputs is what a pinned change keeps beside its plan, for whoever shows or
// repeats it.
type Inputs struct {
	Ignored []desired.Section `json:"ignored,omitempty"`
	// Watches are the fleet repo's: what brings this generation back asks them.
	Watches []service.Watch `json:"watches,omitempty"`
	// Scripts are the fleet repo's; they lie beside the plan.
	Scripts []Script `json:"scripts,omitempty"`
	engine.Request
}

// ErrDamaged says that what was pinned cannot be read back whole: the change
// has to be made anew from its source.
var ErrDamaged = engine.ErrDamaged

// steps is the order of a change.
func (u *Update) steps(c *state.Change, job *engine.Job) []pipeline.Step {
	return []pipeline.Step{
		before("needs-update"), // is there OS work besides the config?
		before("check"),        // the plan, the engine's dry run
		before("lock"),         // the window, then the fleet lock
		&script{u, c, job, "pre-update", hooks.PreUpdate},       // drain, stop what must not run meanwhile
		&script{u, c, job, "pre-configure", hooks.PreConfigure}, // prepare what the files need
		&configure{u, c, job},                                   // units that go are stopped, then files are written
		&postConfigure{u, c, job},                               // units are reloaded, enabled, restarted
		&migration{u, c, job},                                   // each script once for its content, after the services run
		&osUpdate{script{u, c, job, "update", hooks.Update}},    // OS packages, images
		&needsReboot{u, c, job},                                 // a question, a path, a unit
		&reboot{u: u, change: c},                                // waits for another boot, or puts it off
		&script{u, c, job, "post-update", hooks.PostUpdate},     // start again, verify
		&health{u, c, job},                                      // this boot, changed units, health.d, the way to the fleet repo
		&record{u, c, job},                                      // the change becomes a generation
		&release{u},                                             // the fleet lock
	}
}

// foregone are the steps that have nothing to do in a change of this kind: they
// are done, and say why.
func (u *Update) foregone(c *state.Change) {
	skip := func(why string, names ...string) {
		for _, name := range names {
			now := u.Host.Now()
			c.Tasks = append(c.Tasks, state.Task{Name: name, Status: state.Done, Detail: "skipped: " + why, Started: now, Ended: now})
		}
	}
	configuring := []string{"pre-configure", "configure", "post-configure", "migration"}
	switch {
	case c.OnlyOS && c.OSWork:
		skip("only OS work is due", configuring...)
	case c.OnlyOS:
		skip("only the pending reboot is due", append(configuring, "update", "needs-reboot")...)
	case !c.OSWork:
		skip("no OS work is due", "update")
	}
}

// Check has the engine look whether it can carry a plan out, as Pin does once
// more. Nothing is stored for it.
func (u *Update) Check(ctx context.Context, p *plan.Plan, request engine.Request) error {
	return u.check(ctx, &engine.Job{Plan: p, Manifest: &p.Manifest, Request: request})
}

func (u *Update) check(ctx context.Context, job *engine.Job) error {
	if _, err := u.Engine.Check(ctx, job); err != nil {
		return fmt.Errorf("checking the change: %w", err)
	}
	return nil
}

// Pin stores everything that the change needs and makes it the change under
// way. Nothing on the host is touched. After an error nothing is pinned.
func (u *Update) Pin(ctx context.Context, change *state.Change, p *plan.Plan, in Inputs) (err error) {
	change.ID, err = u.newID(change.Digest)
	if err != nil {
		return err
	}
	if err := u.firstSave(); err != nil {
		return err
	}
	dir := u.Dirs.Change(change.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("staging the change: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	job := &engine.Job{ID: change.ID, Dir: dir, Plan: p, Manifest: &p.Manifest, Request: in.Request}
	if err := u.check(ctx, job); err != nil {
		return err
	}
	if err := u.stage(ctx, dir, p, in); err != nil {
		return fmt.Errorf("staging the change: %w", err)
	}
	// Made before the change is, by the same sync: a boot that finds it and no
	// change has only looked once too often.
	if err := os.WriteFile(u.Dirs.Resume(), nil, 0o600); err != nil {
		return fmt.Errorf("staging the change: %w", err)
	}
	if err := atomicfile.SyncFS(u.Dirs.State); err != nil {
		return fmt.Errorf("staging the change: %w", err)
	}
	change.Pinned = u.Host.Now()
	u.foregone(change)
	if err := u.runner(change).Begin(change, u.steps(change, job)); err != nil {
		return err
	}
	superseded := u.State.Change
	if superseded != nil {
		if err := u.bringBack(superseded.ID); err != nil {
			return fmt.Errorf("staging the change: %w", err)
		}
		u.State.Open = append(u.State.Open, superseded.ID)
	}
	u.State.Change = change
	if err := state.Save(u.Dirs, u.State); err != nil {
		u.State.Change = superseded
		if superseded != nil {
			u.State.Open = u.State.Open[:len(u.State.Open)-1]
		}
		return err
	}
	return nil
}

// newID names a change after the generation that it may become and its
// digest, which is what a person compares. A directory of that name that no
// state names was left by a crash before the pin.
func (u *Update) newID(digest string) (string, error) {
	next := 1
	if u.State.Applied != nil {
		next = u.State.Applied.Generation + 1
	}
	const short = 8
	base := strconv.Itoa(next) + "-" + digest[:min(short, len(digest))]
	for n := 1; ; n++ {
		id := base
		if n > 1 {
			id += "." + strconv.Itoa(n)
		}
		if !slices.Contains(u.attempted(), id) {
			return id, os.RemoveAll(u.Dirs.Change(id))
		}
	}
}

// stage writes contents, backups, pristine copies, scripts, plan and manifest. One
// syncfs follows, so nothing here is synced by itself but pristine copies,
// which outlive the change.
func (u *Update) stage(ctx context.Context, dir string, p *plan.Plan, in Inputs) (err error) {
	var fresh []string // contents that nothing names yet
	defer func() {
		if err == nil {
			return
		}
		// A disk that is full must not stay full of what the next push replaces.
		for _, blob := range fresh {
			if cleanup := os.Remove(blob); cleanup != nil {
				err = errors.Join(err, secret.WithoutPath(cleanup)) // the disk that refuses one refuses all
				break
			}
		}
	}()
	store := func(c plan.Content) error {
		stored, err := u.storeBlob(ctx, c)
		if stored {
			fresh = append(fresh, u.blob(c.Node))
		}
		if err != nil && c.Secret {
			return secret.WithoutPath(err)
		}
		return err
	}
	for i := range p.Items {
		item := &p.Items[i]
		// A file that is adopted as it is may have a pristine half that later
		// changes start from: what it was before Ignition appended to it.
		if !item.Write && item.Pristine == nil {
			continue
		}
		if item.NeedsContent() {
			if err := store(plan.Content{Node: item.After, Open: item.Open}); err != nil {
				return fmt.Errorf("%s: %w", item.Path, err)
			}
		}
		err := u.keepBefore(ctx, dir, i, item)
		var blocked *fsat.BlockedError
		if item.Place != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
			err = &fsat.BlockedError{Path: item.Path, Place: *item.Place, Reason: "there is no room for a copy of what is there"}
		}
		if errors.As(err, &blocked) {
			p.Block(item, blocked)
		} else if err != nil {
			return fmt.Errorf("%s: %w", item.Path, err)
		}
	}
	for _, content := range p.Contents {
		// The generation keeps all that it manages, also what was there already:
		// it may have to be brought back while the source cannot be reached. What
		// this change does not write need not be read to be believed.
		info, err := os.Stat(u.blob(content.Node))
		if err == nil && (content.Secret && content.Known || !content.Secret && info.Size() == content.Size) {
			continue // a secret may have been encrypted anew, because the host has another key
		}
		if err := store(content); err != nil {
			return fmt.Errorf("storing contents: %w", err)
		}
	}
	if err := storeScripts(ctx, dir, in.Scripts); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "plan.json"), p); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "inputs.json"), in); err != nil {
		return err
	}
	if err := writeLists(dir, p); err != nil {
		return err
	}
	return state.StageManifest(filepath.Join(dir, "manifest"), &p.Manifest)
}

func (u *Update) blob(n disk.Node) string { return filepath.Join(u.Dirs.Blobs(), n.Stored()) }

// keepBefore copies what the change is going to replace.
func (u *Update) keepBefore(ctx context.Context, dir string, i int, item *plan.Item) error {
	if item.Pristine != nil {
		if err := u.keepPristine(ctx, item); err != nil {
			return err
		}
	}
	if !item.Write || item.Before.Kind != disk.File || item.After.SameContent(item.Before) {
		return nil
	}
	dir = filepath.Join(dir, "backups")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	in, err := u.asPlanned(ctx, item, item.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	return u.copyFile(in, filepath.Join(dir, engine.Backup(i, item.Before)))
}

// asPlanned opens what stands at the path of an item. In somebody's place it has to be
// what the plan saw: its bytes come back with that owner and mode.
func (u *Update) asPlanned(ctx context.Context, item *plan.Item, p string) (*fsat.File, error) {
	f, err := u.Host.Files.Open(ctx, p, max(fsat.Most, item.Before.Size))
	if err != nil {
		return nil, err
	}
	now := f.Found.Node
	if now.SHA256 = item.Before.SHA256; p != item.Path || f.Found.Writers.Root() {
		return f, nil
	}
	if !item.Before.Equal(now) {
		return nil, errors.Join(changedMeanwhile(&f.Found), f.Close())
	}
	f.Expect(item.Before.SHA256)
	return f, nil
}

func changedMeanwhile(found *fsat.Found) error {
	const why = "somebody changed it while its copy was made"
	return &fsat.BlockedError{Path: found.Path, Place: found.Writers, Reason: why}
}

// storeBlob writes the wanted bytes by their hash, unless they are there, and
// tells whether it did.
func (u *Update) storeBlob(ctx context.Context, c plan.Content) (stored bool, err error) {
	final := u.blob(c.Node)
	if u.whole(c.Node) {
		return false, nil
	}
	r, err := c.Open(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	temp := final + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, err
	}
	seen := sha256.New()
	if c.Secret {
		err = u.Secrets.Encrypt(f, io.TeeReader(r, seen))
	} else {
		_, err = io.Copy(io.MultiWriter(f, seen), fsat.Until(ctx, r))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, errors.Join(err, os.Remove(temp))
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != c.SHA256 {
		changed := errors.New("the contents changed while they were read")
		if !c.Secret {
			changed = fmt.Errorf("%w: %s, now %s", changed, c.SHA256, got)
		}
		return false, errors.Join(changed, os.Remove(temp))
	}
	err = os.Rename(temp, final)
	return err == nil, err
}

// whole tells whether stored contents are what they should be: those that an
// earlier crash cut off are written again, and so are those of a secret that the
// host's present key does not decrypt.
func (u *Update) whole(n disk.Node) bool {
	if !n.Secret {
		return whole(u.blob(n), n.SHA256)
	}
	r, err := u.Secrets.OpenStored(u.blob(n))
	if err != nil {
		return false
	}
	defer r.Close()
	seen := sha256.New()
	_, err = io.Copy(seen, r)
	return err == nil && hex.EncodeToString(seen.Sum(nil)) == n.SHA256
}

// whole tells whether a stored file is what its name says.
func whole(path, sum string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	seen := sha256.New()
	_, err = io.Copy(seen, f)
	return err == nil && hex.EncodeToString(seen.Sum(nil)) == sum
}

func (u *Update) keepPristine(ctx context.Context, item *plan.Item) error {
	store := state.Pristine{Dir: u.Dirs.Pristine(), Secrets: u.Secrets}
	from, node := item.Path, item.Before
	if item.Pristine.Vendor != "" {
		from = item.Pristine.Vendor
		found, err := u.Host.Files.Read(ctx, from, fsat.Most)
		if err != nil {
			return err
		}
		node = found.Node
		node.Secret = item.Before.Secret
	}
	if node.Kind != disk.File {
		return store.Keep(item.Path, node, nil)
	}
	f, err := u.asPlanned(ctx, item, from)
	if err != nil {
		return err
	}
	defer f.Close()
	if item.Pristine.Bytes < 0 {
		return store.Keep(item.Path, node, f)
	}
	data, err := f.Whole() // something is appended to it, in memory
	if err != nil {
		return err
	}
	first := data[:min(int64(len(data)), item.Pristine.Bytes)]
	sum := sha256.Sum256(first)
	node.Size, node.SHA256 = int64(len(first)), hex.EncodeToString(sum[:])
	return store.Keep(item.Path, node, bytes.NewReader(first))
}

// copyFile makes a backup: encrypted, if its name says so.
func (u *Update) copyFile(in *fsat.File, to string) (err error) {
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	if strings.HasSuffix(to, secret.Suffix) {
		return u.Secrets.Encrypt(out, in)
	}
	return in.CopyTo(out, sha256.New())
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o600)
}

// Resume goes on with the pinned change, from what was stored for it.
func (u *Update) Resume(ctx context.Context) error {
	change := u.State.Change
	job, err := readJob(change.ID, u.dir(change.ID))
	if err != nil {
		return err
	}
	if change.Waits() == nil {
		u.inhibit(ctx, change)
	}
	defer u.letGo()
	if len(change.Rollback) > 0 {
		return u.resumeBack(ctx, change, job)
	}
	if err := checkScripts(job.Dir); err != nil {
		return err
	}
	if dead := u.exhausted(change.Tasks); dead != nil {
		if err := state.Save(u.Dirs, u.State); err != nil {
			return err
		}
		return u.failed(ctx, change, job, dead)
	}
	err = u.verify(ctx, change, job)
	var gone *pipeline.StepError
	if errors.As(err, &gone) {
		return u.failed(ctx, change, job, gone)
	}
	if err != nil {
		return fmt.Errorf("verifying change %s: %w", change.ID, err)
	}
	return u.run(ctx, change, job, false)
}

// resumeBack goes on with the way back. One that died as often as a step may
// is left as it is: the digest stays held, with everything that would undo it.
func (u *Update) resumeBack(ctx context.Context, change *state.Change, job *engine.Job) error {
	failed := u.why(change)
	if dead := u.exhausted(change.Rollback); dead != nil {
		if err := state.Save(u.Dirs, u.State); err != nil {
			return err
		}
		return u.wentBack(ctx, change, job, failed, dead)
	}
	return u.wentBack(ctx, change, job, failed, u.goBack(ctx, change, job, false))
}

// dir is where the change lies: record moves it to its generation before the
// state says so.
func (u *Update) dir(id string) string {
	dir, moved := u.Dirs.Change(id), u.Dirs.Generation(u.nextGeneration())
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return dir
	}
	// An earlier try of the same digest may lie in failed/ under the same name.
	if applied := u.State.Applied; applied != nil && u.State.Change != nil && u.State.Change.ByHand {
		moved = u.Dirs.Generation(applied.Generation)
	}
	if g, err := ReadGeneration(moved); err == nil && g.Change == id {
		return moved
	}
	if _, err := os.Stat(u.Dirs.Failed(id)); err == nil {
		return u.Dirs.Failed(id)
	}
	return dir
}

// bringBack undoes record's move for a change that is superseded: the place
// belongs to the one that is recorded.
func (u *Update) bringBack(id string) error {
	dir, final := u.dir(id), u.Dirs.Change(id)
	if dir == final {
		return nil
	}
	if err := os.Rename(dir, final); err != nil {
		return err
	}
	return errors.Join(atomicfile.SyncDir(filepath.Dir(final)), atomicfile.SyncDir(filepath.Dir(dir)))
}

func readJob(id, dir string) (*engine.Job, error) {
	p, err := ReadPlan(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := state.ReadManifest(filepath.Join(dir, "manifest"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	in, err := ReadInputs(dir)
	if err != nil {
		return nil, err
	}
	return &engine.Job{ID: id, Dir: dir, Plan: p, Manifest: manifest, Request: in.Request}, nil
}

// ReadPlan reads the plan of a change or of a generation.
func ReadPlan(dir string) (*plan.Plan, error) {
	var p plan.Plan
	if err := readJSON(filepath.Join(dir, "plan.json"), &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// ReadInputs reads what Pin stored of the host config.
func ReadInputs(dir string) (Inputs, error) {
	var in Inputs
	err := readJSON(filepath.Join(dir, "inputs.json"), &in)
	for i := range in.Scripts {
		file := scriptFile(dir, &in.Scripts[i].Proposed)
		in.Scripts[i].Open = func(context.Context) (io.ReadCloser, error) { return os.Open(file) }
	}
	return in, err
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	if string(bytes.TrimSpace(data)) == "null" { // which json takes for an empty one
		return fmt.Errorf("%w: %s is empty", ErrDamaged, path)
	}
	return nil
}

// Attempts are what every change that began and was neither recorded nor
// rolled back set out to do: it counts as base. One whose plan cannot be read
// any more is left out: what it wrote is found as a local change.
func (u *Update) Attempts() ([]plan.Attempt, error) {
	var attempts []plan.Attempt
	for _, id := range u.attempted() {
		job, err := readJob(id, u.dir(id))
		if errors.Is(err, ErrDamaged) || errors.Is(err, state.ErrUnreadable) {
			u.Log.Warnf("change %s is forgotten: %v", id, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		attempts = append(attempts, plan.Attempt{Items: job.Plan.Items, Units: job.Manifest.Units})
	}
	return attempts, nil
}

func (u *Update) attempted() []string {
	ids := slices.Clone(u.State.Open)
	if u.State.Change != nil {
		ids = append(ids, u.State.Change.ID)
	}
	return ids
}

// Abandon gives up a change whose stored inputs are damaged. What can be read
// of its plan still counts as base.
func (u *Update) Abandon() error {
	id := u.State.Change.ID
	if err := u.bringBack(id); err != nil {
		return err
	}
	u.State.Change = nil
	if _, err := ReadPlan(u.Dirs.Change(id)); err == nil {
		u.State.Open = append(u.State.Open, id)
	}
	return state.Save(u.Dirs, u.State)
}

// firstSave makes a state file before anything lies beside it: directories
// without one are what is left of a state that was lost.
func (u *Update) firstSave() error {
	if _, err := os.Lstat(u.Dirs.File()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return state.Save(u.Dirs, u.State)
}

// Adopt clears up after a state whose file was lost: what its changes did is undone
// from their own backups, since nobody can say any more how far they came, and
// everything moves to lost/ and is named. One that cannot be undone counts as an
// attempt.
func (u *Update) Adopt(ctx context.Context) error {
	if _, err := os.Lstat(u.Dirs.File()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var lost []string
	for _, dir := range []string{"changes", "generations"} {
		names, err := os.ReadDir(filepath.Join(u.Dirs.State, dir))
		if err != nil {
			return fmt.Errorf("looking for what an earlier state left: %w", err)
		}
		slices.SortStableFunc(names, func(a, b os.DirEntry) int { // the newest first
			return pinned(filepath.Join(u.Dirs.State, dir, b.Name())).Compare(pinned(filepath.Join(u.Dirs.State, dir, a.Name())))
		})
		for _, name := range names {
			path := filepath.Join(u.Dirs.State, dir, name.Name())
			if _, err := ReadPlan(path); err != nil || dir != "changes" || u.undo(ctx, name.Name()) {
				lost = append(lost, path)
			} else {
				u.State.Open = append(u.State.Open, name.Name())
			}
		}
	}
	if err := ctx.Err(); err != nil || len(lost) == 0 {
		return err
	}
	into := filepath.Join(u.Dirs.Lost(), u.Host.Now().UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	for _, path := range lost {
		name := filepath.Base(filepath.Dir(path)) + "-" + filepath.Base(path)
		if err := os.Rename(path, filepath.Join(into, name)); err != nil {
			return err
		}
		u.Log.Warnf("there is no state file; %s was moved to %s", path, into)
	}
	return nil
}

// pinned is when a change was, for the order of those that no state names.
func pinned(dir string) time.Time {
	info, err := os.Stat(filepath.Join(dir, "plan.json"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// undo brings back what a change found that no state names, and tells whether it
// could. What such a change never touched is left as it is.
func (u *Update) undo(ctx context.Context, id string) bool {
	job, err := readJob(id, u.Dirs.Change(id))
	if err == nil {
		err = errors.Join((&rollbackFiles{u, job}).Run(ctx), (&rollbackUnits{u, job}).Run(ctx))
	}
	if err != nil {
		u.Log.Warnf("there is no state file, and change %s cannot be rolled back: %v", id, err)
		return false
	}
	u.Log.Warnf("there is no state file; change %s was rolled back", id)
	return true
}

// Apply carries the change out that Pin has just pinned.
func (u *Update) Apply(ctx context.Context, p *plan.Plan, in Inputs) error {
	change := u.State.Change
	u.inhibit(ctx, change)
	defer u.letGo()
	job := &engine.Job{ID: change.ID, Dir: u.Dirs.Change(change.ID), Plan: p, Manifest: &p.Manifest, Request: in.Request}
	return u.run(ctx, change, job, true)
}

func (u *Update) runner(change *state.Change) *pipeline.Runner {
	return &pipeline.Runner{
		Save: func() error { return state.Save(u.Dirs, u.State) },
		Now:  u.Host.Now, BootID: u.bootID(), Log: u.Log.WithField("change", change.ID),
		Doing: u.Doing,
	}
}

func (u *Update) run(ctx context.Context, change *state.Change, job *engine.Job, begun bool) error {
	if err := u.cleanSuperseded(ctx); err != nil {
		return err
	}
	err := u.runner(change).Run(ctx, change, u.steps(change, job), begun)
	var failed *pipeline.StepError
	if errors.Is(err, engine.ErrUntouched) && errors.As(err, &failed) {
		if started(change, "pre-update") {
			// What pre_update.d stopped would stay so until there is room again.
			if again := u.hook(ctx, hooks.PostUpdate, change, job, nil); again != nil {
				u.Log.Errorf("after the change was taken back: %v", again)
			}
		}
		u.failedHook(ctx, change, job, failed)
		return errors.Join(err, u.forget(change), u.Release(ctx))
	}
	if errors.As(err, &failed) && ctx.Err() == nil {
		return u.failed(ctx, change, job, failed)
	}
	if err != nil {
		return err
	}
	if err := u.Units.Late(ctx, job.Plan); err != nil {
		u.Log.Warnf("touching the agent's own units: %v", err)
	}
	return u.Prune()
}

// inhibit holds off a shutdown, an OS updater's reboot above all, until letGo. A
// machine without logind has nobody to ask.
func (u *Update) inhibit(ctx context.Context, change *state.Change) {
	if u.Inhibit == nil || u.inhibitor != nil {
		return
	}
	held, err := u.Inhibit(ctx, "change "+change.ID+" is carried out")
	if err != nil {
		u.Log.Debugf("shutdown is not inhibited: %v", err)
		return
	}
	u.inhibitor = held
}

// letGo ends what inhibit began: logind would hold our own reboot off, too.
func (u *Update) letGo() {
	if u.inhibitor == nil {
		return
	}
	if err := u.inhibitor.Close(); err != nil {
		u.Log.Warnf("releasing the shutdown inhibitor: %v", err)
	}
	u.inhibitor = nil
}

// cleanSuperseded takes away what superseded changes staged and never put in
// place.
func (u *Update) cleanSuperseded(ctx context.Context) error {
	for _, id := range u.State.Open {
		p, err := ReadPlan(u.Dirs.Change(id))
		if err != nil {
			u.Log.Warnf("what change %s left beside its targets stays there: %v", id, err)
			continue
		}
		if err := u.Engine.Clean(ctx, &engine.Job{ID: id, Dir: u.Dirs.Change(id), Plan: p}); err != nil {
			return fmt.Errorf("cleaning up after change %s: %w", id, err)
		}
	}
	return nil
}

// forget unpins a change that did nothing.
func (u *Update) forget(change *state.Change) error {
	u.State.Change = nil
	if err := state.Save(u.Dirs, u.State); err != nil {
		return err
	}
	return os.RemoveAll(u.Dirs.Change(change.ID))
}
