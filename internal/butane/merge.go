package butane

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	ignerrors "github.com/coreos/ignition/v2/config/shared/errors"
	ignition "github.com/coreos/ignition/v2/config/v3_7_experimental"
	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"github.com/coreos/vcontext/validate"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Bounds on ignition.config.merge and replace.
const (
	maxNested = 16
	maxConfig = 16 << 20 // of one merged config, decompressed
)

// Fetch returns the bytes behind an http(s) source, as they were sent.
type Fetch func(desired.Content) ([]byte, error)

// Merge resolves what each layer merges or replaces, then merges the layers
// with Ignition's own rules: the later one wins. Without fetch every remote
// config is an error.
func Merge(layers []Config, fetch Fetch) (Config, finding.List) {
	return Begin().With(layers, fetch).Check()
}

// Merged are the layers that were merged so far: several hosts may begin with
// the same ones.
type Merged struct {
	config   Config
	findings finding.List
}

// Begin has merged nothing yet.
func Begin() Merged {
	return Merged{config: Config{Ignition: types.Config{Ignition: types.Ignition{Version: types.MaxVersion.String()}}, merged: []Config{}}}
}

// With is m with later layers merged into it, as Merge does. It leaves m as it
// is, so that several goroutines may go on from there.
func (m Merged) With(layers []Config, fetch Fetch) Merged {
	run := merging{fetch: fetch, findings: slices.Clone(m.findings)}
	for _, layer := range layers {
		first := len(m.config.merged) == 0
		m.config = m.config.with(run.layer(layer))
		if first {
			m.config.Layer = layer.Layer
		}
	}
	m.findings = run.findings
	return m
}

// Clean tells whether nothing was found so far.
func (m Merged) Clean() bool { return len(m.findings) == 0 }

// Check is the merged config with all that was found: two valid layers may
// become an invalid config.
func (m Merged) Check() (Config, finding.List) {
	run := merging{findings: m.findings}
	if len(run.findings.Errors()) == 0 {
		run.validate(m.config)
	}
	return m.config, run.findings
}

// merging is one run of Merged.With or of Check.
type merging struct {
	fetch    Fetch
	findings finding.List
}

func (m *merging) layer(layer Config) Config {
	r := rendering{merging: m, layer: layer}
	cfg := layer
	if ref := cfg.Ignition.Ignition.Config.Replace; ref.Source != nil {
		r.at = r.reference("replace")
		cfg, ok := r.referenced(ref, 1)
		if !ok {
			return layer.without()
		}
		return r.located(cfg)
	}
	for i, ref := range cfg.Ignition.Ignition.Config.Merge {
		r.at = r.reference("merge", i)
		if from, ok := r.referenced(ref, 1); ok {
			cfg = cfg.with(r.located(from))
		}
	}
	return cfg.without()
}

// rendering resolves the references of one layer.
type rendering struct {
	*merging
	layer Config
	at    place // the layer's reference that is being resolved
}

// reference is where the layer names a config.
func (r *rendering) reference(field ...any) place {
	at := append([]any{"ignition", "config"}, field...)
	d := r.layer.docs[r.layer.Layer]
	for _, name := range []string{"local", "inline", "source"} {
		if _, _, whole := d.at(append(slices.Clone(at), name)); whole {
			return place{doc: d, path: append(at, name), fixed: true}
		}
	}
	return place{doc: d, path: at, fixed: true}
}

func (r *rendering) add(s finding.Severity, hint, format string, args ...any) {
	pos := r.at.position(nil)
	r.findings = append(r.findings, finding.Finding{
		Severity: s, Position: pos, Message: fmt.Sprintf(format, args...), Hint: hint, Excerpt: r.at.doc.excerpt(pos),
	})
}

// referenced is the config that a reference names, with everything that it
// refers to in turn.
func (r *rendering) referenced(ref types.Resource, depth int) (types.Config, bool) {
	if depth > maxNested {
		r.add(finding.Error, "", "configs are merged into each other more than %d deep", maxNested)
		return types.Config{}, false
	}
	raw, ok := r.read(ref)
	if !ok {
		return types.Config{}, false
	}
	cfg, ok := r.parse(raw)
	if !ok {
		return types.Config{}, false
	}
	if next := cfg.Ignition.Config.Replace; next.Source != nil {
		return r.referenced(next, depth+1)
	}
	all := true
	for _, next := range cfg.Ignition.Config.Merge {
		if from, ok := r.referenced(next, depth+1); ok {
			cfg = ignition.Merge(cfg, from)
		} else {
			all = false
		}
	}
	return cfg, all
}

// read returns the bytes of a referenced config.
func (r *rendering) read(ref types.Resource) ([]byte, bool) {
	c, problem := desired.NewContent(ref)
	if problem != nil {
		r.add(finding.Error, problem.Hint, "%s", problem.Message)
		return nil, false
	}
	raw := c.Inline
	if c.URL != "" {
		if r.fetch == nil {
			r.add(finding.Error, "", "a remote config cannot be fetched here")
			return nil, false
		}
		var err error
		if raw, err = r.fetch(c); err != nil {
			r.add(finding.Error, "", "fetching the referenced config: %v", err)
			return nil, false
		}
	}
	raw, err := c.Unpack(raw, maxConfig)
	if err != nil {
		r.add(finding.Error, "", "the referenced config: %v", err)
		return nil, false
	}
	return raw, true
}

// parse reads a referenced config as Ignition does: its JSON, else Butane
// without local files.
func (r *rendering) parse(raw []byte) (types.Config, bool) {
	if trimmed := bytes.TrimSpace(raw); len(trimmed) > 0 && trimmed[0] != '{' {
		cfg, list := Translate("", raw, nil, "", r.layer.strict)
		for _, f := range list {
			r.inner(f.Severity, f.Line, f.Field, f.Message, f.Hint)
		}
		return cfg.Ignition, len(list.Errors()) == 0
	}
	cfg, rep, err := ignition.ParseCompatibleVersion(raw)
	if version := writtenVersion(raw); strings.HasSuffix(version, "-experimental") && err == nil {
		r.inner(finding.Warning, 0, "ignition.version", experimental("Ignition", version), "")
	}
	fatal := false
	for _, entry := range rep.Entries {
		if entry.Message == ignerrors.ErrModeSpecialBits.Error() {
			continue
		}
		severity, message := severityOf(entry.Kind), clean(entry.Message, "")
		if key, ok := strings.CutPrefix(message, unusedKey); ok {
			message = "unknown key " + key
			if r.layer.strict {
				severity = finding.Error
			}
		}
		fatal = fatal || severity == finding.Error
		line, _ := entry.Marker.Start()
		r.inner(severity, int(line), field(steps(entry.Context)), message, "")
	}
	if err != nil && !fatal {
		r.inner(finding.Error, 0, "", err.Error(), "")
		fatal = true
	}
	for _, node := range dropped(raw) {
		r.inner(finding.Warning, 0, "", fmt.Sprintf("mode %#o of %s: set-uid, set-gid and sticky bits are dropped in this version", node.Mode, node.Path),
			"use Ignition 3.6.0 or later, which keeps them")
	}
	return cfg, !fatal
}

// inner reports something inside a referenced config at the layer's reference.
func (r *rendering) inner(s finding.Severity, line int, field, message, hint string) {
	where := "in the referenced config"
	if line > 0 {
		where += fmt.Sprintf(", line %d", line)
	}
	if field != "" {
		where += ", " + field
	}
	r.add(s, hint, "%s: %s", where, message)
}

// located is a referenced config whose every resource stands at the reference.
func (r *rendering) located(cfg types.Config) Config {
	out := Config{Layer: r.layer.Layer, Ignition: cfg, strict: r.layer.strict, docs: r.layer.docs, places: map[string][]place{}}
	for _, key := range keys(cfg) {
		out.places[key] = []place{r.at}
	}
	return out.without()
}

// without forgets the references after they were resolved.
func (c Config) without() Config {
	c.Ignition.Ignition.Config = types.IgnitionConfig{}
	return c
}

// with merges a later config into c.
func (c Config) with(later Config) Config {
	out := Config{
		Layer:    later.Layer,
		Ignition: ignition.Merge(c.Ignition, later.Ignition),
		strict:   c.strict || later.strict,
		docs:     map[string]*document{},
		places:   map[string][]place{},
		reported: map[string]bool{},
		merged:   append(slices.Clone(c.leaves()), later.leaves()...),
	}
	if c.Layer != later.Layer {
		out.Layer = ""
	}
	for _, from := range []Config{c, later} {
		maps.Copy(out.docs, from.docs)
		maps.Copy(out.reported, from.reported)
		for key, places := range from.places {
			out.places[key] = append(slices.Clone(out.places[key]), places...)
		}
	}
	return out
}

// validate checks the merged config: two valid ones may become an invalid one.
func (m *merging) validate(c Config) {
	for _, entry := range validate.Validate(c.Ignition, "json").Entries {
		pos := c.locate(steps(entry.Context))
		f := finding.Finding{Severity: severityOf(entry.Kind), Position: pos, Message: clean(entry.Message, "")}
		if f.Severity == finding.Error || !c.reported[f.Message] {
			m.findings = append(m.findings, c.Excerpts(finding.List{f})...)
		}
	}
}

// locate finds where a path of the merged config comes from.
func (c Config) locate(at []any) finding.Position {
	if len(at) < 3 {
		return finding.Position{File: c.Layer, Field: field(snake(at))}
	}
	i, _ := at[2].(int)
	rest := snake(at[3:])
	switch section := fmt.Sprint(at[0], ".", at[1]); {
	case section == "storage.files" && i < len(c.Ignition.Storage.Files):
		return c.Path(c.Ignition.Storage.Files[i].Path, rest...)
	case section == "storage.directories" && i < len(c.Ignition.Storage.Directories):
		return c.Path(c.Ignition.Storage.Directories[i].Path, rest...)
	case section == "storage.links" && i < len(c.Ignition.Storage.Links):
		return c.Path(c.Ignition.Storage.Links[i].Path, rest...)
	case section == "systemd.units" && i < len(c.Ignition.Systemd.Units):
		u := c.Ignition.Systemd.Units[i]
		if len(rest) > 1 && rest[0] == "dropins" {
			if j, ok := rest[1].(int); ok && j < len(u.Dropins) {
				return c.Dropin(u.Name, u.Dropins[j].Name, rest[2:]...)
			}
		}
		return c.Unit(u.Name, rest...)
	default:
		return c.Section(section)
	}
}

// Duplicates reports every path that two files of one layer ask for. Within one
// file Butane reports it, and between layers the later one wins.
func Duplicates(files []Config) finding.List {
	var list finding.List
	first := map[string]finding.Position{}
	for _, c := range files {
		own := map[string]finding.Position{}
		for _, f := range c.Ignition.Storage.Files {
			own[f.Path] = c.Path(f.Path)
		}
		for _, d := range c.Ignition.Storage.Directories {
			own[d.Path] = c.Path(d.Path)
		}
		for _, l := range c.Ignition.Storage.Links {
			own[l.Path] = c.Path(l.Path)
		}
		for _, u := range c.Ignition.Systemd.Units {
			if u.Contents != nil || u.Mask != nil && *u.Mask {
				own[desired.UnitPath(u.Name)] = c.Unit(u.Name)
			}
			for _, d := range u.Dropins {
				if d.Contents != nil {
					own[desired.DropinPath(u.Name, d.Name)] = c.Dropin(u.Name, d.Name)
				}
			}
		}
		for _, path := range slices.Sorted(maps.Keys(own)) {
			at := own[path]
			before, ok := first[path]
			if !ok {
				first[path] = at
				continue
			}
			f := finding.Finding{
				Severity: finding.Error, Position: at,
				Message: fmt.Sprintf("%s is asked for by two files of one layer, also at %s", path, before),
				Hint:    "keep it in one of them; to replace it, use a later layer",
			}
			list = append(list, c.Excerpts(finding.List{f})...)
		}
	}
	return list
}
