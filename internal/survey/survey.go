// Package survey looks at all hosts of a fleet repo at once, for those who write
// it: what is wrong with it, which hosts there are, and what a commit touches.
//
// Its one rule: what it says of a host is what that host would find itself. It
// only remembers what several hosts have in common.
package survey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Finding is what is wrong, once, with all the hosts that it concerns.
type Finding struct {
	finding.Finding
	Hosts []string `json:"hosts"` // sorted; none for what concerns fleet.toml alone
}

// Validation is what was found.
type Validation struct {
	Hosts    []string  // that were looked at
	Broken   []string  // those that could not apply their config
	Findings []Finding // by file and line
}

// Failed tells whether there is an error, or with strict anything at all.
func (v *Validation) Failed(strict bool) bool {
	return slices.ContainsFunc(v.Findings, func(f Finding) bool { return strict || f.Severity == finding.Error })
}

// NoHostError says that nobody is called like that.
type NoHostError struct{ Globs []string }

func (e *NoHostError) Error() string {
	if len(e.Globs) == 0 {
		return "there is no host config here"
	}
	return "no host is called " + strings.Join(e.Globs, " or ")
}

// Hint says how to go on.
func (e *NoHostError) Hint() string {
	if len(e.Globs) == 0 {
		return "name the root of a checkout of the fleet repo; a host is a file hosts/NAME.bu"
	}
	return "reconf-pull hosts lists all names"
}

// Select returns the hosts that globs match, all of them without any glob. all
// are the names of all hosts.
func Select(repo *fleet.Repo, globs []string) (selected, all []string, err error) {
	for _, glob := range globs {
		if _, err := path.Match(glob, ""); err != nil {
			return nil, nil, fmt.Errorf("--host %q is no glob: %w", glob, err)
		}
	}
	if all, err = repo.Hosts(); err != nil {
		return nil, nil, err
	}
	selected = all
	if len(globs) > 0 {
		selected = nil
		for _, host := range all {
			if slices.ContainsFunc(globs, func(glob string) bool {
				ok, _ := path.Match(strings.ToLower(glob), strings.ToLower(host)) // was tried above
				return ok
			}) {
				selected = append(selected, host)
			}
		}
	}
	if len(selected) == 0 {
		return nil, nil, &NoHostError{globs}
	}
	return selected, all, nil
}

// Validator translates hosts as they would do it themselves.
type Validator struct {
	Tree     source.Tree
	Contents *contents.Opener
	// Overlaps: what two groups set differently is a warning.
	Overlaps bool
}

// Run looks at every host whose name one of globs matches, or at all. Its error
// says that looking failed; what is wrong with the fleet repo is in the result.
func (v *Validator) Run(ctx context.Context, globs []string) (_ *Validation, err error) {
	repo, err := fleet.Open(v.Tree)
	var bad *finding.Failure
	if errors.As(err, &bad) {
		all := collected{}
		all.add(bad.Findings, "")
		return &Validation{Findings: all.sorted()}, nil
	}
	if err != nil {
		return nil, err
	}
	hosts, everybody, err := Select(repo, globs)
	if err != nil {
		return nil, err
	}
	whole, err := repo.Check(everybody)
	if err != nil {
		return nil, err
	}
	found := collected{}
	found.add(whole, "")
	scratch, err := os.MkdirTemp("", "reconf-pull-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	result := &Validation{Hosts: hosts}
	var mu sync.Mutex
	shared := reconcile.NewShared(scratch)
	err = each(ctx, hosts, func(host string) error {
		list, err := v.host(ctx, repo, shared, host)
		if err != nil {
			return fmt.Errorf("%s: %w", host, err)
		}
		mu.Lock()
		defer mu.Unlock()
		found.add(list, host)
		if len(list.Errors()) > 0 {
			result.Broken = append(result.Broken, host)
		}
		return nil
	})
	slices.Sort(result.Broken)
	result.Findings = found.sorted()
	return result, err
}

// host is all that can be said of one host.
func (v *Validator) host(ctx context.Context, repo *fleet.Repo, shared *reconcile.Shared, host string) (finding.List, error) {
	hc, err := repo.Host(fleet.Machine{Names: []string{host}})
	var bad *finding.Failure
	if errors.As(err, &bad) {
		return bad.Findings, nil
	}
	if err != nil || hc.Retired != "" {
		return nil, err
	}
	list := hc.Unsupported
	hc.Unsupported = nil
	recipients, err := Recipients(repo, hc.Name)
	if errors.As(err, &bad) {
		list = append(list, bad.Findings...)
	} else if err != nil {
		return nil, err
	}
	t := reconcile.Translation{Tree: v.Tree, Config: hc, Strict: true, Contents: v.Contents, Overlaps: v.Overlaps, Recipients: recipients, Shared: shared}
	_, warnings, err := t.Run(ctx)
	if errors.As(err, &bad) {
		return append(list, bad.Findings...), nil
	}
	return append(list, warnings...), err
}

// each calls one for every host, several at a time, until one fails.
func each(ctx context.Context, hosts []string, one func(string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	next := make(chan string)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for host := range next {
				if err := one(host); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, host := range hosts {
		select {
		case next <- host:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// collected are findings with the hosts that have them.
type collected map[finding.Finding][]string

// add notes all findings of a host, "" for those of fleet.toml.
func (c collected) add(list finding.List, host string) {
	for _, f := range list {
		if f.Severity == finding.Info {
			continue
		}
		hosts, known := c[f]
		switch again := len(hosts) > 0 && hosts[len(hosts)-1] == host; {
		case host != "" && !again:
			c[f] = append(hosts, host)
		case !known:
			c[f] = []string{}
		}
	}
}

func (c collected) sorted() []Finding {
	var all []Finding
	for f, hosts := range c {
		slices.Sort(hosts)
		all = append(all, Finding{f, hosts})
	}
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Message, b.Message), cmp.Compare(a.Field, b.Field), slices.Compare(a.Hosts, b.Hosts))
	})
	return all
}
