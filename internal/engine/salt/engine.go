package salt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// Engine has Salt carry plans out.
type Engine struct {
	// Native does what only it can do safely, and undoes changes: their backups
	// are the same for either engine.
	Native *native.Engine
	Caller Caller
	Run    string // directory of the agent on a tmpfs, in which Folder is made
}

// Check has Salt compile the tree and look at the host: mock=True, then
// test=True. What it finds is a *finding.Failure.
func (e *Engine) Check(ctx context.Context, job *engine.Job) (result engine.Result, err error) {
	if result, err = e.Native.Check(ctx, job); err != nil {
		return result, err
	}
	t, err := e.begin(ctx, job)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(t.folder)) }()
	t.now = func(item *plan.Item) (disk.Node, error) { return item.Before, nil }
	t.open = func(ctx context.Context, item *plan.Item) (io.ReadCloser, error) { return item.Open(ctx) }
	if err := t.write(ctx); err != nil {
		return result, fmt.Errorf("writing the SLS tree: %w", err)
	}
	if _, err := e.call(ctx, t, compile); err != nil {
		return result, err
	}
	_, err = e.call(ctx, t, dryRun)
	return result, err
}

// Apply makes way, has Salt write, and finishes what Salt must not do or does
// not do.
func (e *Engine) Apply(ctx context.Context, job *engine.Job) (result engine.Result, err error) {
	t, err := e.begin(ctx, job)
	if err != nil {
		return result, e.untouched(err, job)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(t.folder)) }()
	theirs := map[string]bool{}
	for _, item := range t.writes() {
		theirs[item.Path] = e.Native.Theirs(item)
	}
	t.apart = func(item *plan.Item) bool { return item.Place != nil || theirs[item.Path] }
	t.now = e.look
	t.open = func(_ context.Context, item *plan.Item) (io.ReadCloser, error) { return e.Native.Contents(item.After) }
	if err := t.write(ctx); err != nil {
		return result, e.untouched(fmt.Errorf("writing the SLS tree: %w", err), job)
	}
	if result, err = e.Native.MakeWay(ctx, job); err != nil {
		return result, err
	}
	states, err := e.call(ctx, t, realRun)
	result.Changed, result.Ended = migrated(states, job.CutOff), states != nil
	if err != nil {
		return result, err
	}
	finished, differing, err := e.Native.Finish(ctx, job)
	result.Notes = append(result.Notes, finished.Notes...)
	if err != nil {
		return result, err
	}
	if len(differing) == 0 {
		return result, nil
	}
	if len(job.Migrations) == 0 {
		return result, fmt.Errorf("salt-call says that it did everything, and %s is not as the plan wants it", strings.Join(first(differing), ", "))
	}
	for _, p := range first(differing) {
		result.Notes = append(result.Notes, p+" was changed by a migration and is drift from now on")
	}
	return result, nil
}

// look is what stands at a path, without its bytes.
func (e *Engine) look(item *plan.Item) (disk.Node, error) {
	now, err := e.Native.Host.Files.Look(item.Path)
	return now.Node, err
}

// first are as many as a person reads.
func first(paths []string) []string {
	const few = 5
	if len(paths) > few {
		return append(paths[:few:few], fmt.Sprintf("%d more", len(paths)-few))
	}
	return paths
}

// untouched marks an error from before anything was changed, unless an earlier
// run of the same change got further.
func (e *Engine) untouched(err error, job *engine.Job) error {
	if e.Native.Untouched(job) {
		return &engine.UntouchedError{Err: err}
	}
	return err
}

// Rollback is the native engine's, from the backups that the pin took.
func (e *Engine) Rollback(ctx context.Context, job *engine.Job) (engine.Result, error) {
	if err := e.sweep(ctx); err != nil {
		return engine.Result{}, err
	}
	result, err := e.Native.Rollback(ctx, job)
	if len(job.Migrations) > 0 {
		result.Notes = append(result.Notes, "what the *.sls migrations did besides is not rolled back")
	}
	return result, err
}

// Clean takes away what a run that died left.
func (e *Engine) Clean(ctx context.Context, job *engine.Job) error {
	return errors.Join(e.sweep(ctx), e.Native.Clean(ctx, job))
}

// Sweep ends what a run that was killed left behind, and deletes its folder.
// It costs nothing where there is none.
func Sweep(ctx context.Context, run string, callers ...Caller) error {
	folder := Folder(run)
	if _, err := os.Lstat(folder); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, caller := range callers {
		if err := caller.Stop(ctx, folder); err != nil {
			return fmt.Errorf("ending the %s of an earlier run: %w", caller.Name(), err)
		}
	}
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("deleting what an earlier run left: %w", err)
	}
	return nil
}

func (e *Engine) sweep(ctx context.Context) error { return Sweep(ctx, e.Run, e.Caller) }

// begin makes sure that Salt can be called, and that nothing is where the tree
// is going to be.
func (e *Engine) begin(ctx context.Context, job *engine.Job) (*tree, error) {
	if err := e.sweep(ctx); err != nil {
		return nil, err
	}
	if err := e.Caller.Prepare(ctx); err != nil {
		return nil, err
	}
	t := &tree{
		folder: Folder(e.Run), seen: Folder(e.Run), place: e.Caller.Place, job: job,
		apart: func(item *plan.Item) bool { return item.Place != nil },
	}
	if err := os.MkdirAll(e.Run, 0o755); err != nil {
		return nil, err
	}
	return t, t.checkRoom(e.Run)
}

// checkRoom: the bytes lie in the tree, and once more in Salt's cache.
func (t *tree) checkRoom(dir string) error {
	need := uint64(1 << 20)
	for _, item := range t.writes() {
		if item.NeedsContent() {
			need += 2 * uint64(item.After.Size)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking for free space at %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); need > free {
		return fmt.Errorf("%w on the file system of %s: Salt needs %d bytes there, %d are free", unix.ENOSPC, dir, need, free)
	}
	return nil
}

// stage is one of the three ways in which Salt is called.
type stage struct {
	name string
	args []string
	dry  bool // nothing is changed
	mock bool // the disk is not even looked at
}

var (
	compile = stage{"the compile check", []string{"mock=True"}, true, true}
	dryRun  = stage{"the dry run", []string{"test=True"}, true, false}
	realRun = stage{"the run", nil, false, false}
)

// call runs one stage and judges what Salt says.
func (e *Engine) call(ctx context.Context, t *tree, s stage) ([]state, error) {
	if err := t.writeMain(s.dry && !s.mock, !s.dry); err != nil {
		return nil, err
	}
	args := append([]string{"--local", "--retcode-passthrough", "--out=json", "--log-level=error", "state.apply"}, s.args...)
	answer, err := e.Caller.Call(ctx, Call{Folder: t.folder, Args: args, Writes: t.paths(), Links: t.links()})
	if err != nil {
		return nil, fmt.Errorf("%s of Salt: %w", s.name, err)
	}
	if answer.Cut {
		return nil, fmt.Errorf("%s of Salt printed more than %d MiB", s.name, MaxOutput>>20)
	}
	states, err := parse(answer.Stdout)
	var compiled *compileError
	switch {
	case errors.As(err, &compiled):
		return nil, t.failure(s, compiled.explain(t.where))
	case err != nil:
		return nil, fmt.Errorf("%s of Salt: exit status %d: %w%s", s.name, answer.Exit, err, said(answer.Stderr))
	}
	if wrong := judge(states, t.expected(s.dry && !s.mock), s.dry, t.where); len(wrong) > 0 {
		return states, t.failure(s, wrong)
	}
	return states, nil
}

// said is the end of what went to stderr, for a call that has no results.
func said(stderr []byte) string {
	lines := strings.Split(strings.TrimSpace(string(stderr)), "\n")
	if last := plain(lines[len(lines)-1]); last != "" {
		return ": " + last
	}
	return ""
}

// failure is what Salt found. In the real run it is no question of the host
// config any more.
func (t *tree) failure(s stage, list finding.List) error {
	failure := &finding.Failure{Findings: list}
	if s.dry {
		return failure
	}
	return &RunError{Findings: list}
}

// RunError is a run of Salt in which states failed.
type RunError struct{ Findings finding.List }

func (e *RunError) Error() string {
	var parts []string
	for _, f := range e.Findings {
		text := f.Message
		if at := f.Position.String(); at != "" {
			text = at + ": " + text
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "\n")
}

// where is the file of the fleet repo that an SLS of the tree is; the plan's own
// has none.
func (t *tree) where(sls string) string {
	for i, name := range t.slsNames() {
		if sls == migrations+"."+name {
			return t.job.Migrations[i].Path
		}
	}
	if sls == "" {
		return ""
	}
	return strings.ReplaceAll(sls, ".", "/") + ".sls"
}

// paths are all that the plan writes or removes.
func (t *tree) paths() []string {
	var paths []string
	for _, item := range t.writes() {
		paths = append(paths, item.Path)
	}
	return paths
}

// links are the hard links among them.
func (t *tree) links() [][2]string {
	var links [][2]string
	for _, item := range t.writes() {
		if item.After.Kind == disk.HardLink {
			links = append(links, [2]string{item.Path, item.After.Target})
		}
	}
	return links
}

// expected are the ids that the plan's SLS has.
func (t *tree) expected(dry bool) []string {
	items := t.writes()
	included := t.included(items, dry)
	var ids []string
	for _, item := range items {
		if included[item.Path] {
			ids = append(ids, item.Path)
		}
	}
	if len(ids) == 0 {
		ids = append(ids, nothing)
	}
	return ids
}

// migrated are the paths of files that migrations changed, those of the plan too:
// what is said of the plan's own states says nothing new. After a run that was cut
// off, what a state finds done may have been done by that.
func migrated(states []state, cutOff bool) []string {
	var paths []string
	for _, s := range states {
		module, _, _ := strings.Cut(s.Function, ".")
		if s.SLS == mainSLS || module != "file" && module != "ini" || !s.Changed && (!cutOff || s.Failed) {
			continue
		}
		of := s.Below
		if len(of) == 0 {
			of = []string{s.Name}
		}
		for _, name := range of {
			if strings.HasPrefix(name, "/") {
				paths = append(paths, filepath.Clean(name))
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}
