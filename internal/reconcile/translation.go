package reconcile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Translation turns a host config into what it asks for.
type Translation struct {
	Tree     source.Tree
	Config   *fleet.HostConfig
	Strict   bool
	Scratch  string // where the private directory for Butane is made; "" is the system's
	Contents *contents.Opener
	// Overlaps: what two groups set differently is a warning.
	Overlaps bool
	// Recipients are the public keys of the host, if they are known where an author
	// asks: an encrypted file that certainly is for none of them is an error.
	Recipients []secret.Recipient
	// Shared, when set, remembers layers of groups for the hosts that come next.
	Shared *Shared
}

// Translated is a host config after Butane.
type Translated struct {
	// Documents are the layers' documents, each as Butane made it.
	Documents []butane.Config
	// Nonce marks the placeholders in it.
	Nonce string
	// Findings are warnings.
	Findings finding.List

	shared []*made // the first of Documents that Shared knows
}

// Run returns the desired state with its warnings; an error with findings is a
// *finding.Failure with all of them.
func (t Translation) Run(ctx context.Context) (desired.State, finding.List, error) {
	want, _, findings, err := t.run(ctx)
	if err == nil {
		_, err = t.Scripts()
	}
	return want, findings, err
}

// run is Run, with what shows the lines of the layers in later findings.
func (t Translation) run(ctx context.Context) (desired.State, excerpts, finding.List, error) {
	translated, cfg, findings, err := t.merge(ctx)
	if err != nil {
		return desired.State{}, nil, nil, err
	}
	want, list := desired.Translate(cfg.Ignition, cfg, butane.Blobs(translated.Nonce))
	findings = append(findings, cfg.Excerpts(list)...)
	return want, cfg.Excerpts, findings, findings.Err()
}

// merge is what Butane makes of all layers.
func (t Translation) merge(ctx context.Context) (*Translated, butane.Config, finding.List, error) {
	translated, err := t.Butane()
	if err != nil {
		return nil, butane.Config{}, nil, err
	}
	fetch := fetcher{ctx: ctx, contents: t.Contents}
	merged, count := butane.Begin(), 0
	if t.Shared != nil {
		merged, count = t.Shared.merge(translated.shared)
	}
	cfg, list := merged.With(translated.Documents[count:], fetch.read).Check()
	if fetch.unavailable != nil {
		return nil, butane.Config{}, nil, fetch.unavailable // nothing is wrong with the host config
	}
	findings := append(translated.Findings, list...)
	return translated, cfg, findings, findings.Err()
}

// Explain tells which layers say something of a path or a unit, and what of it
// counts.
func (t Translation) Explain(ctx context.Context, subject string) ([]butane.Origin, error) {
	_, cfg, _, err := t.merge(ctx)
	return cfg.Explain(subject), err
}

// excerpts adds the line that each finding names.
type excerpts func(finding.List) finding.List

// fetcher reads remote configs that a layer merges: only with a hash.
type fetcher struct {
	ctx         context.Context
	contents    *contents.Opener
	unavailable error
}

func (f *fetcher) read(c desired.Content) ([]byte, error) {
	c.Gzip = false // as sent: the caller decompresses
	r, err := f.contents.Open(f.ctx, c)
	if errors.Is(err, source.ErrUnavailable) {
		f.unavailable = err
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// Butane runs every document through Butane. Contents of files are
// placeholders; only what Butane itself must read passes through it.
func (t Translation) Butane() (_ *Translated, err error) {
	if err := t.Config.Unsupported.Err(); err != nil {
		return nil, err
	}
	var scratch *os.File // nil: not needed yet
	dir := func() (_ string, err error) {
		if scratch == nil {
			if scratch, err = t.scratch(); err != nil {
				return "", fmt.Errorf("making a private directory for Butane: %w", err)
			}
		}
		return os.MkdirTemp(scratch.Name(), "document-*")
	}
	defer func() {
		if scratch != nil {
			err = errors.Join(err, os.RemoveAll(scratch.Name()), scratch.Close())
		}
	}()
	out := &Translated{Nonce: rand.Text(), Findings: slices.Clone(t.Config.Warnings)}
	if t.Shared != nil {
		out.Nonce = t.Shared.nonce
	}
	refs := map[string][]fleet.Reference{}
	for _, ref := range t.Config.References {
		refs[ref.Position.File] = append(refs[ref.Position.File], ref)
	}
	var groups []butane.Group
	for _, layer := range t.Config.Layers {
		var files []butane.Config
		for _, doc := range layer.Documents {
			d := document{Translation: t, doc: doc, refs: refs[doc.Entry.Path], dir: dir, nonce: out.Nonce}
			made, err := d.translate(layer.Group != "")
			if err != nil {
				return nil, fmt.Errorf("exporting what %s refers to: %w", doc.Entry.Path, err)
			}
			out.Findings = append(out.Findings, made.findings...)
			files = append(files, made.config)
			if layer.Group != "" && len(out.shared) == len(out.Documents)+len(files)-1 {
				out.shared = append(out.shared, made)
			}
		}
		out.Findings = append(out.Findings, butane.Duplicates(files)...)
		out.Documents = append(out.Documents, files...)
		if layer.Group != "" {
			groups = append(groups, butane.Group{Name: layer.Group, Files: files})
		}
	}
	list, err := t.secrets()
	if err != nil {
		return nil, err
	}
	for _, doc := range out.Documents {
		list = doc.Excerpts(list)
	}
	out.Findings = append(out.Findings, list...)
	if t.Overlaps {
		out.Findings = append(out.Findings, butane.Overlaps(groups)...)
	}
	return out, out.Findings.Err()
}

// scratch makes the private directory. It is locked while it is used: one that
// is not was left by a run that was killed, and is taken away.
func (t Translation) scratch() (*os.File, error) {
	const pattern = "export-*"
	parent := t.Scratch
	if info, err := os.Stat(parent); parent == "" || err != nil || !info.IsDir() {
		parent = os.TempDir()
	} else {
		left, err := filepath.Glob(filepath.Join(parent, pattern))
		if err != nil {
			return nil, err
		}
		for _, dir := range left {
			if err := removeUnlocked(dir); err != nil {
				return nil, err
			}
		}
	}
	for {
		dir, err := os.MkdirTemp(parent, pattern)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // taken away by another run before it was locked
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(dir))
		}
		if _, err := os.Stat(dir); err == nil {
			return f, nil
		}
		f.Close()
	}
}

func removeUnlocked(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // somebody is at it
	}
	return os.RemoveAll(dir)
}
