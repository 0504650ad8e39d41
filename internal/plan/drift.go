package plan

import (
	"fmt"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Drifted lists the managed paths that are not as they were left. Contents are
// read only where size, time, inode, owner or mode differ.
func Drifted(h *host.Host, m *state.Manifest) ([]string, error) {
	var drifted []string
	for i := range m.Entries {
		entry := &m.Entries[i]
		if entry.Kind == disk.Absent || entry.Origin == state.Parent {
			continue
		}
		real, err := h.Path(entry.Path)
		if err != nil {
			return nil, err
		}
		node, stat, err := disk.Look(real)
		if err != nil {
			return nil, fmt.Errorf("looking at %s: %w", entry.Path, err)
		}
		if entry.Kind == disk.HardLink {
			if node.Kind != disk.File {
				drifted = append(drifted, entry.Path)
			}
			continue
		}
		if node.Kind == disk.File && entry.SHA256 != "" {
			node.SHA256 = entry.SHA256
			if stat != entry.Stat {
				if node, _, err = disk.Read(real); err != nil {
					return nil, fmt.Errorf("looking at %s: %w", entry.Path, err)
				}
			}
		}
		if !entry.Equal(node) {
			drifted = append(drifted, entry.Path)
		}
	}
	return drifted, nil
}
