package fsat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// Found is what stands at a path.
type Found struct {
	disk.Node
	disk.Stat
	Path string
	// Place is whose the directory is that it lies in; of what is absent the nearest
	// one that is there.
	Place Place
	Links uint64 // names that the file has
	// Allocated is how many bytes it takes on the disk: fewer than its size where it
	// has holes.
	Allocated int64
	Immutable bool // or append-only (chattr(1))
	Mounted   bool // a file system or a file is mounted there
	Mount     uint64
	Device    uint64
	Born      int64 // nanoseconds since 1970, 0 where the file system does not say
	// Writers is whose its bytes are: his who may replace it, or his who owns it.
	Writers Place
	// Guest: a file system is mounted there, in somebody's place, that is not his.
	Guest bool
	// Moved: it is in a sticky directory of root's, where a user can move what is root's and
	// no directory out of his own.
	Moved bool
	// Hidden: not everybody may enter a directory on the way to it that is not his whose
	// place it is. Its mode does not say who could read it.
	Hidden bool
}

// Size is that of its contents.
func (f *Found) Size() int64 { return f.Node.Size }

// SameFile tells whether two names are of one file.
func (f *Found) SameFile(other *Found) bool {
	return f.Kind != disk.Absent && other.Kind != disk.Absent && f.Inode == other.Inode && f.Device == other.Device
}

// found describes what was looked at in a directory.
func (f *FS) found(d *dir, name, p string, st *stat) (Found, error) {
	all := Found{
		Node: disk.Node{Kind: st.kind(), UID: int(st.uid), GID: int(st.gid), Mode: st.mode & 0o7777},
		Stat: st.Stat, Path: p, Place: f.entry(d, name, st), Links: uint64(st.links), Allocated: st.allocated,
		Immutable: st.attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0,
		Mounted:   st.attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, Mount: st.mount, Device: st.device,
		Born: st.born, Hidden: d.hidden, Moved: d.sticky, Guest: d.guest || d.isGuest(st),
	}
	if all.Writers = all.Place; all.Writers.Root() && !f.isRoot(st.uid) {
		all.Writers = Place{Path: p, UID: all.UID}
	}
	switch all.Kind {
	case disk.File:
		all.Node.Size = st.Size
	case disk.Link:
		all.Mode = 0 // means nothing
		target, err := readlinkat(d.fd, name)
		if err != nil {
			return Found{}, fail("readlink", p, all.Place, err)
		}
		all.Target = target
	}
	return all, nil
}

// Look returns what stands at a path, without its contents: SHA256 is empty. A path
// whose directory is not there is absent.
func (f *FS) Look(p string) (Found, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.look(p)
}

func (f *FS) look(p string) (Found, error) {
	parent, name := split(p)
	d, err := f.hold(parent)
	var absent *absentError
	if errors.As(err, &absent) {
		return Found{Path: p, Place: absent.place}, nil
	}
	if err != nil {
		return Found{}, whole(err, p)
	}
	st, err := f.see(d, d.fd, name, p)
	if isAbsent(err) {
		return Found{Path: p, Place: f.entry(d, name, nil), Guest: d.guest}, nil
	}
	if err != nil {
		return Found{}, err
	}
	return f.found(d, name, p, &st)
}

// Exists tells whether anything, also a dangling link, stands at the path.
func (f *FS) Exists(p string) bool {
	found, err := f.Look(p)
	return err == nil && found.Kind != disk.Absent
}

// open holds what a name stands for, whatever it is. Nothing happens to it by that.
func (f *FS) open(d *dir, name, p string) (fd int, found Found, err error) {
	fd, err = openat(d.fd, name, unix.O_PATH)
	if err != nil {
		return -1, Found{}, fail("open", p, f.entry(d, name, nil), err)
	}
	st, err := f.see(d, fd, "", p)
	if err == nil {
		found, err = f.found(d, name, p, &st)
	}
	if err != nil {
		shut(fd)
		return -1, Found{}, err
	}
	return fd, found, nil
}

// File is a regular file that is read. Reading ends with its context, and after as
// many bytes as the file had when it was opened.
type File struct {
	Found Found
	f     *os.File
	bytes *until // of f
	left  int64
	// want is the hash that the bytes must have, "" where they may have any.
	want string
	seen hash.Hash
}

// Expect lets reading fail at its end where the bytes are others than the plan saw. It is
// for what others than root may write: root changes his files when he likes.
func (r *File) Expect(sha256sum string) {
	if !r.Found.Writers.Root() {
		r.want, r.seen = sha256sum, sha256.New()
	}
}

// Until reads on until its context ends, and then fails with the context's error.
func Until(ctx context.Context, r io.Reader) io.Reader { return &until{ctx, r} }

type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(into []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(into)
}

// Most is how many bytes are read of a file that others than root may have written,
// unless the caller knows that it may have more.
const Most = 64 << 20

// Open opens a regular file for reading. One that somebody else than root may have
// written is a *BlockedError where it has more than most bytes. Nothing but a regular
// file is opened, so that it never waits.
func (f *FS) Open(ctx context.Context, p string, most int64) (file *File, err error) {
	err = f.in("open", p, func(d *dir, name string) error {
		file, err = f.read(ctx, d, name, p, most)
		return err
	})
	return file, err
}

func (f *FS) read(ctx context.Context, d *dir, name, p string, most int64) (*File, error) {
	fd, found, err := f.open(d, name, p)
	if err != nil {
		return nil, err
	}
	defer shut(fd)
	if found.Kind != disk.File {
		return nil, fail("open", p, found.Place, fmt.Errorf("it is no regular file: %w", unix.EINVAL))
	}
	place := found.Writers
	if !place.Root() && found.Size() > most {
		why := fmt.Sprintf("it has %d bytes, and at most %d are read of it", found.Size(), most)
		return nil, &BlockedError{Path: p, Place: place, Reason: why, Err: unix.EFBIG}
	}
	// A lease lets an open without O_NONBLOCK wait (fcntl(2)). Whoever owns the file may
	// have one, also in root's place.
	real, err := unix.Open(own(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EAGAIN) {
		return nil, fail("open", p, place, err)
	}
	if err != nil {
		return nil, fail("open", p, found.Place, err)
	}
	file := os.NewFile(uintptr(real), p)
	return &File{Found: found, f: file, bytes: &until{ctx, file}, left: found.Size()}, nil
}

// Read reads on, as io.Reader says. A file of somebody's that has become shorter is an
// error.
func (r *File) Read(into []byte) (int, error) {
	if r.left <= 0 {
		if r.want != "" && hex.EncodeToString(r.seen.Sum(nil)) != r.want {
			return 0, r.changed()
		}
		return 0, io.EOF
	}
	n, err := r.bytes.Read(into[:min(int64(len(into)), r.left)])
	r.left -= int64(n)
	if r.seen != nil {
		r.seen.Write(into[:n])
	}
	if errors.Is(err, io.EOF) && !r.Found.Writers.Root() {
		err = r.changed()
	}
	return n, err
}

func (r *File) changed() error { return fail("read", r.Found.Path, r.Found.Writers, errChanged) }

// Close ends reading.
func (r *File) Close() error { return r.f.Close() }

// Read is Look with the hash of a regular file's bytes; most is as in Open.
func (f *FS) Read(ctx context.Context, p string, most int64) (Found, error) {
	found, err := f.Look(p)
	if err != nil || found.Kind != disk.File {
		return found, err
	}
	file, err := f.Open(ctx, p, most)
	if errors.Is(err, fs.ErrNotExist) && found.Place.Root() {
		return f.Look(p) // root himself removed it meanwhile
	}
	if err != nil {
		return Found{}, err
	}
	defer file.Close()
	found = file.Found
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return Found{}, err
	}
	found.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return found, nil
}

// Follow is Look, but of a link in root's place, that is followed on the way too, it
// returns what that leads to.
func (f *FS) Follow(p string) (Found, error) {
	for range maxLinks {
		found, on, err := f.lookAtLink(p)
		if err != nil || !on {
			return found, err
		}
		if p = found.Target; !path.IsAbs(p) {
			// The directory as it is, not as it was asked for: ".." leaves that.
			p = path.Join(f.Resolve(path.Dir(found.Path)), p)
		}
	}
	return Found{}, &fs.PathError{Op: "open", Path: p, Err: unix.ELOOP}
}

// lookAtLink is Look, and tells whether there is a link that is followed.
func (f *FS) lookAtLink(p string) (found Found, on bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found, err = f.look(p)
	if err != nil || found.Kind != disk.Link {
		return found, false, err
	}
	parent, _ := split(p)
	d, err := f.hold(parent)
	if err != nil {
		return Found{}, false, whole(err, p)
	}
	return found, f.follows(d, uint32(found.UID)), nil
}

// ReadFile reads a file of at most so many bytes, also through a link in root's place.
// What is larger is an error.
func (f *FS) ReadFile(p string, most int64) ([]byte, error) {
	found, err := f.Follow(p)
	if err != nil {
		return nil, err
	}
	if found.Kind == disk.Absent {
		return nil, &fs.PathError{Op: "open", Path: p, Err: unix.ENOENT}
	}
	file, err := f.Open(context.Background(), found.Path, most)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if file.left > most {
		return nil, &fs.PathError{Op: "read", Path: p, Err: unix.EFBIG}
	}
	return file.Whole()
}

// Whole reads all that is left into memory.
func (r *File) Whole() ([]byte, error) {
	data := bytes.NewBuffer(make([]byte, 0, r.left+bytes.MinRead))
	_, err := data.ReadFrom(r)
	return data.Bytes(), err
}

// Names calls visit with the names in a directory, in no order, until it returns
// false. The directory may be a link to one, in root's place.
func (f *FS) Names(p string, visit func(name string) bool) error {
	names, err := f.directory(p)
	if err != nil {
		return err
	}
	defer names.Close()
	const some = 256
	for {
		read, err := names.Readdirnames(some)
		for _, name := range read {
			if !visit(name) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// directory opens a directory for what needs more than a way through it.
func (f *FS) directory(p string) (file *os.File, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p = path.Clean("/" + p)
	d, err := f.hold(p)
	var absent *absentError
	if errors.As(err, &absent) {
		return nil, fail("open", p, absent.place, absent.errno)
	}
	if err != nil {
		return nil, err
	}
	fd, err := openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fail("open", p, d.place, err)
	}
	return os.NewFile(uintptr(fd), p), nil
}

// Resolve is the path of a directory without links, as far as there is one.
func (f *FS) Resolve(p string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	rest := ""
	for p = path.Clean("/" + p); ; p, rest = path.Dir(p), path.Join(path.Base(p), rest) {
		if d, err := f.hold(p); err == nil || p == "/" {
			if d != nil {
				p = d.path()
			}
			return path.Join(p, rest)
		}
	}
}

// Ground is the directory in which a path lies or, where there is none yet, the
// nearest one above.
type Ground struct {
	Path   string // as it was asked for
	Place  Place
	Device uint64
	Mount  uint64
	// ReadOnly is its file system, Immutable the directory itself.
	ReadOnly, Immutable bool
	Free                uint64 // bytes
	Block               uint64 // bytes in which the file system gives them out
}

// Ground returns where a path lies.
func (f *FS) Ground(p string) (Ground, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := p
	for p, _ = split(p); ; p = path.Dir(p) {
		d, err := f.hold(p)
		var absent *absentError
		if errors.As(err, &absent) && p != "/" {
			continue
		}
		if err != nil {
			return Ground{}, whole(err, asked)
		}
		st, err := statx(d.fd, "")
		if err != nil {
			return Ground{}, fail("stat", p, d.place, err)
		}
		g := Ground{Path: p, Place: d.place, Device: d.device, Mount: st.mount}
		g.Immutable = st.attributes&unix.STATX_ATTR_IMMUTABLE != 0
		var space unix.Statfs_t
		if err := again(func() error { return unix.Fstatfs(d.fd, &space) }); err != nil {
			return Ground{}, fail("statfs", p, d.place, err)
		}
		g.Free, g.Block = space.Bavail*uint64(space.Bsize), uint64(space.Bsize)
		g.ReadOnly = space.Flags&unix.ST_RDONLY != 0
		return g, nil
	}
}
