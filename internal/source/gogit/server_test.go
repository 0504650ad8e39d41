package gogit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

func need(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		lacking.Skip(t, "%s is not installed", program)
	}
	return path
}

// quiet is for servers whose clients go away.
var quiet = log.New(io.Discard, "", 0)

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs a server until the test ends, and waits until it listens.
func start(t testing.TB, port int, name string, args ...string) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", name, log.String())
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			return &log
		}
		time.Sleep(30 * time.Millisecond)
	}
	t.Fatalf("%s does not listen:\n%s", name, log.String())
	return nil
}

// backend serves the repositories below dir as git's own CGI does.
func backend(t testing.TB, dir string) http.Handler {
	t.Helper()
	need(t, "git")
	return &cgi.Handler{
		Path: filepath.Join(git(t, dir, "--exec-path"), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
}

func caFile(t testing.TB, srv *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func secretFile(t testing.TB, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// follow fetches, pushes a commit, and fetches again.
func follow(t *testing.T, repo string, s *fetcher) {
	t.Helper()
	s.mustFetch(t, git(t, repo, "rev-parse", "HEAD"))
	write(t, filepath.Join(repo, "files/motd"), "changed\n")
	second := commit(t, repo, "third")
	s.mustFetch(t, second)
	if got, err := s.readFile(second, "files/motd"); err != nil || got != "changed\n" {
		t.Errorf("files/motd is %q, %v", got, err)
	}
	git(t, s.dir, "fsck", "--no-dangling")
	s.mustFetch(t, second)
	if w := s.warnings(); w != nil {
		t.Errorf("warnings: %q", w)
	}
}

// refused fetches and expects an error with a text and, in all of it, no secret.
func refused(t *testing.T, s *fetcher, sentinel error, parts ...string) {
	t.Helper()
	_, err := s.Fetch(context.Background())
	var e *source.Error
	if !errors.As(err, &e) || !errors.Is(err, sentinel) {
		t.Fatalf("error is %T %v, want one of %v", err, err, sentinel)
	}
	whole := e.Error() + "\n" + e.Hint
	for _, part := range parts {
		if !strings.Contains(whole, part) {
			t.Errorf("%q lacks %q", whole, part)
		}
	}
	if strings.Contains(whole, "s3cret") {
		t.Errorf("a secret is in %q", whole)
	}
}

func TestGitDaemon(t *testing.T) {
	need(t, "git")
	repo := fleet(t)
	port := freePort(t)
	start(t, port, filepath.Join(git(t, repo, "--exec-path"), "git-daemon"), "--listen=127.0.0.1", fmt.Sprintf("--port=%d", port), "--export-all", "--base-path="+filepath.Dir(repo), "--reuseaddr")
	url := fmt.Sprintf("git://127.0.0.1:%d/", port)
	t.Run("follow", func(t *testing.T) { follow(t, repo, newSource(t, gogit.Options{URL: url + "fleet"})) })
	t.Run("no such repository", func(t *testing.T) {
		refused(t, newSource(t, gogit.Options{URL: url + "nope"}), source.ErrUnavailable, "no such repository")
	})
}

func TestHTTP(t *testing.T) {
	repo := fleet(t)
	plain := httptest.NewServer(backend(t, filepath.Dir(repo)))
	defer plain.Close()
	follow(t, repo, newSource(t, gogit.Options{URL: plain.URL + "/fleet"}))
	if _, err := gogit.New(gogit.Options{URL: plain.URL + "/fleet", TokenFile: "/x"}); err == nil || !strings.Contains(err.Error(), "not sent over http") {
		t.Errorf("credentials over http: %v", err)
	}
}

func TestHTTPS(t *testing.T) {
	repo := fleet(t)
	git(t, filepath.Dir(repo), "init", "-q", "-b", "main", "empty")
	next := backend(t, filepath.Dir(repo))
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case strings.HasPrefix(r.URL.Path, "/broken"):
			http.Error(w, "out of \x1b[31mcoffee", http.StatusInternalServerError)
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, strings.Replace(r.URL.String(), "/moved/", "/", 1), http.StatusMovedPermanently)
		case password != "s3cret" || user == "nobody":
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who?", http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	srv.Config.ErrorLog = quiet
	ca := caFile(t, srv)
	ok := gogit.Options{URL: srv.URL + "/fleet", CAFile: ca, TokenFile: secretFile(t, "s3cret\n")}
	with := func(change func(*gogit.Options)) *fetcher {
		o := ok
		change(&o)
		return newSource(t, o)
	}

	t.Run("token", func(t *testing.T) { follow(t, repo, newSource(t, ok)) })
	t.Run("redirect", func(t *testing.T) { follow(t, repo, with(func(o *gogit.Options) { o.URL = srv.URL + "/moved/fleet" })) })
	t.Run("password", func(t *testing.T) {
		follow(t, repo, with(func(o *gogit.Options) { o.Username, o.TokenFile, o.PasswordFile = "ada", "", o.TokenFile }))
	})
	t.Run("no credentials", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.TokenFile = "" }), source.ErrUnavailable, "asks for credentials", "source.token_file")
	})
	t.Run("wrong user", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.Username = "nobody" }), source.ErrUnavailable, "authentication refused")
	})
	t.Run("readable token file", func(t *testing.T) {
		file := secretFile(t, "s3cret\n")
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, with(func(o *gogit.Options) { o.TokenFile = file }), source.ErrLocal, file, "0644")
	})
	t.Run("missing token file", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.TokenFile = "/nope/token" }), source.ErrLocal, "/nope/token")
	})
	t.Run("unknown authority", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.CAFile = "" }), source.ErrUnavailable, "TLS", "unknown authority", "source.ca_file")
	})
	t.Run("another name", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = strings.Replace(o.URL, "127.0.0.1", "localhost", 1) }), source.ErrUnavailable, "TLS", "localhost")
	})
	t.Run("no TLS there", func(t *testing.T) {
		plain := httptest.NewServer(next)
		defer plain.Close()
		refused(t, with(func(o *gogit.Options) { o.URL = strings.Replace(plain.URL, "http:", "https:", 1) + "/fleet" }), source.ErrUnavailable, "does not speak it")
	})
	t.Run("no such repository", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = srv.URL + "/nope" }), source.ErrUnavailable, "no such repository")
	})
	t.Run("empty repository", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = srv.URL + "/empty" }), source.ErrUnavailable, "the repository is empty")
	})
	t.Run("no such branch", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.Branch = "trunk" }), source.ErrUnavailable, `no branch "trunk"`, "main")
	})
	t.Run("server error", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = srv.URL + "/broken" }), source.ErrUnavailable, "500", "out of  [31mcoffee")
	})
	t.Run("refused", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = fmt.Sprintf("https://127.0.0.1:%d/x", freePort(t)) }), source.ErrUnavailable, "connection refused")
	})
	t.Run("no such host", func(t *testing.T) {
		refused(t, with(func(o *gogit.Options) { o.URL = "https://nope.invalid/x"; o.Timeout = 10 * time.Second }), source.ErrUnavailable, "nope.invalid")
	})
}

func TestStallingServer(t *testing.T) {
	repo := fleet(t)
	next := backend(t, filepath.Dir(repo))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	end := make(chan struct{})
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	half := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		body := rec.Body.Bytes()
		_, _ = w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		<-end
	}))
	defer half.Close()
	defer close(end)
	for _, url := range []string{
		half.URL + "/fleet",
		"http://" + silent.Addr().String() + "/fleet",
		"https://" + silent.Addr().String() + "/fleet",
		"git://" + silent.Addr().String() + "/fleet",
		"ssh://git@" + silent.Addr().String() + "/fleet",
	} {
		t.Run(url[:strings.Index(url, ":")], func(t *testing.T) {
			known := filepath.Join(t.TempDir(), "known_hosts")
			write(t, known, "")
			s := newSource(t, gogit.Options{URL: url, Timeout: 400 * time.Millisecond, KnownHosts: []string{known}, SSHKey: clientKey(t)})
			began := time.Now()
			refused(t, s, source.ErrUnavailable, "within 400ms")
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a half-made clone took the mirror's place: %v", err)
			}
		})
	}
}

// A pack that ends too early at any place, or has a byte wrong, is no pack; the
// mirror that was there stays in use.
func TestBrokenPack(t *testing.T) {
	repo := fleet(t)
	next := backend(t, filepath.Dir(repo))
	change := func(body []byte) []byte { return body }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		body := rec.Body.Bytes()
		if r.Method == http.MethodPost {
			body = change(body)
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	s := newSource(t, gogit.Options{URL: srv.URL + "/fleet"})
	first := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, first)
	write(t, filepath.Join(repo, "files/motd"), "changed\n")
	second := commit(t, repo, "third")
	size := 0
	change = func(body []byte) []byte { size = len(body); return nil }
	refused(t, s, source.ErrUnavailable)
	for at := 1; at < size; at += 3 {
		change = func(body []byte) []byte { return body[:min(at, len(body))] }
		if rev, err := s.Fetch(context.Background()); err == nil {
			// What is missing may be the end of the sideband alone.
			if rev.Commit != second {
				t.Fatalf("cut at %d of %d: %v", at, size, rev)
			}
			break
		} else if !errors.Is(err, source.ErrUnavailable) {
			t.Fatalf("cut at %d of %d: %v", at, size, err)
		}
		if got, err := s.readFile(first, "files/motd"); err != nil || got != "hello\n" {
			t.Fatalf("cut at %d of %d: files/motd is %q, %v", at, size, got, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "objects/pack/tmp_*")); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
	change = func(body []byte) []byte { return body }
	s.mustFetch(t, second)
}

// clientKey is a private key file that no server knows yet; its public half
// lies beside it.
func clientKey(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id_ed25519")
	writeKey(t, path)
	return path
}

func writeKey(t testing.TB, path string) ssh.PublicKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(key), 0o644); err != nil {
		t.Fatal(err)
	}
	return key
}

// sshd runs Debian's own on a free port and returns its address and host keys.
func sshd(t *testing.T, authorized string, more ...string) (port int, hostKeys []ssh.PublicKey) {
	t.Helper()
	program := "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		program = need(t, "sshd")
	}
	keygen := need(t, "ssh-keygen")
	dir := t.TempDir()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		lacking.Skip(t, "sshd needs /run/sshd: %v", err)
	}
	// The server has an ECDSA key too and prefers it: known_hosts has the other.
	hostKeys = append(hostKeys, writeKey(t, filepath.Join(dir, "host_ed25519")))
	if out, err := exec.Command(keygen, "-q", "-t", "ecdsa", "-N", "", "-f", filepath.Join(dir, "host_ecdsa")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "host_ecdsa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	ecdsa, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		t.Fatal(err)
	}
	hostKeys = append(hostKeys, ecdsa)
	for i, line := range more {
		if rest, ok := strings.CutPrefix(line, "CERTIFY "); ok {
			authority, name, _ := strings.Cut(rest, " ")
			if out, err := exec.Command(keygen, "-q", "-s", authority, "-I", "host", "-h", "-n", name, filepath.Join(dir, "host_ed25519.pub")).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			more[i] = "HostCertificate " + filepath.Join(dir, "host_ed25519-cert.pub")
		}
	}
	port = freePort(t)
	config := filepath.Join(dir, "sshd_config")
	write(t, config, fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n%s\n",
		port, filepath.Join(dir, "host_ecdsa"), filepath.Join(dir, "host_ed25519"), authorized, strings.Join(more, "\n")))
	start(t, port, program, "-D", "-e", "-f", config)
	return port, hostKeys
}

func username(t testing.TB) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return me.Username
}

// knownLine is a line of known_hosts.
func knownLine(port int, k ssh.PublicKey) string {
	return fmt.Sprintf("[127.0.0.1]:%d %s", port, bytes.TrimSpace(ssh.MarshalAuthorizedKey(k)))
}

// TestTransportSSH is the transport paragraph of docs/trust.md for ssh, case by case.
func TestTransportSSH(t *testing.T) {
	repo := fleet(t)
	me := username(t)
	key := clientKey(t)
	authority := filepath.Join(t.TempDir(), "authority")
	ca := writeKey(t, authority)
	port, hostKeys := sshd(t, key+".pub", certified(authority, "127.0.0.1")...)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	known := func(lines ...string) string {
		path := filepath.Join(t.TempDir(), "known_hosts")
		write(t, path, strings.Join(lines, "\n")+"\n")
		return path
	}
	line := func(k ssh.PublicKey) string { return knownLine(port, k) }
	bare := func(k ssh.PublicKey) string { return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(k))) }
	other := writeKey(t, filepath.Join(t.TempDir(), "other"))
	good := known(line(hostKeys[0]))
	url := fmt.Sprintf("ssh://%s@%s%s", me, address, repo)
	from := func(url, known, key string) *fetcher {
		return newSource(t, gogit.Options{URL: url, KnownHosts: []string{"/nope/known_hosts", known}, SSHKey: key, Timeout: 20 * time.Second})
	}
	ed, ec := "ssh-ed25519 "+ssh.FingerprintSHA256(hostKeys[0]), "ecdsa-sha2-nistp256 "+ssh.FingerprintSHA256(hostKeys[1])

	for name, c := range map[string]struct {
		url   string
		lines []string
	}{
		"ssh URL":                     {url, []string{line(hostKeys[0])}},
		"scp-like":                    {fmt.Sprintf("%s@%s:%s", me, address, repo), []string{line(hostKeys[0])}},
		"the other key type":          {url, []string{line(hostKeys[1])}},
		"both keys":                   {url, []string{line(hostKeys[0]), line(hostKeys[1])}},
		"an old key beside the new":   {url, []string{line(other), line(hostKeys[0])}},
		"a new key beside the old":    {url, []string{line(hostKeys[0]), line(other)}},
		"several names":               {url, []string{"git.example.com,[127.0.0.1]:" + strconv.Itoa(port) + " " + bare(hostKeys[0])}},
		"a wildcard, on another port": {url, []string{"127.0.* " + bare(hostKeys[0])}},
		"comments":                    {url, []string{"# git server", "", line(hostKeys[0]) + " comment"}},
		"a CA":                        {url, []string{"@cert-authority [127.0.0.1]:" + strconv.Itoa(port) + " " + bare(ca)}},
		"a CA for all":                {url, []string{"@cert-authority * " + bare(ca)}},
		"another revoked key":         {url, []string{line(hostKeys[0]), "@revoked * " + bare(other)}},
	} {
		t.Run(name, func(t *testing.T) { follow(t, repo, from(c.url, known(c.lines...), key)) })
	}
	t.Run("hashed", func(t *testing.T) {
		file := known(line(other), line(hostKeys[0]))
		if out, err := exec.Command("ssh-keygen", "-H", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		follow(t, repo, from(url, file, key))
	})

	const changed = "Either the server got a new key, or somebody stands in between: ask its operator for the fingerprint before replacing the line."
	scan := "Run ssh-keyscan -p " + strconv.Itoa(port) + " 127.0.0.1 >> /nope/known_hosts, and compare the fingerprint with what the server's operator says."
	for name, c := range map[string]struct {
		lines         []string
		message, hint string
	}{
		"unknown key": {[]string{"example.com " + bare(hostKeys[0])}, "the SSH host key of ADDRESS is not known: it offered OFFERED, which is not in FILE", scan},
		"changed key": {[]string{line(other)}, "the SSH host key of ADDRESS has changed: it offered " + ed + ", known is ssh-ed25519 " + ssh.FingerprintSHA256(other) + " (FILE:1)", changed},
		"a key of a type that the server has not": {[]string{line(rsaKey(t))}, "the server has no host key of a type that is known for ADDRESS", scan},
		"a revoked key":          {[]string{"@revoked * " + bare(hostKeys[0]), line(hostKeys[0])}, "the SSH host key of ADDRESS is revoked: it offered " + ed + ", see FILE:1", "Ask the server's operator: who has that key may be somebody else."},
		"a revoked CA":           {[]string{"@cert-authority * " + bare(ca), "@revoked * " + bare(ca)}, "the SSH host key of ADDRESS, ssh-ed25519-cert-v01@openssh.com CERTIFIED, is refused: certificate serial 0 revoked", "What is known of this server is in FILE."},
		"another CA":             {[]string{"@cert-authority * " + bare(other)}, "the SSH host key of ADDRESS is signed by a CA that is not known for it: it offered ssh-ed25519-cert-v01@openssh.com CERTIFIED", "What is known of this server is in FILE."},
		"a CA for somebody else": {[]string{"@cert-authority *.example.com " + bare(ca)}, "the SSH host key of ADDRESS is not known: it offered OFFERED, which is not in FILE", scan},
	} {
		t.Run(name, func(t *testing.T) {
			file := known(c.lines...)
			offered := ec // what the server likes best, to whom nothing is known
			message := strings.NewReplacer("ADDRESS", address, "FILE", file, "OFFERED", offered,
				"CERTIFIED", ssh.FingerprintSHA256(hostKeys[0])+", signed by ssh-ed25519 "+ssh.FingerprintSHA256(ca)).Replace(c.message)
			says(t, from(url, file, key), source.ErrUnavailable, "fetching "+url+": "+message, strings.ReplaceAll(c.hint, "FILE", file))
		})
	}
	t.Run("a CA's key for another name", func(t *testing.T) {
		port, _ := sshd(t, key+".pub", certified(authority, "git.example.com")...)
		url := fmt.Sprintf("ssh://%s@127.0.0.1:%d%s", me, port, repo)
		refused(t, from(url, known("@cert-authority * "+bare(ca)), key), source.ErrUnavailable, "is refused: ", "principal", "SHA256:")
	})
	t.Run("no known_hosts", func(t *testing.T) {
		says(t, from(url, "/nope/too", key), source.ErrLocal, "checking the SSH host key: there is no known_hosts file (tried /nope/known_hosts, /nope/too)", scan)
	})
	t.Run("known_hosts of others", func(t *testing.T) {
		file := known(line(hostKeys[0]))
		if err := os.Chmod(file, 0o622); err != nil {
			t.Fatal(err)
		}
		says(t, from(url, file, key), source.ErrLocal, "reading source.known_hosts: "+file+" is writable by everybody (mode 0622)",
			"Give it to root and to nobody else to write: chown root "+file+" && chmod go-w "+file)
	})
	t.Run("known_hosts that is none", func(t *testing.T) {
		file := known("what is this?")
		refused(t, from(url, file, key), source.ErrLocal, "reading source.known_hosts: ", file+":1: ")
	})

	t.Run("unauthorized key", func(t *testing.T) {
		says(t, from(url, good, clientKey(t)), source.ErrUnavailable, "fetching "+url+": authentication refused for user "+me,
			"The server does not accept this host's key: add its public half there as a read-only deploy key.")
	})
	t.Run("readable key file", func(t *testing.T) {
		file := clientKey(t)
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		says(t, from(url, good, file), source.ErrLocal, "reading source.ssh_key: "+file+" is readable by its group (mode 0640)",
			"Give it to root and to nobody else to read: chown root "+file+" && chmod go= "+file+". Replace what is in it if others may have read it")
	})
	locked := filepath.Join(t.TempDir(), "locked")
	if data, err := os.ReadFile(key); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(locked, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-p", "-N", "s3cret", "-f", locked).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const noPassphrase = "Make a key without one for this host alone (ssh-keygen -N '') and give it read access only."
	t.Run("encrypted key file", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", "")
		says(t, from(url, good, locked), source.ErrLocal, "reading source.ssh_key: "+locked+" needs a passphrase, which nobody is there to type, and no agent has it", noPassphrase)
	})
	t.Run("neither key nor agent", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", "")
		says(t, from(url, good, ""), source.ErrLocal, "finding an SSH key: source.ssh_key is not set and no agent is running", "Name a private key file in source.ssh_key.")
		t.Setenv("SSH_AUTH_SOCK", "/nope/agent")
		refused(t, from(url, good, ""), source.ErrLocal, "source.ssh_key is not set and the agent cannot be reached", "/nope/agent")
	})
	t.Run("an agent", func(t *testing.T) {
		agent := sshAgent(t)
		says(t, from(url, good, locked), source.ErrLocal, "reading source.ssh_key: "+locked+" needs a passphrase, which nobody is there to type, and no agent has it", noPassphrase)
		agent(key)
		follow(t, repo, from(url, good, ""))
		follow(t, repo, from(url, good, locked))
	})
	t.Run("no such repository", func(t *testing.T) {
		says(t, from(url+"x", good, key), source.ErrUnavailable, "fetching "+url+"x: no such repository", "Check the path in source.url, and that the credentials may read it.")
	})
	t.Run("no such branch", func(t *testing.T) {
		s := newSource(t, gogit.Options{URL: url, KnownHosts: []string{good}, SSHKey: key, Branch: "trunk"})
		says(t, s, source.ErrUnavailable, "fetching "+url+`: there is no branch "trunk"`, "Set source.branch to one that exists: main.")
	})
	t.Run("both versions of the protocol", func(t *testing.T) {
		manyRefs(t, repo, 100)
		few := gogit.Options{URL: url, KnownHosts: []string{good}, SSHKey: key, Limits: gogit.Limits{MaxRefs: 10}}
		says(t, newSource(t, few), source.ErrUnavailable, "fetching "+url+": the repository has more than 10 refs", "That is the limit of source.max_refs: raise it if the repository is meant to be like that.")
		port, hostKeys := sshd(t, key+".pub", "AcceptEnv GIT_PROTOCOL")
		few.URL, few.KnownHosts = fmt.Sprintf("ssh://%s@127.0.0.1:%d%s", me, port, repo), []string{known(knownLine(port, hostKeys[0]))}
		follow(t, repo, newSource(t, few))
	})
}

// certified has sshd show a certificate for its ed25519 key.
func certified(authority, name string) []string {
	return []string{"CERTIFY " + authority + " " + name}
}

func rsaKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sshAgent runs an agent and returns what gives it a key.
func sshAgent(t *testing.T) (add func(key string)) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command(need(t, "ssh-agent"), "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Setenv("SSH_AUTH_SOCK", socket)
	return func(key string) {
		if out, err := exec.Command("ssh-add", "-q", key).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

func TestURL(t *testing.T) {
	for url, want := range map[string]string{
		"":                                  "not set",
		"https://ada:s3cret@example.com/x":  "holds credentials",
		"https://s3cret@example.com/x":      "holds credentials",
		"ssh://ada:s3cret@example.com/x":    "holds a password",
		"https://ada:s3cret@exa mple.com/x": "neither a URL nor a path",
		"https://ada:s3cret@[::1/x":         "neither a URL nor a path",
		"ftp://example.com/x":               "ftp is not supported",
		"https:///x":                        "names no host",
		"https://example.com/\x1b":          "control character",
	} {
		_, err := gogit.New(gogit.Options{URL: url})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: error is %v, want %s", url, err, want)
		}
	}
}
