// Package engine is the port through which a plan is carried out.
//
// Its one rule: Apply may be called again after a crash, with the same plan,
// and ends in the same tree.
package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/secret"
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
	// CutOff: an earlier Apply with migrations was killed. What these find done
	// already counts as changed.
	CutOff bool
	Request
}

// Backup is the name of what the i-th item of a plan found, in the folder of the
// change's backups.
func Backup(i int, before disk.Node) string {
	if before.Secret {
		return strconv.Itoa(i) + secret.Suffix
	}
	return strconv.Itoa(i)
}

// Stored opens contents that a change stored at the path, decrypted if they are a
// secret. The error wraps ErrDamaged when they are not there any more: that no key
// fits does not say so.
func Stored(path string, node disk.Node, keys *secret.Keys) (io.ReadCloser, error) {
	var (
		r   io.ReadCloser
		err error
	)
	if node.Secret {
		r, err = keys.OpenStored(path)
	} else {
		r, err = os.Open(path)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, secret.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return r, err
}

// Request is what a change asks of its engine besides the plan. It is pinned
// with the change, and the engine that was chosen carries it out to the end.
type Request struct {
	Choice     Choice      `json:"engine"`
	Host       string      `json:"host,omitempty"`
	Commit     string      `json:"commit,omitempty"`
	Migrations []Migration `json:"migrations,omitempty"`
	// Vars are the host's, from the fleet repo.
	Vars map[string]any `json:"vars,omitempty"`
}

// SameWork tells whether migrations would do the same for either request.
func (r *Request) SameWork(other *Request) bool {
	same := slices.EqualFunc(r.Migrations, other.Migrations, func(a, b Migration) bool {
		return a.Path == b.Path && bytes.Equal(a.Data, b.Data)
	})
	if len(r.Vars)+len(other.Vars) == 0 {
		return same
	}
	// As they are pinned: numbers lose their type on the way.
	one, err1 := json.Marshal(r.Vars)
	two, err2 := json.Marshal(other.Vars)
	return same && err1 == nil && err2 == nil && bytes.Equal(one, two)
}

// Migration is an SLS file of the fleet repo.
type Migration struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
}

// Result is what an engine reports.
type Result struct {
	// Notes are for the reader of the record: what was kept and why.
	Notes []string
	// Changed are paths that migrations changed. Ended tells that they are all: the
	// migrations were carried out, or ended by themselves with an error.
	Changed []string
	Ended   bool
}

// Engine carries a plan out.
type Engine interface {
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
