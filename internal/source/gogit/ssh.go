package gogit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// dialSSH runs git-upload-pack at the server. ssh_config is not read: it can turn
// the check of host keys off.
func (s *Source) dialSSH(ctx context.Context) (link, error) {
	config, done, err := s.sshConfig()
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, channels, requests, err := ssh.NewClientConn(c, s.remote.address(), config)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	client := ssh.NewClient(conn, channels, requests)
	l, err := s.start(client)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return l, nil
}

func (s *Source) start(client *ssh.Client) (link, error) {
	session, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	said := &beginning{}
	session.Stderr = said
	in, err := session.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// A server whose AcceptEnv does not have it refuses this, and speaks version 0.
	_ = session.Setenv("GIT_PROTOCOL", "version=2")
	if err := session.Start(uploadPack + " " + quote(s.remote.endpoint.Path)); err != nil {
		return nil, err
	}
	wrong := func() error {
		err := session.Wait()
		if text := said.text(); notFound(text) {
			return errNotFound
		} else if text != "" {
			return &saidError{text}
		}
		return err
	}
	return newStream(s.bounded(out), in, func() { _ = client.Close() }, wrong), nil
}

// quote is a word for the shell at the server, as git itself quotes it.
func quote(path string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(path) + "'"
}

// beginning keeps the first bytes that are written to it.
type beginning struct {
	mu   sync.Mutex
	data []byte
}

func (b *beginning) Write(p []byte) (int, error) {
	const enough = 4 << 10
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p[:min(len(p), enough-len(b.data))]...)
	return len(p), nil
}

// text is the first line that is more than a greeting.
func (b *beginning) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(string(b.data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Warning: ") || strings.HasPrefix(line, "remote: =") || line == "remote:" {
			continue
		}
		for _, prefix := range []string{"remote: ", "fatal: ", "ERROR: "} {
			line = strings.TrimPrefix(line, prefix)
		}
		return line
	}
	return ""
}

// sshConfig is who we are and whom we believe. done is called after the handshake.
func (s *Source) sshConfig() (c *ssh.ClientConfig, done func(), err error) {
	c = &ssh.ClientConfig{User: s.remote.endpoint.User}
	if err := s.hostKeys(c); err != nil {
		return nil, nil, err
	}
	signers, done, err := s.signers()
	if err != nil {
		return nil, nil, err
	}
	c.Auth = []ssh.AuthMethod{ssh.PublicKeysCallback(signers)}
	return c, done, nil
}

// signers are the key of source.ssh_key, or what the agent has.
func (s *Source) signers() (signers func() ([]ssh.Signer, error), done func(), err error) {
	if s.SSHKey == "" {
		all, done, err := s.fromAgent()
		if err != nil {
			return nil, nil, &source.Error{
				Err:  localFailure("finding an SSH key", fmt.Errorf("source.ssh_key is not set and %w", err)),
				Hint: "Name a private key file in source.ssh_key.",
			}
		}
		return all, done, nil
	}
	pem, err := s.private("source.ssh_key", s.SSHKey)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		signers, done, ok := s.unlocked(locked.PublicKey)
		if !ok {
			return nil, nil, &source.Error{
				Err:  localFailure("reading source.ssh_key", fmt.Errorf("%s needs a passphrase, which nobody is there to type, and no agent has it", s.SSHKey)),
				Hint: "Make a key without one for this host alone (ssh-keygen -N '') and give it read access only.",
			}
		}
		return signers, done, nil
	case err != nil:
		return nil, nil, localFailure("reading source.ssh_key", fmt.Errorf("%s holds no private key: %w", s.SSHKey, err))
	}
	return func() ([]ssh.Signer, error) { return []ssh.Signer{signer}, nil }, func() {}, nil
}

// fromAgent are the keys of the agent at $SSH_AUTH_SOCK.
func (s *Source) fromAgent() (signers func() ([]ssh.Signer, error), done func(), err error) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, nil, errors.New("no agent is running")
	}
	c, err := s.dialAgent(socket)
	if err != nil {
		return nil, nil, fmt.Errorf("the agent cannot be reached: %w", err)
	}
	return agent.NewClient(c).Signers, func() { _ = c.Close() }, nil
}

func (s *Source) dialAgent(socket string) (net.Conn, error) {
	n, open := strings.CutPrefix(socket, "/proc/self/fd/")
	fd, err := strconv.Atoi(n)
	if !s.HandedOver || !open || err != nil {
		return net.Dial("unix", socket)
	}
	// It is there once, and is needed again.
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), socket)
	defer f.Close()
	return net.FileConn(f)
}

// unlocked is what the agent has of a key whose file is encrypted.
func (s *Source) unlocked(key ssh.PublicKey) (signers func() ([]ssh.Signer, error), done func(), ok bool) {
	if key == nil { // a format that hides even its public half
		return nil, nil, false
	}
	all, done, err := s.fromAgent()
	if err != nil {
		return nil, nil, false
	}
	list, err := all()
	if err == nil {
		for _, one := range list {
			if string(one.PublicKey().Marshal()) == string(key.Marshal()) {
				return func() ([]ssh.Signer, error) { return []ssh.Signer{one}, nil }, done, true
			}
		}
	}
	done()
	return nil, nil, false
}

// hostKeys has the server's key checked against the known_hosts files.
func (s *Source) hostKeys(c *ssh.ClientConfig) error {
	var files []string
	for _, f := range s.KnownHosts {
		if _, err := s.trusted("source.known_hosts", f); err == nil {
			files = append(files, f)
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	address := s.remote.address()
	if len(files) == 0 {
		return &source.Error{
			Err:  localFailure("checking the SSH host key", fmt.Errorf("there is no known_hosts file (tried %s)", strings.Join(s.KnownHosts, ", "))),
			Hint: s.scanHint(),
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		return localFailure("reading source.known_hosts", errors.New(strings.TrimPrefix(err.Error(), "knownhosts: ")))
	}
	check := db.HostKeyCallback()
	// Without this the server offers a key of the type that it likes best, which
	// may not be the one that is known: golang/go#49631.
	if c.HostKeyAlgorithms = db.HostKeyAlgorithms(address); len(c.HostKeyAlgorithms) == 0 {
		// Who knows nothing of it wants to read the fingerprint that ssh-keyscan prints.
		c.HostKeyAlgorithms = slices.DeleteFunc(ssh.SupportedAlgorithms().HostKeys, func(a string) bool { return strings.Contains(a, "-cert-") })
	}
	c.HostKeyCallback = func(host string, addr net.Addr, key ssh.PublicKey) error {
		err := check(host, addr, key)
		var mismatch *xknownhosts.KeyError
		var revoked *xknownhosts.RevokedError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &revoked):
			return &hostKeyError{
				text: fmt.Sprintf("the SSH host key of %s is revoked: it offered %s, see %s:%d", host, fingerprint(key), revoked.Revoked.Filename, revoked.Revoked.Line),
				hint: "Ask the server's operator: who has that key may be somebody else.",
			}
		case errors.As(err, &mismatch) && len(mismatch.Want) == 0:
			return &hostKeyError{
				text: fmt.Sprintf("the SSH host key of %s is not known: it offered %s, which is not in %s", host, fingerprint(key), strings.Join(files, ", ")),
				hint: s.scanHint(),
			}
		case errors.As(err, &mismatch):
			var known []string
			for _, k := range mismatch.Want {
				known = append(known, fmt.Sprintf("%s (%s:%d)", fingerprint(k.Key), k.Filename, k.Line))
			}
			return &hostKeyError{
				text: fmt.Sprintf("the SSH host key of %s has changed: it offered %s, known is %s", host, fingerprint(key), strings.Join(known, " and ")),
				hint: "Either the server got a new key, or somebody stands in between: ask its operator for the fingerprint before replacing the line.",
			}
		case strings.Contains(err.Error(), "no authorities for hostname"):
			return &hostKeyError{
				text: fmt.Sprintf("the SSH host key of %s is signed by a CA that is not known for it: it offered %s", host, fingerprint(key)),
				hint: "What is known of this server is in " + strings.Join(files, ", ") + ".",
			}
		default:
			return &hostKeyError{
				text: fmt.Sprintf("the SSH host key of %s, %s, is refused: %s", host, fingerprint(key), strings.TrimPrefix(err.Error(), "ssh: ")),
				hint: "What is known of this server is in " + strings.Join(files, ", ") + ".",
			}
		}
	}
	return nil
}

func (s *Source) scanHint() string {
	host, port, err := net.SplitHostPort(s.remote.address())
	if err != nil || len(s.KnownHosts) == 0 {
		return "Name a known_hosts file in source.known_hosts."
	}
	return fmt.Sprintf("Run ssh-keyscan -p %s %s >> %s, and compare the fingerprint with what the server's operator says.", port, host, s.KnownHosts[0])
}

func fingerprint(key ssh.PublicKey) string {
	if cert, ok := key.(*ssh.Certificate); ok {
		return key.Type() + " " + ssh.FingerprintSHA256(cert.Key) + ", signed by " + fingerprint(cert.SignatureKey)
	}
	return key.Type() + " " + ssh.FingerprintSHA256(key)
}
