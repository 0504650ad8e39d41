package gogit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/index"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Local is an author's own repository, read as it is: also a linked worktree, a
// bare one, one that borrows objects, or a shallow one.
type Local struct {
	m       *mirror
	repo    *git.Repository
	shallow bool
	sub     string // where the directory lies below the root of the repository
}

// RevisionError says that a local repository cannot give a revision.
type RevisionError struct {
	Revision string
	Err      error
	Shallow  bool // the repository has no complete history
}

func (e *RevisionError) Error() string { return fmt.Sprintf("reading %s: %v", e.Revision, e.Err) }
func (e *RevisionError) Unwrap() error { return e.Err }

// Hint says how to get at it.
func (e *RevisionError) Hint() string {
	if e.Shallow {
		return "the clone is shallow; say git fetch --unshallow, in CI fetch-depth: 0 (GitHub, Gitea) or GIT_DEPTH: 0 (GitLab)"
	}
	return "a branch, a tag or a commit of this repository is needed; git fetch brings those of the remote"
}

// ErrNoRepository says that a directory belongs to no git repository.
var ErrNoRepository = errors.New("it is in no git repository")

// OpenLocal opens the repository that dir belongs to.
func OpenLocal(dir string) (_ *Local, err error) {
	defer recovered(&err)
	repo, err := git.PlainOpenWithOptions(dir, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if errors.Is(err, git.ErrRepositoryNotExists) {
		repo, err = git.PlainOpen(dir) // a bare one
	}
	if errors.Is(err, git.ErrRepositoryNotExists) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoRepository)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the git repository of %s: %w", dir, err)
	}
	store, ok := repo.Storer.(*filesystem.Storage)
	if !ok {
		return nil, errors.New("internal error: the repository is not on a disk")
	}
	l := &Local{}
	if l.sub, err = below(repo, dir); err != nil {
		return nil, err
	}
	// Objects that it borrows lie anywhere.
	store = filesystem.NewStorageWithOptions(store.Filesystem(), cache.NewObjectLRU(objectCache),
		filesystem.Options{AlternatesFS: osfs.New("/"), LargeObjectThreshold: largeObject})
	if l.repo, err = git.Open(store, nil); err != nil {
		return nil, fmt.Errorf("opening the git repository of %s: %w", dir, err)
	}
	roots, err := store.Shallow()
	if err != nil {
		return nil, fmt.Errorf("opening the git repository of %s: %w", dir, err)
	}
	l.shallow = len(roots) > 0
	// What is not in a pack, or in one that is just being replaced, is found by
	// go-git, which is slower and knows all places.
	fast, err := openPacks(store.Filesystem())
	if err != nil {
		fast.close()
		fast = nil
	}
	l.m = &mirror{other: &everywhere{packs: fast, all: store}}
	return l, nil
}

// below is where dir lies in the work tree, "." for its root and for a bare
// repository.
func below(repo *git.Repository, dir string) (string, error) {
	tree, err := repo.Worktree()
	if errors.Is(err, git.ErrIsBareRepository) {
		return ".", nil
	}
	if err != nil {
		return "", err
	}
	root, err1 := filepath.EvalSymlinks(tree.Filesystem.Root())
	abs, err2 := filepath.Abs(dir)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, abs)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", &os.PathError{Op: "find", Path: dir, Err: ErrNoRepository}
	}
	return filepath.ToSlash(rel), nil
}

// everywhere looks into the packs first, then wherever git has objects.
type everywhere struct {
	packs packs
	all   storer.EncodedObjectStorer
}

func (e *everywhere) object(t plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	if obj, err := e.packs.object(t, id); err == nil {
		return obj, nil
	}
	return e.all.EncodedObject(t, id)
}

func (e *everywhere) direct(t plumbing.ObjectType, id plumbing.Hash) (io.ReadCloser, int64, bool, error) {
	return e.packs.direct(t, id)
}

func (e *everywhere) size(id plumbing.Hash) (int64, error) {
	if size, err := e.packs.size(id); err == nil {
		return size, nil
	}
	if size, err := e.all.EncodedObjectSize(id); err == nil {
		return size, nil
	}
	// Only the whole object is looked for where objects are borrowed from.
	obj, err := e.all.EncodedObject(plumbing.AnyObject, id)
	if err != nil {
		return 0, err
	}
	return obj.Size(), nil
}

func (e *everywhere) close() { e.packs.close() }

// Tree opens the tree of a revision (a commit, a branch, a tag, HEAD~1) as the
// directory that was opened would have it, and says which commit that is.
func (l *Local) Tree(revision string) (_ source.Tree, commit string, err error) {
	defer recovered(&err)
	fail := func(err error) error { return &RevisionError{Revision: revision, Err: err, Shallow: l.shallow} }
	id, err := l.repo.ResolveRevision(plumbing.Revision(revision))
	if errors.Is(err, plumbing.ErrReferenceNotFound) || errors.Is(err, plumbing.ErrObjectNotFound) || errors.Is(err, io.EOF) {
		err = errors.New("there is no such commit here")
	}
	if err != nil {
		return nil, "", fail(err)
	}
	root, err := l.m.repo().Tree(context.Background(), id.String())
	if err != nil {
		return nil, "", fail(l.Explain(err))
	}
	if l.sub == "." {
		return root, id.String(), nil
	}
	folder, err := root.Entry(l.sub)
	if err == nil && folder.Mode != source.Directory {
		err = &fs.PathError{Op: "look up", Path: l.sub, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, "", fail(err)
	}
	return l.m.repo().TreeOf(folder.ID), id.String(), nil
}

// Tracked tells whether git follows a file of the directory that was opened.
func (l *Local) Tracked(name string) (_ bool, err error) {
	defer recovered(&err)
	known, err := l.repo.Storer.Index()
	if err != nil {
		return false, err
	}
	whole := path.Join(l.sub, name)
	return slices.ContainsFunc(known.Entries, func(e *index.Entry) bool { return e.Name == whole }), nil
}

// MissingError says that a local repository has not all objects of a commit.
type MissingError struct{ Err error }

func (e *MissingError) Error() string {
	return "the git repository is not complete: " + strings.TrimPrefix(e.Err.Error(), source.ErrDamaged.Error()+": ")
}
func (e *MissingError) Unwrap() error { return e.Err }

// Hint says how to get them.
func (e *MissingError) Hint() string {
	return "git fsck tells what is missing; a clone made with --filter lacks files on purpose: git fetch --refetch --no-filter brings them"
}

// Explain says in an author's words what reading a tree of the repository ended
// with.
func (l *Local) Explain(err error) error {
	if errors.Is(err, source.ErrDamaged) {
		return &MissingError{err}
	}
	return err
}

// Close gives back open files.
func (l *Local) Close() { l.m.close() }
