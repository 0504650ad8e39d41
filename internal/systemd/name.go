package systemd

import (
	"path"
	"strings"
)

// split takes a unit name apart: web@eu.service is web, eu, .service.
func split(unit string) (prefix, instance, ext string) {
	ext = path.Ext(unit)
	prefix, instance, _ = strings.Cut(strings.TrimSuffix(unit, ext), "@")
	return prefix, instance, ext
}

func template(unit string) bool {
	return strings.HasSuffix(strings.TrimSuffix(unit, path.Ext(unit)), "@")
}

func instance(unit string) bool {
	_, name, _ := split(unit)
	return name != ""
}

// templateOf is the template of an instance, and "" of everything else.
func templateOf(unit string) string {
	prefix, name, ext := split(unit)
	if name == "" {
		return ""
	}
	return prefix + "@" + ext
}
