package update

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Hooks runs the script directories of a phase.
type Hooks interface {
	List(phase hooks.Phase) ([]hooks.Script, []hooks.Ignored, error)
	Strays() ([]hooks.Ignored, error)
	Run(ctx context.Context, phase hooks.Phase, env map[string]string) error
	Ask(ctx context.Context, phase hooks.Phase, env map[string]string) (yes bool, why string, err error)
	RunOnce(ctx context.Context, phase hooks.Phase, env map[string]string, done func(hash string) (bool, error), mark func(hash string) error) error
}

// script is a step that consists of a script directory alone.
type script struct {
	u      *Update
	change *state.Change
	job    *engine.Job
	name   string
	phase  hooks.Phase
}

func (s *script) Name() string { return s.name }

func (s *script) Idle() string { return s.u.without(s.phase, s.job) }

func (s *script) Run(ctx context.Context) error { return s.u.hook(ctx, s.phase, s.change, s.job, nil) }

// hooks are the host's own scripts and the pinned ones of the fleet repo.
func (u *Update) hooks(job *engine.Job) Hooks { return u.Hooks(scriptDir(job.Dir)) }

// appliedHooks are the host's own scripts and those of the applied generation.
func (u *Update) appliedHooks() Hooks {
	generation := 0
	if u.State.Applied != nil {
		generation = u.State.Applied.Generation
	}
	return u.Hooks(scriptDir(u.Dirs.Generation(generation)))
}

// has tells whether a phase has anything: also what cannot run has to be named.
func (u *Update) has(phase hooks.Phase, job *engine.Job) bool {
	if u.Hooks == nil {
		return false
	}
	scripts, ignored, err := u.hooks(job).List(phase)
	return err != nil || len(scripts)+len(ignored) > 0
}

// without says why a phase has nothing to do, "" if it has.
func (u *Update) without(phase hooks.Phase, job *engine.Job) string {
	switch {
	case u.Hooks == nil:
		return "no scripts run below another root"
	case u.has(phase, job):
		return ""
	}
	return fmt.Sprintf("%s.d has no scripts", phase)
}

// runnable tells whether a phase has scripts that can be run.
func runnable(h Hooks, phase hooks.Phase) bool {
	scripts, _, err := h.List(phase)
	return err != nil || len(scripts) > 0
}

// broken notes a question's script that neither said yes nor no: it stops
// nothing, and the run ends with an error.
func (u *Update) broken(err error) {
	u.Log.Errorf("a question has no answer: %v", err)
	u.Broken = errors.Join(u.Broken, err)
}

// NameUnused says which script directories nothing will ever run: nobody may
// believe that a script ran because nothing was said of it.
func (u *Update) NameUnused() {
	if u.Hooks == nil {
		return
	}
	applied := u.appliedHooks()
	strays, err := applied.Strays()
	if err != nil {
		u.Log.Warnf("script directories: %v", err)
	}
	for _, stray := range strays {
		u.Log.Warnf("%s is not run: %s", stray.Path, stray.Reason)
	}
}

// hook runs the scripts of a phase with what they may know of the change.
func (u *Update) hook(ctx context.Context, phase hooks.Phase, change *state.Change, job *engine.Job, more map[string]string) error {
	if !u.has(phase, job) {
		return nil
	}
	return u.hooks(job).Run(ctx, phase, environment(change, job, more))
}

func environment(change *state.Change, job *engine.Job, more map[string]string) map[string]string {
	env := map[string]string{
		"RECONF_HOST": change.Host, "RECONF_COMMIT": change.Commit, "RECONF_PREVIOUS_COMMIT": change.Previous,
		"RECONF_DIGEST": change.Digest, "RECONF_REASONS": strings.Join(change.Reasons, "; "),
		"RECONF_CHANGED_UNITS_FILE": filepath.Join(job.Dir, "service_changed.list"),
		"RECONF_CHANGED_PATHS_FILE": filepath.Join(job.Dir, "paths_changed.list"),
	}
	maps.Copy(env, more)
	return env
}

// migration runs each script of migration.d once for its content on this host.
type migration struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *migration) Name() string { return "migration" }

func (s *migration) Idle() string { return s.u.without(hooks.Migration, s.job) }

func (s *migration) Run(ctx context.Context) error {
	if s.Idle() != "" {
		return nil
	}
	return s.u.hooks(s.job).RunOnce(ctx, hooks.Migration, environment(s.change, s.job, nil), s.u.Migrated, s.u.markMigrated)
}

// Migrated tells whether a migration with that content has run on this host.
// It and markMigrated keep the run-once markers outside the state file, so
// that a lost one repeats no migration.
func (u *Update) Migrated(hash string) (bool, error) {
	_, err := os.Stat(u.Dirs.Migration(hash))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (u *Update) markMigrated(hash string) error {
	file := u.Dirs.Migration(hash)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(file, nil, 0o600)
}

// health looks whether the host is well after the change.
type health struct {
	u      *Update
	change *state.Change
	job    *engine.Job
}

func (s *health) Name() string { return "health" }

func (s *health) Idle() string {
	if s.u.has(hooks.Health, s.job) || s.job.Plan.TouchesUnits() || s.u.asksSource(s.job.Plan) || s.u.rebooted(s.change) {
		return ""
	}
	return "there is nothing to look at"
}

func (s *health) Run(ctx context.Context) error {
	if s.u.rebooted(s.change) {
		if err := s.u.Rebooting.Machine.BootChecks(ctx); err != nil {
			return err
		}
	}
	if err := s.u.Units.Healthy(ctx, s.job.Dir, s.job.Plan); err != nil {
		return err
	}
	if err := s.u.hook(ctx, hooks.Health, s.change, s.job, nil); err != nil {
		return err
	}
	if !s.u.asksSource(s.job.Plan) {
		return nil
	}
	if err := s.u.Reach(ctx); err != nil {
		return fmt.Errorf("the fleet repo cannot be reached any more from the changed host: %w", err)
	}
	return nil
}

// failedHook tells error.d, whose own failures change nothing.
func (u *Update) failedHook(ctx context.Context, change *state.Change, job *engine.Job, failed *pipeline.StepError) {
	err := u.hook(ctx, hooks.Error, change, job, map[string]string{"RECONF_FAILED_STEP": failed.Step, "RECONF_ERROR": failed.Err.Error()})
	if err != nil {
		u.Log.Warnf("error.d: %v", err)
	}
}

// CutOff tells error.d of the step that the run's time limit has cut off: the
// scripts get time of their own.
func (u *Update) CutOff(ctx context.Context, failed *pipeline.StepError) {
	change := u.State.Change
	if change == nil {
		return
	}
	job, err := readJob(change.ID, u.dir(change.ID))
	if err != nil {
		u.Log.Warnf("error.d: %v", err)
		return
	}
	u.failedHook(ctx, change, job, failed)
}

// retried are the steps that are begun again by later runs before they count
// as failed for good: what they wait for may come.
var retried = []string{"pre-update", "pre-configure", "update", "post-update"}

func (u *Update) triesLeft(change *state.Change, step string) bool {
	i := slices.IndexFunc(change.Tasks, func(t state.Task) bool { return t.Name == step })
	return slices.Contains(retried, step) && i >= 0 && change.Tasks[i].Attempts < u.MaxAttempts
}

// NotBefore is when the failed step of the change under way may be begun again:
// each start of it waits twice as long as the one before.
func (u *Update) NotBefore() time.Time {
	if u.State.Change == nil {
		return time.Time{}
	}
	failed := u.State.Change.Failure()
	if failed == nil || failed.Attempts < 1 || !slices.Contains(retried, failed.Name) || u.Host.Now().Before(failed.Ended) {
		return time.Time{}
	}
	return failed.Ended.Add(u.Backoff << (failed.Attempts - 1))
}
