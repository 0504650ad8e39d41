package main_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

const (
	hostileMemory = 200 << 10 // KiB
	hostileTime   = 2 * time.Minute
)

// hostile is a host that follows a fleet repo whose objects are written byte by
// byte, so that they may be what git would never write.
type hostile struct {
	t       *testing.T
	program string
	dir     string
	repo    string
	tip     string
}

func newHostile(t *testing.T, program string) *hostile {
	t.Helper()
	h := &hostile{t: t, program: program, dir: t.TempDir()}
	h.repo = filepath.Join(h.dir, "fleet.git")
	if out, err := exec.Command("git", "init", "-q", "--bare", "-b", "main", h.repo).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h.write("outside/secret", "not for the fleet\n")
	for _, dir := range []string{"root/etc", "root/srv", "root/var/lib", "root/var/cache", "root/run"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.push(h.tree(entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - {path: /etc/good, contents: {inline: good}}\n")})}))
	return h
}

func (h *hostile) write(name, data string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// object writes a loose object of so many bytes.
func (h *hostile) object(kind string, size int64, data io.Reader) string {
	h.t.Helper()
	temp, err := os.CreateTemp(filepath.Join(h.repo, "objects"), "new")
	if err != nil {
		h.t.Fatal(err)
	}
	sum, packed := sha1.New(), zlib.NewWriter(temp)
	both := io.MultiWriter(sum, packed)
	fmt.Fprintf(both, "%s %d\x00", kind, size)
	if n, err := io.Copy(both, data); err != nil || n != size {
		h.t.Fatal(n, err)
	}
	if err := errors.Join(packed.Close(), temp.Chmod(0o444), temp.Close()); err != nil {
		h.t.Fatal(err)
	}
	id := hex.EncodeToString(sum.Sum(nil))
	place := filepath.Join(h.repo, "objects", id[:2], id[2:])
	if err := errors.Join(os.MkdirAll(filepath.Dir(place), 0o755), os.Rename(temp.Name(), place)); err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *hostile) blob(data string) string {
	h.t.Helper()
	return h.object("blob", int64(len(data)), strings.NewReader(data))
}

type entry struct{ mode, name, id string }

func (h *hostile) tree(entries ...entry) string {
	h.t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		raw, err := hex.DecodeString(e.id)
		if err != nil {
			h.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\x00%s", e.mode, e.name, raw)
	}
	return h.object("tree", int64(b.Len()), &b)
}

// commit makes a commit of a tree on top of the tip.
func (h *hostile) commit(tree, message string) string {
	h.t.Helper()
	parent := ""
	if h.tip != "" {
		parent = "parent " + h.tip + "\n"
	}
	text := fmt.Sprintf("tree %s\n%sauthor A <a@example.com> 1700000000 +0000\ncommitter A <a@example.com> 1700000000 +0000\n\n%s\n", tree, parent, message)
	return h.object("commit", int64(len(text)), strings.NewReader(text))
}

func (h *hostile) push(tree string) { h.t.Helper(); h.set(h.commit(tree, "a push")) }

func (h *hostile) set(commit string) {
	h.t.Helper()
	h.tip = commit
	h.write("fleet.git/refs/heads/main", commit+"\n")
}

// site pushes a repo with a folder that the host config has as a tree.
func (h *hostile) site(folder string) {
	h.t.Helper()
	h.push(h.tree(
		entry{"40000", "files", folder},
		entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\nstorage:\n  trees:\n    - {path: /srv/site, local: files}\n")})},
	))
}

// run runs the program within its time and its memory.
func (h *hostile) run(url string, args ...string) (status int, said string) {
	h.t.Helper()
	peak := filepath.Join(h.dir, "peak")
	ctx, cancel := context.WithTimeout(context.Background(), hostileTime)
	defer cancel()
	// GNU time forks, so that the memory of this test does not count.
	cmd := exec.CommandContext(ctx, "time", append([]string{"-q", "-f", "%M", "-o", peak, h.program, "run", "--url", url, "--host", "web1", "--root", filepath.Join(h.dir, "root"), "--config", filepath.Join(h.dir, "config.toml")}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		h.t.Fatalf("it did not end within %s:\n%s", hostileTime, out)
	case errors.As(err, &exit):
		status = exit.ExitCode()
	case err != nil:
		h.t.Fatal(err)
	}
	data, err := os.ReadFile(peak)
	if err != nil {
		h.t.Fatal(err)
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		h.t.Fatal(err)
	}
	if used > hostileMemory {
		h.t.Errorf("it used %d MiB of memory, %d are allowed", used>>10, hostileMemory>>10)
	}
	counted(h.t, "%d MiB of memory", used>>10)
	for _, word := range []string{"panic", "goroutine ", "runtime error"} {
		if bytes.Contains(out, []byte(word)) {
			h.t.Errorf("it says %q:\n%s", word, out)
		}
	}
	return status, string(out)
}

// paths are all that is neither the fleet repo nor the agent's own.
func (h *hostile) paths() map[string]string {
	h.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, h.dir+"/")
		switch {
		case err != nil:
			return err
		case rel == "fleet.git", rel == "root/var/cache", rel == "root/var/lib", rel == "root/run":
			return fs.SkipDir
		case rel == "peak", d.IsDir() && rel == h.dir:
			return nil
		}
		all[rel], err = describe(path, !d.IsDir())
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// TestHostileRepos: whatever a fleet repo or its server is made of, a run reads and
// writes nothing but what the host config may name, needs little memory, ends, and
// says what is wrong.
func TestHostileRepos(t *testing.T) {
	program := buildProgram(t)
	many := func(h *hostile, n int, name string) string {
		id, b := h.blob("x"), bytes.Buffer{}
		raw, _ := hex.DecodeString(id)
		for i := range n {
			fmt.Fprintf(&b, "100644 "+name+"\x00%s", i, raw)
		}
		return h.object("tree", int64(b.Len()), &b)
	}
	named := func(names ...string) func(h *hostile) {
		return func(h *hostile) {
			var all []entry
			for _, name := range names {
				all = append(all, entry{"100644", name, h.blob(name)})
			}
			h.site(h.tree(all...))
		}
	}
	for name, c := range map[string]struct {
		make   func(h *hostile)
		config string
		status int
		says   string // a regexp
	}{
		"dot dot":               {named(".."), "", 65, `tree [0-9a-f]{40}: it has an entry named "\.\.", which git does not allow`},
		"dot":                   {named("."), "", 65, `it has an entry named "\.", which git does not allow`},
		"a way out":             {named("../../outside/secret"), "", 65, `it has an entry named "\.\./\.\./outside/secret", which git does not allow`},
		"absolute":              {named("/etc/shadow"), "", 65, `it has an entry named "/etc/shadow", which git does not allow`},
		"twice":                 {named("a", "a"), "", 65, `it has two entries named "a"`},
		".git":                  {named(".git"), "", 65, `it has an entry named "\.git", which git does not allow`},
		".GIT":                  {named(".GIT"), "", 65, `it has an entry named "\.GIT", which git does not allow`},
		"escapes in names":      {named("\x1b[31mred"), "", 65, `path "/srv/site/\\x1b\[31mred" has control characters`},
		"lines in names":        {named("a\nreconf-pull: error: b"), "", 65, `path "/srv/site/a\\nreconf-pull: error: b" has control characters`},
		"a tree that is a file": {func(h *hostile) { h.site(h.blob("x")) }, "", 69, `the server said: aborting due to possible repository corruption`},
		"case twins of a host": {func(h *hostile) {
			bu := h.blob("variant: fcos\nversion: 1.6.0\n")
			h.push(h.tree(entry{"40000", "hosts", h.tree(entry{"100644", "WEB1.bu", bu}, entry{"100644", "web1.bu", bu})}))
		}, "", 65, `WEB1\.bu.*web1\.bu|web1\.bu.*WEB1\.bu`},
		"a reference through links": {func(h *hostile) {
			link := func(to string) string { return h.blob(to) }
			h.push(h.tree(
				entry{"120000", "a", link("b")}, entry{"120000", "b", link("c")}, entry{"120000", "c", link("/etc")},
				entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - {path: /srv/passwd, contents: {local: a/passwd}}\n")})},
			))
		}, "", 65, `a/passwd leads through the symlink a`},
		"a link out of a tree": {func(h *hostile) {
			h.push(h.tree(
				entry{"40000", "files", h.tree(entry{"120000", "out", h.blob("../../../outside")})},
				entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\nstorage:\n  trees:\n    - {path: /srv/site, local: files}\n  files:\n    - {path: /srv/site/out/secret, overwrite: true, contents: {inline: mine}}\n")})},
			))
		}, "", 65, `file path includes link in config`},
		"1 GiB blob, 1 MiB packed": {func(h *hostile) {
			h.site(h.tree(entry{"100644", "bomb", h.object("blob", 1<<30, io.LimitReader(zeros{}, 1<<30))}))
		}, "", 69, `a file of the repository, or its history, has 1073741824 bytes, more than 536870912.*the limit of source\.max_object`},
		"a commit of 64 MiB": {func(h *hostile) { h.set(h.commit(h.tree(), strings.Repeat("x", 64<<20))) }, "", 69, `a commit of 671\d{5} bytes: more than 33554432`},
		"a folder of 64 MiB": {func(h *hostile) { h.site(many(h, 1_700_000, "a-file-%08d")) }, "", 69, `a tree of \d+ bytes: more than 33554432`},
		"100,001 files":      {func(h *hostile) { h.site(many(h, 100_001, "a-file-%08d")) }, "", 65, `the trees of one host config have more than 100000 entries.*translate\.max_entries`},
		"nested 1,000 deep": {func(h *hostile) {
			folder := h.tree(entry{"100644", "f", h.blob("x")})
			for range 1000 {
				folder = h.tree(entry{"40000", "d", folder})
			}
			h.site(folder)
		}, "", 65, `nested more than 64 folders deep.*translate\.max_depth`},
		"more than a fetch may bring": {func(h *hostile) {
			h.site(h.tree(entry{"100644", "random", h.object("blob", 2<<20, io.LimitReader(rand.Reader, 2<<20))}))
		}, "max_fetch = '1MiB'", 69, `the server sends more than 1048576 bytes.*the limit of source\.max_fetch`},
		"more objects than a fetch may bring": {func(h *hostile) {
			var all []entry
			for i := range 100 {
				all = append(all, entry{"100644", fmt.Sprintf("f%03d", i), h.blob(strconv.Itoa(i))})
			}
			h.site(h.tree(all...))
		}, "max_objects = 50", 69, `the pack has 10\d objects, more than 50.*the limit of source\.max_objects`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, program)
			h.write("config.toml", "[source]\n"+c.config+"\n")
			url := "git://" + daemon(t, h.dir) + "/fleet.git"
			if status, said := h.run(url); status != 0 {
				t.Fatalf("the good commit: %d\n%s", status, said)
			}
			before := h.paths()
			c.make(h)
			status, said := h.run(url)
			if status != c.status || !regexp.MustCompile("(?s)"+c.says).MatchString(said) {
				t.Errorf("exit status %d, want %d, and want %s in\n%s", status, c.status, c.says, said)
			}
			if strings.ContainsAny(said, "\x1b") {
				t.Errorf("an escape reaches the terminal: %q", said)
			}
			if diff := cmp.Diff(before, h.paths()); diff != "" {
				t.Errorf("the host changed (-before +after):\n%s", diff)
			}
		})
	}
}

// What is merely large is no attack.
func TestLargeRepos(t *testing.T) {
	h := newHostile(t, buildProgram(t))
	h.write("config.toml", "")
	url := "git://" + daemon(t, h.dir) + "/fleet.git"
	var refs strings.Builder
	refs.WriteString("# pack-refs with: peeled fully-peeled sorted \n")
	for i := range 100_000 {
		fmt.Fprintf(&refs, "%s refs/heads/feature-%06d\n", h.tip, i)
	}
	h.write("fleet.git/packed-refs", refs.String())
	var folders []entry
	for d := range 100 {
		var files []entry
		for f := range 1000 {
			files = append(files, entry{"100644", fmt.Sprintf("f%04d", f), h.blob(fmt.Sprint(f % 10))})
		}
		folders = append(folders, entry{"40000", fmt.Sprintf("d%03d", d), h.tree(append(files, entry{"100644", "g", h.blob(fmt.Sprint(d))})...)})
	}
	h.push(h.tree(
		entry{"40000", "files", h.tree(folders...)},
		entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - {path: /etc/many, contents: {local: files/d007/g}}\n")})},
	))
	if status, said := h.run(url); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	if data, err := os.ReadFile(filepath.Join(h.dir, "root/etc/many")); err != nil || string(data) != "7" {
		t.Errorf("/etc/many is %q, %v", data, err)
	}
}

// TestHostileServers: a server that is not who it says, or does not do what servers do.
func TestHostileServers(t *testing.T) {
	h := newHostile(t, buildProgram(t))
	h.write("known_hosts", "")
	h.write("config.toml", "[source]\ntimeout = '2s'\nknown_hosts = '"+filepath.Join(h.dir, "known_hosts")+"'\nssh_key = '"+filepath.Join(h.dir, "key")+"'\n")
	url := "git://" + daemon(t, h.dir) + "/fleet.git"
	if status, said := h.run(url); status != 0 {
		t.Fatalf("the good commit: %d\n%s", status, said)
	}
	before := h.paths()
	refused := func(t *testing.T, url string, says ...string) {
		t.Helper()
		h := &hostile{t: t, program: h.program, dir: h.dir, repo: h.repo}
		status, said := h.run(url)
		if status != 69 {
			t.Errorf("exit status %d\n%s", status, said)
		}
		for _, one := range says {
			if !strings.Contains(said, one) {
				t.Errorf("%q is missing in\n%s", one, said)
			}
		}
	}
	t.Run("expired certificate", func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(nil)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		refused(t, server.URL+"/fleet", "TLS: the certificate has expired or is not valid yet", "check this machine's clock")
	})
	t.Run("wrong host key", func(t *testing.T) {
		signer := func() ssh.Signer {
			_, private, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			block, err := ssh.MarshalPrivateKey(private, "")
			if err != nil {
				t.Fatal(err)
			}
			h.write("key", string(pem.EncodeToMemory(block)))
			s, err := ssh.NewSignerFromSigner(private)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		known, offered := signer(), signer()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				config := &ssh.ServerConfig{NoClientAuth: true}
				config.AddHostKey(offered)
				_, _, _, _ = ssh.NewServerConn(c, config)
			}
		}()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		h.write("known_hosts", "[127.0.0.1]:"+port+" "+string(ssh.MarshalAuthorizedKey(known.PublicKey())))
		refused(t, "ssh://git@"+listener.Addr().String()+"/fleet", "has changed: it offered ssh-ed25519 "+ssh.FingerprintSHA256(offered.PublicKey()),
			"known is ssh-ed25519 "+ssh.FingerprintSHA256(known.PublicKey())+" ("+filepath.Join(h.dir, "known_hosts")+":1)")
		before = h.paths() // with the key
	})
	h.push(h.tree(
		entry{"40000", "files", h.tree(entry{"100644", "random", h.object("blob", 1<<16, io.LimitReader(rand.Reader, 1<<16))})},
		entry{"40000", "hosts", h.tree(entry{"100644", "web1.bu", h.blob("variant: fcos\nversion: 1.6.0\n")})},
	))
	t.Run("truncated pack", func(t *testing.T) {
		refused(t, "git://"+cutOff(t, strings.TrimPrefix(url, "git://"), 9000, false), "the server broke off")
	})
	t.Run("silence", func(t *testing.T) {
		refused(t, "git://"+cutOff(t, strings.TrimPrefix(url, "git://"), 9000, true), "no answer, or not all of it, within 2s", "source.timeout")
	})
	if diff := cmp.Diff(before, h.paths()); diff != "" {
		t.Errorf("the host changed (-before +after):\n%s", diff)
	}
}

// cutOff stands before a server, whose path it keeps, and passes so many bytes of its
// answer on; then it closes the connection, or says no more.
func cutOff(t *testing.T, to string, most int64, silent bool) string {
	t.Helper()
	address, path, _ := strings.Cut(to, "/")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(ended); listener.Close() }))
	go func() {
		for {
			here, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer here.Close()
				there, err := net.Dial("tcp", address)
				if err != nil {
					return
				}
				defer there.Close()
				go func() { _, _ = io.Copy(there, here) }()
				_, _ = io.CopyN(here, there, most)
				if silent {
					<-ended
				}
			}()
		}
	}()
	return listener.Addr().String() + "/" + path
}
