package fleet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"path"
	"strings"
	"sync"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Changes are the paths in which two fleet repos differ, to tell which hosts
// need not be compared. Several goroutines may use it.
type Changes struct {
	old, new *Repo
	paths    []string
	hosts    map[string]bool // in lower case, whose own files are among them
	named    map[string]bool // how a reference would name one of paths, or a folder with one
	layers   map[string]bool // layers of groups with one of paths in them
	// everything: a reference could name one of paths in a way that is not searched for.
	everything bool

	mu   sync.Mutex
	docs map[string]bool // layers of groups that were searched
}

// Compare finds the changes from one repo to another. It reads folders whose ids
// differ and nothing else.
func Compare(old, new *Repo) (*Changes, error) {
	c := &Changes{old: old, new: new, hosts: map[string]bool{}, named: map[string]bool{}, layers: map[string]bool{}, docs: map[string]bool{}}
	if err := c.folder("."); err != nil {
		return nil, err
	}
	for _, p := range c.paths {
		for _, r := range []*Repo{old, new} {
			c.note(r, p)
		}
	}
	return c, nil
}

func (c *Changes) folder(dir string) error {
	old, err := c.old.list(dir)
	if err != nil {
		return err
	}
	new, err := c.new.list(dir)
	if err != nil {
		return err
	}
	for len(old) > 0 || len(new) > 0 {
		var was, is source.Entry
		switch {
		case len(new) == 0 || len(old) > 0 && old[0].Path < new[0].Path:
			was, old = old[0], old[1:]
		case len(old) == 0 || new[0].Path < old[0].Path:
			is, new = new[0], new[1:]
		default:
			was, old = old[0], old[1:]
			is, new = new[0], new[1:]
		}
		if was == is {
			continue
		}
		p := cmp.Or(is.Path, was.Path)
		if was.Mode|is.Mode != source.Directory {
			c.paths = append(c.paths, p)
		}
		if was.Mode == source.Directory || is.Mode == source.Directory {
			if err := c.folder(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// note marks what a changed path may belong to.
func (c *Changes) note(r *Repo, p string) {
	for _, dir := range r.dirs() {
		rest, ok := p, true
		if dir != "." {
			rest, ok = strings.CutPrefix(p, dir+"/")
		}
		if !ok {
			continue
		}
		first, _, folder := strings.Cut(rest, "/")
		if file, isDocument := stem(first); isDocument && !folder {
			first = file
		}
		c.hosts[strings.ToLower(first)] = true
	}
	for _, g := range r.Config.Groups {
		for _, layer := range g.Layers {
			if p == layer || strings.HasPrefix(p, layer+"/") {
				c.layers[layer] = true
			}
		}
	}
	rel := p
	if dir := r.Config.FilesDir; dir != "." {
		var ok bool
		if rel, ok = strings.CutPrefix(p, dir+"/"); !ok {
			return
		}
	}
	if strings.ContainsFunc(rel, func(r rune) bool { return r >= 0x80 || !plain[r] }) {
		c.everything = true
		return
	}
	for ; ; rel = path.Dir(rel) {
		c.named[rel] = true
		if rel == "." {
			return
		}
	}
}

// plain are the characters of which a word in a document may be a whole path.
// None of them ends a YAML scalar, and none is written in two ways.
var plain = func() (set [0x80]bool) {
	for r := range set {
		set[r] = r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._/+@~%=-", rune(r))
	}
	return set
}()

// Touches tells whether the digest of a host may differ between the two repos.
// When it says no, the host is the same.
func (c *Changes) Touches(host string) (bool, error) {
	if len(c.paths) == 0 {
		return false, nil
	}
	if c.everything || c.hosts[strings.ToLower(host)] {
		return true, nil
	}
	old, err := c.old.settings(host)
	if err != nil {
		return true, err
	}
	new, err := c.new.settings(host)
	if err != nil || !bytes.Equal(old, new) {
		return true, err
	}
	groups := c.new.groups(host)
	for _, group := range groups {
		for _, layer := range c.new.Config.Groups[group].Layers {
			if c.layers[layer] {
				return true, nil
			}
		}
	}
	if _, table := c.new.table(host); table.Retired != "" {
		return false, nil
	}
	found, err := c.new.candidates(host)
	if err != nil || len(found) != 1 {
		return true, err
	}
	places, _, err := c.new.places(groups)
	if err != nil {
		return true, err
	}
	for _, p := range append(places, place{candidate: found[0]}) {
		if may, err := c.layerNames(p); may || err != nil {
			return true, err
		}
	}
	return false, nil
}

// settings is everything that fleet.toml says of a host.
func (r *Repo) settings(host string) ([]byte, error) {
	known, table := r.table(host)
	groups := r.groups(host)
	var layers [][]string
	for _, name := range groups {
		layers = append(layers, r.Config.Groups[name].Layers)
	}
	vars, _ := r.vars(groups, known) // what is wrong with them is the same on both sides
	return json.Marshal([]any{r.Config.HostsDir, r.Config.FilesDir, groups, layers, vars, table, r.Config.Service})
}

// layerNames tells whether a layer may refer to something that changed.
func (c *Changes) layerNames(p place) (bool, error) {
	if p.group == "" {
		return c.searchLayer(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.docs[p.path]; ok {
		return known, nil
	}
	may, err := c.searchLayer(p)
	if err == nil {
		c.docs[p.path] = may
	}
	return may, err
}

func (c *Changes) searchLayer(p place) (bool, error) {
	var entries []source.Entry
	if p.folder {
		inside, err := c.new.list(p.path)
		if err != nil {
			return true, err
		}
		for _, e := range inside {
			if isDocument(e) {
				entries = append(entries, e)
			}
		}
	} else {
		e, err := c.new.tree.Entry(p.path)
		if err != nil {
			return true, err
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		if isTemplate(e.Path) {
			return true, nil // it may put a path together
		}
		data, err := c.new.text(e, maxLayer)
		if err != nil || c.mayName(data) {
			return true, nil // what is wrong with it is said by whoever reads the host
		}
	}
	return false, nil
}

// mayName tells whether a document may name something that changed. It looks
// for words and reads no YAML, which costs thirty times more; where YAML could
// spell a path in another way, the answer is yes.
func (c *Changes) mayName(data []byte) bool {
	for _, other := range []string{`\`, "!!b", "!<", "%TAG"} {
		if bytes.Contains(data, []byte(other)) {
			return true
		}
	}
	for start := 0; start < len(data); {
		end := start
		for end < len(data) && data[end] < 0x80 && plain[data[end]] {
			end++
		}
		key := end < len(data) && data[end] == ':' // or else storage.files would be the folder files
		if end > start && !key && c.names(string(data[start:end])) {
			return true
		}
		start = end + 1
	}
	return false
}

func (c *Changes) names(word string) bool {
	if c.named[word] {
		return true
	}
	odd := strings.HasPrefix(word, "./") || strings.HasSuffix(word, "/") || strings.Contains(word, "//") || strings.Contains(word, "/.")
	return odd && c.named[path.Clean(word)]
}
