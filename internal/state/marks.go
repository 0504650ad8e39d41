package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
)

// Mark is the newest commit of a branch that was verified; without signatures
// every one that was fetched and accepted counts as that. Each further one has
// to descend from it.
type Mark struct {
	Commit string `json:"commit"`
	// Signer is who signed it; "" when no signature was asked for.
	Signer string    `json:"signer,omitempty"`
	Time   time.Time `json:"time"` // when it became the mark
	// Before are the marks before it, the newest first: a remote that lags behind
	// shows one of them.
	Before []string `json:"before,omitempty"`
}

// marksBefore is how many earlier marks are remembered.
const marksBefore = 16

// Verified is the file of the marks. It lies beside the state file, which has a
// copy as of its last save, so that neither is lost with the other.
func (d Dirs) Verified() string { return filepath.Join(d.State, "verified.json") }

type verified struct {
	Schema int             `json:"schema"`
	Marks  map[string]Mark `json:"marks"` // by ref
}

// MarksError is a file of marks that cannot be read.
type MarksError struct {
	Path string
	Err  error
}

func (e *MarksError) Error() string {
	return ErrUnreadable.Error() + ": " + e.Path + ": " + e.Err.Error()
}
func (e *MarksError) Unwrap() []error { return []error{ErrUnreadable, e.Err} }

// Hint says how to go on.
func (e *MarksError) Hint() string {
	return "nothing was changed. Restore the file from a backup, or remove it: the commits that state.json remembers as verified then count, which may be older ones"
}

// loadMarks reads the marks into the state, which may have an older copy.
func loadMarks(dirs Dirs, st *State) error {
	data, err := os.ReadFile(dirs.Verified())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("reading the state: %w", err)
	}
	var v verified
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	switch {
	case err != nil:
		return &MarksError{dirs.Verified(), err}
	case v.Schema < 1:
		return &MarksError{dirs.Verified(), errors.New("it has no schema number")}
	case v.Schema > Schema:
		return &MarksError{dirs.Verified(), fmt.Errorf("it was written by a newer release (schema %d, this one knows %d)", v.Schema, Schema)}
	}
	st.Marks = v.Marks
	return nil
}

// Mark returns the mark of a branch, the zero Mark when there is none. A host
// that was never asked for one has what it applied.
func (st *State) Mark(ref string) Mark {
	if mark, ok := st.Marks[ref]; ok {
		return mark
	}
	if a := st.Applied; a != nil && a.Ref == ref {
		return Mark{Commit: a.Commit, Time: a.Time}
	}
	return Mark{}
}

// SaveMark moves the mark of a branch, durably. The copy in the state file rides
// along with its next save.
func SaveMark(dirs Dirs, st *State, ref string, mark Mark) error {
	if old := st.Mark(ref); old.Commit != "" && old.Commit != mark.Commit {
		mark.Before = append([]string{old.Commit}, slices.DeleteFunc(slices.Clone(old.Before), func(c string) bool { return c == mark.Commit })...)
		mark.Before = mark.Before[:min(len(mark.Before), marksBefore)]
	}
	if st.Marks == nil {
		st.Marks = map[string]Mark{}
	}
	st.Marks[ref] = mark
	data, err := json.MarshalIndent(verified{Schema: Schema, Marks: st.Marks}, "", "  ")
	if err == nil {
		err = atomicfile.Write(dirs.Verified(), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("saving the newest verified commit: %w", err)
	}
	return nil
}
