// Package salt carries a plan out with salt-call: the plan is written as an
// SLS tree, and Salt does what it says, on the host or in a container.
//
// Its one rule: nothing in the tree is rendered that came from the fleet repo,
// but for the migrations, and the whole of it is gone when Salt is done.
package salt

import (
	"context"
	"path/filepath"
)

// Folder is where the tree lies, below the run directory of the agent
// (/run/reconf-pull): private, on a tmpfs, mode 0700. That it exists means that
// an update is under way, or that a run died in one.
func Folder(run string) string { return filepath.Join(run, "salt") }

// Caller is one way of calling Salt.
type Caller interface {
	// Name is what status shows: salt or salt-container.
	Name() string
	// Place is where what Call starts finds a path of the host: the same path,
	// but for those that it has of its own. Every path of the tree goes through
	// it, the folder's own do not.
	Place(path string) string
	// Prepare makes sure that Call will find what it starts, and makes what can
	// be made (an image). It changes nothing that is managed. Its error says what
	// is missing and how to get it.
	Prepare(ctx context.Context) error
	// Call runs salt-call to its end. The error is for a call that did not end by
	// itself or never began; a call that ended with any exit status is none. When
	// ctx ends, everything that Call started ends before it returns.
	Call(ctx context.Context, call Call) (Answer, error)
	// Stop ends what an earlier run left behind when it was killed, so that it
	// does not write beside this one. It is called whenever the folder is found.
	Stop(ctx context.Context, folder string) error
}

// Call is one run of salt-call.
type Call struct {
	Folder string   // with the minion config: salt-call -c Folder
	Args   []string // what follows
	// Writes are the paths of the host that the plan writes or removes, as the
	// host config spells them: each has to be the host's own.
	Writes []string
	// Links are the hard links among them: each path with the one that it is
	// going to be another name of.
	Links [][2]string
}

// Answer is what a call printed and how it exited. What is longer than
// MaxOutput is cut there, and Cut says so.
type Answer struct {
	Stdout, Stderr []byte
	Exit           int
	Cut            bool
}

// MaxOutput bounds what is kept of each of the outputs of a call: the answer of
// a change of ten thousand paths is less than a tenth of it.
const MaxOutput = 64 << 20
