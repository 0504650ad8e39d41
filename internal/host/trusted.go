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
// written, or a secret that somebody else could have read.
type DistrustError struct {
	Path, Reason string
	secret       bool // that somebody else could have read
}

func (e *DistrustError) Error() string { return e.Path + " " + e.Reason }

// Hint says how to make it trusted.
func (e *DistrustError) Hint() string {
	if e.secret {
		return "Run chmod 0600 " + e.Path + ", and replace what is in it if others may have read it."
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
	return readTrusted(path, limit, func(fs.FileInfo) error { return nil })
}

// ReadSecret is ReadTrusted for a file that nobody but its owner may read, either: a
// key, a password, a token.
func ReadSecret(path string, limit int64) ([]byte, error) {
	return readTrusted(path, limit, func(info fs.FileInfo) error {
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return &DistrustError{Path: path, Reason: fmt.Sprintf("has mode %04o: others than its owner may open it", mode), secret: true}
		}
		return nil
	})
}

func readTrusted(path string, limit int64, check func(fs.FileInfo) error) ([]byte, error) {
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
	if err := check(info); err != nil {
		return nil, err
	}
	if err := trusted(path, info); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

func trusted(path string, info fs.FileInfo) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && stat.Uid != uint32(os.Geteuid()) {
		return &DistrustError{Path: path, Reason: fmt.Sprintf("belongs to uid %d, not to root", stat.Uid)}
	}
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	for _, who := range []struct {
		bit  fs.FileMode
		name string
	}{{0o002, "everybody"}, {0o020, "its group"}} {
		if info.Mode().Perm()&who.bit != 0 {
			return &DistrustError{Path: path, Reason: fmt.Sprintf("is writable by %s (mode %04o)", who.name, info.Mode().Perm())}
		}
	}
	return nil
}
