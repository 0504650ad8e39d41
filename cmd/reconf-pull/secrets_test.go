package main_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// encrypted makes an age file for the ssh key, as an author with age does.
func encrypted(t *testing.T, key, plain string) string {
	t.Helper()
	cmd := exec.Command("age", "-R", key+".pub")
	cmd.Stdin = strings.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func sshKey(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The secrets of the trials: what is looked for is in both of them.
const (
	mark     = "hunter2"
	firstly  = "hunter2 was the first secret\n"
	secondly = "hunter2 is the second secret\n"
)

// Host configs with secrets that come, change and go.
const (
	secretsBefore = `variant: fcos
version: 1.6.0
storage:
  files:
    - {path: /etc/app/db, contents: {local: a.age}}
    - {path: /etc/app/goes, contents: {local: a.age}}
    - {path: /etc/app/both, contents: {inline: "open "}, append: [{local: a.age}]}
`
	secretsAfter = `variant: fcos
version: 1.6.0
storage:
  files:
    - {path: /etc/app/db, mode: 0640, contents: {local: b.age}}
    - {path: /etc/app/comes, contents: {local: b.age}}
    - {path: /etc/app/both, contents: {inline: "open "}, append: [{local: b.age}]}
    - {path: /etc/foreign, contents: {local: b.age}}
`
)

// newSecrets is a trial, and a host that has applied the first of two configs.
func newSecrets(t *testing.T) (tr *trial, before string) {
	t.Helper()
	tr = newTrial(t)
	key := filepath.Join(t.TempDir(), "key")
	sshKey(t, key)
	before = tr.place()
	data, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	ssh := filepath.Join(before, "root/etc/ssh")
	if err := errors.Join(os.Mkdir(ssh, 0o755), os.WriteFile(filepath.Join(ssh, "ssh_host_ed25519_key"), data, 0o600),
		os.WriteFile(filepath.Join(before, "root/etc/foreign"), []byte("hunter2 in plain text\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, plain := range map[string]string{"a.age": firstly, "b.age": secondly} {
		if err := os.WriteFile(filepath.Join(tr.repo, name), []byte(encrypted(t, key, plain)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr.push(secretsBefore)
	tr.run(before)
	tr.push(secretsAfter)
	return tr, before
}

// exposed names files of a host that hold a secret in plain text and lie neither at
// nor beside its target.
func (tr *trial) exposed(dir string) (names []string) {
	tr.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if name == "root/etc/foreign" || strings.HasPrefix(name, "root/etc/app/") || strings.HasPrefix(name, "root/etc/.foreign.reconf-") {
			return nil
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(mark)) {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		tr.t.Fatal(err)
	}
	return names
}

// hidden fails when a secret lies where it must not, or was said: by its bytes or by
// its hash.
func (tr *trial) hidden(dir, point, said string) {
	tr.t.Helper()
	if names := tr.exposed(dir); names != nil {
		tr.t.Errorf("%s: in plain text: %v", point, names)
	}
	shown := []string{mark}
	for _, plain := range []string{firstly, secondly, "open " + firstly, "open " + secondly} {
		shown = append(shown, fmt.Sprintf("%x", sha256.Sum256([]byte(plain)))[:12])
	}
	for _, text := range shown {
		if strings.Contains(said, text) {
			tr.t.Errorf("%s: the run shows %s:\n%s", point, text, said)
		}
	}
}

// TestSecretsCrash ends an update of secrets before each of its durable operations.
// The next run decrypts again from what was pinned; without the key it says so and
// the host is as it was, or as it is to be, once the key is back. At no point does
// a secret lie in the state.
func TestSecretsCrash(t *testing.T) {
	tr, from := newSecrets(t)
	old := onlyRoot(tr.end(from))
	whole := tr.copyOf(from)
	ops, status := traced(t, tr.argv(whole), func(int, string) syscall.Signal { return 0 })
	if !status.Exited() || status.ExitStatus() != 0 {
		t.Fatalf("the traced run: %v", status)
	}
	want := onlyRoot(tr.end(whole))
	if data, err := os.ReadFile(filepath.Join(whole, "root/etc/app/both")); string(data) != "open "+secondly {
		t.Fatalf("%q, %v", data, err)
	}
	tr.hidden(whole, "the whole run", "")
	var pinned atomic.Int64
	parallel(ops, func(k int) {
		point := fmt.Sprintf("killed at operation %d of %d", k, ops)
		dir := tr.copyOf(from)
		defer tr.remove(dir)
		traced(t, tr.argv(dir), func(n int, _ string) syscall.Signal {
			if n == k {
				return syscall.SIGKILL
			}
			return 0
		})
		tr.hidden(dir, point, "")
		change, _ := tr.held(dir)
		lost := tr.copyOf(dir)
		defer tr.remove(lost)
		code, said := tr.ran(tr.argv(dir))
		tr.hidden(dir, point, said)
		if diff := cmp.Diff(want, onlyRoot(tr.end(dir))); code != 0 || diff != "" {
			t.Errorf("%s: the next run ends with %d (-want +got):\n%s\n%s", point, code, diff, said)
		}
		if change {
			pinned.Add(1)
			tr.withoutKey(lost, point, old, want)
		}
	})
	counted(t, "%d crash points, %d of them with a pinned change", ops, pinned.Load())
	if pinned.Load() == 0 {
		t.Error("nothing was pinned at any point")
	}
}

// withoutKey goes on with a change when the host's key is gone, and when it is back.
func (tr *trial) withoutKey(dir, point string, old, want map[string]string) {
	t := tr.t
	t.Helper()
	key := filepath.Join(dir, "root/etc/ssh/ssh_host_ed25519_key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	code, said := tr.ran(tr.argv(dir))
	tr.hidden(dir, point+", without its key", said)
	if code != 0 && !strings.Contains(said, "the private keys of this host: there is no ") {
		t.Errorf("%s: without its key the run ends with %d:\n%s", point, code, said)
	}
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	if code != 0 && strings.Contains(said, "was rolled back") {
		if diff := cmp.Diff(old, onlyRoot(tr.end(dir))); diff != "" {
			t.Errorf("%s: without its key not everything is back:\n%s", point, diff)
		}
	}
	for _, command := range []string{"retry", "run", "retry", "run"} {
		argv := tr.argv(dir)
		argv[1] = command
		if command == "retry" {
			argv = argv[:8]
		}
		code, said = tr.ran(argv)
		tr.hidden(dir, point+", with its key again", said)
	}
	if diff := cmp.Diff(want, onlyRoot(tr.end(dir))); code != 0 || diff != "" {
		t.Errorf("%s: with its key again the run ends with %d:\n%s\n%s", point, code, diff, said)
	}
}

// TestSecretsTerminated stops runs in good order at random instants, and has changes
// fail and rolled back.
func TestSecretsTerminated(t *testing.T) {
	tr, from := newSecrets(t)
	before := onlyRoot(tr.end(from))
	for n := range 20 {
		dir := tr.copyOf(from)
		cmd := exec.Command(tr.binary, tr.argv(dir)[1:]...)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(n) * 4 * time.Millisecond)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it ends well or not, as it comes
		tr.hidden(dir, "terminated", said.String())
	}
	dir := tr.copyOf(from)
	tr.push(secretsAfter + "systemd:\n  units:\n    - {name: web.service, enabled: true, contents: \"[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=graphical.target\\n\"}\n")
	if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, stuck)), 0o755), os.WriteFile(filepath.Join(dir, stuck), []byte("in the way"), 0o644)); err != nil {
		t.Fatal(err)
	}
	code, said := tr.ran(tr.argv(dir))
	tr.hidden(dir, "a change that fails", said)
	if code != 1 || !strings.Contains(said, "the change was rolled back") {
		t.Errorf("a change that fails ends with %d:\n%s", code, said)
	}
	after := onlyRoot(tr.end(dir))
	for name := range before {
		if strings.HasPrefix(name, "root/etc/app") && after[name] != before[name] {
			t.Errorf("%s is not as it was: %s, now %s", name, before[name], after[name])
		}
	}
}

// A secret for the ssh key of a booted host: pushed, changed, rolled back and away; the
// service that belongs to it sees it, the journal does not.
func TestSecretOnBootedHost(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("ssh-keygen", "-A")
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key+".pub", m.Read("/etc/ssh/ssh_host_ed25519_key.pub"), 0o644); err != nil {
		t.Fatal(err)
	}
	push := func(plain string) {
		t.Helper()
		m.Repo().Write("db.age", encrypted(t, key, plain))
		m.push("storage:", "  files:",
			"    - {path: /etc/app/db.env, contents: {local: db.age}}",
			"systemd:", "  units:", "    - name: app.service", "      enabled: true", "      contents: |",
			"        [Service]", "        Type=oneshot", "        RemainAfterExit=true", // it has written when it is started
			"        EnvironmentFile=/etc/app/db.env", "        ExecStart=/bin/sh -c 'echo $${PASSWORD} >/run/app'",
			"        [Install]", "        WantedBy=multi-user.target")
	}
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[service]", "settle = '500ms'",
		"[[service.watch]]", "path = '/etc/app/db.env'", "unit = 'app.service'")
	push("PASSWORD=hunter2-first\n")
	m.converge()
	m.gives("root root 600", "stat", "--format=%U %G %a", "/etc/app/db.env")
	m.gives("hunter2-first", "cat", "/run/app")

	push("PASSWORD=hunter2-second\n")
	m.expect("a new secret", m.during(func() { m.converge() }), "app.service restarted")
	m.gives("hunter2-second", "cat", "/run/app")
	m.Run("reconf-pull", "rollback")
	m.gives("PASSWORD=hunter2-first", "cat", "/etc/app/db.env")
	m.gives("hunter2-first", "cat", "/run/app")

	// The host has another key: what is encrypted to the old one changes nothing.
	m.Run("rm", "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub")
	m.Run("ssh-keygen", "-A")
	push("PASSWORD=hunter2-third\n")
	status, said := m.pull()
	if status != 65 {
		t.Errorf("a secret for another key ends with %d", status)
	}
	m.says(said, "/etc/app/db.env: db.age: it is not encrypted to this host: its recipients are ssh-ed25519")
	if err := os.WriteFile(key+".pub", m.Read("/etc/ssh/ssh_host_ed25519_key.pub"), 0o644); err != nil {
		t.Fatal(err)
	}
	push("PASSWORD=hunter2-fourth\n")
	m.converge()
	m.gives("hunter2-fourth", "cat", "/run/app")

	// A power cut, and everything that was kept and said.
	push("PASSWORD=hunter2-fifth\n")
	m.PowerCut()
	m.converge()
	m.gives("hunter2-fifth", "cat", "/run/app")
	m.gives("", "grep", "-rl", "hunter2", "/var/lib/reconf-pull", "/var/cache/reconf-pull", "/run/reconf-pull", "/run/said")
	if journal := m.Run("journalctl", "--output=export", "--no-pager"); strings.Contains(journal, mark) {
		t.Error("the journal holds the secret")
	}
}
