package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
)

// Blocked is a path that somebody keeps from being managed in a place of his. It does
// not keep the rest of a change from being carried out.
type Blocked struct {
	Path   string     `json:"path"`
	Place  fsat.Place `json:"place"`
	Reason string     `json:"reason"`
	// Owner is the name of the place's, where the host knows it.
	Owner string `json:"owner,omitempty"`
	// Late: it was found when the plan was being carried out, not when it was made.
	// Only another try can tell whether it still is.
	Late bool `json:"late,omitempty"`
	// Tries are those in a row that ended so, where it is Late, and Tried when the last one was.
	Tries int       `json:"tries,omitempty"`
	Tried time.Time `json:"tried,omitzero"`
}

func (b *Blocked) String() string { return b.Path + " is blocked: " + b.Why() }

// Why says what is in the way, and where.
func (b *Blocked) Why() string { return fmt.Sprintf("%s (in %s)", b.Reason, b.Place.Of(b.Owner)) }

// NotBefore is when a path that was found blocked late is tried again. The waits
// double, so that whoever brings it about costs the host little: a try is a change
// with all its scripts.
func (b *Blocked) NotBefore() time.Time {
	if !b.Late {
		return time.Time{}
	}
	const most = 10 // doublings of a minute: 17 hours
	return b.Tried.Add(time.Minute << min(b.Tries, most))
}

func blockedFile(dir string) string { return filepath.Join(dir, "blocked.json") }

// WriteLastBlocked writes down, on tmpfs and for root alone, which paths the last run
// found blocked.
func WriteLastBlocked(dirs Dirs, blocked []Blocked) error {
	return writeBlocked(dirs.Run, blocked, atomicfile.WriteVolatile)
}

// LastBlocked reads what WriteLastBlocked wrote.
func LastBlocked(dirs Dirs) ([]Blocked, error) { return ReadBlocked(dirs.Run) }

// SaveBlocked writes down, in the directory of a change, which paths its engine found
// blocked.
func SaveBlocked(dir string, blocked []Blocked) error {
	return writeBlocked(dir, blocked, atomicfile.Write)
}

func writeBlocked(dir string, blocked []Blocked, write func(string, []byte, os.FileMode) error) error {
	if len(blocked) == 0 {
		if err := os.Remove(blockedFile(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	slices.SortFunc(blocked, func(a, b Blocked) int { return strings.Compare(a.Path, b.Path) })
	data, err := json.MarshalIndent(blocked, "", " ")
	if err != nil {
		return err
	}
	return write(blockedFile(dir), append(data, '\n'), 0o600)
}

// ReadBlocked reads what SaveBlocked wrote.
func ReadBlocked(dir string) ([]Blocked, error) {
	data, err := os.ReadFile(blockedFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var blocked []Blocked
	if err == nil {
		err = json.Unmarshal(data, &blocked)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return blocked, nil
}
