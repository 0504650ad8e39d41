package plan

import (
	"errors"
	"path"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// blocked tells whether an error is that somebody blocks a path in a place of his. The
// path is then left as it is, and what is known of it from before stays known: all else
// is carried out.
func (m *maker) blocked(p string, err error) bool {
	var blocked *fsat.BlockedError
	if !errors.As(err, &blocked) {
		return false
	}
	m.items[p] = &Item{Path: p, Action: Blocked, Note: blocked.Reason, Place: &blocked.Place}
	delete(m.next, p)
	if b := m.bases[p]; b != nil {
		m.items[p].Origin = b.entry.Origin
		m.next[p] = b.entry
	}
	return true
}

// Block leaves an item as it is that was found blocked when the plan was made already.
func (p *Plan) Block(item *Item, why *fsat.BlockedError) {
	*item = Item{
		Path: item.Path, Action: Blocked, Origin: item.Origin, Note: why.Reason, Place: &why.Place, Base: item.Base,
		Late: true,
	}
	p.Manifest.Revert(map[string]*state.Entry{item.Path: item.Base})
}

// refuseAt says what is wrong with a path as it is on this host: in root's place the
// plan is wrong, in somebody's the path is blocked.
func (m *maker) refuseAt(p string, place fsat.Place, why string) {
	if place.Root() {
		m.problem(m.position(p), "%s %s", p, why)
		return
	}
	m.blocked(p, &fsat.BlockedError{Path: p, Place: place, Reason: "it " + why})
}

// blockBelow blocks what is to lie in a directory that is not going to be there.
func (m *maker) blockBelow() {
	for _, p := range sortedKeys(m.items) {
		if item := m.items[p]; !item.Write || item.After.Kind == disk.Absent {
			continue
		}
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			above, w := m.items[dir], m.wants[dir]
			missing := w != nil && w.node.Kind == disk.Directory && m.looked[dir].Kind != disk.Directory
			if above == nil || above.Action != Blocked || !missing {
				continue
			}
			m.blocked(p, &fsat.BlockedError{Path: p, Place: *above.Place, Reason: "it lies in " + dir + ", which is blocked"})
			break
		}
	}
}

// guard keeps what stands in somebody's place from becoming, as it is, what is wanted
// there. A file whose bytes the config says is written anew instead, and a directory
// that we made is known by its inode. Everything else is blocked. A file that is taken
// from its owner is written anew in any place: he may still have it open.
func (m *maker) guard(item *Item, b *base, found *fsat.Found) error {
	kind := item.After.Kind
	inPlace := item.Write && kind == found.Kind && (kind == disk.Directory || kind == disk.File && !item.NeedsContent())
	if !inPlace {
		return nil
	}
	if taken := found.UID != item.After.UID && !m.Host.Files.IsRoot(found.UID); taken && kind == disk.File {
		item.Anew = item.After.SHA256 != ""
	}
	if item.Anew {
		return nil
	}
	why := whyUnsafe(found, item.After)
	switch {
	case found.Place.Root():
		return why
	case kind == disk.Directory && (why == nil || m.isOurs(b, found)):
		item.Known = found.Known()
		return nil
	case kind == disk.Directory && found.HalfMade() && m.empty(found.Path):
		return nil // it is made anew
	case why != nil && kind == disk.File && item.After.SHA256 != "":
		item.Anew = true
		return nil
	}
	return why
}

// guardPlace keeps root's file systems that are mounted in somebody's place from getting
// anything of another user's, and bytes from being taken over that only a directory hides:
// restored, or made a part of another file, they could be read. Those that we left there are
// known.
func guardPlace(item *Item, b *base, found *fsat.Found) error {
	if item.Write && found.Guest && item.After.Kind != disk.Absent && item.After.UID != 0 {
		why := "a file system that is not his is mounted there, and what is wanted would not be root's"
		return &fsat.BlockedError{Path: found.Path, Place: found.Place, Reason: why}
	}
	copied := item.Write && found.Kind == disk.File && (item.Pristine != nil || !item.After.SameContent(item.Before))
	if !copied || !found.Hidden || found.Place.UID == found.UID || b != nil && b.matches(found.Node) {
		return nil
	}
	why := "what is there is hidden by a directory on the way to it, and its copy would not be"
	return &fsat.BlockedError{Path: found.Path, Place: found.Place, Reason: why}
}

// isOurs tells whether a directory is the one that we left there: it has its inode, owner
// and mode, and nothing in it that we do not know. The number alone may be another one's by
// now.
func (m *maker) isOurs(b *base, found *fsat.Found) bool {
	if b == nil || b.entry.Stat.Inode != found.Inode || !b.matches(found.Node) {
		return false
	}
	ours := true
	err := m.Host.Files.Names(found.Path, func(name string) bool {
		ours = m.bases[path.Join(found.Path, name)] != nil
		return ours
	})
	return err == nil && ours
}

// empty tells whether nothing is in a directory.
func (m *maker) empty(p string) bool {
	empty := true
	err := m.Host.Files.Names(p, func(string) bool { empty = false; return false })
	return err == nil && empty
}

// place is whose place an item lies in, as this host is or as this plan leaves it.
func (m *maker) place(item *Item) *fsat.Place {
	if item.Action == Blocked {
		return item.Place
	}
	if place := m.looked[item.Path].Place; !place.Root() {
		return &place
	}
	for dir := path.Dir(item.Path); dir != "/"; dir = path.Dir(dir) {
		above := m.items[dir]
		if above != nil && above.Write && above.After.Kind == disk.Directory && m.Host.Files.Opens(above.After) {
			return &fsat.Place{Path: dir, UID: above.After.UID}
		}
	}
	return nil
}
