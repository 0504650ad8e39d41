package butane

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/coreos/butane/base/util"
	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"gopkg.in/yaml.v3"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Shape is a document apart from the names of the blobs that it refers to.
// Butane reads placeholders there, so that it makes the same of all documents of
// one shape, but for these: many hosts differ in nothing else.
type Shape struct {
	Key [sha256.Size]byte // the same for all documents of one shape

	doc     *document
	pieces  [][]byte // of the document, between the names of its blobs
	slots   []int    // which blob each name is
	sources []string // of the blobs, as Butane writes them
	texts   bool     // it refers to more than blobs
}

// NewShape finds the shape of a document whose references lead to the entries;
// it is not ok where Butane may see more of one than a placeholder, or where it
// is not plain how the document would look with another name in it.
func NewShape(layer string, data []byte, written *Written, refs []Reference, entries []source.Entry, nonce string) (_ *Shape, ok bool) {
	d, err := parse(layer, data, written)
	if err != nil || d.root == nil || d.respelt || bytes.ContainsAny(data, otherBreaks) {
		return nil, false
	}
	found, nodes := d.references()
	if !slices.Equal(found, refs) {
		return nil, false
	}
	var (
		s      = &Shape{doc: d}
		hash   = sha256.New()
		lines  = lineStarts(data)
		rest   = 0 // of data, that is not hashed yet
		slots  = map[string]int{}
		others = map[string]bool{}
	)
	s.pieces = make([][]byte, 0, len(refs)+1)
	put := func(parts ...string) {
		for _, part := range parts {
			hash.Write(binary.AppendUvarint(nil, uint64(len(part))))
			hash.Write([]byte(part))
		}
	}
	for i, ref := range refs {
		name, entry := path.Clean(ref.Path), entries[i]
		switch {
		case ref.Kind == Tree || strings.HasSuffix(name, ".tmpl"):
			return nil, false
		case ref.Kind == Text:
			others[name] = true // one path is one file: its text is the document's
			s.texts = true
			continue
		}
		at, ok := plainly(data, lines, nodes[i])
		if !ok || at < rest || !entry.Mode.IsFile() {
			return nil, false
		}
		slot, again := slots[name]
		if !again {
			slot = len(slots)
			slots[name] = slot
			source, _, err := util.MakeDataURL(Placeholder(nonce, entry.ID, entry.Path), nil, false)
			if err != nil {
				return nil, false
			}
			s.sources = append(s.sources, source)
		}
		put(string(data[rest:at]), strconv.Itoa(slot))
		s.pieces, s.slots = append(s.pieces, data[rest:at]), append(s.slots, slot)
		rest = at + len(ref.Path)
	}
	for name := range others {
		if _, both := slots[name]; both {
			return nil, false
		}
	}
	put(string(data[rest:]))
	s.pieces = append(s.pieces, data[rest:])
	hash.Sum(s.Key[:0])
	return s, true
}

// Blanks are files that stand for the blobs of any document: writing them once is
// cheaper than placeholders of each. Several goroutines may use them.
type Blanks struct {
	Dir   string // exists, is empty and only ours
	Nonce string // so that no layer can write one itself

	mu      sync.Mutex
	sources []string // of the files that are there
}

// first are the sources of the first so many blanks, which are there then.
func (b *Blanks) first(count int) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.sources); i < count; i++ {
		data := Placeholder(b.Nonce, "", blank(i))
		source, _, err := util.MakeDataURL(data, nil, false)
		if err == nil {
			err = os.WriteFile(filepath.Join(b.Dir, blank(i)), data, 0o600)
		}
		if err != nil {
			return nil, err
		}
		b.sources = append(b.sources, source)
	}
	return b.sources[:count:count], nil
}

func blank(slot int) string { return "blank-" + strconv.Itoa(slot) }

// Blank translates the document with blanks for its blobs; other is the shape of
// that one, for Like. It is not ok where something is to be said of the document,
// which only Translate can, or where Butane reads more than blobs.
func (s *Shape) Blank(blanks *Blanks, strict bool) (other *Shape, made Config, ok bool, err error) {
	if s.texts {
		return nil, Config{}, false, nil
	}
	sources, err := blanks.first(len(s.sources))
	if err != nil {
		return nil, Config{}, false, err
	}
	data := slices.Clone(s.pieces[0])
	for i, slot := range s.slots {
		data = append(append(data, blank(slot)...), s.pieces[i+1]...)
	}
	t := translation{document: s.doc, filesDir: blanks.Dir, strict: strict}
	t.run(data, data)
	return &Shape{Key: s.Key, sources: sources}, Config{Ignition: t.config, strict: strict}, len(t.findings) == 0, nil
}

// Like is what Butane makes of the document, given what it made of another one
// of its shape and said nothing about. It lacks Raw.
func (s *Shape) Like(other *Shape, made Config) Config {
	c := Config{
		Layer: s.doc.file, Ignition: made.Ignition, strict: made.strict,
		docs: map[string]*document{s.doc.file: s.doc}, reported: map[string]bool{},
	}
	own := make(map[string]*string, len(s.sources))
	for i, source := range other.sources {
		own[source] = &s.sources[i]
	}
	put := func(r *types.Resource) {
		if r.Source != nil && own[*r.Source] != nil {
			r.Source = own[*r.Source]
		}
	}
	c.Ignition.Storage.Files = slices.Clone(made.Ignition.Storage.Files)
	for i := range c.Ignition.Storage.Files {
		f := &c.Ignition.Storage.Files[i]
		put(&f.Contents)
		f.Append = slices.Clone(f.Append)
		for j := range f.Append {
			put(&f.Append[j])
		}
	}
	c.index(s.doc, "")
	return c
}

// otherBreaks end a line for the YAML library and for nobody else.
const otherBreaks = "\r\u0085\u2028\u2029"

// plainly is where in data the value of a scalar stands, letter for letter, and
// another name of that kind could stand in its place.
func plainly(data []byte, lines []int, n *yaml.Node) (at int, ok bool) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	if n.Value == "" || n.Line < 1 || n.Line > len(lines) || n.ShortTag() != "!!str" ||
		!strings.Contains(letters, n.Value[:1]) || strings.Trim(n.Value, letters+"0123456789-_./") != "" {
		return 0, false
	}
	first := lines[n.Line-1]
	at = first + n.Column - 1
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		at++
	}
	end := at + len(n.Value)
	return at, end <= len(data) && string(data[at:end]) == n.Value && // columns are characters:
		!bytes.ContainsFunc(data[first:at], func(r rune) bool { return r >= utf8.RuneSelf })
}

func lineStarts(data []byte) []int {
	starts := []int{0}
	for i, b := range data {
		if b == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}
