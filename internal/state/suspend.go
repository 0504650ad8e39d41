package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
)

// Suspension keeps runs from beginning anything new. It lies in a file of its
// own, which is written without the run lock: it counts from the next run.
type Suspension struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // zero: until resume
}

func (s *Suspension) String() string {
	text := fmt.Sprintf("since %s: %s", s.Since.UTC().Format(time.RFC3339), s.Reason)
	if !s.Until.IsZero() {
		text += ", until " + s.Until.UTC().Format(time.RFC3339)
	}
	return text
}

func (d Dirs) suspension() string { return filepath.Join(d.State, "suspend") }

// Suspended returns the suspension that holds at a time, nil when none does.
func Suspended(dirs Dirs, now time.Time) (*Suspension, error) {
	data, err := os.ReadFile(dirs.suspension())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the suspension: %w", err)
	}
	var s Suspension
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreadable, dirs.suspension(), err)
	}
	if !s.Until.IsZero() && !now.Before(s.Until) {
		return nil, nil
	}
	return &s, nil
}

// Suspend writes the suspension durably.
func Suspend(dirs Dirs, s Suspension) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(dirs.suspension(), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("suspending: %w", err)
	}
	return nil
}

// Resume ends a suspension; was tells whether there was one.
func Resume(dirs Dirs) (was bool, err error) {
	err = os.Remove(dirs.suspension())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("resuming: %w", err)
	}
	return true, atomicfile.SyncDir(dirs.State)
}
