package butane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Limits bound what a host config may refer to. 0 is the default.
type Limits struct {
	// MaxText is bytes of one file that Butane reads or that is expanded, before and
	// after. Butane holds a layer and all text that it refers to in memory several
	// times over.
	MaxText    int64
	MaxEntries int // of all trees together, and references
	MaxDepth   int // folders of a tree in one another
}

// The limits that hold when nothing else is said.
const (
	DefaultMaxText    = 1 << 20
	DefaultMaxEntries = 100_000
	DefaultMaxDepth   = 64
)

// OrDefault puts the default where there is no limit.
func (l Limits) OrDefault() Limits {
	if l.MaxText <= 0 {
		l.MaxText = DefaultMaxText
	}
	if l.MaxEntries <= 0 {
		l.MaxEntries = DefaultMaxEntries
	}
	if l.MaxDepth <= 0 {
		l.MaxDepth = DefaultMaxDepth
	}
	return l
}

const maxTarget = 4096 // the kernel's bound on the target of a symlink

// placeholderPrefix begins every placeholder; what follows it is checked too.
const placeholderPrefix = "reconf-pull placeholder "

// Placeholder is what Butane gets in place of a blob: its object id and its
// path in the fleet repo. The nonce is new for every translation, so that no
// layer can write a placeholder itself.
func Placeholder(nonce, oid, path string) []byte {
	return []byte(placeholderPrefix + nonce + "\n" + oid + "\n" + path)
}

// Blobs recognises the placeholders of one translation, for desired.Translate.
func Blobs(nonce string) func(data []byte) (oid, path string, ok bool) {
	return func(data []byte) (string, string, bool) {
		rest, ok := bytes.CutPrefix(data, []byte(placeholderPrefix+nonce+"\n"))
		if !ok || nonce == "" {
			return "", "", false
		}
		oid, name, ok := strings.Cut(string(rest), "\n")
		return oid, name, ok
	}
}

// Exporter fills the private directory that Butane gets as its files-dir.
type Exporter struct {
	Tree     source.Tree
	FilesDir string // files_dir of fleet.toml: a folder of the repo, "." for its root
	Dir      string // exists, is empty and only ours
	Nonce    string
	Limits   Limits
	// Expand, when set, is applied to a reference whose file name ends in .tmpl.
	// Its error names the file.
	Expand func(path string, data []byte) ([]byte, error)
}

// Export writes what the references name: text really, blobs as placeholders,
// symlinks inside a tree as symlinks. Every reference that cannot be used is a
// finding; in its place stands something empty, so that Translate still finds
// what else is wrong. The error is the repo's or the directory's own.
func (e *Exporter) Export(refs []Reference) (finding.List, error) {
	root, err := os.OpenRoot(e.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	x := e.begin(root)
	if err := x.references(refs); err != nil {
		return x.findings, err
	}
	for _, ref := range x.refused {
		if err := x.nothing(ref, path.Clean(ref.Path)); err != nil {
			return x.findings, err
		}
	}
	return x.findings, x.links()
}

// Check is Export without a directory: it finds the same, and writes nothing.
func (e *Exporter) Check(refs []Reference) (finding.List, error) {
	x := e.begin(nil)
	err := x.references(refs)
	return x.findings, err
}

func (e *Exporter) begin(root *os.Root) *export {
	return &export{Exporter: e, limits: e.Limits.OrDefault(), root: root, text: map[string]bool{}, expanded: map[string]bool{}, done: map[string]bool{}, folders: map[string]bool{}}
}

// references exports all of them, up to a failure of the repo or the directory.
func (x *export) references(refs []Reference) error {
	if most := x.limits.MaxEntries; len(refs) > most {
		last := refs[most]
		x.findings = append(x.findings, finding.Finding{
			Severity: finding.Error,
			Position: last.Position,
			Message:  fmt.Sprintf("more than %d references in one host config", most),
			Hint:     "the limit is translate.max_entries",
		})
		return nil
	}
	for _, ref := range refs {
		if ref.Kind == Text || x.expands(ref) {
			x.text[path.Clean(ref.Path)] = true
		}
		if x.expands(ref) {
			x.expanded[path.Clean(ref.Path)] = true
		}
	}
	for _, ref := range refs {
		if err := x.reference(ref); err != nil {
			return fmt.Errorf("exporting %s for %s: %w", ref.Path, ref.Field, err)
		}
	}
	return nil
}

// export is one run of an Exporter.
type export struct {
	*Exporter
	limits   Limits
	root     *os.Root        // nil: nothing is written
	text     map[string]bool // wanted as text by some reference, relative to the files-dir
	expanded map[string]bool // a template to some reference
	done     map[string]bool
	folders  map[string]bool // made below root
	symlinks []symlink
	refused  []Reference
	through  bool // a reference leads through a symlink
	entries  int
	findings finding.List
}

type symlink struct{ name, target string }

func (x *export) expands(ref Reference) bool {
	return x.Expand != nil && ref.Kind != Tree && strings.HasSuffix(ref.Path, ".tmpl")
}

func (x *export) refuse(ref Reference, hint, format string, args ...any) {
	x.findings = append(x.findings, finding.Finding{
		Severity: finding.Error, Position: ref.Position, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// reference exports one reference, or refuses it.
func (x *export) reference(ref Reference) error {
	before := len(x.findings)
	name, ok := x.name(ref)
	if !ok {
		return nil // Butane refuses these itself
	}
	entry, ok, err := x.entry(ref, name)
	switch {
	case err != nil || !ok:
	case ref.Kind == Tree:
		err = x.tree(ref, entry, name)
	default:
		err = x.blob(ref, entry, name)
	}
	if len(x.findings) > before {
		x.refused = append(x.refused, ref)
	}
	return err
}

// name is the clean path of a reference below the files-dir.
func (x *export) name(ref Reference) (string, bool) {
	const hint = "paths are relative to files_dir and stay inside the fleet repo"
	switch {
	case ref.Path == "":
		x.refuse(ref, hint, "the path is empty")
	case strings.HasPrefix(ref.Path, "/"):
		x.refuse(ref, hint, "%s is absolute", ref.Path)
	case strings.ContainsRune(ref.Path, 0):
		x.refuse(ref, hint, "the path has a NUL byte")
	case strings.Contains("/"+ref.Path+"/", "/../"):
		x.refuse(ref, hint, "%s contains ..", ref.Path)
	default:
		return path.Clean(ref.Path), true
	}
	return "", false
}

// entry looks a reference up and checks that it is what its field needs.
func (x *export) entry(ref Reference, name string) (source.Entry, bool, error) {
	full := path.Join(x.FilesDir, name)
	if full == "." && ref.Kind == Tree {
		return source.Entry{Path: ".", Mode: source.Directory}, true, nil
	}
	entry, err := x.Tree.Entry(full)
	if link, ok := errors.AsType[*source.SymlinkError](err); ok {
		x.through = true
		x.refuse(ref, "name the file itself", "%s leads through the symlink %s", full, link.Link)
		return entry, false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		x.refuse(ref, x.elsewhere(ref, name), "%s does not exist in the fleet repo", full)
		return entry, false, nil
	}
	if err != nil {
		return entry, false, err
	}
	switch {
	case entry.Mode == source.Symlink:
		x.refuse(ref, "name the file itself", "%s is a symlink", full)
	case entry.Mode == source.Submodule:
		x.refuse(ref, "keep the files in the fleet repo itself", "%s is a submodule", full)
	case entry.Mode == source.Directory && ref.Kind != Tree:
		x.refuse(ref, "a folder is used with storage.trees", "%s is a folder, and a file is needed", full)
	case entry.Mode.IsFile() && ref.Kind == Tree:
		x.refuse(ref, "a single file is used with storage.files", "%s is a file, and a folder is needed", full)
	case !entry.Mode.IsFile() && entry.Mode != source.Directory:
		x.refuse(ref, "", "%s has the mode %06o, and a regular file is needed", full, uint32(entry.Mode))
	default:
		return entry, true, nil
	}
	return entry, false, nil
}

// elsewhere helps whoever took a path to start at the layer or at the root of
// the repo instead of at the files-dir.
func (x *export) elsewhere(ref Reference, name string) string {
	if x.FilesDir != "" && path.Clean(x.FilesDir) != "." {
		if _, err := x.Tree.Entry(name); err == nil {
			return "paths are relative to files_dir, which is " + x.FilesDir
		}
	}
	beside := path.Join(path.Dir(ref.Position.File), name)
	if _, err := x.Tree.Entry(beside); err == nil {
		return "paths are relative to files_dir, not to the layer: the file is " + beside
	}
	return ""
}

// blob writes one file: real text, or a placeholder.
func (x *export) blob(ref Reference, entry source.Entry, name string) error {
	if ref.Kind == Tree && x.expanded[name] {
		x.refuse(ref, "keep the template outside of the folder", "%s is a template of another reference, and is not expanded in a tree", entry.Path)
		return nil
	}
	if ref.Kind == Tree && desired.Encrypted(name) {
		x.refuse(ref, "name it with storage.files, which gives it an owner and a mode, and keep it outside of the folder",
			"%s is encrypted, and a folder is written as it is", entry.Path)
		return nil
	}
	if x.done[name] {
		return nil
	}
	size, err := x.Tree.Size(entry)
	if err != nil {
		return err
	}
	whole := x.text[name]
	if whole && size > x.limits.MaxText {
		x.refuse(ref, "the limit is translate.max_text", "%s has %d bytes, and Butane must read it: at most %d are allowed", entry.Path, size, x.limits.MaxText)
		return nil
	}
	data := Placeholder(x.Nonce, entry.ID, entry.Path)
	if whole || size <= source.MaxPointer {
		read, err := x.read(entry)
		if err != nil {
			return err
		}
		if source.IsPointer(read) {
			x.refuse(ref, "keep the file itself in the fleet repo, or fetch it over https with a verification hash",
				"%s is a Git LFS pointer", entry.Path)
			return nil
		}
		if whole {
			data = read
		}
	}
	if x.expands(ref) {
		data, err = x.Expand(entry.Path, data)
		if bad, ok := errors.AsType[*finding.Failure](err); ok {
			x.findings = append(x.findings, bad.Findings...) // it stands in the template, not in the layer
			return nil
		}
		if err != nil {
			x.refuse(ref, "", "%v", err)
			return nil
		}
	}
	x.done[name] = true
	return x.write(name, data, entry.Mode == source.Executable)
}

func (x *export) read(entry source.Entry) ([]byte, error) {
	r, err := x.Tree.Open(entry)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, x.limits.MaxText+1))
	return data, errors.Join(err, r.Close())
}

func (x *export) write(name string, data []byte, exec bool) (err error) {
	if x.root == nil {
		return nil
	}
	if err := x.folder(path.Dir(name)); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if exec {
		mode = 0o700
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	// Butane takes the mode of a tree's file from here, whatever the umask.
	return f.Chmod(mode)
}

// folder makes a folder, once: asking the root for each file of it costs more
// than the files.
func (x *export) folder(name string) error {
	if x.folders[name] || x.root == nil {
		return nil
	}
	if err := x.root.MkdirAll(name, 0o700); err != nil {
		return err
	}
	x.folders[name] = true
	return nil
}

// tree writes a folder and everything in it, once it is known to be within the
// limits.
func (x *export) tree(ref Reference, folder source.Entry, name string) error {
	var all []inTree
	if ok, err := x.gather(ref, inTree{folder, name}, 1, &all); err != nil || !ok {
		return err
	}
	for _, found := range all {
		var err error
		switch entry := found.Entry; {
		case entry.Mode == source.Directory:
			err = x.folder(found.name)
		case entry.Mode == source.Symlink:
			err = x.symlink(ref, entry, found.name)
		case entry.Mode.IsFile():
			err = x.blob(ref, entry, found.name)
		case entry.Mode == source.Submodule:
			x.refuse(ref, "keep the files in the fleet repo itself", "%s is a submodule", entry.Path)
		default:
			x.refuse(ref, "", "%s has the mode %06o, and a regular file is needed", entry.Path, uint32(entry.Mode))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inTree is an entry with its name below the files-dir.
type inTree struct {
	source.Entry
	name string
}

func (x *export) gather(ref Reference, folder inTree, depth int, all *[]inTree) (bool, error) {
	if depth > x.limits.MaxDepth {
		x.refuse(ref, "the limit is translate.max_depth", "%s is nested more than %d folders deep", folder.Path, x.limits.MaxDepth)
		return false, nil
	}
	*all = append(*all, folder)
	list, err := x.Tree.List(folder.Path)
	if err != nil {
		return false, err
	}
	for _, entry := range list {
		if x.entries++; x.entries > x.limits.MaxEntries {
			x.refuse(ref, "the limit is translate.max_entries", "the trees of one host config have more than %d entries", x.limits.MaxEntries)
			return false, nil
		}
		found := inTree{entry, path.Join(folder.name, path.Base(entry.Path))}
		if entry.Mode != source.Directory {
			*all = append(*all, found)
			continue
		}
		if ok, err := x.gather(ref, found, depth+1, all); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// symlink notes a symlink of a tree: its target is data.
func (x *export) symlink(ref Reference, entry source.Entry, name string) error {
	size, err := x.Tree.Size(entry)
	if err != nil {
		return err
	}
	if size == 0 || size >= maxTarget {
		x.refuse(ref, "", "the target of the symlink %s has %d bytes, which no symlink can have", entry.Path, size)
		return nil
	}
	target, err := x.read(entry)
	if err != nil {
		return err
	}
	if bytes.IndexByte(target, 0) >= 0 {
		x.refuse(ref, "", "the target of the symlink %s has a NUL byte", entry.Path)
		return nil
	}
	x.symlinks = append(x.symlinks, symlink{name, string(target)})
	return nil
}

// links makes the symlinks of all trees, after everything else was written.
// None is made when a reference leads through one: Butane would follow it.
func (x *export) links() error {
	if x.through {
		return nil
	}
	for _, link := range x.symlinks {
		if _, err := x.root.Lstat(link.name); err == nil {
			continue // two references to one tree
		}
		if err := x.root.Symlink(link.target, link.name); err != nil {
			return err
		}
	}
	return nil
}

// nothing stands in for what was refused. It may lie below something that
// another reference made a file.
func (x *export) nothing(ref Reference, name string) error {
	if _, err := x.root.Lstat(name); err == nil {
		return nil
	}
	var err error
	if ref.Kind == Tree {
		err = x.root.MkdirAll(name, 0o700)
	} else {
		err = x.write(name, nil, false)
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
