package plan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// units decides about enablement, which is a managed property like the mode
// of a file: with its value before us, and restored when it leaves.
func (m *maker) units(ctx context.Context) error {
	before := map[string]state.UnitEntry{}
	for _, u := range m.Manifest.Units {
		before[u.Name] = u
	}
	for _, attempt := range m.Attempts {
		for _, u := range attempt.Units {
			if _, known := before[u.Name]; !known {
				before[u.Name] = u
			}
		}
	}
	for _, u := range m.Desired.Units {
		// A mask disables, so what it found has to be remembered like any other.
		masked := u.Mask != nil && *u.Mask
		if u.Enabled == nil && !masked {
			continue
		}
		current, err := m.Services.UnitFileState(ctx, u.Name)
		if err != nil {
			return fmt.Errorf("asking for the state of %s: %w", u.Name, err)
		}
		entry, known := before[u.Name]
		if !known {
			entry = state.UnitEntry{Name: u.Name, Before: current}
		}
		delete(before, u.Name)
		entry.Enabled = !masked && *u.Enabled
		m.plan.Manifest.Units = append(m.plan.Manifest.Units, entry)
		if !masked {
			m.unit(ctx, u, current)
		}
	}
	for _, name := range sortedKeys(before) {
		if err := m.unitLeaves(ctx, before[name]); err != nil {
			return err
		}
	}
	m.stopped(ctx)
	return nil
}

func (m *maker) unit(ctx context.Context, u desired.Unit, current string) {
	name := u.Name
	old, new, changed := m.unitTexts(ctx, name)
	switch {
	case !*u.Enabled:
		if enabled(current) {
			m.plan.Units = append(m.plan.Units, Unit{Name: name, Reason: "enabled: false"})
		}
	case changed && !installable(new) && new != nil:
		m.warn(u.Position, "%s has no [Install] section, so there is nothing to enable", name)
	case changed && enabled(current) && install(old) != install(new):
		m.plan.Units = append(m.plan.Units, Unit{Name: name, Enable: true, Again: true, Reason: "[Install] changes"})
	case enabled(current):
	case !changed && !canEnable(current):
		m.warn(u.Position, "%s is %s on this host, so it cannot be enabled", name, current)
	case !changed && current == "":
		m.warn(u.Position, "%s does not exist on this host, so it cannot be enabled", name)
	default:
		m.plan.Units = append(m.plan.Units, Unit{Name: name, Enable: true, Reason: "enabled: true"})
	}
}

// enabled and canEnable judge the answers of systemctl is-enabled.
func enabled(current string) bool {
	return current == "enabled" || current == "enabled-runtime"
}

func canEnable(current string) bool {
	switch current {
	case "static", "generated", "transient", "alias", "indirect", "masked", "masked-runtime":
		return false
	}
	return true
}

// unitLeaves restores the enablement that was there before us; a unit whose
// file leaves too is always disabled.
func (m *maker) unitLeaves(ctx context.Context, u state.UnitEntry) error {
	current, err := m.Services.UnitFileState(ctx, u.Name)
	if err != nil {
		return fmt.Errorf("asking for the state of %s: %w", u.Name, err)
	}
	gone := m.gone(u.Name)
	was := enabled(u.Before) && !gone
	if was != enabled(current) && (current != "" || gone) {
		reason := "it leaves the config"
		if !gone {
			reason += ", as it was before"
		}
		m.plan.Units = append(m.plan.Units, Unit{Name: u.Name, Enable: was, Reason: reason})
	}
	return nil
}

// stopped collects the units that lose their file or are masked, and the
// instances of templates that do.
func (m *maker) stopped(ctx context.Context) {
	for i := range m.plan.Items {
		item := &m.plan.Items[i]
		unit := service.Defined(item.Path)
		if unit == "" || !item.Write || item.Before.Kind == disk.Directory || service.Own(unit) {
			continue
		}
		masked, unmasked := mask(item.After), mask(item.Before)
		switch {
		case unmasked, !masked && item.After.Kind != disk.Absent:
		case item.Before.Kind == disk.Absent && !m.Services.Exists(unit):
		case !masked && m.shipped(unit):
			// The image's own takes over: it is restarted.
		default:
			reason := "its file leaves the config"
			if masked {
				reason = "it is masked"
			}
			m.stop(ctx, unit, reason)
			if systemd.Template(unit) {
				for _, instance := range m.Services.Instances(unit) {
					m.stop(ctx, instance, reason)
				}
			}
		}
	}
	slices.Sort(m.plan.Stopped)
	m.plan.Stopped = slices.Compact(m.plan.Stopped)
	slices.SortFunc(m.plan.Units, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
}

func (m *maker) stop(ctx context.Context, unit, reason string) {
	m.plan.Stopped = append(m.plan.Stopped, unit)
	current, err := m.Services.UnitFileState(ctx, unit)
	listed := slices.ContainsFunc(m.plan.Units, func(u Unit) bool { return u.Name == unit })
	if err == nil && enabled(current) && !listed {
		m.plan.Units = append(m.plan.Units, Unit{Name: unit, Reason: reason})
	}
}

func mask(n disk.Node) bool { return n.Kind == disk.Link && n.Target == "/dev/null" }

// unitItem is what happens to a unit's file: its own or, for an instance
// without one, its template's.
func (m *maker) unitItem(name string) *Item {
	item := m.items[unitDir+name]
	if template := systemd.TemplateOf(name); item == nil && template != "" && !m.Host.Exists(unitDir+name) {
		return m.items[unitDir+template]
	}
	return item
}

// unitTexts are the unit's file as it is and as it will be; changed is true
// when this plan writes it.
func (m *maker) unitTexts(ctx context.Context, name string) (old, new []byte, changed bool) {
	item := m.unitItem(name)
	if item == nil || !item.Write {
		return nil, nil, false
	}
	if item.Before.Kind == disk.File {
		old, _ = m.Host.ReadFile(item.Path) // what cannot be read has no [Install] that we know
	}
	if item.NeedsContent() {
		new, _ = m.text(ctx, item)
	}
	return old, new, true
}

func (m *maker) text(ctx context.Context, item *Item) ([]byte, error) {
	r, err := item.Open(ctx)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	return data, errors.Join(err, r.Close())
}

// install is the text of the [Install] section without blanks and comments.
func install(unit []byte) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(string(unit)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			inside = line == "[Install]"
			continue
		}
		if inside && line != "" && line[0] != '#' && line[0] != ';' {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func installable(unit []byte) bool { return install(unit) != "" }

// effect asks which units the changed paths touch.
func (m *maker) effect() error {
	ctx := context.Background()
	var err error
	m.plan.Effect, err = service.Of(m.plan.Changed(), m.Settings.Watches, func(unit string) string {
		return m.onChange(ctx, unit)
	}, m.Services)
	m.plan.Effect.Touches = slices.DeleteFunc(m.plan.Effect.Touches, func(t service.Touch) bool { return m.gone(t.Unit) })
	return err
}

// gone tells whether this plan leaves nothing of a unit that could run: its
// file becomes a mask, or goes and the image has none of that name.
func (m *maker) gone(unit string) bool {
	item := m.unitItem(unit)
	if item == nil || !item.Write {
		return false
	}
	return mask(item.After) || item.After.Kind == disk.Absent && !m.shipped(unit)
}

// shipped tells whether there is a unit of that name, or its template, outside
// /etc that this plan leaves there.
func (m *maker) shipped(unit string) bool {
	names := []string{unit}
	if template := systemd.TemplateOf(unit); template != "" {
		names = append(names, template)
	}
	for _, dir := range []string{"/run/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"} {
		for _, name := range names {
			item := m.items[dir+name]
			removed := item != nil && item.Write && item.After.Kind == disk.Absent
			if !removed && m.Host.Exists(dir+name) {
				return true
			}
		}
	}
	return false
}

// onChange is the unit's own choice (X-Reconf-OnChange=), in what this plan
// writes or else in what is there; drop-ins come after the unit's file.
func (m *maker) onChange(ctx context.Context, unit string) string {
	if m.OnChange == nil {
		return ""
	}
	var fragments [][]byte
	file := unitDir + unit
	if template := systemd.TemplateOf(unit); template != "" && m.items[file] == nil && !m.Host.Exists(file) {
		file = unitDir + template
	}
	written := func(p string) bool { return m.items[p] != nil && m.items[p].Write }
	paths, touched := []string{file}, written(file)
	for _, p := range sortedKeys(m.items) {
		touched = touched || path.Dir(p) == file+".d" && written(p)
	}
	if !touched {
		return m.Services.OnChange(unit) // it may be the image's, and say so in /usr
	}
	for _, p := range sortedKeys(m.wants) {
		if path.Dir(p) == file+".d" && path.Ext(p) == ".conf" {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if item := m.items[p]; item != nil && item.NeedsContent() {
			if data, err := m.text(ctx, item); err == nil {
				fragments = append(fragments, data)
			}
		} else if data, err := m.Host.ReadFile(p); err == nil {
			fragments = append(fragments, data)
		}
	}
	return m.OnChange(fragments...)
}
