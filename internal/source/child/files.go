package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// files are copies of local files in memory, so that credentials stay root's and the
// other process can read them without being able to open them.
type files struct {
	user  *run.User
	open  []*os.File
	names map[int]string // by descriptor in the other process
	err   error

	agent  *agent // nil: none
	socket string // its name in the other process
}

const (
	firstFile = 3
	// missing is the first descriptor of files that are not there: nobody has so
	// many open.
	missing = 1 << 30
)

// add is HandOver.
func (f *files) add(path string, read func(path string) ([]byte, error)) string {
	if path == "" {
		return ""
	}
	n := firstFile + len(f.open)
	copied, err := f.copy(path, read)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n = missing + len(f.names)
	case err != nil:
		f.err = errors.Join(f.err, err)
		return ""
	default:
		f.open = append(f.open, copied)
	}
	if f.names == nil {
		f.names = map[int]string{}
	}
	f.names[n] = path
	return descriptors + strconv.Itoa(n)
}

// addAgent hands over a way to an ssh-agent.
func (f *files) addAgent(to, user string) (err error) {
	if f.agent, err = newAgent(to, user); err != nil {
		return err
	}
	f.socket = descriptors + strconv.Itoa(firstFile+len(f.open))
	f.open = append(f.open, f.agent.theirs)
	return nil
}

const descriptors = "/proc/self/fd/"

func (f *files) copy(path string, read func(path string) ([]byte, error)) (*os.File, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("reconf-pull", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, &localError{"handing over " + path, os.NewSyscallError("memfd_create", err)}
	}
	to := os.NewFile(uintptr(fd), path)
	_, err = to.Write(data)
	if f.user != nil {
		err = errors.Join(err, to.Chown(int(f.user.UID), int(f.user.GID)))
	}
	const ownerReads = 0o400
	if err := errors.Join(err, to.Chmod(ownerReads)); err != nil {
		return nil, errors.Join(&localError{"handing over " + path, err}, to.Close())
	}
	return to, nil
}

func (f *files) close() {
	for _, open := range f.open {
		_ = open.Close()
	}
}

var handedOver = regexp.MustCompile(regexp.QuoteMeta(descriptors) + `(\d+)`)

// rename gives files the names that people know in what the other process says.
func (f *files) rename(text string) string {
	return handedOver.ReplaceAllStringFunc(text, func(name string) string {
		n, err := strconv.Atoi(name[len(descriptors):])
		if real, ok := f.names[n]; err == nil && ok {
			return real
		}
		return name
	})
}

// localError is this machine's fault.
type localError struct {
	doing string
	cause error
}

func (e *localError) Error() string   { return e.doing + ": " + e.cause.Error() }
func (e *localError) Unwrap() []error { return []error{source.ErrLocal, e.cause} }

// prepare makes the directory that the other process may write. This one never
// opens anything below it: whatever is in its place and belongs to somebody else,
// as an older release's mirror does, is removed without following a link.
func prepare(dir string, user *run.User) (err error) {
	defer func() {
		if err != nil {
			err = &source.Error{Err: &localError{"making the mirror's directory", err}, Hint: hint(err)}
		}
	}()
	parent, name := filepath.Split(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer root.Close()
	if user != nil {
		if err := passable(root, parent); err != nil {
			return err
		}
	}
	info, err := root.Lstat(name)
	if err == nil && (!info.IsDir() || user != nil && info.Sys().(*syscall.Stat_t).Uid != user.UID) {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
		err = fs.ErrNotExist
	} else if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil || user == nil {
		return err
	}
	return root.Lchown(name, int(user.UID), int(user.GID))
}

// passable lets the other user through to what is his, and makes sure that nobody
// can put something else in its place.
func passable(root *os.Root, path string) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	const through, others = 0o011, 0o022
	mode := info.Mode().Perm()
	if mode&others != 0 || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to uid %d and has mode %04o: others may write it", path, info.Sys().(*syscall.Stat_t).Uid, mode)
	}
	if mode&through == through {
		return nil
	}
	return root.Chmod(".", mode|through)
}

func hint(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "Make room on the file system of the cache directory; what is in the mirror may be deleted at any time."
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return "The cache directory must be writable."
	}
	return ""
}
