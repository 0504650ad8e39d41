// Package httpclient speaks HTTP with lock servers.
//
// Its one rule: a request that got no answer may have been carried out, and its error
// says so.
package httpclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/version"
)

// Options are how a server is reached.
type Options struct {
	// CA, Cert and Key are PEM files, read again when they have changed. Without CA the
	// system's are trusted; without Cert and Key no certificate is shown.
	CA, Cert, Key string
	// Foreign: Cert and Key belong to another program, which says who may read them.
	// Else Key must be its owner's alone, and nobody but root may write to any of the
	// three.
	Foreign bool
	// Timeout is for one request.
	Timeout time.Duration
	// Pause is before the second try; each further one waits twice as long, more or less.
	Pause time.Duration
}

const (
	tries = 3
	// maxBody is far more than any lock server says.
	maxBody = 1 << 20
	// maxRedirects within one host.
	maxRedirects = 5
	idle         = 30 * time.Second
)

// Client asks lock servers. It may be used by several goroutines.
type Client struct {
	options Options

	mu    sync.Mutex
	files [sha256.Size]byte // what the transport was made of
	http  *http.Client
}

// New makes a Client. Files are read by the first request.
func New(o Options) *Client { return &Client{options: o} }

// Answer is what a server said.
type Answer struct {
	Status   int
	Location string // of a redirect that was not followed
	Body     []byte
}

// UnansweredError is a request without a whole answer.
type UnansweredError struct {
	Err error
	// Late: there was time for an answer, and none came.
	Late bool
}

func (e *UnansweredError) Error() string { return e.Err.Error() }
func (e *UnansweredError) Unwrap() error { return e.Err }

// Send is one request.
func (c *Client) Send(ctx context.Context, method, address string, header http.Header, body []byte) (*Answer, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	req.Header.Set("User-Agent", "reconf-pull/"+version.String())
	resp, err := client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = fmt.Errorf("%s: %w", req.URL.Host, wrapped.Err) // without the method and the path
		}
		return nil, c.unanswered(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, c.unanswered(ctx, fmt.Errorf("reading the answer of %s: %w", req.URL.Host, err))
	}
	if len(data) > maxBody {
		return nil, fmt.Errorf("%s %s: the answer (%s) has more than %d bytes, which no lock server says", method, address, resp.Status, maxBody)
	}
	answer := &Answer{Status: resp.StatusCode, Body: data}
	if answer.Status/100 == 3 {
		answer.Location = resp.Header.Get("Location")
	}
	return answer, nil
}

// unanswered tells what may be better at the next try from what will not.
func (c *Client) unanswered(ctx context.Context, err error) error {
	var (
		untrusted *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		network   *net.OpError
	)
	// crypto/tls says so of an alert: the server does not want this certificate, or none.
	refused := errors.As(err, &network) && network.Op == "remote error"
	if refused || errors.As(err, &untrusted) || errors.As(err, &record) {
		return err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &UnansweredError{Err: fmt.Errorf("%w (lock.timeout is %s)", err, c.options.Timeout), Late: true}
	}
	var timeout net.Error
	return &UnansweredError{Err: err, Late: errors.As(err, &timeout) && timeout.Timeout()}
}

// Do is Send, again after network errors and after answers for which again says so. A
// server that had its time and said nothing is not asked again: the next run does that.
func (c *Client) Do(ctx context.Context, method, address string, header http.Header, body []byte, again func(*Answer) bool) (answer *Answer, err error) {
	err = c.Retry(ctx, func(ctx context.Context) (bool, error) {
		answer, err = c.Send(ctx, method, address, header, body)
		var unanswered *UnansweredError
		if errors.As(err, &unanswered) {
			return !unanswered.Late, err
		}
		return err == nil && again(answer), err
	})
	return answer, err
}

// Retry calls try until it does not want to be called again, three times at most and
// within three times Timeout, with pauses that differ from host to host.
func (c *Client) Retry(ctx context.Context, try func(ctx context.Context) (again bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, tries*c.options.Timeout)
	defer cancel()
	pause := c.options.Pause
	for n := 1; ; n++ {
		again, err := try(ctx)
		if !again || n == tries {
			return err
		}
		wait := time.NewTimer(pause/2 + rand.N(pause+1))
		select {
		case <-ctx.Done():
			wait.Stop()
			return err
		case <-wait.C:
		}
		pause *= 2
	}
}

// client is made anew when a file has changed: a change of the host may have replaced
// what this very host has to show when it gives the lock back.
func (c *Client) client() (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := sha256.New()
	var pem [3][]byte
	for i, file := range []struct {
		key, path string
		read      func(string, int64) ([]byte, error)
	}{{"lock.ca", c.options.CA, host.ReadTrusted}, {"lock.cert", c.options.Cert, host.ReadTrusted}, {"lock.key", c.options.Key, host.ReadSecret}} {
		if file.path == "" {
			continue
		}
		if c.options.Foreign {
			file.read = func(path string, _ int64) ([]byte, error) { return os.ReadFile(path) }
		}
		var err error
		if pem[i], err = file.read(file.path, maxBody); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file.key, err)
		}
		fmt.Fprintf(all, "%d %d\n", i, len(pem[i]))
		all.Write(pem[i])
	}
	files := [sha256.Size]byte(all.Sum(nil))
	if c.http != nil && files == c.files {
		return c.http, nil
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.options.CA != "" {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem[0]) {
			return nil, fmt.Errorf("lock.ca: %s has no certificate in PEM", c.options.CA)
		}
	}
	if c.options.Cert != "" {
		pair, err := tls.X509KeyPair(pem[1], pem[2])
		if err != nil {
			return nil, fmt.Errorf("lock.cert %s with lock.key %s: %w", c.options.Cert, c.options.Key, err)
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.files = files
	c.http = &http.Client{
		CheckRedirect: sameHost,
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: settings, IdleConnTimeout: idle, MaxResponseHeaderBytes: maxBody},
	}
	return c.http, nil
}

// sameHost follows a redirect only within one server, and only where the method stays:
// a PUT that becomes a GET would take the look at a free lock for its grant.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0]
	if len(via) > maxRedirects || req.URL.Scheme != first.URL.Scheme || req.URL.Host != first.URL.Host || req.Method != first.Method {
		return http.ErrUseLastResponse
	}
	return nil
}

// ServerError tells whether an answer is one of those after which Do may ask again: the
// server's failures, and its having given up on the request (etcd's gateway says so of
// what a member that is stopped has not finished).
func ServerError(a *Answer) bool {
	return a.Status >= http.StatusInternalServerError || a.Status == http.StatusRequestTimeout
}

// OK tells whether the answer is a 2xx.
func (a *Answer) OK() bool { return a.Status >= 200 && a.Status < 300 }

// JSON decodes the body; an error has the body's first line.
func (a *Answer) JSON(into any) error {
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("the answer (status %d) is not the JSON of a lock server: %s", a.Status, a.FirstLine())
	}
	return nil
}

// FirstLine is what a person needs of an answer that is not understood.
func (a *Answer) FirstLine() string {
	const enough = 120
	line, _, _ := strings.Cut(strings.TrimSpace(string(a.Body)), "\n")
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, line)
	if a.Location != "" {
		return fmt.Sprintf("a redirect to %q, which is not followed", a.Location)
	}
	if line == "" {
		return "an empty body"
	}
	if short := []rune(line); len(short) > enough {
		line = string(short[:enough]) + "…"
	}
	return fmt.Sprintf("%q", line)
}
