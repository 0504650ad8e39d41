package reconcile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Translation turns a host config into what it asks for.
type Translation struct {
	Tree     source.Tree
	Config   *fleet.HostConfig
	Strict   bool
	Scratch  string // where the private directory for Butane is made; "" is the system's
	Contents *contents.Opener
}

// Translated is a host config after Butane.
type Translated struct {
	// Documents are the layers' documents, each as Butane made it.
	Documents []butane.Config
	// Nonce marks the placeholders in it.
	Nonce string
	// Findings are warnings.
	Findings finding.List
}

// Run returns the desired state with its warnings; an error with findings is a
// *finding.Failure with all of them.
func (t Translation) Run(ctx context.Context) (desired.State, finding.List, error) {
	translated, err := t.Butane()
	if err != nil {
		return desired.State{}, nil, err
	}
	cfg, list := butane.Merge(translated.Documents, t.fetch(ctx))
	findings := append(translated.Findings, list...)
	if err := findings.Err(); err != nil {
		return desired.State{}, nil, err
	}
	want, list := desired.Translate(cfg.Ignition, cfg, butane.Blobs(translated.Nonce))
	findings = append(findings, cfg.Excerpts(list)...)
	return want, findings, findings.Err()
}

// fetch reads remote configs that a layer merges: only with a hash.
func (t Translation) fetch(ctx context.Context) butane.Fetch {
	return func(c desired.Content) ([]byte, error) {
		c.Gzip = false // as sent: the caller decompresses
		r, err := t.Contents.Open(ctx, c)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		return data, errors.Join(err, r.Close())
	}
}

// Butane runs every document through Butane. Contents of files are
// placeholders; only what Butane itself must read passes through it.
func (t Translation) Butane() (_ *Translated, err error) {
	if err := t.Config.Unsupported.Err(); err != nil {
		return nil, err
	}
	dir, err := t.scratch()
	if err != nil {
		return nil, fmt.Errorf("making a private directory for Butane: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	nonce := rand.Text()
	var refs []butane.Reference
	for _, ref := range t.Config.References {
		refs = append(refs, ref.Reference)
	}
	exporter := butane.Exporter{Tree: t.Tree, FilesDir: t.Config.FilesDir, Dir: dir, Nonce: nonce}
	refused, err := exporter.Export(refs)
	if err != nil {
		return nil, fmt.Errorf("exporting what the host config refers to: %w", err)
	}
	out := &Translated{Nonce: nonce}
	for _, layer := range t.Config.Layers {
		var files []butane.Config
		for _, doc := range layer.Documents {
			cfg, said := butane.Translate(doc.Entry.Path, doc.Data, dir, t.Strict)
			out.Findings = append(out.Findings, butane.Join(cfg.Excerpts(of(doc.Entry.Path, refused)), said)...)
			files = append(files, cfg)
		}
		out.Findings = append(out.Findings, butane.Duplicates(files)...)
		out.Documents = append(out.Documents, files...)
	}
	return out, out.Findings.Err()
}

// of are the findings of one file.
func of(file string, list finding.List) finding.List {
	var own finding.List
	for _, f := range list {
		if f.File == file {
			own = append(own, f)
		}
	}
	return own
}

func (t Translation) scratch() (string, error) {
	if t.Scratch != "" {
		if info, err := os.Stat(t.Scratch); err == nil && info.IsDir() {
			return os.MkdirTemp(t.Scratch, "export-")
		}
	}
	return os.MkdirTemp("", "reconf-pull-")
}
