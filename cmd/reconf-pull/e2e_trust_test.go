package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// A fleet repo that says itself who may sign: a push that takes the key of its own
// author away, and would be the last one, undoes itself; somebody else's does not.
// What the lost key signs then changes nothing, also through a force-push to an
// old commit.
func TestKeysAreRotatedByPush(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	keys := t.TempDir()
	signers := func(who ...string) (text string) {
		for _, name := range who {
			key, err := os.ReadFile(filepath.Join(keys, name+".pub"))
			if err != nil {
				t.Fatal(err)
			}
			text += name + "@example.com " + string(key)
		}
		return text
	}
	for _, name := range []string{"alice", "bob"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", filepath.Join(keys, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	push := func(by, version, keys string) {
		t.Helper()
		m.Repo().Git("config", "user.signingKey", by)
		m.Repo().Write("allowed_signers", keys)
		m.push("storage:", "  files:",
			"    - {path: /etc/version, contents: {inline: "+version+"}}",
			"    - {path: /etc/reconf-pull/allowed_signers, overwrite: true, contents: {local: allowed_signers}}")
	}
	alice, bob := filepath.Join(keys, "alice"), filepath.Join(keys, "bob")
	m.Repo().Git("config", "gpg.format", "ssh")
	m.Repo().Git("config", "commit.gpgSign", "true")
	m.write("/etc/reconf-pull/allowed_signers", strings.TrimSpace(signers("alice")))
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[service]", "settle = '500ms'",
		"[verify]", "mode = 'signed'", "allowed_signers = '/etc/reconf-pull/allowed_signers'")

	push(alice, "first", signers("alice", "bob"))
	m.converge()
	push(alice, "second", signers("bob"))
	m.fails("which is being applied, would not be trusted any more: it is signed with the ssh key ED25519 SHA256:", "the change was rolled back")
	m.gives("first", "cat", "/etc/version")
	m.gives(strings.TrimSpace(signers("alice", "bob")), "cat", "/etc/reconf-pull/allowed_signers")

	push(bob, "third", signers("bob"))
	m.converge()
	m.gives("third", "cat", "/etc/version")
	old := m.Repo().Git("rev-parse", "HEAD~2")
	push(alice, "fourth", signers("alice"))
	status, said := m.pull()
	if status != 65 {
		t.Errorf("the run ended with %d", status)
	}
	m.says(said, "is not trusted: it is signed with", "no line of /etc/reconf-pull/allowed_signers has it")
	m.gives("third", "cat", "/etc/version")

	// A replay of what was good once.
	m.Repo().Git("push", "--force", "origin", old+":refs/heads/main")
	m.says(m.Run("reconf-pull", "run", "--in-place"), "the remote is stale")
	m.gives("third", "cat", "/etc/version")
	out, code := m.Try("reconf-pull", "status")
	if code != 0 {
		t.Errorf("status exits with %d", code)
	}
	m.says(out, "signed by bob@example.com", "stale: ")
}
