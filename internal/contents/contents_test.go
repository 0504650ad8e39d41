package contents_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

func zip(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sha256Of(data string) string {
	s := sha256.Sum256([]byte(data))
	return "sha256-" + hex.EncodeToString(s[:])
}

func sha512Of(data string) string {
	s := sha512.Sum512([]byte(data))
	return "sha512-" + strings.ToUpper(hex.EncodeToString(s[:]))
}

func read(t *testing.T, o *contents.Opener, c desired.Content) (string, error) {
	t.Helper()
	r, err := o.Open(t.Context(), c)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r)
	return string(data), errors.Join(err, r.Close())
}

func TestInline(t *testing.T) {
	o := &contents.Opener{MaxFile: 100}
	for name, c := range map[string]struct {
		content desired.Content
		want    string
		err     any // nil, or what errors.As finds
	}{
		"plain":        {desired.Content{Inline: []byte("a\x00b")}, "a\x00b", nil},
		"empty":        {desired.Content{}, "", nil},
		"verified":     {desired.Content{Inline: []byte("a"), Verify: sha512Of("a")}, "a", nil},
		"mismatch":     {desired.Content{Inline: []byte("a"), Verify: sha256Of("b")}, "", new(*desired.MismatchError)},
		"gzip":         {desired.Content{Inline: zip(t, []byte("a")), Gzip: true, Verify: sha256Of("a")}, "a", nil},
		"gzip, wrong":  {desired.Content{Inline: zip(t, []byte("a")), Gzip: true, Verify: sha256Of("b")}, "", new(*desired.MismatchError)},
		"at the limit": {desired.Content{Inline: zip(t, bytes.Repeat([]byte("x"), 100)), Gzip: true}, strings.Repeat("x", 100), nil},
		"a bomb":       {desired.Content{Inline: zip(t, make([]byte, 50<<20)), Gzip: true}, "", new(*contents.LimitError)},
		"cut off":      {desired.Content{Inline: zip(t, []byte("a"))[:12], Gzip: true}, "", new(error)},
		"no gzip":      {desired.Content{Inline: []byte("a"), Gzip: true}, "", new(error)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, o, c.content)
			if c.err == nil && (err != nil || got != c.want) || c.err != nil && (err == nil || !errors.As(err, c.err)) {
				t.Errorf("%q, %v", got, err)
			}
			if len(got) > 64<<10 { // one read past the limit at most
				t.Errorf("%d bytes passed", len(got))
			}
		})
	}
}

// server answers over TLS and counts.
type server struct {
	*httptest.Server
	hits int
	seen http.Header
	do   func(w http.ResponseWriter, r *http.Request)
}

func newServer(t *testing.T, do func(w http.ResponseWriter, r *http.Request)) *server {
	s := &server{do: do}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits++
		s.seen = r.Header.Clone()
		s.do(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func text(data string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, data) }
}

func TestFetchedOnce(t *testing.T) {
	s := newServer(t, text("data"))
	o := &contents.Opener{Downloads: filepath.Join(t.TempDir(), "downloads"), MaxFile: 100, Client: s.Client()}
	c := desired.Content{URL: s.URL + "/a", Verify: sha256Of("data"), Headers: map[string]string{"Authorization": "Bearer x"}}
	for range 2 {
		if got, err := read(t, o, c); got != "data" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if s.hits != 1 || s.seen.Get("Authorization") != "Bearer x" {
		t.Errorf("%d requests, %v", s.hits, s.seen)
	}
	kept := left(t, o)
	if len(kept) != 1 || !strings.Contains(kept[0], strings.TrimPrefix(sha256Of("data"), "sha256-")) {
		t.Fatalf("kept: %v", kept)
	}
	// What a power cut damaged is fetched again.
	if err := os.WriteFile(filepath.Join(o.Downloads, kept[0]), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, o, c); got != "data" || err != nil || s.hits != 2 {
		t.Errorf("%q, %v, %d requests", got, err, s.hits)
	}
	// The same bytes, compressed, are another file.
	s.do = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zip(t, []byte("data"))) }
	c.Gzip = true
	for range 2 {
		if got, err := read(t, o, c); got != "data" || err != nil || s.hits != 3 {
			t.Errorf("%q, %v, %d requests", got, err, s.hits)
		}
	}
}

func left(t *testing.T, o *contents.Opener) []string {
	t.Helper()
	entries, err := os.ReadDir(o.Downloads)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// A wrong answer leaves nothing, and is asked for again.
func TestWrongAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(http.ResponseWriter, *http.Request)
		says string
	}{
		"other bytes": {text("other"), "do not match"},
		"too many":    {text(strings.Repeat("x", 101)), "larger than 100 bytes"},
		"endless":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, zeros{}) }, "larger than 100 bytes"},
		"not found":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "404"},
		"broken":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "502"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "50")
			_, _ = io.WriteString(w, "data")
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, c.do)
			o := &contents.Opener{Downloads: t.TempDir(), MaxFile: 100, Client: s.Client()}
			content := desired.Content{URL: s.URL + "/a?token=hunter2", Verify: sha256Of("data")}
			_, err := read(t, o, content)
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("err = %v", err)
			}
			if kept := left(t, o); len(kept) > 0 {
				t.Errorf("kept: %v", kept)
			}
			s.do = text("data")
			if got, err := read(t, o, content); got != "data" || err != nil {
				t.Errorf("afterwards: %q, %v", got, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Headers may be credentials: another host does not get them, nor the query
// that led there.
func TestRedirects(t *testing.T) {
	last := newServer(t, text("data"))
	var target string
	start := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/again" {
			text("data")(w, r)
			return
		}
		http.Redirect(w, r, target, http.StatusFound)
	})
	for _, c := range []struct {
		to   string
		at   *server
		kept bool
	}{{start.URL + "/again", start, true}, {last.URL + "/b", last, false}} {
		target = c.to
		o := &contents.Opener{Downloads: t.TempDir(), MaxFile: 100, Client: start.Client()}
		got, err := read(t, o, desired.Content{URL: start.URL + "/a?token=x", Verify: sha256Of("data"), Headers: map[string]string{"x-token": "secret"}})
		if got != "data" || err != nil {
			t.Errorf("%s: %q, %v", c.to, got, err)
		}
		if has := c.at.seen.Get("X-Token") != ""; has != c.kept {
			t.Errorf("%s: headers %v", c.to, c.at.seen)
		}
		if c.at == last && strings.Contains(c.at.seen.Get("Referer"), "token") {
			t.Errorf("%s: the query went along: %v", c.to, c.at.seen)
		}
	}
	target = start.URL + "/a"
	o := &contents.Opener{Downloads: t.TempDir(), MaxFile: 100, Client: start.Client()}
	if _, err := read(t, o, desired.Content{URL: start.URL + "/a", Verify: sha256Of("data")}); err == nil || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("a ring: %v", err)
	}
}

// Equal keys are equal bytes, and only they.
func TestKey(t *testing.T) {
	all := map[string]desired.Content{}
	for _, c := range []desired.Content{
		{Inline: []byte("a")}, {Inline: []byte("b")}, {Inline: []byte("a"), Gzip: true}, {Blob: "a"}, {Blob: "a", Gzip: true}, {Blob: "a", Verify: "sha256-1"}, {URL: "u", Verify: "sha256-1"},
	} {
		key := contents.Key(c)
		if other, ok := all[key]; ok {
			t.Errorf("%+v and %+v have the key %s", c, other, key)
		}
		all[key] = c
	}
	if contents.Key(desired.Content{URL: "u", Verify: "sha256-1"}) != contents.Key(desired.Content{URL: "v", Verify: "sha256-1"}) {
		t.Error("the same bytes from another place have another key")
	}
}

// sealed stands for encryption: what is stored is in capital letters.
type sealed struct{}

func (sealed) Open(r io.Reader) (io.Reader, error) {
	data, err := io.ReadAll(r)
	return strings.NewReader(strings.ToLower(string(data))), err
}

// A secret is decrypted, then decompressed and bounded; where nobody can decrypt it is
// refused, or stands for itself.
func TestSecret(t *testing.T) {
	stored := desired.Content{Inline: []byte("HUNTER2"), Path: "db.age", Secret: true}
	o := &contents.Opener{MaxFile: 7, Secrets: sealed{}}
	if got, err := read(t, o, stored); got != "hunter2" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	var limit *contents.LimitError
	if _, err := read(t, &contents.Opener{MaxFile: 6, Secrets: sealed{}}, stored); !errors.As(err, &limit) {
		t.Errorf("more than there may be: %v", err)
	}
	if _, err := read(t, &contents.Opener{MaxFile: 7}, stored); !errors.Is(err, contents.ErrElsewhere) || !strings.HasPrefix(err.Error(), "db.age: ") {
		t.Errorf("nobody decrypts: %v", err)
	}
	stored.Gzip = true
	if got, err := read(t, &contents.Opener{MaxFile: 7, Opaque: true}, stored); got != "HUNTER2" || err != nil {
		t.Errorf("for an author: %q, %v", got, err)
	}
	open := stored
	open.Secret = false
	if a, b := contents.Key(stored), contents.Key(open); a == b || !strings.Contains(a, state.SecretSource) || strings.Contains(b, state.SecretSource) {
		t.Errorf("%s, %s", a, b)
	}
}
