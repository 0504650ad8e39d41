package gogit_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// What Go reads from the environment once: the system's CAs, and the proxy.
var (
	systemCA  *authority
	proxy     *httptest.Server
	proxied   atomic.Value // host:port of the last CONNECT
	behind    atomic.Value // where the proxy leads
	proxyPass atomic.Bool  // it lets through
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "gogit-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		systemCA = newAuthority("a system CA")
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), systemCA.pem, 0o600); err != nil {
			panic(err)
		}
		proxy = httptest.NewServer(http.HandlerFunc(tunnel))
		defer proxy.Close()
		for name, value := range map[string]string{
			"SSL_CERT_FILE": filepath.Join(dir, "ca.pem"), "https_proxy": proxy.URL, "no_proxy": "direct.test",
		} {
			if err := os.Setenv(name, value); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// tunnel is a proxy that leads all names to one server.
func tunnel(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	proxied.Store(r.Host)
	if !proxyPass.Load() {
		w.Header().Set("Proxy-Authenticate", "Basic")
		http.Error(w, "who?", http.StatusProxyAuthRequired)
		return
	}
	there, err := net.Dial("tcp", behind.Load().(string))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(there, buffered) }()
	_, _ = io.Copy(here, there)
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(name string) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue signs a certificate that is good for so long.
func (a *authority) issue(t testing.TB, valid time.Duration, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(valid),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files are a certificate and its key in PEM.
func files(t testing.TB, c tls.Certificate) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// gitServer is https in front of git's own backend, and counts.
type gitServer struct {
	*httptest.Server
	requests atomic.Int64
	body     atomic.Int64 // bytes of all answers
}

func (s *gitServer) at(path string) string { return s.URL + path }

// serve starts a server with a certificate; change may take requests away from git.
func serve(t testing.TB, repos string, c tls.Certificate, clients *authority, change func(http.ResponseWriter, *http.Request) bool) *gitServer {
	t.Helper()
	next := backend(t, repos)
	s := &gitServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		counted := &countingWriter{w, &s.body}
		if change == nil || !change(counted, r) {
			next.ServeHTTP(counted, r)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{c}}
	if clients != nil {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		s.TLS.ClientCAs.AddCert(clients.cert)
	}
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func (c *countingWriter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

// basic asks for a user and a password.
func basic(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		http.Error(w, "who?", http.StatusUnauthorized)
		return true
	}
}

// says is the whole of what a person sees, message and hint.
func says(t *testing.T, s *fetcher, sentinel error, message, hint string) {
	t.Helper()
	_, err := s.Fetch(context.Background())
	var e *source.Error
	if !errors.As(err, &e) || !errors.Is(err, sentinel) {
		t.Fatalf("error is %T %v, want one of %v", err, err, sentinel)
	}
	if e.Error() != message {
		t.Errorf("message\n got %s\nwant %s", e.Error(), message)
	}
	if e.Hint != hint {
		t.Errorf("hint\n got %s\nwant %s", e.Hint, hint)
	}
	if strings.Contains(e.Error()+e.Hint, "s3cret") {
		t.Error("a secret is in it")
	}
}

// TestTransportHTTPS is the transport paragraph of docs/trust.md for https, case by case.
func TestTransportHTTPS(t *testing.T) {
	repo := fleet(t)
	repos := filepath.Dir(repo)
	ours, clients, strangers := newAuthority("our CA"), newAuthority("client CA"), newAuthority("another CA")
	day := 24 * time.Hour
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(ours.pem))
	server := func(change func(http.ResponseWriter, *http.Request) bool) *gitServer {
		return serve(t, repos, ours.issue(t, day, "127.0.0.1"), nil, change)
	}
	plain := server(nil)
	token := func() string { return secretFile(t, "s3cret\n") }
	good := func(t *testing.T, o gogit.Options) { follow(t, repo, newSource(t, o)) }
	bad := func(t *testing.T, o gogit.Options, message, hint string) {
		t.Helper()
		says(t, newSource(t, o), source.ErrUnavailable, "fetching "+o.URL+": "+message, hint)
	}

	t.Run("ca_file", func(t *testing.T) { good(t, gogit.Options{URL: plain.at("/fleet"), CAFile: ca}) })
	t.Run("system CAs", func(t *testing.T) {
		s := serve(t, repos, systemCA.issue(t, day, "127.0.0.1"), nil, nil)
		good(t, gogit.Options{URL: s.at("/fleet")})
		// ca_file stands instead of them, not beside them.
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "TLS: the certificate is signed by an unknown authority", "Name the authority's certificate in source.ca_file.")
	})
	t.Run("unknown CA", func(t *testing.T) {
		bad(t, gogit.Options{URL: plain.at("/fleet")}, "TLS: the certificate is signed by an unknown authority", "Name the authority's certificate in source.ca_file.")
	})
	t.Run("expired", func(t *testing.T) {
		s := serve(t, repos, ours.issue(t, -time.Hour, "127.0.0.1"), nil, nil)
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "TLS: the certificate has expired or is not valid yet", "Renew it, and check this machine's clock.")
	})
	t.Run("wrong name", func(t *testing.T) {
		s := serve(t, repos, ours.issue(t, day, "git.example.com"), nil, nil)
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "TLS: x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs",
			"The certificate is for another name than the one in source.url.")
	})
	t.Run("client certificate", func(t *testing.T) {
		s := serve(t, repos, ours.issue(t, day, "127.0.0.1"), clients, nil)
		cert, key := files(t, clients.issue(t, day, "web1"))
		o := gogit.Options{URL: s.at("/fleet"), CAFile: ca, ClientCert: cert, ClientKey: key}
		good(t, o)
		without := o
		without.ClientCert, without.ClientKey = "", ""
		bad(t, without, "TLS: refused by the server: certificate required", "If it asks for client certificates, name one in source.client_cert and source.client_key.")
		another := o
		another.ClientCert, another.ClientKey = files(t, strangers.issue(t, day, "web1"))
		bad(t, another, "TLS: refused by the server: certificate required", "It does not take the certificate of source.client_cert.")
		mixed := o
		_, mixed.ClientKey = files(t, clients.issue(t, day, "web1"))
		says(t, newSource(t, mixed), source.ErrLocal, fmt.Sprintf("reading source.client_cert: %s with the key %s: tls: private key does not match public key", cert, mixed.ClientKey), "")
	})
	t.Run("token", func(t *testing.T) {
		good(t, gogit.Options{URL: server(basic("oauth2", "s3cret")).at("/fleet"), CAFile: ca, TokenFile: token()})
	})
	t.Run("token of a user", func(t *testing.T) {
		good(t, gogit.Options{URL: server(basic("deploy", "s3cret")).at("/fleet"), CAFile: ca, TokenFile: token(), Username: "deploy"})
	})
	t.Run("bearer token", func(t *testing.T) {
		s := server(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "Bearer s3cret" {
				return false
			}
			http.Error(w, "who?", http.StatusUnauthorized)
			return true
		})
		o := gogit.Options{URL: s.at("/fleet"), CAFile: ca, TokenFile: token(), TokenType: "bearer"}
		good(t, o)
		o.TokenType = "basic"
		bad(t, o, "authentication refused", "The token or password is wrong, or has expired.")
	})
	t.Run("password", func(t *testing.T) {
		o := gogit.Options{URL: server(basic("ada", "s3cret")).at("/fleet"), CAFile: ca, Username: "ada", PasswordFile: token()}
		good(t, o)
		o.PasswordFile = secretFile(t, "s3cret2")
		bad(t, o, "authentication refused", "The token or password is wrong, or has expired.")
		o.Username, o.PasswordFile = "", ""
		bad(t, o, "the server asks for credentials", "Name a token file in source.token_file.")
	})
	for code, want := range map[int][2]string{
		http.StatusForbidden:          {"access refused (403): not you s", "Whoever the credentials are for may not read this repository."},
		http.StatusNotFound:           {"no such repository", "Check the path in source.url; to whom a private repository is not open, many servers say that it does not exist."},
		http.StatusServiceUnavailable: {"the server answered 503: not you s", "Look into the server's log."},
		http.StatusOK:                 {`it does not speak git's protocol: "not " is no length of a packet`, "Check the path in source.url: a login page, or a proxy's, answers like that."},
	} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			s := server(func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "not you\x1bs\nat all", code)
				return true
			})
			bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, want[0], want[1])
		})
	}
	t.Run("redirect within the server", func(t *testing.T) {
		s := server(func(w http.ResponseWriter, r *http.Request) bool {
			if rest, ok := strings.CutPrefix(r.URL.Path, "/moved/"); ok {
				http.Redirect(w, r, "/"+rest+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
				return true
			}
			return basic("oauth2", "s3cret")(w, r)
		})
		good(t, gogit.Options{URL: s.at("/moved/fleet"), CAFile: ca, TokenFile: token()})
	})
	leads := func(to string) *gitServer {
		return server(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, to+r.URL.String(), http.StatusFound)
			return true
		})
	}
	const follows = "Set source.url to where the repository is, if that is somebody to trust."
	t.Run("redirect to another server", func(t *testing.T) {
		var got atomic.Value
		other := server(func(_ http.ResponseWriter, r *http.Request) bool { got.Store(r.Header.Clone()); return false })
		from := leads(other.URL)
		good(t, gogit.Options{URL: from.at("/fleet"), CAFile: ca})
		before := other.requests.Load()
		cert, key := files(t, clients.issue(t, day, "web1"))
		for _, o := range []gogit.Options{
			{TokenFile: token()}, {Username: "ada", PasswordFile: token()}, {ClientCert: cert, ClientKey: key},
		} {
			o.URL, o.CAFile = from.at("/fleet"), ca
			bad(t, o, "it redirects to "+other.URL+"/fleet/info/refs, which is not who the credentials are for", follows)
		}
		if n := other.requests.Load(); n != before {
			t.Errorf("%d requests reached the other server", n-before)
		}
		if h := got.Load().(http.Header); h.Get("Authorization") != "" {
			t.Error("the other server got credentials")
		}
	})
	t.Run("redirect to http", func(t *testing.T) {
		clear := httptest.NewServer(backend(t, repos))
		defer clear.Close()
		from := leads(clear.URL)
		bad(t, gogit.Options{URL: from.at("/fleet"), CAFile: ca}, "it redirects to "+clear.URL+"/fleet/info/refs, which is not encrypted", follows)
		bad(t, gogit.Options{URL: from.at("/fleet"), CAFile: ca, TokenFile: token()}, "it redirects to "+clear.URL+"/fleet/info/refs, which is not encrypted", follows)
	})
	t.Run("redirects without end", func(t *testing.T) {
		var s *gitServer
		s = server(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, s.URL+r.URL.String(), http.StatusFound)
			return true
		})
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "it redirects to "+s.URL+"/fleet/info/refs, after 5 others", follows)
	})
	t.Run("redirect to a page", func(t *testing.T) {
		s := server(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "/login", http.StatusFound)
			return true
		})
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "it redirects to "+s.URL+"/login, which is no git repository", follows)
	})
	t.Run("redirect of a transfer", func(t *testing.T) {
		s := server(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				http.Redirect(w, r, plain.URL+r.URL.String(), http.StatusTemporaryRedirect)
			}
			return r.Method == http.MethodPost
		})
		bad(t, gogit.Options{URL: s.at("/fleet"), CAFile: ca}, "it redirects to "+plain.URL+"/fleet/git-upload-pack, in the middle of a transfer", follows)
	})
	t.Run("no such branch", func(t *testing.T) {
		bad(t, gogit.Options{URL: plain.at("/fleet"), CAFile: ca, Branch: "trunk"}, `there is no branch "trunk"`, "Set source.branch to one that exists: main.")
	})
	t.Run("through a proxy", func(t *testing.T) {
		s := serve(t, repos, ours.issue(t, day, "git.proxied.test"), nil, nil)
		at, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		behind.Store(at.Host)
		o := gogit.Options{URL: "https://git.proxied.test:8443/fleet", CAFile: ca}
		proxyPass.Store(true)
		good(t, o)
		if got := proxied.Load(); got != "git.proxied.test:8443" {
			t.Errorf("the proxy was asked for %v", got)
		}
		proxyPass.Store(false)
		bad(t, o, "the proxy refuses: 407 Proxy Authentication Required",
			"Check https_proxy and no_proxy in the environment of the service; a password for the proxy belongs into a file that root alone can read (EnvironmentFile=).")
		// A name of no_proxy is asked for directly, and does not exist.
		proxied.Store("")
		refused(t, newSource(t, gogit.Options{URL: "https://direct.test/fleet", CAFile: ca, Timeout: 10 * time.Second}), source.ErrUnavailable, "direct.test")
		if got := proxied.Load(); got != "" {
			t.Errorf("the proxy was asked for %v", got)
		}
	})
	t.Run("the files", func(t *testing.T) {
		cert, key := files(t, clients.issue(t, day, "web1"))
		for name, c := range map[string]struct {
			o       gogit.Options
			path    string
			mode    os.FileMode
			message string
			hint    string
		}{
			"ca_file":       {gogit.Options{}, ca, 0o666, "reading source.ca_file: PATH is writable by everybody (mode 0666)", "Give it to root and to nobody else to write: chown root PATH && chmod go-w PATH"},
			"client_cert":   {gogit.Options{ClientCert: cert, ClientKey: key}, cert, 0o620, "reading source.client_cert: PATH is writable by its group (mode 0620)", "Give it to root and to nobody else to write: chown root PATH && chmod go-w PATH"},
			"client_key":    {gogit.Options{ClientCert: cert, ClientKey: key}, key, 0o640, "reading source.client_key: PATH is readable by its group (mode 0640)", "Give it to root and to nobody else to read: chown root PATH && chmod go= PATH. Replace what is in it if others may have read it"},
			"token_file":    {gogit.Options{TokenFile: token()}, "", 0o604, "reading source.token_file: PATH is readable by everybody (mode 0604)", "Give it to root and to nobody else to read: chown root PATH && chmod go= PATH. Replace what is in it if others may have read it"},
			"password_file": {gogit.Options{Username: "ada", PasswordFile: token()}, "", 0o660, "reading source.password_file: PATH is writable by its group (mode 0660)", "Give it to root and to nobody else to write: chown root PATH && chmod go-w PATH"},
		} {
			path := c.path + c.o.TokenFile + c.o.PasswordFile
			if c.path != "" {
				path = c.path
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			c.o.URL, c.o.CAFile = plain.at("/fleet"), ca
			says(t, newSource(t, c.o), source.ErrLocal, strings.ReplaceAll(c.message, "PATH", path), strings.ReplaceAll(c.hint, "PATH", path))
			if t.Failed() {
				t.Logf("that was %s", name)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		empty := secretFile(t, "\n")
		says(t, newSource(t, gogit.Options{URL: plain.at("/fleet"), CAFile: ca, TokenFile: empty}), source.ErrLocal, "reading source.token_file: "+empty+" does not hold one line of text", "")
		says(t, newSource(t, gogit.Options{URL: plain.at("/fleet"), CAFile: empty}), source.ErrLocal, "reading source.ca_file: "+empty+" holds no certificate in PEM form", "")
	})
}

// What would send a secret where it can be read is refused before anything is asked.
func TestTransportRefusedAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		o       gogit.Options
		message string
	}{
		"a token over http":       {gogit.Options{URL: "http://git.example.com/x", TokenFile: "/t"}, "credentials are not sent over http"},
		"a password over http":    {gogit.Options{URL: "http://git.example.com/x", Username: "u", PasswordFile: "/t"}, "credentials are not sent over http"},
		"a password in the URL":   {gogit.Options{URL: "https://u:s3cret@git.example.com/x"}, "source.url holds credentials, which would be logged with it"},
		"a token in the URL":      {gogit.Options{URL: "https://s3cret@git.example.com/x"}, "source.url holds credentials, which would be logged with it"},
		"a password in ssh's":     {gogit.Options{URL: "ssh://u:s3cret@git.example.com/x"}, "source.url holds a password, which would be logged with it"},
		"a certificate alone":     {gogit.Options{URL: "https://git.example.com/x", ClientCert: "/c"}, "source.client_cert and source.client_key go together"},
		"a token and a password":  {gogit.Options{URL: "https://git.example.com/x", TokenFile: "/t", Username: "u", PasswordFile: "/p"}, "source.token_file and source.password_file exclude each other"},
		"a password without user": {gogit.Options{URL: "https://git.example.com/x", PasswordFile: "/p"}, "source.password_file needs source.username"},
	} {
		if _, err := gogit.New(c.o); err == nil || err.Error() != c.message {
			t.Errorf("%s: error is %v, want %s", name, err, c.message)
		}
	}
}

// A poll with nothing new asks for one ref, whatever else there is.
func TestPollOfManyRefs(t *testing.T) {
	repo := fleet(t)
	manyRefs(t, repo, 2000)
	s := serve(t, filepath.Dir(repo), systemCA.issue(t, time.Hour, "127.0.0.1"), nil, nil)
	f := newSource(t, gogit.Options{URL: s.at("/fleet")})
	head := git(t, repo, "rev-parse", "HEAD")
	f.mustFetch(t, head)
	requests, body := s.requests.Load(), s.body.Load()
	f.mustFetch(t, head)
	requests, body = s.requests.Load()-requests, s.body.Load()-body
	if requests != 2 || body > 1<<10 {
		t.Errorf("%d requests and %d bytes of answers, want 2 and at most 1024", requests, body)
	}
}

func manyRefs(t testing.TB, repo string, n int) {
	t.Helper()
	head := git(t, repo, "rev-parse", "HEAD")
	packed := &bytes.Buffer{}
	packed.WriteString("# pack-refs with: peeled fully-peeled sorted \n")
	for i := range n {
		fmt.Fprintf(packed, "%s refs/heads/feature-%06d\n", head, i)
	}
	fmt.Fprintf(packed, "%s refs/heads/main\n", head)
	write(t, filepath.Join(repo, ".git/packed-refs"), packed.String())
}

// A server that knows version 0 only lists everything; that is bounded.
func TestOldServers(t *testing.T) {
	repo := fleet(t)
	old := func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Git-Protocol"); return false }
	s := serve(t, filepath.Dir(repo), systemCA.issue(t, time.Hour, "127.0.0.1"), nil, old)
	follow(t, repo, newSource(t, gogit.Options{URL: s.at("/fleet")}))
	follow(t, repo, newSource(t, gogit.Options{URL: s.at("/fleet"), FullHistory: true}))
	manyRefs(t, repo, 100)
	follow(t, repo, newSource(t, gogit.Options{URL: s.at("/fleet"), Limits: gogit.Limits{MaxRefs: 102}}))
	says(t, newSource(t, gogit.Options{URL: s.at("/fleet"), Limits: gogit.Limits{MaxRefs: 101}}), source.ErrUnavailable,
		"fetching "+s.at("/fleet")+": the repository has more than 101 refs", "That is the limit of source.max_refs: raise it if the repository is meant to be like that.")
	git(t, filepath.Dir(repo), "init", "-q", "--bare", "empty")
	says(t, newSource(t, gogit.Options{URL: s.at("/empty")}), source.ErrUnavailable, "fetching "+s.at("/empty")+": the repository is empty", "Push a commit first.")
	says(t, newSource(t, gogit.Options{URL: s.at("/fleet"), Branch: "x"}), source.ErrUnavailable, "fetching "+s.at("/fleet")+`: there is no branch "x"`,
		"Set source.branch to one that exists: feature-000000, feature-000001, feature-000002, feature-000003, feature-000004 and 96 more.")
}

// relay passes so many bytes of a server's answers on, and then stalls.
func relay(t testing.TB, to string, most int64) (address string, passed *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	passed = &atomic.Int64{}
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", to)
			if err != nil {
				here.Close()
				return
			}
			go func() { _, _ = io.Copy(there, here); there.Close(); here.Close() }()
			go func() {
				r := bufio.NewReader(there)
				for {
					b, err := r.ReadByte()
					if err != nil {
						here.Close()
						return
					}
					if passed.Add(1) > most {
						continue
					}
					if _, err := here.Write([]byte{b}); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), passed
}

// A server may fall silent at any byte of what it says, in any transport.
func TestSilentAtEveryByte(t *testing.T) {
	need(t, "git")
	repo := fleet(t)
	me := username(t)
	key := clientKey(t)
	sshPort, hostKeys := sshd(t, key+".pub")
	daemon := freePort(t)
	start(t, daemon, filepath.Join(git(t, repo, "--exec-path"), "git-daemon"), "--listen=127.0.0.1", fmt.Sprintf("--port=%d", daemon), "--export-all", "--base-path="+filepath.Dir(repo), "--reuseaddr")
	secure := serve(t, filepath.Dir(repo), systemCA.issue(t, time.Hour, "127.0.0.1"), nil, nil)
	known := filepath.Join(t.TempDir(), "known_hosts")
	_, hostKey, _ := strings.Cut(knownLine(sshPort, hostKeys[0]), " ")
	write(t, known, "127.0.0.1 "+hostKey+"\n* "+hostKey+"\n")
	for scheme, c := range map[string]struct{ to, url string }{
		"https": {strings.TrimPrefix(secure.URL, "https://"), "https://%s/fleet"},
		"git":   {fmt.Sprintf("127.0.0.1:%d", daemon), "git://%s/fleet"},
		"ssh":   {fmt.Sprintf("127.0.0.1:%d", sshPort), "ssh://" + me + "@%s" + repo},
	} {
		options := func(address string, timeout time.Duration) gogit.Options {
			return gogit.Options{URL: fmt.Sprintf(c.url, address), Timeout: timeout, KnownHosts: []string{known}, SSHKey: key}
		}
		address, passed := relay(t, c.to, 1<<30)
		newSource(t, options(address, time.Minute)).mustFetch(t, git(t, repo, "rev-parse", "HEAD"))
		all := passed.Load()
		const points = 20
		for n := range int64(points) {
			t.Run(fmt.Sprintf("%s %d", scheme, n), func(t *testing.T) {
				t.Parallel()
				// The last bytes may be of the goodbye.
				address, _ := relay(t, c.to, n*all*9/10/points)
				s := newSource(t, options(address, 700*time.Millisecond))
				refused(t, s, source.ErrUnavailable, "no answer, or not all of it, within 700ms")
				if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a half-made clone took the mirror's place: %v", err)
				}
			})
		}
	}
}

// Paths may hold what URLs and shells give a meaning to.
func TestOddPaths(t *testing.T) {
	repo := fleet(t)
	odd := filepath.Join(filepath.Dir(repo), "it's a 100% fleet!")
	if err := os.Rename(repo, odd); err != nil {
		t.Fatal(err)
	}
	s := serve(t, filepath.Dir(odd), systemCA.issue(t, time.Hour, "127.0.0.1"), nil, nil)
	follow(t, odd, newSource(t, gogit.Options{URL: s.at("/it's%20a%20100%25%20fleet!")}))
	key := clientKey(t)
	port, hostKeys := sshd(t, key+".pub", "AcceptEnv GIT_PROTOCOL")
	known := filepath.Join(t.TempDir(), "known_hosts")
	write(t, known, knownLine(port, hostKeys[0])+"\n")
	follow(t, odd, newSource(t, gogit.Options{URL: fmt.Sprintf("%s@127.0.0.1:%d:%s", username(t), port, odd), KnownHosts: []string{known}, SSHKey: key}))
}

func TestIPv6(t *testing.T) {
	repo := fleet(t)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		lacking.Skip(t, "there is no IPv6: %v", err)
	}
	s := httptest.NewUnstartedServer(backend(t, filepath.Dir(repo)))
	s.Listener.Close()
	s.Listener = l
	s.TLS = &tls.Config{Certificates: []tls.Certificate{systemCA.issue(t, time.Hour, "::1")}}
	s.StartTLS()
	defer s.Close()
	follow(t, repo, newSource(t, gogit.Options{URL: s.URL + "/fleet"}))
}
