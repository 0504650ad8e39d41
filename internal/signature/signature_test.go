package signature_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/signature"
)

// The machine's zone in the tests, five hours behind UTC.
const zone = "EST5"

var location = time.FixedZone("EST", -5*60*60)

// bench makes commits with the real git, ssh-keygen and gpg.
type bench struct {
	*testing.T
	dir  string
	tree string
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: t.TempDir()}
	for _, key := range []string{"alice", "bob", "ca", "otherca"} {
		b.run("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", key)
	}
	b.run("", "ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "ecdsa", "-f", "ecdsa")
	b.run("", "ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "rsa", "-f", "rsa")
	b.run("", "git", "init", "-q", "repo")
	b.tree = strings.TrimSpace(string(b.run("", "git", "-C", "repo", "mktree")))
	return b
}

func (b *bench) env() []string {
	return append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "TZ="+zone, "LC_ALL=C",
		"GNUPGHOME="+filepath.Join(b.dir, "gnupg"))
}

func (b *bench) run(stdin, name string, args ...string) []byte {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = b.dir, b.env(), strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) read(name string) string {
	b.Helper()
	data, err := os.ReadFile(b.path(name))
	if err != nil {
		b.Fatal(err)
	}
	return string(data)
}

func (b *bench) write(name, data string) string {
	b.Helper()
	if err := os.WriteFile(b.path(name), []byte(data), 0o600); err != nil {
		b.Fatal(err)
	}
	return b.path(name)
}

// pub is the public key as "type base64".
func (b *bench) pub(key string) string {
	f := strings.Fields(b.read(key + ".pub"))
	return f[0] + " " + f[1]
}

// payload is a commit at a time that nobody signed.
func (b *bench) payload(at time.Time, headers ...string) string {
	extra := ""
	for _, h := range headers {
		extra += h + "\n"
	}
	return fmt.Sprintf("tree %s\nauthor A <a@example.com> %d +0000\ncommitter C <c@example.com> %[2]d +0000\n%s\nmessage\n\nwith a body\n", b.tree, at.Unix(), extra)
}

func (b *bench) ssh(key, payload string) string { return b.sshFor("git", key, payload) }

func (b *bench) sshFor(namespace, key, payload string) string {
	b.Helper()
	return string(b.run(payload, "ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key))
}

// signed puts a signature into a commit where git does.
func signed(payload, sig string) string { return headed(payload, "gpgsig", sig) }

func headed(payload, name, value string) string {
	head, message, _ := strings.Cut(payload, "\n\n")
	return head + "\n" + name + " " + strings.ReplaceAll(strings.TrimSuffix(value, "\n"), "\n", "\n ") + "\n\n" + message
}

// certify makes the key NAME with a certificate by an authority.
func (b *bench) certify(name, authority, principals string, more ...string) {
	b.Helper()
	b.run("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
	args := append([]string{"-q", "-s", authority, "-I", "id-" + name, "-z", "7"}, more...)
	if principals != "" {
		args = append(args, "-n", principals)
	}
	b.run("", "ssh-keygen", append(args, name+".pub")...)
}

type testCase struct {
	name    string
	commit  string
	allowed string // allowed_signers
	revoked string // file, "" for none
	keyring bool   // OpenPGP
	good    bool
	signer  string
	why     string // in our error
	// stricter is why we refuse what git takes; only then may the two differ.
	stricter string
}

var (
	then   = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	before = time.Date(2023, 5, 1, 12, 0, 0, 0, time.UTC)
)

func sshCases(b *bench) []testCase {
	plain := b.payload(then)
	alice, bob := "alice@example.com "+b.pub("alice")+"\n", "bob@example.com "+b.pub("bob")+"\n"
	byAlice := signed(plain, b.ssh("alice", plain))
	sig := b.ssh("alice", plain)
	option := func(o string) string { return "alice@example.com " + o + " " + b.pub("alice") + "\n" }
	b.certify("cert", "ca", "alice@example.com,carol@example.org")
	b.certify("noprincipal", "ca", "")
	b.certify("expired", "ca", "alice@example.com", "-V", "20200101:20210101")
	b.certify("hostcert", "ca", "alice@example.com", "-h")
	b.certify("forced", "ca", "alice@example.com", "-O", "force-command=/bin/true")
	cert := func(name string) string { return signed(plain, b.ssh(name+"-cert.pub", plain)) }
	authority := `*@example.com cert-authority ` + b.pub("ca") + "\n"
	merge := b.payload(then, "mergetag object 0123456789012345678901234567890123456789", " type commit", " tag v1", " tagger T <t@example.com> 1 +0000", " ", " text", " "+strings.ReplaceAll(strings.TrimSpace(sig), "\n", "\n "))
	b.write("revoked-alice", "# lost\n\n"+b.pub("alice")+" a comment\n")
	b.write("revoked-bob", b.pub("bob")+"\n")
	b.write("revoked-ca", b.pub("ca")+"\n")
	b.run("", "ssh-keygen", "-q", "-k", "-f", "alice.krl", "alice.pub")
	b.run("", "ssh-keygen", "-q", "-k", "-f", "bob.krl", "bob.pub")
	b.write("sha256", "sha256: "+b.read("alice.pub"))
	b.run("", "ssh-keygen", "-q", "-k", "-f", "sha256.krl", "sha256")
	b.write("sha1", "sha1: "+b.read("alice.pub"))
	b.run("", "ssh-keygen", "-q", "-k", "-f", "sha1.krl", "sha1")
	for name, spec := range map[string]string{"serial": "serial: 7", "otherserial": "serial: 8", "range": "serial: 1-1000", "bitmap": "serial: 1\nserial: 3\nserial: 5\nserial: 7\nserial: 9\nserial: 11\nserial: 13", "id": "id: id-cert"} {
		b.write(name, spec+"\n")
		b.run("", "ssh-keygen", "-q", "-k", "-s", "ca.pub", "-f", name+".krl", name)
	}
	b.run("", "ssh-keygen", "-q", "-k", "-f", "ca.krl", "ca.pub")
	const signer = "alice@example.com"
	return []testCase{
		{name: "good", commit: byAlice, allowed: alice, good: true, signer: signer},
		{name: "good, second line", commit: byAlice, allowed: bob + alice, good: true, signer: signer},
		{name: "ecdsa", commit: signed(plain, b.ssh("ecdsa", plain)), allowed: "e " + b.pub("ecdsa"), good: true, signer: "e"},
		{name: "rsa", commit: signed(plain, b.ssh("rsa", plain)), allowed: "r " + b.pub("rsa"), good: true, signer: "r"},
		{name: "nobody signed", commit: plain, allowed: alice, why: "nobody signed it"},
		{name: "empty file", commit: byAlice, allowed: "", why: "no line of"},
		{name: "other key", commit: byAlice, allowed: bob, why: "no line of"},
		{name: "comments and CRLF", commit: byAlice, allowed: "# who may\r\n\r\n  \t" + strings.TrimSuffix(alice, "\n") + " Alice's laptop\r\n", good: true, signer: signer},
		{name: "no newline at the end", commit: byAlice, allowed: strings.TrimSuffix(alice, "\n"), good: true, signer: signer},
		{name: "broken line before", commit: byAlice, allowed: "bob@example.com ssh-ed25519 AAAAgarbage\n" + alice, good: true, signer: signer},
		{name: "broken line only", commit: byAlice, allowed: "alice@example.com ssh-ed25519 AAAAgarbage\n", why: "passed over: line 1"},
		{name: "no principals", commit: byAlice, allowed: b.pub("alice") + "\n", why: "no line of"},
		{name: "pattern", commit: byAlice, allowed: "*@example.com " + b.pub("alice"), good: true, signer: "*@example.com"},
		{name: "several principals", commit: byAlice, allowed: "a@x,b@x " + b.pub("alice"), good: true, signer: "a@x"},
		{name: "quoted principals", commit: byAlice, allowed: `"Alice of Example" ` + b.pub("alice"), good: true, signer: "Alice of Example"},
		{name: "negated", commit: byAlice, allowed: "!a@x,*@x " + b.pub("alice"), good: true, signer: "*@x"},
		{name: "only negated", commit: byAlice, allowed: "!a@x " + b.pub("alice"), why: "no line of"},
		{name: "namespace git", commit: byAlice, allowed: option(`namespaces="git"`), good: true, signer: signer},
		{name: "namespace list", commit: byAlice, allowed: option(`namespaces="file,g?t"`), good: true, signer: signer},
		{name: "namespace file", commit: byAlice, allowed: option(`namespaces="file"`), why: "not for git"},
		{name: "namespace without git", commit: byAlice, allowed: option(`namespaces="*,!git"`), why: "not for git"},
		{name: "namespace file, then another line", commit: byAlice, allowed: option(`namespaces="file"`) + alice, good: true, signer: signer},
		{name: "namespace file, then another principal", commit: byAlice, allowed: option(`namespaces="file"`) + "bob@example.com " + b.pub("alice"), why: "not for git"},
		{name: "option in capitals", commit: byAlice, allowed: option(`NameSpaces="git"`), good: true, signer: signer},
		{name: "unknown option", commit: byAlice, allowed: option(`expiry="20300101"`), why: "not known"},
		{name: "option twice", commit: byAlice, allowed: option(`namespaces="git",namespaces="git"`), why: "twice"},
		{name: "option not quoted", commit: byAlice, allowed: option(`namespaces=git`), why: "not quoted"},
		{name: "option without end", commit: byAlice, allowed: option(`namespaces="git`), why: "closing quote"},
		{name: "comma behind options", commit: byAlice, allowed: option(`namespaces="git",`), why: "go on"},
		{name: "valid", commit: byAlice, allowed: option(`valid-after="20240101",valid-before="20250101"`), good: true, signer: signer},
		{name: "valid-before is over", commit: byAlice, allowed: option(`valid-before="20240401"`), why: "valid until"},
		{name: "valid-after is to come", commit: byAlice, allowed: option(`valid-after="20240601"`), why: "valid after"},
		{name: "valid-before, commit from before", commit: func() string { p := b.payload(before); return signed(p, b.ssh("alice", p)) }(), allowed: option(`valid-before="20240401"`), good: true, signer: signer},
		{name: "valid-before at the second", commit: byAlice, allowed: option(`valid-before="20240501120000Z"`), good: true, signer: signer},
		{name: "valid-before a second earlier", commit: byAlice, allowed: option(`valid-before="20240501115959Z"`), why: "valid until"},
		{name: "valid-after in the machine's zone", commit: byAlice, allowed: option(`valid-after="202405010700"`), good: true, signer: signer},
		{name: "valid-after a minute later there", commit: byAlice, allowed: option(`valid-after="202405010701"`), why: "valid after"},
		{name: "time upside down", commit: byAlice, allowed: option(`valid-after="20250101",valid-before="20240101"`), why: "not after"},
		{name: "no time", commit: byAlice, allowed: option(`valid-before="soon"`), why: "no time"},
		{name: "signed for files", commit: signed(plain, b.sshFor("file", "alice", plain)), allowed: alice, why: "not for git"},
		{name: "altered message", commit: strings.Replace(byAlice, "message", "massage", 1), allowed: alice, why: "altered"},
		{name: "altered time", commit: strings.Replace(byAlice, fmt.Sprint(then.Unix()), fmt.Sprint(then.Unix()-1), 2), allowed: alice, why: "altered"},
		{name: "signature of another commit", commit: signed(b.payload(before), sig), allowed: alice, why: "altered"},
		{name: "empty signature", commit: signed(plain, ""), allowed: alice, why: "no known kind"},
		{name: "truncated", commit: signed(plain, sig[:len(sig)/2]), allowed: alice, why: "cut off"},
		{name: "damaged", commit: signed(plain, strings.Replace(sig, "U1NIU0lH", "U1NIU0lI", 1)), allowed: alice, why: "cannot be read"},
		{name: "data behind the signature", commit: signed(plain, sig+"more\n"), allowed: alice, why: "behind its end", stricter: "what is behind might be taken for the signature"},
		{name: "data before the signature", commit: signed(plain, "more\n"+sig), allowed: alice, why: "no known kind"},
		{name: "two signatures", commit: signed(signed(plain, sig), sig), allowed: alice, why: "several gpgsig", stricter: "who signed would be ambiguous"},
		{name: "two signers", commit: signed(signed(plain, sig), b.ssh("bob", plain)), allowed: alice, why: "several gpgsig", stricter: "who signed would be ambiguous"},
		{name: "gpgsig-sha256 besides", commit: headed(byAlice, "gpgsig-sha256", sig), allowed: alice, good: true, signer: signer},
		{name: "gpgsig-sha256 before", commit: signed(headed(plain, "gpgsig-sha256", sig), sig), allowed: alice, good: true, signer: signer},
		{name: "gpgsig-sha256 only", commit: headed(plain, "gpgsig-sha256", sig), allowed: alice, why: "nobody signed"},
		{name: "signature in the message", commit: plain + sig, allowed: alice, why: "nobody signed"},
		{name: "mergetag", commit: signed(merge, b.ssh("alice", merge)), allowed: alice, good: true, signer: signer},
		{name: "only the mergetag is signed", commit: merge, allowed: alice, why: "nobody signed"},
		{name: "another header behind", commit: headed(byAlice, "encoding", "latin1"), allowed: alice, why: "altered"},
		{name: "revoked", commit: byAlice, allowed: alice, revoked: "revoked-alice", why: "revokes in line 3"},
		{name: "another is revoked", commit: byAlice, allowed: alice, revoked: "revoked-bob", good: true, signer: signer},
		{name: "revoked by a list", commit: byAlice, allowed: alice, revoked: "alice.krl", why: "key revocation list"},
		{name: "another is revoked by a list", commit: byAlice, allowed: alice, revoked: "bob.krl", good: true, signer: signer},
		{name: "revoked by its SHA-256", commit: byAlice, allowed: alice, revoked: "sha256.krl", why: "key revocation list"},
		{name: "revoked by its SHA-1", commit: byAlice, allowed: alice, revoked: "sha1.krl", why: "key revocation list"},
		{name: "certificate", commit: cert("cert"), allowed: authority, good: true, signer: signer},
		{name: "certificate of another authority", commit: cert("cert"), allowed: "*@example.com cert-authority " + b.pub("otherca"), why: "no line of"},
		{name: "authority without the option", commit: cert("cert"), allowed: "*@example.com " + b.pub("ca"), why: "no line of"},
		{name: "certificate, its key is listed", commit: cert("cert"), allowed: "alice@example.com " + b.pub("cert"), why: "no line of"},
		{name: "certificate for other principals", commit: cert("cert"), allowed: "*@elsewhere cert-authority " + b.pub("ca"), why: "for none of"},
		{name: "certificate for nobody", commit: cert("noprincipal"), allowed: authority, why: "no principal"},
		{name: "certificate that had expired", commit: cert("expired"), allowed: authority, why: "expired"},
		{name: "certificate of a host", commit: cert("hostcert"), allowed: authority, why: "of a user"},
		{name: "certificate with a forced command", commit: cert("forced"), allowed: authority, good: true, signer: signer},
		{name: "certificate, namespace", commit: cert("cert"), allowed: `*@example.com cert-authority,namespaces="git" ` + b.pub("ca"), good: true, signer: signer},
		{name: "certificate, another namespace", commit: cert("cert"), allowed: `*@example.com cert-authority,namespaces="file" ` + b.pub("ca"), why: "not for git"},
		{name: "plain key of an authority's line", commit: signed(plain, b.ssh("ca", plain)), allowed: authority, why: "no line of"},
		{name: "authority is revoked", commit: cert("cert"), allowed: authority, revoked: "revoked-ca", why: "with the authority"},
		{name: "authority is revoked by a list", commit: cert("cert"), allowed: authority, revoked: "ca.krl", why: "key revocation list"},
		{name: "serial is revoked", commit: cert("cert"), allowed: authority, revoked: "serial.krl", why: "key revocation list"},
		{name: "another serial is revoked", commit: cert("cert"), allowed: authority, revoked: "otherserial.krl", good: true, signer: signer},
		{name: "serials are revoked", commit: cert("cert"), allowed: authority, revoked: "range.krl", why: "key revocation list"},
		{name: "serials are revoked as bits", commit: cert("cert"), allowed: authority, revoked: "bitmap.krl", why: "key revocation list"},
		{name: "id is revoked", commit: cert("cert"), allowed: authority, revoked: "id.krl", why: "key revocation list"},
	}
}

func pgpCases(b *bench) []testCase {
	b.Helper()
	if err := os.Mkdir(b.path("gnupg"), 0o700); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd := exec.Command("gpgconf", "--kill", "all")
		cmd.Env = b.env()
		_ = cmd.Run()
	})
	// All this was yesterday, so that what was to last for a second is over.
	now := time.Now().Add(-24 * time.Hour)
	faked := "--faked-system-time=" + fmt.Sprint(now.Unix())
	gpg := func(stdin string, args ...string) string {
		return string(b.run(stdin, "gpg", append([]string{faked, "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...))
	}
	plain := b.payload(now)
	sign := func(who, payload string, more ...string) string {
		return gpg(payload, append(more, "--armor", "--detach-sign", "-u", who)...)
	}
	fingerprint := func(who string) string {
		for line := range strings.SplitSeq(gpg("", "--with-colons", "--list-keys", who), "\n") {
			if f := strings.Split(line, ":"); f[0] == "fpr" {
				return f[9]
			}
		}
		b.Fatalf("%s has no fingerprint", who)
		return ""
	}
	for _, who := range []string{"plain", "subkey", "oldkey", "revokedkey", "revokedsub", "stranger"} {
		gpg("", "--quick-gen-key", who+" <"+who+"@example.com>", "ed25519", "sign,cert", "never")
	}
	gpg("", "--quick-gen-key", "rsa <rsa@example.com>", "rsa2048", "sign,cert", "never")
	for _, who := range []string{"subkey", "revokedsub"} {
		gpg("", "--quick-add-key", fingerprint(who), "ed25519", "sign", "never")
	}
	sigs := map[string]string{}
	for _, who := range []string{"plain", "subkey", "oldkey", "revokedkey", "revokedsub", "rsa", "stranger"} {
		sigs[who] = sign(who, plain)
	}
	sha1 := sign("rsa", plain, "--digest-algo", "SHA1")
	text := sign("plain", plain, "--textmode")
	short := sign("plain", plain, "--default-sig-expire", "seconds=1")
	armored := gpg(plain, "--armor", "--clearsign", "-u", "plain")
	// Both are so now, and were not when the commits were signed.
	gpg("", "--quick-set-expire", fingerprint("oldkey"), "seconds=1")
	revocation := b.read("gnupg/openpgp-revocs.d/" + fingerprint("revokedkey") + ".rev")
	gpg(strings.Replace(revocation, ":-----BEGIN", "-----BEGIN", 1), "--import")
	b.run("key 1\nrevkey\ny\n0\n\ny\nsave\n", "gpg", faked, "--command-fd", "0", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--edit-key", fingerprint("revokedsub"))
	gpg("", "--output", "keys.gpg", "--export", "plain", "subkey", "oldkey", "revokedkey", "revokedsub", "rsa")
	gpg("", "--armor", "--output", "keys.asc", "--export", "plain", "subkey", "oldkey", "revokedkey", "revokedsub", "rsa")
	gpg("", "--delete-secret-and-public-key", "--yes", fingerprint("stranger"))
	two := strings.TrimSuffix(sigs["plain"], "\n") + "\n" + sigs["subkey"]
	return []testCase{
		{name: "good", commit: signed(plain, sigs["plain"]), good: true, signer: "plain <plain@example.com>"},
		{name: "rsa", commit: signed(plain, sigs["rsa"]), good: true, signer: "rsa <rsa@example.com>"},
		{name: "subkey", commit: signed(plain, sigs["subkey"]), good: true, signer: "subkey <subkey@example.com>"},
		{name: "text mode", commit: signed(plain, text), good: true, signer: "plain <plain@example.com>"},
		{name: "key is not in the ring", commit: signed(plain, sigs["stranger"]), why: "does not have"},
		{name: "key has expired", commit: signed(plain, sigs["oldkey"]), why: "has expired by"},
		{name: "key is revoked", commit: signed(plain, sigs["revokedkey"]), why: "revoked"},
		{name: "subkey is revoked", commit: signed(plain, sigs["revokedsub"]), why: "revoked"},
		{name: "signature has expired", commit: signed(plain, short), why: "has expired"},
		{name: "SHA-1", commit: signed(plain, sha1), why: "SHA-1", stricter: "SHA-1 can be forged"},
		{name: "altered", commit: strings.Replace(signed(plain, sigs["plain"]), "message", "massage", 1), why: "altered"},
		{name: "truncated", commit: signed(plain, sigs["plain"][:len(sigs["plain"])/2]), why: "cut off"},
		{name: "data behind", commit: signed(plain, sigs["plain"]+"more\n"), why: "behind its end", stricter: "what is behind might be taken for the signature"},
		{name: "two signatures in one header", commit: signed(plain, two), why: "behind its end"},
		{name: "a signed message instead", commit: signed(plain, armored), why: "no known kind"},
		{name: "nobody", commit: plain, why: "nobody signed"},
	}
}

// TestVerdictsAreThoseOfGit compares every verdict with that of git
// verify-commit with the same files.
func TestVerdictsAreThoseOfGit(t *testing.T) {
	b := newBench(t)
	cases := sshCases(b)
	n := len(cases)
	for _, c := range pgpCases(b) {
		c.name, c.keyring = "OpenPGP: "+c.name, true
		cases = append(cases, c)
	}
	t.Logf("%d cases of ssh and %d of OpenPGP", n, len(cases)-n)
	allowed := b.path("allowed_signers")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{T: t, dir: b.dir, tree: b.tree}
			b.write("allowed_signers", c.allowed)
			id := strings.TrimSpace(string(b.run(c.commit, "git", "-C", "repo", "hash-object", "-t", "commit", "-w", "--stdin", "--literally")))
			args := []string{"-C", "repo", "-c", "gpg.ssh.allowedSignersFile=" + allowed}
			o := signature.Options{Location: location, Now: time.Now, AllowedSigners: &signature.File{Path: allowed, Data: []byte(c.allowed)}}
			if c.keyring {
				o.AllowedSigners, o.Keyring = nil, &signature.File{Path: "keys.gpg", Data: []byte(b.read("keys.gpg"))}
			}
			if c.revoked != "" {
				args = append(args, "-c", "gpg.ssh.revocationFile="+b.path(c.revoked))
				o.RevokedSigners = &signature.File{Path: c.revoked, Data: []byte(b.read(c.revoked))}
			}
			git := exec.Command("git", append(args, "verify-commit", id)...)
			git.Dir, git.Env = b.dir, b.env()
			said, err := git.CombinedOutput()
			v, wrong := signature.New(o)
			if wrong != nil {
				t.Fatal(wrong)
			}
			signer, refused := v.Verify([]byte(c.commit))
			if (refused == nil) != c.good {
				t.Errorf("verdict: %v %v, want good %t", signer, refused, c.good)
			}
			if (err == nil) != (refused == nil) && (c.stricter == "" || refused == nil) {
				t.Errorf("git says %v, we say %v\n%s", err, refused, said)
			}
			if c.stricter != "" && err != nil {
				t.Errorf("git refuses it too: no exception is needed\n%s", said)
			}
			if refused == nil && signer.Name != c.signer {
				t.Errorf("signed by %q, want %q", signer.Name, c.signer)
			}
			if refused != nil && !strings.Contains(refused.Error(), c.why) {
				t.Errorf("the reason is %q, want %q in it", refused, c.why)
			}
			t.Logf("git: %v; we: %v %v", err, signer, refused)
		})
	}
	t.Run("armored keyring", func(t *testing.T) {
		data := []byte(b.read("keys.asc"))
		for _, data := range [][]byte{data, append([]byte("# ours\n\n"), append(data, data...)...)} {
			v, err := signature.New(signature.Options{Keyring: &signature.File{Path: "keys.asc", Data: data}, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			if signer, err := v.Verify([]byte(cases[n].commit)); err != nil || signer.Name != cases[n].signer {
				t.Errorf("%v, %v", signer, err)
			}
		}
	})
	for name, data := range map[string]string{"garbage": "garbage", "keybox": b.read("gnupg/pubring.kbx"), "cut off": b.read("keys.asc")[:200]} {
		if _, err := signature.New(signature.Options{Keyring: &signature.File{Path: "keys", Data: []byte(data)}}); err == nil || !strings.HasPrefix(err.Error(), "keys: ") {
			t.Errorf("keyring that is %s: %v", name, err)
		}
	}
	krl := b.read("serial.krl")
	for name, data := range map[string]string{"garbage": "garbage\n", "cut off": krl[:len(krl)-3], "of the future": krl[:11] + "\x02" + krl[12:], "unknown section": krl + "\x09\x00\x00\x00\x00"} {
		_, err := signature.New(signature.Options{AllowedSigners: &signature.File{}, RevokedSigners: &signature.File{Path: "revoked", Data: []byte(data)}})
		if err == nil || !strings.HasPrefix(err.Error(), "revoked:") {
			t.Errorf("revocations that are %s: %v", name, err)
		}
	}
}

// TestMalformedCommits are commits in which git, or whoever reads them after
// us, might see another tree than the one that was signed.
func TestMalformedCommits(t *testing.T) {
	const (
		tree   = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n"
		parent = "parent 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n"
		author = "author A <a> 1 +0000\n"
		by     = "committer C <c> 1 +0000\n"
	)
	for name, raw := range map[string]string{
		"empty": "", "only a message": "\nmessage", "no tree": author + by + "\n", "no author": tree + by + "\n", "no committer": tree + author + "\n",
		"two trees": tree + tree + author + by + "\n", "tree at the end": tree + author + by + tree + "\n", "parent at the end": tree + author + by + parent + "\n",
		"another committer": tree + author + by + "committer D <d> 2 +0000\n\n", "short id": "tree 4b82\n" + author + by + "\n", "capitals": strings.ToUpper(tree) + author + by + "\n",
		"no end": tree + author + "committer C <c> 1 +0000", "NUL": tree + author + "committer C\x00 <c> 1 +0000\n\n", "continued tree": tree + " more\n" + author + by + "\n",
		"no time": tree + author + "committer C <c>\n\n", "negative time": tree + author + "committer C <c> -1 +0000\n\n", "huge time": tree + author + "committer C <c> 99999999999999999999 +0000\n\n",
		"long headers": tree + author + by + strings.Repeat("x y\n", 1<<20) + "\n",
	} {
		if c, err := signature.ParseCommit([]byte(raw)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	c, err := signature.ParseCommit([]byte(tree + parent + parent + author + by + "x-y\ngpgsig a\n b\n\nmessage\ngpgsig none\n"))
	if err != nil || string(c.Signature) != "a\nb\n" || string(c.Payload) != tree+parent+parent+author+by+"x-y\n\nmessage\ngpgsig none\n" {
		t.Errorf("%q, %v", c, err)
	}
}

func FuzzCommit(f *testing.F) {
	f.Add([]byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a> 1 +0000\ncommitter C <c> 1 +0000\ngpgsig -----BEGIN SSH SIGNATURE-----\n U1NIU0lH\n -----END SSH SIGNATURE-----\n\nmessage\n"))
	f.Add([]byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a> 1 +0000\ncommitter C <c> 1 +0000\ngpgsig-sha256 x\n y\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n =aaaa\n -----END PGP SIGNATURE-----\n\nmessage\n"))
	pgp, err := signature.New(signature.Options{AllowedSigners: &signature.File{}, Keyring: &signature.File{Data: []byte{}}, Now: time.Now})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if signer, err := pgp.Verify(raw); err == nil {
			t.Fatalf("%q is signed by %v, and nobody may", raw, signer)
		}
		c, err := signature.ParseCommit(raw)
		if err != nil {
			return
		}
		tree, _, _ := bytes.Cut(raw, []byte("\n"))
		if !bytes.HasPrefix(c.Payload, tree) {
			t.Fatalf("the payload %q has another tree than %q", c.Payload, raw)
		}
		again, err := signature.ParseCommit(c.Payload)
		if err != nil || !bytes.Equal(again.Payload, c.Payload) || again.Signature != nil {
			t.Fatalf("the payload of %q is no commit without a signature: %v", raw, err)
		}
	})
}

func FuzzAllowedSigners(f *testing.F) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3HQq3jXFwQ4dkqyHnFJ5EA5n3dPJC0dmX1hRRIzC8l"
	for _, seed := range []string{key, "a " + key, `a,*b namespaces="git",valid-before="20240101Z" ` + key + " comment\r\n# x\n", `"a b" cert-authority,valid-after="202401011200" ` + key, "a \"", "a b=\"\\\"\",",
		"SSHKRL\n\x00\x00\x00\x00\x01" + strings.Repeat("\x00", 32) + "\x01\x00\x00\x00\x15\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x07"} {
		f.Add([]byte(seed))
	}
	commit := []byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a> 1 +0000\ncommitter C <c> 1 +0000\n\nmessage\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := signature.New(signature.Options{AllowedSigners: &signature.File{Path: "x", Data: data}, Location: location})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(commit); err == nil {
			t.Fatal("a commit that nobody signed is trusted")
		}
		// The same bytes are also looked at as the two other files that are foreign.
		_, _ = signature.New(signature.Options{AllowedSigners: &signature.File{}, RevokedSigners: &signature.File{Path: "x", Data: data}})
		_, _ = signature.New(signature.Options{Keyring: &signature.File{Path: "x", Data: data}})
	})
}
