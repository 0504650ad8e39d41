package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

func writeSynced(path string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// Prune takes away what no state names any more: directories of changes that
// a crash left or that were superseded and then followed by a record,
// generations beyond Keep, and contents that no kept generation has. Whatever
// is cut off here is done by the next run, which finds the marker for the boot.
func (u *Update) Prune() error {
	if err := u.prune(); err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	if u.State.Change != nil {
		return nil // to be gone on with at boot
	}
	if err := os.Remove(u.Dirs.Resume()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cleaning up: %w", err)
	}
	return nil
}

// Tidy does what a crash after the record of a change left of Prune.
func (u *Update) Tidy() error {
	if _, err := os.Lstat(u.Dirs.Resume()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return u.Prune()
}

func (u *Update) prune() error {
	named := slices.Clone(u.State.Open)
	if u.State.Change != nil {
		named = append(named, u.State.Change.ID)
	}
	changes := filepath.Join(u.Dirs.State, "changes")
	names, err := os.ReadDir(changes)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(named, name.Name()) {
			if err := os.RemoveAll(filepath.Join(changes, name.Name())); err != nil {
				return err
			}
		}
	}
	kept := max(u.Keep, 1)
	failures, err := Failures(u.Dirs)
	if err != nil {
		return err
	}
	for _, g := range failures[:max(len(failures)-kept, 0)] {
		if err := os.RemoveAll(u.Dirs.Failed(g.Change)); err != nil {
			return err
		}
	}
	numbers, err := state.Generations(u.Dirs)
	if err != nil {
		return err
	}
	if len(numbers) <= kept {
		return nil
	}
	goes := numbers[:len(numbers)-kept]
	// Contents first: a crash then leaves generations that tell of it. What is pinned is
	// in no manifest of a generation.
	if u.State.Change == nil {
		if err := u.pruneBlobs(numbers[len(goes):]); err != nil {
			return err
		}
	}
	for _, n := range goes {
		if err := os.RemoveAll(u.Dirs.Generation(n)); err != nil {
			return err
		}
	}
	return nil
}

func (u *Update) pruneBlobs(generations []int) error {
	wanted := map[string]bool{}
	for _, n := range generations {
		m, err := state.ReadManifest(filepath.Join(u.Dirs.Generation(n), "manifest"))
		if err != nil {
			return err
		}
		for i := range m.Entries {
			wanted[m.Entries[i].Stored()] = true
		}
	}
	blobs, err := os.ReadDir(u.Dirs.Blobs())
	if err != nil {
		return err
	}
	var errs []error
	for _, blob := range blobs {
		if !wanted[blob.Name()] {
			errs = append(errs, secret.WithoutPath(os.Remove(filepath.Join(u.Dirs.Blobs(), blob.Name()))))
		}
	}
	return errors.Join(errs...)
}
