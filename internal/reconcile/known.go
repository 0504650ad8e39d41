package reconcile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/version"
)

// known is what a host config comes to. It depends on nothing but the commit, the
// machine and this program, so that a run which finds the tip of the one before
// reads no folder of the fleet repo: one with all hosts in it is large.
type known struct {
	Host    string           `json:"host"`
	Digest  fleet.Digest     `json:"digest"`
	Retired fleet.Retirement `json:"retired,omitempty"`
	// From names everything that it depends on.
	From string `json:"from"`
}

const maxKnown = 1 << 16

// identify finds what the host config at a revision comes to; hc is nil when an
// earlier run knew it.
func (r *Reconciler) identify(rev source.Revision, tree source.Tree) (_ known, hc *fleet.HostConfig, err error) {
	from := r.from(rev)
	if k, ok := r.recall(); ok && k.From == from {
		return k, nil, r.sameHost(k.Host)
	}
	if hc, err = r.hostConfig(tree); err != nil {
		return known{}, nil, err
	}
	k := known{Host: hc.Name, Digest: hc.Digest, Retired: hc.Retired, From: from}
	data, err := json.Marshal(k)
	if err == nil {
		err = atomicfile.WriteVolatile(r.Dirs.Known(), append(data, '\n'), 0o600)
	}
	if err != nil {
		r.Log.Warnf("writing down the digest: %v", err)
	}
	return k, hc, nil
}

// recall reads what an earlier run knew. A file that somebody else could have
// written, or none, is no knowledge.
func (r *Reconciler) recall() (k known, ok bool) {
	data, err := host.ReadTrusted(r.Dirs.Known(), maxKnown)
	return k, err == nil && json.Unmarshal(data, &k) == nil
}

// from is a hash over all that fleet.Repo.Host is given.
func (r *Reconciler) from(rev source.Revision) string {
	m := r.machine()
	parts := append([]string{version.String(), fleet.Epoch, rev.Commit, fmt.Sprint(m.Facts != nil)}, m.Names...)
	if m.Facts != nil {
		parts = append(parts, m.Facts.Arch, m.Facts.MachineID)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

func (r *Reconciler) machine() fleet.Machine {
	m := fleet.Machine{Names: r.Names, Limits: r.Limits}
	if !r.Author {
		m.Facts = &fleet.Facts{Arch: runtime.GOARCH, MachineID: r.Host.MachineID()}
	}
	return m
}

// sameHost refuses the config of another host than the applied one's.
func (r *Reconciler) sameHost(name string) error {
	applied := r.Update.State.Applied
	if applied != nil && !r.Named && !strings.EqualFold(applied.Host, name) {
		return &OtherHostError{Applied: applied.Host, Resolved: name}
	}
	return nil
}
