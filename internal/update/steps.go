package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// before is a step that is over when the change is pinned. Its task says how it
// went.
type before string

func (s before) Name() string { return string(s) }

func (s before) Idle() string { return "it was done before the change was pinned" }

func (s before) Run(context.Context) error { return nil }

// configure stops and disables what must go, then lets the engine write.
type configure struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *configure) Name() string { return "configure" }

func (s *configure) Run(ctx context.Context) error {
	if err := s.u.Units.Before(ctx, s.job.Dir, s.job.Plan); err != nil {
		return err
	}
	result, err := s.u.apply(ctx, s.job)
	for _, note := range result.Notes {
		s.u.Log.Warn(note)
	}
	stopped := len(s.job.Plan.Stopped) > 0 || slices.ContainsFunc(s.job.Plan.Units, func(unit plan.Unit) bool { return !unit.Enable || unit.Again })
	var untouched *engine.UntouchedError
	if errors.As(err, &untouched) && (stopped || started(s.change, "post-configure")) {
		return untouched.Err // no file was changed, but units were: the change is rolled back like any other
	}
	if err != nil {
		return err
	}
	return s.u.hook(ctx, hooks.Configure, s.change, s.job, nil)
}

// postConfigure carries out the unit operations.
type postConfigure struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *postConfigure) Name() string { return "post-configure" }

func (s *postConfigure) Idle() string {
	if s.job.Plan.TouchesUnits() || len(s.job.Plan.Effect.Commands) > 0 || s.u.State.Migrated != nil || s.u.has(hooks.PostConfigure, s.job) {
		return ""
	}
	return "no unit is touched"
}

func (s *postConfigure) Run(ctx context.Context) error {
	if err := s.u.showMigrated(ctx, s.job); err != nil {
		return fmt.Errorf("looking whose files the migrations changed: %w", err)
	}
	if err := s.u.Units.After(ctx, s.job.Dir, s.job.Plan); err != nil {
		return err
	}
	return s.u.hook(ctx, hooks.PostConfigure, s.change, s.job, nil)
}

// record makes the change a generation. Saving the state is the commit point.
type record struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *record) Name() string { return "record" }

func (s *record) Run(ctx context.Context) error {
	u, number := s.u, s.u.nextGeneration()
	blocked, err := u.blocked(s.job)
	if err != nil {
		return err
	}
	if err := revert(s.job); err != nil {
		return err
	}
	g := u.generation(s.change, s.job.Plan, number)
	g.block(blocked)
	if err := keep(s.job, u.Dirs.Generation(number), g); err != nil {
		return err
	}
	before := *u.State
	u.judgeOSWork(ctx, s.change, s.job)
	if err := ctx.Err(); err != nil {
		*u.State = before
		return err
	}
	u.settle(s.change.Reboot)
	if held := u.State.Lock; held != nil {
		u.State.Lock = &state.FleetLock{Kind: held.Kind, Name: held.Name, Changing: held.Changing, ByHand: held.ByHand, Since: held.Since}
	}
	u.State.Applied = &state.Applied{
		Generation: number, Host: s.change.Host, Ref: s.change.Ref, Commit: s.change.Commit,
		Digest: s.change.Digest, Deployment: s.change.Deployment, Time: u.Host.Now(), Blocked: blocked,
	}
	u.State.Change, u.State.Open, u.State.Migrated = nil, nil, nil
	if held := u.State.Held; held != nil && held.Digest == s.change.Digest {
		u.State.Held = nil
	}
	if err := state.Save(u.Dirs, u.State); err != nil {
		*u.State = before
		return err
	}
	return nil
}

// keep moves the directory of a change, with its record, to where it stays.
func keep(job *engine.Job, final string, g *Generation) error {
	if job.Dir == final {
		return nil // a crash came between the move and the save of the state
	}
	if err := WriteGeneration(job.Dir, g); err != nil {
		return err
	}
	// What an earlier crash left under that name, no state file ever named.
	if err := errors.Join(os.MkdirAll(filepath.Dir(final), 0o700), os.RemoveAll(final)); err != nil {
		return fmt.Errorf("recording the change: %w", err)
	}
	if err := os.Rename(job.Dir, final); err != nil {
		return fmt.Errorf("recording the change: %w", err)
	}
	// The old name needs no sync: should a power cut bring it back, no state
	// names it any more, and Prune takes it away.
	if err := atomicfile.SyncDir(filepath.Dir(final)); err != nil {
		return err
	}
	job.Dir = final
	return nil
}

func (u *Update) nextGeneration() int {
	if u.State.Applied == nil {
		return 1
	}
	return u.State.Applied.Generation + 1
}

// Generation is the record of a completed change, for history and show.
type Generation struct {
	Number   int          `json:"generation"`
	Change   string       `json:"change"`
	Host     string       `json:"host"`
	Ref      string       `json:"ref,omitempty"`
	Commit   string       `json:"commit"`
	Previous string       `json:"previous,omitempty"`
	Digest   string       `json:"digest"`
	Reasons  []string     `json:"reasons"`
	Started  time.Time    `json:"started"`
	Ended    time.Time    `json:"ended"`
	Steps    []state.Task `json:"steps,omitempty"`
	// Back are the steps that undid it.
	Back    []state.Task `json:"rollback_steps,omitempty"`
	Changes []PathChange `json:"changes,omitempty"`
	Units   []plan.Unit  `json:"units,omitempty"`
	// Touched are the units that were restarted or reloaded, or would have been
	// had they run.
	Touched []string `json:"touched,omitempty"`
	Ignored []string `json:"ignored,omitempty"`
	// Blocked are paths that were left as they were because somebody blocked them.
	Blocked []state.Blocked `json:"blocked,omitempty"`
	// Result is "rolled back" where the change failed, or "failed" where nothing
	// had been written, with the Error of its step.
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// PathChange is one line of a generation: what happened to a path.
type PathChange struct {
	Path   string      `json:"path"`
	Action plan.Action `json:"action"`
	Note   string      `json:"note,omitempty"`
}

func (u *Update) generation(c *state.Change, p *plan.Plan, number int) *Generation {
	// The step that writes this down is the one under way.
	ended := func(tasks []state.Task) []state.Task {
		tasks = slices.Clone(tasks)
		for i := range tasks {
			if tasks[i].Status == state.Doing {
				tasks[i].Status, tasks[i].Ended = state.Done, u.Host.Now()
			}
		}
		return tasks
	}
	g := &Generation{
		Number: number, Change: c.ID, Host: c.Host, Ref: c.Ref, Commit: c.Commit, Previous: c.Previous, Digest: c.Digest,
		Reasons: c.Reasons, Started: c.Pinned, Ended: u.Host.Now(), Steps: ended(c.Tasks), Back: ended(c.Rollback), Units: p.Units, Ignored: p.Ignored,
	}
	for i := range p.Items {
		g.Changes = append(g.Changes, PathChange{Path: p.Items[i].Path, Action: p.Items[i].Action, Note: p.Items[i].Note})
	}
	for _, path := range p.Beside() {
		g.Changes = append(g.Changes, PathChange{Path: path, Action: plan.Migrate})
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches, p.Effect.Late) {
		if touch.Action != service.Keep && !slices.Contains(p.Stopped, touch.Unit) {
			g.Touched = append(g.Touched, touch.Unit)
		}
	}
	return g
}

// block says of paths that the engine found blocked that nothing was done to them.
func (g *Generation) block(blocked []state.Blocked) {
	g.Blocked = blocked
	for i := range g.Changes {
		change := &g.Changes[i]
		if at := slices.IndexFunc(blocked, func(b state.Blocked) bool { return b.Path == change.Path }); at >= 0 {
			change.Action, change.Note = plan.Blocked, blocked[at].Reason
		}
	}
}

// blocked are the paths that a change did not get to, with how often they were tried.
func (u *Update) blocked(job *engine.Job) ([]state.Blocked, error) {
	all, err := state.ReadBlocked(job.Dir)
	if err != nil {
		return nil, err
	}
	for _, item := range job.Plan.Blocked() {
		all = append(all, state.Blocked{Path: item.Path, Place: *item.Place, Reason: item.Note, Late: item.Late})
	}
	slices.SortFunc(all, func(a, b state.Blocked) int { return strings.Compare(a.Path, b.Path) })
	now, before := u.Host.Now(), map[string]state.Blocked{}
	if u.State.Applied != nil {
		for _, b := range u.State.Applied.Blocked {
			before[b.Path] = b
		}
	}
	for i := range all {
		last := before[all[i].Path]
		switch {
		case all[i].Late:
			all[i].Tries, all[i].Tried = last.Tries+1, now
		case last.Late && now.Before(last.NotBefore()):
			all[i] = last // it was not tried
		}
	}
	return all, nil
}

// revert puts back in the manifest of a change what is known of the paths that its engine
// found blocked. It may be called again after a crash.
func revert(job *engine.Job) error {
	late, err := state.ReadBlocked(job.Dir)
	if err != nil || len(late) == 0 {
		return err
	}
	before := map[string]*state.Entry{}
	for i := range job.Plan.Items {
		item := &job.Plan.Items[i]
		if slices.ContainsFunc(late, func(b state.Blocked) bool { return b.Path == item.Path }) {
			before[item.Path] = item.Base
		}
	}
	job.Manifest.Revert(before)
	return state.WriteManifest(filepath.Join(job.Dir, "manifest"), job.Manifest)
}

// WriteGeneration and ReadGeneration keep the record in a generation's directory.
func WriteGeneration(dir string, g *Generation) error {
	return writeSynced(filepath.Join(dir, "generation.json"), g)
}

// ReadGeneration reads the record of a generation.
func ReadGeneration(dir string) (*Generation, error) {
	var g Generation
	if err := readJSON(filepath.Join(dir, "generation.json"), &g); err != nil {
		return nil, err
	}
	if g.Change == "" {
		return nil, fmt.Errorf("%w: %s is no record of a change", ErrDamaged, filepath.Join(dir, "generation.json"))
	}
	return &g, nil
}

// RecordOnly is the short way of a change that changes nothing on the host: it
// becomes a generation at once, and no unit and no hook hears of it.
func (u *Update) RecordOnly(ctx context.Context, change *state.Change, p *plan.Plan, in Inputs) (err error) {
	if change.ID, err = u.newID(change.Digest); err != nil {
		return err
	}
	if err := u.firstSave(); err != nil {
		return err
	}
	change.Pinned = u.Host.Now()
	job := &engine.Job{ID: change.ID, Dir: u.Dirs.Change(change.ID), Plan: p, Manifest: &p.Manifest}
	if err := os.MkdirAll(job.Dir, 0o700); err != nil {
		return fmt.Errorf("recording the change: %w", err)
	}
	if err := u.stage(ctx, job.Dir, p, in); err != nil {
		return errors.Join(fmt.Errorf("recording the change: %w", err), os.RemoveAll(job.Dir))
	}
	if err := atomicfile.SyncFS(u.Dirs.State); err != nil {
		return err
	}
	if err := (&record{u, change, job}).Run(ctx); err != nil {
		return err
	}
	return errors.Join(u.Release(ctx), u.Prune())
}
