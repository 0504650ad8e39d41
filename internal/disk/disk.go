// Package disk describes what stands at a path, or should stand there.
//
// Its one rule: it is told. Package fsat looks.
package disk

// Kind is the kind of file that a path names.
type Kind string

// The kinds. Absent is the zero value: nothing is there.
const (
	Absent    Kind = ""
	File      Kind = "file"
	Directory Kind = "directory"
	Link      Kind = "link"     // a symbolic link
	HardLink  Kind = "hardlink" // desired only; on disk it is a File like its target
	Other     Kind = "other"    // a device, a socket, a FIFO: never touched
)

// Node is what stands at one path, or what should stand there.
type Node struct {
	Kind Kind   `json:"kind,omitempty"`
	Mode uint32 `json:"mode,omitempty"` // permission, set-uid, set-gid and sticky bits
	UID  int    `json:"uid,omitempty"`
	GID  int    `json:"gid,omitempty"`
	// User and Group are set while an owner is known by name only, because a
	// sysusers.d file of the same plan creates it.
	User  string `json:"user,omitempty"`
	Group string `json:"group,omitempty"`
	// SHA256 of the bytes in hex; "" in a desired file whose bytes are not managed.
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Target string `json:"target,omitempty"` // of links; of a hard link an absolute path
	// Secret contents are shown to nobody, and kept encrypted only. What the disk has
	// does not tell: whoever compares knows.
	Secret bool `json:"secret,omitempty"`
}

// Encrypted ends the names of files whose bytes are encrypted.
const Encrypted = ".age"

// Stored is the name of the contents in a directory of such.
func (a Node) Stored() string {
	if a.Secret {
		return a.SHA256 + Encrypted
	}
	return a.SHA256
}

// Stat is the cheap half of a look: when it is unchanged, the contents are.
type Stat struct {
	Inode        uint64
	Size         int64
	MTime, CTime int64 // nanoseconds since 1970
}

// Equal tells whether b is what a asks for. Modes of symlinks mean nothing,
// and contents that a does not manage are not compared.
func (a Node) Equal(b Node) bool {
	if a.Kind != b.Kind {
		return false
	}
	if a.Kind == Absent {
		return true
	}
	if a.UID != b.UID || a.GID != b.GID || a.User != b.User || a.Group != b.Group {
		return false
	}
	switch a.Kind {
	case Link, HardLink:
		return a.Target == b.Target
	case File:
		return a.Mode == b.Mode && (a.SHA256 == "" || a.SHA256 == b.SHA256)
	default:
		return a.Mode == b.Mode
	}
}

// SameContent is Equal without owner and mode.
func (a Node) SameContent(b Node) bool {
	return a.Kind == b.Kind && a.Target == b.Target && (a.SHA256 == "" || a.SHA256 == b.SHA256)
}
