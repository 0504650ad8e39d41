package desired

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// UnitDir is where systemd reads what the administrator, or Ignition, wrote.
const UnitDir = "/etc/systemd/system"

// What Ignition gives to what it creates.
const (
	fileMode      = 0o644
	secretMode    = 0o600 // ours: Ignition knows no secrets
	directoryMode = 0o755
)

// UnitPath is where the contents of a unit lie.
func UnitPath(name string) string { return path.Join(UnitDir, name) }

// DropinPath is where a drop-in of a unit lies.
func DropinPath(unit, name string) string { return path.Join(UnitDir, unit+".d", name) }

// Locator says where the host config speaks of a resource, by the path or name
// as written; field narrows it down in Butane's words.
type Locator interface {
	Path(path string, field ...any) finding.Position
	Unit(name string, field ...any) finding.Position
	Dropin(unit, name string, field ...any) finding.Position
	Section(name string) finding.Position
}

// Translate says what an Ignition config asks for. blob recognises contents
// that stand for a blob of the fleet repo; nil if there are none. The state is
// of use when no finding is an error.
func Translate(cfg types.Config, at Locator, blob func(data []byte) (oid, path string, ok bool)) (State, finding.List) {
	t := translation{at: at, blob: blob, taken: map[string]claim{}}
	for _, d := range cfg.Storage.Directories {
		t.directory(d)
	}
	for _, f := range cfg.Storage.Files {
		t.file(f)
	}
	for _, l := range cfg.Storage.Links {
		t.link(l)
	}
	for _, u := range cfg.Systemd.Units {
		t.unit(u)
	}
	t.nested()
	t.ignored(cfg)
	slices.SortFunc(t.state.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(t.state.Directories, func(a, b Directory) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(t.state.Links, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(t.state.Units, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
	return t.state, t.findings
}

// translation is one run of Translate.
type translation struct {
	at       Locator
	blob     func([]byte) (string, string, bool)
	state    State
	findings finding.List
	taken    map[string]claim
}

// claim is what the host config wants at a path.
type claim struct {
	what      string // the entry in words: file, unit web.service
	directory bool
	position  finding.Position
}

func (t *translation) add(s finding.Severity, pos finding.Position, hint, format string, args ...any) {
	t.findings = append(t.findings, finding.Finding{Severity: s, Position: pos, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (t *translation) fail(pos finding.Position, hint, format string, args ...any) {
	t.add(finding.Error, pos, hint, format, args...)
}

// claim checks a path and takes it for one entry.
func (t *translation) claim(written string, c claim) (string, bool) {
	pos := c.position
	switch {
	case !path.IsAbs(written):
		t.fail(pos, "", "path %q is not absolute", written)
		return "", false
	case strings.ContainsFunc(written, unicode.IsControl):
		t.fail(pos, "", "path %q has control characters", written)
		return "", false
	}
	clean := path.Clean(written)
	if clean == "/" && !c.directory {
		t.fail(pos, "", "/ cannot be a %s", c.what)
		return "", false
	}
	if other, ok := t.taken[clean]; ok {
		t.fail(pos, "", "%s is asked for twice: as %s here, as %s at %s", clean, c.what, other.what, other.position)
		return "", false
	}
	t.taken[clean] = c
	return clean, true
}

// nested finds entries below something that is no directory.
func (t *translation) nested() {
	var all []string
	for at := range t.taken {
		all = append(all, at)
	}
	slices.Sort(all)
	for _, at := range all {
		for dir := path.Dir(at); dir != "/"; dir = path.Dir(dir) {
			if above, ok := t.taken[dir]; ok && !above.directory {
				t.fail(t.taken[at].position, "", "%s lies below %s, which is a %s at %s", at, dir, above.what, above.position)
				break
			}
		}
	}
}

func (t *translation) directory(d types.Directory) {
	pos := t.at.Path(d.Path)
	clean, ok := t.claim(d.Path, claim{"directory", true, pos})
	out := Directory{Path: clean, Mode: directoryMode, Position: pos}
	out.Unsaid = t.node(d.Node, &out.User, &out.Group)
	out.Unsaid.Mode = !t.mode(d.Path, d.Mode, &out.Mode)
	if ok {
		t.state.Directories = append(t.state.Directories, out)
	}
}

func (t *translation) file(f types.File) {
	pos := t.at.Path(f.Path)
	clean, ok := t.claim(f.Path, claim{"file", false, pos})
	out := File{Path: clean, Mode: fileMode, Position: pos}
	out.Unsaid = t.node(f.Node, &out.User, &out.Group)
	out.Unsaid.Mode = !t.mode(f.Path, f.Mode, &out.Mode)
	if f.Contents.Source != nil {
		c := t.content(f.Path, f.Contents, "contents")
		out.Contents, out.Unsaid = &c, Unsaid{}
	}
	for i, res := range f.Append {
		if res.Source != nil {
			out.Append = append(out.Append, t.content(f.Path, res, "append", i))
		}
	}
	if out.Secret() && f.Mode == nil {
		// Also of a file that exists: what is added must not be for everybody to read.
		out.Mode, out.Unsaid.Mode = secretMode, false
	}
	if ok {
		t.state.Files = append(t.state.Files, out)
	}
}

func (t *translation) link(l types.Link) {
	pos := t.at.Path(l.Path)
	clean, ok := t.claim(l.Path, claim{"link", false, pos})
	out := Link{Path: clean, Hard: l.Hard != nil && *l.Hard, Position: pos}
	t.node(l.Node, &out.User, &out.Group)
	switch {
	case l.Target == nil || *l.Target == "":
		t.fail(pos, "", "the link %s has no target", l.Path)
		return
	case strings.ContainsRune(*l.Target, 0):
		t.fail(t.at.Path(l.Path, "target"), "", "the target of the link %s has a NUL byte", l.Path)
		return
	}
	out.Target = *l.Target
	if ok {
		t.state.Links = append(t.state.Links, out)
	}
}

// content says where the bytes of one resource of a file come from.
func (t *translation) content(file string, res types.Resource, field ...any) Content {
	c, problem := NewContent(res)
	if t.blob != nil && c.URL == "" {
		if oid, from, ok := t.blob(c.Inline); ok {
			// What was compared is the stand-in, not the blob.
			found := Content{Blob: oid, Path: from, Secret: Encrypted(from), Gzip: c.Gzip, Verify: c.Verify}
			if found.Secret && found.Verify != "" {
				t.fail(t.at.Path(file, append(field, "verification", "hash")...), "leave it out: an encrypted file that was changed does not decrypt",
					"%s: a verification hash helps everybody who reads the repo to guess what %s says", file, from)
			}
			return found
		}
	}
	if problem != nil {
		for step := range strings.SplitSeq(problem.Field, ".") {
			field = append(field, step)
		}
		t.fail(t.at.Path(file, field...), problem.Hint, "%s: %s", file, problem.Message)
	}
	return c
}

// mode reports whether the config says one.
func (t *translation) mode(file string, mode *int, out *uint32) bool {
	if mode == nil {
		return false
	}
	if *mode < 0 || *mode > 0o7777 {
		t.fail(t.at.Path(file, "mode"), "", "mode %#o of %s is out of range", *mode, file)
		return true
	}
	*out = uint32(*mode)
	return true
}

func (t *translation) node(n types.Node, user, group *Owner) (unsaid Unsaid) {
	unsaid.User = !t.owner(n.Path, "user", n.User.ID, n.User.Name, user)
	unsaid.Group = !t.owner(n.Path, "group", n.Group.ID, n.Group.Name, group)
	return unsaid
}

// owner reports whether the config names one; root is the default.
func (t *translation) owner(file, field string, id *int, name *string, out *Owner) bool {
	switch {
	case name != nil && *name != "":
		out.Name = *name
		if strings.ContainsFunc(*name, unicode.IsControl) || strings.ContainsAny(*name, ":/") {
			t.fail(t.at.Path(file, field, "name"), "", "%q is not the name of a %s", *name, field)
		}
	case id != nil:
		out.ID = *id
		if *id < 0 {
			t.fail(t.at.Path(file, field, "id"), "", "%s id %d of %s is negative", field, *id, file)
		}
	default:
		return false
	}
	return true
}

func (t *translation) unit(u types.Unit) {
	pos := t.at.Unit(u.Name)
	if !systemd.UnitName(u.Name) {
		t.fail(pos, "", "%q is not a name that systemd takes for a unit", u.Name)
		return
	}
	out := Unit{Name: u.Name, Contents: u.Contents, Enabled: u.Enabled, Mask: u.Mask, Position: pos}
	masked := u.Mask != nil && *u.Mask
	switch {
	case masked && u.Contents != nil:
		// Ignition writes the unit, and then puts the link to /dev/null in its place.
		out.Contents = nil
		t.add(finding.Warning, t.at.Unit(u.Name, "mask"), "", "%s is masked: its contents have no effect", u.Name)
	case u.Contents != nil && *u.Contents == "":
		t.fail(t.at.Unit(u.Name, "contents"), "leave contents out to keep the vendor's unit, or say mask: true",
			"%s has empty contents, which systemd reads as masked", u.Name)
	}
	if out.Contents != nil || masked {
		t.claim(UnitPath(u.Name), claim{"unit " + u.Name, false, pos})
	}
	for _, d := range u.Dropins {
		if d.Contents == nil {
			continue // as Ignition does
		}
		at := t.at.Dropin(u.Name, d.Name)
		if !fileName(d.Name) {
			t.fail(at, "", "%q is not a file name for a drop-in", d.Name)
			continue
		}
		if _, ok := t.claim(DropinPath(u.Name, d.Name), claim{"drop-in of " + u.Name, false, at}); ok {
			out.Dropins = append(out.Dropins, Dropin{Name: d.Name, Contents: d.Contents, Position: at})
		}
	}
	slices.SortFunc(out.Dropins, func(a, b Dropin) int { return strings.Compare(a.Name, b.Name) })
	t.state.Units = append(t.state.Units, out)
}

func fileName(name string) bool {
	return name != "" && len(name) <= 255 && !strings.HasPrefix(name, ".") && !strings.Contains(name, "/") &&
		!strings.ContainsFunc(name, unicode.IsControl)
}

// ignored lists what the config says beyond files and units.
func (t *translation) ignored(cfg types.Config) {
	for _, s := range []struct {
		name  string
		value any
	}{
		{"ignition.proxy", cfg.Ignition.Proxy},
		{"ignition.security", cfg.Ignition.Security},
		{"ignition.timeouts", cfg.Ignition.Timeouts},
		{"kernel_arguments", cfg.KernelArguments},
		{"passwd.groups", cfg.Passwd.Groups},
		{"passwd.users", cfg.Passwd.Users},
		{"storage.disks", cfg.Storage.Disks},
		{"storage.filesystems", cfg.Storage.Filesystems},
		{"storage.luks", cfg.Storage.Luks},
		{"storage.raid", cfg.Storage.Raid},
	} {
		if reflect.ValueOf(s.value).IsZero() {
			continue
		}
		// Ignition's types are plain structs: they always marshal, always in one order.
		data, err := json.Marshal(s.value)
		if err != nil {
			t.fail(t.at.Section(s.name), "", "internal error: %v", err)
			continue
		}
		sum := sha256.Sum256(data)
		t.state.Ignored = append(t.state.Ignored, Section{Name: s.name, Hash: hex.EncodeToString(sum[:]), Position: t.at.Section(s.name)})
	}
}
