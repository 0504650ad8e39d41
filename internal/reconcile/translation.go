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
	want, _, findings, err := t.run(ctx)
	return want, findings, err
}

// run is Run, with what shows the lines of the layers in later findings.
func (t Translation) run(ctx context.Context) (desired.State, excerpts, finding.List, error) {
	translated, err := t.Butane()
	if err != nil {
		return desired.State{}, nil, nil, err
	}
	fetch := fetcher{ctx: ctx, contents: t.Contents}
	cfg, list := butane.Merge(translated.Documents, fetch.read)
	if fetch.unavailable != nil {
		return desired.State{}, nil, nil, fetch.unavailable // nothing is wrong with the host config
	}
	findings := append(translated.Findings, list...)
	if err := findings.Err(); err != nil {
		return desired.State{}, nil, nil, err
	}
	want, list := desired.Translate(cfg.Ignition, cfg, butane.Blobs(translated.Nonce))
	findings = append(findings, cfg.Excerpts(list)...)
	return want, cfg.Excerpts, findings, findings.Err()
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
