package gogit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	gitfile "github.com/go-git/go-git/v5/plumbing/transport/file"
	gitgit "github.com/go-git/go-git/v5/plumbing/transport/git"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// remote is where the fleet repo is. display is its URL for people: it never
// holds a secret.
type remote struct {
	endpoint transport.Endpoint
	display  string
}

// parseRemote reads the URL. Its errors never show a part of it that may hold a
// password.
func parseRemote(o Options) (remote, error) {
	if o.URL == "" {
		return remote{}, errors.New("source.url is not set")
	}
	if strings.ContainsFunc(o.URL, unicode.IsControl) {
		return remote{}, errors.New("source.url has a control character")
	}
	ep, err := transport.NewEndpoint(o.URL)
	if err != nil {
		return remote{}, errors.New("source.url is neither a URL nor a path")
	}
	ep.Protocol = strings.ToLower(ep.Protocol)
	r := remote{endpoint: *ep, display: o.URL}
	credentials := o.PasswordFile != "" || o.TokenFile != ""
	switch ep.Protocol {
	case "https", "http":
		if ep.User != "" || ep.Password != "" {
			return remote{}, &source.Error{
				Err:  errors.New("source.url holds credentials, which would be logged with it"),
				Hint: "Put the token or password in a file of its own (mode 0600) and name it in source.token_file or source.password_file.",
			}
		}
		if ep.Protocol == "http" && credentials {
			return remote{}, &source.Error{
				Err:  errors.New("credentials are not sent over http"),
				Hint: "Use an https or ssh URL.",
			}
		}
		if o.TokenFile != "" && o.PasswordFile != "" {
			return remote{}, errors.New("source.token_file and source.password_file exclude each other")
		}
		if o.PasswordFile != "" && o.Username == "" {
			return remote{}, errors.New("source.password_file needs source.username")
		}
	case "ssh":
		if ep.Password != "" {
			return remote{}, &source.Error{
				Err:  errors.New("source.url holds a password, which would be logged with it"),
				Hint: "Use a key: source.ssh_key.",
			}
		}
		if r.endpoint.User == "" {
			r.endpoint.User = o.Username
		}
		if r.endpoint.User == "" {
			r.endpoint.User = "git"
		}
	case "git":
		if ep.User != "" || ep.Password != "" {
			return remote{}, errors.New("source.url holds credentials, which the git protocol cannot use")
		}
	case "file":
		r.display = ep.Path
	default:
		return remote{}, fmt.Errorf("source.url: %s is not supported (https, ssh, git, file, or a path)", printable(ep.Protocol))
	}
	if ep.Protocol != "file" && ep.Host == "" {
		return remote{}, errors.New("source.url names no host")
	}
	return r, nil
}

func (r remote) address() string {
	port := r.endpoint.Port
	if port == 0 {
		port = map[string]int{"https": 443, "http": 80, "ssh": 22, "git": 9418}[r.endpoint.Protocol]
	}
	return net.JoinHostPort(strings.Trim(r.endpoint.Host, "[]"), strconv.Itoa(port))
}

// tip is the commit that the remote's ref names, with the session that said so,
// which goes on when something has to be transferred.
type tip struct {
	ref  plumbing.ReferenceName
	hash plumbing.Hash

	dial       func(context.Context) (transport.UploadPackSession, *packp.AdvRefs, error)
	upload     transport.UploadPackSession
	advertised *packp.AdvRefs
}

func (t *tip) session(ctx context.Context) (transport.UploadPackSession, *packp.AdvRefs, error) {
	if t.upload == nil {
		var err error
		if t.upload, t.advertised, err = t.dial(ctx); err != nil {
			return nil, nil, err
		}
		// What a repository on this machine said may be old by now.
		if now, ok := t.advertised.References[t.ref.String()]; ok {
			t.hash = now
		}
	}
	return t.upload, t.advertised, nil
}

func (t *tip) close() {
	if t.upload != nil {
		_ = t.upload.Close()
	}
}

// tip asks the remote for the ref.
func (s *Source) tip(ctx context.Context, m *mirror) (*tip, error) {
	var want plumbing.ReferenceName
	switch {
	case s.Branch != "":
		want = plumbing.NewBranchReferenceName(strings.TrimPrefix(s.Branch, "refs/heads/"))
	case s.Ref != "":
		want = plumbing.ReferenceName(s.Ref)
	case m != nil:
		want = m.ref
	}
	t := &tip{ref: want, dial: s.dial}
	if s.remote.endpoint.Protocol == "file" && want != "" {
		// go-git runs git-upload-pack for these, which costs more than all the rest
		// of a run with nothing new.
		if hash, ok := localRef(s.remote.endpoint.Path, want); ok {
			t.hash = hash
			return t, nil
		}
	}
	upload, advertised, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	t.upload, t.advertised = upload, advertised
	if want == "" {
		if t.ref, err = defaultBranch(advertised); err != nil {
			t.close()
			return nil, err
		}
	}
	hash, ok := advertised.References[t.ref.String()]
	if !ok {
		t.close()
		return nil, &noBranchError{t.ref.Short(), branches(advertised)}
	}
	t.hash = hash
	return t, nil
}

// localRef reads a ref of a repository on this machine. It is false for
// whatever it does not understand, which git then explains.
func localRef(dir string, name plumbing.ReferenceName) (_ plumbing.Hash, ok bool) {
	var err error
	defer func() { ok = ok && err == nil }()
	defer recovered(&err)
	for _, gitdir := range []string{filepath.Join(dir, ".git"), dir} {
		if info, err := os.Lstat(filepath.Join(gitdir, "HEAD")); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if _, err := os.Lstat(filepath.Join(gitdir, "reftable")); err == nil {
			return plumbing.ZeroHash, false
		}
		store := filesystem.NewStorage(osfs.New(gitdir, osfs.WithBoundOS()), cache.NewObjectLRU(0))
		ref, err := store.Reference(name)
		if err != nil || ref.Type() != plumbing.HashReference || ref.Hash().IsZero() {
			return plumbing.ZeroHash, false
		}
		return ref.Hash(), true
	}
	return plumbing.ZeroHash, false
}

// defaultBranch is what the remote's HEAD points to.
func defaultBranch(advertised *packp.AdvRefs) (plumbing.ReferenceName, error) {
	refs, err := advertised.AllReferences()
	if err == nil {
		if head, err := refs.Reference(plumbing.HEAD); err == nil && head.Type() == plumbing.SymbolicReference && head.Target().IsBranch() {
			return head.Target(), nil
		}
	}
	return "", &noBranchError{"", branches(advertised)}
}

func branches(advertised *packp.AdvRefs) []string {
	var names []string
	for name := range advertised.References {
		if short, ok := strings.CutPrefix(name, "refs/heads/"); ok {
			names = append(names, short)
		}
	}
	slices.Sort(names)
	return names
}

// dial opens a session and reads what the remote advertises.
func (s *Source) dial(ctx context.Context) (transport.UploadPackSession, *packp.AdvRefs, error) {
	client, auth, err := s.client()
	if err != nil {
		return nil, nil, err
	}
	ep := s.remote.endpoint
	session, err := client.NewUploadPackSession(&ep, auth)
	if err != nil {
		return nil, nil, err
	}
	advertised, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		_ = session.Close()
		return nil, nil, err
	}
	return session, advertised, nil
}

func (s *Source) client() (transport.Transport, transport.AuthMethod, error) {
	switch s.remote.endpoint.Protocol {
	case "https", "http":
		return s.httpClient()
	case "ssh":
		ignoreSSHConfig()
		auth, err := s.sshAuth()
		if err != nil {
			return nil, nil, err
		}
		return gitssh.DefaultClient, auth, nil
	case "git":
		return gitgit.DefaultClient, nil, nil
	default:
		return gitfile.DefaultClient, nil, nil
	}
}

// tokenUser goes with a token where source.username is not set: GitHub, GitLab,
// Gitea and Forgejo take any name, and GitLab's documents use this one.
const tokenUser = "oauth2"

func (s *Source) httpClient() (transport.Transport, transport.AuthMethod, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, nil, localFailure("reading source.ca_file", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, localFailure("reading source.ca_file", fmt.Errorf("%s holds no certificate in PEM form", s.CAFile))
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	client := githttp.NewClient(&http.Client{Transport: t})
	file, user := s.PasswordFile, s.Username
	if s.TokenFile != "" {
		file = s.TokenFile
		if user == "" {
			user = tokenUser
		}
	}
	if file == "" {
		return client, nil, nil
	}
	secret, err := readSecret(file)
	if err != nil {
		return nil, nil, err
	}
	return client, &githttp.BasicAuth{Username: user, Password: secret}, nil
}

// readSecret reads a one-line file that nobody but its owner may open.
func readSecret(path string) (string, error) {
	data, err := readPrivate(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" || strings.ContainsFunc(secret, unicode.IsControl) {
		return "", localFailure("reading a credential", fmt.Errorf("%s does not hold one line of text", path))
	}
	return secret, nil
}

func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, localFailure("reading a credential", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, localFailure("reading a credential", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, &source.Error{
			Err: localFailure("reading a credential",
				fmt.Errorf("%s has mode %04o: others than its owner may open it", path, info.Mode().Perm())),
			Hint: "Run chmod 0600 " + path + ", and replace what is in it if others may have read it.",
		}
	}
	const limit = 64 << 10
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, localFailure("reading a credential", err)
	}
	if len(data) > limit {
		return nil, localFailure("reading a credential", fmt.Errorf("%s is larger than %d bytes", path, limit))
	}
	return data, nil
}

// ignoreSSHConfig keeps go-git from looking the host up in ~/.ssh/config: it
// would take two keys of it and ignore the rest, and the name that known_hosts
// is asked for would be another.
var ignoreSSHConfig = sync.OnceFunc(func() { gitssh.DefaultSSHConfig = nil })

func (s *Source) sshAuth() (gitssh.AuthMethod, error) {
	helper, err := s.hostKeys()
	if err != nil {
		return nil, err
	}
	user := s.remote.endpoint.User
	if s.SSHKey == "" {
		agent, err := gitssh.NewSSHAgentAuth(user)
		if err != nil {
			return nil, &source.Error{
				Err:  localFailure("finding an SSH key", errors.New("source.ssh_key is not set and no agent is running")),
				Hint: "Name a private key file in source.ssh_key.",
			}
		}
		agent.HostKeyCallbackHelper = helper
		return agent, nil
	}
	pem, err := readPrivate(s.SSHKey)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, &source.Error{
			Err:  localFailure("reading the SSH key", fmt.Errorf("%s needs a passphrase, which nobody is there to type", s.SSHKey)),
			Hint: "Make a key without one for this host alone (ssh-keygen -N '') and give it read access only.",
		}
	}
	if err != nil {
		return nil, localFailure("reading the SSH key", fmt.Errorf("%s holds no private key: %w", s.SSHKey, err))
	}
	return &gitssh.PublicKeys{User: user, Signer: signer, HostKeyCallbackHelper: helper}, nil
}

// hostKeys checks the server's key against the known_hosts files.
func (s *Source) hostKeys() (gitssh.HostKeyCallbackHelper, error) {
	var helper gitssh.HostKeyCallbackHelper
	var files []string
	for _, f := range s.KnownHosts {
		if _, err := os.Stat(f); err == nil {
			files = append(files, f)
		} else if !errors.Is(err, os.ErrNotExist) {
			return helper, localFailure("reading known_hosts", err)
		}
	}
	address := s.remote.address()
	if len(files) == 0 {
		return helper, &source.Error{
			Err:  localFailure("checking the SSH host key", fmt.Errorf("there is no known_hosts file (tried %s)", strings.Join(s.KnownHosts, ", "))),
			Hint: s.scanHint(),
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		return helper, localFailure("reading known_hosts", err)
	}
	check := db.HostKeyCallback()
	// Without this the server offers a key of the type that it likes best, which
	// may not be the one that is known: golang/go#49631.
	helper.HostKeyAlgorithms = db.HostKeyAlgorithms(address)
	helper.HostKeyCallback = func(host string, addr net.Addr, key ssh.PublicKey) error {
		err := check(host, addr, key)
		var mismatch *xknownhosts.KeyError
		switch {
		case err == nil:
			return nil
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
		default:
			return &hostKeyError{text: fmt.Sprintf("the SSH host key of %s, %s, is refused: %v", host, fingerprint(key), err)}
		}
	}
	return helper, nil
}

func (s *Source) scanHint() string {
	host, port, err := net.SplitHostPort(s.remote.address())
	if err != nil || len(s.KnownHosts) == 0 {
		return "Name a known_hosts file in source.known_hosts."
	}
	return fmt.Sprintf("Run ssh-keyscan -p %s %s >> %s, and compare the fingerprint with what the server's operator says.", port, host, s.KnownHosts[0])
}

func fingerprint(key ssh.PublicKey) string { return key.Type() + " " + ssh.FingerprintSHA256(key) }
