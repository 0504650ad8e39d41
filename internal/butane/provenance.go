package butane

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/coreos/butane/config/util"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Origin is what one layer says of a path, a unit or a drop-in.
type Origin struct {
	finding.Position
	Kind   string `json:"kind"` // file, directory, link, unit, drop-in
	Name   string `json:"name"` // path or name of the unit; unit/name of a drop-in
	Fields []Said `json:"fields"`
}

// Said is one field that a layer sets.
type Said struct {
	Name string `json:"name"` // mode, contents, enabled, …
	// Overridden is where a later layer sets it otherwise, or again; nil: this is
	// what counts.
	Overridden *finding.Position `json:"overridden,omitempty"`
}

// Explain tells which layers say something of a path or a unit, in their order,
// and what of it counts after the merge. A unit is named by its name or by the
// path of its file; its drop-ins come with it. Nothing: no layer names it.
func (c Config) Explain(subject string) []Origin {
	var origins []Origin
	for _, layer := range c.leaves() {
		for _, one := range layer.said() {
			if !one.about(subject) {
				continue
			}
			at := layer.position(one.key, nil)
			for i := range origins {
				before := &origins[i]
				if before.Name != one.Name {
					continue
				}
				for j := range before.Fields {
					f := &before.Fields[j]
					if _, again := one.fields[f.Name]; f.Overridden == nil && (before.Kind != one.Kind || again && !adds[f.Name]) {
						f.Overridden = &at
					}
				}
			}
			o := Origin{Position: at, Kind: one.Kind, Name: one.Name}
			for _, name := range slices.Sorted(maps.Keys(one.fields)) {
				o.Fields = append(o.Fields, Said{Name: name})
			}
			origins = append(origins, o)
		}
	}
	return origins
}

// leaves are the configs that c was merged from.
func (c Config) leaves() []Config {
	if c.merged == nil {
		return []Config{c}
	}
	return c.merged
}

// adds are the fields of which every layer's counts.
var adds = map[string]bool{"append": true}

// statement is what one config says of one thing.
type statement struct {
	Kind, Name string
	key        string            // of its place
	fields     map[string]string // printed, to be compared
}

// about tells whether a person who names subject means it.
func (s statement) about(subject string) bool {
	switch s.Kind {
	case "unit":
		return subject == s.Name || path.Clean(subject) == desired.UnitPath(s.Name)
	case "drop-in":
		unit, dropin, _ := strings.Cut(s.Name, "/")
		return subject == unit || subject == s.Name || path.Clean(subject) == desired.UnitPath(unit) || path.Clean(subject) == desired.DropinPath(unit, dropin)
	default:
		return path.Clean(subject) == s.Name
	}
}

// said lists everything that a config asks for.
func (c Config) said() []statement {
	var all []statement
	add := func(kind, name, key string, value any) {
		all = append(all, statement{Kind: kind, Name: name, key: key, fields: fieldsOf(value)})
	}
	for _, f := range c.Ignition.Storage.Files {
		add("file", f.Path, pathKey(f.Path), f)
	}
	for _, d := range c.Ignition.Storage.Directories {
		add("directory", d.Path, pathKey(d.Path), d)
	}
	for _, l := range c.Ignition.Storage.Links {
		add("link", l.Path, pathKey(l.Path), l)
	}
	for _, u := range c.Ignition.Systemd.Units {
		dropins := u.Dropins
		u.Dropins = nil
		if u.Contents != nil || u.Enabled != nil || u.Mask != nil {
			add("unit", u.Name, unitKey(u.Name), u)
		}
		for _, d := range dropins {
			add("drop-in", u.Name+"/"+d.Name, dropinKey(u.Name, d.Name), d)
		}
	}
	return all
}

// fieldsOf are the fields of a resource that are set, besides what names it.
func fieldsOf(value any) map[string]string {
	data, err := json.Marshal(value)
	var all map[string]any
	if err != nil || json.Unmarshal(data, &all) != nil {
		return nil // Ignition's types are structs: neither can happen
	}
	fields := map[string]string{}
	for name, set := range all {
		if name != "path" && name != "name" && !unset(set) {
			fields[util.Snake(name)] = fmt.Sprint(set)
		}
	}
	return fields
}

// unset tells whether a value of Ignition's JSON says nothing: it writes structs
// without a field in them.
func unset(value any) bool {
	table, ok := value.(map[string]any)
	for _, inside := range table {
		ok = ok && unset(inside)
	}
	return ok
}

// Group is a group's layers after Butane, in their order.
type Group struct {
	Name  string
	Files []Config
}

// Overlaps warns of everything that two groups set differently: which of them
// wins is decided by their order alone, and that is easily overlooked.
func Overlaps(groups []Group) finding.List {
	type earlier struct {
		group string
		statement
		at finding.Position
	}
	var list finding.List
	before := map[string][]earlier{}
	for _, g := range groups {
		for _, c := range g.Files {
			for _, s := range c.said() {
				at := c.position(s.key, nil)
				for _, e := range slices.Backward(before[s.Name]) {
					if e.group == g.Name {
						continue
					}
					if what := differ(e.statement, s); what != "" {
						list = append(list, c.Excerpts(finding.List{{
							Severity: finding.Warning, Position: at,
							Message: fmt.Sprintf("%s of %s: group %s sets it otherwise than group %s at %s, and wins because it comes later", what, s.Name, g.Name, e.group, e.at),
							Hint:    "say it in one of them, or in the host's own layer",
						}})...)
						break
					}
				}
				before[s.Name] = append(before[s.Name], earlier{g.Name, s, at})
			}
		}
	}
	return list
}

// differ names what two statements about one thing set differently.
func differ(a, b statement) string {
	if a.Kind != b.Kind {
		return "the kind"
	}
	var fields []string
	for _, name := range slices.Sorted(maps.Keys(b.fields)) {
		if was, ok := a.fields[name]; ok && was != b.fields[name] && !adds[name] {
			fields = append(fields, name)
		}
	}
	return strings.Join(fields, " and ")
}
