package main_test

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// effects are what a run does to files, and the durable calls that each may come to.
var effects = map[string][]string{
	"making": {"openat", "openat2"}, "directory": {"mkdirat"}, "link": {"symlinkat"}, "hard link": {"linkat"},
	"renaming": {"renameat", "renameat2"}, "removal": {"unlinkat"},
	"owner": {"fchownat", "fchown", "lchown", "chown"}, "mode": {"fchmodat", "fchmodat2", "fchmod", "chmod"},
	"fsync": {"fsync", "fdatasync"}, "syncfs": {"syncfs"},
}

// A point is where a run is cut off: before this was done to the file of this name
// on the host.
type point struct{ does, name string }

// beside is the name under which a file is made before it takes its place.
var beside = regexp.MustCompile(`^\.(.+)\.reconf(-[0-9a-f-]+)?$`)

func pointOf(c call, dir string) point {
	name := strings.TrimPrefix(c.of(), dir+"/")
	if staged := beside.FindStringSubmatch(filepath.Base(name)); staged != nil {
		name = filepath.Join(filepath.Dir(name), staged[1])
	}
	for does, calls := range effects {
		if slices.Contains(calls, c.name) {
			return point{does, name}
		}
	}
	return point{c.name, name}
}

// missed are the points that are not there, though the file has changed in this
// way. It does not matter which of the calls that can do so did: a program that
// names its files in another way has the same points.
func missed(before, after map[string]string, points map[point]bool) (all []point) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, does := range done(name, before[name], after[name]) {
			if p := (point{does, name}); !points[p] {
				all = append(all, p)
			}
		}
	}
	return all
}

// done is what must have been done to a file that was like this and is like that,
// as a scan describes it.
func done(name, was, is string) (all []string) {
	if was == is {
		return nil
	}
	if is == "" {
		return []string{"removal"}
	}
	const directory = "4"
	wasAll, isAll := strings.SplitN(was, " ", 3), strings.SplitN(is, " ", 3)
	switch { // the fields are the mode, the owner and what it holds
	case !strings.HasPrefix(is, directory):
		if len(wasAll) < 3 || wasAll[2] != isAll[2] {
			all = append(all, "renaming")
		}
	case !strings.HasPrefix(was, directory):
		all = append(all, "directory")
	}
	if strings.Contains(name, ".wants") || strings.Contains(is, " is ") {
		return all // a link as systemd makes it, or another name of a file
	}
	all = append(all, "owner")
	if !strings.Contains(is, " -> ") {
		all = append(all, "mode")
	}
	return all
}

// isFirm tells that a call does more than make a file of the agent's own and give it
// an owner and a mode: such a file counts for nothing before it has its name.
func isFirm(c call, dir string) bool {
	switch c.name {
	case "openat", "openat2", "fchmod", "fchown":
		return strings.HasPrefix(c.of(), filepath.Join(dir, "root")+"/")
	}
	return true
}
