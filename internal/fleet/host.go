package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// Machine is who a host config is for.
type Machine struct {
	Names []string // in the order in which they are tried
	// Facts of the machine that asks for itself; nil when an author asks, for any
	// host. Only then is machine_id not checked.
	Facts *Facts
	// Limits bound what its config may refer to and expand to.
	Limits butane.Limits
}

// Facts are what a host config may depend on besides the repo.
type Facts struct {
	Arch      string // in Go's words: amd64, arm64
	MachineID string
}

// Document is one Butane file.
type Document struct {
	Entry source.Entry
	Data  []byte // expanded, when it is a template
	// Written is the template that Data was made from; nil when it is none.
	Written *butane.Written
}

// Layer is what is merged as one: a .bu file, or a folder with several in byte
// order of their names, of which no two may write the same path.
type Layer struct {
	Path      string
	Group     string // whose layer it is; "" for the host's own
	Documents []Document
	Scripts   []Script // those in the folder hooks/ beside the documents
	// refused lies among the scripts and must not: it counts in the digest, so
	// that no host calls itself up to date before that is said.
	refused []source.Entry
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
	Retired    Retirement     // unless it is "", there are neither layers nor references
	Groups     []string       // that have the host, in their order
	Vars       map[string]any // merged for this host; to be read only
	Layers     []Layer        // of the groups, in their order, then the host's own
	References []Reference
	Watches    []service.Watch
	Migrations []Document // *.sls for Salt, in the order of the layers
	Inputs     []Input
	Digest     Digest
	Warnings   finding.List
	// Unsupported is what belongs to the host and would be passed over: this
	// release knows nothing of it, or it cannot be used where it lies. The caller
	// refuses to apply it.
	Unsupported finding.List
	Limits      butane.Limits // for butane.Exporter
	// Expand is for butane.Exporter: it expands a referenced template.
	Expand func(path string, data []byte) ([]byte, error)

	machineID string
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

// OtherMachineError says that the host config is another machine's, by the
// machine_id that fleet.toml gives the host.
type OtherMachineError struct{ Host, Want, Have string }

func (e *OtherMachineError) Error() string {
	return fmt.Sprintf("the config of %s is for the machine with the id %s, this one is %q", e.Host, e.Want, e.Have)
}

// Hint says how to go on.
func (e *OtherMachineError) Hint() string {
	return fmt.Sprintf("give this machine a name of its own; if it took the place of the other one, change machine_id under [host.%s] in %s", e.Host, ConfigFile)
}

// candidate is one place where a host's config may lie.
type candidate struct {
	path   string // hosts/web1.bu, or hosts/web1 for a folder
	folder bool
	beside string // of a file: the folder with what belongs to it, "" when there is none
}

// Host finds the config of the first of the machine's names that has one and
// reads its layers. The error is a *NoHostError, an *OtherMachineError, a
// *finding.Failure, or the tree's own.
func (r *Repo) Host(m Machine) (*HostConfig, error) {
	var tried []string
	for _, name := range m.Names {
		if err := CheckName(name); err != nil {
			return nil, err
		}
		found, err := r.candidates(name)
		if err != nil {
			return nil, err
		}
		switch len(found) {
		case 0:
			if known, table := r.table(name); table.Retired != "" {
				return r.read(known, nil, m)
			}
			for _, dir := range r.dirs() {
				tried = append(tried, path.Join(dir, name)+".bu", path.Join(dir, name)+"/*.bu")
			}
		case 1:
			return r.read(found[0].host(), &found[0], m)
		default:
			return nil, refuse(finding.Position{File: found[1].String()}, "keep one of them",
				"host %s has two configs: %s and %s", found[0].host(), found[0], found[1])
		}
	}
	return nil, &NoHostError{Names: m.Names, Tried: tried, Similar: r.similar(m.Names)}
}

// Hosts are the names of all hosts, sorted. It lists folders and reads no host
// config, so that each may still turn out to be broken.
func (r *Repo) Hosts() ([]string, error) {
	names := map[string]bool{}
	for name, table := range r.Config.Hosts {
		if table.Retired != "" {
			names[name] = true // its files may be gone already
		}
	}
	all, err := r.gather("")
	if err != nil {
		return nil, err
	}
	for _, found := range all {
		for _, c := range found {
			if CheckName(c.host()) != nil {
				continue
			}
			if known, _ := r.table(c.host()); known != c.host() {
				delete(names, known)
			}
			names[c.host()] = true
		}
	}
	r.memo.mu.Lock()
	defer r.memo.mu.Unlock()
	r.memo.candidates = all
	return slices.Sorted(maps.Keys(names)), nil
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
	return r.listed(dir, r.tree.List)
}

// names is list of those with the stem, without ids: those of a whole checkout cost
// reading all of it.
func (r *Repo) names(dir, stem string) ([]source.Entry, error) {
	return r.listed(dir, func(dir string) ([]source.Entry, error) { return r.tree.Names(dir, stem) })
}

func (r *Repo) listed(dir string, by func(string) ([]source.Entry, error)) ([]source.Entry, error) {
	list, err := by(dir)
	var link *source.SymlinkError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &link) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	return list, nil
}

// candidate tells whether an entry of one of dirs may be the config of a host,
// as far as its name says.
func (r *Repo) candidate(e source.Entry) (candidate, bool) {
	folder := e.Mode == source.Directory
	if !folder && !isDocument(e) || folder && (e.Path == r.Config.HostsDir || e.Path == r.Config.FilesDir) || r.shared(e.Path) {
		return candidate{}, false
	}
	return candidate{path: e.Path, folder: folder}, true
}

// isHost tells whether a candidate has something to apply.
func (r *Repo) isHost(c candidate) (bool, error) {
	if !c.folder {
		return true, nil
	}
	inside, err := r.names(c.path, "")
	return slices.ContainsFunc(inside, isDocument), err
}

// host is the name of the host whose config it would be.
func (c candidate) host() string {
	if c.folder {
		return path.Base(c.path)
	}
	name, _ := stem(c.path)
	return name
}

// shared tells whether a path is a layer of a group, or has some below it.
func (r *Repo) shared(p string) bool {
	for _, g := range r.Config.Groups {
		for _, layer := range g.Layers {
			if layer == p || strings.HasPrefix(layer, p+"/") {
				return true
			}
		}
	}
	return false
}

func (r *Repo) candidates(name string) ([]candidate, error) {
	r.memo.mu.Lock()
	known := r.memo.candidates
	r.memo.mu.Unlock()
	if known != nil {
		return known[strings.ToLower(name)], nil
	}
	all, err := r.gather(name) // there may be thousands
	return all[strings.ToLower(name)], err
}

// gather finds the candidates with the stem, or with "" all, by their names in lower
// case.
func (r *Repo) gather(stem string) (map[string][]candidate, error) {
	all := map[string][]candidate{}
	for _, dir := range r.dirs() {
		list, err := r.names(dir, stem)
		if err != nil {
			return nil, err
		}
		here, beside := map[string][]candidate{}, map[string]string{}
		for _, e := range list {
			c, ok := r.candidate(e)
			if !ok || stem != "" && !strings.EqualFold(c.host(), stem) { // web1.example.com/ is another host's
				continue
			}
			name := strings.ToLower(c.host())
			isHost, err := r.isHost(c)
			switch {
			case err != nil:
				return nil, err
			case isHost:
				here[name] = append(here[name], c)
			default:
				beside[name] = c.path
			}
		}
		for name, found := range here {
			for _, c := range found {
				c.beside = beside[name]
				all[name] = append(all[name], c)
			}
		}
	}
	return all, nil
}

// read reads the config of a host: the layers of its groups, then its own. A
// host that is retired may have none.
func (r *Repo) read(name string, own *candidate, m Machine) (*HostConfig, error) {
	known, table := r.table(name)
	h := &HostConfig{Name: name, FilesDir: r.Config.FilesDir, Retired: table.Retired, Groups: r.groups(name), machineID: table.MachineID}
	if m.Facts != nil && table.MachineID != "" && !strings.EqualFold(table.MachineID, m.Facts.MachineID) {
		return nil, &OtherMachineError{Host: name, Want: table.MachineID, Have: m.Facts.MachineID}
	}
	if h.Retired != "" {
		f := r.wrong("", []string{"host", known, "retired"}, "%s is retired: nothing is changed on it any more", name)
		if h.Retired == RetiredRemove {
			f.Message = name + " is retired: everything managed is removed from it"
		}
		f.Severity = finding.Warning
		h.Warnings = finding.List{f}
		h.digest(nil)
		return h, nil
	}
	h.Watches = r.Config.Service.Watch
	var wrong finding.List
	h.Vars, wrong = r.vars(h.Groups, known)
	places, list, err := r.places(h.Groups)
	if err != nil {
		return nil, err
	}
	wrong = append(wrong, list...)
	t := newTemplates(h, m)
	h.Expand, h.Limits = t.file, m.Limits
	if !slices.ContainsFunc(places, func(p place) bool { return p.path == own.path }) {
		places = append(places, place{candidate: *own})
	}
	var extra []Input
	for _, p := range places {
		layer, folder, err := r.layer(p, t)
		var bad *finding.Failure
		if errors.As(err, &bad) {
			wrong = append(wrong, bad.Findings...)
			continue
		}
		if err != nil {
			return nil, err
		}
		list, err := r.scripts(&layer, folder)
		if err != nil {
			return nil, err
		}
		h.Unsupported = append(h.Unsupported, list...)
		h.Layers = append(h.Layers, layer)
		more, err := r.extras(h, folder)
		if err != nil {
			return nil, err
		}
		extra = append(extra, more...)
	}
	if wrong != nil {
		return nil, &finding.Failure{Findings: wrong}
	}
	if err := r.references(h, t); err != nil {
		return nil, err
	}
	if len(h.Migrations) > 0 {
		// They may ask for any of the vars.
		vars, err := json.Marshal(h.Vars)
		if err != nil {
			return nil, fmt.Errorf("hashing the vars: %w", err)
		}
		sum := sha256.Sum256(vars)
		extra = append(extra, Input{Kind: "vars", ID: hex.EncodeToString(sum[:])})
	}
	h.digest(append(t.inputs(), extra...))
	return h, nil
}

// place is where a layer lies.
type place struct {
	candidate
	group string // "" for the host's own
}

// places are the layers of the groups, each once: it stands where it is named
// first.
func (r *Repo) places(groups []string) ([]place, finding.List, error) {
	var (
		places []place
		wrong  finding.List
	)
	for _, group := range groups {
		for _, layer := range r.Config.Groups[group].Layers {
			if slices.ContainsFunc(places, func(p place) bool { return p.path == layer }) {
				continue
			}
			c, f, err := r.groupLayer(group, layer)
			switch {
			case err != nil:
				return nil, nil, err
			case f != nil:
				wrong = append(wrong, *f)
			default:
				places = append(places, place{c, group})
			}
		}
	}
	return places, wrong, nil
}

// groupLayer looks up a layer of a group, or says why it cannot be one.
func (r *Repo) groupLayer(group, layer string) (candidate, *finding.Finding, error) {
	bad := func(hint, format string, args ...any) (candidate, *finding.Finding, error) {
		f := r.wrong(hint, []string{"group", group, "layers"}, "group."+group+".layers: "+format, args...)
		return candidate{}, &f, nil
	}
	e, err := r.tree.Entry(layer)
	var link *source.SymlinkError
	switch {
	case errors.As(err, &link):
		return bad("name the file or folder itself", "%v", link)
	case errors.Is(err, fs.ErrNotExist):
		return bad("add it, or take it out of layers; paths are relative to the root of the fleet repo", "there is no %s in the fleet repo", layer)
	case err != nil:
		return candidate{}, nil, fmt.Errorf("looking for %s: %w", layer, err)
	case e.Mode == source.Directory:
		inside, err := r.list(layer)
		if err == nil && !slices.ContainsFunc(inside, belongs) {
			return bad("put a .bu file into it", "%s has nothing that is a layer's", layer)
		}
		return candidate{path: layer, folder: true}, nil, err
	case !isDocument(e):
		return bad("name a file that ends in .bu, or a folder", "%s is no Butane file", layer)
	}
	return candidate{path: layer}, nil, nil
}

// belongs tells whether an entry of a layer's folder is used.
func belongs(e source.Entry) bool {
	base := path.Base(e.Path)
	return isDocument(e) || base == "hooks" || strings.HasSuffix(base, ".sls")
}

// layer reads a layer's documents, and expands those that are templates; folder is where what belongs to it besides
// them lies, "" when there is none.
func (r *Repo) layer(p place, t *templates) (layer Layer, folder string, err error) {
	layer = Layer{Path: p.path, Group: p.group}
	var entries []source.Entry
	switch {
	case p.folder:
		folder = p.path
		inside, err := r.list(p.path)
		if err != nil {
			return layer, "", err
		}
		for _, e := range inside {
			if isDocument(e) {
				entries = append(entries, e)
			}
		}
	default:
		e, err := r.tree.Entry(p.path)
		if err != nil {
			return layer, "", fmt.Errorf("looking for %s: %w", p.path, err)
		}
		entries = []source.Entry{e}
		folder = p.beside
	}
	var wrong finding.List
	for _, e := range entries {
		d := Document{Entry: e}
		if d.Data, err = r.text(e, maxLayer); err == nil && isTemplate(e.Path) {
			err = t.document(&d)
		}
		var bad *finding.Failure
		if errors.As(err, &bad) {
			wrong = append(wrong, bad.Findings...)
			continue
		}
		if err != nil {
			return layer, "", err
		}
		layer.Documents = append(layer.Documents, d)
	}
	return layer, folder, wrong.Err()
}

// references finds what the layers refer to and looks it up.
func (r *Repo) references(h *HostConfig, t *templates) error {
	for _, layer := range h.Layers {
		for _, d := range layer.Documents {
			refs, err := r.referencesOf(d)
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
				found := Reference{ref, entry}
				if err := r.reference(t, found); err != nil {
					return err
				}
				h.References = append(h.References, found)
				if why, hint := undecryptable(ref); why != "" {
					h.Unsupported = append(h.Unsupported, finding.Finding{
						Severity: finding.Error, Position: ref.Position, Message: ref.Path + ": " + why, Hint: hint,
					})
				}
			}
		}
	}
	return nil
}

// undecryptable says why a reference to an encrypted file cannot be one: only
// what the agent writes to a file of its own is ever decrypted. Encrypted files in
// a folder are found by butane.Exporter.
func undecryptable(ref butane.Reference) (why, hint string) {
	name, template := strings.CutSuffix(ref.Path, templateSuffix)
	encrypted := desired.Encrypted(ref.Path)
	switch {
	case ref.Kind == butane.Tree:
	case template && desired.Encrypted(name):
		return "a template is expanded before anything is decrypted, and an encrypted file is none", "take " + templateSuffix + " off its name"
	case encrypted && isTemplate(strings.TrimSuffix(ref.Path, ".age")):
		return "what is decrypted is not expanded", "encrypt the finished file, one for each host, and take " + templateSuffix + " out of its name"
	case encrypted && strings.HasPrefix(ref.Field, "systemd."):
		return "units and quadlets cannot be encrypted: systemctl cat shows them to everybody",
			"put the secret into a file of storage.files and name that with EnvironmentFile= or LoadCredential="
	case encrypted && ref.Kind == butane.Text:
		return "only contents of storage.files can be encrypted", "Ignition reads this one at first boot, when nobody decrypts anything"
	}
	return "", ""
}

// target is the path in the repo that a reference names, unless it is one that
// is refused.
func (r *Repo) target(ref butane.Reference) (string, bool) {
	p := path.Join(r.Config.FilesDir, ref.Path)
	ok := ref.Path != "" && !strings.HasPrefix(ref.Path, "/") && !strings.Contains("/"+ref.Path+"/", "/../") && fs.ValidPath(p)
	return p, ok
}

func (r *Repo) lookUp(p string) (source.Entry, error) {
	e, err := r.tree.Entry(p)
	var link *source.SymlinkError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &link) {
		return source.Entry{}, nil
	}
	return e, err
}

// extras are the migrations of a layer's folder, and the parts of it that this
// release does not act on. They count in the digest, so that the release that
// does sees them change.
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
		case base == "bundles":
			kind, what = "bundles", "container bundles"
		case base == "state.toml":
			kind, what = "state", "state paths"
		case strings.HasSuffix(base, ".sls"):
			data, err := r.text(e, maxLayer)
			if err != nil {
				return nil, err
			}
			h.Migrations = append(h.Migrations, Document{Entry: e, Data: data})
			extra = append(extra, Input{Kind: "migration", Name: e.Path, Mode: e.Mode, ID: e.ID})
			continue
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
		list, err := r.names(dir, "")
		if err != nil {
			continue
		}
		for _, e := range list {
			c, ok := r.candidate(e)
			if !ok {
				continue
			}
			name := c.host()
			best := near{name, -1}
			for _, wanted := range names {
				d := min(distance(name, wanted), distance(label(name), label(wanted)))
				if d <= max(1, len(label(wanted))/3) && (best.distance < 0 || d < best.distance) {
					best.distance = d
				}
			}
			if best.distance < 0 {
				continue
			}
			if isHost, err := r.isHost(c); err == nil && isHost {
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
