package fleet

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/expand"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// templateSuffix ends the name of what is expanded.
const templateSuffix = ".tmpl"

// What an author's templates see of a machine whose facts nobody knows. They
// are the same everywhere, so that two authors get one digest.
const (
	standInArch = "amd64"
	standInID   = "00000000000000000000000000000000"
)

// templates expands the templates of one host and notes what they may read.
type templates struct {
	host expand.Host
	most int64 // bytes of a file that is expanded, before and after
	vars map[string]any
	read map[string][]string
}

func newTemplates(h *HostConfig, m Machine) *templates {
	t := &templates{most: m.Limits.OrDefault().MaxText, host: expand.Host{Name: h.Name, Arch: standInArch, MachineID: standInID}, vars: h.Vars, read: map[string][]string{}}
	if m.Facts != nil {
		t.host.Arch, t.host.MachineID = m.Facts.Arch, m.Facts.MachineID
	}
	if h.machineID != "" {
		t.host.MachineID = h.machineID
	}
	return t
}

func (t *templates) parse(name string, data []byte) (*expand.Template, error) {
	tmpl, err := expand.Parse(name, data)
	if err != nil {
		return nil, err
	}
	for _, path := range tmpl.Reads() {
		t.read[strings.Join(path, "\x00")] = path
	}
	return tmpl, nil
}

func (t *templates) expand(name string, data []byte, limit int64) (*expand.Expanded, error) {
	tmpl, err := t.parse(name, data)
	if err != nil {
		return nil, err
	}
	return tmpl.Execute(t.host, t.vars, int(min(limit, math.MaxInt32)))
}

// file expands what a layer refers to, for butane.Exporter.
func (t *templates) file(name string, data []byte) ([]byte, error) {
	if !utf8.Valid(data) {
		pos := finding.Position{File: name}
		pos.Line, pos.Column = invalidAt(data)
		return nil, refuse(pos, "save it as UTF-8", "it is not UTF-8")
	}
	out, err := t.expand(name, data, t.most)
	if err != nil {
		return nil, err
	}
	return out.Data, nil
}

// document expands a layer.
func (t *templates) document(d *Document) error {
	out, err := t.expand(d.Entry.Path, d.Data, layersToText*t.most)
	if err != nil {
		return err
	}
	d.Written = &butane.Written{Text: d.Data, At: out.At}
	d.Data = out.Data
	return nil
}

// isTemplate tells whether a file is expanded before it is used.
func isTemplate(name string) bool { return strings.HasSuffix(name, templateSuffix) }

// reference notes what a referenced template may read. What is wrong with it is
// said when it is exported.
func (r *Repo) reference(t *templates, ref Reference) error {
	if ref.Kind == butane.Tree || !isTemplate(ref.Path) || !ref.Entry.Mode.IsFile() {
		return nil
	}
	data, err := r.text(ref.Entry, t.most)
	if err == nil {
		_, err = t.parse(ref.Entry.Path, data)
	}
	var bad *finding.Failure
	if errors.As(err, &bad) {
		return nil
	}
	return err
}

// inputs are what the templates may read, with its values.
func (t *templates) inputs() []Input {
	var all []Input
	for _, key := range slices.Sorted(maps.Keys(t.read)) {
		read := t.read[key]
		switch {
		case len(read) == 0:
			all = append(all, t.fact("Arch"), t.fact("MachineID"), variable(t.vars, nil))
		case read[0] == "Host" && len(read) == 1:
			all = append(all, t.fact("Arch"), t.fact("MachineID"))
		case read[0] == "Host" && (read[1] == "Arch" || read[1] == "MachineID"):
			all = append(all, t.fact(read[1]))
		case read[0] == "Vars":
			all = append(all, variable(t.vars, read[1:]))
		}
	}
	slices.SortFunc(all, func(a, b Input) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	return slices.Compact(all)
}

// fact is an input that is not in the repo. The host's name is one anyway.
func (t *templates) fact(name string) Input {
	if name == "Arch" {
		return Input{Kind: "fact", Name: "arch", ID: t.host.Arch}
	}
	return Input{Kind: "fact", Name: "machine-id", ID: t.host.MachineID}
}

// variable is the input below a path of vars; where there is nothing, its ID is
// empty.
func variable(vars map[string]any, path []string) Input {
	var value any = vars
	for _, name := range path {
		table, ok := value.(map[string]any)
		if !ok {
			break // whatever stands here is what was read
		}
		if value, ok = table[name]; !ok {
			return Input{Kind: "var", Name: strings.Join(path, ".")}
		}
	}
	return Input{Kind: "var", Name: strings.Join(path, "."), ID: spell(value)}
}

// spell writes a value as TOML has it, so that 1, 1.0 and "1" differ.
func spell(value any) string {
	switch v := value.(type) {
	case string:
		return strconv.Quote(v)
	case float64:
		if v == math.Trunc(v) {
			return strconv.FormatFloat(v, 'e', -1, 64)
		}
		return strconv.FormatFloat(v, 'g', -1, 64)
	case []any:
		var parts []string
		for _, one := range v {
			parts = append(parts, spell(one))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case []map[string]any:
		var parts []string
		for _, one := range v {
			parts = append(parts, spell(one))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, strconv.Quote(name)+" = "+spell(v[name]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprint(v)
	}
}

// stem is the name of a Butane file without what says that it is one.
func stem(file string) (string, bool) {
	name, ok := strings.CutSuffix(strings.TrimSuffix(path.Base(file), templateSuffix), ".bu")
	return name, ok && name != ""
}

// isDocument tells whether an entry is a Butane file, or a template of one.
func isDocument(e source.Entry) bool {
	_, ok := stem(e.Path)
	return ok && e.Mode != source.Directory
}
