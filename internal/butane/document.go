package butane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// maxNodes bounds a document after its aliases are expanded, so that a few
// lines of nested anchors cannot fill the memory of a host.
const maxNodes = 500_000

// document is the YAML of one layer with every alias and merge key resolved.
// Its nodes keep the lines that they were written on, which Butane's own
// report loses behind an alias.
type document struct {
	file    string
	lines   []string
	root    *yaml.Node // nil: the document is empty
	source  []byte     // what Butane is given
	respelt bool       // source is not what was written, or is but would be another
	hidden  map[int]bool
	written *Written // nil: it stands in its file as it is
	shown   []string // the lines of its file
	secret  map[int]bool
}

// Written is the template that a document was made from: positions and excerpts
// are those of its file.
type Written struct {
	Text []byte
	// At is the place in Text that a place of the document comes from; a column
	// of 0 stays 0.
	At func(line, column int) (int, int)
}

// parse reads the first YAML document of data. The error is in yaml.v3's words.
func parse(file string, data []byte, written *Written) (*document, error) {
	d := &document{file: file, source: data, lines: linesOf(data), written: written}
	d.shown = d.lines
	if written != nil {
		d.shown = linesOf(written.Text)
	}
	var top yaml.Node
	if err := yaml.Unmarshal(data, &top); err != nil {
		return d, err
	}
	if len(top.Content) == 0 {
		return d, nil
	}
	e := expander{within: map[*yaml.Node]bool{}}
	root, err := e.expand(top.Content[0])
	if err != nil {
		return d, err
	}
	d.root = root
	d.hide()
	if d.respelt = e.changed; e.changed {
		d.source = respell(root, data)
	}
	return d, nil
}

func linesOf(data []byte) []string {
	var lines []string
	for line := range strings.SplitSeq(string(data), "\n") {
		lines = append(lines, strings.TrimSuffix(line, "\r"))
	}
	return lines
}

// respell writes the expanded document for Butane, whose check for unknown keys
// sees neither through an alias nor through a merge key. Unless the two mean
// the same to the YAML library, Butane gets what was written.
func respell(root *yaml.Node, data []byte) []byte {
	out, err := yaml.Marshal(plain(root))
	if err != nil {
		return data
	}
	var before, after any
	if yaml.Unmarshal(data, &before) != nil || yaml.Unmarshal(out, &after) != nil || !reflect.DeepEqual(before, after) {
		return data
	}
	return out
}

// plain copies a tree in the one style that can hold every string.
func plain(n *yaml.Node) *yaml.Node {
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value}
	if n.Kind == yaml.ScalarNode {
		out.Style = n.Style
		if n.ShortTag() == "!!str" {
			out.Style = yaml.DoubleQuotedStyle
		}
	}
	for _, child := range n.Content {
		out.Content = append(out.Content, plain(child))
	}
	return out
}

// expander resolves aliases and merge keys as yaml.v3's decoder does.
type expander struct {
	nodes   int
	changed bool
	within  map[*yaml.Node]bool // what is being expanded
}

func (e *expander) expand(n *yaml.Node) (*yaml.Node, error) {
	if e.nodes++; e.nodes > maxNodes {
		return nil, fmt.Errorf("yaml: line %d: more than %d values after expanding aliases", n.Line, maxNodes)
	}
	if n.Kind == yaml.AliasNode {
		if e.within[n.Alias] {
			return nil, fmt.Errorf("yaml: line %d: anchor '%s' value contains itself", n.Line, n.Value)
		}
		e.changed = true
		return e.expand(n.Alias)
	}
	e.within[n] = true
	defer delete(e.within, n)
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style, Line: n.Line, Column: n.Column}
	if n.Kind == yaml.MappingNode {
		return out, e.mapping(n, out)
	}
	for _, child := range n.Content {
		c, err := e.expand(child)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, c)
	}
	return out, nil
}

// mapping copies the pairs of n, then adds what its merge keys bring: what is
// written out wins over what is merged, an earlier map over a later one.
func (e *expander) mapping(n, out *yaml.Node) error {
	have := map[string]bool{}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			e.changed = true
			merged = append(merged, value)
			continue
		}
		for _, child := range []*yaml.Node{key, value} {
			c, err := e.expand(child)
			if err != nil {
				return err
			}
			out.Content = append(out.Content, c)
		}
		have[key.Value] = true
	}
	for _, value := range merged {
		from, err := e.expand(value)
		if err != nil {
			return err
		}
		maps := []*yaml.Node{from}
		if from.Kind == yaml.SequenceNode {
			maps = from.Content
		}
		for _, m := range maps {
			if m.Kind != yaml.MappingNode {
				return fmt.Errorf("yaml: line %d: map merge requires map or sequence of maps as the value", value.Line)
			}
			for i := 0; i+1 < len(m.Content); i += 2 {
				if !have[m.Content[i].Value] {
					have[m.Content[i].Value] = true
					out.Content = append(out.Content, m.Content[i], m.Content[i+1])
				}
			}
		}
	}
	return nil
}

// at returns the node of a path of keys and indices, or the deepest one on the
// way to it; key is the node of the last key that was found.
func (d *document) at(path []any) (value, key *yaml.Node, whole bool) {
	value = d.root
	for _, step := range path {
		var next *yaml.Node
		switch step := step.(type) {
		case int:
			if value != nil && value.Kind == yaml.SequenceNode && step >= 0 && step < len(value.Content) {
				next = value.Content[step]
			}
		case string:
			if k, v := child(value, step); v != nil {
				next, key = v, k
			}
		}
		if next == nil {
			return value, key, false
		}
		value = next
	}
	return value, key, true
}

// child looks a key up in a mapping.
func child(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Kind == yaml.ScalarNode && n.Content[i].Value == name {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// list returns the entries of the sequence at path.
func (d *document) list(path ...any) []*yaml.Node {
	n, _, whole := d.at(path)
	if !whole || n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// text is the string that the decoder would read from the key of a mapping.
func text(n *yaml.Node, name string) string {
	_, v := child(n, name)
	return scalar(v)
}

func scalar(n *yaml.Node) string {
	var s *string
	if n == nil || n.Kind != yaml.ScalarNode || n.Decode(&s) != nil || s == nil {
		return ""
	}
	return *s
}

// position is where the value at path stands, or the deepest value on the way
// to it; the field is the whole path.
func (d *document) position(path []any) finding.Position {
	pos := finding.Position{File: d.file, Field: field(path)}
	value, _, _ := d.at(path)
	d.put(&pos, value)
	return pos
}

// keyPosition is where the last key of path stands.
func (d *document) keyPosition(path []any) finding.Position {
	pos := finding.Position{File: d.file, Field: field(path)}
	value, key, whole := d.at(path)
	if whole && key != nil {
		value = key
	}
	d.put(&pos, value)
	return pos
}

func (d *document) put(pos *finding.Position, n *yaml.Node) {
	if n == nil || n.Line == 0 {
		return
	}
	pos.Line, pos.Column = n.Line, n.Column
	// The YAML library counts characters, an editor's file:line:col bytes.
	if n.Line <= len(d.lines) {
		line, column := d.lines[n.Line-1], 0
		for i := 1; i < n.Column && column < len(line); i++ {
			_, size := utf8.DecodeRuneInString(line[column:])
			column += size
		}
		pos.Column = column + 1
	}
	d.locate(pos)
}

// locate turns a place of the document into one of its file.
func (d *document) locate(pos *finding.Position) {
	if d.written != nil && pos.Line > 0 {
		pos.Line, pos.Column = d.written.At(pos.Line, pos.Column)
	}
}

// excerpt is the line of the file that pos names, unless contents stand on it.
func (d *document) excerpt(pos finding.Position) string {
	if d.root == nil || pos.Line < 1 || pos.Line > len(d.shown) || d.secret[pos.Line] {
		return ""
	}
	return d.shown[pos.Line-1]
}

// secret are the keys whose scalar values are, or may be, the contents of a
// managed file or a credential.
var secret = map[string]bool{
	"inline": true, "contents": true, "source": true, "password_hash": true, "value": true,
	"http_proxy": true, "https_proxy": true, "config": true,
}

// hide marks the lines that an excerpt must not show. The YAML library does not
// say where a scalar ends, so it is taken to reach to the next value.
func (d *document) hide() {
	type mark struct {
		line   int
		secret bool
	}
	var marks []mark
	var walk func(n *yaml.Node, under string)
	walk = func(n *yaml.Node, under string) {
		if n.Kind == yaml.ScalarNode {
			hide := secret[under] && (under != "source" || !harmless(n.Value))
			first := n.Line
			if hide && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
				marks = append(marks, mark{first, false}) // the | or > alone
				first++
			}
			marks = append(marks, mark{first, hide})
			return
		}
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(n.Content[i], "")
				walk(n.Content[i+1], n.Content[i].Value)
			}
			return
		}
		for _, child := range n.Content {
			walk(child, under)
		}
	}
	walk(d.root, "")
	sort.SliceStable(marks, func(i, j int) bool { return marks[i].line < marks[j].line })
	d.hidden = map[int]bool{}
	for i, m := range marks {
		if !m.secret {
			continue
		}
		end := len(d.lines) + 1
		for _, next := range marks[i+1:] {
			if next.line > m.line {
				end = next.line
				break
			}
		}
		for line := m.line; line < end; line++ {
			d.hidden[line] = true
		}
	}
	d.secret = d.hidden
	if d.written == nil {
		return
	}
	d.secret = map[int]bool{}
	for line := range d.hidden {
		if line > len(d.lines) {
			continue
		}
		first, _ := d.written.At(line, 1)
		last, _ := d.written.At(line, max(len(d.lines[line-1]), 1))
		for ; first <= last; first++ {
			d.secret[first] = true
		}
		d.secret[last] = true
	}
}

// harmless tells whether a source may be shown: a plain address, neither the
// data itself nor one that carries a password or a token.
func harmless(source string) bool {
	return !strings.HasPrefix(source, "data:") && !strings.ContainsAny(source, "@?\n")
}

// field spells a path in Butane's words: storage.files[3].contents.local.
func field(path []any) string {
	var b strings.Builder
	for _, step := range path {
		if i, ok := step.(int); ok {
			fmt.Fprintf(&b, "[%d]", i)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		fmt.Fprint(&b, step)
	}
	return b.String()
}

// tabHint says what the YAML library means by a character that cannot start a token.
func (d *document) tabHint(line int) string {
	if line < 1 || line > len(d.lines) || !strings.HasPrefix(strings.TrimLeft(d.lines[line-1], " "), "\t") {
		return ""
	}
	return "indent with spaces: YAML takes no tabs"
}

// atLine takes the line out of an error of the YAML library.
var atLine = regexp.MustCompile(`^(?:yaml: )?line ([0-9]+): `)

// quoted is a value that the YAML library shows in an error.
var quoted = regexp.MustCompile("(!![a-z]+) `[^`]*`")

// yamlFindings turns an error of the YAML library into findings, one for each
// thing that it names. Where the document could not be read nobody can tell
// contents from the rest, so that there is no excerpt.
func (d *document) yamlFindings(err error) finding.List {
	msgs := []string{err.Error()}
	if e, ok := errors.AsType[*yaml.TypeError](err); ok {
		msgs = e.Errors
	}
	var list finding.List
	for _, msg := range msgs {
		pos := finding.Position{File: d.file}
		if m := atLine.FindStringSubmatch(msg); m != nil {
			pos.Line, _ = strconv.Atoi(m[1])
			msg = msg[len(m[0]):]
			if d.root == nil {
				pos.Line = d.brokenLine(pos.Line)
			}
		} else if line := d.badLine(); line > 0 {
			pos.Line = line
		} else if d.root == nil {
			pos.Line = 1 // the library leaves the first line out
		}
		if d.root == nil || d.hidden[pos.Line] {
			msg = quoted.ReplaceAllString(msg, "$1")
		}
		hint := d.tabHint(pos.Line)
		if hint != "" {
			pos.Column = strings.IndexByte(d.lines[pos.Line-1], '\t') + 1
		}
		d.locate(&pos)
		list = append(list, finding.Finding{
			Severity: finding.Error,
			Position: pos,
			Message:  "YAML: " + clean(strings.TrimPrefix(msg, "yaml: "), ""),
			Hint:     hint,
			Excerpt:  d.excerpt(pos),
		})
	}
	return list
}

// brokenLine is the line after the longest beginning of the document that can be
// read. The library often names the line where the surrounding map began, and
// counts some lines from 0.
func (d *document) brokenLine(said int) int {
	const few = 1000 // each try parses the beginning once more
	if len(d.lines) > few {
		return said
	}
	for end := len(d.lines) - 1; end > 0; end-- {
		var n yaml.Node
		if yaml.Unmarshal([]byte(strings.Join(d.lines[:end], "\n")), &n) == nil {
			return end + 1
		}
	}
	return 1
}

// badLine is the first line with bytes that YAML does not allow, for which the
// library names no place.
func (d *document) badLine() int {
	for i, line := range d.lines {
		for _, r := range line {
			if r == utf8.RuneError || r < 0x20 && r != '\t' && r != '\r' || r == 0x7f {
				return i + 1
			}
		}
	}
	return 0
}

// more tells whether a second YAML document follows, which Butane never reads.
func more(data []byte) bool {
	if !bytes.Contains(data, []byte("---")) && !bytes.Contains(data, []byte("...")) {
		return false // what ends a document, and costs less to find than reading it
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var n yaml.Node
	if dec.Decode(&n) != nil {
		return false
	}
	return !errors.Is(dec.Decode(&n), io.EOF)
}
