package butane

import (
	"cmp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// Kind says how the bytes behind a reference are used.
type Kind int

const (
	// Text is read by Butane or Ignition: units, quadlets, merged configs, keys.
	Text Kind = iota
	// Blob becomes the contents of a file and is only named in the translation.
	Blob
	// Tree is a folder; every blob in it is used like a Blob.
	Tree
)

func (k Kind) String() string {
	switch k {
	case Text:
		return "text"
	case Blob:
		return "blob"
	default:
		return "tree"
	}
}

// Reference is one local file or folder that a Butane document names.
type Reference struct {
	Field    string // storage.files[3].contents.local
	Path     string // as written, relative to the files-dir
	Kind     Kind
	Position finding.Position
}

// referenceFields are all fields of Butane's newest schema that name a local
// file. A test compares the list with Butane's own types.
var referenceFields = []struct {
	field string
	kind  Kind
}{
	{"ignition.config.merge[].local", Text},
	{"ignition.config.replace.local", Text},
	{"ignition.security.tls.certificate_authorities[].local", Text},
	{"passwd.users[].ssh_authorized_keys_local[]", Text},
	{"storage.files[].contents.local", Blob},
	{"storage.files[].append[].local", Blob},
	{"storage.trees[].local", Tree},
	{"storage.luks[].key_file.local", Text},
	{"systemd.units[].contents_local", Text},
	{"systemd.units[].dropins[].contents_local", Text},
	{"systemd.quadlets[].contents_local", Text},
	{"systemd.quadlets[].dropins[].contents_local", Text},
}

// References finds every local file that a Butane document names, in the order
// of the document; written is the template that it was made from, or nil. Of a
// document that is not YAML it knows none: the error, a finding.List, is the
// same that Translate reports.
func References(layer string, data []byte, written *Written) ([]Reference, error) {
	d, err := parse(layer, data, written)
	if err != nil {
		return nil, &finding.Failure{Findings: d.yamlFindings(err)}
	}
	refs, _ := d.references()
	return refs, nil
}

// references are those of a document with the values that name them.
func (d *document) references() ([]Reference, []*yaml.Node) {
	type named struct {
		Reference
		node *yaml.Node
	}
	var all []named
	for _, f := range referenceFields {
		d.match(nil, strings.Split(f.field, "."), func(path []any, n *yaml.Node) {
			var s *string
			if n.Kind != yaml.ScalarNode || n.Decode(&s) != nil || s == nil {
				return // Butane reads no path there either
			}
			// Butane takes an empty contents_local for none, and reports an empty tree itself.
			if *s == "" && (f.kind == Tree || strings.HasSuffix(f.field, "contents_local")) {
				return
			}
			pos := d.position(path)
			all = append(all, named{Reference{Field: pos.Field, Path: *s, Kind: f.kind, Position: pos}, n})
		})
	}
	slices.SortStableFunc(all, func(a, b named) int {
		return cmp.Or(cmp.Compare(a.Position.Line, b.Position.Line), cmp.Compare(a.Position.Column, b.Position.Column))
	})
	var refs []Reference
	var nodes []*yaml.Node
	for _, one := range all {
		refs, nodes = append(refs, one.Reference), append(nodes, one.node)
	}
	return refs, nodes
}

// match calls found for every value below path that fits the pattern.
func (d *document) match(path []any, pattern []string, found func([]any, *yaml.Node)) {
	n, _, whole := d.at(path)
	if !whole || n == nil {
		return
	}
	if len(pattern) == 0 {
		found(path, n)
		return
	}
	name, list := strings.CutSuffix(pattern[0], "[]")
	path = append(path[:len(path):len(path)], name)
	if !list {
		d.match(path, pattern[1:], found)
		return
	}
	for i := range d.list(path...) {
		d.match(append(path[:len(path):len(path)], i), pattern[1:], found)
	}
}
