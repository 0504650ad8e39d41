package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// unblocked is the reason of a change that applies what was blocked before.
const unblocked = "unblocked"

// BlockedError says that all of the host config was carried out but for some paths.
type BlockedError struct{ Paths []state.Blocked }

func (e *BlockedError) Error() string {
	const most = 20 // lines that a person reads
	var lines []string
	for i := range e.Paths[:min(len(e.Paths), most)] {
		lines = append(lines, e.Paths[i].String())
	}
	if more := len(e.Paths) - most; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// Hint says how it ends.
func (e *BlockedError) Hint() string {
	return "everything else is applied. Have the owner of the place remove what is in the way: every run looks again"
}

// OnlyBlocked tells whether an error says nothing but that paths are blocked.
func OnlyBlocked(err error) bool { return err != nil && withoutBlocked(err) == nil }

// withoutBlocked is an error without what is said of blocked paths.
func withoutBlocked(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return errors.Join(slices.DeleteFunc(slices.Clone(joined.Unwrap()), isBlocked)...)
	}
	if isBlocked(err) {
		return nil
	}
	return err
}

func isBlocked(err error) bool {
	var blocked *BlockedError
	return errors.As(err, &blocked)
}

// nameBlocked completes what a run knows of blocked paths: what it saw itself, and what
// the applied generation lacks. The run ends with them.
func (r *Reconciler) nameBlocked(out *Outcome) {
	applied := r.Update.State.Applied
	if applied == nil || out.Result == Suspended || out.Result == Retired {
		return
	}
	seen := out.Blocked
	if out.Result == Applied || out.Result == Recorded {
		seen = nil // before the change
	}
	out.Blocked = slices.Clone(applied.Blocked)
	for _, one := range seen {
		if !slices.ContainsFunc(out.Blocked, func(b state.Blocked) bool { return b.Path == one.Path }) {
			out.Blocked = append(out.Blocked, one)
		}
	}
	if len(out.Blocked) == 0 {
		return
	}
	slices.SortFunc(out.Blocked, func(a, b state.Blocked) int { return strings.Compare(a.Path, b.Path) })
	for i := range out.Blocked {
		out.Blocked[i].Owner = r.Host.UserName(out.Blocked[i].Place.UID)
	}
	out.Aside = errors.Join(out.Aside, &BlockedError{out.Blocked})
}

// tryBlocked tells whether there is a path that the applied generation lacks, and that
// may be free by now. Only a plan can say.
func (r *Reconciler) tryBlocked() bool {
	now := r.Host.Now()
	return slices.ContainsFunc(r.Update.State.Applied.Blocked, func(b state.Blocked) bool {
		return !now.Before(b.NotBefore())
	})
}

// notYet are paths that were found blocked while the same host config was carried out,
// and that are not tried again yet.
func (r *Reconciler) notYet(digest string) map[string]*fsat.BlockedError {
	applied, later := r.Update.State.Applied, map[string]*fsat.BlockedError{}
	if applied == nil || applied.Digest != digest {
		return later
	}
	for _, b := range applied.Blocked {
		if r.Host.Now().Before(b.NotBefore()) {
			later[b.Path] = &fsat.BlockedError{Path: b.Path, Place: b.Place, Reason: b.Reason}
		}
	}
	return later
}

// nothingNew tells whether a plan for what is blocked, or drifted, finds that all of it is
// blocked: no generation comes of that, or there would be one at every run.
func (r *Reconciler) nothingNew(prop *Proposal, reasons []string, out *Outcome) bool {
	applied := r.Update.State.Applied
	if applied == nil || applied.Digest != prop.Digest || !prop.Plan.Empty() || len(prop.Plan.Blocked()) == 0 {
		return false
	}
	for _, reason := range reasons {
		if reason != unblocked && reason != drifted(len(out.Drift)) {
			return false
		}
	}
	blocked := blockedBy(prop.Plan)
	return !slices.ContainsFunc(applied.Blocked, func(b state.Blocked) bool {
		return !slices.ContainsFunc(blocked, func(now state.Blocked) bool { return now.Path == b.Path })
	})
}

// blockedBy are the paths that a plan leaves as they are.
func blockedBy(p *plan.Plan) []state.Blocked {
	var blocked []state.Blocked
	for _, item := range p.Blocked() {
		blocked = append(blocked, state.Blocked{Path: item.Path, Place: *item.Place, Reason: item.Note})
	}
	return blocked
}
