package plan

import (
	"context"
	"errors"
	"fmt"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Drifted lists the managed paths that are not as they were left, and those that
// somebody keeps from being looked at. Contents are read only where size and owner are
// as they were left, and time or inode are not.
func Drifted(ctx context.Context, h *host.Host, m *state.Manifest) ([]string, []*fsat.BlockedError, error) {
	var (
		drifted []string
		blocked []*fsat.BlockedError
	)
	h.Files.Forget()
	for i := range m.Entries {
		entry := &m.Entries[i]
		if entry.Kind == disk.Absent || entry.Origin == state.Parent {
			continue
		}
		same, err := isAsLeft(ctx, h, entry)
		var one *fsat.BlockedError
		switch {
		case errors.As(err, &one):
			blocked = append(blocked, one)
		case err != nil:
			return nil, nil, fmt.Errorf("looking at %s: %w", entry.Path, err)
		case !same:
			drifted = append(drifted, entry.Path)
		}
	}
	return drifted, blocked, nil
}

func isAsLeft(ctx context.Context, h *host.Host, entry *state.Entry) (bool, error) {
	found, err := h.Files.Look(entry.Path)
	if err != nil {
		return false, err
	}
	if entry.Kind == disk.HardLink {
		return found.Kind == disk.File, nil
	}
	if found.Kind == disk.Other && !found.Place.Root() {
		return false, &fsat.BlockedError{
			Path: entry.Path, Place: found.Place, Reason: "it is a device, a socket or a pipe on this host",
		}
	}
	if found.Kind != disk.File || entry.SHA256 == "" {
		return entry.Equal(found.Node), nil
	}
	if found.Stat != entry.Stat {
		if written := entry.Stat.Inode != 0; written && found.Size() != entry.Stat.Size {
			return false, nil // however many bytes somebody put there
		}
		found, err = h.Files.Read(ctx, entry.Path, max(entry.Stat.Size, fsat.Most))
		if err != nil {
			return false, err
		}
	} else {
		found.SHA256 = entry.SHA256
	}
	return entry.Equal(found.Node), nil
}
