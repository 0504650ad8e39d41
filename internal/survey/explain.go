package survey

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// NothingError says that no layer of a host says anything of a path or a unit.
type NothingError struct {
	Host, Subject string
	Similar       []string
}

func (e *NothingError) Error() string {
	return fmt.Sprintf("no layer of %s says anything of %s", e.Host, e.Subject)
}

// Hint names what may have been meant.
func (e *NothingError) Hint() string {
	if len(e.Similar) == 0 {
		return "reconf-pull translate --to plan lists everything that is managed"
	}
	return "similar ones that are managed: " + strings.Join(e.Similar, ", ")
}

// Similar are up to three managed paths or units whose names come near to subject.
func Similar(subject string, want desired.State) []string {
	var all []string
	for _, f := range want.Files {
		all = append(all, f.Path)
	}
	for _, d := range want.Directories {
		all = append(all, d.Path)
	}
	for _, l := range want.Links {
		all = append(all, l.Path)
	}
	for _, u := range want.Units {
		all = append(all, u.Name)
	}
	slices.Sort(all)
	far := func(name string) int {
		if path.Base(name) == path.Base(subject) {
			return 0
		}
		return min(tomlfile.Distance(name, subject), tomlfile.Distance(path.Base(name), path.Base(subject)))
	}
	all = slices.DeleteFunc(slices.Compact(all), func(name string) bool { return far(name) > max(1, len(path.Base(subject))/3) })
	slices.SortStableFunc(all, func(a, b string) int { return cmp.Compare(far(a), far(b)) })
	return all[:min(len(all), 3)]
}

// Differ names the inputs in which two configs of one host differ, each once.
func Differ(old, new *fleet.HostConfig) []string {
	var names []string
	for _, in := range compare(old.Inputs, new.Inputs) {
		name := in.Name
		if in.Kind != "layer" && in.Kind != "reference" && in.Kind != "hook" {
			name = in.Kind + " " + in.Name
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
