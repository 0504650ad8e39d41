package child_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// issue makes a certificate, of the authority's or of its own.
func issue(t testing.TB, authority *tls.Certificate, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: authority == nil, BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	if authority != nil {
		parent, signer = authority.Leaf, authority.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func writeCertificate(t testing.TB, c tls.Certificate, cert, key string) {
	t.Helper()
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})), 0o644)
	if key == "" {
		return
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
}

// TestHTTPS: what the environment and root's files say holds for the other process.
func TestHTTPS(t *testing.T) {
	users(t, func(t *testing.T, other *run.User) {
		dir := place(t)
		repo := fleet(t, dir)
		tip := git(t, repo, "rev-parse", "HEAD")
		at := func(name string) string { return filepath.Join(dir, name) }
		ours, theirs := issue(t, nil, "a CA"), issue(t, nil, "another CA")
		writeCertificate(t, ours, at("ca.pem"), "")
		writeCertificate(t, issue(t, &theirs, "web1"), at("client.pem"), at("client.key"))
		// A credential as systemd leaves it: nobody else gets even to its directory.
		given := at("credentials")
		write(t, filepath.Join(given, "reconf-pull.source.token_file"), "s3cret\n", 0o400)
		if err := os.Chmod(given, 0o500); err != nil {
			t.Fatal(err)
		}
		token := filepath.Join(given, "reconf-pull.source.token_file")

		next := &cgi.Handler{
			Path: "/usr/lib/git-core/git-http-backend", Root: "/",
			Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			known := r.Header.Get("Authorization") == "Bearer s3cret" || len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName == "web1"
			if !known {
				http.Error(w, "who?", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}))
		clients := x509.NewCertPool()
		clients.AddCert(theirs.Leaf)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{issue(t, &ours, "git.proxied.test")}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		defer srv.Close()
		var asked atomic.Int64
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			there, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil || r.Method != http.MethodConnect || r.Host != "git.proxied.test:443" {
				http.Error(w, "no", http.StatusBadGateway)
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
		}))
		defer proxy.Close()

		direct, proxied := srv.URL+"/fleet", "https://git.proxied.test/fleet"
		ca := "SSL_CERT_FILE=" + at("ca.pem")
		through := "https_proxy=" + proxy.URL
		for name, c := range map[string]struct {
			of    gogit.Options
			env   []string
			asks  bool   // the proxy
			wrong string // "": it works
		}{
			"a bearer token of systemd's": {of: gogit.Options{URL: direct, TokenFile: token, TokenType: "bearer", CAFile: at("ca.pem")}},
			"a client certificate":        {of: gogit.Options{URL: direct, ClientCert: at("client.pem"), ClientKey: at("client.key"), CAFile: at("ca.pem")}},
			"neither":                     {of: gogit.Options{URL: direct, CAFile: at("ca.pem")}, wrong: "the server asks for credentials"},
			"a CA of the system":          {of: gogit.Options{URL: direct, TokenFile: token, TokenType: "bearer"}, env: []string{ca}},
			"an unknown CA":               {of: gogit.Options{URL: direct, TokenFile: token, TokenType: "bearer"}, wrong: "signed by an unknown authority"},
			"a proxy":                     {of: gogit.Options{URL: proxied, TokenFile: token, TokenType: "bearer"}, env: []string{ca, through}, asks: true},
			"a proxy, and not for this":   {of: gogit.Options{URL: proxied, TokenFile: token, TokenType: "bearer"}, env: []string{ca, through, "no_proxy=.proxied.test"}, wrong: "git.proxied.test"},
			"a proxy that is not there":   {of: gogit.Options{URL: proxied, TokenFile: token, TokenType: "bearer"}, env: []string{ca, "https_proxy=http://ada:s3cret@127.0.0.1:1"}, wrong: "the proxy that the environment names cannot be reached"},
		} {
			t.Run(name, func(t *testing.T) {
				before := asked.Load()
				c.of.Timeout = 20 * time.Second
				o := child.Options{Env: c.env}
				for _, e := range c.env {
					if file, ok := strings.CutPrefix(e, "SSL_CERT_FILE="); ok {
						o.Read = append(o.Read, file)
					}
				}
				rev, err := newSource(t, place(t), other, c.of, o).Fetch(context.Background())
				if c.wrong == "" && (err != nil || rev.Commit != tip) {
					t.Fatalf("got %v, %v", rev, err)
				}
				var hinted *source.Error
				if c.wrong != "" && (!errors.As(err, &hinted) || !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), c.wrong) || strings.Contains(err.Error()+hinted.Hint, "s3cret")) {
					t.Errorf("got  %v\nwant %s", err, c.wrong)
				}
				if (asked.Load() > before) != c.asks {
					t.Errorf("the proxy was asked %d times", asked.Load()-before)
				}
			})
		}
	})
}
