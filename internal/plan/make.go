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
	"syscall"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
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
	// Later are paths that are left as they are for now.
	Later map[string]*fsat.BlockedError
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
		Input: in, ctx: ctx, plan: &Plan{},
		wants: map[string]*want{}, bases: map[string]*base{}, items: map[string]*Item{}, next: map[string]state.Entry{},
		looked: map[string]fsat.Found{}, resolved: map[string]string{}, closed: map[string]string{},
	}
	in.Host.Files.Forget() // what was looked at before may lie elsewhere now
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
	if err := m.checkKinds(); err != nil {
		return nil, err
	}
	m.checkConflicts()
	m.blockBelow()
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
	ctx      context.Context
	plan     *Plan
	wants    map[string]*want
	bases    map[string]*base
	items    map[string]*Item
	next     map[string]state.Entry // of the manifest to be
	looked   map[string]fsat.Found
	resolved map[string]string // directory as the config names it -> without links
	closed   map[string]string // directory -> why nothing can be made in it
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
// base was written are known without reading them. A path that somebody blocks is a
// *fsat.BlockedError.
func (m *maker) look(p string) (fsat.Found, error) {
	if found, ok := m.looked[p]; ok {
		return found, nil
	}
	if later := m.Later[p]; later != nil {
		return fsat.Found{}, later
	}
	found := fsat.Found{Path: p}
	way, err := m.astray(p)
	switch {
	case err != nil:
	case way != nil:
		found.Place = way.Place
	default:
		found, err = m.Host.Files.Look(p)
	}
	if err == nil && found.Kind == disk.File {
		b := m.bases[p]
		if b != nil && b.entry.Kind == disk.File && b.entry.SHA256 != "" && b.entry.Stat == found.Stat {
			found.SHA256 = b.entry.SHA256
		} else {
			found, err = m.Host.Files.Read(m.ctx, p, m.most(p))
		}
	}
	if err != nil {
		return fsat.Found{}, fmt.Errorf("looking at %s: %w", p, err)
	}
	m.looked[p] = found
	return found, nil
}

// most is the largest file that is read at a path where others than root may have
// written it: what we left there may be as large as it is.
func (m *maker) most(p string) int64 {
	most := m.Settings.most()
	if b := m.bases[p]; b != nil {
		most = max(most, b.entry.Node.Size)
		for _, also := range b.also {
			most = max(most, also.Size)
		}
	}
	return most
}

// astray returns the link or file on the way to a path that is itself managed, nil where
// there is none. What lies there belongs to the place that the link names: either the
// link goes, and nothing is at the path yet, or the config wants the link, and
// what was at the path went with the directory before it.
func (m *maker) astray(p string) (*fsat.Found, error) {
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		w, b, item := m.wants[dir], m.bases[dir], m.items[dir]
		if w == nil && b == nil {
			continue
		}
		found, err := m.look(dir)
		if err != nil {
			return nil, err
		}
		switch {
		case found.Kind == disk.File && item != nil && item.Write && item.After.Kind == disk.Directory:
			return &found, nil // it gives way
		case found.Kind != disk.Link:
		case w != nil && w.node.Kind == disk.Link,
			item != nil && item.Write && item.After.Kind == disk.Directory,
			w == nil && b.entry.Origin != state.Foreign && b.matches(found.Node):
			return &found, nil
		}
	}
	return nil, nil
}

// compare decides about one wanted path by the three-way table.
func (m *maker) compare(ctx context.Context, w *want) error {
	found, err := m.look(w.path)
	if m.blocked(w.path, err) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.unmask {
		m.unmask(w, found.Node)
		return nil
	}
	if found.Kind == disk.Other {
		m.refuseAt(w.path, found.Place, "is a device, a socket or a pipe on this host: reconf-pull does not replace it")
		return nil
	}
	if !m.resolveOwners(ctx, w) {
		return nil
	}
	b := m.bases[w.path]
	m.leaveUnsaid(w, b, &found)
	item := &Item{Path: w.path, Before: found.Node, After: w.node, Origin: state.Created}
	err = m.resolveContent(ctx, w, item, b, &found)
	if m.blocked(w.path, err) {
		return nil
	}
	var (
		keys   *secret.KeyError
		hinted interface{ Hint() string }
	)
	switch {
	case errors.As(err, &keys), errors.Is(err, source.ErrUnavailable), errors.Is(err, source.ErrDamaged),
		errors.Is(err, syscall.ENOSPC), ctx.Err() != nil:
		return fmt.Errorf("%s: %w", w.path, err) // nothing is wrong with the host config
	case err != nil:
		m.problem(w.position, "%s: %v", w.path, err)
		if errors.As(err, &hinted) {
			m.problems[len(m.problems)-1].Hint = hinted.Hint()
		}
		return nil
	}
	if w.node.Kind == disk.HardLink {
		err := m.hardLink(w, item, &found)
		if m.blocked(w.path, err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	if err := m.decide(ctx, w, item, b); err != nil {
		return err
	}
	if m.blocked(w.path, guardPlace(item, b, &found)) || m.blocked(w.path, m.guard(item, b, &found)) {
		return nil
	}
	if item.After.Kind == disk.File && item.After.SHA256 != "" && w.applied == nil {
		known := b != nil && b.entry.SHA256 == item.After.SHA256 && b.entry.Source == w.source()
		m.plan.Contents = append(m.plan.Contents, Content{Node: item.After, Known: known, Open: item.open})
	}
	entry := state.Entry{Path: w.path, Node: item.After, Origin: item.Origin, Source: w.source()}
	switch {
	case item.Action == Conflict && !item.Write: // apply.on_conflict = "keep"
		entry = b.entry
	case !item.Write && item.After.Equal(found.Node):
		entry.Stat = found.Stat // the engine does not touch it, so it need not look again
	}
	m.next[w.path] = entry
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
//
// In somebody's place he may have made what exists so that he gets to read what is to
// be written: it decides about no secret, and of contents that not everybody may read
// not about their owner.
func (m *maker) leaveUnsaid(w *want, b *base, found *fsat.Found) {
	is, theirs := found.Node, !found.Place.Root()
	if b != nil && b.entry.Kind == w.node.Kind {
		is, theirs = b.entry.Node, false
	}
	if is.Kind != w.node.Kind || theirs && w.node.Secret {
		return
	}
	if w.unsaid.Mode {
		w.node.Mode = is.Mode
	} else if theirs && w.content != nil && w.node.Mode&othersRead == 0 {
		return
	}
	if w.unsaid.User {
		w.node.UID = is.UID
	}
	if w.unsaid.Group {
		w.node.GID = is.GID
	}
}

const othersRead = 0o004

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
func (m *maker) resolveContent(ctx context.Context, w *want, item *Item, b *base, found *fsat.Found) error {
	if w.applied != nil && w.node.SHA256 != "" {
		item.open = func(context.Context) (io.ReadCloser, error) { return m.Stored(w.node) }
	}
	if w.node.Kind != disk.File || w.content == nil && len(w.appended) == 0 {
		return nil
	}
	if w.content == nil {
		return m.resolveAppend(ctx, w, item, b, found)
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
func (m *maker) resolveAppend(ctx context.Context, w *want, item *Item, b *base, found *fsat.Found) error {
	tail, err := m.read(ctx, w.appended)
	if err != nil {
		return err
	}
	first, keep, err := m.beforeAppend(ctx, w, found, b, tail)
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
func (m *maker) beforeAppend(
	ctx context.Context, w *want, found *fsat.Found, b *base, tail []byte,
) ([]byte, *Pristine, error) {
	p := w.path
	node, ok, err := m.Pristine.Node(p)
	if err != nil {
		return nil, nil, err
	}
	if ok {
		if node.Kind != disk.File {
			return nil, nil, nil
		}
		kept := *found
		kept.Node, kept.Links = node, 1
		if err := whyUnsafe(&kept, w.node); err != nil {
			return nil, nil, err
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
	data, err := m.readWhole(p, found.Node, w.node)
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

// readWhole reads the file that something is appended to, as it was looked at.
func (m *maker) readWhole(p string, looked, wanted disk.Node) ([]byte, error) {
	if most := m.Settings.most(); looked.Size > most {
		return nil, fmt.Errorf("it has %d bytes, and something is appended to files of at most %d (translate.max_file)",
			looked.Size, most)
	}
	f, err := m.Host.Files.Open(m.ctx, p, m.most(p))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := whyUnsafe(&f.Found, wanted); err != nil {
		return nil, err
	}
	return f.Whole()
}

// whyUnsafe is why what stands at a path must not become, as it is, what is wanted there.
func whyUnsafe(found *fsat.Found, wanted disk.Node) error {
	if why := found.Unsafe(wanted); why != "" {
		return &fsat.BlockedError{Path: found.Path, Place: found.Whose(), Reason: why}
	}
	return nil
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
			m.next[w.path] = state.Entry{Path: w.path, Origin: state.Foreign}
		}
		return
	}
	if b != nil && b.entry.Kind == disk.Absent {
		m.next[w.path] = b.entry
		return
	}
	if b != nil {
		// The unit's file leaves the config while mask: false stays.
		delete(m.wants, w.path)
	}
}

// hardLink tells a link that is there already from one that has to be made. A
// hard link to one is a hard link to the file behind it.
func (m *maker) hardLink(w *want, item *Item, found *fsat.Found) error {
	target := w.node.Target
	for range m.wants {
		if next := m.wants[target]; next == nil || next.node.Kind != disk.HardLink {
			break
		}
		target = m.wants[target].node.Target
	}
	item.After.Target = target
	theirs, err := m.look(target)
	if err != nil {
		return err
	}
	kind := theirs.Kind
	if named := m.wants[target]; named != nil && !named.unmask {
		kind = named.node.Kind
	}
	switch blocked := m.items[target]; {
	case kind != disk.File:
		m.problem(w.position, "%s is to be a hard link to %s, which is not a file on this host and not in this config", w.path, target)
		return nil
	case found.Place.Root() && !theirs.Place.Root():
		why := "it would be a name for " + target + ", which somebody else than root may change"
		return &fsat.BlockedError{Path: w.path, Place: theirs.Place, Reason: why}
	case blocked != nil && blocked.Action == Blocked:
		why := fmt.Sprintf("%s is blocked: %s", target, blocked.Note)
		return &fsat.BlockedError{Path: w.path, Place: *blocked.Place, Reason: why}
	case m.mountOf(w.path) != m.mountOf(target):
		m.refuseAt(w.path, found.Place, fmt.Sprintf("is to be a hard link to %s, which lies on another file system", target))
		return nil
	}
	// A target that is rewritten gets a new inode, so the link is made again.
	rewritten := m.items[target] != nil && m.items[target].NeedsContent()
	if item.Before.Kind == disk.File && found.SameFile(&theirs) && !rewritten {
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
		mine, err := m.look(item.Path)
		if err != nil {
			return err
		}
		theirs, err := m.look(b.entry.Target)
		var blocked *fsat.BlockedError
		if errors.As(err, &blocked) {
			continue // it is another file by now
		}
		if err != nil {
			return err
		}
		if mine.SameFile(&theirs) {
			item.Linked = b.entry.Target
		}
	}
	return nil
}
