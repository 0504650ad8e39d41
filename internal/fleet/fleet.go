// Package fleet knows how a fleet repo is laid out: fleet.toml, which config is
// a host's own, what that config refers to, and the digest over all of it.
//
// Its one rule: it is pure. It reads a source.Tree and nothing else, and what
// it cannot use it says with a place in the repo. Whether a reference can be
// used is said by butane.Exporter alone: here one that leads nowhere only
// counts as that.
package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// ConfigFile is where the fleet repo says what differs from the defaults.
const ConfigFile = "fleet.toml"

// Schema is the newest schema of fleet.toml that is understood.
const Schema = 1

const (
	maxConfig = 1 << 20
	maxLayer  = 4 << 20
	// layersToText is how much larger a layer may become than what it refers to.
	layersToText = maxLayer / butane.DefaultMaxText
)

func refuse(at finding.Position, hint, format string, args ...any) *finding.Failure {
	return &finding.Failure{Findings: finding.List{{
		Severity: finding.Error, Position: at, Message: fmt.Sprintf(format, args...), Hint: hint,
	}}}
}

// Repo is a fleet repo at one commit.
type Repo struct {
	Config Config

	tree  source.Tree
	toml  []byte            // fleet.toml as it was read
	order []string          // names of the groups as fleet.toml has them
	hosts map[string]string // names of the [host.N] by themselves in lower case
	memo  memo
}

// Open reads fleet.toml, which need not be there.
func Open(tree source.Tree) (*Repo, error) {
	r := &Repo{tree: tree, Config: Config{Schema: Schema, HostsDir: "hosts", FilesDir: "."}}
	e, err := tree.Entry(ConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", ConfigFile, err)
	}
	if r.toml, err = r.text(e, maxConfig); err != nil {
		return nil, err
	}
	if err := r.decode(); err != nil {
		return nil, err
	}
	for _, dir := range []struct{ key, value, byDefault string }{
		{"hosts_dir", r.Config.HostsDir, "hosts"},
		{"files_dir", r.Config.FilesDir, "."},
	} {
		if dir.value == dir.byDefault {
			continue
		}
		at := r.at(dir.key)
		if _, err := tree.Names(dir.value, "/"); err == nil { // which no name has
			continue
		}
		_, err := tree.Entry(dir.value)
		var link *source.SymlinkError
		switch {
		case errors.As(err, &link):
			return nil, refuse(at, "name the folder itself", "%s %v", dir.key, link)
		case errors.Is(err, fs.ErrNotExist):
			return nil, refuse(at, "name a folder that exists; git keeps none that is empty", "%s: there is no folder %s in the fleet repo", dir.key, dir.value)
		case err != nil:
			return nil, fmt.Errorf("looking for %s: %w", dir.value, err)
		default:
			return nil, refuse(at, "name a folder", "%s: %s is no folder", dir.key, dir.value)
		}
	}
	return r, nil
}

// GroupsOf are the names of the groups that have a host.
func (r *Repo) GroupsOf(host string) []string { return r.groups(host) }

// Recipients are the public keys of a host, for those who encrypt to it: the file
// NAME.pub beside its config. It is nothing of the host config.
func (r *Repo) Recipients(host string) (file string, keys []byte, err error) {
	for _, dir := range r.dirs() {
		e, err := r.tree.Entry(path.Join(dir, host+".pub"))
		var link *source.SymlinkError
		if errors.Is(err, fs.ErrNotExist) || errors.As(err, &link) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("looking for %s.pub: %w", host, err)
		}
		keys, err := r.utf8Text(e, maxConfig)
		return e.Path, keys, err
	}
	return "", nil, nil
}

// utf8Text reads a file that must be UTF-8.
func (r *Repo) utf8Text(e source.Entry, limit int64) ([]byte, error) {
	at := finding.Position{File: e.Path}
	switch {
	case e.Mode == source.Symlink:
		return nil, refuse(at, "keep the file itself in its place", "it is a symlink, and symlinks are not followed")
	case !e.Mode.IsFile():
		return nil, refuse(at, "", "it is no regular file (mode %06o)", uint32(e.Mode))
	}
	size, err := r.tree.Size(e)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", e.Path, err)
	}
	if size > limit {
		return nil, refuse(at, "", "it has %d bytes: at most %d (%d MiB) are allowed", size, limit, limit>>20)
	}
	f, err := r.tree.Open(e)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", e.Path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", e.Path, err)
	}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		at.Line, at.Column = 1, 1
		return nil, refuse(at, "save it as UTF-8 without a byte order mark", "it begins with a byte order mark")
	}
	if !utf8.Valid(data) {
		at.Line, at.Column = invalidAt(data)
		return nil, refuse(at, "save it as UTF-8", "it is not UTF-8")
	}
	return data, nil
}

// invalidAt is line and column of the first byte that is not UTF-8.
func invalidAt(data []byte) (line, column int) {
	line, column = 1, 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if r == utf8.RuneError && n == 1 {
			break
		}
		column += n
		if r == '\n' {
			line, column = line+1, 1
		}
		data = data[n:]
	}
	return line, column
}
