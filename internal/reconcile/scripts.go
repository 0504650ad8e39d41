package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// Scripts are those of the host config. What cannot be one is a
// *finding.Failure with all of them.
func (t Translation) Scripts() ([]update.Script, error) {
	var (
		scripts []update.Script
		wrong   finding.List
	)
	for _, s := range t.Config.Scripts() {
		size, err := t.Tree.Size(s.Entry)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.Entry.Path, err)
		}
		refuse := func(hint, format string, args ...any) {
			wrong = append(wrong, finding.Finding{
				Severity: finding.Error, Position: finding.Position{File: s.Entry.Path}, Message: fmt.Sprintf(format, args...), Hint: hint,
			})
		}
		if size > t.Contents.MaxFile {
			refuse("", "it has %d bytes: at most %d are allowed (translate.max_file)", size, t.Contents.MaxFile)
			continue
		}
		script := update.Script{
			Proposed: hooks.Proposed{Phase: s.Phase, Name: s.Name, Path: s.Entry.Path, Executable: s.Entry.Mode == source.Executable, Size: size},
			Open:     func(context.Context) (io.ReadCloser, error) { return t.Tree.Open(s.Entry) },
		}
		sum, beginning, err := t.sum(s.Entry)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.Entry.Path, err)
		}
		if size <= source.MaxPointer && source.IsPointer(beginning) {
			refuse("keep the script itself in the fleet repo", "it is a Git LFS pointer")
			continue
		}
		script.SHA256 = sum
		scripts = append(scripts, script)
	}
	return scripts, wrong.Err()
}

// sum reads a blob through: its SHA-256, and as much of it as a pointer has.
func (t Translation) sum(e source.Entry) (sum string, beginning []byte, err error) {
	r, err := t.Tree.Open(e)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if beginning, err = io.ReadAll(io.LimitReader(r, source.MaxPointer)); err != nil {
		return "", nil, err
	}
	seen := sha256.New()
	seen.Write(beginning)
	_, err = io.Copy(seen, r)
	return hex.EncodeToString(seen.Sum(nil)), beginning, err
}

// PhaseRuns is what a change does with the scripts of one phase.
type PhaseRuns struct {
	Phase   hooks.Phase `json:"phase"`
	Scripts []ScriptRun `json:"scripts"` // in the order of running
	NotRun  []NotRun    `json:"not_run,omitempty"`
}

// ScriptRun is one script that runs.
type ScriptRun struct {
	Name string `json:"name"` // 10-drain
	// Path is where it lies: on the host, or in the fleet repo.
	Path  string `json:"path"`
	Fleet bool   `json:"fleet"` // it comes from the fleet repo
	// New: the applied generation does not have it, or the migration has not run.
	New bool `json:"new,omitempty"`
}

// NotRun is a file among the scripts that does not run.
type NotRun struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// open tells whether an earlier change began and did not end: then all steps
// run, also where the plan is empty.
func (r *Reconciler) open() bool { return r.Update.State.Change != nil || len(r.Update.State.Open) > 0 }

// runs are the scripts that a change would run, none when it takes the short
// way: an empty plan, no script of the fleet repo that the applied generation
// does not have, and no migration that is still to be run.
func (r *Reconciler) runs(prop *Proposal, applied []update.Script) ([]PhaseRuns, error) {
	var proposed []hooks.Proposed
	for _, s := range prop.Scripts {
		proposed = append(proposed, s.Proposed)
	}
	work := !prop.Plan.Empty() || r.open()
	var all []PhaseRuns
	for _, phase := range update.Phases() {
		if phase == hooks.Update && !prop.due.osWork {
			continue
		}
		scripts, ignored, err := r.Hooks.Preview(phase, proposed)
		if err == nil && phase == hooks.Migration {
			scripts, err = r.Hooks.Pending(phase, scripts, r.Update.Migrated)
		}
		if err != nil {
			return nil, err
		}
		if len(scripts)+len(ignored) == 0 {
			continue
		}
		runs := PhaseRuns{Phase: phase, Scripts: []ScriptRun{}}
		for _, s := range scripts {
			run := ScriptRun{Name: s.Name, Path: s.Path, Fleet: s.Fleet}
			run.New = phase == hooks.Migration || run.Fleet && !slices.ContainsFunc(applied, func(old update.Script) bool {
				return old.Phase == phase && old.Name == s.Name && old.SHA256 == s.Hash && old.Executable
			})
			// A host that is up to date waits for its next change.
			work = work || run.New && len(prop.Reasons) > 0
			runs.Scripts = append(runs.Scripts, run)
		}
		for _, one := range ignored {
			runs.NotRun = append(runs.NotRun, NotRun{one.Path, one.Reason})
		}
		all = append(all, runs)
	}
	if !work {
		return nil, nil
	}
	return all, nil
}
