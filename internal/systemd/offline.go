package systemd

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/host"
)

// Offline does for a root that is not running what systemctl --root does. It
// changes nothing: it returns the links, and who asked writes them.
type Offline struct{ Host *host.Host }

// Link is a symbolic link, as it looks from inside the root.
type Link struct{ Path, Target string }

const (
	configDir  = "/etc/systemd/system"
	runtimeDir = "/run/systemd/system"
)

// searchPath is where units are looked for, the first one wins.
var searchPath = []string{
	configDir, runtimeDir, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
}

// ErrNoUnit says that a root has no such unit: for a unit that the same change
// removes, there is nothing left to do.
var ErrNoUnit = errors.New("no such unit")

// ErrMasked says that a unit cannot be enabled before it is unmasked.
var ErrMasked = errors.New("unit is masked")

// wantsDirs are the settings of [Install] that make a link in a directory of
// the unit they name.
var wantsDirs = []struct{ key, suffix string }{
	{"WantedBy", ".wants"}, {"RequiredBy", ".requires"}, {"UpheldBy", ".upholds"},
}

// Links are the links that enabling a unit makes, with those of the units in
// its Also=. Links that cannot be made are left out and named in the error: the
// others are valid.
func (o Offline) Links(name string) ([]Link, error) {
	var (
		links []Link
		errs  []error
	)
	err := o.each(name, func(u *installed) error {
		if u.masked {
			return fmt.Errorf("enabling %s: %w", u.name, ErrMasked)
		}
		more, err := u.links()
		links = append(links, more...)
		return err
	})
	errs = append(errs, err)
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	links = slices.CompactFunc(links, func(a, b Link) bool { return a.Path == b.Path })
	return links, errors.Join(errs...)
}

// each visits a unit and, once each, those that its Also= names. Only the first
// one has to exist.
func (o Offline) each(name string, visit func(*installed) error) error {
	var errs []error
	seen := map[string]bool{}
	queue := []string{name}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		u, err := o.load(next)
		if err != nil {
			if next == name || !errors.Is(err, ErrNoUnit) {
				errs = append(errs, err)
			}
			continue
		}
		if seen[u.name] {
			continue
		}
		seen[u.name] = true
		errs = append(errs, visit(u))
		also, err := u.expand(u.install["Also"])
		errs = append(errs, err)
		queue = append(queue, slices.DeleteFunc(also, func(unit string) bool { return !UnitName(unit) })...)
	}
	return errors.Join(errs...)
}

// installed is a unit with what decides how it is enabled.
type installed struct {
	name    string // the unit's own, also when it was asked for by an alias
	file    string // where it lies
	masked  bool
	linked  bool                // its file lies outside the directories of units
	install map[string][]string // lists of [Install], not yet expanded
	empty   bool                // [Install] says nothing
}

// load finds a unit by name: its own file or, for an instance, its template's,
// and the drop-ins of both.
func (o Offline) load(name string) (*installed, error) {
	asked := name
	// Aliases may lead to aliases; systemd stops somewhere, too.
	for range 8 {
		file, target, err := o.find(name)
		if err != nil {
			return nil, fmt.Errorf("looking for %s: %w", name, err)
		}
		if file == "" {
			return nil, fmt.Errorf("%s: %w", asked, ErrNoUnit)
		}
		u := &installed{name: name, file: file, install: map[string][]string{}, empty: true}
		if target == "/dev/null" {
			u.masked = true
			return u, nil
		}
		if target != "" {
			base := path.Base(target)
			if own := TemplateOf(name); base != name && base != own {
				name = aliased(name, base)
				continue
			}
			if !slices.Contains(searchPath, path.Dir(target)) {
				// systemctl link: the file lies elsewhere, and links lead to it.
				u.linked, u.file = true, target
			}
		}
		return u, o.readInstall(u)
	}
	return nil, fmt.Errorf("%s: too many aliases", asked)
}

// aliased is the unit that an alias stands for: of an alias of a template, the
// same instance of the template.
func aliased(alias, target string) string {
	_, name, _ := split(alias)
	if prefix, _, ext := split(target); Template(target) && name != "" {
		return prefix + "@" + name + ext
	}
	return target
}

// find is the first file with the unit's name, or with its template's, and
// where it leads if it is a symlink.
func (o Offline) find(name string) (file, target string, err error) {
	for _, candidate := range []string{name, TemplateOf(name)} {
		if candidate == "" {
			continue
		}
		for _, dir := range searchPath {
			file := dir + "/" + candidate
			found, err := o.Host.Files.Look(file)
			if err != nil {
				return "", "", err
			}
			switch {
			case found.Kind == disk.Link:
				return file, absolute(file, found.Target), nil
			case found.Kind == disk.File && found.Size() == 0:
				return file, "/dev/null", nil // an empty file masks, too
			case found.Kind == disk.File:
				return file, "", nil
			}
		}
	}
	return "", "", nil
}

// absolute is the target of a link as an absolute path, inside the root.
func absolute(link, target string) string {
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(link), target)
	}
	return path.Clean(target)
}

// readDir are the names in a directory, in their order; none where there is no
// directory.
func (o Offline) readDir(dir string) ([]string, error) {
	var names []string
	err := o.Host.Files.Names(dir, func(name string) bool {
		names = append(names, name)
		return true
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(names)
	return names, err
}

// readInstall reads [Install] from the unit's file and from its drop-ins.
func (o Offline) readInstall(u *installed) error {
	// systemd takes [Install] only from drop-ins of the unit and its template.
	files, err := o.dropins(u.name, false)
	if err != nil {
		return fmt.Errorf("looking for drop-ins of %s: %w", u.name, err)
	}
	for _, file := range append([]string{u.file}, files...) {
		data, err := o.Host.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading unit %s: %w", u.name, err)
		}
		options, err := unit.DeserializeOptions(bytes.NewReader(data))
		if err != nil {
			return fmt.Errorf("reading unit %s: %s: %w", u.name, file, err)
		}
		for _, option := range options {
			if option.Section != "Install" {
				continue
			}
			u.empty = false
			words, err := words(option.Value)
			if err != nil {
				return fmt.Errorf("reading unit %s: %s: %s=: %w", u.name, file, option.Name, err)
			}
			if len(words) == 0 || option.Name == "DefaultInstance" {
				u.install[option.Name] = nil // an empty value forgets the ones before it
			}
			u.install[option.Name] = append(u.install[option.Name], words...)
		}
	}
	return nil
}

// dropins are the files that change a unit, in the order in which they are
// read. Of files with one name the first found counts: in the directories'
// order, and for the unit before its template and, if they are asked for, its
// prefixes and its type.
func (o Offline) dropins(name string, shared bool) ([]string, error) {
	names := []string{name}
	if own := TemplateOf(name); own != "" {
		names = append(names, own)
	}
	prefix, _, ext := split(name)
	for at := strings.LastIndexByte(strings.TrimSuffix(prefix, "-"), '-'); shared && at > 0; at = strings.LastIndexByte(prefix[:at], '-') {
		names = append(names, prefix[:at+1]+ext)
	}
	found := map[string]string{}
	add := func(dir string) error {
		names, err := o.readDir(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if found[name] == "" && path.Ext(name) == ".conf" {
				found[name] = dir + "/" + name
			}
		}
		return nil
	}
	for _, dir := range searchPath {
		for _, name := range names {
			if err := add(dir + "/" + name + ".d"); err != nil {
				return nil, err
			}
		}
	}
	for _, dir := range searchPath {
		if !shared {
			break
		}
		if err := add(dir + "/" + strings.TrimPrefix(ext, ".") + ".d"); err != nil {
			return nil, err
		}
	}
	var files []string
	for _, file := range found {
		here, err := o.Host.Files.Look(file)
		if err == nil && here.Kind == disk.Link && absolute(file, here.Target) == "/dev/null" {
			continue // masked
		}
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Compare(path.Base(a), path.Base(b)) })
	return files, nil
}

// words splits a list as systemd does: by white space, with quotes.
func words(value string) ([]string, error) {
	var (
		all   []string
		word  strings.Builder
		quote rune
		open  bool
	)
	// The parser keeps the ends of lines that go on.
	for _, r := range strings.ReplaceAll(value, "\\\n", " ") {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, open = r, true
		case strings.ContainsRune(" \t\r\n", r):
			if open {
				all = append(all, word.String())
				word.Reset()
				open = false
			}
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%c is not closed", quote)
	}
	if open {
		all = append(all, word.String())
	}
	return all, nil
}

// defaultInstance is what stands for the instance of a bare template: what no
// instance can be, does not.
func (u *installed) defaultInstance() string {
	value := u.install["DefaultInstance"]
	if !Template(u.name) || len(value) == 0 || strings.ContainsFunc(value[0], foreign) {
		return ""
	}
	return value[0]
}

// instantiated is the unit's name, of a template with DefaultInstance= that instance's.
func (u *installed) instantiated() string {
	if value := u.defaultInstance(); value != "" {
		prefix, _, ext := split(u.name)
		return prefix + "@" + value + ext
	}
	return u.name
}

// expand replaces specifiers (systemd.unit(5)), of those that need a running
// machine none.
func (u *installed) expand(values []string) ([]string, error) {
	prefix, name, ext := split(u.instantiated())
	var (
		all  []string
		errs []error
	)
	for _, value := range values {
		var out strings.Builder
		var err error
		for i := 0; i < len(value); i++ {
			if value[i] != '%' || i+1 == len(value) {
				out.WriteByte(value[i])
				continue
			}
			i++
			switch value[i] {
			case 'i':
				out.WriteString(name)
			case 'j':
				out.WriteString(prefix[strings.LastIndexByte(prefix, '-')+1:])
			case 'n':
				out.WriteString(u.instantiated())
			case 'N':
				out.WriteString(strings.TrimSuffix(u.instantiated(), ext))
			case 'p':
				out.WriteString(prefix)
			case '%':
				out.WriteByte('%')
			default:
				err = fmt.Errorf("%s: %q in [Install]: only %%i %%j %%n %%N %%p %%%% can be known without the running machine", u.name, value)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, out.String())
	}
	return all, errors.Join(errs...)
}

// links are those of the unit itself.
func (u *installed) links() ([]Link, error) {
	var (
		links []Link
		errs  []error
	)
	aliases, err := u.expand(u.install["Alias"])
	errs = append(errs, err)
	for _, alias := range aliases {
		if !mayAlias(path.Ext(u.name)) {
			break // systemd ignores it, with a warning
		}
		place, err := u.aliasPath(alias)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if place != configDir+"/"+u.name {
			links = append(links, Link{Path: place, Target: u.file})
		}
	}
	for _, kind := range wantsDirs {
		wanting, err := u.expand(u.install[kind.key])
		errs = append(errs, err)
		for _, by := range wanting {
			if !UnitName(by) {
				errs = append(errs, fmt.Errorf("enabling %s: %s=%q is no unit name", u.name, kind.key, by))
				continue
			}
			if Template(u.instantiated()) && !Template(by) {
				errs = append(errs, fmt.Errorf("enabling %s: without an instance it cannot be wanted by %s", u.name, by))
				continue
			}
			links = append(links, Link{Path: configDir + "/" + by + kind.suffix + "/" + u.instantiated(), Target: u.file})
		}
	}
	also, _ := u.expand(u.install["Also"]) // each says what cannot be expanded
	for _, unit := range also {
		if !UnitName(unit) {
			errs = append(errs, fmt.Errorf("enabling %s: Also=%q is no unit name", u.name, unit))
		}
	}
	return links, errors.Join(errs...)
}

// mayAlias tells the types that can have other names.
func mayAlias(ext string) bool {
	switch ext {
	case ".service", ".socket", ".target", ".device", ".timer", ".path":
		return true
	}
	return false
}

// aliasPath is where the link of an alias lies, if the alias is one that the
// unit can have: of the same type, and as much of a template.
func (u *installed) aliasPath(alias string) (string, error) {
	wrong := fmt.Errorf("enabling %s: it cannot have the alias %q", u.name, alias)
	if dir, base, nested := strings.Cut(alias, "/"); nested {
		// An old way to write WantedBy= (systemd.unit(5)).
		by, wants := strings.CutSuffix(dir, ".wants")
		if !wants {
			by, wants = strings.CutSuffix(dir, ".requires")
		}
		if !wants || !UnitName(by) || base != u.name && base != u.instantiated() {
			return "", wrong
		}
		return configDir + "/" + alias, nil
	}
	prefix, name, ext := split(alias)
	own, ownName, ownExt := split(u.name)
	if !UnitName(alias) || own == "" || ext != ownExt {
		return "", wrong
	}
	switch {
	case Template(alias) && ownName != "":
		alias = prefix + "@" + ownName + ext
	case Template(alias) != Template(u.name) && !(name != "" && Template(u.name)):
		return "", wrong
	case name != "" && name != ownName && !Template(u.name):
		return "", wrong
	case name == "" && ownName != "":
		return "", wrong
	}
	return configDir + "/" + alias, nil
}

// Unlinks are the links that disabling a unit removes, with those of the units
// in its Also=. Of a template that is every instance's. Of a unit that is gone
// they are the links that bear its name.
func (o Offline) Unlinks(name string) ([]string, error) {
	// Names and files that links lead to; a link that goes is such a name itself.
	gone := map[string]bool{}
	err := o.each(name, func(u *installed) error {
		if u.masked {
			return nil
		}
		gone[u.name] = true
		if path.Base(u.file) == u.name || u.linked {
			gone[u.file] = true // not for an instance: the file is its siblings', too
		}
		return nil
	})
	if errors.Is(err, ErrNoUnit) {
		gone[name], err = true, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := o.symlinks(configDir)
	if err != nil {
		return nil, fmt.Errorf("looking for links to %s: %w", name, err)
	}
	var paths []string
	for again := true; again; {
		again = false
		all = slices.DeleteFunc(all, func(link Link) bool {
			base := path.Base(link.Path)
			if link.Target == "/dev/null" || !gone[base] && !gone[TemplateOf(base)] &&
				!gone[link.Target] && !gone[path.Base(link.Target)] {
				return false
			}
			paths = append(paths, link.Path)
			if !gone[base] {
				gone[base], again = true, true
			}
			return true
		})
	}
	slices.Sort(paths)
	return paths, nil
}

// symlinks are the ones in a directory of units and in its directories.
func (o Offline) symlinks(dir string) ([]Link, error) {
	names, err := o.readDir(dir)
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, name := range names {
		file := dir + "/" + name
		found, err := o.Host.Files.Look(file)
		if err != nil {
			return nil, err
		}
		switch {
		case found.Kind == disk.Link:
			links = append(links, Link{Path: file, Target: absolute(file, found.Target)})
		case found.Kind == disk.Directory && path.Dir(file) == dir && slices.Contains(searchPath, dir):
			more, err := o.symlinks(file)
			if err != nil {
				return nil, err
			}
			links = append(links, more...)
		}
	}
	return links, nil
}

// State is what systemctl --root is-enabled prints; "" for no such unit.
func (o Offline) State(name string) (string, error) {
	file, target, err := o.find(name)
	if err != nil || file == "" {
		return "", err
	}
	runtime := ""
	if strings.HasPrefix(file, runtimeDir+"/") {
		runtime = "-runtime"
	}
	if target == "/dev/null" {
		return "masked" + runtime, nil
	}
	if base := path.Base(target); target != "" && path.Base(file) == name && base != name && base != TemplateOf(name) {
		return "alias", nil
	}
	u, err := o.load(name)
	if errors.Is(err, ErrNoUnit) {
		return "", nil // a link that leads nowhere
	}
	if err != nil {
		return "", err
	}
	siblings := false
	for _, place := range []struct{ dir, state string }{
		{configDir, "enabled"}, {runtimeDir, "enabled-runtime"},
	} {
		links, err := o.symlinks(place.dir)
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(links, u.enabledBy) {
			return place.state, nil
		}
		siblings = siblings || slices.ContainsFunc(links, func(link Link) bool {
			return TemplateOf(path.Base(link.Path)) == u.name
		})
	}
	switch {
	case siblings:
		return "indirect", nil // other instances of the template are enabled
	case u.linked:
		return "linked" + runtime, nil
	case slices.ContainsFunc([]string{"WantedBy", "RequiredBy", "UpheldBy", "Alias"}, func(key string) bool {
		return len(u.install[key]) > 0
	}):
		return "disabled", nil
	case len(u.install["Also"]) > 0:
		return "indirect", nil
	}
	return "static", nil
}

// enabledBy tells whether a link enables the unit: an alias of it, or its name
// in the directory of a unit that wants it.
func (u *installed) enabledBy(link Link) bool {
	if link.Target != u.file && path.Base(link.Target) != path.Base(u.file) {
		return false
	}
	base := path.Base(link.Path)
	if slices.Contains(searchPath, path.Dir(link.Path)) {
		// Every instance's file is the template's: an alias does not say whose it is.
		return base != u.name && path.Base(u.file) == u.name
	}
	return base == u.name || base == u.instantiated()
}

// IsEnabled tells whether there is nothing to do to have the unit enabled.
func (o Offline) IsEnabled(name string) (bool, error) {
	state, err := o.State(name)
	return IsEnabled(state), err
}

// Exists tells whether the root has a file of the unit; of an instance a link
// that enables it.
func (o Offline) Exists(name string) bool {
	if own := TemplateOf(name); own != "" {
		if o.Host.Files.Exists(configDir + "/" + name) {
			return true
		}
		state, err := o.State(name)
		return err == nil && strings.HasPrefix(state, "enabled")
	}
	file, _, err := o.find(name)
	return err == nil && file != ""
}

// Instances are none: nothing is loaded where nothing runs.
func (o Offline) Instances(string) []string { return nil }

// Triggers are not known where nothing runs.
func (o Offline) Triggers(string) []string { return nil }

// OnChange is X-Reconf-OnChange= of the unit as it is on disk.
func (o Offline) OnChange(name string) string {
	u, err := o.load(name)
	if err != nil || u.masked {
		return ""
	}
	files, err := o.dropins(u.name, true)
	if err != nil {
		return ""
	}
	var fragments [][]byte
	for _, file := range append([]string{u.file}, files...) {
		if data, err := o.Host.ReadFile(file); err == nil {
			fragments = append(fragments, data)
		}
	}
	return OnChange(fragments...)
}
