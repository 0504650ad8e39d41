package child_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

func execute(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// keygen makes a key and returns its public half without a comment, and its
// fingerprint.
func keygen(t testing.TB, path, passphrase string) (public, fingerprint string) {
	t.Helper()
	execute(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path)
	data, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))), ssh.FingerprintSHA256(key)
}

// waitFor waits until somebody listens.
func waitFor(t testing.TB, network, address string) {
	t.Helper()
	for range 200 {
		if c, err := net.Dial(network, address); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("nobody listens at %s", address)
}

func start(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// sshd runs a server with a host key in dir that lets the keys of a file in.
func sshd(t testing.TB, dir, authorized string) (port int, hostKey, fingerprint string) {
	t.Helper()
	const program = "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		lacking.Skip(t, "%s is not installed", program)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		lacking.Skip(t, "sshd needs /run/sshd: %v", err)
	}
	hostKey, fingerprint = keygen(t, filepath.Join(dir, "host_key"), "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	config := filepath.Join(dir, "sshd_config")
	write(t, config, fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nAcceptEnv GIT_PROTOCOL\n",
		port, filepath.Join(dir, "host_key"), authorized), 0o600)
	start(t, program, "-D", "-e", "-f", config)
	waitFor(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	return port, hostKey, fingerprint
}

// sshAgent runs an agent of this user with keys.
func sshAgent(t testing.TB, dir string, keys ...string) (socket string) {
	t.Helper()
	socket = filepath.Join(dir, "agent")
	_ = os.Remove(socket)
	start(t, "ssh-agent", "-D", "-a", socket)
	waitFor(t, "unix", socket)
	for _, key := range keys {
		cmd := exec.Command("ssh-add", "-q", key)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return socket
}

// TestSSH reaches a server in every way, with files that are this user's alone.
func TestSSH(t *testing.T) {
	users(t, func(t *testing.T, other *run.User) {
		dir, ctx := place(t), context.Background()
		repo := fleet(t, dir)
		tip := git(t, repo, "rev-parse", "HEAD")
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		at := func(name string) string { return filepath.Join(dir, name) }
		key, locked := at("key"), at("locked")
		public, _ := keygen(t, key, "")
		write(t, locked, mustRead(t, key), 0o600)
		execute(t, "ssh-keygen", "-q", "-p", "-N", "s3cret", "-f", locked)
		stranger, strangers := keygen(t, at("stranger"), "")
		write(t, at("authorized"), public+"\n", 0o600)
		port, hostKey, offered := sshd(t, dir, at("authorized"))
		address := fmt.Sprintf("127.0.0.1:%d", port)
		line := fmt.Sprintf("[127.0.0.1]:%d ", port)
		write(t, at("known"), line+hostKey+"\n", 0o600)
		write(t, at("hashed"), line+stranger+"\n"+line+hostKey+"\n", 0o600)
		execute(t, "ssh-keygen", "-q", "-H", "-f", at("hashed"))
		write(t, at("changed"), "# the old one\n"+line+stranger+"\n", 0o600)
		write(t, at("elsewhere"), "git.example.com "+hostKey+"\n", 0o600)
		write(t, at("damaged"), "\nwhat is this?\n", 0o600)
		write(t, at("open"), line+hostKey+"\n", 0o622)
		of := gogit.Options{URL: fmt.Sprintf("ssh://%s@%s%s", me.Username, address, repo), KnownHosts: []string{at("known")}, SSHKey: key, Timeout: 30 * time.Second}
		socket := sshAgent(t, dir, key)
		empty := filepath.Join(dir, "empty")
		write(t, filepath.Join(empty, "x"), "", 0o600)
		without := sshAgent(t, empty)

		for name, c := range map[string]struct {
			change        func(*gogit.Options)
			agent         string
			kind          error // nil: it works
			message, hint string
		}{
			"a key":                         {change: func(*gogit.Options) {}},
			"hashed names":                  {change: func(o *gogit.Options) { o.KnownHosts = []string{at("hashed")} }},
			"several files, one is there":   {change: func(o *gogit.Options) { o.KnownHosts = []string{at("nope"), at("known"), at("nor this")} }},
			"an agent":                      {change: func(o *gogit.Options) { o.SSHKey = "" }, agent: socket},
			"an encrypted key and an agent": {change: func(o *gogit.Options) { o.SSHKey = locked }, agent: socket},
			"an encrypted key": {
				func(o *gogit.Options) { o.SSHKey = locked }, "", source.ErrLocal,
				"reading source.ssh_key: " + locked + " needs a passphrase, which nobody is there to type, and no agent has it", "ssh-keygen -N ''",
			},
			"an encrypted key and another agent": {
				func(o *gogit.Options) { o.SSHKey = locked }, without, source.ErrLocal,
				"reading source.ssh_key: " + locked + " needs a passphrase, which nobody is there to type, and no agent has it", "ssh-keygen -N ''",
			},
			"an agent without keys": {
				func(o *gogit.Options) { o.SSHKey = "" }, without, source.ErrUnavailable,
				"authentication refused for user " + me.Username, "deploy key",
			},
			"neither key nor agent": {
				func(o *gogit.Options) { o.SSHKey = "" }, "", source.ErrLocal,
				"finding an SSH key: source.ssh_key is not set and no agent is running", "Name a private key file in source.ssh_key.",
			},
			"an agent that has ended": {
				func(o *gogit.Options) { o.SSHKey = "" }, at("nope"), source.ErrLocal,
				"finding an SSH key: reaching the agent of SSH_AUTH_SOCK: dial unix " + at("nope") + ": connect: no such file or directory", "source.ssh_key",
			},
			"a key that is not there": {
				func(o *gogit.Options) { o.SSHKey = at("nope") }, socket, source.ErrLocal,
				"reading source.ssh_key: open " + at("nope") + ": no such file or directory", "",
			},
			"another key": {
				func(o *gogit.Options) { o.SSHKey = at("stranger") }, "", source.ErrUnavailable,
				"authentication refused for user " + me.Username, "deploy key",
			},
			"an unknown host key": {
				func(o *gogit.Options) { o.KnownHosts = []string{at("elsewhere")} }, "", source.ErrUnavailable,
				"the SSH host key of " + address + " is not known: it offered ssh-ed25519 " + offered + ", which is not in " + at("elsewhere"),
				fmt.Sprintf("Run ssh-keyscan -p %d 127.0.0.1 >> %s, and compare", port, at("elsewhere")),
			},
			"a changed host key": {
				func(o *gogit.Options) { o.KnownHosts = []string{at("changed")} }, "", source.ErrUnavailable,
				"the SSH host key of " + address + " has changed: it offered ssh-ed25519 " + offered + ", known is ssh-ed25519 " + strangers + " (" + at("changed") + ":2)",
				"somebody stands in between",
			},
			"no known_hosts": {
				func(o *gogit.Options) { o.KnownHosts = []string{at("nope"), at("nor this")} }, "", source.ErrLocal,
				"there is no known_hosts file (tried " + at("nope") + ", " + at("nor this") + ")",
				fmt.Sprintf("Run ssh-keyscan -p %d 127.0.0.1 >> %s, and compare", port, at("nope")),
			},
			"known_hosts that is none": {
				func(o *gogit.Options) { o.KnownHosts = []string{at("damaged")} }, "", source.ErrLocal,
				"reading source.known_hosts: " + at("damaged") + ":2: ", "",
			},
			"known_hosts of others": {
				func(o *gogit.Options) { o.KnownHosts = []string{at("open")} }, "", source.ErrLocal,
				at("open") + " is writable by everybody (mode 0622)", "chmod go-w " + at("open"),
			},
		} {
			t.Run(name, func(t *testing.T) {
				of := of
				c.change(&of)
				here, err := gogit.New(of)
				if err != nil {
					t.Fatal(err)
				}
				o := child.Options{}
				if o.AgentUser = here.Agent(); o.AgentUser != "" {
					o.Agent = c.agent
				}
				s := newSource(t, place(t), other, of, o)
				rev, err := s.Fetch(ctx)
				if c.kind == nil {
					if err != nil || rev.Commit != tip {
						t.Fatalf("got %v, %v", rev, err)
					}
					if _, err := s.Fetch(ctx); err != nil { // with what was handed over once
						t.Fatal(err)
					}
					return
				}
				var hinted *source.Error
				if !errors.As(err, &hinted) || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.message) || !strings.Contains(hinted.Hint, c.hint) {
					t.Fatalf("got  %v\nwant %s\nhint %+v\nwant %s", err, c.message, hinted, c.hint)
				}
				if whole := err.Error() + hinted.Hint; strings.Contains(whole, "/proc/self") || strings.Contains(whole, "s3cret") {
					t.Errorf("it says %s", whole)
				}
			})
		}
	})
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// agentProbe tries what else an ssh-agent can do for whoever reaches it.
type agentProbe struct{ probe }

func (*agentProbe) Fetch(context.Context) (source.Revision, error) {
	socket, err := os.OpenFile(os.Getenv("SSH_AUTH_SOCK"), os.O_RDWR, 0)
	if err == nil {
		return source.Revision{}, errors.Join(errors.New("its socket is a file"), socket.Close())
	}
	var fd int
	if _, err := fmt.Sscanf(os.Getenv("SSH_AUTH_SOCK"), "/proc/self/fd/%d", &fd); err != nil {
		return source.Revision{}, err
	}
	conn, err := net.FileConn(os.NewFile(uintptr(fd), "agent"))
	if err != nil {
		return source.Revision{}, err
	}
	agent := sshagent.NewClient(struct{ io.ReadWriter }{conn}) // which does not read ahead
	var could []string
	try := func(what string, err error) {
		if err == nil {
			could = append(could, what)
		}
	}
	keys, err := agent.List()
	try("list keys", err)
	if len(keys) != 1 {
		return source.Revision{}, fmt.Errorf("%d keys, %w", len(keys), err)
	}
	login := func(user, service string, key ssh.PublicKey) []byte {
		return ssh.Marshal(struct {
			Session []byte
			Kind    byte
			User    string
			Service string
			Method  string
			Has     bool
			Algo    string
			Key     []byte
		}{make([]byte, 32), 50, user, service, "publickey", true, key.Type(), key.Marshal()})
	}
	sign := func(what string, data []byte) {
		_, err := agent.Sign(keys[0], data)
		try(what, err)
	}
	good := login("git", "ssh-connection", keys[0])
	sign("log in", good)
	sign("log in as root", login("root", "ssh-connection", keys[0]))
	sign("log in for another service", login("git", "ssh-userauth", keys[0]))
	sign("sign a commit", append([]byte("SSHSIG"), good...))
	sign("sign anything", []byte("anything"))
	sign("sign nothing", nil)
	sign("sign more", append(good, 0))
	sign("sign a part", good[:len(good)-1])
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(other)
	if err != nil {
		return source.Revision{}, err
	}
	sign("sign with one key for another", login("git", "ssh-connection", signer.PublicKey()))
	try("add a key", agent.Add(sshagent.AddedKey{PrivateKey: other}))
	try("lock it", agent.Lock([]byte("x")))
	try("remove a key", agent.Remove(keys[0]))
	try("remove all keys", agent.RemoveAll())
	_, err = agent.Extension("session-bind@openssh.com", []byte("x"))
	try("use extensions", err)
	for _, message := range []string{"\x00\x00\x00\x00", "\x00\x00\x00\x01\x0d", "\x00\x00\x00\x09\x0d\xff\xff\xff\xff\x00\x00\x00\x00", "\x00\x00\x00\x05\x0d\x00\x00\x00\x00"} {
		if _, err := conn.Write([]byte(message)); err != nil {
			return source.Revision{}, err
		}
		answer := make([]byte, 5)
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "\x00\x00\x00\x01\x05" {
			try(fmt.Sprintf("say %q", message), nil)
		}
	}
	sign("log in at last", good)
	if _, err := conn.Write([]byte("\xff\xff\xff\xff\x0d")); err != nil {
		return source.Revision{}, err
	}
	_, err = conn.Read(make([]byte, 1))
	try("say more than an agent takes", err)
	return source.Revision{}, errors.New("it could: " + strings.Join(could, "; "))
}

// A process that was taken over can log in where the fleet repo is, as long as it
// lives, and has no other use of the agent.
func TestAgentOnlyLogsIn(t *testing.T) {
	users(t, func(t *testing.T, other *run.User) {
		dir := place(t)
		_, fingerprint := keygen(t, filepath.Join(dir, "key"), "")
		o := child.Options{Env: []string{"PROBE=agent"}, Agent: sshAgent(t, dir, filepath.Join(dir, "key")), AgentUser: "git"}
		_, err := newSource(t, dir, other, gogit.Options{URL: "git@127.0.0.1:fleet"}, o).Fetch(context.Background())
		if err == nil || err.Error() != "it could: list keys; log in; log in at last" {
			t.Errorf("got %v", err)
		}
		conn, err := net.Dial("unix", o.Agent)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		keys, err := sshagent.NewClient(conn).List()
		if err != nil || len(keys) != 1 || ssh.FingerprintSHA256(keys[0]) != fingerprint {
			t.Errorf("the agent has %v, %v", keys, err)
		}
	})
}
