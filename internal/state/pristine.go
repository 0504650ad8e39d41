package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

// Pristine copies hold what stood at a path before it was managed. They are
// keyed by path and never replaced. Those of secrets are encrypted.
type Pristine struct {
	Dir     string
	Secrets *secret.Keys
}

type pristineRecord struct {
	Path string    `json:"path"`
	Node disk.Node `json:"node"`
}

func (p Pristine) dir(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(p.Dir, hex.EncodeToString(sum[:16]))
}

// Node returns what stood at the path; ok is false when there is no copy.
func (p Pristine) Node(path string) (node disk.Node, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(p.dir(path), "node.json"))
	if errors.Is(err, os.ErrNotExist) {
		return disk.Node{}, false, nil
	}
	if err != nil {
		return disk.Node{}, false, fmt.Errorf("%w: pristine copy of %s: %w", ErrUnreadable, path, err)
	}
	var record pristineRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return disk.Node{}, false, fmt.Errorf("%w: pristine copy of %s: %w", ErrUnreadable, path, err)
	}
	return record.Node, true, nil
}

// content is where the bytes of a pristine file lie.
func content(dir string, node disk.Node) string {
	name := "content"
	if node.Secret {
		name += secret.Suffix
	}
	return filepath.Join(dir, name)
}

// Open reads the bytes of a pristine file.
func (p Pristine) Open(path string) (io.ReadCloser, error) {
	node, _, err := p.Node(path)
	if err != nil {
		return nil, err
	}
	if node.Secret {
		return p.Secrets.OpenStored(content(p.dir(path), node))
	}
	return os.Open(content(p.dir(path), node))
}

// Keep makes the pristine copy of path unless there is one. It is durable when
// Keep returns: what it copies is about to be replaced.
func (p Pristine) Keep(path string, node disk.Node, from io.Reader) (err error) {
	if _, ok, err := p.Node(path); ok || err != nil {
		return err
	}
	final := p.dir(path)
	temp := final + ".new"
	if err := os.RemoveAll(temp); err != nil { // a crash left half of one
		return err
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	if from != nil {
		if err := p.write(content(temp, node), from, node.Secret); err != nil {
			return errors.Join(fmt.Errorf("keeping the pristine copy of %s: %w", path, err), os.RemoveAll(temp))
		}
	}
	data, err := json.Marshal(pristineRecord{Path: path, Node: node})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(temp, "node.json"), data, 0o600); err != nil {
		return fmt.Errorf("keeping the pristine copy of %s: %w", path, err)
	}
	if err := os.Rename(temp, final); err != nil {
		return err
	}
	return atomicfile.SyncDir(p.Dir)
}

func (p Pristine) write(path string, r io.Reader, encrypted bool) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	managed, ok := r.(*fsat.File)
	switch {
	case encrypted:
		err = p.Secrets.Encrypt(f, r)
	case ok:
		err = managed.CopyTo(f, sha256.New()) // it may have holes
	default:
		_, err = io.Copy(f, r)
	}
	if err != nil {
		return err
	}
	return f.Sync()
}
