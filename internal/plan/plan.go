// Package plan compares what is wanted with what was written last and with
// what the disk has, and says what has to happen per path.
//
// Its one rule: making a plan changes nothing. Whatever cannot be done is
// found here, all of it at once, and not by the engine half way.
package plan

import (
	"context"
	"io"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Action is what the plan found for one path or unit.
type Action string

// The actions, as the three-way table has them.
const (
	Create   Action = "create"
	Adopt    Action = "adopt"    // it was there and is managed from now on
	Update   Action = "update"   // what we wrote is replaced
	Conflict Action = "conflict" // changed on the host and in the repo
	Drift    Action = "drift"    // changed on the host only
	Remove   Action = "remove"
	Restore  Action = "restore" // what was there before us comes back
	Keep     Action = "keep"    // it leaves the manifest and stays on disk
	Record   Action = "record"  // the disk has it already
	Migrate  Action = "migrate" // no plan's: an *.sls migration changed it
	Blocked  Action = "blocked" // somebody keeps it from being looked at or changed in a place of his
)

// Item is one path of the plan.
type Item struct {
	Path   string       `json:"path"`
	Action Action       `json:"action"`
	Before disk.Node    `json:"before"`
	After  disk.Node    `json:"after"`
	Origin state.Origin `json:"origin,omitempty"`
	// Write is set when the engine has work to do for this path.
	Write bool `json:"write,omitempty"`
	// Linked is the file that Before is a hard link to, by the applied generation;
	// rolling back makes it one again.
	Linked string `json:"linked,omitempty"`
	// Pristine asks the engine to keep what is there before it is replaced.
	Pristine *Pristine `json:"pristine,omitempty"`
	Note     string    `json:"note,omitempty"`
	// Place is whose place it lies in, or will lie in; nil in root's.
	Place *fsat.Place `json:"place,omitempty"`
	// Anew: a file is written although it has its bytes, because what is there must not
	// get its owner or mode.
	Anew bool `json:"anew,omitempty"`
	// Known is the directory in somebody's place that may get its owner and mode.
	Known *fsat.Known `json:"known,omitempty"`
	// Late: it was found blocked when the plan was made already.
	Late bool `json:"late,omitempty"`
	// Base is what the manifest has of the path, nil where nothing is managed there: it
	// stays known if the path turns out to be blocked.
	Base *state.Entry `json:"base,omitempty"`

	// open reads the wanted bytes of a file; the pin stores them by hash.
	open func(context.Context) (io.ReadCloser, error)
}

// Secret tells whether the old or the new contents are one. What the disk has
// where a secret is wanted counts as one: it may be the same in plain text.
func (i *Item) Secret() bool { return i.Before.Secret || i.After.Secret }

// Open reads the wanted bytes of a file that is about to be written. It is
// valid only for a plan that Make returned, not for one read back from disk.
func (i *Item) Open(ctx context.Context) (io.ReadCloser, error) { return i.open(ctx) }

// IsParent tells that only what is below the path is wanted, not the path itself.
func (i *Item) IsParent() bool { return i.Origin == state.Parent }

// NeedsContent tells whether the engine needs the bytes of After: not for a
// change of owner or mode alone.
func (i *Item) NeedsContent() bool {
	return i.Write && i.After.Kind == disk.File && i.After.SHA256 != "" && (i.Anew || !i.After.SameContent(i.Before))
}

// Content is the bytes of one managed file.
type Content struct {
	disk.Node
	// Known: by the applied generation, so that they were not read.
	Known bool
	Open  func(context.Context) (io.ReadCloser, error)
}

// Pristine says what to keep of a path that is adopted.
type Pristine struct {
	// Bytes limits the copy to the beginning of the file, where the rest is what
	// Ignition appended; -1 is the whole file.
	Bytes int64 `json:"bytes"`
	// Vendor is copied instead of the path itself, when set.
	Vendor string `json:"vendor,omitempty"`
}

// Unit is a change of a unit's enablement.
type Unit struct {
	Name   string `json:"name"`
	Enable bool   `json:"enable"` // else disable
	// Again asks for disable and enable, because [Install] changes.
	Again  bool   `json:"again,omitempty"`
	Reason string `json:"reason"`
}

// Plan is what one change does to the host.
type Plan struct {
	Items []Item `json:"items"`
	Units []Unit `json:"units,omitempty"`
	// Stopped are units that lose their file or are masked: they are stopped
	// before their files go.
	Stopped []string       `json:"stopped,omitempty"`
	Effect  service.Effect `json:"effect"`
	// Migrated are paths that *.sls migrations turned out to have changed besides. What
	// they ask for is in Effect then.
	Migrated []string `json:"migrated,omitempty"`
	// Sysusers are the sysusers.d files of this plan that create accounts which
	// other paths of it belong to.
	Sysusers []string `json:"sysusers,omitempty"`
	// Ignored sections that differ from the last generation.
	Ignored []string `json:"ignored,omitempty"`

	Findings finding.List   `json:"-"` // warnings
	Contents []Content      `json:"-"` // of every file whose bytes are managed, written or not
	Manifest state.Manifest `json:"-"` // what is managed once the plan is carried out
}

// Empty tells whether carrying the plan out would change nothing on the host.
func (p *Plan) Empty() bool {
	for i := range p.Items {
		if p.Items[i].Write {
			return false
		}
	}
	return len(p.Units) == 0
}

// TouchesUnits tells whether the service manager is needed: a plan that only
// writes files works without one.
func (p *Plan) TouchesUnits() bool {
	e := &p.Effect
	return e.Reload || len(p.Units)+len(p.Stopped)+len(e.Early)+len(e.Touches) > 0
}

// Blocked are the paths that are left as they are because somebody blocks them.
func (p *Plan) Blocked() []Item {
	var blocked []Item
	for i := range p.Items {
		if p.Items[i].Action == Blocked {
			blocked = append(blocked, p.Items[i])
		}
	}
	return blocked
}

// Changed are the paths that the engine writes or removes, in the plan's order.
func (p *Plan) Changed() []string {
	var paths []string
	for i := range p.Items {
		// Directories belong to no service; what is put into them does.
		if item := &p.Items[i]; item.Write && item.After.Kind != disk.Directory && item.Before.Kind != disk.Directory {
			paths = append(paths, item.Path)
		}
	}
	return paths
}

// Beside are the paths that only migrations changed.
func (p *Plan) Beside() []string {
	of := p.Changed()
	return slices.DeleteFunc(slices.Clone(p.Migrated), func(path string) bool { return slices.Contains(of, path) })
}

// Settings are the operator's choices, from config.toml.
type Settings struct {
	OnConflict       string // replace, keep or fail
	PruneModified    bool
	AllowMassRemoval bool
	CorrectDrift     bool
	// MaxFile is how many bytes are read at most of a file that others than root may
	// have written (translate.max_file), where that is more than fsat.Most.
	MaxFile int64
	// OtherOS: another OS deployment was booted, which may have brought an older
	// /etc. What differs is no drift and is replaced, with the local version kept.
	OtherOS bool
	Watches []service.Watch
	// Protected paths are the agent's own state: nothing below them is managed.
	Protected []string
	// Own are the agent's configuration and binary, which are never pruned.
	Own []string
}

func (s *Settings) most() int64 {
	return max(s.MaxFile, fsat.Most)
}

// Contents opens what the host config names.
type Contents interface {
	Open(ctx context.Context, c desired.Content) (io.ReadCloser, error)
	Sum(ctx context.Context, c desired.Content) (sha256 string, size int64, err error)
}

// Accounts resolves owners. Its errors wrap host.ErrNoAccount when the host
// does not know the name.
type Accounts interface {
	User(ctx context.Context, name string) (int, error)
	Group(ctx context.Context, name string) (int, error)
}

// Services is what the plan asks of the service manager, or of the unit files
// of a root that is not running.
type Services interface {
	service.Host
	// UnitFileState is what systemctl is-enabled says, "" for no such unit.
	UnitFileState(ctx context.Context, unit string) (string, error)
	// OnChange is X-Reconf-OnChange= of a unit as it is on disk, wherever its file
	// and drop-ins lie.
	OnChange(unit string) string
}
