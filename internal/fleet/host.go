package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// Document is one Butane file.
type Document struct {
	Entry source.Entry
	Data  []byte
}

// Layer is what is merged as one: a .bu file, or a folder with several in byte
// order of their names, of which no two may write the same path.
type Layer struct {
	Path      string
	Documents []Document
}

// Reference is one local file or folder that a layer names. Entry is what
// stands there; its ID is empty when nothing does that could be used, which
// butane.Exporter explains.
type Reference struct {
	butane.Reference
	Entry source.Entry
}

// HostConfig is everything in the repo that is one host's.
type HostConfig struct {
	Name       string // as the repo spells it
	FilesDir   string
	Layers     []Layer
	References []Reference
	Inputs     []Input
	Digest     Digest
	// Unsupported is what belongs to the host and would be passed over by this
	// release. The caller refuses to apply it.
	Unsupported finding.List
}

// NoHostError says that the repo has no config for this host. The caller keeps the host
// as it is: disappearing is never read as deleting everything.
type NoHostError struct {
	Names   []string // in the order they were tried
	Tried   []string // every path
	Similar []string // up to three names that do exist
}

func (e *NoHostError) Error() string {
	return fmt.Sprintf("the fleet repo has no config for %s: there is no %s",
		strings.Join(e.Names, " or "), strings.Join(e.Tried, ", no "))
}

// Hint names what may have been meant.
func (e *NoHostError) Hint() string {
	if len(e.Similar) == 0 {
		return "Add a .bu file for this host, or set host.name."
	}
	return "Similar names that exist: " + strings.Join(e.Similar, ", ") + ". Add a .bu file for this host, or set host.name."
}

// candidate is one place where a host's config may lie.
type candidate struct {
	path   string // hosts/web1.bu, or hosts/web1 for a folder
	folder bool
}

// Host finds the config of the first of the names that has one and reads its
// layers. The error is a *NoHostError, a *finding.Failure, or the tree's own.
func (r *Repo) Host(names []string) (*HostConfig, error) {
	var tried []string
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return nil, err
		}
		found, err := r.candidates(name)
		if err != nil {
			return nil, err
		}
		switch len(found) {
		case 0:
			for _, dir := range r.dirs() {
				tried = append(tried, path.Join(dir, name)+".bu", path.Join(dir, name)+"/*.bu")
			}
		case 1:
			return r.read(found[0])
		default:
			return nil, refuse(finding.Position{File: found[1].String()}, "keep one of them",
				"host %s has two configs: %s and %s", name, found[0], found[1])
		}
	}
	return nil, &NoHostError{Names: names, Tried: tried, Similar: r.similar(names)}
}

// CheckName refuses what cannot be the name of a host in a repo.
func CheckName(name string) error {
	switch {
	case name == "":
		return refuse(finding.Position{}, "", "a host name is empty")
	case strings.HasPrefix(name, "."), strings.Contains(name, ".."), strings.ContainsAny(name, `/\`),
		strings.ContainsFunc(name, unicode.IsControl):
		return refuse(finding.Position{}, "set host.name to a plain name", "%q cannot be the name of a host config", name)
	}
	return nil
}

func (c candidate) String() string {
	if c.folder {
		return c.path + "/"
	}
	return c.path
}

// dirs are where host configs lie: in hosts_dir, or at the root.
func (r *Repo) dirs() []string {
	if r.Config.HostsDir == "." {
		return []string{"."}
	}
	return []string{r.Config.HostsDir, "."}
}

// list is the content of a folder, nothing when there is no such folder.
func (r *Repo) list(dir string) ([]source.Entry, error) {
	e, err := r.tree.Entry(dir)
	var link *source.SymlinkError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &link) || err == nil && e.Mode != source.Directory {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", dir, err)
	}
	list, err := r.tree.List(dir)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	return list, nil
}

func (r *Repo) candidates(name string) ([]candidate, error) {
	var found []candidate
	for _, dir := range r.dirs() {
		list, err := r.list(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			base := path.Base(e.Path)
			switch {
			case e.Mode != source.Directory && strings.EqualFold(base, name+".bu"):
				found = append(found, candidate{path: e.Path})
			case e.Mode == source.Directory && strings.EqualFold(base, name) && e.Path != r.Config.HostsDir:
				inside, err := r.list(e.Path)
				if err != nil {
					return nil, err
				}
				if slices.ContainsFunc(inside, isLayer) {
					found = append(found, candidate{e.Path, true})
				}
			}
		}
	}
	return found, nil
}

func isLayer(e source.Entry) bool {
	base := path.Base(e.Path)
	return e.Mode != source.Directory && strings.HasSuffix(base, ".bu") && base != ".bu"
}

// read reads the one config that was found.
func (r *Repo) read(c candidate) (*HostConfig, error) {
	h := &HostConfig{Name: strings.TrimSuffix(path.Base(c.path), ".bu"), FilesDir: r.Config.FilesDir}
	layer := Layer{Path: c.path}
	var entries []source.Entry
	var own string // the folder with what belongs to the host besides its layers
	if c.folder {
		h.Name = path.Base(c.path)
		own = c.path
		inside, err := r.list(c.path)
		if err != nil {
			return nil, err
		}
		for _, e := range inside {
			if isLayer(e) {
				entries = append(entries, e)
			}
		}
	} else {
		e, err := r.tree.Entry(c.path)
		if err != nil {
			return nil, fmt.Errorf("looking for %s: %w", c.path, err)
		}
		entries = []source.Entry{e}
		if own, err = r.beside(c.path); err != nil {
			return nil, err
		}
	}
	var wrong finding.List
	for _, e := range entries {
		data, err := r.text(e, maxLayer)
		var bad *finding.Failure
		if errors.As(err, &bad) {
			wrong = append(wrong, bad.Findings...)
			continue
		}
		if err != nil {
			return nil, err
		}
		layer.Documents = append(layer.Documents, Document{e, data})
	}
	if wrong != nil {
		return nil, &finding.Failure{Findings: wrong}
	}
	h.Layers = []Layer{layer}
	if err := r.references(h); err != nil {
		return nil, err
	}
	extra, err := r.extras(h, own)
	if err != nil {
		return nil, err
	}
	h.digest(extra)
	return h, nil
}

// beside is the folder hosts/N of hosts/N.bu, "" when there is none.
func (r *Repo) beside(file string) (string, error) {
	list, err := r.list(path.Dir(file))
	if err != nil {
		return "", err
	}
	name := strings.TrimSuffix(path.Base(file), ".bu")
	for _, e := range list {
		if e.Mode == source.Directory && strings.EqualFold(path.Base(e.Path), name) && e.Path != r.Config.HostsDir {
			return e.Path, nil
		}
	}
	return "", nil
}

// references finds what the layers refer to and looks it up.
func (r *Repo) references(h *HostConfig) error {
	for _, layer := range h.Layers {
		for _, d := range layer.Documents {
			refs, err := butane.References(d.Entry.Path, d.Data)
			var bad *finding.Failure
			if errors.As(err, &bad) {
				continue // translating finds the same again, and all the rest that is wrong
			}
			if err != nil {
				return err
			}
			for _, ref := range refs {
				entry, err := r.resolve(ref)
				if err != nil {
					return fmt.Errorf("looking for %s (%s): %w", ref.Path, ref.Field, err)
				}
				h.References = append(h.References, Reference{ref, entry})
				if what := unsupportedReference(ref); what != "" {
					h.Unsupported = append(h.Unsupported, finding.Finding{
						Severity: finding.Error, Position: ref.Position,
						Message: fmt.Sprintf("%s: %s are not supported yet", ref.Path, what),
					})
				}
			}
		}
	}
	return nil
}

// unsupportedReference: a later release expands or decrypts these, so this one
// must not write them to a host as they are.
func unsupportedReference(ref butane.Reference) string {
	if ref.Kind == butane.Tree {
		return ""
	}
	switch path.Ext(ref.Path) {
	case ".tmpl":
		return "templates"
	case ".age":
		return "encrypted files"
	}
	return ""
}

func (r *Repo) resolve(ref butane.Reference) (source.Entry, error) {
	p := path.Join(r.Config.FilesDir, ref.Path)
	if ref.Path == "" || strings.HasPrefix(ref.Path, "/") || strings.Contains("/"+ref.Path+"/", "/../") || !fs.ValidPath(p) {
		return source.Entry{}, nil
	}
	e, err := r.tree.Entry(p)
	var link *source.SymlinkError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &link) {
		return source.Entry{}, nil
	}
	return e, err
}

// extras are the parts of a host's folder that this release does not act on.
// They count in the digest, so that the release that does sees them change.
func (r *Repo) extras(h *HostConfig, own string) ([]Input, error) {
	if own == "" {
		return nil, nil
	}
	list, err := r.list(own)
	if err != nil {
		return nil, err
	}
	var extra []Input
	for _, e := range list {
		base := path.Base(e.Path)
		var kind, what string
		switch {
		case base == "hooks":
			kind, what = "hooks", "hooks"
		case base == "bundles":
			kind, what = "bundles", "container bundles"
		case base == "state.toml":
			kind, what = "state", "state paths"
		case strings.HasSuffix(base, ".sls"):
			kind, what = "migration", "migrations"
		case strings.HasSuffix(base, ".bu.tmpl"):
			kind, what = "template", "templates"
		default:
			continue
		}
		extra = append(extra, Input{Kind: kind, Name: e.Path, Mode: e.Mode, ID: e.ID})
		h.Unsupported = append(h.Unsupported, finding.Finding{
			Severity: finding.Error, Position: finding.Position{File: e.Path}, Message: what + " are not supported yet",
		})
	}
	return extra, nil
}

// similar are up to three hosts whose names come near to one of names. It is
// for a message: what cannot be listed is not suggested.
func (r *Repo) similar(names []string) []string {
	type near struct {
		name     string
		distance int
	}
	var all []near
	for _, dir := range r.dirs() {
		list, err := r.list(dir)
		if err != nil {
			continue
		}
		for _, e := range list {
			name := path.Base(e.Path)
			if e.Mode == source.Directory {
				inside, err := r.list(e.Path)
				if err != nil || e.Path == r.Config.HostsDir || !slices.ContainsFunc(inside, isLayer) {
					continue
				}
			} else if !isLayer(e) {
				continue
			} else {
				name = strings.TrimSuffix(name, ".bu")
			}
			best := near{name, -1}
			for _, wanted := range names {
				d := min(distance(name, wanted), distance(label(name), label(wanted)))
				if d <= max(1, len(label(wanted))/3) && (best.distance < 0 || d < best.distance) {
					best.distance = d
				}
			}
			if best.distance >= 0 {
				all = append(all, best)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b near) int { return a.distance - b.distance })
	var similar []string
	for _, n := range all {
		if !slices.Contains(similar, n.name) && len(similar) < 3 {
			similar = append(similar, n.name)
		}
	}
	return similar
}

func label(name string) string {
	first, _, _ := strings.Cut(name, ".")
	return first
}

func distance(a, b string) int { return tomlfile.Distance(strings.ToLower(a), strings.ToLower(b)) }
