package update

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

const unitDir = desired.UnitDir + "/"

// writeLists writes what the change does to units, one full unit name a line,
// sorted and unique: for hooks and for whoever looks. They are the same for
// every engine.
func writeLists(dir string, p *plan.Plan) error {
	var enabled, disabled, masked, changed []string
	for i := range p.Manifest.Entries {
		entry := &p.Manifest.Entries[i]
		if name, ok := strings.CutPrefix(entry.Path, unitDir); ok && entry.Kind == disk.Link && entry.Target == "/dev/null" && !strings.Contains(name, "/") {
			masked = append(masked, name)
		}
	}
	for _, u := range p.Manifest.Units {
		switch {
		case slices.Contains(masked, u.Name): // what the mask took is remembered, and is no wish of its own
		case u.Enabled:
			enabled = append(enabled, u.Name)
		default:
			disabled = append(disabled, u.Name)
		}
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches, p.Effect.Late) {
		changed = append(changed, touch.Unit)
	}
	paths := strings.Join(append(p.Changed(), p.Beside()...), "\n")
	if paths != "" {
		paths += "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "paths_changed.list"), []byte(paths), 0o600); err != nil {
		return err
	}
	for name, list := range map[string][]string{"enabled": enabled, "disabled": disabled, "masked": masked, "changed": append(changed, p.Stopped...)} {
		slices.Sort(list)
		var text strings.Builder
		for _, unit := range slices.Compact(list) {
			fmt.Fprintln(&text, unit)
		}
		if err := os.WriteFile(filepath.Join(dir, "service_"+name+".list"), []byte(text.String()), 0o600); err != nil {
			return err
		}
	}
	return nil
}
