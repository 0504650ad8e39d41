package gogit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// tokenUser goes with a token where source.username is not set: GitHub, GitLab,
// Gitea and Forgejo take any name, and GitLab's documents use this one.
const tokenUser = "oauth2"

const (
	uploadPack  = "git-upload-pack"
	infoRefs    = "/info/refs"
	maxHops     = 5
	maxHeader   = 256 << 10
	firstOfBody = 512 // bytes of an error page
)

// httpLink is a link over http(s), where each request stands for itself.
type httpLink struct {
	client    *http.Client
	base      *url.URL // of the repository, after redirects
	authorize func(*http.Request)
	secret    bool // something that no other server may see goes along
	bounded   func(io.Reader) io.Reader
	body      io.Closer // of the last answer
}

// redirectError is a redirect that is not followed.
type redirectError struct {
	to     string
	reason string
}

func (e *redirectError) Error() string { return "it redirects to " + e.to + ", " + e.reason }

// statusError is an answer other than 200.
type statusError struct {
	code   int
	reason string // the first line of the page
}

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the server answered %d %s: %s", e.code, http.StatusText(e.code), e.reason))
}

// proxyError is a proxy that does not let through.
type proxyError struct{ code int }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy refuses: %d %s", e.code, http.StatusText(e.code))
}

func (s *Source) dialHTTP() (link, error) {
	// Not the endpoint, which has lost what is escaped.
	base, err := url.Parse(s.URL)
	if err != nil {
		return nil, errors.New("source.url is no URL")
	}
	settings, err := s.tls()
	if err != nil {
		return nil, err
	}
	l := &httpLink{base: base, bounded: s.bounded, authorize: func(*http.Request) {}}
	if err := s.credentials(l); err != nil {
		return nil, err
	}
	l.secret = l.secret || len(settings.Certificates) > 0
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig, t.MaxResponseHeaderBytes = settings, maxHeader
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return &proxyError{r.StatusCode}
		}
		return nil
	}
	l.client = &http.Client{Transport: t, CheckRedirect: l.redirect}
	return l, nil
}

func (s *Source) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := s.trusted("source.ca_file", s.CAFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, localFailure("reading source.ca_file", fmt.Errorf("%s holds no certificate in PEM form", s.CAFile))
		}
	}
	if s.ClientCert == "" {
		return c, nil
	}
	cert, err := s.trusted("source.client_cert", s.ClientCert)
	if err != nil {
		return nil, err
	}
	key, err := s.private("source.client_key", s.ClientKey)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, localFailure("reading source.client_cert", fmt.Errorf("%s with the key %s: %w", s.ClientCert, s.ClientKey, err))
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// credentials reads the password or the token.
func (s *Source) credentials(l *httpLink) error {
	key, file, user := "source.password_file", s.PasswordFile, s.Username
	if s.TokenFile != "" {
		key, file = "source.token_file", s.TokenFile
		if user == "" {
			user = tokenUser
		}
	}
	if file == "" {
		return nil
	}
	data, err := s.private(key, file)
	if err != nil {
		return err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" || strings.ContainsFunc(secret, unicode.IsControl) {
		return localFailure("reading "+key, fmt.Errorf("%s does not hold one line of text", file))
	}
	l.secret = true
	l.authorize = func(r *http.Request) { r.SetBasicAuth(user, secret) }
	if s.TokenFile != "" && s.TokenType == "bearer" {
		l.authorize = func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) }
	}
	return nil
}

// redirect decides about each hop. Credentials stay with the server that they are
// for: what leads elsewhere is followed without any, or not at all.
func (l *httpLink) redirect(req *http.Request, via []*http.Request) error {
	to := &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path}
	refuse := func(reason string) error { return &redirectError{printable(to.String()), reason} }
	switch {
	case len(via) > maxHops:
		return refuse(fmt.Sprintf("after %d others", maxHops))
	case req.Method != http.MethodGet:
		return refuse("in the middle of a transfer")
	case req.URL.Scheme != l.base.Scheme && req.URL.Scheme != "https":
		return refuse("which is not encrypted")
	case req.URL.User != nil:
		return refuse("with credentials in it")
	case l.secret && !sameOrigin(req.URL, l.base):
		return refuse("which is not who the credentials are for")
	case !strings.HasSuffix(req.URL.Path, infoRefs):
		return refuse("which is no git repository")
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func (l *httpLink) greet(ctx context.Context) (*packets, error) {
	at := l.base.JoinPath(infoRefs)
	at.RawQuery = "service=" + uploadPack
	resp, err := l.do(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	if at = resp.Request.URL; strings.HasSuffix(at.Path, infoRefs) {
		l.base = &url.URL{Scheme: at.Scheme, Host: at.Host, Path: strings.TrimSuffix(at.Path, infoRefs)}
	}
	return newPackets(l.bounded(resp.Body)), nil
}

func (l *httpLink) call(ctx context.Context, request []byte) (*packets, error) {
	resp, err := l.do(ctx, http.MethodPost, l.base.JoinPath(uploadPack), request)
	if err != nil {
		return nil, err
	}
	return newPackets(l.bounded(resp.Body)), nil
}

func (l *httpLink) do(ctx context.Context, method string, at *url.URL, body []byte) (*http.Response, error) {
	l.endAnswer()
	req, err := http.NewRequestWithContext(ctx, method, at.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "git/"+userAgent()) // some servers answer nothing but git
	req.Header.Set("Git-Protocol", "version=2")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-"+uploadPack+"-request")
		req.Header.Set("Accept", "application/x-"+uploadPack+"-result")
	}
	l.authorize(req)
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, err
	}
	l.body = resp.Body
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	page := make([]byte, firstOfBody)
	n, _ := io.ReadFull(resp.Body, page)
	e := &statusError{code: resp.StatusCode}
	if text := string(page[:n]); !strings.HasPrefix(strings.TrimSpace(text), "<") { // HTML says less than the status
		e.reason = printable(firstLine(strings.TrimSpace(text)))
	}
	return nil, e
}

// endAnswer reads the end of the last answer, so that its connection can be used
// again, or gives the connection up.
func (l *httpLink) endAnswer() {
	if l.body == nil {
		return
	}
	if r, ok := l.body.(io.Reader); ok {
		_, _ = io.CopyN(io.Discard, r, firstOfBody)
	}
	_ = l.body.Close()
	l.body = nil
}

func (l *httpLink) close() {
	if l.body != nil {
		_ = l.body.Close()
	}
	l.client.CloseIdleConnections()
}

// checkHTTP refuses what would give a secret away.
func (r *remote) checkHTTP(o Options) error {
	ep := r.endpoint
	switch {
	case ep.User != "" || ep.Password != "":
		return &source.Error{
			Err:  errors.New("source.url holds credentials, which would be logged with it"),
			Hint: "Put the token or password in a file of its own (mode 0600) and name it in source.token_file or source.password_file.",
		}
	case ep.Protocol == "http" && (o.PasswordFile != "" || o.TokenFile != ""):
		return &source.Error{
			Err:  errors.New("credentials are not sent over http"),
			Hint: "Use an https or ssh URL.",
		}
	case o.TokenFile != "" && o.PasswordFile != "":
		return errors.New("source.token_file and source.password_file exclude each other")
	case o.PasswordFile != "" && o.Username == "":
		return errors.New("source.password_file needs source.username")
	case (o.ClientCert == "") != (o.ClientKey == ""):
		return errors.New("source.client_cert and source.client_key go together")
	}
	return nil
}
