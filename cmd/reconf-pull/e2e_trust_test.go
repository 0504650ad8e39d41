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

// A signed push converges. One that nobody signed, a rewritten history and a replay of an
// old commit change nothing, whoever signed them, and status says which it was and what to
// do.
func TestPushesThatAreNotTrusted(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	key := filepath.Join(t.TempDir(), "alice")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	repo := m.Repo()
	repo.Git("config", "gpg.format", "ssh")
	repo.Git("config", "user.signingKey", key)
	repo.Git("config", "commit.gpgSign", "true")
	m.write("/etc/reconf-pull/allowed_signers", "alice@example.com "+strings.TrimSpace(string(public)))
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[service]", "settle = '500ms'",
		"[verify]", "mode = 'signed'", "allowed_signers = '/etc/reconf-pull/allowed_signers'")
	push := func(version string) {
		t.Helper()
		m.push("storage:", "  files:", "    - {path: /etc/version, contents: {inline: "+version+"}}")
	}
	tip := func() string { return repo.Git("rev-parse", "HEAD")[:12] }
	push("first")
	m.converge()
	push("second")
	m.converge()
	m.gives("second", "cat", "/etc/version")
	good := tip()

	stays := func(pull, wantStatus int, says ...string) {
		t.Helper()
		if status, said := m.pull(); status != pull {
			t.Errorf("the run ended with %d:\n%s", status, said)
		}
		m.gives("second", "cat", "/etc/version")
		out, status := m.Try("reconf-pull", "status")
		if status != wantStatus {
			t.Errorf("status ends with %d:\n%s", status, out)
		}
		m.says(out, append(says, good+", signed by alice@example.com")...)
	}
	repo.Git("config", "commit.gpgSign", "false")
	push("third")
	stays(65, 1, "refused:  "+tip()+" (main)", "nobody signed it", "Push a commit that somebody trusted signed (git commit -S)")

	repo.Git("config", "commit.gpgSign", "true")
	repo.Git("reset", "-q", "--hard", "HEAD~2")
	repo.Write("note", "another way")
	repo.Git("add", "-A")
	repo.Git("commit", "-qm", "rewritten")
	repo.Git("push", "-q", "--force", "origin", "HEAD")
	stays(65, 1, "refused:  "+tip()+" (main)", "the history of main was rewritten", "git merge -s ours", "reconf-pull accept-history")

	repo.Git("push", "-q", "--force", "origin", "HEAD~1:refs/heads/main")
	stays(0, 0, "stale:    the remote is at "+repo.Git("rev-parse", "HEAD~1")[:12])

	repo.Git("reset", "-q", "--hard", good)
	push("fourth")
	m.converge()
	m.gives("fourth", "cat", "/etc/version")
}
