package fleet

import (
	"crypto/sha256"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// memo remembers what many hosts ask for, so that reading all hosts of a repo
// costs what differs between them. Several goroutines may use it.
type memo struct {
	mu         sync.Mutex
	texts      map[string]text // documents of groups, by path
	references map[expanded][]butane.Reference
	entries    map[string]source.Entry // what references lead to, by path in the repo
	candidates map[string][]candidate  // by name in lower case; nil: nobody asked for all hosts
}

type text struct {
	data []byte
	err  error
}

// expanded is a document as Butane gets it: a template's differs between hosts.
type expanded struct {
	path string
	sum  [sha256.Size]byte
}

// mostExpanded bounds the documents whose references are remembered.
const mostExpanded = 256

// inGroup tells whether a path is a layer of a group, or lies in one.
func (r *Repo) inGroup(p string) bool {
	for _, g := range r.Config.Groups {
		for _, layer := range g.Layers {
			if layer == p || strings.HasPrefix(p, layer+"/") {
				return true
			}
		}
	}
	return false
}

// text reads a file that must be UTF-8, those of groups once.
func (r *Repo) text(e source.Entry, limit int64) ([]byte, error) {
	if !r.inGroup(e.Path) {
		return r.utf8Text(e, limit)
	}
	r.memo.mu.Lock()
	defer r.memo.mu.Unlock()
	known, ok := r.memo.texts[e.Path]
	if !ok {
		known.data, known.err = r.utf8Text(e, limit)
		if r.memo.texts == nil {
			r.memo.texts = map[string]text{}
		}
		r.memo.texts[e.Path] = known
	}
	return known.data, known.err
}

// referencesOf are those of one document; the caller does not change them.
func (r *Repo) referencesOf(d Document) ([]butane.Reference, error) {
	if !r.inGroup(d.Entry.Path) {
		return butane.References(d.Entry.Path, d.Data, d.Written)
	}
	key := expanded{d.Entry.Path, sha256.Sum256(d.Data)}
	r.memo.mu.Lock()
	refs, ok := r.memo.references[key]
	r.memo.mu.Unlock()
	if ok {
		return refs, nil
	}
	refs, err := butane.References(d.Entry.Path, d.Data, d.Written)
	if err != nil {
		return nil, err
	}
	r.memo.mu.Lock()
	defer r.memo.mu.Unlock()
	if len(r.memo.references) >= mostExpanded || r.memo.references == nil {
		r.memo.references = map[expanded][]butane.Reference{}
	}
	r.memo.references[key] = refs
	return refs, nil
}

// resolve looks up what a reference names: nothing where nothing stands that
// could be used.
func (r *Repo) resolve(ref butane.Reference) (source.Entry, error) {
	p, ok := r.target(ref)
	if !ok {
		return source.Entry{}, nil
	}
	r.memo.mu.Lock()
	e, ok := r.memo.entries[p]
	r.memo.mu.Unlock()
	if ok {
		return e, nil
	}
	e, err := r.lookUp(p)
	if err != nil || !r.inGroup(ref.Position.File) {
		return e, err // of one host only, mostly
	}
	r.memo.mu.Lock()
	defer r.memo.mu.Unlock()
	if r.memo.entries == nil {
		r.memo.entries = map[string]source.Entry{}
	}
	r.memo.entries[p] = e
	return e, nil
}
