// Package reconcile is one pull: from the remote's tip to a recorded
// generation.
//
// Its one rule: it decides and delegates. Whatever it finds wrong before a
// change is pinned leaves the host and its state as they were.
package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// Services is what plans ask about units, with its end.
type Services interface {
	plan.Services
	// Err is what went wrong while answering: an answer has no room for it.
	Err() error
	Close()
}

// Reconciler is everything that one pull needs.
type Reconciler struct {
	Host   *host.Host
	Dirs   state.Dirs
	Source Source
	// Names of this host, in the order in which they are looked for.
	Names []string
	// Named: the operator gave the name, so it may differ from the applied one.
	Named bool
	// Author: nobody's machine asks, so that nothing of this one goes into the host
	// config.
	Author   bool
	Strict   bool
	Limits   butane.Limits
	Settings plan.Settings
	Contents contents.Opener // Tree is set for each commit
	Accounts plan.Accounts
	Services func(ctx context.Context) (Services, error)
	OnChange func(fragments ...[]byte) string
	Update   *update.Update
	Hooks    *hooks.Runner // the host's own scripts, to say what would run
	Trust    Trust
	Log      logrus.FieldLogger
	// Choose says which engine carries out a host config with these migrations; nil
	// where there is the native one only.
	Choose func([]engine.Migration) (engine.Choice, error)
	// Announce is told of a plan before it is carried out.
	Announce func(*Proposal)

	phases  Phases
	trusted string       // the tip that this run found to be signed
	before  []state.Task // the steps before the pin
}

// Source is a fleet repo whose mirror can be thrown away.
type Source interface {
	source.Source
	Discard() error
	// Commit returns the bytes of a commit object.
	Commit(ctx context.Context, commit string) ([]byte, error)
	// Relation tells how the tip stands to an older commit, and Between what the one
	// has in its history and the other has not. After source.ErrShallow, Deepen and
	// another Fetch let them tell.
	Relation(ctx context.Context, older, tip string) (source.Relation, error)
	Between(ctx context.Context, ancestor, tip string) ([]string, error)
	Deepen()
}

// Result is how a run ended well.
type Result string

// The results of a run.
const (
	UpToDate Result = "up-to-date"
	Applied  Result = "applied"
	Recorded Result = "recorded" // a new digest that changes nothing on the host
	// Suspended: what was under way was finished, and nothing new was begun.
	Suspended Result = "suspended"
	// Retired: fleet.toml says that the host is left alone.
	Retired Result = "retired"
	// Stale: the remote lags behind what was seen before, and nothing was done.
	Stale Result = "stale"
)

// Outcome is what a run did.
type Outcome struct {
	Result     Result            `json:"result"`
	Host       string            `json:"host"`
	Ref        string            `json:"ref"`
	Commit     string            `json:"commit"`
	Digest     string            `json:"digest"`
	Generation int               `json:"generation"`
	Finished   string            `json:"finished,omitempty"` // the change of an earlier run that this one completed
	Drift      []string          `json:"drift,omitempty"`
	Blocked    []state.Blocked   `json:"blocked,omitempty"` // paths that somebody keeps from being managed
	Signer     string            `json:"signer,omitempty"`  // of the commit, where one is asked for
	Stale      string            `json:"stale,omitempty"`   // the older commit that the remote is at
	Suspended  *state.Suspension `json:"suspended,omitempty"`
	Retired    fleet.Retirement  `json:"retired,omitempty"`
	Duration   time.Duration     `json:"duration_ns"`
	Phases     Phases            `json:"phases_ns"`
	Plan       *plan.Plan        `json:"plan,omitempty"`
	Scripts    []PhaseRuns       `json:"scripts,omitempty"`
	// Waiting is what the run left for a later one, and what that waits for.
	Waiting string `json:"waiting,omitempty"`
	// Aside is what went wrong, or is held, beside what the run did: it stopped
	// nothing, and the run ends with it.
	Aside error `json:"-"`
}

// Phases is where the time of a run went.
type Phases struct {
	Fetch     time.Duration `json:"fetch"`
	Digest    time.Duration `json:"digest"`
	Translate time.Duration `json:"translate"`
	Plan      time.Duration `json:"plan"`
	Change    time.Duration `json:"change"` // from the pin to the record
}

// timed adds what passes until the returned function is called.
func (r *Reconciler) timed(phase *time.Duration) func() {
	started := r.Host.Now()
	return func() { *phase += r.Host.Now().Sub(started) }
}

// Proposal is what a host config asks of this host.
type Proposal struct {
	Revision   source.Revision
	Host       string
	Digest     string
	Plan       *plan.Plan
	Ignored    []desired.Section
	Findings   finding.List // warnings
	Deployment string
	Reasons    []string
	Retired    fleet.Retirement
	Watches    []service.Watch // of the fleet repo
	// Scripts are the fleet repo's, to be pinned with the change.
	Scripts []update.Script
	// Runs are the scripts that the change runs: none when it takes the short way.
	Runs []PhaseRuns
	// Reboot is why carrying it out will reboot the machine, as far as that shows.
	Reboot string
	Engine engine.Request
	// SLS tells that it has migrations for Salt that the applied generation did not
	// have, or not so.
	SLS bool

	due due
}

// due is what there is to do besides the host config.
type due struct {
	osWork  bool
	pending *state.Reboot
}

// Changes tells whether there is anything to do on the host.
func (p *Proposal) Changes() bool { return !p.Plan.Empty() || len(p.Runs) > 0 || p.SLS }

// OtherHostError says that this machine resolves to another name than the one whose
// config it has.
type OtherHostError struct{ Applied, Resolved string }

func (e *OtherHostError) Error() string {
	return fmt.Sprintf("this machine has the config of %s and its name now leads to that of %s", e.Applied, e.Resolved)
}

// Hint says how to go on.
func (e *OtherHostError) Hint() string {
	return fmt.Sprintf("if it really is %s now, say so once: reconf-pull run --host %s, or set name under [host] in config.toml", e.Resolved, e.Resolved)
}

// HeldError says that the tip's digest failed before and is not tried again.
type HeldError struct{ state.Hold }

func (e *HeldError) Error() string {
	return fmt.Sprintf("%.12s is held since %s: %s: %s", e.Commit, e.Time.UTC().Format(time.RFC3339), e.Step, e.Reason)
}

// Hint says how a hold ends.
func (e *HeldError) Hint() string {
	return "push a commit that mends it, or mend the host and say reconf-pull retry"
}

// OSWorkHeldError says that OS work failed before and is not tried again.
type OSWorkHeldError struct{ state.OSWorkHold }

func (e *OSWorkHeldError) Error() string {
	return fmt.Sprintf("OS work is held since %s: %s: %s", e.Time.UTC().Format(time.RFC3339), e.Step, e.Reason)
}

// Hint says how a hold ends.
func (e *OSWorkHeldError) Hint() string {
	return "mend the host and say reconf-pull retry, or boot another OS deployment; the host config is still followed"
}

// BackoffError says that a change that failed is tried again, but not yet.
type BackoffError struct {
	Failed *state.Task
	Until  time.Time
}

func (e *BackoffError) Error() string {
	return fmt.Sprintf("%s failed (start %d) and is not begun again before %s: %s", e.Failed.Name, e.Failed.Attempts, e.Until.UTC().Format(time.RFC3339), e.Failed.Detail)
}

// Hint says how to go on sooner.
func (e *BackoffError) Hint() string {
	return "a new push replaces it; reconf-pull retry lets the next run begin it at once (retry.backoff)"
}

// Run is one pull. The caller holds the run lock.
func (r *Reconciler) Run(ctx context.Context) (Outcome, error) {
	started := r.Host.Now()
	r.Update.NameUnused()
	out, err := r.run(ctx)
	if pending := r.Update.State.Reboot; pending != nil && out.Waiting == "" {
		out.Waiting = "a reboot is pending: " + pending.Reason
	}
	out.Aside = r.Update.Broken
	if held := r.Update.State.HeldOSWork; held != nil {
		out.Aside = errors.Join(out.Aside, &OSWorkHeldError{*held})
	}
	r.nameBlocked(&out)
	out.Duration, out.Phases = r.Host.Now().Sub(started), r.phases
	r.remember(started, out, err)
	return out, err
}

func (r *Reconciler) run(ctx context.Context) (Outcome, error) {
	var out Outcome
	if err := r.Update.Booted(); err != nil {
		return out, err
	}
	if err := r.finishPinned(ctx, &out); err != nil {
		return out, err
	}
	if err := r.Update.ReleaseLeft(ctx); err != nil {
		return out, err
	}
	r.Update.NameLock(ctx)
	suspended, err := state.Suspended(r.Dirs, r.Host.Now())
	if err != nil {
		return out, err
	}
	if suspended != nil {
		if applied := r.Update.State.Applied; applied != nil {
			out.Host, out.Ref, out.Commit, out.Digest, out.Generation = applied.Host, applied.Ref, applied.Commit, applied.Digest, applied.Generation
		}
		out.Result, out.Suspended = Suspended, suspended
		return out, nil
	}
	var prop *Proposal
	err = r.afresh(func() (err error) {
		prop, err = r.candidate(ctx, &out)
		return err
	})
	if err == nil && prop != nil {
		r.Update.State.Held = nil // what was held is not what the tip asks for
		err = r.carryOut(ctx, prop, &out, func() (*Proposal, error) { return r.candidate(ctx, &out) })
		if errors.Is(err, source.ErrDamaged) {
			err = errors.Join(err, r.discard(err)) // the next run begins with a whole one
		}
		var stale *StaleError
		if !errors.As(err, &stale) {
			return out, err
		}
	}
	var fetch *fetchError
	if errors.As(err, &fetch) {
		return out, errors.Join(r.stale(fetch.err, &out), r.withoutSource(ctx, fetch.err, &out))
	}
	return out, err
}

// stale turns a remote that lags behind into a warning; other errors stay.
func (r *Reconciler) stale(fetch error, out *Outcome) error {
	var stale *StaleError
	if !errors.As(fetch, &stale) {
		return fetch
	}
	r.Log.Warn(stale)
	out.Result, out.Stale, out.Ref, out.Commit = Stale, stale.Commit, stale.Ref, stale.Mark.Commit
	if applied := r.Update.State.Applied; applied != nil {
		out.Host, out.Commit, out.Digest, out.Generation = applied.Host, applied.Commit, applied.Digest, applied.Generation
	}
	return nil
}

// fetchError is one of the source, not of what it holds.
type fetchError struct{ err error }

func (e *fetchError) Error() string { return e.err.Error() }
func (e *fetchError) Unwrap() error { return e.err }

// candidate is what the tip of the fleet repo, or the host itself, asks for now;
// nil when there is nothing to do, or when it was done by going on with a change
// that failed.
func (r *Reconciler) candidate(ctx context.Context, out *Outcome) (*Proposal, error) {
	stop := r.timed(&r.phases.Fetch)
	rev, tree, mark, err := r.fetch(ctx)
	stop()
	if err != nil {
		return nil, &fetchError{err}
	}
	if err := r.advance(rev.Ref, mark); err != nil {
		return nil, err
	}
	out.Signer, r.trusted = mark.Signer, ""
	if mark.Signer != "" {
		r.trusted = mark.Commit
	}
	stop = r.timed(&r.phases.Digest)
	id, hc, err := r.identify(rev, tree)
	stop()
	if err != nil {
		return nil, err
	}
	st := r.Update.State
	out.Host, out.Ref, out.Commit, out.Digest, out.Retired = id.Host, rev.Ref, rev.Commit, string(id.Digest), id.Retired
	if id.Retired == fleet.Retired {
		out.Result = Retired
		return nil, r.rememberRef(rev.Ref)
	}
	if held := st.Held; held != nil && held.Digest == string(id.Digest) {
		return nil, errors.Join(&HeldError{Hold: *held}, r.bringBack(ctx, out))
	}
	if st.Change != nil && st.Change.Digest == string(id.Digest) {
		// The same digest is retried from its own inputs, with the steps that are done.
		if err := r.again(ctx, out); err != nil || out.Finished != "" {
			return nil, err
		}
		// They were damaged: it is made anew from its source.
	}
	reasons, err := r.reasons(ctx, string(id.Digest), out)
	if err != nil {
		return nil, err
	}
	reasons, due, err := r.beside(ctx, reasons, out)
	if err != nil {
		return nil, err
	}
	if kept := st.Lock; kept != nil && kept.Kept {
		reasons = append(reasons, "the fleet lock is kept after a failure")
	}
	if len(reasons) == 0 {
		out.Result, out.Generation = UpToDate, st.Applied.Generation
		return nil, r.rememberRef(rev.Ref)
	}
	if hc == nil {
		if hc, err = r.hostConfig(tree); err != nil {
			return nil, err
		}
	}
	prop, err := r.propose(ctx, rev, tree, hc, reasons, due)
	if err == nil && r.nothingNew(prop, reasons, out) {
		out.Result, out.Generation, out.Drift = UpToDate, st.Applied.Generation, nil
		out.Blocked = blockedBy(prop.Plan)
		return nil, r.rememberRef(rev.Ref)
	}
	return prop, err
}

// again goes on with a change that failed, once its back-off has passed.
func (r *Reconciler) again(ctx context.Context, out *Outcome) error {
	if until := r.Update.NotBefore(); r.Host.Now().Before(until) {
		return &BackoffError{Failed: r.Update.State.Change.Failure(), Until: until}
	}
	return r.resume(ctx, out)
}

// beside adds the reasons that neither the host config nor its paths give: OS
// work, and a reboot that was put off. OS work waits for its window; what is due
// besides does not wait for it.
func (r *Reconciler) beside(ctx context.Context, reasons []string, out *Outcome) ([]string, due, error) {
	var d due
	done := r.did("needs-update")
	work, err := r.Update.AskOSWork(ctx)
	if err != nil {
		return nil, d, err
	}
	done(work)
	if work != "" {
		closed := r.Update.Gate("OS work: " + work)
		if closed != nil && len(reasons) == 0 {
			return nil, d, closed
		}
		if closed != nil {
			out.Waiting = closed.Error()
			r.Log.Info(closed)
		} else {
			d.osWork = true
			reasons = append(reasons, "OS work: "+work)
		}
	}
	if d.pending = r.Update.PendingReboot(ctx); d.pending != nil {
		reasons = append(reasons, "a reboot is pending: "+d.pending.Reason)
	}
	return reasons, d, nil
}

// did notes when a step before the pin was done; the returned function ends it.
func (r *Reconciler) did(name string) func(detail string) {
	started := r.Host.Now()
	return func(detail string) {
		r.before = slices.DeleteFunc(r.before, func(t state.Task) bool { return t.Name == name })
		r.before = append(r.before, state.Task{Name: name, Status: state.Done, Detail: detail, Started: started, Ended: r.Host.Now()})
	}
}

// finishPinned goes on with a change that a crash cut off, before anything
// else: it needs no source.
func (r *Reconciler) finishPinned(ctx context.Context, out *Outcome) error {
	change := r.Update.State.Change
	if change == nil {
		if err := r.Update.Tidy(); err != nil {
			r.Log.Warn(err) // what lies about too long harms nothing
		}
		return nil
	}
	if r.Update.Ended(change) {
		return nil
	}
	r.Log.Infof("going on with change %s, which did not end", change.ID)
	err := r.resume(ctx, out)
	var back *update.RolledBackError
	if errors.As(err, &back) && back.Back == nil {
		// It is over, and the tip may hold its repair.
		r.Log.Error(err)
		return nil
	}
	return err
}

func (r *Reconciler) resume(ctx context.Context, out *Outcome) error {
	change := r.Update.State.Change
	err := r.Update.Resume(ctx)
	var back *update.RolledBackError
	switch {
	case errors.As(err, &back) && back.Back != nil:
		return err
	case errors.As(err, &back) && errors.Is(err, update.ErrDamaged):
		r.Log.Warn(err)
		return nil
	case errors.Is(err, update.ErrDamaged):
		r.Log.Warnf("change %s is made anew from its source: %v", change.ID, err)
		return r.Update.Abandon()
	case err != nil:
		return err
	}
	out.Result, out.Finished = Applied, change.ID
	out.Host, out.Ref, out.Commit, out.Digest = change.Host, change.Ref, change.Commit, change.Digest
	out.Generation = r.Update.State.Applied.Generation
	return nil
}

// withoutSource does what needs no source: it goes on with a failed change,
// since nobody can say whether there is a better one, or brings the applied
// generation back.
func (r *Reconciler) withoutSource(ctx context.Context, fetch error, out *Outcome) error {
	st := r.Update.State
	var stale *StaleError
	late := errors.As(fetch, &stale) || errors.Is(fetch, source.ErrUnavailable)
	switch {
	case !late && !errors.Is(fetch, source.ErrUntrusted) && !errors.Is(fetch, source.ErrNotFastForward):
		return nil
	case st.Change == nil:
		return r.bringBack(ctx, out)
	case st.Held == nil && late:
		return r.again(ctx, out)
	}
	return nil
}

// bringBack restores the applied generation, from what was stored for it,
// where the operating system or somebody undid it.
func (r *Reconciler) bringBack(ctx context.Context, out *Outcome) error {
	if st := r.Update.State; st.Applied == nil || st.Change != nil {
		return nil
	}
	prop, err := r.standingCandidate(ctx, out)
	if err != nil || prop == nil {
		return err
	}
	return r.carryOut(ctx, prop, out, func() (*Proposal, error) { return r.standingCandidate(ctx, out) })
}

// standingCandidate is what the host itself asks for, nil when there is nothing
// to do.
func (r *Reconciler) standingCandidate(ctx context.Context, out *Outcome) (*Proposal, error) {
	reasons, err := r.standing(ctx, out)
	if err != nil {
		return nil, err
	}
	reasons, due, err := r.beside(ctx, reasons, out)
	if err != nil || len(reasons) == 0 {
		return nil, err
	}
	return r.proposeApplied(ctx, reasons, due)
}

// fetch brings the tip, and decides whether it may be used before its tree is
// read. A mirror that turns out to be damaged, or too shallow to tell, is thrown
// away once: it is only a cache.
func (r *Reconciler) fetch(ctx context.Context) (source.Revision, source.Tree, state.Mark, error) {
	damaged, shallow := false, false
	for {
		rev, err := r.Source.Fetch(ctx)
		if err != nil {
			return source.Revision{}, nil, state.Mark{}, err
		}
		var tree source.Tree
		mark, err := r.judge(ctx, rev)
		if err == nil {
			tree, err = r.Source.Tree(ctx, rev.Commit)
		}
		switch {
		case errors.Is(err, source.ErrDamaged) && !damaged:
			damaged = true
			if err := r.discard(err); err != nil {
				return source.Revision{}, nil, state.Mark{}, err
			}
		case errors.Is(err, source.ErrShallow) && !shallow:
			shallow = true
			r.Source.Deepen()
		default:
			return rev, tree, mark, err
		}
	}
}

// discard throws the mirror away, which is damaged.
func (r *Reconciler) discard(damage error) error {
	r.Log.Warnf("the mirror is damaged and is cloned again: %v", damage)
	return r.Source.Discard()
}

// afresh begins once more, with a clone, what finds the mirror damaged where a fetch
// does not look.
func (r *Reconciler) afresh(do func() error) error {
	err := do()
	var fetch *fetchError
	if !errors.Is(err, source.ErrDamaged) || errors.As(err, &fetch) { // which did so itself
		return err
	}
	if err := r.discard(err); err != nil {
		return err
	}
	return do()
}

func (r *Reconciler) hostConfig(tree source.Tree) (*fleet.HostConfig, error) {
	repo, err := fleet.Open(tree)
	if err != nil {
		return nil, err
	}
	hc, err := repo.Host(r.machine())
	if err != nil {
		return nil, err
	}
	return hc, r.sameHost(hc.Name)
}

// reasons are why there is something to do; none means that the host is up to
// date.
func (r *Reconciler) reasons(ctx context.Context, digest string, out *Outcome) ([]string, error) {
	st := r.Update.State
	if st.Applied == nil {
		return []string{"first run"}, nil
	}
	var reasons []string
	if st.Applied.Digest != digest {
		reasons = append(reasons, "the host config changed")
	}
	if st.Change != nil || len(st.Open) > 0 {
		reasons = append(reasons, "an earlier change did not end")
	}
	if len(reasons) > 0 && r.Host.Deployment() == st.Applied.Deployment {
		return reasons, nil // the plan looks at every path anyway
	}
	standing, err := r.standing(ctx, out)
	if r.tryBlocked() {
		standing = append(standing, unblocked)
	}
	return append(reasons, standing...), err
}

// standing are the reasons that lie with the host alone.
func (r *Reconciler) standing(ctx context.Context, out *Outcome) ([]string, error) {
	if deployment := r.Host.Deployment(); deployment != r.Update.State.Applied.Deployment {
		return []string{fmt.Sprintf("another OS deployment is booted (%s)", deployment)}, nil
	}
	manifest, err := r.manifest()
	if err != nil {
		return nil, err
	}
	out.Blocked = nil
	var blocked []*fsat.BlockedError
	if out.Drift, blocked, err = plan.Drifted(ctx, r.Host, manifest); err != nil {
		return nil, err
	}
	for _, one := range blocked {
		out.Blocked = append(out.Blocked, state.Blocked{Path: one.Path, Place: one.Place, Reason: one.Reason})
	}
	if len(out.Drift) > 0 && r.Settings.CorrectDrift {
		return []string{drifted(len(out.Drift))}, nil
	}
	return nil, nil
}

// drifted is the reason of a change that corrects so many paths.
func drifted(paths int) string { return fmt.Sprintf("%d paths drifted", paths) }

// manifest is the applied generation's; a host without one manages nothing.
func (r *Reconciler) manifest() (*state.Manifest, error) {
	applied := r.Update.State.Applied
	if applied == nil {
		return &state.Manifest{}, nil
	}
	return state.ReadManifest(filepath.Join(r.Dirs.Generation(applied.Generation), "manifest"))
}

// Propose makes the plan for the remote's tip and changes nothing on the host.
func (r *Reconciler) Propose(ctx context.Context) (prop *Proposal, err error) {
	err = r.afresh(func() error {
		rev, tree, _, err := r.fetch(ctx)
		if err != nil {
			return &fetchError{err}
		}
		prop, err = r.ProposeTree(ctx, rev, tree)
		return err
	})
	return prop, err
}

// ProposeTree makes the plan for a tree that is at hand.
func (r *Reconciler) ProposeTree(ctx context.Context, rev source.Revision, tree source.Tree) (*Proposal, error) {
	hc, err := r.hostConfig(tree)
	if err != nil {
		return nil, err
	}
	if hc.Retired == fleet.Retired {
		return &Proposal{Revision: rev, Host: hc.Name, Digest: string(hc.Digest), Retired: hc.Retired, Plan: &plan.Plan{}}, nil
	}
	reasons, err := r.reasons(ctx, string(hc.Digest), &Outcome{})
	if err != nil {
		return nil, err
	}
	return r.propose(ctx, rev, tree, hc, reasons, due{})
}

func (r *Reconciler) propose(ctx context.Context, rev source.Revision, tree source.Tree, hc *fleet.HostConfig, reasons []string, due due) (*Proposal, error) {
	opener := r.opener(tree)
	stop := r.timed(&r.phases.Translate)
	translation := Translation{Tree: tree, Config: hc, Strict: r.Strict, Scratch: r.Dirs.Run, Contents: opener}
	want, lines, findings, err := translation.run(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	scripts, err := translation.Scripts()
	stop()
	if err != nil {
		return nil, err
	}
	prop := &Proposal{
		Revision: rev, Host: hc.Name, Digest: string(hc.Digest), Ignored: want.Ignored, Findings: findings, Reasons: reasons, Retired: hc.Retired, Watches: hc.Watches,
		Scripts: scripts, due: due,
	}
	prop.Engine = engine.Request{Host: hc.Name, Commit: rev.Commit}
	if len(hc.Migrations) > 0 {
		prop.Engine.Vars = hc.Vars // for nobody else
	}
	for _, m := range hc.Migrations {
		prop.Engine.Migrations = append(prop.Engine.Migrations, engine.Migration{Path: m.Entry.Path, Data: m.Data})
	}
	if prop.Engine.Choice, err = r.choose(prop.Engine.Migrations); err != nil {
		return nil, err
	}
	prop.SLS = r.newSLS(&prop.Engine)
	err = r.plan(ctx, prop, plan.Input{Desired: want, Contents: opener})
	if prop.Plan != nil {
		prop.Findings = append(prop.Findings, lines(prop.Plan.Findings)...)
	}
	var wrong *finding.Failure
	if errors.As(err, &wrong) {
		wrong.Findings = lines(wrong.Findings)
	}
	return prop, err
}

// proposeApplied makes the plan that brings the applied generation back, from
// what was stored for it.
func (r *Reconciler) proposeApplied(ctx context.Context, reasons []string, due due) (*Proposal, error) {
	applied := r.Update.State.Applied
	inputs, err := update.ReadInputs(r.Dirs.Generation(applied.Generation))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrUnreadable, err)
	}
	prop := &Proposal{
		Revision: source.Revision{Ref: applied.Ref, Commit: applied.Commit}, Host: applied.Host, Digest: applied.Digest,
		Ignored: inputs.Ignored, Reasons: reasons, Watches: inputs.Watches, Scripts: inputs.Scripts, due: due, Engine: inputs.Request,
	}
	if prop.Engine.Choice, err = r.choose(inputs.Migrations); err != nil {
		return nil, err
	}
	return prop, r.plan(ctx, prop, plan.Input{Stored: func(node disk.Node) (io.ReadCloser, error) {
		return engine.Stored(filepath.Join(r.Dirs.Blobs(), node.Stored()), node, r.Update.Secrets)
	}})
}

// plan fills in what every plan depends on, and makes it.
func (r *Reconciler) plan(ctx context.Context, prop *Proposal, in plan.Input) (err error) {
	defer r.timed(&r.phases.Plan)()
	prop.Deployment = r.Host.Deployment()
	in.Host, in.Accounts, in.OnChange = r.Host, r.Accounts, r.OnChange
	in.Later = r.notYet(prop.Digest)
	in.Pristine, in.Settings = state.Pristine{Dir: r.Dirs.Pristine(), Secrets: r.Update.Secrets}, r.Settings
	in.Settings.Watches = append(slices.Clone(r.Settings.Watches), prop.Watches...)
	if prop.Retired == fleet.RetiredRemove {
		in.Settings.AllowMassRemoval = true
	}
	if in.Manifest, err = r.manifest(); err != nil {
		return err
	}
	if in.Attempts, err = r.Update.Attempts(); err != nil {
		return err
	}
	var inputs update.Inputs
	if applied := r.Update.State.Applied; applied != nil {
		if inputs, err = update.ReadInputs(r.Dirs.Generation(applied.Generation)); err != nil {
			return fmt.Errorf("%w: %w", state.ErrUnreadable, err)
		}
		in.Ignored = inputs.Ignored
		in.Settings.OtherOS = prop.Deployment != applied.Deployment
	}
	services, err := r.Services(ctx)
	if err != nil {
		return err
	}
	defer services.Close()
	in.Services = services
	done := r.did("check")
	prop.Plan, err = plan.Make(ctx, in)
	if asked := services.Err(); asked != nil {
		return fmt.Errorf("asking about units: %w", asked)
	}
	done("")
	if err != nil {
		return err
	}
	prop.Reboot = r.Update.WillReboot(prop.Plan)
	prop.Runs, err = r.runs(prop, inputs.Scripts)
	return err
}

func (r *Reconciler) opener(tree source.Tree) *contents.Opener {
	opener := r.Contents
	opener.Tree, opener.Small = tree, &contents.Small{}
	return &opener
}

// carryOut records an empty plan at once, and pins and applies any other. again
// makes the proposal anew, once there was a fleet lock to wait for.
func (r *Reconciler) carryOut(ctx context.Context, prop *Proposal, out *Outcome, again func() (*Proposal, error)) error {
	change, short := r.change(prop)
	if !short {
		if err := r.Update.Gate(prop.Reboot); err != nil {
			return err
		}
	}
	done := r.did("lock")
	detail := "skipped: there is no fleet lock"
	if r.Update.Locks() {
		detail = "skipped: nothing reboots (lock.scope)"
	}
	if !short && r.Update.LocksFor(prop.Reboot != "" || change.OSWork || change.Reboot != nil) {
		// What cannot be carried out asks nobody for a turn, and an image is not
		// built while others wait.
		if err := r.Update.Check(ctx, prop.Plan, prop.Engine); err != nil {
			return err
		}
		if err := r.Update.Acquire(ctx, lock.Purpose{Commit: prop.Revision.Commit, Step: "changing"}); err != nil {
			return err
		}
		// A push that mends this one must overtake it in the queue.
		var err error
		if prop, err = again(); err != nil || prop == nil {
			return errors.Join(err, r.Update.ReleaseLeft(ctx))
		}
		if change, short = r.change(prop); !short {
			if err := r.Update.Gate(prop.Reboot); err != nil {
				return errors.Join(err, r.Update.ReleaseLeft(ctx))
			}
		}
		detail = ""
	}
	done(detail)
	st := r.Update.State
	st.Ref = prop.Revision.Ref
	r.Announce(prop)
	inputs := update.Inputs{Ignored: prop.Ignored, Watches: prop.Watches, Scripts: prop.Scripts, Request: prop.Engine}
	out.Plan, out.Scripts = prop.Plan, prop.Runs
	defer r.timed(&r.phases.Change)()
	if short {
		if err := r.Update.RecordOnly(ctx, change, prop.Plan, inputs); err != nil {
			return err
		}
		out.Result = Recorded
	} else {
		change.Tasks = r.before
		if err := r.Update.Pin(ctx, change, prop.Plan, inputs); err != nil {
			return errors.Join(err, r.Update.ReleaseLeft(ctx))
		}
		if err := r.Update.Apply(ctx, prop.Plan, inputs); err != nil {
			return err
		}
		out.Result = Applied
	}
	out.Generation = st.Applied.Generation
	return nil
}

// change is the change that a proposal becomes. short: it changes nothing on the
// host, and its record is all.
func (r *Reconciler) change(prop *Proposal) (change *state.Change, short bool) {
	st := r.Update.State
	change = &state.Change{
		Host: prop.Host, Ref: prop.Revision.Ref, Commit: prop.Revision.Commit,
		Digest: prop.Digest, Deployment: prop.Deployment, Reasons: prop.Reasons,
		OSWork: prop.due.osWork, Reboot: prop.due.pending,
	}
	if st.Applied != nil {
		change.Previous = st.Applied.Commit
	}
	// Below a root that is not running no script runs, whether it is new or not.
	configures := !prop.Plan.Empty() || r.open() || st.Migrated != nil && r.Host.Live() || (prop.SLS || len(prop.Runs) > 0) && r.Host.Live()
	change.OnlyOS = !configures
	return change, !configures && !change.OSWork && change.Reboot == nil
}

func (r *Reconciler) choose(migrations []engine.Migration) (engine.Choice, error) {
	if r.Choose == nil {
		return engine.Choice{Name: engine.Native}, nil
	}
	return r.Choose(migrations)
}

// newSLS tells whether there is something for Salt to do besides the plan:
// migrations that the applied generation did not have, or did not have so.
func (r *Reconciler) newSLS(now *engine.Request) bool {
	if len(now.Migrations) == 0 {
		return false
	}
	if r.Update.State.Applied == nil {
		return true
	}
	before, err := update.ReadInputs(r.Dirs.Generation(r.Update.State.Applied.Generation))
	return err != nil || !now.SameWork(&before.Request)
}

// rememberRef saves what an up-to-date host did not know: the branch, or that
// another digest than the held one is wanted now.
func (r *Reconciler) rememberRef(ref string) error {
	if r.Update.State.Ref == ref && r.Update.State.Held == nil {
		return nil
	}
	r.Update.State.Ref, r.Update.State.Held = ref, nil
	return state.Save(r.Dirs, r.Update.State)
}

// Waits tells whether a run ended because something has to be waited for, and
// nothing went wrong.
func Waits(err error) bool {
	var (
		wait    *pipeline.WaitReboot
		outside *update.OutsideWindowError
		back    *update.RolledBackError
	)
	if errors.As(err, &wait) {
		return wait.Failed == nil && !errors.As(err, &back)
	}
	return errors.As(err, &outside) || errors.Is(err, lock.ErrBusy)
}

// Last is what the last run found; it lies on tmpfs and may be lost.
type Last struct {
	Time     time.Time `json:"time"`
	Duration string    `json:"duration"`
	Result   Result    `json:"result,omitempty"`
	Host     string    `json:"host,omitempty"`
	Commit   string    `json:"commit,omitempty"`
	Digest   string    `json:"digest,omitempty"`
	Drift    []string  `json:"drift,omitempty"`
	Error    string    `json:"error,omitempty"`
	// Refused is the tip that is not used, and Stale the older commit that the
	// remote is at.
	Refused *Refused `json:"refused,omitempty"`
	Stale   string   `json:"stale,omitempty"`
	// Blocked are paths that somebody keeps from being managed. What is in their way is
	// for root alone: see state.LastBlocked.
	Blocked []string `json:"blocked,omitempty"`
	// Waiting is what a later run will do, and what that waits for.
	Waiting string `json:"waiting,omitempty"`
}

func (r *Reconciler) remember(started time.Time, out Outcome, failed error) {
	last := Last{
		Time: started, Duration: out.Duration.Round(time.Millisecond).String(),
		Result: out.Result, Host: out.Host, Commit: out.Commit, Digest: out.Digest, Drift: out.Drift,
	}
	last.Waiting, last.Stale = out.Waiting, out.Stale
	var refused *RefusedError
	if errors.As(failed, &refused) {
		last.Refused = &refused.Refused
	}
	for i := range out.Blocked {
		last.Blocked = append(last.Blocked, out.Blocked[i].Path)
	}
	switch failed := errors.Join(failed, withoutBlocked(out.Aside)); {
	case failed == nil:
	case Waits(failed):
		last.Waiting = failed.Error()
	default:
		last.Error = failed.Error()
	}
	data, err := json.MarshalIndent(last, "", "  ")
	if err == nil {
		err = atomicfile.WriteVolatile(r.Dirs.Last(), append(data, '\n'), 0o644)
	}
	if err = errors.Join(err, state.WriteLastBlocked(r.Dirs, out.Blocked)); err != nil {
		r.Log.Warnf("writing down the last check: %v", err)
	}
}
