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
	"strings"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// ConfigFile is where the fleet repo says what differs from the defaults.
const ConfigFile = "fleet.toml"

// Schema is the newest schema of fleet.toml that is understood.
const Schema = 1

const (
	maxConfig = 1 << 20
	maxLayer  = 4 << 20
)

// Config is fleet.toml, with the defaults for what it does not say.
type Config struct {
	Schema   int    `toml:"schema"`
	HostsDir string `toml:"hosts_dir"`
	FilesDir string `toml:"files_dir"` // what Butane's local paths are relative to
}

func refuse(at finding.Position, hint, format string, args ...any) *finding.Failure {
	return &finding.Failure{Findings: finding.List{{
		Severity: finding.Error, Position: at, Message: fmt.Sprintf(format, args...), Hint: hint,
	}}}
}

// Repo is a fleet repo at one commit.
type Repo struct {
	Config Config
	tree   source.Tree
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
	data, err := r.text(e, maxConfig)
	if err != nil {
		return nil, err
	}
	if r.Config, err = decode(data, r.Config); err != nil {
		return nil, err
	}
	for _, dir := range []struct{ key, value, byDefault string }{
		{"hosts_dir", r.Config.HostsDir, "hosts"},
		{"files_dir", r.Config.FilesDir, "."},
	} {
		if dir.value == dir.byDefault {
			continue
		}
		at := tomlfile.Find(ConfigFile, data, dir.key)
		folder, err := tree.Entry(dir.value)
		var link *source.SymlinkError
		switch {
		case errors.As(err, &link):
			return nil, refuse(at, "name the folder itself", "%s %v", dir.key, link)
		case errors.Is(err, fs.ErrNotExist):
			return nil, refuse(at, "", "%s: there is no folder %s in the fleet repo", dir.key, dir.value)
		case err != nil:
			return nil, fmt.Errorf("looking for %s: %w", dir.value, err)
		case folder.Mode != source.Directory:
			return nil, refuse(at, "", "%s: %s is no folder", dir.key, dir.value)
		}
	}
	return r, nil
}

// decode reads fleet.toml over the defaults.
func decode(data []byte, c Config) (Config, error) {
	// A newer schema is said first: what it adds would only look like typos.
	var only struct {
		Schema int `toml:"schema"`
	}
	if tomlfile.DecodeSome(data, &only) == nil && only.Schema > Schema {
		return c, refuse(tomlfile.Find(ConfigFile, data, "schema"), "update reconf-pull on this host",
			"schema %d is newer than this release knows (%d)", only.Schema, Schema)
	}
	if err := tomlfile.Decode(ConfigFile, data, &c); err != nil {
		var bad *finding.Failure
		if errors.As(err, &bad) {
			return c, &finding.Failure{Findings: bad.Findings}
		}
		return c, err
	}
	if c.Schema < 1 {
		return c, refuse(tomlfile.Find(ConfigFile, data, "schema"), "", "schema %d does not exist", c.Schema)
	}
	for _, dir := range []struct {
		key   string
		value *string
	}{{"hosts_dir", &c.HostsDir}, {"files_dir", &c.FilesDir}} {
		clean := path.Clean(*dir.value)
		if *dir.value == "" || !fs.ValidPath(clean) || strings.ContainsRune(clean, 0) {
			return c, refuse(tomlfile.Find(ConfigFile, data, dir.key), "paths are relative to the root of the fleet repo, and stay in it",
				"%s: %q cannot be used", dir.key, *dir.value)
		}
		*dir.value = clean
	}
	return c, nil
}

// text reads a file that must be UTF-8.
func (r *Repo) text(e source.Entry, limit int64) ([]byte, error) {
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
