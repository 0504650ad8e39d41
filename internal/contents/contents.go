// Package contents turns the contents that a host config names into bytes.
//
// Its one rule: bytes are streamed and bounded, and a reader that ends without
// an error has passed every check that the host config asks for.
package contents

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// Opener opens contents.
type Opener struct {
	Tree      source.Tree
	Downloads string // directory of what was fetched over http(s), by its hash
	MaxFile   int64  // bytes, of what is decrypted, decompressed or fetched
	Client    *http.Client
	// Secrets decrypts; nil where nobody can.
	Secrets Decrypter
	// Opaque: encrypted files stand for what is in them, where an author asks about a
	// host.
	Opaque bool
	// Small keeps small files between the plan, which hashes them, and the pin, which
	// stores them: to ask for one costs more than to write it. nil: nothing is kept.
	Small *Small
}

// Decrypter decrypts what was encrypted to this host.
type Decrypter interface {
	Open(r io.Reader) (io.Reader, error)
}

// ErrElsewhere says that this is not the host that can decrypt.
var ErrElsewhere = errors.New("it is encrypted, and only its host decrypts it")

// LimitError says that contents are larger than translate.max_file.
type LimitError struct{ Max int64 }

func (e *LimitError) Error() string {
	return fmt.Sprintf("contents are larger than %d bytes once decrypted, decompressed or fetched (translate.max_file)", e.Max)
}

// Key names the wanted bytes by where they come from: equal keys are equal
// bytes, so what is known about one key is not read again.
func Key(c desired.Content) string {
	var key string
	switch {
	case c.Blob != "":
		key = "git:" + c.Blob
	case c.URL != "":
		return "verified:" + c.Verify
	default:
		sum := sha256.Sum256(c.Inline)
		key = "sha256:" + hex.EncodeToString(sum[:])
	}
	if c.Secret {
		key = state.SecretSource + key
	}
	if c.Gzip {
		key = "gunzip+" + key
	}
	if c.Verify != "" {
		key += "=" + c.Verify
	}
	return key
}

// Open reads the wanted bytes. The caller closes what it gets.
func (o *Opener) Open(ctx context.Context, c desired.Content) (io.ReadCloser, error) {
	raw, bounded, err := o.raw(ctx, c)
	if err != nil {
		return nil, err
	}
	r := &reader{Reader: raw, closers: []io.Closer{raw}}
	switch {
	case c.Secret && o.Opaque:
		c.Gzip = false
	case c.Secret:
		plain, err := o.decrypt(raw)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", c.Path, err), raw.Close())
		}
		r.Reader, bounded = plain, true
	}
	if c.Gzip {
		unzipped, err := gzip.NewReader(r.Reader)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("decompressing: %w", err), raw.Close())
		}
		r.Reader, bounded = unzipped, true
	}
	if bounded {
		r.Reader = &limited{r: r.Reader, left: o.MaxFile, max: o.MaxFile}
	}
	if c.Verify != "" {
		verified, err := verify(r.Reader, c.Verify)
		if err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		r.Reader = verified
	}
	return r, nil
}

func (o *Opener) decrypt(raw io.Reader) (io.Reader, error) {
	if o.Secrets == nil {
		return nil, ErrElsewhere
	}
	return o.Secrets.Open(raw)
}

// Sum reads the wanted bytes through and returns their SHA-256 in hex and
// their number.
func (o *Opener) Sum(ctx context.Context, c desired.Content) (string, int64, error) {
	r, err := o.Open(ctx, c)
	if err != nil {
		return "", 0, err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), n, nil
}

// raw is what is stored, and whether its size still has to be bounded: git
// objects and inline data were bounded when the repo was read.
func (o *Opener) raw(ctx context.Context, c desired.Content) (io.ReadCloser, bool, error) {
	switch {
	case c.Blob != "":
		if data, ok := o.Small.get(c.Blob); ok {
			return io.NopCloser(bytes.NewReader(data)), false, nil
		}
		r, err := o.Tree.Open(source.Entry{Path: c.Path, Mode: source.Regular, ID: c.Blob})
		if err != nil || o.Small == nil {
			return r, false, err
		}
		return &keeping{ReadCloser: r, blob: c.Blob, in: o.Small}, false, nil
	case c.URL != "":
		r, err := o.download(ctx, c)
		return r, true, err
	default:
		return io.NopCloser(bytes.NewReader(c.Inline)), false, nil
	}
}

// download fetches once and keeps the file by the hash that it must have. The
// hash is of the decompressed bytes, so it is checked by whoever reads.
func (o *Opener) download(ctx context.Context, c desired.Content) (_ io.ReadCloser, err error) {
	kept := filepath.Join(o.Downloads, strings.ReplaceAll(c.Verify, "/", "_"))
	if c.Gzip {
		kept += ".gz" // the hash is of what is in it
	}
	if f, err := os.Open(kept); err == nil {
		if err := o.check(c, f); err == nil {
			_, err = f.Seek(0, io.SeekStart)
			return f, err
		}
		// Nothing here is ever synced: a power cut may have left a part of it.
		f.Close()
	}
	if err := os.MkdirAll(o.Downloads, 0o700); err != nil {
		return nil, err
	}
	temp, err := os.CreateTemp(o.Downloads, ".fetch-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, temp.Close(), os.Remove(temp.Name()))
		}
	}()
	if err := o.fetch(ctx, c, temp); err != nil {
		return nil, err
	}
	if err := o.check(c, temp); err != nil {
		return nil, err
	}
	if _, err := temp.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return temp, os.Rename(temp.Name(), kept)
}

// check keeps a wrong answer out of the kept files.
func (o *Opener) check(c desired.Content, f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var r io.Reader = f
	if c.Gzip {
		unzipped, err := gzip.NewReader(f)
		if err != nil {
			return fmt.Errorf("decompressing: %w", err)
		}
		r = &limited{r: unzipped, left: o.MaxFile, max: o.MaxFile}
	}
	verified, err := verify(r, c.Verify)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, verified)
	return err
}

func (o *Opener) fetch(ctx context.Context, c desired.Content, into io.Writer) error {
	client := *o.Client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) > 10 {
			return errors.New("more than 10 redirects")
		}
		if next.URL.Host != via[0].URL.Host {
			for name := range c.Headers {
				next.Header.Del(name) // a header may be a credential of the first host
			}
			next.Header.Del("Referer") // so may the query of its URL
		}
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return fmt.Errorf("fetching contents: %w", err)
	}
	for name, value := range c.Headers {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return unavailable(c.URL, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode >= http.StatusInternalServerError:
		return unavailable(c.URL, fmt.Errorf("the server says %s", resp.Status))
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("fetching %s: the server says %s", withoutQuery(c.URL), resp.Status)
	}
	body := &remote{r: resp.Body}
	_, err = io.Copy(into, &limited{r: body, left: o.MaxFile, max: o.MaxFile})
	switch {
	case body.err != nil:
		return unavailable(c.URL, body.err)
	case err != nil:
		return fmt.Errorf("fetching %s: %w", withoutQuery(c.URL), err)
	}
	return nil
}

// unavailable is a server that failed, and not the host config.
func unavailable(from string, err error) error {
	var whole *url.Error
	if errors.As(err, &whole) { // it repeats the URL, with its query
		err = whole.Err
	}
	return &source.Error{
		Err:  fmt.Errorf("%w: fetching %s: %w", source.ErrUnavailable, withoutQuery(from), err),
		Hint: "it is tried again at the next run; nothing was changed",
	}
}

// remote tells a failing server from a failing disk.
type remote struct {
	r   io.Reader
	err error
}

func (r *remote) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// withoutQuery keeps what may be a token out of messages.
func withoutQuery(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the URL"
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

// verify checks what passes against Ignition's verification.hash
// (sha256-HEX or sha512-HEX) when the end is met.
func verify(r io.Reader, want string) (io.Reader, error) {
	name, digest, _ := strings.Cut(want, "-")
	var sum hash.Hash
	switch name {
	case "sha256":
		sum = sha256.New()
	case "sha512":
		sum = sha512.New()
	default:
		return nil, fmt.Errorf("verification.hash %q is neither sha256-… nor sha512-…", want)
	}
	return &verifier{r: r, name: name, want: strings.ToLower(digest), sum: sum}, nil
}

type verifier struct {
	r          io.Reader
	name, want string
	sum        hash.Hash
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want {
			return n, &desired.MismatchError{Want: v.name + "-" + v.want, Got: v.name + "-" + got}
		}
	}
	return n, err
}

type limited struct {
	r         io.Reader
	left, max int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return n, &LimitError{Max: l.max}
	}
	return n, err
}

type reader struct {
	io.Reader
	closers []io.Closer
}

func (r *reader) Close() error {
	var errs []error
	for _, c := range r.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
