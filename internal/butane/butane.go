// Package butane turns Butane documents into Ignition configs.
//
// Its one rule: Butane never sees a fleet repo, only a private directory with
// the files that a document refers to, and large ones as placeholders; whatever
// Butane and Ignition say about a document becomes a finding with its line.
package butane

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/coreos/butane/config"
	"github.com/coreos/butane/config/common"
	"github.com/coreos/butane/config/util"
	"github.com/coreos/go-semver/semver"
	ignerrors "github.com/coreos/ignition/v2/config/shared/errors"
	ignition "github.com/coreos/ignition/v2/config/v3_7_experimental"
	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"github.com/coreos/vcontext/path"
	"github.com/coreos/vcontext/report"
	"github.com/coreos/vcontext/tree"
	"gopkg.in/yaml.v3"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Config is an Ignition config of the newest version that knows which lines of
// which layers it comes from. It is a desired.Locator.
type Config struct {
	Layer    string // empty after a merge of several
	Ignition types.Config
	// Raw is what Butane made of one document, in that document's own version of
	// Ignition's spec: what a new machine of that version is provisioned with.
	Raw []byte

	strict   bool
	docs     map[string]*document
	places   map[string][]place
	reported map[string]bool // what was already said, so that a merge does not repeat it
	merged   []Config        // what it was merged from, in order; nil: it was not
}

// Translate runs Butane and Ignition's parser over one document; written is the
// template that it was made from, or nil. filesDir is the directory that an
// Exporter filled. Unknown keys are errors when strict.
// The config is of use when no finding is an error.
func Translate(layer string, data []byte, written *Written, filesDir string, strict bool) (Config, finding.List) {
	c := Config{Layer: layer, strict: strict}
	d, err := parse(layer, data, written)
	c.docs = map[string]*document{layer: d}
	if err != nil {
		return c, d.yamlFindings(err)
	}
	t := translation{document: d, filesDir: filesDir, strict: strict}
	t.run(data, d.source)
	c.Ignition, c.Raw = t.config, t.raw
	c.index(d, filesDir)
	inOrder(t.findings)
	t.findings = slices.Compact(t.findings)
	c.reported = map[string]bool{}
	for _, f := range t.findings {
		c.reported[f.Message] = true
	}
	return c, t.findings
}

// translation is one run of Translate.
type translation struct {
	*document
	filesDir string
	strict   bool
	config   types.Config
	raw      []byte
	findings finding.List
}

// run translates the document that was written as data; source is what Butane is
// given of it.
func (t *translation) run(data, source []byte) {
	variant, version := text(t.root, "variant"), text(t.root, "version")
	if more(data) {
		t.add(t.strictly(), finding.Position{File: t.file}, "only the first YAML document of a layer is read",
			"put the second one into a layer of its own")
	}
	if strings.HasSuffix(version, "-experimental") {
		t.add(finding.Warning, t.position([]any{"version"}), experimental(variant, version), "")
	}
	raw, rep, err := translateBytes(source, common.TranslateBytesOptions{
		Raw:              true,
		TranslateOptions: common.TranslateOptions{FilesDir: t.filesDir, NoResourceAutoCompression: true},
	})
	t.report(rep)
	if err != nil {
		t.failed(err)
		return
	}
	t.raw = raw
	cfg, nodes, ok := decode(raw)
	if !ok {
		nodes = dropped(raw)
		cfg, rep, err = ignition.ParseCompatibleVersion(raw)
		t.parsed(rep, err)
	}
	t.config = cfg
	t.specialBits(nodes, variant)
}

// decode is Ignition's parser without its checks, which Butane has made of the
// same config already, for the versions whose fields are those of the newest one.
// It does what their translation does, and returns whose special bits that drops.
func decode(raw []byte) (cfg types.Config, nodes []modeNode, ok bool) {
	if bytes.Contains(raw, []byte(`\ufffd`)) {
		return cfg, nil, false // not what Butane checked: JSON cannot hold what that was
	}
	if json.Unmarshal(raw, &cfg) != nil || len(cfg.Storage.Luks) > 0 { // of these the translation loses a field
		return types.Config{}, nil, false
	}
	drop := func(path string, mode *int) {
		if mode != nil && *mode&special != 0 {
			nodes = append(nodes, modeNode{path, *mode})
			*mode &^= special
		}
	}
	switch cfg.Ignition.Version {
	case "3.3.0", "3.4.0", "3.5.0":
		for _, f := range cfg.Storage.Files {
			drop(f.Path, f.Mode)
		}
		for _, d := range cfg.Storage.Directories {
			drop(d.Path, d.Mode)
		}
	case "3.6.0", types.MaxVersion.String():
	default:
		return types.Config{}, nil, false
	}
	cfg.Ignition.Version = types.MaxVersion.String()
	return cfg, nodes, true
}

const special = 0o7000 // set-uid, set-gid and sticky

func experimental(variant, version string) string {
	return fmt.Sprintf("%s %s is experimental: the next release may read it differently or not at all", variant, version)
}

// translateBytes is Butane's. A document that Butane does not survive must not
// end an agent that runs as root on every host.
func translateBytes(data []byte, options common.TranslateBytesOptions) (raw []byte, rep report.Report, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: Butane does not survive this document: %v", p)
		}
	}()
	return config.TranslateBytes(data, options)
}

func (t *translation) strictly() finding.Severity {
	if t.strict {
		return finding.Error
	}
	return finding.Warning
}

func (t *translation) add(s finding.Severity, pos finding.Position, message, hint string) {
	t.findings = append(t.findings, finding.Finding{
		Severity: s, Position: pos, Message: message, Hint: hint, Excerpt: t.excerpt(pos),
	})
}

// failed adds what TranslateBytes returned beside its report.
func (t *translation) failed(err error) {
	var typeError *yaml.TypeError
	var unmarshal common.ErrUnmarshal
	switch {
	case errors.As(err, &typeError):
		t.findings = append(t.findings, t.yamlFindings(err)...)
	case errors.As(err, &unmarshal):
		// Butane keeps only the text; the same decoding names every line.
		var common struct {
			Version string `yaml:"version"`
			Variant string `yaml:"variant"`
		}
		if again := yaml.Unmarshal(t.source, &common); again != nil {
			err = again
		}
		t.findings = append(t.findings, t.yamlFindings(err)...)
	case t.root == nil:
		t.add(finding.Error, finding.Position{File: t.file}, "the document is empty", "a layer begins with variant: and version:")
	case errors.Is(err, common.ErrNoVariant):
		t.add(finding.Error, t.position([]any{"variant"}), "variant is missing", "a layer begins with variant: and version:, for example fcos and 1.6.0")
	case errors.Is(err, common.ErrInvalidVersion):
		t.add(finding.Error, t.position([]any{"version"}), "version is missing or not of the form 1.6.0", "")
	case len(t.findings.Errors()) == 0:
		t.add(finding.Error, t.position([]any{"version"}), t.clean(err.Error()), "")
	}
}

// report turns Butane's report into findings.
func (t *translation) report(r report.Report) {
	for _, entry := range r.Entries {
		t.entry(entry.Kind, steps(entry.Context), entry.Message)
	}
}

// parsed adds what Ignition's parser finds in Butane's output, mostly once more
// what Butane found.
func (t *translation) parsed(r report.Report, err error) {
	said := map[string]bool{}
	for _, f := range t.findings {
		said[f.Message] = true
	}
	for _, entry := range r.Entries {
		if msg := t.clean(entry.Message); !said[msg] {
			t.entry(entry.Kind, snake(steps(entry.Context)), entry.Message)
		}
	}
	if err != nil && len(t.findings.Errors()) == 0 {
		t.add(finding.Error, finding.Position{File: t.file}, t.clean(err.Error()), "")
	}
}

func (t *translation) entry(kind report.EntryKind, at []any, message string) {
	severity := severityOf(kind)
	pos := t.position(at)
	if len(at) > 1 && at[0] == "spec" && at[1] == "config" {
		pos = t.position(at[2:]) // Butane's path into a MachineConfig that nobody asked for
	}
	switch {
	case strings.HasPrefix(message, unusedKey):
		severity = t.strictly()
		pos = t.keyPosition(at)
		message = "unknown key " + strings.TrimPrefix(message, unusedKey)
	case message == ignerrors.ErrModeSpecialBits.Error():
		return // specialBits says it with the mode and the way out
	case strings.HasPrefix(message, "context tree does not match"):
		if n, _, whole := t.at(at); whole && n.ShortTag() == "!!null" {
			return // a key without a value has no unknown keys in it
		}
	}
	t.add(severity, pos, t.clean(message), "")
}

const unusedKey = "unused key "

func severityOf(kind report.EntryKind) finding.Severity {
	switch {
	case kind.IsFatal():
		return finding.Error
	case kind == report.Warn:
		return finding.Warning
	default:
		return finding.Info
	}
}

// garbage is where the parser of unit files shows the contents of one.
var garbage = regexp.MustCompile(`(?s)(found garbage after section name.*?): .*`)

// goType is how the YAML library names one of Butane's types.
var goType = regexp.MustCompile(`into (?:\[\])*v[0-9]+_[0-9]+(?:_exp)?\.([A-Za-z]+)`)

// clean takes out of a message what is only ours, and what is the host config's secret.
func (t *translation) clean(message string) string { return clean(message, t.filesDir) }

func clean(message, filesDir string) string {
	if filesDir != "" {
		message = strings.ReplaceAll(message, filepath.Clean(filesDir)+string(filepath.Separator), "")
	}
	message = goType.ReplaceAllString(message, "into $1")
	return strings.TrimSpace(garbage.ReplaceAllString(message, "$1"))
}

// Join puts what Export and Translate say about one layer together: of a
// reference that was refused, Butane's own complaint says nothing more.
func Join(refused, said finding.List) finding.List {
	out := slices.Clone(refused)
	for _, f := range said {
		if !slices.ContainsFunc(refused, func(r finding.Finding) bool { return r.File == f.File && r.Field == f.Field }) {
			out = append(out, f)
		}
	}
	inOrder(out)
	return out
}

// steps is a path of a report without its types.
func steps(c path.ContextPath) []any {
	out := make([]any, 0, len(c.Path))
	for _, step := range c.Path {
		if key, ok := step.(tree.Key); ok {
			step = string(key)
		}
		out = append(out, step)
	}
	return out
}

// snake spells Ignition's field names as Butane does.
func snake(at []any) []any {
	out := slices.Clone(at)
	for i, step := range out {
		if s, ok := step.(string); ok {
			out[i] = util.Snake(s)
		}
	}
	return out
}

// inOrder brings the findings of one layer into the order of its lines: Butane
// walks maps.
func inOrder(list finding.List) {
	slices.SortStableFunc(list, func(a, b finding.Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Message, b.Message))
	})
}

// specialSince is the first version of each variant that keeps set-uid, set-gid
// and sticky bits: the first one that becomes Ignition 3.6.0 or later.
var specialSince = map[string]string{
	"fcos":    "fcos 1.7.0",
	"flatcar": "flatcar 1.2.0-experimental",
	"r4e":     "r4e 1.2.0-experimental",
	"fiot":    "fiot 1.1.0-experimental",
}

// specialBits warns of mode bits that Ignition's translation to its newest
// version takes away without a word.
func (t *translation) specialBits(nodes []modeNode, variant string) {
	since, ok := specialSince[variant]
	if !ok {
		since = "a version that becomes Ignition 3.6.0"
	}
	for _, node := range nodes {
		at := t.nodePath(node.Path)
		if at != nil {
			at = append(at, "mode")
		}
		pos := t.position(at)
		t.add(finding.Warning, pos,
			fmt.Sprintf("mode %#o of %s: set-uid, set-gid and sticky bits are dropped in this version", node.Mode, node.Path),
			"use "+since+" or later, which keeps them")
	}
}

// written is the part of an Ignition config that its parser changes without a word.
type written struct {
	Ignition struct {
		Version string `json:"version"`
	} `json:"ignition"`
	Storage struct {
		Files       []modeNode `json:"files"`
		Directories []modeNode `json:"directories"`
	} `json:"storage"`
}

type modeNode struct {
	Path string `json:"path"`
	Mode int    `json:"mode"`
}

func readWritten(raw []byte) written {
	var w written
	if json.Unmarshal(raw, &w) != nil {
		return written{} // Ignition's parser says what is wrong
	}
	return w
}

func writtenVersion(raw []byte) string { return readWritten(raw).Ignition.Version }

// dropped are the files and directories whose special bits Ignition drops.
func dropped(raw []byte) []modeNode {
	old := readWritten(raw)
	version, err := semver.NewVersion(old.Ignition.Version)
	if err != nil || !version.LessThan(semver.Version{Major: 3, Minor: 6}) {
		return nil
	}
	var out []modeNode
	for _, node := range append(old.Storage.Files, old.Storage.Directories...) {
		if node.Mode&special != 0 {
			out = append(out, node)
		}
	}
	return out
}
