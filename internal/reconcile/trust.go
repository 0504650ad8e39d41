package reconcile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/signature"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Trust is who may change this host.
type Trust struct {
	// Verify tells who signed a commit; nil: nobody has to.
	Verify func(commit []byte) (signature.Signer, error)
	// All asks it of every commit since the newest verified one, not of the tip alone.
	All bool
	// Files are where the keys are looked for, for people.
	Files []string
}

// RefusedError is a tip that must not be used. It is source.ErrUntrusted or
// source.ErrNotFastForward.
type RefusedError struct {
	Refused
	Kind error
}

// Refused is a tip that was not used, and what to do about it.
type Refused struct {
	Commit string `json:"commit"`
	Ref    string `json:"ref"`
	Reason string `json:"reason"`
	Hint   string `json:"hint"`
}

func (e *RefusedError) Error() string { return e.Reason }
func (e *RefusedError) Unwrap() error { return e.Kind }

// Hint says what to do.
func (e *RefusedError) Hint() string { return e.Refused.Hint }

// StaleError says that the remote is at an older commit than one that was seen
// before: it lags behind, and is no reason to do anything.
type StaleError struct {
	Commit, Ref string
	Mark        state.Mark
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("the remote is stale: its %s is at %.12s, which is older than %.12s, the newest verified commit", branchOf(e.Ref), e.Commit, e.Mark.Commit)
}

func branchOf(ref string) string { return strings.TrimPrefix(ref, "refs/heads/") }

// judge decides whether a fetched commit may be used, before anything but its
// history is read. The mark that it returns is the one to remember.
func (r *Reconciler) judge(ctx context.Context, rev source.Revision) (state.Mark, error) {
	mark := r.Update.State.Mark(rev.Ref)
	signer, distrusted := r.verify(ctx, rev, rev.Commit)
	var refused *RefusedError
	if distrusted != nil && !errors.As(distrusted, &refused) {
		return mark, distrusted
	}
	next := state.Mark{Commit: rev.Commit, Signer: signer, Time: r.Host.Now()}
	if mark.Commit == "" {
		if distrusted == nil && r.lived() {
			r.Log.Infof("no verified commit of %s is remembered: from %.12s on, history only goes forward", branchOf(rev.Ref), rev.Commit)
		}
		return next, distrusted
	}
	var (
		relation source.Relation
		err      error
	)
	switch {
	case mark.Commit == rev.Commit:
		relation = source.Same
	case slices.Contains(mark.Before, rev.Commit):
		relation = source.Behind
	default:
		relation, err = r.Source.Relation(ctx, mark.Commit, rev.Commit)
	}
	switch {
	case err == nil && relation == source.Behind:
		return mark, &StaleError{Commit: rev.Commit, Ref: rev.Ref, Mark: mark}
	case distrusted != nil:
		return mark, distrusted
	case err != nil:
		return mark, err
	case relation == source.Diverged:
		return mark, &RefusedError{Kind: source.ErrNotFastForward, Refused: Refused{
			Commit: rev.Commit, Ref: rev.Ref,
			Reason: fmt.Sprintf("the history of %s was rewritten: %.12s does not descend from %.12s, the newest verified commit", branchOf(rev.Ref), rev.Commit, mark.Commit),
			Hint:   fmt.Sprintf("the host keeps what it has. git merge -s ours --allow-unrelated-histories %s, and push, keeps the new content and heals every host; the second choice, host by host, is reconf-pull accept-history %s", mark.Commit, rev.Commit),
		}}
	case relation == source.Same:
		// The same commit is signed by the same author; who asked for no signature before may do so now.
		next.Time, next.Before = mark.Time, mark.Before
		return next, nil
	}
	return next, r.verifyBetween(ctx, rev, mark)
}

// lived tells whether the agent did something on this host before: then somebody
// may count on a mark that is not there.
func (r *Reconciler) lived() bool {
	for _, dir := range []string{r.Dirs.Pristine(), r.Dirs.Lost(), filepath.Join(r.Dirs.State, "generations")} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return true
		}
	}
	return false
}

// verify tells who signed a commit.
func (r *Reconciler) verify(ctx context.Context, rev source.Revision, commit string) (string, error) {
	if r.Trust.Verify == nil {
		return "", nil
	}
	raw, err := r.Source.Commit(ctx, commit)
	if err != nil {
		return "", err
	}
	signer, err := r.Trust.Verify(raw)
	if err == nil {
		return signer.String(), nil
	}
	reason, hint := err.Error(), "the host keeps what it has. Push a commit that somebody trusted signed (git commit -S)"
	if errors.Is(err, signature.ErrUnsigned) {
		reason += "; the keys that may sign are those of " + strings.Join(r.Trust.Files, " and ")
	} else {
		hint += ", or let " + strings.Join(r.Trust.Files, " or ") + " name who signed this one"
	}
	return "", &RefusedError{Kind: source.ErrUntrusted, Refused: Refused{
		Commit: rev.Commit, Ref: rev.Ref,
		Reason: fmt.Sprintf("commit %.12s of %s is not trusted: %s", commit, branchOf(rev.Ref), reason),
		Hint:   hint,
	}}
}

// verifyBetween asks for the signatures of what came with the tip.
func (r *Reconciler) verifyBetween(ctx context.Context, rev source.Revision, mark state.Mark) error {
	if r.Trust.Verify == nil || !r.Trust.All {
		return nil
	}
	commits, err := r.Source.Between(ctx, mark.Commit, rev.Commit)
	if err != nil {
		return err
	}
	for _, commit := range commits {
		if commit == rev.Commit {
			continue
		}
		_, err := r.verify(ctx, rev, commit)
		var refused *RefusedError
		if errors.As(err, &refused) {
			refused.Refused.Reason += fmt.Sprintf(" (verify.all: it came between %.12s, the newest verified commit, and %.12s)", mark.Commit, rev.Commit)
			refused.Refused.Hint = fmt.Sprintf("the host keeps what it has. Sign what came since, git rebase --exec 'git commit --amend --no-edit -S' %s, and push; the second choice, host by host, is reconf-pull accept-history %s", mark.Commit, rev.Commit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// AcceptHistory makes a commit of the remote's branch the newest verified one,
// whatever was before it. The commit itself has to be trusted.
func (r *Reconciler) AcceptHistory(ctx context.Context, commit string) (string, error) {
	rev, err := r.Source.Fetch(ctx)
	if err != nil {
		return "", err
	}
	// As much of the id as status shows: less, or nothing, fits a commit that nobody
	// meant, or that somebody made to fit.
	const least = 12
	if commit = strings.ToLower(commit); len(commit) >= least && strings.HasPrefix(rev.Commit, commit) {
		commit = rev.Commit
	}
	if len(commit) != len(rev.Commit) {
		return "", &NoSuchCommitError{Commit: commit, Revision: rev}
	}
	if commit != rev.Commit {
		relation, err := r.Source.Relation(ctx, commit, rev.Commit)
		if errors.Is(err, source.ErrShallow) {
			r.Source.Deepen()
			if rev, err = r.Source.Fetch(ctx); err == nil {
				relation, err = r.Source.Relation(ctx, commit, rev.Commit)
			}
		}
		if err != nil {
			return "", err
		}
		if relation != source.Ahead {
			return "", &NoSuchCommitError{Commit: commit, Revision: rev}
		}
	}
	signer, err := r.verify(ctx, source.Revision{Ref: rev.Ref, Commit: commit}, commit)
	if err != nil {
		return "", err
	}
	st := r.Update.State
	if st.Marks[rev.Ref].Commit == commit {
		return rev.Ref, nil
	}
	mark := state.Mark{Commit: commit, Signer: signer, Time: r.Host.Now()}
	// What was before counts no more: it must not make the new history look stale.
	if st.Marks == nil {
		st.Marks = map[string]state.Mark{}
	}
	st.Marks[rev.Ref] = mark
	return rev.Ref, state.SaveMark(r.Dirs, st, rev.Ref, mark)
}

// NoSuchCommitError is a commit that the branch does not have.
type NoSuchCommitError struct {
	Commit   string
	Revision source.Revision
}

func (e *NoSuchCommitError) Error() string {
	return fmt.Sprintf("%.40q is no commit of %s, which is at %s", e.Commit, branchOf(e.Revision.Ref), e.Revision.Commit)
}

// Hint says which one may be meant.
func (e *NoSuchCommitError) Hint() string {
	return "say the whole id of the tip, or of a commit before it: reconf-pull accept-history " + e.Revision.Commit
}

// Trusted is the tip that the run found to be signed by somebody who is trusted; ""
// before, and where no signature is asked for.
func (r *Reconciler) Trusted() string { return r.trusted }

// Tip is the tree of the remote's tip, if that may be used.
func (r *Reconciler) Tip(ctx context.Context) (source.Tree, error) {
	_, tree, _, err := r.fetch(ctx)
	return tree, err
}

// advance remembers the newest verified commit.
func (r *Reconciler) advance(ref string, mark state.Mark) error {
	if old, ok := r.Update.State.Marks[ref]; ok && old.Commit == mark.Commit && old.Signer == mark.Signer {
		return nil
	}
	return state.SaveMark(r.Dirs, r.Update.State, ref, mark)
}
