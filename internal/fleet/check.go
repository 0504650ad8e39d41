package fleet

import (
	"maps"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Check finds what is wrong with fleet.toml as a whole, whichever host asks:
// patterns that match nobody, layers that are missing, tables of hosts that do
// not exist. A host itself meets only what concerns it. hosts are all of them.
func (r *Repo) Check(hosts []string) (finding.List, error) {
	var list finding.List
	for _, name := range r.order {
		g := r.Config.Groups[name]
		for i, pattern := range g.Hosts {
			if !slices.ContainsFunc(hosts, func(host string) bool { return (&Group{matches: g.matches[i : i+1]}).has(host) }) {
				f := r.wrong("mend the pattern, or take it out", []string{"group", name, "hosts"}, "group.%s.hosts: %q matches no host", name, pattern)
				f.Severity = finding.Warning
				list = append(list, f)
			}
		}
		for _, layer := range g.Layers {
			_, f, err := r.groupLayer(name, layer)
			if err != nil {
				return nil, err
			}
			if f != nil {
				list = append(list, *f)
			}
		}
	}
	exist := map[string]bool{}
	for _, host := range hosts {
		exist[strings.ToLower(host)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(r.Config.Hosts)) {
		if !exist[strings.ToLower(name)] {
			list = append(list, r.wrong(`add a .bu file for it, or take the table out; retired = "remove" cleans a host up`,
				[]string{"host", name}, "[host.%s]: there is no such host in the fleet repo", name))
		}
	}
	return list, nil
}
