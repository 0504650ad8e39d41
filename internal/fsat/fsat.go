// Package fsat opens, looks at and changes what lies at managed paths.
//
// Its one rule: a path is walked from the descriptor of the root directory, one
// component at a time, and what is done to a file is done to the descriptor that was
// looked at. A name says nothing: between two system calls a user of the host may let
// it lead somewhere else.
//
// The walk knows whose place it is in. It is root's at first. From the first directory
// on that belongs to another user, or that others than root may write to, it is
// somebody's, for everything below, whoever owns that: he can move directories of root
// about in there, so that their owner proves nothing. In root's place links are
// followed. In somebody's place none is, and what already stands there is somebody's
// data: see Found.Unsafe. What cannot be done for that reason is a *BlockedError, and
// concerns its path alone.
//
// The walk is written by hand: os.Root and filepath-securejoin keep a path below a
// root, and know nothing of owners.
package fsat

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// FS is the file system of a host below its root directory. Its methods take absolute
// paths of the host, and may be called by several goroutines.
type FS struct {
	root string

	mu sync.Mutex
	// top is the root directory, and trail the directories from there to the one that
	// was last needed: paths come sorted, so the next one often lies in it too.
	top   *dir
	trail []step
}

// step is a component of a path, and the directory that it led to.
type step struct {
	name  string
	dir   *dir
	links int // that were followed to get there
}

// New returns the file system below a directory of this machine. Nothing is opened
// before it is needed.
func New(root string) *FS { return &FS{root: root} }

// Forget closes every directory that is held, so that the next walk begins anew.
func (f *FS) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget()
}

func (f *FS) forget() {
	f.drop(0)
	if f.top != nil {
		f.top.release()
		f.top = nil
	}
}

// holders are the file systems that hold directories, the oldest first. A process that
// looks at many roots must not run out of descriptors.
var holders struct {
	sync.Mutex
	all []*FS
}

// enroll notes that a file system holds directories, and lets the oldest go where there
// are many.
func (f *FS) enroll() {
	const many = 8
	holders.Lock()
	defer holders.Unlock()
	holders.all = append(slices.DeleteFunc(holders.all, func(other *FS) bool { return other == f }), f)
	if len(holders.all) <= many {
		return
	}
	oldest := holders.all[0]
	holders.all = holders.all[1:]
	if !oldest.mu.TryLock() {
		holders.all = append(holders.all, oldest) // it is at work
		return
	}
	defer oldest.mu.Unlock()
	oldest.forget()
}

// Place is whose a directory is.
type Place struct {
	// Path is the first directory on the way to it that is not root's alone; "" in
	// root's place.
	Path string `json:"path,omitempty"`
	// UID is the owner of that directory, 0 where it is root's and others may write
	// to it.
	UID int `json:"uid,omitempty"`
}

// Root tells that nobody but root can change what lies there.
func (p Place) Root() bool { return p.Path == "" }

func (p Place) String() string { return p.Of("") }

// Of is the place for a reader who knows its owner by name.
func (p Place) Of(name string) string {
	switch {
	case p.Root():
		return "root's place"
	case p.UID == 0:
		return p.Path + ", which others than root may write to"
	case name == "":
		return fmt.Sprintf("%s, which belongs to uid %d", p.Path, p.UID)
	}
	return fmt.Sprintf("%s, which belongs to %s (uid %d)", p.Path, name, p.UID)
}

// BlockedError says that a path in somebody's place cannot be looked at or changed as
// it is now. Whoever the place belongs to can end that, and he can bring it about.
type BlockedError struct {
	Path   string
	Place  Place
	Reason string // what is in the way
	Err    error  // the system call's, if one failed
}

func (e *BlockedError) Error() string {
	return fmt.Sprintf("%s is blocked: %s (in %s)", e.Path, e.Reason, e.Place)
}

func (e *BlockedError) Unwrap() error { return e.Err }

// errChanged says that a name stands for something else than it did a moment ago.
var errChanged = errors.New("somebody put something else there meanwhile")

// ours are the errors that nobody brings about in his place: those of a broken disk, and
// of a machine that has no more to give.
var ours = []error{unix.EIO, unix.EUCLEAN, unix.ENOMEM, unix.EMFILE, unix.ENFILE}

// fail is the error of a system call about a path: in somebody's place a
// *BlockedError, since he may have brought it about.
func fail(op, p string, place Place, err error) error {
	if err == nil {
		return nil
	}
	if !place.Root() && !slices.ContainsFunc(ours, func(known error) bool { return errors.Is(err, known) }) {
		return &BlockedError{Path: p, Place: place, Reason: op + ": " + err.Error(), Err: err}
	}
	return &fs.PathError{Op: op, Path: p, Err: err}
}

// Gone tells that something on the way to a path is not there any more, or is no
// directory, or that somebody blocks it.
func Gone(err error) bool {
	var blocked *BlockedError
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.As(err, &blocked)
}

// absentError says that the walk ended before its last component, because there is
// nothing, or in root's place no directory.
type absentError struct {
	place Place
	errno unix.Errno
}

func (e *absentError) Error() string { return e.errno.Error() }
func (e *absentError) Unwrap() error { return e.errno }

// dir is a directory that is held.
type dir struct {
	parent *dir // nil of the root directory
	name   string
	fd     int // O_PATH
	device uint64
	mount  uint64 // 0 where the kernel does not say (before Linux 5.8)
	refs   int    // of the trail, of directories below, of a call
	place  Place
	// hidden: on the way to it lies a directory in somebody's place that is not his, and
	// that not everybody may enter. What is in it may be readable only by its own mode.
	hidden bool
	// guest: on the way to it, in somebody's place, something is mounted that is not his.
	guest bool
	// sticky: it is root's, others may make names in it, and nobody may take away
	// another's.
	sticky bool
	// acl tells whether what is made in it gets an ACL, once that was asked.
	acl *bool
}

// inherited tells whether what was made in the directory got an ACL from it. In
// somebody's place he may have given it one a moment ago.
func (d *dir) inherited() bool {
	if !d.place.Root() {
		return true
	}
	if d.acl == nil {
		has := hasACL(d.fd, aclDefault)
		d.acl = &has
	}
	return *d.acl
}

// path is where the directory lies, without links.
func (d *dir) path() string {
	if d.parent == nil {
		return "/"
	}
	return path.Join(d.parent.path(), d.name)
}

func (d *dir) release() {
	for ; d != nil; d = d.parent {
		if d.refs--; d.refs > 0 {
			return
		}
		shut(d.fd)
	}
}

// entry is whose a name in a directory is; st is nil where nothing bears it.
func (f *FS) entry(d *dir, name string, st *stat) Place {
	if !d.sticky || st == nil || f.isRoot(st.uid) {
		return d.place
	}
	return Place{Path: path.Join(d.path(), name), UID: int(st.uid)}
}

// follows tells whether a link is followed: in root's place, where nobody else can have
// put it there. In a sticky directory a user may have, who moved one of root's out of his
// own; and where it has another owner, he made it while the directory was still his.
func (f *FS) follows(d *dir, uid uint32) bool {
	return d.place.Root() && !d.sticky && f.isRoot(uid)
}

// racing are the errors that somebody brings about who makes a name before us.
var racing = []error{
	errChanged, unix.EEXIST, unix.EISDIR, unix.ENOTEMPTY, unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EBUSY,
}

// failNew is fail for a name that is being made: in a sticky directory of root others
// may have made it.
func (f *FS) failNew(op, p string, d *dir, name string, err error) error {
	place := f.entry(d, name, nil)
	if d.sticky && slices.ContainsFunc(racing, func(known error) bool { return errors.Is(err, known) }) {
		place = Place{Path: d.path()}
	}
	return fail(op, p, place, err)
}

// IsRoot tells the users who may change anything below the root anyway: below another
// one, whoever runs this is one.
func (f *FS) IsRoot(uid int) bool { return f.isRoot(uint32(uid)) }

func (f *FS) isRoot(uid uint32) bool { return uid == 0 || f.root != "/" && int(uid) == os.Geteuid() }

func (f *FS) isRootGroup(gid uint32) bool {
	return gid == 0 || f.root != "/" && int(gid) == os.Getegid()
}

// drop gives up the trail from the n-th component on.
func (f *FS) drop(n int) {
	for _, s := range f.trail[n:] {
		s.dir.release()
	}
	f.trail = f.trail[:n]
}

// begin opens the root directory.
func (f *FS) begin() error {
	if f.top != nil {
		return nil
	}
	fd, err := openat(unix.AT_FDCWD, f.root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return &fs.PathError{Op: "open", Path: f.root, Err: err}
	}
	st, err := statx(fd, "")
	if err != nil {
		shut(fd)
		return &fs.PathError{Op: "stat", Path: f.root, Err: err}
	}
	f.top = &dir{fd: fd, refs: 1, device: st.device, mount: st.mount}
	f.top.place, f.top.sticky = f.judge(f.top, nil, &st)
	f.enroll()
	return nil
}

// hold walks to a directory. It is held until the next call; a caller that needs it
// longer counts itself in refs.
func (f *FS) hold(p string) (*dir, error) {
	if err := f.begin(); err != nil {
		return nil, err
	}
	at, n, links, rest := f.top, 0, 0, strings.TrimPrefix(p, "/")
	for n < len(f.trail) && rest != "" {
		name, after, _ := strings.Cut(rest, "/")
		if f.trail[n].name != name {
			break
		}
		at, rest, links = f.trail[n].dir, after, f.trail[n].links
		n++
	}
	f.drop(n)
	for rest != "" {
		name, after, _ := strings.Cut(rest, "/")
		next, err := f.step(at, name, &links)
		if err != nil {
			return nil, whole(err, p)
		}
		f.trail = append(f.trail, step{name, next, links})
		at, rest = next, after
	}
	return at, nil
}

// whole lets an error on the way name the path that was asked for.
func whole(err error, p string) error {
	var blocked *BlockedError
	if errors.As(err, &blocked) {
		blocked.Path = p
	}
	return err
}

// maxLinks is how many links a walk follows, as the kernel does (path_resolution(7)).
const maxLinks = 40

// step walks one component on. The directory that it returns is counted once for the
// caller.
func (f *FS) step(at *dir, name string, links *int) (*dir, error) {
	switch name {
	case "", ".":
		at.refs++
		return at, nil
	case "..":
		if at.parent != nil {
			at = at.parent
		}
		at.refs++
		return at, nil
	}
	// O_DIRECTORY, too, because without it an automount point is not mounted.
	fd, err := openat(at.fd, name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return f.stepOver(at, name, links)
	}
	here := path.Join(at.path(), name)
	if errors.Is(err, unix.ENOENT) {
		return nil, &absentError{f.entry(at, name, nil), unix.ENOENT}
	}
	if err != nil {
		return nil, fail("open", here, f.entry(at, name, nil), err)
	}
	st, err := f.see(at, fd, "", here)
	if err != nil {
		shut(fd)
		return nil, err
	}
	next := &dir{parent: at, name: name, fd: fd, refs: 1, device: st.device, mount: st.mount}
	next.place, next.sticky = f.judge(next, at, &st)
	next.guest = at.guest || at.isGuest(&st)
	next.hidden = at.hidden || !at.place.Root() && !at.place.owns(st.uid) && st.mode&0o001 == 0
	at.refs++
	return next, nil
}

// owns tells whether a user is the one whose place it is.
func (p Place) owns(uid uint32) bool { return p.UID != 0 && uint32(p.UID) == uid }

// stepOver walks on where there is no directory: over a link in root's place.
func (f *FS) stepOver(at *dir, name string, links *int) (*dir, error) {
	here := path.Join(at.path(), name)
	st, err := f.see(at, at.fd, name, here)
	if isAbsent(err) {
		return nil, &absentError{f.entry(at, name, nil), unix.ENOENT}
	}
	if err != nil {
		return nil, err
	}
	place, link := f.entry(at, name, &st), st.mode&unix.S_IFMT == unix.S_IFLNK
	if place.Root() && link && !f.follows(at, st.uid) {
		if place = (Place{Path: here}); !f.isRoot(st.uid) {
			place.UID = int(st.uid)
		}
	}
	switch {
	case !place.Root():
		why := fmt.Sprintf("%s is %s, where a directory should be", here, st.what())
		return nil, &BlockedError{Path: here, Place: place, Reason: why, Err: unix.ENOTDIR}
	case !link:
		return nil, &absentError{place, unix.ENOTDIR}
	}
	if *links++; *links > maxLinks {
		return nil, &fs.PathError{Op: "open", Path: here, Err: unix.ELOOP}
	}
	target, err := readlinkat(at.fd, name)
	if err != nil {
		return nil, &fs.PathError{Op: "readlink", Path: here, Err: err}
	}
	if path.IsAbs(target) {
		at = f.top
	}
	at.refs++
	for component := range strings.SplitSeq(target, "/") {
		next, err := f.step(at, component, links)
		at.release()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// Opens tells whether a directory with this owner and mode makes what is in it
// somebody's.
func (f *FS) Opens(d disk.Node) bool {
	open, _ := f.opens(uint32(d.UID), uint32(d.GID), d.Mode)
	return open
}

// opens tells whether others than root may change what is in a directory, or may, as
// in /tmp, only make things of their own in it.
func (f *FS) opens(uid, gid, mode uint32) (open, sticky bool) {
	others := mode&0o002 != 0 || mode&0o020 != 0 && !f.isRootGroup(gid)
	switch {
	case !f.isRoot(uid):
		return true, false
	case others && mode&unix.S_ISVTX != 0:
		return false, true
	}
	return others, false
}

// judge says whose the things in a directory are. at is the directory that it lies in.
func (f *FS) judge(d, at *dir, st *stat) (place Place, sticky bool) {
	if at != nil && !at.place.Root() {
		return at.place, false
	}
	gid := st.gid
	if st.mode&0o020 != 0 && f.isRootGroup(gid) && hasACL(d.fd, aclAccess) {
		gid = math.MaxUint32 // the bits of the group are what others may do at most (acl(5))
	}
	open, sticky := f.opens(st.uid, gid, st.mode)
	if !open {
		return Place{}, sticky
	}
	place = Place{Path: d.path()}
	if !f.isRoot(st.uid) {
		place.UID = int(st.uid)
	}
	return place, false
}

// see looks at something in a directory, by its name there or by its descriptor. It is an
// error where what is there must not be believed.
func (f *FS) see(d *dir, at int, name, here string) (stat, error) {
	st, err := statx(at, name)
	if errors.Is(err, unix.EACCES) {
		// Not even root may ask a FUSE server that somebody runs for himself.
		if st, failed := mounted(at, name); failed == nil {
			if strange := f.strange(d, &st, here); strange != nil {
				return stat{}, strange
			}
		}
	}
	if err != nil {
		return stat{}, fail("stat", here, f.entry(d, name, nil), err)
	}
	return st, f.strange(d, &st, here)
}

// isAbsent tells that see found nothing.
func isAbsent(err error) bool { return errors.Is(err, unix.ENOENT) }

// isMounted tells whether something in a directory is on another mount than that.
func (d *dir) isMounted(st *stat) bool {
	return st.mount != d.mount || st.mount == 0 && st.device != d.device
}

// isGuest tells whether something is mounted in somebody's place that is not his. He can
// move the mount to another name there, from a namespace that does not have it.
func (d *dir) isGuest(st *stat) bool {
	return d.isMounted(st) && !d.place.Root() && !d.place.owns(st.uid)
}

// strange is the error of something in a directory that is mounted there and must not be
// believed: a FUSE server says whatever it likes of owners and links, and may never answer.
// Only what root mounted in his own place is entered.
func (f *FS) strange(d *dir, st *stat, here string) error {
	if !d.isMounted(st) || unix.Major(st.device) != 0 {
		return nil
	}
	owner, fuse, listed := fuseOwner(st)
	if listed && (!fuse || d.place.Root() && f.isRoot(owner)) {
		return nil
	}
	place := d.place
	if place.Root() {
		place = Place{Path: here, UID: int(owner)}
	}
	why := fmt.Sprintf("%s is a FUSE file system of uid %d", here, owner)
	if !fuse {
		why = "nobody can say what is mounted at " + here
	}
	return &BlockedError{Path: here, Place: place, Reason: why, Err: unix.ENXIO}
}

// foreign is the error of giving something to another user than root where root's file
// system is mounted in that user's place: it may be mounted somewhere else for root.
func (f *FS) foreign(d *dir, p string, wanted disk.Node) error {
	if !d.guest || f.IsRoot(wanted.UID) {
		return nil
	}
	why := fmt.Sprintf("a file system that is not his is mounted there, and it would belong to uid %d", wanted.UID)
	return &BlockedError{Path: p, Place: d.place, Reason: why, Err: unix.EPERM}
}

// split is where a path lies and what it is called there.
func split(p string) (dir, name string) {
	p = path.Clean("/" + p)
	dir, name = path.Split(p)
	return path.Clean(dir), name
}

// in holds the directory of a path for a call that needs it to be there.
func (f *FS) in(op, p string, do func(d *dir, name string) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, name, err := f.parent(op, p)
	if err != nil {
		return err
	}
	return do(d, name)
}

// parent holds the directory of a path, which has to be there.
func (f *FS) parent(op, p string) (d *dir, name string, err error) {
	dir, name := split(p)
	d, err = f.hold(dir)
	var absent *absentError
	if errors.As(err, &absent) {
		return nil, "", fail(op, p, absent.place, absent.errno)
	}
	return d, name, whole(err, p)
}
