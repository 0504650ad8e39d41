package systemd

import (
	"path"
	"slices"
	"strings"
)

// types are the suffixes of unit names (systemd.unit(5)).
var types = []string{
	".service", ".socket", ".timer", ".path", ".mount", ".automount", ".swap",
	".target", ".slice", ".scope", ".device",
}

// UnitName tells whether systemd takes name for that of a unit (systemd.unit(5),
// Description): such a name leads out of no directory.
func UnitName(name string) bool {
	const most = 255
	prefix, _, ext := split(name)
	return prefix != "" && len(name) <= most && slices.Contains(types, ext) && !strings.ContainsFunc(name, foreign)
}

// foreign tells the runes that stand in no unit name.
func foreign(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune(`:-_.\@`, r)
}

// split takes a unit name apart: web@eu.service is web, eu, .service.
func split(unit string) (prefix, instance, ext string) {
	ext = path.Ext(unit)
	prefix, instance, _ = strings.Cut(strings.TrimSuffix(unit, ext), "@")
	return prefix, instance, ext
}

// Template tells whether a unit name is a template: web@.service.
func Template(unit string) bool {
	return strings.HasSuffix(strings.TrimSuffix(unit, path.Ext(unit)), "@")
}

func instance(unit string) bool {
	_, name, _ := split(unit)
	return name != ""
}

// TemplateOf is the template of an instance, "" for every other unit.
func TemplateOf(unit string) string {
	prefix, name, ext := split(unit)
	if name == "" {
		return ""
	}
	return prefix + "@" + ext
}
