package fsat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// Unsafe says why what stands at a path in somebody's place must not become, as it is,
// what is wanted there; "" where nothing speaks against it. Its owner may have moved
// anything to that name that lies in his place, a directory that only root could enter
// above all. So it gets another owner, or a mode that lets others do more, and its
// bytes become a part of another file, only where it is his own, or hides nothing.
// Set-id bits are for bytes that we wrote.
func (f *Found) Unsafe(wanted disk.Node) string {
	file := f.Kind == disk.File
	switch {
	case file && wanted.Mode&setID != 0 && f.UID != wanted.UID && !f.Writers.Root():
		return "what is there would get set-id bits"
	case f.Guest && (f.UID != wanted.UID || f.GID != wanted.GID):
		return "a file system that is not his is mounted there"
	}
	if f.Place.Root() && !(file && f.Moved) || !file && f.Kind != disk.Directory {
		return ""
	}
	const read, enter = 0o004, 0o001
	same := f.UID == wanted.UID && f.GID == wanted.GID
	public := !f.Hidden && f.Mode&read != 0 && (file || f.Mode&enter != 0) && (!file || f.Mode&setID == 0)
	switch {
	case same && f.Mode == wanted.Mode:
		return ""
	case file && wanted.Mode&setID != 0:
		return "what is there would get set-id bits"
	case file && f.Links > 1:
		return fmt.Sprintf("what is there has %d names, and would change under all of them", f.Links)
	case f.Place.UID != 0 && f.UID == f.Place.UID, public, same && wanted.Mode&^f.Mode&0o7777 == 0:
		return ""
	}
	return fmt.Sprintf("what is there belongs to %d:%d with mode %04o, and would be opened to others",
		f.UID, f.GID, f.Mode)
}

// HalfMade tells whether a directory looks as Mkdir leaves it when it ends too early. It is
// one of ours only if it is empty, too.
func (f *Found) HalfMade() bool {
	return !f.Place.Root() && f.Kind == disk.Directory && f.UID == 0 && f.Mode&0o077 == 0
}

const setID = unix.S_ISUID | unix.S_ISGID

// Known is a directory that may get another owner or mode although Found.Unsafe says
// otherwise, because it is our own: as it was looked at, and as it was then.
type Known struct {
	Device uint64 `json:"device,omitempty"`
	Inode  uint64 `json:"inode,omitempty"`
	Born   int64  `json:"born,omitempty"`
}

// Known is what it is known by later. An inode number alone is given to another directory
// when this one goes.
func (f *Found) Known() *Known { return &Known{Device: f.Device, Inode: f.Inode, Born: f.Born} }

// Is tells whether a directory is the one that is known.
func (k *Known) Is(f *Found) bool {
	return k != nil && f.Kind == disk.Directory && *k == *f.Known()
}

// ID names an inode that a call made.
type ID struct{ device, inode uint64 }

// Plain are the attributes of what belongs to whoever runs this.
func Plain(mode uint32) Attributes {
	return Attributes{Node: disk.Node{Mode: mode, UID: os.Geteuid(), GID: os.Getegid()}}
}

// Whose is the place of who may have put there what stands at the path.
func (f *Found) Whose() Place {
	if f.Writers.Root() && f.Moved {
		return Place{Path: path.Dir(f.Path)}
	}
	return f.Writers
}

// Attributes are what a new file gets besides its contents.
type Attributes struct {
	Node  disk.Node // owner and mode
	Label string    // the SELinux context, "" where there is none
}

// Draft is a file that is being made.
type Draft struct{ f *os.File }

func (d *Draft) Write(data []byte) (int, error) { return d.f.Write(data) }

// Clone shares the blocks of another file, where that is one and the file system can.
func (d *Draft) Clone(r io.Reader) bool {
	from, ok := r.(*os.File)
	return ok && unix.IoctlFileClone(int(d.f.Fd()), int(from.Fd())) == nil
}

// Create makes a file with the name temp beside a path. fill writes it; it must not
// call the FS. The file is root's alone until it is whole, and never anything that
// stood there: a leftover is removed. It keeps the user's own extended attributes of
// what it is to replace.
func (f *FS) Create(p, temp string, is Attributes, fill func(*Draft) error) (id ID, err error) {
	err = f.in("create", p, func(d *dir, name string) error {
		id, err = f.create(d, name, temp, p, is, fill)
		return err
	})
	return id, err
}

func (f *FS) create(d *dir, name, temp, p string, is Attributes, fill func(*Draft) error) (id ID, err error) {
	beside := path.Join(path.Dir(p), temp)
	if err := errors.Join(f.foreign(d, p, is.Node), f.clear(d, temp, beside)); err != nil {
		return ID{}, err
	}
	fd, err := unix.Openat(d.fd, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return ID{}, f.failNew("create", beside, d, temp, err)
	}
	file := os.NewFile(uintptr(fd), beside)
	defer func() {
		if err != nil && !d.place.Root() {
			_ = unix.Unlinkat(d.fd, temp, 0) // the change goes on without it
		}
	}()
	err = fill(&Draft{file})
	var failed *fs.PathError
	if errors.As(err, &failed) && failed.Path == beside {
		err = f.failNew(failed.Op, beside, d, temp, failed.Err)
	}
	if err == nil {
		f.keepAttributes(d, name, p, fd, is.Node)
		err = f.failNew("set the attributes of", beside, d, temp, d.dress(fd, is, aclAccess))
	}
	if err == nil {
		id, err = identify(fd)
	}
	return id, errors.Join(err, file.Close())
}

// dress gives what was made in a directory its owner, label and mode; the owner first,
// because chown(2) takes set-id bits away.
func (d *dir) dress(fd int, is Attributes, acls ...string) error {
	if d.inherited() {
		if err := dropACL(fd, acls...); err != nil {
			return err
		}
	}
	if err := unix.Fchown(fd, is.Node.UID, is.Node.GID); err != nil {
		return err
	}
	if is.Label != "" {
		if err := unix.Fsetxattr(fd, label, []byte(is.Label), 0); err != nil {
			return fmt.Errorf("the SELinux label %s: %w", is.Label, err)
		}
	}
	return unix.Fchmod(fd, is.Node.Mode)
}

const label = "security.selinux"

func identify(fd int) (ID, error) {
	st, err := statx(fd, "")
	return ID{st.device, st.Inode}, err
}

// keepAttributes copies the user's own extended attributes from the file that is
// replaced, where they hide nothing. File systems without them, and new files, have none.
func (f *FS) keepAttributes(d *dir, name, p string, to int, is disk.Node) {
	from, found, err := f.open(d, name, p)
	if err != nil {
		return
	}
	defer shut(from)
	if found.Kind != disk.File || found.Unsafe(is) != "" {
		return
	}
	size, err := unix.Listxattr(own(from), nil)
	if err != nil || size == 0 {
		return
	}
	names := make([]byte, size)
	if size, err = unix.Listxattr(own(from), names); err != nil {
		return
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		if n, err := unix.Getxattr(own(from), name, value); err == nil {
			// An attribute that does not fit the file system is not worth a failed change.
			_ = unix.Fsetxattr(to, name, value[:n], 0)
		}
	}
}

// clear removes a leftover from a name that is about to be made.
func (f *FS) clear(d *dir, temp, p string) error {
	err := unix.Unlinkat(d.fd, temp, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	// A read-only file system refuses before it looks.
	if _, look := statx(d.fd, temp); errors.Is(look, unix.ENOENT) {
		return nil
	}
	return f.failNew("remove", p, d, temp, err)
}

// Symlink makes a link with the name temp beside a path.
func (f *FS) Symlink(p, temp, target string, is Attributes) (id ID, err error) {
	err = f.in("symlink", p, func(d *dir, _ string) error {
		beside := path.Join(path.Dir(p), temp)
		if err := errors.Join(f.foreign(d, p, is.Node), f.clear(d, temp, beside)); err != nil {
			return err
		}
		if err := unix.Symlinkat(target, d.fd, temp); err != nil {
			return f.failNew("symlink", beside, d, temp, err)
		}
		fd, found, err := f.open(d, temp, beside)
		if err != nil {
			return err
		}
		defer shut(fd)
		if found.Kind != disk.Link || found.Links != 1 || found.UID != os.Geteuid() {
			return f.failNew("symlink", beside, d, temp, errChanged)
		}
		id = ID{found.Device, found.Inode}
		return fail("set the attributes of", beside, found.Place, dressLink(d, temp, fd, is))
	})
	return id, err
}

func dressLink(d *dir, name string, fd int, is Attributes) error {
	if err := unix.Fchownat(fd, "", is.Node.UID, is.Node.GID, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if is.Label == "" {
		return nil
	}
	// No call labels a link by its descriptor.
	if err := unix.Lsetxattr(own(d.fd)+"/"+name, label, []byte(is.Label), 0); err != nil {
		return fmt.Errorf("the SELinux label %s: %w", is.Label, err)
	}
	return nil
}

// Link makes a hard link with the name temp beside a path. No file of somebody's place
// gets a name in root's.
func (f *FS) Link(p, temp, target string) (id ID, err error) {
	err = f.in("link", target, func(from *dir, name string) error {
		fd, found, err := f.open(from, name, target)
		if err != nil {
			return err
		}
		defer shut(fd)
		if found.Kind != disk.File {
			return fail("link", target, found.Place, unix.EINVAL)
		}
		d, _, err := f.parent("link", p)
		if err != nil {
			return err
		}
		beside := path.Join(path.Dir(p), temp)
		if d.place.Root() && !found.Place.Root() {
			return &BlockedError{Path: p, Place: found.Place, Reason: "it would be a name for " + target, Err: unix.EPERM}
		}
		if err := f.clear(d, temp, beside); err != nil {
			return err
		}
		id = ID{found.Device, found.Inode}
		return f.failNew("link", beside, d, temp, unix.Linkat(unix.AT_FDCWD, own(fd), d.fd, temp, unix.AT_SYMLINK_FOLLOW))
	})
	return id, err
}

// Rename puts what was made beside a path in its place. An empty directory there goes.
// It tells whether anything that stood there was changed, also when it fails.
func (f *FS) Rename(p, temp string, made ID) (changed bool, err error) {
	err = f.in("rename", p, func(d *dir, name string) error {
		beside := path.Join(path.Dir(p), temp)
		st, err := statx(d.fd, temp)
		if err != nil {
			return f.failNew("rename", beside, d, temp, err)
		}
		if (ID{st.device, st.Inode}) != made {
			return f.failNew("rename", beside, d, temp, errChanged)
		}
		if st, err := statx(d.fd, name); err == nil && st.kind() == disk.Directory {
			if err := unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR); err != nil {
				return f.failNew("rmdir", p, d, name, err)
			}
			changed = true
		}
		if err := unix.Renameat(d.fd, temp, d.fd, name); err != nil {
			return f.failNew("rename", p, d, name, err)
		}
		changed = true
		return nil
	})
	return changed, err
}

// Mkdir makes a directory. It is root's alone to write until it has its owner and mode.
func (f *FS) Mkdir(p string, is Attributes) error {
	return f.in("mkdir", p, func(d *dir, name string) error {
		if err := f.foreign(d, p, is.Node); err != nil {
			return err
		}
		mode := uint32(0o700)
		if d.place.Root() {
			mode = is.Node.Mode & 0o755 // one that a crash leaves has it already
		}
		if err := unix.Mkdirat(d.fd, name, mode); err != nil {
			return f.failNew("mkdir", p, d, name, err)
		}
		// Somebody may have moved another one there, or mounted something.
		at, found, err := f.open(d, name, p)
		if err != nil {
			return err
		}
		defer shut(at)
		fd, err := openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return f.failNew("open", p, d, name, err)
		}
		file := os.NewFile(uintptr(fd), p)
		defer file.Close()
		if !d.place.Root() {
			// One that is root's alone, and empty, is as good as ours.
			names, _ := file.Readdirnames(1)
			if len(names) > 0 || !f.IsRoot(found.UID) || found.Mode&0o077 != 0 {
				return f.failNew("mkdir", p, d, name, errChanged)
			}
		}
		return f.failNew("set the attributes of", p, d, name, d.dress(fd, is, aclAccess, aclDefault))
	})
}

// Own gives what stands at a path its owner, label and mode. known is the directory that
// it may be although Found.Unsafe says otherwise, while it has the owner and mode that it
// had then, or that it is to have.
func (f *FS) Own(p string, is Attributes, known *Known, had disk.Node) error {
	return f.in("chown", p, func(d *dir, name string) error {
		fd, found, err := f.open(d, name, p)
		if err != nil {
			return err
		}
		defer shut(fd)
		if found.Kind != is.Node.Kind {
			return fail("chown", p, found.Place, errChanged)
		}
		ours := known.Is(&found) && (found.Node.Equal(had) || found.Node.Equal(is.Node))
		if why := found.Unsafe(is.Node); why != "" && !ours {
			return &BlockedError{Path: p, Place: found.Whose(), Reason: why, Err: unix.EPERM}
		}
		if found.Kind == disk.Link {
			return fail("chown", p, found.Place, dressLink(d, name, fd, is))
		}
		if err := change(fd, &found, is.Node); err != nil {
			return fail("chown", p, found.Place, err)
		}
		if is.Label == "" {
			return nil
		}
		if err := unix.Setxattr(own(fd), label, []byte(is.Label), 0); err != nil {
			return fail("set the SELinux label "+is.Label+" of", p, found.Place, err)
		}
		return nil
	})
}

// change gives a file or directory another owner and mode. What the new owner may not do
// nobody else of his group may do meanwhile.
func change(fd int, is *Found, wanted disk.Node) error {
	given := is.UID != wanted.UID || is.GID != wanted.GID
	if !given && is.Mode == wanted.Mode {
		return nil
	}
	if narrow := is.Mode & wanted.Mode; given && narrow != is.Mode {
		if err := unix.Fchmodat(unix.AT_FDCWD, own(fd), narrow, 0); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(fd, "", wanted.UID, wanted.GID, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Fchmodat(unix.AT_FDCWD, own(fd), wanted.Mode, 0)
}

// ErrNotEmpty is a directory that is not removed because there is something in it.
var ErrNotEmpty error = unix.ENOTEMPTY

// Remove removes what stands at a path, of directories only an empty one, and tells
// whether there was anything. Its error wraps ErrNotEmpty where a directory is not.
func (f *FS) Remove(p string) (removed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found, err := f.look(p)
	if err != nil || found.Kind == disk.Absent {
		return false, err
	}
	parent, name := split(p)
	d, err := f.hold(parent)
	if err != nil {
		return false, whole(err, p)
	}
	flags := 0
	if found.Kind == disk.Directory {
		flags = unix.AT_REMOVEDIR
	}
	err = unix.Unlinkat(d.fd, name, flags)
	if errors.Is(err, unix.EEXIST) { // as some file systems say it
		err = unix.ENOTEMPTY
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		return false, &fs.PathError{Op: "rmdir", Path: p, Err: err}
	}
	return err == nil, fail("remove", p, found.Place, err)
}

// RemoveBeside removes a leftover with the name temp beside a path.
func (f *FS) RemoveBeside(p, temp string) error {
	err := f.in("remove", p, func(d *dir, _ string) error { return f.clear(d, temp, path.Join(path.Dir(p), temp)) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// Sync makes the names in a directory durable.
func (f *FS) Sync(p string) error {
	d, err := f.directory(p)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncFS makes everything durable that was written to the file system of a directory,
// contents and names alike: syncfs(2), which also reports the errors of writing back.
func (f *FS) SyncFS(p string) error {
	d, err := f.directory(p)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncing the file system of %s: %w", p, err)
	}
	return nil
}
