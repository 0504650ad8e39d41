package survey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// Kind says what happens to a host between two trees of the fleet repo.
type Kind string

// The kinds of effects.
const (
	Changed Kind = "changed" // another digest
	Added   Kind = "new"
	Removed Kind = "removed" // its machine keeps what it has
	Renamed Kind = "renamed" // one is gone, and another one has its files
	Broken  Kind = "broken"  // the newer host config cannot be read
)

// Effect is what happens to one host.
type Effect struct {
	Host   string        `json:"host"`
	Kind   Kind          `json:"kind"`
	Was    string        `json:"was,omitempty"` // the earlier name of a renamed host
	Inputs []InputChange `json:"inputs"`        // of a changed or renamed host
	// Findings say why a host config cannot be read.
	Findings finding.List `json:"findings,omitempty"`
}

// InputChange is one input of a digest that differs.
type InputChange struct {
	Kind  string `json:"kind"` // as reconf-pull hash calls it
	Field string `json:"field,omitempty"`
	Name  string `json:"name,omitempty"`
	Old   string `json:"old,omitempty"` // mode and id, or value; empty: there was none
	New   string `json:"new,omitempty"`
}

// Affection is who is affected.
type Affection struct {
	Hosts    int      // that there are now
	Affected []Effect // by name
}

// Affected finds every host whose digest differs between two trees. Hosts that
// the differing paths cannot concern are not read.
func Affected(ctx context.Context, old, new source.Tree) (*Affection, error) {
	before, err := fleet.Open(old)
	if err != nil {
		return nil, fmt.Errorf("the older fleet repo: %w", err)
	}
	after, err := fleet.Open(new)
	if err != nil {
		return nil, err
	}
	was, err := before.Hosts()
	if err != nil {
		return nil, err
	}
	is, err := after.Hosts()
	if err != nil {
		return nil, err
	}
	changes, err := fleet.Compare(before, after)
	if err != nil {
		return nil, err
	}
	var (
		mu       sync.Mutex
		result   = &Affection{Hosts: len(is)}
		newcomer = map[string]*fleet.HostConfig{}
	)
	err = each(ctx, is, func(host string) error {
		e, hc, err := effect(before, after, changes, host, contains(was, host))
		if e == nil || err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if e.Kind == Added {
			newcomer[host] = hc
		}
		result.Affected = append(result.Affected, *e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(result.Affected, func(a, b Effect) int { return cmp.Compare(a.Host, b.Host) })
	for _, host := range was {
		if contains(is, host) {
			continue
		}
		gone, err := read(before, host)
		if err != nil {
			return nil, err
		}
		if !result.renamed(host, gone, newcomer) {
			result.Affected = append(result.Affected, Effect{Host: host, Kind: Removed, Inputs: []InputChange{}})
		}
	}
	slices.SortFunc(result.Affected, func(a, b Effect) int { return cmp.Compare(a.Host, b.Host) })
	return result, nil
}

// read reads a host config; nil: it cannot be read.
func read(repo *fleet.Repo, host string) (*fleet.HostConfig, error) {
	hc, err := repo.Host(fleet.Machine{Names: []string{host}})
	var bad *finding.Failure
	if errors.As(err, &bad) {
		return nil, nil
	}
	return hc, err
}

// effect compares one host that there is now; nil: it is the same.
func effect(before, after *fleet.Repo, changes *fleet.Changes, host string, known bool) (*Effect, *fleet.HostConfig, error) {
	if known {
		if touched, err := changes.Touches(host); !touched || err != nil {
			return nil, nil, err
		}
	}
	hc, err := after.Host(fleet.Machine{Names: []string{host}})
	var bad *finding.Failure
	if errors.As(err, &bad) {
		return &Effect{Host: host, Kind: Broken, Inputs: []InputChange{}, Findings: bad.Findings}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !known {
		return &Effect{Host: host, Kind: Added, Inputs: []InputChange{}}, hc, nil
	}
	was, err := read(before, host)
	switch {
	case err != nil:
		return nil, nil, err
	case was == nil:
		return &Effect{Host: host, Kind: Changed, Inputs: []InputChange{}}, nil, nil
	case was.Digest == hc.Digest:
		return nil, nil, nil
	}
	return &Effect{Host: host, Kind: Changed, Inputs: compare(was.Inputs, hc.Inputs)}, nil, nil
}

// renamed finds a new host that has the files of one that is gone.
func (a *Affection) renamed(host string, gone *fleet.HostConfig, newcomer map[string]*fleet.HostConfig) bool {
	if gone == nil || own(gone) == "" {
		return false
	}
	var best *Effect
	for i := range a.Affected {
		e := &a.Affected[i]
		hc := newcomer[e.Host]
		if e.Kind == Added && hc != nil && own(hc) == own(gone) &&
			(best == nil || tomlfile.Distance(host, e.Host) < tomlfile.Distance(host, best.Host)) {
			best = e
		}
	}
	if best == nil {
		return false
	}
	best.Kind, best.Was, best.Inputs = Renamed, host, compare(gone.Inputs, newcomer[best.Host].Inputs)
	return true
}

// own names the contents of a host's own documents.
func own(hc *fleet.HostConfig) string {
	var ids []string
	for _, layer := range hc.Layers {
		for _, d := range layer.Documents {
			if layer.Group == "" {
				ids = append(ids, fmt.Sprintf("%o %s", d.Entry.Mode, d.Entry.ID))
			}
		}
	}
	return strings.Join(ids, "\n")
}

// compare lists the inputs that differ, in the order in which a digest has them.
func compare(old, new []fleet.Input) []InputChange {
	type key struct{ kind, field, name string }
	of := func(in fleet.Input) (key, string) {
		if in.Mode != 0 {
			return key{in.Kind, in.Field, in.Name}, fmt.Sprintf("%06o %s", uint32(in.Mode), in.ID)
		}
		return key{in.Kind, in.Field, in.Name}, cmp.Or(in.ID, "-")
	}
	index := func(list []fleet.Input) map[key]string {
		all := map[key]string{}
		for _, in := range list {
			k, v := of(in)
			all[k] = v
		}
		return all
	}
	before, after := index(old), index(new)
	changes := []InputChange{}
	for _, in := range new {
		k, v := of(in)
		if before[k] != v {
			changes = append(changes, InputChange{in.Kind, in.Field, in.Name, before[k], v})
		}
	}
	for _, in := range old {
		k, v := of(in)
		if _, still := after[k]; !still {
			changes = append(changes, InputChange{in.Kind, in.Field, in.Name, v, ""})
		}
	}
	if len(changes) == 0 && !slices.Equal(old, new) {
		changes = append(changes, InputChange{Kind: "order", Name: "of the layers"})
	}
	return changes
}

func contains(sorted []string, host string) bool {
	_, found := slices.BinarySearch(sorted, host)
	return found
}
