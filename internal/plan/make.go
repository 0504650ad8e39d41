package plan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Input is everything that a plan depends on.
type Input struct {
	Host     *host.Host
	Accounts Accounts
	Contents Contents
	Services Services
	Pristine state.Pristine
	Settings Settings

	Desired  desired.State
	Manifest *state.Manifest // of the applied generation; empty on a first run
	// Attempts are the changes that were neither recorded nor rolled back, oldest
	// first.
	Attempts []Attempt
	// Ignored are the ignored sections of the applied generation.
	Ignored []desired.Section
	// Stored opens contents of the applied generation. When it is set the plan brings
	// back that generation, and Desired is not looked at.
	Stored func(node disk.Node) (io.ReadCloser, error)
	// OnChange reads X-Reconf-OnChange= out of a unit file and its drop-ins.
	OnChange func(fragments ...[]byte) string
}

// Attempt is what a change set out to do: what it wrote, or found, counts as
// base, because the host may have either.
type Attempt struct {
	Items []Item
	// Units are those of its manifest, with their state before any of it.
	Units []state.UnitEntry
}

// RefusedError says that the plan is whole and must not be carried out.
type RefusedError struct{ Reason, Hint string }

func (e *RefusedError) Error() string { return e.Reason }

// Make compares and decides. It returns a finding.List error with everything
// that is wrong, or a *RefusedError.
func Make(ctx context.Context, in Input) (*Plan, error) {
	m := &maker{
		Input: in, plan: &Plan{},
		wants: map[string]*want{}, bases: map[string]*base{}, items: map[string]*Item{},
		looked: map[string]seen{}, resolved: map[string]string{}, closed: map[string]string{},
	}
	m.collectBases()
	if in.Stored != nil {
		m.collectApplied()
	} else {
		m.collectWants()
	}
	m.checkWants()
	// Hard links last: whether one has to be made again depends on its target.
	for _, hard := range []bool{false, true} {
		for _, p := range sortedKeys(m.wants) {
			if w := m.wants[p]; w != nil && (w.node.Kind == disk.HardLink) == hard {
				if err := m.compare(ctx, w); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := m.leave(); err != nil {
		return nil, err
	}
	if err := m.parents(); err != nil {
		return nil, err
	}
	m.checkKinds()
	m.finish()
	if err := m.units(ctx); err != nil {
		return nil, err
	}
	if err := m.effect(); err != nil {
		return nil, err
	}
	if err := m.linked(); err != nil {
		return nil, err
	}
	m.ignored()
	if len(m.problems) > 0 {
		return nil, &finding.Failure{Findings: m.problems}
	}
	return m.plan, m.refuse()
}

type maker struct {
	Input
	plan     *Plan
	wants    map[string]*want
	bases    map[string]*base
	items    map[string]*Item
	next     []state.Entry // of the manifest to be
	looked   map[string]seen
	resolved map[string]string // directory as the config names it -> without links
	closed   map[string]string // directory of this machine -> why nothing can be made in it
	problems finding.List
}

// want is one path that the host config asks for.
type want struct {
	path        string
	node        disk.Node
	user, group desired.Owner
	content     *desired.Content
	appended    []desired.Content
	unsaid      desired.Unsaid
	// applied is set where the applied generation is wanted back.
	applied *state.Entry
	// unmask asks only that no link to /dev/null stands here.
	unmask   bool
	position finding.Position
}

// base is what we know to have left at a path.
type base struct {
	entry state.Entry
	// also are the other states that an unfinished attempt wrote or found.
	also []disk.Node
	// half are those whose owner and mode it set in place, one after the other.
	half []disk.Node
}

func (b *base) matches(n disk.Node) bool {
	return b.entry.Equal(n) || slices.ContainsFunc(b.also, func(a disk.Node) bool { return a.Equal(n) }) ||
		slices.ContainsFunc(b.half, func(a disk.Node) bool { return a.SameContent(n) })
}

// secret tells whether what we know to have left may be one.
func (b *base) secret() bool {
	return b.entry.Secret || slices.ContainsFunc(b.also, func(n disk.Node) bool { return n.Secret })
}

type seen struct {
	node disk.Node
	stat disk.Stat
}

func (m *maker) problem(at finding.Position, format string, args ...any) {
	m.problems = append(m.problems, finding.Finding{Severity: finding.Error, Position: at, Message: fmt.Sprintf(format, args...)})
}

func (m *maker) warn(at finding.Position, format string, args ...any) {
	m.plan.Findings = append(m.plan.Findings, finding.Finding{Severity: finding.Warning, Position: at, Message: fmt.Sprintf(format, args...)})
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// collectBases lays unfinished attempts over the manifest.
func (m *maker) collectBases() {
	for i := range m.Manifest.Entries {
		entry := &m.Manifest.Entries[i]
		m.bases[entry.Path] = &base{entry: *entry}
	}
	for _, attempt := range m.Attempts {
		for _, item := range attempt.Items {
			if !item.Write {
				continue
			}
			b, ok := m.bases[item.Path]
			if !ok {
				b = &base{entry: state.Entry{Path: item.Path, Node: item.After, Origin: item.Origin}}
				m.bases[item.Path] = b
			}
			// The stat was of what the manifest wrote; the attempt may have replaced it.
			b.entry.Stat = disk.Stat{}
			b.also = append(b.also, item.Before, item.After)
			if item.After.Kind == disk.Directory || item.After.Kind != disk.Absent && item.After.SameContent(item.Before) {
				b.half = append(b.half, item.After)
			}
			if item.Before.Kind != item.After.Kind { // one kind goes before the other is made
				b.also = append(b.also, disk.Node{Kind: disk.Absent})
			}
		}
	}
}

const unitDir = desired.UnitDir + "/"

// collectWants turns units into their files and puts everything under its path.
func (m *maker) collectWants() {
	root := desired.Owner{}
	for _, d := range m.Desired.Directories {
		m.want(&want{path: d.Path, node: disk.Node{Kind: disk.Directory, Mode: d.Mode}, user: d.User, group: d.Group, unsaid: d.Unsaid, position: d.Position})
	}
	for _, f := range m.Desired.Files {
		m.want(&want{path: f.Path, node: disk.Node{Kind: disk.File, Mode: f.Mode, Secret: f.Secret()}, user: f.User, group: f.Group, content: f.Contents, appended: f.Append, unsaid: f.Unsaid, position: f.Position})
	}
	for _, l := range m.Desired.Links {
		kind, target := disk.Link, l.Target
		if l.Hard {
			kind, target = disk.HardLink, path.Clean("/"+l.Target)
		}
		m.want(&want{path: l.Path, node: disk.Node{Kind: kind, Target: target}, user: l.User, group: l.Group, position: l.Position})
	}
	text := func(at finding.Position, path, contents string) {
		m.want(&want{path: path, node: disk.Node{Kind: disk.File, Mode: 0o644}, user: root, group: root,
			content: &desired.Content{Inline: []byte(contents)}, position: at})
	}
	for _, u := range m.Desired.Units {
		file := unitDir + u.Name
		switch {
		case u.Mask != nil && *u.Mask:
			m.want(&want{path: file, node: disk.Node{Kind: disk.Link, Target: "/dev/null"}, user: root, group: root, position: u.Position})
		case u.Contents != nil:
			text(u.Position, file, *u.Contents)
		case u.Mask != nil:
			m.want(&want{path: file, unmask: true, position: u.Position})
		}
		for _, d := range u.Dropins {
			if d.Contents != nil {
				text(d.Position, unitDir+u.Name+".d/"+d.Name, *d.Contents)
			}
		}
	}
}

// collectApplied wants what the applied generation left.
func (m *maker) collectApplied() {
	m.Desired = desired.State{Ignored: m.Input.Ignored}
	for i := range m.Manifest.Entries {
		entry := &m.Manifest.Entries[i]
		if entry.Origin == state.Parent {
			continue
		}
		m.want(&want{
			path: entry.Path, node: entry.Node, applied: entry, unmask: entry.Kind == disk.Absent,
			user: desired.Owner{ID: entry.UID}, group: desired.Owner{ID: entry.GID},
		})
	}
	for _, unit := range m.Manifest.Units {
		m.Desired.Units = append(m.Desired.Units, desired.Unit{Name: unit.Name, Enabled: &unit.Enabled})
	}
}

func (m *maker) want(w *want) {
	if other, ok := m.wants[w.path]; ok {
		m.problem(w.position, "%s is asked for twice, also at %s", w.path, other.position)
		return
	}
	m.wants[w.path] = w
}

// look returns what stands at a path. Contents of what is unchanged since the
// base was written are known without reading them.
func (m *maker) look(p string) (disk.Node, disk.Stat, error) {
	if s, ok := m.looked[p]; ok {
		return s.node, s.stat, nil
	}
	real, err := m.Host.Path(p)
	if err != nil {
		return disk.Node{}, disk.Stat{}, err
	}
	node, stat, err := disk.Look(real)
	if err != nil {
		return disk.Node{}, disk.Stat{}, fmt.Errorf("looking at %s: %w", p, err)
	}
	if astray, err := m.astray(p); err != nil || astray {
		node, stat = disk.Node{}, disk.Stat{}
		if err != nil {
			return node, stat, err
		}
	}
	if node.Kind == disk.File {
		b := m.bases[p]
		if b != nil && b.entry.Kind == disk.File && b.entry.SHA256 != "" && b.entry.Stat == stat {
			node.SHA256 = b.entry.SHA256
		} else if node, stat, err = disk.Read(real); err != nil {
			return disk.Node{}, disk.Stat{}, fmt.Errorf("looking at %s: %w", p, err)
		}
	}
	m.looked[p] = seen{node, stat}
	return node, stat, nil
}

// astray tells whether the way to a path leads through a link that is itself
// managed. What lies there belongs to the place that the link names: either the
// link goes, and nothing is at the path yet, or the config wants the link, and
// what was at the path went with the directory before it.
func (m *maker) astray(p string) (bool, error) {
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		w, b, item := m.wants[dir], m.bases[dir], m.items[dir]
		if w == nil && b == nil {
			continue
		}
		found, _, err := m.look(dir)
		if err != nil {
			return false, err
		}
		switch {
		case found.Kind != disk.Link:
		case w != nil && w.node.Kind == disk.Link,
			item != nil && item.Write && item.After.Kind == disk.Directory,
			w == nil && b.entry.Origin != state.Foreign && b.matches(found):
			return true, nil
		}
	}
	return false, nil
}

// compare decides about one wanted path by the three-way table.
func (m *maker) compare(ctx context.Context, w *want) error {
	found, stat, err := m.look(w.path)
	if err != nil {
		return err
	}
	if w.unmask {
		m.unmask(w, found)
		return nil
	}
	if found.Kind == disk.Other {
		m.problem(w.position, "%s is a device, a socket or a pipe on this host: reconf-pull does not replace it", w.path)
		return nil
	}
	if !m.resolveOwners(ctx, w) {
		return nil
	}
	b := m.bases[w.path]
	m.leaveUnsaid(w, b, found)
	item := &Item{Path: w.path, Before: found, After: w.node, Origin: state.Created}
	err = m.resolveContent(ctx, w, item, b)
	var (
		keys   *secret.KeyError
		hinted interface{ Hint() string }
	)
	switch {
	case errors.As(err, &keys), errors.Is(err, source.ErrUnavailable), errors.Is(err, source.ErrDamaged), errors.Is(err, unix.ENOSPC), ctx.Err() != nil:
		return fmt.Errorf("%s: %w", w.path, err) // nothing is wrong with the host config
	case err != nil:
		m.problem(w.position, "%s: %v", w.path, err)
		if errors.As(err, &hinted) {
			m.problems[len(m.problems)-1].Hint = hinted.Hint()
		}
		return nil
	}
	if w.node.Kind == disk.HardLink {
		if err := m.hardLink(w, item); err != nil {
			return err
		}
	}
	if err := m.decide(ctx, w, item, b); err != nil {
		return err
	}
	if item.After.Kind == disk.File && item.After.SHA256 != "" && w.applied == nil {
		known := b != nil && b.entry.SHA256 == item.After.SHA256 && b.entry.Source == w.source()
		m.plan.Contents = append(m.plan.Contents, Content{Node: item.After, Known: known, Open: item.open})
	}
	entry := state.Entry{Path: w.path, Node: item.After, Origin: item.Origin, Source: w.source()}
	switch {
	case item.Action == Conflict && !item.Write: // apply.on_conflict = "keep"
		entry = b.entry
	case !item.Write && item.After.Equal(found):
		entry.Stat = stat // the engine does not touch it, so it need not look again
	}
	m.next = append(m.next, entry)
	if item.Action != "" {
		m.items[w.path] = item
	}
	return nil
}

// decide fills in the action. The wanted state differs from base, from disk,
// from both or from none.
func (m *maker) decide(ctx context.Context, w *want, item *Item, b *base) error {
	same := item.After.Equal(item.Before)
	if w.node.Kind == disk.HardLink {
		same = item.Before.Kind == disk.HardLink
	}
	if b == nil {
		switch {
		case item.Before.Kind == disk.Absent:
			item.Action, item.Write = Create, true
		case same:
			item.Action, item.Origin = Adopt, m.adoptedOrigin(w.path)
		default:
			item.Action, item.Write, item.Origin = Adopt, true, state.Foreign
			provisioned, err := m.encryptedStill(ctx, w, item.Before)
			if err != nil {
				return fmt.Errorf("%s: %w", w.path, err)
			}
			if provisioned {
				item.Origin = state.Provisioned
				return nil
			}
			item.Pristine = m.pristine(item)
		}
		return nil
	}
	matches, err := m.matches(b, w.path, item.Before)
	if err != nil {
		return err
	}
	item.Origin = b.entry.Origin
	if item.Origin == state.Parent {
		item.Origin = state.Created // it is asked for by name now
	}
	unchanged := item.After.Equal(b.entry.Node)
	switch {
	case same && unchanged:
	case same:
		item.Action = Record
	case matches:
		item.Action, item.Write = Update, true
		if item.Origin == state.Foreign {
			item.Pristine = m.pristine(item)
		}
	case unchanged && m.Settings.OtherOS:
		item.Action, item.Write = Conflict, true
		item.Note = "not as it was left, since another OS deployment was booted; that version is kept with the generation"
	case unchanged:
		item.Action, item.Write = Drift, m.Settings.CorrectDrift
	default:
		item.Action, item.Write = Conflict, m.Settings.OnConflict != "keep"
		item.Note = "changed on the host too; the local version is kept with the generation"
		if !item.Write {
			item.Note = "changed on the host too; left as it is (apply.on_conflict)"
		}
	}
	if item.Action == Drift && !item.Write {
		item.Note = "changed on the host, not in the repo"
	}
	return nil
}

// encryptedStill tells whether the disk has a secret as the repo has it: plain
// Butane puts that there. It is nothing that anybody wants back.
func (m *maker) encryptedStill(ctx context.Context, w *want, found disk.Node) (bool, error) {
	if !w.node.Secret || found.Kind != disk.File || w.content == nil {
		return false, nil
	}
	r, err := m.concat(ctx, encrypted(append([]desired.Content{*w.content}, w.appended...)))
	if err != nil {
		return false, err
	}
	sum, _, err := sumOf(r)
	return sum == found.SHA256, errors.Join(err, r.Close())
}

// encrypted are contents as the repo has them.
func encrypted(parts []desired.Content) []desired.Content {
	parts = slices.Clone(parts)
	for i := range parts {
		if parts[i].Secret {
			parts[i].Secret, parts[i].Gzip = false, false
		}
	}
	return parts
}

// leaveUnsaid keeps the mode and owner that the config does not say, as
// Ignition does with what exists: those that we recorded, else those on disk.
func (m *maker) leaveUnsaid(w *want, b *base, found disk.Node) {
	is := found
	if b != nil && b.entry.Kind == w.node.Kind {
		is = b.entry.Node
	}
	if is.Kind != w.node.Kind {
		return
	}
	if w.unsaid.Mode {
		w.node.Mode = is.Mode
	}
	if w.unsaid.User {
		w.node.UID = is.UID
	}
	if w.unsaid.Group {
		w.node.GID = is.GID
	}
}

// source names where the bytes of a wanted file come from.
func (w *want) source() string {
	if w.applied != nil {
		return w.applied.Source
	}
	if w.content == nil && len(w.appended) == 0 {
		return ""
	}
	var keys []string
	if w.content != nil {
		keys = append(keys, contents.Key(*w.content))
	}
	for _, c := range w.appended {
		keys = append(keys, "+"+contents.Key(c))
	}
	return strings.Join(keys, " ")
}

// resolveContent fills in hash and size of a wanted file and how to open it.
func (m *maker) resolveContent(ctx context.Context, w *want, item *Item, b *base) error {
	if w.applied != nil && w.node.SHA256 != "" {
		item.open = func(context.Context) (io.ReadCloser, error) { return m.Stored(w.node) }
	}
	if w.node.Kind != disk.File || w.content == nil && len(w.appended) == 0 {
		return nil
	}
	if w.content == nil {
		return m.resolveAppend(ctx, w, item, b)
	}
	parts := append([]desired.Content{*w.content}, w.appended...)
	item.open = func(ctx context.Context) (io.ReadCloser, error) { return m.concat(ctx, parts) }
	if b != nil && b.entry.Source == w.source() && b.entry.SHA256 != "" {
		item.After.SHA256, item.After.Size = b.entry.SHA256, b.entry.Size
		return nil
	}
	var err error
	if len(parts) == 1 {
		item.After.SHA256, item.After.Size, err = m.Contents.Sum(ctx, parts[0])
		return err
	}
	r, err := m.concat(ctx, parts)
	if err != nil {
		return err
	}
	item.After.SHA256, item.After.Size, err = sumOf(r)
	return errors.Join(err, r.Close())
}

// resolveAppend computes the pristine file plus what is appended, from the
// kept pristine copy and never from our own result, so that it is idempotent.
func (m *maker) resolveAppend(ctx context.Context, w *want, item *Item, b *base) error {
	tail, err := m.read(ctx, w.appended)
	if err != nil {
		return err
	}
	first, keep, err := m.beforeAppend(ctx, w, item.Before, b, tail)
	if err != nil {
		return err
	}
	whole := slices.Concat(first, tail)
	item.After.Size = int64(len(whole))
	item.open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
	item.Pristine = keep
	item.After.SHA256, _, err = sumOf(bytes.NewReader(whole))
	return err
}

// read is concat for what fits into memory.
func (m *maker) read(ctx context.Context, parts []desired.Content) ([]byte, error) {
	r, err := m.concat(ctx, parts)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// concat reads several contents as one.
func (m *maker) concat(ctx context.Context, parts []desired.Content) (io.ReadCloser, error) {
	var all several
	var readers []io.Reader
	for _, c := range parts {
		r, err := m.Contents.Open(ctx, c)
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
		all.parts, readers = append(all.parts, r), append(readers, r)
	}
	all.Reader = io.MultiReader(readers...)
	return &all, nil
}

// several are readers that are read one after the other.
type several struct {
	io.Reader
	parts []io.Closer
}

func (s *several) Close() error {
	var errs []error
	for _, c := range s.parts {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// beforeAppend is what the file holds without what is appended, and how the
// engine keeps it for the next time.
func (m *maker) beforeAppend(ctx context.Context, w *want, found disk.Node, b *base, tail []byte) ([]byte, *Pristine, error) {
	p := w.path
	node, ok, err := m.Pristine.Node(p)
	if err != nil {
		return nil, nil, err
	}
	if ok {
		if node.Kind != disk.File {
			return nil, nil, nil
		}
		r, err := m.Pristine.Open(p)
		if err != nil {
			return nil, nil, err
		}
		data, err := io.ReadAll(r)
		return data, nil, errors.Join(err, r.Close())
	}
	if b != nil && b.entry.Origin != state.Foreign || found.Kind != disk.File {
		return nil, nil, nil // nothing was there before us
	}
	data, err := m.Host.ReadFile(p)
	if err != nil {
		return nil, nil, err
	}
	rest, ok := bytes.CutSuffix(data, tail)
	if !ok && w.node.Secret {
		if tail, err = m.read(ctx, encrypted(w.appended)); err != nil {
			return nil, nil, err
		}
		rest, ok = bytes.CutSuffix(data, tail)
	}
	if ok {
		return rest, &Pristine{Bytes: int64(len(rest))}, nil // Ignition appended it at first boot
	}
	if vendor := m.vendorFile(p); vendor != "" {
		if data, err = m.Host.ReadFile(vendor); err != nil {
			return nil, nil, err
		}
		return data, &Pristine{Bytes: -1, Vendor: vendor}, nil
	}
	return data, &Pristine{Bytes: -1}, nil
}

// pristine asks for a copy of what is there unless there is one.
func (m *maker) pristine(item *Item) *Pristine {
	if item.Pristine != nil {
		return item.Pristine
	}
	if _, ok, err := m.Pristine.Node(item.Path); ok && err == nil {
		return nil
	}
	return &Pristine{Bytes: -1}
}

// unmask wants no link to /dev/null, and nothing else.
func (m *maker) unmask(w *want, found disk.Node) {
	b := m.bases[w.path]
	if found.Kind == disk.Link && found.Target == "/dev/null" {
		item := &Item{Path: w.path, Action: Remove, Before: found, Origin: state.Foreign, Write: true, Note: "unmasked"}
		if b != nil {
			item.Origin = b.entry.Origin
		} else {
			item.Pristine = &Pristine{Bytes: -1}
		}
		m.items[w.path] = item
		if item.Origin == state.Foreign {
			m.next = append(m.next, state.Entry{Path: w.path, Origin: state.Foreign})
		}
		return
	}
	if b != nil && b.entry.Kind == disk.Absent {
		m.next = append(m.next, b.entry)
		return
	}
	if b != nil {
		// The unit's file leaves the config while mask: false stays.
		delete(m.wants, w.path)
	}
}

// hardLink tells a link that is there already from one that has to be made. A
// hard link to one is a hard link to the file behind it.
func (m *maker) hardLink(w *want, item *Item) error {
	target := w.node.Target
	for range m.wants {
		if next := m.wants[target]; next == nil || next.node.Kind != disk.HardLink {
			break
		}
		target = m.wants[target].node.Target
	}
	item.After.Target = target
	var kind disk.Kind
	if named := m.wants[target]; named != nil && !named.unmask {
		kind = named.node.Kind
	} else {
		node, _, err := m.look(target)
		if err != nil {
			return err
		}
		kind = node.Kind
	}
	if kind != disk.File {
		m.problem(w.position, "%s is to be a hard link to %s, which is not a file on this host and not in this config", w.path, target)
		return nil
	}
	if m.mountOf(w.path) != m.mountOf(target) {
		m.problem(w.position, "%s is to be a hard link to %s, which lies on another file system", w.path, target)
		return nil
	}
	_, mine, err := m.look(w.path)
	if err != nil {
		return err
	}
	_, theirs, err := m.look(target)
	if err != nil {
		return err
	}
	// A target that is rewritten gets a new inode, so the link is made again.
	rewritten := m.items[target] != nil && m.items[target].NeedsContent()
	if item.Before.Kind == disk.File && mine.Inode == theirs.Inode && mine.Inode != 0 && !rewritten {
		item.Before = disk.Node{Kind: disk.HardLink, Target: target, UID: item.After.UID, GID: item.After.GID}
	}
	return nil
}

// linked marks the hard links of the applied generation that are written over
// or removed: their bytes alone would not bring them back.
func (m *maker) linked() error {
	for i := range m.plan.Items {
		item := &m.plan.Items[i]
		b := m.bases[item.Path]
		if !item.Write || item.Before.Kind != disk.File || b == nil || b.entry.Kind != disk.HardLink {
			continue
		}
		_, mine, err := m.look(item.Path)
		if err != nil {
			return err
		}
		_, theirs, err := m.look(b.entry.Target)
		if err != nil {
			return err
		}
		if mine.Inode == theirs.Inode {
			item.Linked = b.entry.Target
		}
	}
	return nil
}
