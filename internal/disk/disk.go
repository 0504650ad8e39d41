// Package disk says what stands at a path.
//
// Its one rule: it looks and never follows: a symlink is a symlink, and
// nothing is opened that is not a regular file.
package disk

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

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

// Stored is the name of the contents in a directory of such.
func (a Node) Stored() string {
	if a.Secret {
		return a.SHA256 + secret.Suffix
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

// Permissions are the mode bits as chmod(2) takes them.
func Permissions(mode os.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&os.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if mode&os.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if mode&os.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}

// Look returns what stands at a path of this machine (already below the root),
// without reading contents: SHA256 is empty.
func Look(real string) (Node, Stat, error) {
	info, err := os.Lstat(real)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return Node{}, Stat{}, nil
	}
	if err != nil {
		return Node{}, Stat{}, err
	}
	raw := info.Sys().(*syscall.Stat_t)
	node := Node{UID: int(raw.Uid), GID: int(raw.Gid), Mode: Permissions(info.Mode())}
	switch {
	case info.Mode().IsRegular():
		node.Kind, node.Size = File, info.Size()
	case info.IsDir():
		node.Kind = Directory
	case info.Mode()&os.ModeSymlink != 0:
		node.Kind, node.Mode = Link, 0
		if node.Target, err = os.Readlink(real); err != nil {
			return Node{}, Stat{}, err
		}
	default:
		node.Kind = Other
	}
	return node, Stat{
		Inode: raw.Ino, Size: info.Size(),
		MTime: raw.Mtim.Nano(), CTime: raw.Ctim.Nano(),
	}, nil
}

// Read is Look with the hash of a regular file's bytes.
func Read(real string) (Node, Stat, error) {
	node, stat, err := Look(real)
	if err != nil || node.Kind != File {
		return node, stat, err
	}
	node.SHA256, err = hash(real)
	return node, stat, err
}

// At is Read for a path of the host.
func At(h *host.Host, path string) (Node, error) {
	real, err := h.Path(path)
	if err != nil {
		return Node{}, err
	}
	node, _, err := Read(real)
	return node, err
}

func hash(real string) (string, error) {
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", real, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
