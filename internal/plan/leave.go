package plan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// leave decides about every path that was managed and is not wanted any more.
// Children come before their directories.
func (m *maker) leave() error {
	needed := m.ancestors()
	paths := sortedKeys(m.bases)
	for i := len(paths) - 1; i >= 0; i-- {
		p := paths[i]
		if _, ok := m.wants[p]; ok {
			continue
		}
		found, err := m.look(p)
		b := m.bases[p]
		switch {
		case err != nil:
		case b.entry.Kind == disk.Directory && b.entry.Origin != state.Foreign && found.Kind == disk.Directory:
			err = m.leaveDirectory(p, b, found.Node, needed[p])
		default:
			err = m.leavePath(p, b, &found)
		}
		if err != nil && !m.blocked(p, err) {
			return err
		}
	}
	return nil
}

// ancestors are all directories that something wanted lies in.
func (m *maker) ancestors() map[string]bool {
	all := map[string]bool{}
	for p := range m.wants {
		for dir := path.Dir(p); dir != "/" && !all[dir]; dir = path.Dir(dir) {
			all[dir] = true
		}
	}
	return all
}

// leaveDirectory removes a directory of ours that this plan leaves empty.
func (m *maker) leaveDirectory(p string, b *base, found disk.Node, needed bool) error {
	if needed {
		entry := b.entry
		entry.Origin = state.Parent
		m.next[p] = entry
		return nil
	}
	foreign, err := m.foreignIn(p)
	if err != nil {
		return err
	}
	item := &Item{Path: p, Action: Remove, Before: found, Origin: b.entry.Origin, Write: true}
	if foreign != "" {
		item.Action, item.Write = Keep, false
		item.Note = fmt.Sprintf("not empty, it holds %s", foreign)
	}
	m.items[p] = item
	return nil
}

// foreignIn names something in a directory that this plan does not remove.
func (m *maker) foreignIn(dir string) (string, error) {
	found, err := m.look(dir)
	if err != nil {
		return "", err
	}
	if found.Mounted {
		return "a mounted file system", nil
	}
	foreign := ""
	err = m.Host.Files.Names(dir, func(name string) bool {
		child := m.items[path.Join(dir, name)]
		if child == nil || !child.Write || child.After.Kind != disk.Absent {
			foreign = name
		}
		return foreign == ""
	})
	if err != nil {
		return "", fmt.Errorf("looking into %s: %w", dir, err)
	}
	return foreign, nil
}

func (m *maker) leavePath(p string, b *base, found *fsat.Found) error {
	if found.Kind == disk.Absent && b.entry.Kind != disk.Absent {
		return nil // gone already
	}
	matches, err := m.matches(b, p, found.Node)
	if err != nil {
		return err
	}
	item := &Item{Path: p, Before: found.Node, Origin: b.entry.Origin}
	switch {
	case m.own(p):
		item.Action, item.Note = Keep, "reconf-pull does not remove its own files"
	case found.Kind == disk.Other:
		item.Action, item.Note = Keep, "it is a device, a socket or a pipe now"
	case !matches && !m.Settings.PruneModified:
		item.Action, item.Note = Keep, "changed on the host since it was written"
	case b.entry.Kind == disk.File && b.entry.SHA256 == "" && found.Size() > 0 && !m.Settings.PruneModified:
		// The config only asked for the file; somebody else filled it.
		item.Action, item.Note = Keep, "its contents are not of the config"
	case b.entry.Origin == state.Foreign:
		if err := m.restore(item); err != nil {
			return err
		}
		if err := errors.Join(guardPlace(item, b, found), m.guard(item, b, found)); err != nil {
			return err
		}
	default:
		item.Action, item.Write = Remove, true
	}
	m.items[p] = item
	return nil
}

// own tells the agent's own units, drop-ins, configuration and binary.
func (m *maker) own(p string) bool {
	if unit, ok := strings.CutPrefix(p, unitDir); ok {
		unit, _, _ = strings.Cut(unit, "/")
		return service.Own(strings.TrimSuffix(unit, ".d"))
	}
	return slices.ContainsFunc(m.Settings.Own, func(dir string) bool { return below(p, dir) })
}

// matches is base.matches with what only the disk tells about hard links.
func (m *maker) matches(b *base, p string, found disk.Node) (bool, error) {
	if b.matches(found) {
		return true, nil
	}
	if b.entry.Kind != disk.HardLink || found.Kind != disk.File {
		return false, nil
	}
	target, err := m.look(b.entry.Target)
	var blocked *fsat.BlockedError
	if errors.As(err, &blocked) {
		return false, nil // nobody can say any more
	}
	if err != nil {
		return false, err
	}
	mine, err := m.look(p)
	if err != nil {
		return false, err
	}
	if mine.SameFile(&target) {
		return true, nil
	}
	// The target was replaced by a change that did not get to the link.
	before := m.bases[b.entry.Target]
	return target.SHA256 == found.SHA256 || before != nil && before.entry.SHA256 == found.SHA256, nil
}

// restore brings back what was there before us: the pristine copy, else the
// vendor's file, else nothing is done.
func (m *maker) restore(item *Item) error {
	p := item.Path
	node, ok, err := m.Pristine.Node(p)
	if err != nil {
		return err
	}
	open := func(context.Context) (io.ReadCloser, error) { return m.Pristine.Open(p) }
	if vendor := m.vendorFile(p); !ok && vendor != "" {
		found, err := m.Host.Files.Read(m.ctx, vendor, m.Settings.most())
		if err != nil {
			return err
		}
		node = found.Node
		ok = node.Kind == disk.File || node.Kind == disk.Link
		open = func(context.Context) (io.ReadCloser, error) {
			data, err := m.Host.ReadFile(vendor)
			return io.NopCloser(strings.NewReader(string(data))), err
		}
		item.Note = "from " + vendor
	}
	switch {
	case !ok:
		item.Action, item.Note = Keep, "it was there before and no copy of that is known"
	case node.Equal(item.Before):
		item.Action, item.Note = Keep, "as it was before"
	default:
		item.Action, item.After, item.Write, item.open = Restore, node, true, open
	}
	return nil
}

// vendorFile is where the image keeps its own version of a file of /etc.
func (m *maker) vendorFile(p string) string {
	rest, ok := strings.CutPrefix(p, "/etc/")
	if !ok {
		return ""
	}
	for _, dir := range []string{"/usr/etc/", "/usr/share/factory/etc/"} {
		if m.Host.Exists(dir + rest) {
			return dir + rest
		}
	}
	return ""
}

// adoptedOrigin tells what Ignition made at first boot, and may be removed
// later, from what the image or the admin put there.
func (m *maker) adoptedOrigin(p string) state.Origin {
	if m.Host.Exists("/etc/.ignition-result.json") && m.vendorFile(p) == "" {
		return state.Provisioned
	}
	return state.Foreign
}

// parents plans the directories that have to be made for what is written.
func (m *maker) parents() error {
	for _, p := range sortedKeys(m.items) {
		item := m.items[p]
		if !item.Write || item.After.Kind == disk.Absent {
			continue
		}
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if w := m.wants[dir]; w != nil && w.node.Kind == disk.Directory {
				if item := m.items[dir]; item == nil || item.Write || item.Before.Kind == disk.Directory || item.Action == Blocked {
					break // it is there, or will be
				} else if item.Before.Kind == disk.Absent {
					item.Write, item.Note = true, "removed on the host, and a path of this config is to lie in it"
					continue
				}
			}
			done, err := m.parent(dir, m.position(p))
			if err != nil && !m.blocked(p, err) {
				return err
			}
			if done {
				break
			}
		}
	}
	return nil
}

// position is where the config asks for a path, or for something in it.
func (m *maker) position(p string) finding.Position {
	if w := m.wants[p]; w != nil {
		return w.position
	}
	for _, wanted := range sortedKeys(m.wants) {
		if below(wanted, p) {
			return m.wants[wanted].position
		}
	}
	return finding.Position{}
}

// parent makes sure that dir will be a directory; done is true when nothing
// above it has to be looked at.
func (m *maker) parent(dir string, at finding.Position) (done bool, err error) {
	if item := m.items[dir]; item != nil && item.After.Kind == disk.Directory {
		return true, nil
	}
	found, err := m.look(dir)
	if err != nil {
		return true, err
	}
	made := disk.Node{Kind: disk.Directory, Mode: 0o755}
	item := &Item{Path: dir, Action: Create, Before: found.Node, After: made, Origin: state.Parent, Write: true}
	switch leaving := m.items[dir]; {
	case found.Kind == disk.Directory && (leaving == nil || !leaving.Write):
		return true, nil
	case found.Kind == disk.Directory: // the plan removes it: keep it instead
		delete(m.items, dir)
		m.next[dir] = state.Entry{Path: dir, Node: found.Node, Origin: state.Parent, Stat: found.Stat}
		return true, nil
	case found.Kind == disk.Absent:
	case found.Kind == disk.Link && (leaving == nil || !leaving.Write):
		if ground, err := m.Host.Files.Ground(dir + "/inside"); err == nil && ground.Path == dir {
			return true, nil
		}
		return true, m.noParent(&found, at, "is a link on this host that leads to no directory")
	case leaving != nil && leaving.Write && leaving.After.Kind == disk.Absent:
		item.Action = Update
	default:
		return true, m.noParent(&found, at, fmt.Sprintf("is a %s on this host", found.Kind))
	}
	m.items[dir] = item
	m.next[dir] = state.Entry{Path: dir, Node: made, Origin: state.Parent}
	return false, nil
}

// noParent says that something stands where a directory should be: in somebody's place he
// put it there since the path was looked at, and blocks that.
func (m *maker) noParent(found *fsat.Found, at finding.Position, why string) error {
	if !found.Place.Root() {
		return &fsat.BlockedError{Path: found.Path, Place: found.Place, Reason: found.Path + " " + why}
	}
	m.problem(at, "%s %s, and a path of this config is to lie in it", found.Path, why)
	return nil
}

// checkKinds refuses what would lose something of the admin's, and what lies
// on a file system that cannot be written.
func (m *maker) checkKinds() error {
	for _, p := range sortedKeys(m.items) {
		item := m.items[p]
		if !item.Write {
			continue
		}
		found, err := m.look(p)
		if m.blocked(p, err) {
			continue
		}
		if err != nil {
			return err
		}
		if item.Before.Kind == disk.Directory && item.After.Kind != disk.Directory && item.After.Kind != disk.Absent {
			foreign, err := m.foreignIn(p)
			if m.blocked(p, err) {
				continue
			}
			if err != nil || foreign != "" {
				m.refuseAt(p, found.Place, fmt.Sprintf("is a directory on this host and holds %s, "+
					"which is not of this config: move it away, a %s is to stand there", foreign, item.After.Kind))
			}
		}
		if why := m.whyClosed(p); why != "" {
			m.refuseAt(p, found.Place, why)
			continue
		}
		switch {
		case item.Before.Kind == disk.Absent:
		case found.Immutable:
			m.refuseAt(p, found.Place, "is immutable or append-only on this host (chattr -ia)")
		case found.Mounted && item.After.Kind != disk.Directory:
			m.refuseAt(p, found.Place, "is a mount point on this host")
		}
	}
	return nil
}

// whyClosed says why nothing can be made or removed in the directory of a
// path, or in the nearest one that exists.
func (m *maker) whyClosed(p string) string {
	dir := path.Dir(p)
	why, known := m.closed[dir]
	if known {
		return why
	}
	switch ground, err := m.Host.Files.Ground(p); {
	case err != nil:
	case ground.ReadOnly:
		why = "lies on a read-only file system"
	case ground.Immutable:
		why = fmt.Sprintf("lies in %s, which is immutable on this host (chattr -i)", ground.Path)
	}
	m.closed[dir] = why
	return why
}

// mountOf names the mount that a path lies on, or will lie on.
func (m *maker) mountOf(p string) uint64 {
	ground, err := m.Host.Files.Ground(p)
	if err != nil {
		return 0
	}
	return ground.Mount
}

// refuse stops a plan that would remove most of what is managed: a repo that
// lost its files must not empty its hosts (design: mass removal).
func (m *maker) refuse() error {
	const few = 10
	removed, managed := 0, 0
	for i := range m.plan.Items {
		if item := &m.plan.Items[i]; item.Write && (item.Action == Remove || item.Action == Restore) && item.Origin != state.Parent {
			removed++
		}
	}
	for i := range m.Manifest.Entries {
		if m.Manifest.Entries[i].Origin != state.Parent {
			managed++
		}
	}
	if m.Settings.AllowMassRemoval || removed <= few || removed*2 <= managed {
		return nil
	}
	return &RefusedError{
		Reason: fmt.Sprintf("this would remove %d of the %d paths that are managed on this host", removed, managed),
		Hint:   "if that is meant, set allow_mass_removal = true under [apply] in config.toml for this one change",
	}
}
