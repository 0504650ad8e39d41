// Package desired holds what a host config asks for, as typed resources.
//
// Its one rule: it is pure. Paths are absolute and clean, owners are still
// names or ids, contents are named and not read; whether a host can have all
// this is decided later, by plan.
package desired

import (
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Owner is a user or a group: by name when Name is set, by id otherwise.
type Owner struct {
	Name string `json:"name,omitempty"`
	ID   int    `json:"id,omitempty"`
}

// Content is where the bytes of a file come from. Exactly one of Blob, URL and
// Inline is used: Blob when set, else URL when set, else Inline (which may be
// empty: an empty file).
type Content struct {
	Blob    string            `json:"blob,omitempty"`    // git object id, streamed when it is needed
	Path    string            `json:"path,omitempty"`    // the blob's path in the fleet repo, for messages
	URL     string            `json:"url,omitempty"`     // http(s), only with Verify
	Headers map[string]string `json:"headers,omitempty"` // sent to the URL's own host only
	Inline  []byte            `json:"inline,omitempty"`
	Secret  bool              `json:"secret,omitempty"` // what is stored is encrypted, what is wanted is not
	Gzip    bool              `json:"gzip,omitempty"`   // what is stored is gzip, what is wanted is not; once it is decrypted
	Verify  string            `json:"verify,omitempty"` // sha256-… or sha512-… of the wanted bytes, as Ignition writes it
}

// File is a regular file. Contents nil means that the file must exist and that
// its bytes are nobody's business; Append adds to what the vendor or the admin
// put there before us.
type File struct {
	Path        string
	Mode        uint32 // permission bits with set-uid, set-gid and sticky
	User, Group Owner
	Contents    *Content
	Append      []Content
	Unsaid      Unsaid
	Position    finding.Position
}

// Encrypted tells whether a reference names an encrypted file.
func Encrypted(path string) bool { return strings.HasSuffix(path, ".age") }

// Secret tells whether any of the file's bytes are one.
func (f *File) Secret() bool {
	return f.Contents != nil && f.Contents.Secret || slices.ContainsFunc(f.Append, func(c Content) bool { return c.Secret })
}

// Unsaid marks what the host config leaves open, so that Mode, User and Group
// hold a default. Where nothing replaces what is there (a file without
// contents, a directory) Ignition applies the default to what it creates and
// leaves alone what exists: an append must not open up a file of mode 0600.
// A file with contents is always said in full.
type Unsaid struct{ Mode, User, Group bool }

// Directory is a directory with its own mode and owner.
type Directory struct {
	Path        string
	Mode        uint32
	User, Group Owner
	Unsaid      Unsaid
	Position    finding.Position
}

// Link is a symbolic link, or a hard one. Target is verbatim.
type Link struct {
	Path, Target string
	Hard         bool
	User, Group  Owner
	Position     finding.Position
}

// Unit is a systemd unit: Contents and drop-ins are files below
// /etc/systemd/system, the rest are properties of the unit. A nil pointer
// means that the host config does not say.
type Unit struct {
	Name     string
	Contents *string
	Dropins  []Dropin
	Enabled  *bool
	Mask     *bool
	Position finding.Position
}

// Dropin is one file of a unit's drop-in directory.
type Dropin struct {
	Name     string
	Contents *string
	Position finding.Position
}

// Section is a part of the host config that stays legal and is not applied
// after first boot. Hash tells two generations of it apart.
type Section struct {
	Name     string           `json:"name"` // passwd.users
	Hash     string           `json:"hash"` // hex SHA-256 of its canonical JSON
	Position finding.Position `json:"-"`
}

// State is everything that one host config asks for. Every list is sorted by
// path or name.
type State struct {
	Files       []File
	Directories []Directory
	Links       []Link
	Units       []Unit
	Ignored     []Section
}
