package plan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/host"
)

// kernel directories hold no configuration that lasts.
var kernel = []string{"/proc", "/sys", "/dev"}

func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// maxName is the longest name in a directory (NAME_MAX).
const maxName = 255

// checkWants refuses paths that nobody may manage, and two that are one file.
func (m *maker) checkWants() {
	byReal := map[string]string{}
	for _, p := range sortedKeys(m.wants) {
		w := m.wants[p]
		if slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool { return len(name) > maxName }) {
			m.problem(w.position, "%s has a name of more than %d bytes, which no file system takes", p, maxName)
			delete(m.wants, p)
			continue
		}
		real, err := m.withoutLinks(p)
		if err != nil {
			m.problem(w.position, "%s: %v", p, err)
			delete(m.wants, p)
			continue
		}
		if dir := m.within(p, real, kernel); dir != "" {
			m.problem(w.position, "%s lies below %s, which the kernel makes anew at every boot", p, dir)
			delete(m.wants, p)
			continue
		}
		if dir := m.within(p, real, m.Settings.Protected); dir != "" {
			m.problem(w.position, "%s lies below %s, where reconf-pull keeps its own state", p, dir)
			delete(m.wants, p)
			continue
		}
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if above := m.wants[dir]; above != nil && !above.unmask && above.node.Kind != disk.Directory {
				m.problem(w.position, "%s lies below %s, which is a %s of this config (%s)", p, dir, above.node.Kind, above.position)
				break
			}
		}
		if other, ok := byReal[real]; ok {
			m.problem(w.position, "%s and %s (%s) are one file on this host: a parent of one of them is a link", p, other, m.wants[other].position)
		}
		byReal[real] = p
	}
}

// within names the directory that a path lies in, as it is written or where
// the links of this host lead.
func (m *maker) within(p, real string, dirs []string) string {
	for _, dir := range dirs {
		if below(p, dir) {
			return dir
		}
		if way, err := m.withoutLinks(dir); err == nil && below(real, way) {
			return dir
		}
	}
	return ""
}

// withoutLinks is the path of the host with the links in its parents followed,
// as far as these exist.
func (m *maker) withoutLinks(p string) (string, error) {
	dir, name := path.Split(p)
	if dir = path.Clean(dir); name == "" {
		return p, nil
	}
	if known, ok := m.resolved[dir]; ok {
		return path.Join(known, name), nil
	}
	var blocked *fsat.BlockedError
	if _, err := m.Host.Files.Ground(p); err != nil && !errors.As(err, &blocked) {
		return "", err // links that lead in a circle
	}
	m.resolved[dir] = m.Host.Files.Resolve(dir)
	return path.Join(m.resolved[dir], name), nil
}

// resolveOwners turns names into ids. Names that a sysusers.d file of this
// plan creates stay names until that file was written.
func (m *maker) resolveOwners(ctx context.Context, w *want) bool {
	user := m.resolve(ctx, w, "user", w.user, m.Accounts.User, &w.node.UID, &w.node.User)
	group := m.resolve(ctx, w, "group", w.group, m.Accounts.Group, &w.node.GID, &w.node.Group)
	return user && group
}

func (m *maker) resolve(ctx context.Context, w *want, what string, owner desired.Owner, lookup func(context.Context, string) (int, error), id *int, name *string) bool {
	if owner.Name == "" {
		*id = owner.ID
		return true
	}
	var err error
	if *id, err = lookup(ctx, owner.Name); err == nil {
		return true
	}
	if !errors.Is(err, host.ErrNoAccount) {
		m.problem(w.position, "%s %s of %s: %v", what, owner.Name, w.path, err)
		return false
	}
	if file := m.declares(ctx, what, owner.Name); file != "" {
		*name = owner.Name
		if !slices.Contains(m.plan.Sysusers, file) {
			m.plan.Sysusers = append(m.plan.Sysusers, file)
		}
		return true
	}
	m.problem(w.position, "%s %s of %s does not exist on this host, and no sysusers.d file of this config declares it", what, owner.Name, w.path)
	return false
}

// declares names the sysusers.d file of this plan that creates the account
// (sysusers.d(5): u and u! lines create a user and its group, g a group).
func (m *maker) declares(ctx context.Context, what, name string) string {
	for _, p := range sortedKeys(m.wants) {
		w := m.wants[p]
		if w.content == nil || path.Ext(p) != ".conf" || !strings.HasSuffix(path.Dir(p), "/sysusers.d") {
			continue
		}
		if found, err := m.look(p); err != nil || !found.Place.Root() {
			continue // systemd-sysusers would read it by its name, whoever wrote it
		}
		r, err := m.Contents.Open(ctx, *w.content)
		if err != nil {
			continue // reported where the file itself is compared
		}
		lines := bufio.NewScanner(io.LimitReader(r, 1<<20))
		declared := false
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 || strings.Trim(fields[1], `"'`) != name {
				continue
			}
			kind := strings.TrimRight(fields[0], "!-")
			declared = declared || kind == "u" || kind == "g" && what == "group"
		}
		if r.Close(); declared {
			return p
		}
	}
	return ""
}

// secret tells whether what the disk has at a path may be a secret: it was or will
// be one, or it is or will be a hard link to one.
func (m *maker) secret(item *Item) bool {
	paths := []string{item.Path, item.After.Target}
	if b := m.bases[item.Path]; b != nil {
		paths = append(paths, b.entry.Target)
	}
	return item.After.Secret || slices.ContainsFunc(paths, func(p string) bool {
		b, w := m.bases[p], m.wants[p]
		return b != nil && b.secret() || w != nil && w.node.Secret
	})
}

// finish sorts what was found and makes the manifest of it.
func (m *maker) finish() {
	for _, p := range sortedKeys(m.items) {
		item := m.items[p]
		item.Before.Secret = item.Before.Kind == disk.File && m.secret(item)
		if item.Place = m.place(item); item.Write && m.bases[p] != nil {
			item.Base = &m.bases[p].entry
		}
		m.plan.Items = append(m.plan.Items, *item)
	}
	for _, p := range sortedKeys(m.next) {
		m.plan.Manifest.Entries = append(m.plan.Manifest.Entries, m.next[p])
	}
	slices.Sort(m.plan.Sysusers)
}

// checkConflicts refuses what both the host and the repo changed, where that is wished.
func (m *maker) checkConflicts() {
	for _, p := range sortedKeys(m.items) {
		if m.items[p].Action == Conflict && m.Settings.OnConflict == "fail" {
			m.refuseAt(p, m.looked[p].Place, "was changed on the host and in the repo (apply.on_conflict = \"fail\")")
		}
	}
}

// ignored reports sections that changed and take effect on new machines only.
func (m *maker) ignored() {
	before := map[string]desired.Section{}
	for _, s := range m.Input.Ignored {
		before[s.Name] = s
	}
	for _, s := range m.Desired.Ignored {
		if old, ok := before[s.Name]; (!ok || old.Hash != s.Hash) && len(m.Manifest.Entries) > 0 {
			m.plan.Ignored = append(m.plan.Ignored, fmt.Sprintf("%s changed: takes effect on newly provisioned machines only", s.Name))
		}
	}
}
