package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DistrustError is a local file that somebody else than root could have
// written, or read.
type DistrustError struct {
	Path, Reason string
	secret       bool // nobody else may even read it
}

func (e *DistrustError) Error() string { return e.Path + " " + e.Reason }

// Hint says how to make it trusted.
func (e *DistrustError) Hint() string {
	if e.secret {
		return "Give it to root and to nobody else to read: chown root " + e.Path + " && chmod go= " + e.Path + ". Replace what is in it if others may have read it"
	}
	return "Give it to root and to nobody else to write: chown root " + e.Path + " && chmod go-w " + e.Path
}

// ReadTrusted reads a file that decides what may be done to this machine, as
// sshd reads authorized_keys: it and every directory above it, as written and
// with links followed, belong to root or to whoever runs this, and nobody else
// may write to them. A directory in which nobody can replace what is another's
// (mode 1777, as /tmp has it) passes. A file of more than limit bytes is an
// error.
func ReadTrusted(path string, limit int64) ([]byte, error) {
	return read(path, limit, 0)
}

// ReadSecret is ReadTrusted for a file that nobody else may read either: a key, a
// password, a token.
func ReadSecret(path string, limit int64) ([]byte, error) {
	return read(path, limit, 0o044)
}

// ReadGroupSecret is ReadSecret for a file that its group may read.
func ReadGroupSecret(path string, limit int64) ([]byte, error) {
	return read(path, limit, 0o004)
}

// read reads a trusted file whose mode has none of the hidden bits.
func read(path string, limit int64, hidden fs.FileMode) ([]byte, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) { // of some part of the path
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
	} else if err != nil {
		return nil, err
	}
	for _, way := range []string{path, real} {
		if way, err = filepath.Abs(way); err != nil {
			return nil, err
		}
		for dir := filepath.Dir(way); ; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				return nil, err
			}
			if err := trusted(dir, info); err != nil {
				return nil, err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is no regular file")}
	case info.Size() > limit:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it has %d bytes, more than the limit of %d", info.Size(), limit)}
	}
	if err := trusted(path, info); err != nil {
		return nil, err
	}
	for _, who := range others {
		if info.Mode().Perm()&hidden&who.bits != 0 {
			return nil, &DistrustError{Path: path, Reason: fmt.Sprintf("is readable by %s (mode %04o)", who.name, info.Mode().Perm()), secret: true}
		}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// others are those who are not root, with their bits of a mode.
var others = []struct {
	bits fs.FileMode
	name string
}{{0o007, "everybody"}, {0o070, "its group"}}

func trusted(path string, info fs.FileInfo) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && stat.Uid != uint32(os.Geteuid()) {
		return &DistrustError{Path: path, Reason: fmt.Sprintf("belongs to uid %d, not to root", stat.Uid)}
	}
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	for _, who := range others {
		if info.Mode().Perm()&0o022&who.bits != 0 {
			return &DistrustError{Path: path, Reason: fmt.Sprintf("is writable by %s (mode %04o)", who.name, info.Mode().Perm())}
		}
	}
	return nil
}
