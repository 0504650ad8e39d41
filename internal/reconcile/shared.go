package reconcile

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Shared remembers what Butane made of the layers of groups, which for most
// hosts expand to the same bytes, and of layers that differ only in the names of
// blobs. It is for one tree with one strictness; several goroutines may use it.
type Shared struct {
	nonce  string
	blanks *butane.Blanks

	mu     sync.Mutex
	known  map[[sha256.Size]byte]*made
	shapes map[[sha256.Size]byte]*shaped
	merged map[step]*merged
	// headers are those of encrypted files, by their object ids.
	headers map[string]header
}

// step is one more layer of a group after those that were merged before it.
type step struct {
	before *merged // nil: it is the first
	layer  *made
}

// merged is what the layers of the groups of a host became.
type merged struct {
	once   sync.Once
	config butane.Merged
}

// mostShared bounds what is remembered: a layer that is a template may be
// another one for every host.
const mostShared = 256

// mostShapes bounds the shapes: where no two hosts are alike, each is one.
const mostShapes = 32

// mostTemplate is above what a template may have in bytes.
const mostTemplate = 4 << 20

// NewShared remembers nothing yet. It writes to dir, which is empty and only ours.
func NewShared(dir string) *Shared {
	nonce := rand.Text()
	return &Shared{
		nonce: nonce, blanks: &butane.Blanks{Dir: dir, Nonce: nonce},
		known: map[[sha256.Size]byte]*made{}, shapes: map[[sha256.Size]byte]*shaped{}, merged: map[step]*merged{}, headers: map[string]header{},
	}
}

// merge merges the layers of groups that a host begins with, up to one that
// needs the network or has something wrong with it: count is how many.
func (s *Shared) merge(layers []*made) (config butane.Merged, count int) {
	config = butane.Begin()
	var before *merged
	for _, layer := range layers {
		next := remembered(s, s.merged, mostShared, step{before, layer})
		next.once.Do(func() { next.config = config.With([]butane.Config{layer.config}, nil) })
		if !next.config.Clean() {
			break
		}
		before, config = next, next.config
		count++
	}
	return config, count
}

// remembered is what of has for the key, new and empty when it has nothing. What has
// more than most is forgotten whole.
func remembered[K comparable, V any](s *Shared, of map[K]*V, most int, key K) *V {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := of[key]
	if !ok {
		if len(of) >= most {
			clear(of)
		}
		v = new(V)
		of[key] = v
	}
	return v
}

// made is one document after Butane. The first host that needs it makes it.
type made struct {
	once     sync.Once
	config   butane.Config
	findings finding.List
	err      error
}

// document is one document of one host on its way through Butane.
type document struct {
	Translation
	doc   fleet.Document
	refs  []fleet.Reference
	dir   func() (string, error) // makes a private directory
	nonce string
}

func (d *document) translate(group bool) (*made, error) {
	if d.Shared == nil {
		m := &made{}
		d.make(m)
		return m, m.err
	}
	if !group {
		return d.alike()
	}
	key, err := d.key()
	if err != nil {
		return nil, err
	}
	m := remembered(d.Shared, d.Shared.known, mostShared, key)
	m.once.Do(func() { d.make(m) })
	return m, m.err
}

// shaped is the first document of a shape after Butane, or one that was made up.
type shaped struct {
	made
	shape *butane.Shape
}

// alike translates a document that is one host's, and others may have but for
// the names of blobs. What is said about one document is never said of another.
func (d *document) alike() (*made, error) {
	own := &made{}
	entries := make([]source.Entry, 0, len(d.refs))
	for _, ref := range d.refs {
		entries = append(entries, ref.Entry)
	}
	shape, ok := butane.NewShape(d.doc.Entry.Path, d.doc.Data, d.doc.Written, d.references(), entries, d.nonce)
	if !ok {
		d.make(own)
		return own, own.err
	}
	first := remembered(d.Shared, d.Shared.shapes, mostShapes, shape.Key)
	first.once.Do(func() {
		var ok bool
		if first.shape, first.config, ok, first.err = shape.Blank(d.Shared.blanks, d.Strict); ok || first.err != nil {
			return
		}
		d.make(&first.made)
		first.shape = shape
	})
	if first.shape == shape {
		return &first.made, first.err
	}
	exporter := d.exporter("")
	refused, err := exporter.Check(d.references())
	if err != nil {
		return nil, err
	}
	if first.err != nil || len(first.findings)+len(refused) > 0 {
		d.make(own)
		return own, own.err
	}
	own.config = shape.Like(first.shape, first.config)
	return own, nil
}

// key is everything that the translation of a document depends on.
func (d *document) key() (key [sha256.Size]byte, err error) {
	hash := sha256.New()
	put := func(parts ...string) {
		for _, part := range parts {
			fmt.Fprintf(hash, "%d ", len(part))
			hash.Write([]byte(part))
		}
	}
	put(d.doc.Entry.Path, string(d.doc.Data), fmt.Sprint(d.Strict), d.Config.FilesDir)
	for _, ref := range d.refs {
		put(ref.Field, ref.Path, fmt.Sprint(ref.Entry.Mode), ref.Entry.ID)
		if d.Config.Expand == nil || ref.Kind == butane.Tree || !ref.Entry.Mode.IsFile() || !strings.HasSuffix(ref.Path, ".tmpl") {
			continue
		}
		size, err := d.Tree.Size(ref.Entry)
		if err != nil {
			return key, err
		}
		if size > mostTemplate {
			continue // refused for every host
		}
		data, err := d.read(ref.Entry.ID, ref.Entry.Path)
		if err != nil {
			return key, err
		}
		// What is wrong with a template is a part of the translation as well.
		if data, err = d.Config.Expand(ref.Entry.Path, data); err != nil {
			put(err.Error())
		}
		put(string(data))
	}
	hash.Sum(key[:0])
	return key, nil
}

func (d *document) references() []butane.Reference {
	refs := make([]butane.Reference, 0, len(d.refs))
	for _, ref := range d.refs {
		refs = append(refs, ref.Reference)
	}
	return refs
}

func (d *document) exporter(dir string) butane.Exporter {
	return butane.Exporter{Tree: d.Tree, FilesDir: d.Config.FilesDir, Dir: dir, Nonce: d.nonce, Limits: d.Config.Limits, Expand: d.Config.Expand}
}

// make gives Butane a directory with what the document refers to, and nothing
// else.
func (d *document) make(m *made) {
	var dir string
	if dir, m.err = d.dir(); m.err != nil {
		return
	}
	exporter := d.exporter(dir)
	var refused, said finding.List
	if refused, m.err = exporter.Export(d.references()); m.err != nil {
		return
	}
	m.config, said = butane.Translate(d.doc.Entry.Path, d.doc.Data, d.doc.Written, dir, d.Strict)
	m.findings = butane.Join(m.config.Excerpts(refused), said)
}
