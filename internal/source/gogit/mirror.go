package gogit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

var errNoMirror = errors.New("there is no mirror yet")

const (
	// largeObject is the size above which a blob is streamed from its pack
	// instead of being held in memory.
	largeObject = 1 << 20
	// objectCache bounds what go-git keeps of the small objects and delta bases.
	objectCache = 8 * cache.MiByte
)

// mirror is an open mirror whose tip was read and hashed.
type mirror struct {
	dir   string
	files billy.Filesystem
	store *filesystem.Storage // of what is no object
	url   string
	ref   plumbing.ReferenceName
	tip   plumbing.Hash

	mu    sync.Mutex // go-git's packs are for one goroutine
	packs packs      // nil until the first object is read
	other lookup     // of a repository that is no mirror of ours; nil: packs
}

// lookup is where an object is read from.
type lookup interface {
	object(t plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error)
	direct(t plumbing.ObjectType, id plumbing.Hash) (r io.ReadCloser, size int64, ok bool, err error)
	size(id plumbing.Hash) (int64, error)
	close()
}

// openMirror opens the mirror at dir: errNoMirror when there is none,
// source.ErrDamaged when its tip or the root of its tree cannot be read.
func openMirror(dir string) (_ *mirror, err error) {
	if entries, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, errNoMirror
	} else if errors.Is(err, syscall.ENOTDIR) {
		return nil, damaged("its directory", err)
	} else if err != nil {
		return nil, localFailure("opening the mirror", err)
	}
	m := newMirror(dir)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	defer recovered(&err)

	cfg, err := m.store.Config()
	if err != nil {
		return nil, damaged("its config", err)
	}
	if origin := cfg.Remotes[originName]; origin != nil && len(origin.URLs) > 0 {
		m.url = origin.URLs[0]
	}
	head, err := m.store.Reference(plumbing.HEAD)
	if err != nil {
		return nil, damaged("HEAD", err)
	}
	if head.Type() != plumbing.SymbolicReference {
		return nil, damaged("HEAD", errors.New("it names no branch"))
	}
	tip, err := m.store.Reference(head.Target())
	if err != nil {
		return nil, damaged(head.Target().String(), err)
	}
	m.ref, m.tip = head.Target(), tip.Hash()
	if err := m.checkTip(m.tip); err != nil {
		return nil, err
	}
	return m, nil
}

const originName = "origin"

func newMirror(dir string) *mirror {
	files := osfs.New(dir, osfs.WithBoundOS())
	return &mirror{dir: dir, files: files, store: filesystem.NewStorageWithOptions(files, nil, filesystem.Options{ExclusiveAccess: true})}
}

func (m *mirror) close() {
	m.packs.close()
	if m.other != nil {
		m.other.close()
	}
}

// checkTip reads the commit and the root of its tree.
func (m *mirror) checkTip(tip plumbing.Hash) error { return m.repo().Check(tip.String()) }

func (m *mirror) open() (_ lookup, err error) {
	if m.other != nil {
		return m.other, nil
	}
	if m.packs == nil {
		m.packs, err = openPacks(m.files)
	}
	return m.packs, err
}

// encoded looks an object up.
func (m *mirror) encoded(t plumbing.ObjectType, id plumbing.Hash) (obj plumbing.EncodedObject, err error) {
	defer recovered(&err)
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.open()
	if err != nil {
		return nil, err
	}
	if obj, err = from.object(t, id); err != nil {
		return nil, damaged(t.String()+" "+id.String(), err)
	}
	return obj, nil
}

// size is what the pack says about an object, whose content it does not read.
func (m *mirror) size(id plumbing.Hash) (size int64, err error) {
	defer recovered(&err)
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.open()
	if err != nil {
		return 0, err
	}
	if size, err = from.size(id); err != nil {
		return 0, damaged("object "+id.String(), err)
	}
	return size, nil
}

// direct is packs.direct; what is wrong is said by the way that is always open.
func (m *mirror) direct(t plumbing.ObjectType, id plumbing.Hash) (r io.ReadCloser, size int64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.open()
	if err != nil {
		return nil, 0, false
	}
	r, size, ok, err = from.direct(t, id)
	return r, size, ok && err == nil
}

// clone makes a mirror beside the old one, if there is one, and takes its place.
func (s *Source) clone(ctx context.Context, tip *tip) (_ *mirror, err error) {
	parent := filepath.Dir(s.Dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, localFailure("making the cache directory", err)
	}
	if err := removeParts(s.Dir); err != nil {
		return nil, localFailure("removing a half-made clone", err)
	}
	part, err := os.MkdirTemp(parent, filepath.Base(s.Dir)+partInfix)
	if err != nil {
		return nil, localFailure("making the mirror", err)
	}
	defer func() { _ = os.RemoveAll(part) }() // gone already when all went well

	m := newMirror(part)
	defer m.close()
	if err := m.store.Init(); err != nil {
		return nil, localFailure("making the mirror", err)
	}
	cfg := config.NewConfig()
	cfg.Core.IsBare = true
	cfg.Remotes[originName] = &config.RemoteConfig{Name: originName, URLs: []string{s.remote.display}}
	if err := m.store.SetConfig(cfg); err != nil {
		return nil, localFailure("making the mirror", err)
	}
	depth := 1
	if mark := s.Marks[tip.ref.String()]; s.FullHistory || mark != "" && mark != tip.hash.String() {
		depth = 0
	}
	if err := s.transfer(ctx, m, tip, depth); err != nil {
		return nil, err
	}
	if err := m.commitTip(ctx, tip); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return nil, localFailure("removing the old mirror", err)
	}
	if err := os.Rename(part, s.Dir); err != nil {
		return nil, localFailure("putting the mirror in its place", err)
	}
	return openMirror(s.Dir)
}

// update transfers what the mirror lacks of the new tip.
func (s *Source) update(ctx context.Context, m *mirror, tip *tip) (*mirror, error) {
	defer m.close()
	if err := removeLeftovers(m.dir); err != nil {
		return nil, localFailure("removing a half-made pack", err)
	}
	// The tip may be here already, after a force-push there and back.
	if m.checkTip(tip.hash) != nil {
		if err := s.transfer(ctx, m, tip, 0); err != nil {
			return nil, err
		}
	}
	fresh := newMirror(m.dir) // with the new pack
	if err := fresh.commitTip(ctx, tip); err != nil {
		fresh.close()
		return nil, err
	}
	fresh.url, fresh.ref, fresh.tip = m.url, tip.ref, tip.hash
	return fresh, nil
}

// transfer asks for the tip, naming what the mirror has, and stores the pack. The
// server is told that the mirror is shallow: else it leaves out objects of older
// commits that a new one uses again.
func (s *Source) transfer(ctx context.Context, m *mirror, tip *tip, depth int) error {
	with, err := tip.conversation(ctx)
	if err != nil {
		return err
	}
	r := request{want: tip.hash, have: m.tip, depth: depth}
	if !m.tip.IsZero() {
		if r.shallow, err = m.store.Shallow(); err != nil {
			return damaged("its shallow file", err)
		}
	}
	if s.Progress != nil {
		r.progress = &plainWriter{s.Progress}
	}
	a, err := with.fetch(ctx, r)
	if err != nil {
		return err
	}
	if len(a.shallow) > 0 {
		// Of a server that is shallow itself, there may be more than before.
		if err := m.store.SetShallow(append(r.shallow, a.shallow...)); err != nil {
			return localFailure("writing the mirror", err)
		}
	}
	if err := receivePack(ctx, m.dir, &contextReader{ctx, a.pack}, s.Limits); err != nil {
		return fmt.Errorf("receiving the pack: %w", err)
	}
	return nil
}

// contextReader ends a transfer with its context, also where the transport
// does not look at it.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// commitTip makes the transferred tip the mirror's, unless the fetch was given
// up meanwhile: it is the last thing that a fetch writes.
func (m *mirror) commitTip(ctx context.Context, tip *tip) error {
	if err := m.checkTip(tip.hash); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := replace(filepath.Join(m.dir, filepath.FromSlash(tip.ref.String())), []byte(tip.hash.String()+"\n")); err != nil {
		return localFailure("writing the mirror", err)
	}
	if err := replace(filepath.Join(m.dir, "HEAD"), []byte("ref: "+tip.ref.String()+"\n")); err != nil {
		return localFailure("writing the mirror", err)
	}
	return nil
}

// replace writes a file of the mirror in one step. It does not wait for
// the disk: a mirror that a power cut damaged is cloned again.
func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

const partInfix = ".part-"

func removeParts(dir string) error {
	parts, err := filepath.Glob(globEscape(dir) + partInfix + "*")
	for _, p := range parts {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return err
}

// removeLeftovers removes packs that a fetch before this one, or this one, left
// unfinished.
func removeLeftovers(dir string) error {
	temps, err := filepath.Glob(filepath.Join(globEscape(dir), "objects", "pack", "tmp_*"))
	for _, t := range temps {
		err = errors.Join(err, os.Remove(t))
	}
	return err
}

func removeMirror(dir string) error {
	return errors.Join(removeParts(dir), os.RemoveAll(dir))
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// damaged marks what is wrong with the mirror itself; a machine without memory
// or open files left is at fault itself.
func damaged(what string, err error) error {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM, syscall.EIO} {
		if errors.Is(err, e) {
			return localFailure("reading the mirror", err)
		}
	}
	return fmt.Errorf("%w: %s: %w", source.ErrDamaged, what, err)
}

func localFailure(doing string, err error) error {
	return &failure{kind: source.ErrLocal, text: doing + ": " + err.Error(), cause: err}
}

// recovered turns a panic of go-git over foreign bytes into an error.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = damaged("it cannot be read", fmt.Errorf("%v", r))
	}
}
