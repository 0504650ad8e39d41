package reconcile

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
)

// Shared remembers what Butane made of the layers of groups: for most hosts
// they expand to the same bytes. It is for one tree; several goroutines may use
// it.
type Shared struct {
	nonce string

	mu    sync.Mutex
	known map[[sha256.Size]byte]*made
}

// mostShared bounds what is remembered: a layer that is a template may be
// another one for every host.
const mostShared = 256

// mostTemplate is above what a template may have in bytes.
const mostTemplate = 4 << 20

// NewShared remembers nothing yet.
func NewShared() *Shared {
	return &Shared{nonce: rand.Text(), known: map[[sha256.Size]byte]*made{}}
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
	dir   string // the private directory of this run
	nonce string
}

func (d *document) translate(group bool) (*made, error) {
	if d.Shared == nil || !group {
		m := &made{}
		d.make(m)
		return m, m.err
	}
	key, err := d.key()
	if err != nil {
		return nil, err
	}
	m := d.Shared.get(key)
	m.once.Do(func() { d.make(m) })
	return m, m.err
}

func (s *Shared) get(key [sha256.Size]byte) *made {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.known[key]
	if !ok {
		if len(s.known) >= mostShared {
			clear(s.known)
		}
		m = &made{}
		s.known[key] = m
	}
	return m
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

// make gives Butane a directory with what the document refers to, and nothing
// else.
func (d *document) make(m *made) {
	var dir string
	if dir, m.err = os.MkdirTemp(d.dir, "document-*"); m.err != nil {
		return
	}
	var refs []butane.Reference
	for _, ref := range d.refs {
		refs = append(refs, ref.Reference)
	}
	exporter := butane.Exporter{Tree: d.Tree, FilesDir: d.Config.FilesDir, Dir: dir, Nonce: d.nonce, Expand: d.Config.Expand}
	var refused, said finding.List
	if refused, m.err = exporter.Export(refs); m.err != nil {
		return
	}
	m.config, said = butane.Translate(d.doc.Entry.Path, d.doc.Data, d.doc.Written, dir, d.Strict)
	m.findings = butane.Join(m.config.Excerpts(refused), said)
}
