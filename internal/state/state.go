// Package state is what reconf-pull remembers on disk: the state file, the
// manifests and generations, the change under way, and the run lock.
//
// Its one rule: whatever decides what happens next lies here and is durable
// before it is acted upon; state.json is written once per transition and is
// its commit point.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
)

// Schema is the major version of what lies in the state directory. A larger
// one was written by a newer release and is refused.
const Schema = 1

// ErrUnreadable says that the state exists and cannot be used. It is never
// started over silently.
var ErrUnreadable = errors.New("state cannot be read")

// State is the state file. Only a run that holds the run lock writes it.
type State struct {
	Schema int `json:"schema"`
	// Ref is the branch that the first fetch found, so that a changed HEAD of
	// the remote does not move a host to another branch.
	Ref string `json:"ref,omitempty"`
	// Marks are the newest verified commits, by ref, as of the last save: the file
	// verified.json is newer, and Load prefers it.
	Marks   map[string]Mark `json:"marks,omitempty"`
	Applied *Applied        `json:"applied,omitempty"`
	// Change is pinned and not yet recorded.
	Change *Change `json:"change,omitempty"`
	// Open are changes that began, were neither recorded nor rolled back, and
	// were superseded by another one: what they wrote still counts as base.
	Open []string `json:"open,omitempty"`
	// Held is the digest that is not tried again.
	Held *Hold `json:"held,omitempty"`
	// HeldOSWork keeps update.d, and reboots that wait, from being tried again.
	HeldOSWork *OSWorkHold `json:"held_os_work,omitempty"`
	// Updated is the OS work that was done last, while it may still turn out to have
	// been in vain.
	Updated *OSUpdate `json:"os_update,omitempty"`
	// Reboot is one that a change needed and that was put off. Any boot clears it.
	Reboot *Reboot `json:"reboot_pending,omitempty"`
	// Reboots are those that were asked for within the last day.
	Reboots []Asked `json:"reboots,omitempty"`
	// Lock is what is believed about the fleet lock; nil: it is not held.
	Lock *FleetLock `json:"fleet_lock,omitempty"`
	// Migrated is what *.sls migrations changed and no unit has seen yet.
	Migrated *Migrated `json:"migrated,omitempty"`
}

// Migrated is what *.sls migrations did to the host. The step configure writes it,
// post-configure shows it to the units, and the record of a change clears it: one that
// failed leaves it to the next, since nothing undoes migrations.
type Migrated struct {
	Paths []string `json:"paths,omitempty"`
	// CutOff: Salt was called, and nothing is known of its end. What the next call
	// finds done may be the work of that one.
	CutOff bool `json:"cut_off,omitempty"`
}

// Reboot is why the machine has to be booted anew, and the boot in which that
// was found: in any other one the need is satisfied.
type Reboot struct {
	Reason string    `json:"reason"`
	BootID string    `json:"boot_id"`
	Since  time.Time `json:"since"`
}

// Asked is a reboot that was asked for, and for which digest.
type Asked struct {
	Time   time.Time `json:"time"`
	Digest string    `json:"digest"`
}

// OSWorkHold keeps OS work from being tried again until another deployment is
// booted or an operator says retry.
type OSWorkHold struct {
	Deployment string    `json:"deployment,omitempty"`
	Step       string    `json:"step"`
	Reason     string    `json:"reason"`
	Time       time.Time `json:"time"`
}

// OSUpdate is a completed update.d: the deployment that it ran on, and the one
// that was booted for it, "" until there was a boot.
type OSUpdate struct {
	From string `json:"from"`
	To   string `json:"to,omitempty"`
}

// FleetLock is the belief about the fleet lock. It is written before the lock
// is asked for and cleared after its release is confirmed.
type FleetLock struct {
	Kind string `json:"kind"`
	// Name tells it from others of its kind: the configuration may have been changed since.
	Name string `json:"name,omitempty"`
	// Changing: it was asked for, so this host may hold it.
	Changing bool `json:"changing,omitempty"`
	// Kept: a change failed, and the lock keeps others from the same one.
	Kept bool `json:"kept_after_failure,omitempty"`
	// ByHand: an operator took it, and gives it back.
	ByHand bool      `json:"by_hand,omitempty"`
	Since  time.Time `json:"since"`
}

func (l *FleetLock) String() string {
	how := "may be held"
	switch {
	case l.Kept:
		how = "kept after a failure"
	case l.ByHand:
		how = "taken by hand"
	}
	return l.Kind + ", " + how + ", since " + l.Since.UTC().Format(time.RFC3339)
}

// Hold keeps a digest that failed for good from being tried again, until there
// is another one or an operator says retry.
type Hold struct {
	Digest string    `json:"digest"`
	Commit string    `json:"commit"`
	Step   string    `json:"step"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// Applied is the generation that the host has.
type Applied struct {
	Generation int       `json:"generation"`
	Host       string    `json:"host"`
	Ref        string    `json:"ref,omitempty"`
	Commit     string    `json:"commit"`
	Digest     string    `json:"digest"`
	Deployment string    `json:"deployment,omitempty"`
	Time       time.Time `json:"time"`
	// Blocked are paths of its config that it does not have yet.
	Blocked []Blocked `json:"blocked,omitempty"`
}

// Status is where a task stands.
type Status string

// A task found in Doing is run again, so steps are idempotent.
const (
	Todo   Status = "todo"
	Doing  Status = "doing"
	Done   Status = "done"
	Wait   Status = "wait"
	Failed Status = "error"
)

// Task is the record of one step. The pipeline writes it.
type Task struct {
	Name     string    `json:"name"`
	Status   Status    `json:"status"`
	Detail   string    `json:"detail,omitempty"` // why it was skipped, or how it failed
	BootID   string    `json:"boot_id,omitempty"`
	Attempts int       `json:"attempts,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	// Reboot is what a task in Wait waits for.
	Reboot *Waiting `json:"reboot,omitempty"`
}

// Waiting is how far the wait for a reboot has come.
type Waiting struct {
	Reason string    `json:"reason"`
	Asked  time.Time `json:"asked,omitzero"` // for the last time; zero: not yet
	Asks   int       `json:"asks,omitempty"`
	// Veto names who holds the reboot off, since when.
	Veto  string    `json:"veto,omitempty"`
	Since time.Time `json:"veto_since,omitzero"`
}

// Change is one attempt to bring the host to one digest.
type Change struct {
	ID         string    `json:"id"`
	Host       string    `json:"host"`
	Ref        string    `json:"ref,omitempty"`
	Commit     string    `json:"commit"`
	Previous   string    `json:"previous,omitempty"` // the commit that was applied before
	Digest     string    `json:"digest"`
	Deployment string    `json:"deployment,omitempty"`
	Reasons    []string  `json:"reasons"`
	Pinned     time.Time `json:"pinned"`
	Tasks      []Task    `json:"tasks"`
	// Rollback are the tasks that undo the change. When there are any, the change
	// is on its way back.
	Rollback []Task `json:"rollback,omitempty"`
	// ByHand: the change is a recorded generation that an operator undoes.
	ByHand bool `json:"by_hand,omitempty"`
	// OSWork: update.d is due. OnlyOS: nothing else is, but perhaps a reboot, so
	// that a failure is not the host config's.
	OSWork bool `json:"os_work,omitempty"`
	OnlyOS bool `json:"only_os,omitempty"`
	// Reboot is why the change reboots, nil as long as nothing asks for it.
	Reboot *Reboot `json:"reboot,omitempty"`
	// Back is why the way back reboots.
	Back *Reboot `json:"reboot_back,omitempty"`
}

// Waits returns the task that waits for a reboot, nil when none does.
func (c *Change) Waits() *Task {
	for _, tasks := range [][]Task{c.Tasks, c.Rollback} {
		for i := range tasks {
			if tasks[i].Status == Wait {
				return &tasks[i]
			}
		}
	}
	return nil
}

// Ended tells whether a change is left alone until somebody, or another
// digest, decides about it: a step or the way back failed.
func (c *Change) Ended() bool {
	if len(c.Rollback) > 0 {
		return failure(c.Rollback) != nil
	}
	return c.Failure() != nil
}

// Failure returns the task that ended in an error, nil when none did.
func (c *Change) Failure() *Task { return failure(c.Tasks) }

func failure(tasks []Task) *Task {
	for i := range tasks {
		if tasks[i].Status == Failed {
			return &tasks[i]
		}
	}
	return nil
}

// Dirs are the three places of reconf-pull on this machine.
type Dirs struct{ State, Cache, Run string }

// File is the path of the state file.
func (d Dirs) File() string { return filepath.Join(d.State, "state.json") }

// Change is the directory of a change under way.
func (d Dirs) Change(id string) string { return filepath.Join(d.State, "changes", id) }

// Generation is the directory of a completed change.
func (d Dirs) Generation(n int) string {
	return filepath.Join(d.State, "generations", strconv.Itoa(n))
}

// Failed is the directory of a change that was rolled back.
func (d Dirs) Failed(id string) string { return filepath.Join(d.State, "failed", id) }

// Lost is the directory of what was left where the state file was lost.
func (d Dirs) Lost() string { return filepath.Join(d.State, "lost") }

// Resume is there while a change is under way: reconf-pull-resume.service looks
// for it at boot.
func (d Dirs) Resume() string { return filepath.Join(d.State, "resume") }

// Migration is the marker of a migration script that has run, by its content.
func (d Dirs) Migration(hash string) string { return filepath.Join(d.State, "migrations", hash) }

// Blobs is the directory of contents by SHA-256.
func (d Dirs) Blobs() string { return filepath.Join(d.State, "blobs") }

// Pristine is the directory of what was there before us.
func (d Dirs) Pristine() string { return filepath.Join(d.State, "pristine") }

// Fetched is the directory of the process that fetches, which alone may write it
// and whose word nobody takes.
func (d Dirs) Fetched() string { return filepath.Join(d.Cache, "mirror") }

// Mirror is the disposable copy of the fleet repo.
func (d Dirs) Mirror() string { return filepath.Join(d.Fetched(), "fleet.git") }

// Downloads is the directory of contents that were fetched over http(s).
func (d Dirs) Downloads() string { return filepath.Join(d.Cache, "downloads") }

// Last is the record of the last check, on tmpfs.
func (d Dirs) Last() string { return filepath.Join(d.Run, "last.json") }

// Known is the digest of the host config at the commit that was last read, on
// tmpfs.
func (d Dirs) Known() string { return filepath.Join(d.Run, "digest.json") }

// Folders is what was found in large folders of the fleet repo, on tmpfs.
func (d Dirs) Folders() string { return filepath.Join(d.Run, "folders.json") }

// Create makes the directories that a run needs. Only the run directory is for
// everybody to read.
func (d Dirs) Create() error {
	for _, dir := range []string{d.State, filepath.Join(d.State, "changes"), filepath.Join(d.State, "generations"), d.Blobs(), d.Pristine(), d.Cache} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the state directory: %w", err)
		}
	}
	info, err := os.Stat(d.State)
	if err == nil && info.Mode().Perm() != 0o700 {
		err = os.Chmod(d.State, 0o700)
	}
	if err != nil {
		return fmt.Errorf("closing the state directory: %w", err)
	}
	if err := os.MkdirAll(d.Run, 0o755); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	return nil
}

// Load reads the state file. A missing one is a first run: the zero State.
func Load(dirs Dirs) (*State, error) {
	data, err := os.ReadFile(dirs.File())
	if errors.Is(err, os.ErrNotExist) {
		st := &State{Schema: Schema}
		return st, loadMarks(dirs, st)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	var st State
	if err := json.Unmarshal(data, &st); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreadable, dirs.File(), err)
	}
	if st.Schema > Schema {
		return nil, fmt.Errorf("%w: %s was written by a newer release (schema %d, this one knows %d)", ErrUnreadable, dirs.File(), st.Schema, Schema)
	}
	if st.Schema < 1 {
		return nil, fmt.Errorf("%w: %s has no schema number", ErrUnreadable, dirs.File())
	}
	if err := loadMarks(dirs, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// Save writes the state file durably.
func Save(dirs Dirs, st *State) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	if err := atomicfile.Write(dirs.File(), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	return nil
}

// Generations lists the numbers of the generations that are kept, oldest first.
func Generations(dirs Dirs) ([]int, error) {
	names, err := os.ReadDir(filepath.Join(dirs.State, "generations"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing generations: %w", err)
	}
	var numbers []int
	for _, name := range names {
		if n, err := strconv.Atoi(name.Name()); err == nil {
			numbers = append(numbers, n)
		}
	}
	sort.Ints(numbers)
	return numbers, nil
}
