// Package engine is the port through which a plan is carried out.
//
// Its one rule: Apply may be called again after a crash, with the same plan,
// and ends in the same tree.
package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Job is one plan with the places that belong to its change.
type Job struct {
	ID   string // of the change
	Dir  string // of the change, where late backups go
	Plan *plan.Plan
	// Manifest is what is managed once the plan is carried out; Apply fills in
	// what only the written files tell.
	Manifest *state.Manifest
}

// Result is what an engine reports.
type Result struct {
	// Notes are for the reader of the record: what was kept and why.
	Notes []string
}

// Engine carries a plan out.
type Engine interface {
	Name() string
	// Check looks whether the plan can be carried out, and changes nothing.
	Check(ctx context.Context, job *Job) (Result, error)
	// Apply brings the disk to the plan. An error that wraps ErrUntouched means
	// that nothing on the host was changed and nothing was left behind.
	Apply(ctx context.Context, job *Job) (Result, error)
	// Rollback brings back what the change found. It may be called again after a
	// crash; what was edited since is kept and named in the result.
	Rollback(ctx context.Context, job *Job) (Result, error)
	// Clean takes away what an Apply that will not be repeated left beside its
	// targets.
	Clean(ctx context.Context, job *Job) error
}

// ErrUntouched says that the change may be forgotten, the host is as it was before.
var ErrUntouched = errors.New("nothing was changed")

// UntouchedError is an error of Apply that wraps ErrUntouched. Whoever knows better
// returns its Err alone.
type UntouchedError struct{ Err error }

func (e *UntouchedError) Error() string { return fmt.Sprintf("%v (%v)", e.Err, ErrUntouched) }

// Unwrap makes both the cause and ErrUntouched known.
func (e *UntouchedError) Unwrap() []error { return []error{e.Err, ErrUntouched} }

// ErrDamaged says that what was stored for the change cannot be read back
// whole: the change has to be made anew from its source.
var ErrDamaged = errors.New("what was stored for the change is damaged")
