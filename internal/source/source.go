// Package source says what reconf-pull needs of a place that a fleet repo is
// fetched from. Its one rule: nothing of git's own types crosses it, and every
// byte that is read through it was checked against its object id.
package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"time"
	"unicode"
)

// Revision is what was fetched.
type Revision struct {
	Ref    string `json:"ref"`    // refs/heads/main
	Commit string `json:"commit"` // hex object id
}

// Source is a fleet repo at a remote.
type Source interface {
	// Fetch asks the remote for the ref and transfers what is missing. Its errors
	// are of type *Error and wrap one of the sentinels below.
	Fetch(ctx context.Context) (Revision, error)
	// Tree opens the tree of a commit that an earlier Fetch brought.
	Tree(ctx context.Context, commit string) (Tree, error)
}

// What a caller decides on. ErrUnavailable: keep the last state and try again
// later. ErrNotFastForward and ErrUntrusted: the remote answered, and its
// answer must not be used. ErrLocal: this machine is at fault, not the remote
// (a full disk, a cache that cannot be written).
var (
	ErrUnavailable    = errors.New("source unavailable")
	ErrNotFastForward = errors.New("history was rewritten")
	ErrUntrusted      = errors.New("commit is not trusted")
	ErrLocal          = errors.New("local cache failed")
	// ErrDamaged: a Tree met bytes that are not what their id names, or an object
	// that should be there is not. The mirror is discarded and fetched again, once.
	ErrDamaged = errors.New("mirror is damaged")
	// ErrMalformed: the fleet repo holds what git itself does not allow. Its authors
	// have to mend it.
	ErrMalformed = errors.New("the fleet repo is malformed")
	// ErrShallow: a question about the history that the mirror is too shallow for.
	ErrShallow = errors.New("mirror is too shallow")
)

// Relation is how a commit stands to an older one.
type Relation string

// The relations of two commits.
const (
	Same     Relation = "same"
	Ahead    Relation = "ahead"    // it descends from the older one
	Behind   Relation = "behind"   // it is an ancestor of it
	Diverged Relation = "diverged" // neither, as far as that can be told
)

// CommitInfo is what people want to know of a commit besides its id.
type CommitInfo struct {
	Subject string    `json:"subject"` // first line of the message
	Author  string    `json:"author"`  // name, with the address in angle brackets
	Time    time.Time `json:"time"`    // of the commit, not of its authoring
}

// Error is a failed fetch with what its reader can do about it. The URL in its
// text never holds a password.
type Error struct {
	Err  error  // wraps a sentinel
	Hint string // one sentence
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Mode is a mode as git stores it in a tree.
type Mode uint32

// The modes of git's tree format.
const (
	Directory  Mode = 0o040000
	Regular    Mode = 0o100644
	Executable Mode = 0o100755
	Symlink    Mode = 0o120000
	Submodule  Mode = 0o160000
)

// IsFile tells whether an entry of this mode has bytes that may be managed.
func (m Mode) IsFile() bool { return m == Regular || m == Executable }

// MaxPointer is the size in bytes that a Git LFS pointer never exceeds.
const MaxPointer = 1024

// IsPointer tells whether a blob is a Git LFS pointer instead of the file
// that it stands for.
func IsPointer(data []byte) bool {
	return len(data) <= MaxPointer && bytes.HasPrefix(data, []byte("version https://git-lfs.github.com/spec/v1"))
}

// Entry is one path of a tree.
type Entry struct {
	Path string `json:"path"` // slash-separated, relative to the root of the repo, clean
	Mode Mode   `json:"mode"`
	ID   string `json:"id"` // hex git object id of the blob or tree
}

// Tree is the read-only content of one commit, or of a checkout with the ids
// that git would give it. Nothing in it is ever followed: a symlink is an entry.
type Tree interface {
	// Entry returns what stands at the path: fs.ErrNotExist when nothing does,
	// a *SymlinkError when a parent of the path is a symlink.
	Entry(path string) (Entry, error)
	// List returns the entries of the folder at path in byte order of their
	// names; the root is ".".
	List(path string) ([]Entry, error)
	// Names is List of the entries that HasStem, for those who need neither ids nor
	// whether a file is executable: both may be left out. The id of a checkout's folder
	// costs reading everything below it.
	Names(path, stem string) ([]Entry, error)
	// Size is the size of a blob in bytes, without reading it whole.
	Size(e Entry) (int64, error)
	// Open reads a blob. Its bytes are hashed as they pass: the read that meets
	// the end fails when they are not what the id names.
	Open(e Entry) (io.ReadCloser, error)
}

// MaxText bounds in bytes what is shown of a foreign text that should be short.
const MaxText = 400

// Printable takes from foreign text what could steer a terminal, and all beyond so many
// bytes.
func Printable(text string, most int) string {
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, ""))
}

// HasStem tells whether a name is the stem, in any case, by itself or with extensions
// (web1 and WEB1.bu.tmpl of web1, not web10). Every name has the stem "".
func HasStem(name, stem string) bool {
	if stem == "" {
		return true
	}
	for end := 0; ; end++ {
		next := strings.IndexByte(name[end:], '.')
		if next < 0 {
			return strings.EqualFold(name, stem)
		}
		if end += next; strings.EqualFold(name[:end], stem) {
			return true
		}
	}
}

// SymlinkError says that a path leads through a symlink, which a fleet repo
// must not use for what it refers to.
type SymlinkError struct{ Path, Link string }

func (e *SymlinkError) Error() string {
	return e.Path + " leads through the symlink " + e.Link
}
