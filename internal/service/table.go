package service

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// unitDirs are where systemd reads units from, for the whole system.
var unitDirs = []string{
	"/etc/systemd/system/", "/run/systemd/system/", "/usr/local/lib/systemd/system/",
	"/usr/lib/systemd/system/", "/lib/systemd/system/",
}

// quadletDirs are where podman's generator reads quadlets from, for the whole
// system; users/ below them is for the users' own managers (podman-systemd.unit(5)).
var quadletDirs = []string{"/etc/containers/systemd/", "/run/containers/systemd/", "/usr/share/containers/systemd/"}

// quadlets are the types of quadlets and what their unit's name ends in.
var quadlets = map[string]string{
	".container": ".service",
	".kube":      ".service",
	".volume":    "-volume.service",
	".network":   "-network.service",
	".pod":       "-pod.service",
	".image":     "-image.service",
	".build":     "-build.service",
	".artifact":  "-artifact.service",
}

// match is one path's row.
type match struct {
	units []string // templates stand for their instances
	early []string
	argv  []string
	files bool   // argv wants to see the changed files
	order string // where argv goes among the others
}

type matcher struct {
	host Host
	made map[string]bool // units that the changed paths themselves define
}

func (m matcher) match(p string, watches []compiledWatch) (match, error) {
	for _, w := range watches {
		values, ok := w.match(p)
		if !ok {
			continue
		}
		if w.Unit != "" {
			unit := expand(w.Unit, values)
			if !systemd.UnitName(unit) {
				return match{}, fmt.Errorf("service.watch %q: %s makes %q, which is no unit name", w.Path, p, unit)
			}
			return match{units: []string{unit}}, nil
		}
		var argv []string
		for _, word := range w.Run {
			argv = append(argv, expand(word, values))
		}
		return match{argv: argv, order: "~"}, nil
	}
	if units := m.defined(p); len(units) > 0 {
		return match{units: units}, nil
	}
	if name, ok := below(p, "/etc/containers/systemd/"); ok && !strings.Contains(name, "/") && !aggregate(name) {
		// web.yaml, web.env: files that belong to a quadlet.
		stem, _, _ := strings.Cut(name, ".")
		return m.known(stem + ".service"), nil
	}
	for _, kind := range []string{"local", "containers", "compose"} {
		name, ok := below(p, "/etc/"+kind+"/environment/")
		if ok && !strings.Contains(name, "/") && strings.HasSuffix(name, ".env") {
			return m.environment(kind, strings.TrimSuffix(name, ".env")), nil
		}
	}
	if name, ok := buildContext(p, "/etc/containers/build/"); ok {
		hit := m.known(name + ".service")
		hit.early = m.builder("container-build@", name)
		return hit, nil
	}
	if name, ok := buildContext(p, "/etc/compose/build/"); ok {
		hit := m.known("compose@" + name + ".service")
		if len(hit.units) == 0 {
			hit = m.known(name + ".service")
		}
		hit.early = m.builder("compose-build@", name)
		return hit, nil
	}
	for i, command := range commands {
		for _, dir := range configDirs {
			name, ok := below(p, dir+command.dir+"/")
			if ok && !strings.Contains(name, "/") && path.Ext(name) == command.ext {
				return match{argv: command.program, files: command.files, order: string(rune('a' + i))}, nil
			}
		}
	}
	return match{}, nil
}

// defined are the units that a path defines: a unit file, a quadlet, or a
// drop-in of one of them.
func (m matcher) defined(p string) []string {
	for _, dir := range unitDirs {
		name, ok := below(p, dir)
		if !ok {
			continue
		}
		if unit := ofFileOrDropin(name); systemd.UnitName(unit) {
			return []string{unit}
		}
		return nil
	}
	for _, dir := range quadletDirs {
		name, ok := below(p, dir)
		if !ok || strings.HasPrefix(name, "users/") {
			continue
		}
		if parent := path.Dir(name); path.Ext(parent) == ".d" {
			name = path.Base(parent) + "/" + path.Base(name)
		} else {
			name = path.Base(name)
		}
		file := ofFileOrDropin(name)
		ext := path.Ext(file)
		suffix, quadlet := quadlets[ext]
		if stem := strings.TrimSuffix(file, ext); quadlet && systemd.UnitName(stem+suffix) {
			return []string{stem + suffix}
		}
		return nil
	}
	return nil
}

// Defined is the unit that a file defines by itself, as a unit file or as a
// quadlet: "" for all other paths, drop-ins among them.
func Defined(p string) string {
	if path.Ext(path.Dir(p)) == ".d" {
		return ""
	}
	if units := (matcher{}).defined(p); len(units) > 0 {
		return units[0]
	}
	return ""
}

// ofFileOrDropin returns U for U and U.d/x.conf, and "" for everything else: also
// for the drop-ins of a type (service.d) and of a prefix (foo-.service.d), that
// belong to many units and restart none by themselves.
func ofFileOrDropin(name string) string {
	dir, file, nested := strings.Cut(name, "/")
	if !nested {
		return name
	}
	unit, dropin := strings.CutSuffix(dir, ".d")
	if !dropin || strings.Contains(file, "/") || path.Ext(file) != ".conf" {
		return ""
	}
	stem, _, _ := strings.Cut(strings.TrimSuffix(unit, path.Ext(unit)), "@")
	if stem == "" || strings.HasSuffix(stem, "-") {
		return ""
	}
	return unit
}

// systemdReads tells whether a daemon-reload is needed for systemd, or for one
// of its generators, to see the path.
func systemdReads(p string) bool {
	for _, dir := range unitDirs {
		name, ok := below(p, dir)
		if !ok {
			continue
		}
		parent, file, nested := strings.Cut(name, "/")
		if !nested {
			return systemd.UnitName(name) || aggregate(name)
		}
		if strings.Contains(file, "/") {
			return false
		}
		return aggregate(parent) && (systemd.UnitName(file) || path.Ext(file) == ".conf")
	}
	for _, dir := range quadletDirs {
		name, ok := below(p, dir)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "users/") {
			return false
		}
		ext := path.Ext(name)
		_, quadlet := quadlets[ext]
		return quadlet || ext == ".d" || ext == ".conf" && path.Ext(path.Dir(name)) == ".d"
	}
	for _, dir := range []string{"/etc/systemd/", "/run/systemd/", "/usr/local/lib/systemd/", "/usr/lib/systemd/"} {
		name, ok := below(p, dir)
		if !ok {
			continue
		}
		return name == "system.conf" ||
			strings.HasPrefix(name, "system.conf.d/") && path.Ext(name) == ".conf" ||
			strings.HasPrefix(name, "system-generators/") ||
			strings.HasPrefix(name, "system-environment-generators/")
	}
	return p == "/etc/fstab" || p == "/etc/crypttab" // systemd-fstab-generator(8), systemd-cryptsetup-generator(8)
}

// aggregate tells the directories beside a unit that systemd reads: drop-ins,
// and the links that enable other units.
func aggregate(dir string) bool {
	switch path.Ext(dir) {
	case ".d", ".wants", ".requires", ".upholds":
		return true
	}
	return false
}

// environment finds whom an environment file belongs to: the longest of N and
// its prefixes at a dot or a dash that is a unit.
func (m matcher) environment(kind, name string) match {
	candidates := []string{name}
	for i, r := range name {
		if r == '.' || r == '-' {
			candidates = append(candidates, name[:i])
		}
	}
	slices.SortStableFunc(candidates, byLength)
	for _, candidate := range candidates {
		units := []string{candidate + ".service"}
		if kind == "compose" {
			units = append(units, "compose@"+candidate+".service")
		}
		if hit := m.known(units...); len(hit.units) > 0 {
			return hit
		}
	}
	return match{}
}

// known keeps the units that exist, or that this change makes.
func (m matcher) known(units ...string) match {
	var hit match
	for _, unit := range units {
		if systemd.UnitName(unit) && (m.made[unit] || m.host.Exists(unit)) {
			hit.units = append(hit.units, unit)
		}
	}
	return hit
}

// builder is the unit that builds a container image before its service starts:
// an instance that nothing has loaded between two builds.
func (m matcher) builder(template, name string) []string {
	unit := template + name + ".service"
	if !systemd.UnitName(unit) {
		return nil
	}
	for _, candidate := range []string{unit, template + ".service"} {
		if m.made[candidate] || m.host.Exists(candidate) {
			return []string{unit}
		}
	}
	return nil
}

// buildContext is the first directory below dir, for a path inside it.
func buildContext(p, dir string) (string, bool) {
	rest, ok := below(p, dir)
	if !ok {
		return "", false
	}
	name, _, inside := strings.Cut(rest, "/")
	return name, inside
}

// below is the rest of a path inside a directory.
func below(p, dir string) (string, bool) {
	rest, ok := strings.CutPrefix(p, dir)
	return rest, ok && rest != ""
}
