package secret_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

const plain = "hunter2 and what follows it\n"

// key makes a file of private keys and says what its public keys are.
func key(t *testing.T, kind string) (file, public string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "key")
	var private string
	switch kind {
	case "X25519":
		k, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		private, public = k.String(), k.Recipient().String()
	case "hybrid":
		k, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		private, public = k.String(), k.Recipient().String()
	default:
		if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "root@web1", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		data, err := os.ReadFile(file + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		return file, string(data)
	}
	if err := os.WriteFile(file, []byte("# made by a test\n\n"+private+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, public
}

func recipients(t *testing.T, keys ...string) []secret.Recipient {
	t.Helper()
	r, err := secret.ParseRecipients([]byte(strings.Join(keys, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func encrypt(t *testing.T, text string, armored bool, keys ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := secret.Encrypt(&out, strings.NewReader(text), recipients(t, keys...), armored); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decrypt(k *secret.Keys, r io.Reader) (string, error) {
	opened, err := k.Open(r)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(opened)
	return string(data), err
}

// Every kind of key decrypts what was encrypted to it, by us and by age, and what the
// host encrypts to itself.
func TestKindsOfKeys(t *testing.T) {
	long := strings.Repeat(plain, 10_000) // several chunks of age's
	for _, kind := range []string{"X25519", "hybrid", "ed25519", "rsa"} {
		file, public := key(t, kind)
		_, other := key(t, "X25519")
		keys := secret.New(nil, []string{file})
		for _, text := range []string{plain, "", long} {
			for _, armored := range []bool{false, true} {
				if got, err := decrypt(keys, bytes.NewReader(encrypt(t, text, armored, public))); got != text || err != nil {
					t.Errorf("%s, armored %v: %d bytes of %d, %v", kind, armored, len(got), len(text), err)
				}
			}
			var own bytes.Buffer
			if err := keys.Encrypt(&own, strings.NewReader(text)); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			if got, err := decrypt(keys, &own); got != text || err != nil {
				t.Errorf("%s, its own: %d bytes, %v", kind, len(got), err)
			}
		}
		if kind == "hybrid" { // not known to older programs, and not mixed with other kinds
			var out bytes.Buffer
			if err := secret.Encrypt(&out, strings.NewReader(plain), recipients(t, public, other), false); err == nil || !strings.Contains(err.Error(), "post-quantum") {
				t.Errorf("mixed kinds: %v", err)
			}
			continue
		}
		pub := file + ".recipient"
		if err := os.WriteFile(pub, []byte(public+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("age", "-R", pub)
		cmd.Stdin = strings.NewReader(plain)
		theirs, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decrypt(keys, bytes.NewReader(theirs)); got != plain || err != nil {
			t.Errorf("%s: what age encrypted: %q, %v", kind, got, err)
		}
		for _, armored := range []bool{false, true} {
			cmd = exec.Command("age", "-d", "-i", file)
			cmd.Stdin = bytes.NewReader(encrypt(t, plain, armored, other, public))
			if got, err := cmd.Output(); string(got) != plain || err != nil {
				t.Errorf("%s: what age decrypts: %q, %v", kind, got, err)
			}
		}
	}
}

// What cannot be decrypted says why, and quotes nothing.
func TestCannotBeOpened(t *testing.T) {
	file, public := key(t, "ed25519")
	_, stranger := key(t, "X25519")
	keys := secret.New(nil, []string{file})
	whole := encrypt(t, plain, false, public)
	armored := encrypt(t, plain, true, public)
	end := bytes.Index(whole, []byte("\n---")) + 1
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	mac := bytes.Clone(whole)
	mac[end+5] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"plain text":           {[]byte(plain), "it is not encrypted, although"},
		"nothing":              {nil, "it is not encrypted, although"},
		"one byte":             {[]byte("a"), "it is not encrypted, although"},
		"the first line":       {[]byte("age-encryption.org/v1\n"), "it is damaged"},
		"another version":      {[]byte("age-encryption.org/v2\nhunter2\n"), "it is not encrypted, although"},
		"nonsense in it":       {append([]byte("age-encryption.org/v1\n"), plain...), "it is damaged"},
		"cut in the header":    {whole[:40], "it is damaged"},
		"cut after the header": {whole[:end+50], "it is damaged"},
		"cut at the end":       {whole[:len(whole)-1], "it is damaged"},
		"changed":              {flipped, "it is damaged"},
		"a changed header":     {mac, "it is damaged"},
		"more behind it":       {append(bytes.Clone(whole), plain...), "it is damaged"},
		"armor cut":            {armored[:len(armored)-20], "it is damaged"},
		"more behind armor":    {append(bytes.Clone(armored), plain...), "it is damaged"},
		"armor of nothing":     {[]byte("-----BEGIN AGE ENCRYPTED FILE-----\n" + plain), "it is damaged"},
		"for somebody else":    {encrypt(t, plain, false, stranger, stranger), "it is not encrypted to this host: its recipients are X25519, and none is that of " + file},
	} {
		got, err := decrypt(keys, bytes.NewReader(c.data))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
			continue
		}
		var hinted interface{ Hint() string }
		if !errors.As(err, &hinted) || hinted.Hint() == "" {
			t.Errorf("%s: no hint", name)
		} else if text := err.Error() + hinted.Hint(); strings.Contains(text, "hunter2") {
			t.Errorf("%s: shown: %s", name, text)
		}
	}
	// A disk that breaks is no damage of the file.
	broken := errors.New("the disk is broken")
	for n := range len(whole) {
		_, err := decrypt(keys, io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Fatalf("broken after %d bytes: %v", n, err)
		}
	}
	if _, err := decrypt(nil, bytes.NewReader(whole)); err == nil || !strings.Contains(err.Error(), "only the host itself decrypts") {
		t.Errorf("no keys at all: %v", err)
	}
}

// Keys stay what they were when the first was needed.
func TestKeysAreKept(t *testing.T) {
	file, public := key(t, "X25519")
	_, next := key(t, "X25519")
	keys := secret.New(nil, []string{file})
	if got, err := decrypt(keys, bytes.NewReader(encrypt(t, plain, false, public))); got != plain || err != nil {
		t.Fatal(got, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt(keys, bytes.NewReader(encrypt(t, plain, false, public))); got != plain || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := decrypt(secret.New(nil, []string{file}), bytes.NewReader(encrypt(t, plain, false, next))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another process: %v", err)
	}
}

// Without any file the host keys of sshd count, those of the root that stands for the
// host.
func TestHostKeys(t *testing.T) {
	root := t.TempDir()
	h := host.New(root)
	var missing *secret.KeyError
	file, public := key(t, "rsa")
	data := encrypt(t, plain, false, public)
	if _, err := decrypt(secret.New(h, nil), bytes.NewReader(data)); !errors.As(err, &missing) || missing.Hint() == "" {
		t.Errorf("none: %v", err)
	}
	private, err := os.ReadFile(file)
	if err = errors.Join(err, os.MkdirAll(filepath.Join(root, "etc/ssh"), 0o755), os.WriteFile(filepath.Join(root, "etc/ssh/ssh_host_rsa_key"), private, 0o640)); err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt(secret.New(h, nil), bytes.NewReader(data)); got != plain || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A stored file is read back; what cannot be found does not say what its name is,
// which is a hash.
func TestStored(t *testing.T) {
	file, _ := key(t, "X25519")
	keys := secret.New(nil, []string{file})
	path := filepath.Join(t.TempDir(), "0123456789abcdef.age")
	_, err := keys.OpenStored(path)
	if !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "0123456789abcdef") {
		t.Errorf("%v", err)
	}
	var out bytes.Buffer
	if err := errors.Join(keys.Encrypt(&out, strings.NewReader(plain)), os.WriteFile(path, out.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	r, err := keys.OpenStored(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); string(data) != plain || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	rename := os.Rename(path+".absent", path)
	if err := secret.WithoutPath(fmt.Errorf("storing: %w", rename)); !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "0123456789abcdef") {
		t.Errorf("%v", err)
	}
	if secret.WithoutPath(nil) != nil {
		t.Error("no error became one")
	}
}

// What can be seen of a file without a private key.
func TestHeader(t *testing.T) {
	_, ed := key(t, "ed25519")
	_, rsa := key(t, "rsa")
	_, otherEd := key(t, "ed25519")
	_, x := key(t, "X25519")
	_, otherX := key(t, "X25519")
	_, pq := key(t, "hybrid")
	for _, c := range []struct {
		name string
		to   []string
		is   string
		want bool
	}{
		{"its ed25519", []string{ed, rsa}, ed, true},
		{"its RSA", []string{ed, rsa}, rsa, true},
		{"another ed25519", []string{ed, rsa}, otherEd, false},
		{"one of two", []string{ed}, otherEd + "\n" + ed, true},
		{"nobody can tell", []string{x}, otherX, true},
		{"another kind", []string{x}, ed, false},
		{"ssh alone", []string{ed}, x, false},
		{"hybrid", []string{pq}, pq, true},
		{"classic", []string{x}, pq, false},
	} {
		for _, armored := range []bool{false, true} {
			h, err := secret.ReadHeader(bytes.NewReader(encrypt(t, plain, armored, c.to...)))
			if err != nil || len(h.Stanzas) != len(c.to) {
				t.Errorf("%s: %v, %v", c.name, h, err)
			}
			if got := h.MayBeFor(recipients(t, c.is)); got != c.want {
				t.Errorf("%s: %v of %v", c.name, got, h.Kinds())
			}
		}
	}
}

func TestParseRecipients(t *testing.T) {
	_, ed := key(t, "ed25519")
	_, x := key(t, "X25519")
	_, ecdsa := key(t, "ecdsa")
	for name, c := range map[string]struct {
		text string
		n    int
		line int // of what is wrong
		want string
	}{
		"two, with comments":     {"# web1\n\n" + ed + x + "\r\n", 2, 0, ""},
		"as ssh-keyscan says it": {"web1 " + ed, 1, 0, ""},
		"one kind that is unfit": {ecdsa + ed, 1, 0, ""},
		"only that":              {"\n" + ecdsa, 0, 2, "age cannot encrypt to a key of the kind ecdsa-sha2-nistp256"},
		"none":                   {"# nothing\n", 0, 1, "there is no public key in it"},
		"nonsense":               {ed + "nonsense\n", 0, 2, "it is neither a public key of age nor one of ssh"},
		"a private key":          {"AGE-SECRET-KEY-1QQQ", 0, 1, "it is a private key"},
		"a cut key":              {x[:30], 0, 1, "it is no public key of age"},
	} {
		keys, err := secret.ParseRecipients([]byte(c.text))
		var wrong *secret.RecipientError
		if errors.As(err, &wrong) {
			if c.want == "" || wrong.Line != c.line || !strings.HasPrefix(wrong.Reason, c.want) {
				t.Errorf("%s: line %d: %v", name, wrong.Line, err)
			}
		} else if err != nil || c.want != "" || len(keys) != c.n {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		}
	}
}

// FuzzReadHeader: no bytes are read as a header without an end, and none are shown.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("age-encryption.org/v1\n-> X25519 abc\nAAAA\n--- AAAA\n"))
	f.Add([]byte("-----BEGIN AGE ENCRYPTED FILE-----\nYWdlLWVuY3J5cHRpb24ub3JnL3YxCg==\n-----END AGE ENCRYPTED FILE-----\n"))
	f.Add([]byte("age-encryption.org/v1\n-> scrypt c2FsdA 18\nAAAA\n--- AAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := secret.ReadHeader(bytes.NewReader(data))
		if err == nil && (len(h.Stanzas) == 0 || !secret.Is(data)) {
			t.Errorf("%v of %q", h, data)
		}
		var hinted interface{ Hint() string }
		if err != nil && !errors.As(err, &hinted) {
			t.Errorf("%v", err)
		}
	})
}

// FuzzParseRecipients: a file of public keys gives keys or the line that is none.
func FuzzParseRecipients(f *testing.F) {
	f.Add([]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0Zx1 root@web1\n"))
	f.Add([]byte("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := secret.ParseRecipients(data)
		var wrong *secret.RecipientError
		if (err == nil) != (len(keys) > 0) || err != nil && (!errors.As(err, &wrong) || wrong.Line < 1) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
	})
}
