package survey

import (
	"context"
	"errors"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
)

// Host is one host of a fleet repo.
type Host struct {
	Name       string           `json:"name"`
	Digest     fleet.Digest     `json:"digest,omitempty"` // empty: the host config cannot be read
	Groups     []string         `json:"groups"`
	Layers     []string         `json:"layers"` // paths in the repo, the host's own last
	References int              `json:"references"`
	Retired    fleet.Retirement `json:"retired,omitempty"`
	Findings   finding.List     `json:"findings,omitempty"` // why it cannot be read
}

// Hosts reads the named hosts, in their order. Nothing is translated.
func Hosts(ctx context.Context, repo *fleet.Repo, names []string) ([]Host, error) {
	hosts := make([]Host, len(names))
	at := make(map[string]int, len(names))
	for i, name := range names {
		at[name] = i
	}
	var mu sync.Mutex
	err := each(ctx, names, func(name string) error {
		host := Host{Name: name, Groups: []string{}, Layers: []string{}}
		hc, err := repo.Host(fleet.Machine{Names: []string{name}})
		var bad *finding.Failure
		switch {
		case errors.As(err, &bad):
			host.Findings = bad.Findings
		case err != nil:
			return err
		default:
			host.Digest, host.References, host.Retired = hc.Digest, len(hc.References), hc.Retired
			host.Groups = append(host.Groups, hc.Groups...)
			for _, layer := range hc.Layers {
				host.Layers = append(host.Layers, layer.Path)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		hosts[at[name]] = host
		return nil
	})
	return hosts, err
}
