package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// Config is fleet.toml, with the defaults for what it does not say.
type Config struct {
	Schema   int                   `toml:"schema"`
	HostsDir string                `toml:"hosts_dir"`
	FilesDir string                `toml:"files_dir"` // what Butane's local paths are relative to
	Vars     map[string]any        `toml:"vars"`
	Groups   map[string]*Group     `toml:"group"`
	Hosts    map[string]*HostTable `toml:"host"`
	Service  Service               `toml:"service"`
}

// Service says what belongs to which unit, on every host.
type Service struct {
	Watch []service.Watch `toml:"watch"`
}

// Group is one [group.X]: what the hosts whose names match have in common.
type Group struct {
	Hosts  []string       `toml:"hosts"`  // globs, or regular expressions between slashes
	Layers []string       `toml:"layers"` // files or folders of the repo, in this order
	Vars   map[string]any `toml:"vars"`

	matches []matcher // of Hosts, in their order
}

// HostTable is one [host.N].
type HostTable struct {
	Vars      map[string]any `toml:"vars"`
	Retired   Retirement     `toml:"retired"`
	MachineID string         `toml:"machine_id"`
}

// Retirement says that a host is no longer kept as its config says.
type Retirement string

const (
	// Retired: nothing is changed on the host any more.
	Retired Retirement = "true"
	// RetiredRemove: everything managed is removed from the host, and then nothing
	// is changed any more.
	RetiredRemove Retirement = "remove"
)

// UnmarshalTOML reads true, false or "remove".
func (r *Retirement) UnmarshalTOML(value any) error {
	switch value {
	case false:
		*r = ""
	case true:
		*r = Retired
	case string(RetiredRemove):
		*r = RetiredRemove
	default:
		return errors.New(`retired is true, false or "remove"`)
	}
	return nil
}

// matcher tells whether a group has the host of this name, in lower case.
type matcher func(host string) bool

// newMatcher reads a glob, or a regular expression between slashes. Like all
// names of hosts they do not care about case.
func newMatcher(pattern string) (matcher, error) {
	if expr, ok := strings.CutPrefix(pattern, "/"); ok {
		expr, ok = strings.CutSuffix(expr, "/")
		if !ok || expr == "" {
			return nil, errors.New("a regular expression stands between two slashes: /^web[0-9]+$/")
		}
		re, err := regexp.Compile("(?i:" + expr + ")")
		if err != nil {
			// The library's error names its expression, in which ours is wrapped.
			if _, own := regexp.Compile(expr); own != nil {
				err = own
			}
			return nil, err
		}
		return re.MatchString, nil
	}
	glob := strings.ToLower(pattern)
	if _, err := path.Match(glob, ""); err != nil || pattern == "" {
		return nil, errors.New("it is no glob: * is any text, ? any one character, [a-f] one of several")
	}
	return func(host string) bool {
		ok, _ := path.Match(glob, host) // a glob that cannot be read was refused above
		return ok
	}, nil
}

// has tells whether the group has the host.
func (g *Group) has(host string) bool {
	host = strings.ToLower(host)
	return slices.ContainsFunc(g.matches, func(m matcher) bool { return m(host) })
}

// decode reads fleet.toml over the defaults.
func (r *Repo) decode() error {
	c := &r.Config
	if err := tomlfile.Decode(ConfigFile, r.toml, c); err != nil {
		// A newer schema is said instead: what it adds only looks like typos.
		var only struct {
			Schema int `toml:"schema"`
		}
		if tomlfile.DecodeSome(r.toml, &only) == nil && only.Schema > Schema {
			c.Schema = only.Schema
		} else {
			return err
		}
	}
	switch {
	case c.Schema > Schema:
		return refuse(r.at("schema"), "update reconf-pull on this host", "schema %d is newer than this release knows (%d)", c.Schema, Schema)
	case c.Schema < 1:
		return refuse(r.at("schema"), "write schema = 1", "schema %d does not exist", c.Schema)
	}
	r.order = tomlfile.Order(r.toml, "group")
	var wrong finding.List
	for _, dir := range []struct {
		key   string
		value *string
	}{{"hosts_dir", &c.HostsDir}, {"files_dir", &c.FilesDir}} {
		if clean, ok := cleanPath(*dir.value); ok {
			*dir.value = clean
		} else {
			wrong = append(wrong, r.wrong("paths are relative to the root of the fleet repo, and stay in it",
				[]string{dir.key}, "%s: %q cannot be used", dir.key, *dir.value))
		}
	}
	wrong = append(wrong, r.wrongVars(c.Vars, "vars")...)
	for _, name := range r.order {
		wrong = append(wrong, r.group(name, c.Groups[name])...)
	}
	for _, w := range c.Service.Watch {
		if err := w.Validate(); err != nil {
			wrong = append(wrong, r.wrong("", []string{"service", "watch"}, "service.watch: %v", err))
		}
	}
	return append(wrong, r.hostTables()...).Err()
}

// cleanPath is a path below the root of the repo without what means nothing.
func cleanPath(p string) (string, bool) {
	clean := path.Clean(p)
	return clean, p != "" && fs.ValidPath(clean) && !strings.ContainsRune(clean, 0)
}

// at is where fleet.toml says key.
func (r *Repo) at(key ...string) finding.Position { return tomlfile.Find(ConfigFile, r.toml, key...) }

// wrong is a finding at a key of fleet.toml.
func (r *Repo) wrong(hint string, key []string, format string, args ...any) finding.Finding {
	return finding.Finding{Severity: finding.Error, Position: r.at(key...), Message: fmt.Sprintf(format, args...), Hint: hint}
}

func (r *Repo) group(name string, g *Group) finding.List {
	wrong := r.wrongVars(g.Vars, "group", name, "vars")
	for _, pattern := range g.Hosts {
		m, err := newMatcher(pattern)
		if err != nil {
			wrong = append(wrong, r.wrong("", []string{"group", name, "hosts"}, "group.%s.hosts: %q cannot be used: %v", name, pattern, err))
			continue
		}
		g.matches = append(g.matches, m)
	}
	for i, layer := range g.Layers {
		clean, ok := cleanPath(layer)
		if !ok || clean == "." {
			wrong = append(wrong, r.wrong("name a .bu file or a folder of them, relative to the root of the fleet repo",
				[]string{"group", name, "layers"}, "group.%s.layers: %q cannot be used", name, layer))
			continue
		}
		g.Layers[i] = clean
	}
	return wrong
}

// hostTables checks all [host.N] and makes them known by their names in lower case.
func (r *Repo) hostTables() finding.List {
	var wrong finding.List
	r.hosts = make(map[string]string, len(r.Config.Hosts))
	for _, name := range slices.Sorted(maps.Keys(r.Config.Hosts)) {
		key := []string{"host", name}
		var bad *finding.Failure
		if errors.As(CheckName(name), &bad) {
			wrong = append(wrong, r.wrong("write the name of a host", key, "%s", bad.Findings[0].Message))
		}
		lower := strings.ToLower(name)
		if twin, ok := r.hosts[lower]; ok {
			wrong = append(wrong, r.wrong("keep one of them: names of hosts do not differ by case alone", key,
				"[host.%s] and [host.%s] are the same host", twin, name))
		}
		r.hosts[lower] = name
		wrong = append(wrong, r.wrongVars(r.Config.Hosts[name].Vars, "host", name, "vars")...)
	}
	return wrong
}

// table is the [host.N] of a host, an empty one when there is none.
func (r *Repo) table(host string) (string, *HostTable) {
	if name, ok := r.hosts[strings.ToLower(host)]; ok {
		return name, r.Config.Hosts[name]
	}
	return "", &HostTable{}
}

// groups are the names of the groups that have the host, in the order of fleet.toml.
func (r *Repo) groups(host string) []string {
	var names []string
	for _, name := range r.order {
		if r.Config.Groups[name].has(host) {
			names = append(names, name)
		}
	}
	return names
}

// identifier is what text/template takes after .Vars.
var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// wrongVars are the vars below key that no template could use.
func (r *Repo) wrongVars(vars map[string]any, key ...string) finding.List {
	var wrong finding.List
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		at := append(slices.Clone(key), name)
		if !identifier.MatchString(name) {
			wrong = append(wrong, r.wrong("use letters, digits and _, so that a template can say .Vars.name", at,
				"%q cannot be the name of a var", name))
		}
		if what := unusable(vars[name]); what != "" {
			wrong = append(wrong, r.wrong("write it as a string", at, "%s is %s, which a template cannot use", strings.Join(at, "."), what))
		}
	}
	return wrong
}

// unusable names what a value is or has in it that prints differently than it
// was written.
func unusable(value any) string {
	switch v := value.(type) {
	case string, bool, int64:
		return ""
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "no finite number"
		}
		return ""
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if what := unusable(v[name]); what != "" {
				return what
			}
		}
		return ""
	case []any:
		for _, one := range v {
			if what := unusable(one); what != "" {
				return what
			}
		}
		return ""
	case []map[string]any:
		for _, one := range v {
			if what := unusable(one); what != "" {
				return what
			}
		}
		return ""
	default:
		return "a date or a time"
	}
}

// vars merges the vars of a host: those of the top, of its groups in their
// order, and its own. A later value replaces an earlier one; tables are merged.
func (r *Repo) vars(groups []string, table string) (map[string]any, finding.List) {
	merged := map[string]any{}
	wrong := r.mergeVars(merged, r.Config.Vars, "vars")
	for _, name := range groups {
		wrong = append(wrong, r.mergeVars(merged, r.Config.Groups[name].Vars, "group", name, "vars")...)
	}
	if table != "" {
		wrong = append(wrong, r.mergeVars(merged, r.Config.Hosts[table].Vars, "host", table, "vars")...)
	}
	return merged, wrong
}

func (r *Repo) mergeVars(into, from map[string]any, key ...string) finding.List {
	var wrong finding.List
	for _, name := range slices.Sorted(maps.Keys(from)) {
		at := append(slices.Clone(key), name)
		table, isTable := from[name].(map[string]any)
		before, had := into[name]
		earlier, wasTable := before.(map[string]any)
		switch {
		case had && isTable != wasTable:
			what, was := "a table", "is none"
			if !isTable {
				what, was = "no table", "is one"
			}
			wrong = append(wrong, r.wrong("give it the same type everywhere", at, "%s is %s, and %s where it was set before", strings.Join(at, "."), what, was))
		case had && isTable:
			copied := maps.Clone(earlier)
			wrong = append(wrong, r.mergeVars(copied, table, at...)...)
			into[name] = copied
		default:
			into[name] = from[name]
		}
	}
	return wrong
}
