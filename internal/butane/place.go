package butane

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"gopkg.in/yaml.v3"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// place is where a document speaks of a resource.
type place struct {
	doc  *document
	path []any
	// fixed: the resource has no fields of its own there, because it comes from a
	// tree, a merged config or the like.
	fixed bool
}

// butaneOnly are the fields that Butane has beside one of Ignition's.
var butaneOnly = map[string][]any{"contents": {"contents_local"}, "source": {"local", "inline"}}

// position is as near to the field as the document goes: a file from a local
// reference has contents, but no contents.source.
func (p place) position(field []any) finding.Position {
	for len(field) > 0 && !p.has(field) {
		last := len(field) - 1
		name, _ := field[last].(string)
		field = field[:last:last]
		for _, other := range butaneOnly[name] {
			if at := append(field, other); p.has(at) {
				return p.doc.position(append(slices.Clone(p.path), at...))
			}
		}
	}
	return p.doc.position(append(slices.Clone(p.path), field...))
}

func (p place) has(field []any) bool {
	if p.fixed {
		return len(field) == 0
	}
	_, _, whole := p.doc.at(append(slices.Clone(p.path), field...))
	return whole
}

func pathKey(path string) string         { return "path " + path }
func unitKey(name string) string         { return "unit " + name }
func dropinKey(unit, name string) string { return "dropin " + unit + "/" + name }
func sectionKey(name string) string      { return "section " + name }

// Path is where a file, directory or link is asked for.
func (c Config) Path(path string, field ...any) finding.Position {
	return c.position(pathKey(path), field)
}

// Unit is where a unit is asked for.
func (c Config) Unit(name string, field ...any) finding.Position {
	return c.position(unitKey(name), field)
}

// Dropin is where a drop-in of a unit is asked for.
func (c Config) Dropin(unit, name string, field ...any) finding.Position {
	return c.position(dropinKey(unit, name), field)
}

// Section is where a section begins that is not applied, such as passwd.users.
func (c Config) Section(name string) finding.Position {
	pos := c.position(sectionKey(name), nil)
	pos.Field = name
	return pos
}

// position prefers the last layer that has the field itself.
func (c Config) position(key string, field []any) finding.Position {
	places := c.places[key]
	if len(places) == 0 {
		return finding.Position{File: c.Layer}
	}
	for _, p := range slices.Backward(places) {
		if p.has(field) {
			return p.position(field)
		}
	}
	return places[len(places)-1].position(field)
}

// Excerpts adds the line that each finding names, where it may be shown.
func (c Config) Excerpts(list finding.List) finding.List {
	out := slices.Clone(list)
	for i, f := range out {
		if d := c.docs[f.File]; d != nil && f.Excerpt == "" {
			out[i].Excerpt = d.excerpt(f.Position)
		}
	}
	return out
}

// sections are the parts of a host config that stay legal and are not applied,
// in Ignition's words and in Butane's.
var sections = []struct {
	name   string
	places []string // where Butane takes it from, in this order
}{
	{"ignition.proxy", nil},
	{"ignition.security", nil},
	{"ignition.timeouts", nil},
	{"kernel_arguments", []string{"openshift.kernel_arguments"}},
	{"passwd.users", nil},
	{"passwd.groups", nil},
	{"storage.disks", []string{"boot_device"}},
	{"storage.raid", []string{"boot_device"}},
	{"storage.filesystems", []string{"boot_device", "grub"}},
	{"storage.luks", []string{"boot_device"}},
}

// index notes where the document speaks of everything that is in the config.
func (c *Config) index(d *document, filesDir string) {
	c.places = map[string][]place{}
	put := func(key string, p place) {
		if _, ok := c.places[key]; !ok {
			c.places[key] = []place{p}
		}
	}
	for _, kind := range nodeKinds {
		for i, n := range d.list("storage", kind) {
			put(pathKey(text(n, "path")), place{doc: d, path: []any{"storage", kind, i}})
		}
	}
	for i, n := range d.list("systemd", "units") {
		at := []any{"systemd", "units", i}
		put(unitKey(text(n, "name")), place{doc: d, path: at})
		for j, dropin := range d.list(append(at, "dropins")...) {
			put(dropinKey(text(n, "name"), text(dropin, "name")), place{doc: d, path: []any{"systemd", "units", i, "dropins", j}})
		}
	}
	c.quadlets(d, put)
	trees(d, filesDir, put)
	for _, s := range sections {
		for _, name := range append([]string{s.name}, s.places...) {
			var at []any
			for step := range strings.SplitSeq(name, ".") {
				at = append(at, step)
			}
			if _, _, whole := d.at(at); whole {
				put(sectionKey(s.name), place{doc: d, path: at, fixed: true})
				break
			}
		}
	}
	c.generated(d, put)
}

var nodeKinds = []string{"files", "directories", "links"}

// nodePath is the document's own entry for a path, or nil.
func (d *document) nodePath(path string) []any {
	for _, kind := range nodeKinds {
		for i, n := range d.list("storage", kind) {
			if text(n, "path") == path {
				return []any{"storage", kind, i}
			}
		}
	}
	return nil
}

// quadlets become plain files and links where podman looks for them.
func (c *Config) quadlets(d *document, put func(string, place)) {
	for i, n := range d.list("systemd", "quadlets") {
		at := []any{"systemd", "quadlets", i}
		base := "/etc/containers/systemd/users"
		if _, v := child(n, "rootful"); v != nil {
			var rootful bool
			if v.Decode(&rootful) == nil && rootful {
				base = "/etc/containers/systemd"
			}
		}
		file := path.Join(base, text(n, "name"))
		put(pathKey(file), place{doc: d, path: at})
		for j, dropin := range d.list(append(at, "dropins")...) {
			put(pathKey(file+".d/"+text(dropin, "name")), place{doc: d, path: []any{"systemd", "quadlets", i, "dropins", j}})
		}
	}
}

// trees finds what Butane found below each tree's folder.
func trees(d *document, filesDir string, put func(string, place)) {
	for i, n := range d.list("storage", "trees") {
		at := place{doc: d, path: []any{"storage", "trees", i, "local"}, fixed: true}
		local, to := text(n, "local"), text(n, "path")
		if to == "" {
			to = "/"
		}
		root, err := os.OpenRoot(filesDir)
		if err != nil {
			return
		}
		local = path.Clean(local)
		// Whatever cannot be read here could not be read by Butane, which says so.
		_ = fs.WalkDir(root.FS(), local, func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(local, name)
			if err == nil {
				put(pathKey(path.Join(to, rel)), at)
			}
			return err
		})
		root.Close()
	}
}

// generated finds where Butane got the units and files from that the document
// does not name.
func (c *Config) generated(d *document, put func(string, place)) {
	for _, unit := range c.Ignition.Systemd.Units {
		if _, ok := c.places[unitKey(unit.Name)]; ok || unit.Contents == nil {
			continue
		}
		for i, n := range d.list("storage", "filesystems") {
			_, mount := child(n, "with_mount_unit")
			if mount != nil && hasLine(*unit.Contents, "What="+text(n, "device")) &&
				(text(n, "format") == "swap" || hasLine(*unit.Contents, "Where="+text(n, "path"))) {
				put(unitKey(unit.Name), place{doc: d, path: []any{"storage", "filesystems", i, "with_mount_unit"}, fixed: true})
			}
		}
	}
	grub, _, whole := d.at([]any{"grub"})
	for _, file := range c.Ignition.Storage.Files {
		if whole && grub != nil && grub.Kind == yaml.MappingNode && strings.HasPrefix(file.Path, "/boot/") {
			put(pathKey(file.Path), place{doc: d, path: []any{"grub"}, fixed: true})
		}
	}
}

func hasLine(text, line string) bool {
	return strings.Contains("\n"+text+"\n", "\n"+line+"\n")
}

// keys are the places that a config can be asked for.
func keys(cfg types.Config) []string {
	var out []string
	for _, f := range cfg.Storage.Files {
		out = append(out, pathKey(f.Path))
	}
	for _, f := range cfg.Storage.Directories {
		out = append(out, pathKey(f.Path))
	}
	for _, f := range cfg.Storage.Links {
		out = append(out, pathKey(f.Path))
	}
	for _, u := range cfg.Systemd.Units {
		out = append(out, unitKey(u.Name))
		for _, d := range u.Dropins {
			out = append(out, dropinKey(u.Name, d.Name))
		}
	}
	for _, s := range sections {
		out = append(out, sectionKey(s.name))
	}
	return out
}
