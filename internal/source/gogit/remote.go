package gogit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	gitfile "github.com/go-git/go-git/v5/plumbing/transport/file"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/reconf-pull/reconf-pull/internal/host"
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
	switch ep.Protocol {
	case "https", "http":
		if err := r.checkHTTP(o); err != nil {
			return remote{}, err
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

// tip is the commit that the remote's ref names, with the conversation in which it
// said so, which goes on when something has to be transferred.
type tip struct {
	ref  plumbing.ReferenceName
	hash plumbing.Hash

	dial func(ctx context.Context, wanted string) (conversation, error)
	with conversation
}

func (t *tip) conversation(ctx context.Context) (conversation, error) {
	if t.with == nil {
		var err error
		if t.with, err = t.dial(ctx, t.ref.String()); err != nil {
			return nil, err
		}
		// What a repository on this machine said may be old by now.
		l, err := t.with.list(ctx, t.ref.String())
		if err != nil {
			return nil, err
		}
		if now, ok := l.refs[t.ref.String()]; ok {
			t.hash = now
		}
	}
	return t.with, nil
}

func (t *tip) close() {
	if t.with != nil {
		t.with.close()
	}
}

// tip asks the remote for the ref.
func (s *Source) tip(ctx context.Context, m *mirror) (_ *tip, err error) {
	var want plumbing.ReferenceName
	switch {
	case s.Branch != "":
		want = plumbing.NewBranchReferenceName(strings.TrimPrefix(s.Branch, branchPrefix))
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
	if t.with, err = s.dial(ctx, want.String()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if want == "" {
		l, err := t.with.list(ctx, plumbing.HEAD.String())
		if err != nil {
			return nil, err
		}
		t.ref, t.hash = plumbing.ReferenceName(l.head), l.refs[plumbing.HEAD.String()]
		if !t.ref.IsBranch() || t.hash.IsZero() {
			return nil, s.missing(ctx, t.with, "")
		}
		return t, nil
	}
	l, err := t.with.list(ctx, want.String())
	if err != nil {
		return nil, err
	}
	if t.hash = l.refs[want.String()]; t.hash.IsZero() {
		return nil, s.missing(ctx, t.with, want.Short())
	}
	return t, nil
}

// missing says which branches there are instead.
func (s *Source) missing(ctx context.Context, with conversation, branch string) error {
	l, err := with.list(ctx, branchPrefix)
	if err != nil {
		return err
	}
	var names []string
	for name := range l.refs {
		if short, ok := strings.CutPrefix(name, branchPrefix); ok {
			names = append(names, short)
		}
	}
	if len(names) == 0 {
		return errEmpty
	}
	slices.Sort(names)
	return &noBranchError{branch, names}
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

// dial opens a conversation.
func (s *Source) dial(ctx context.Context, wanted string) (_ conversation, err error) {
	var l link
	switch s.remote.endpoint.Protocol {
	case "https", "http":
		l, err = s.dialHTTP()
	case "ssh":
		l, err = s.dialSSH(ctx)
	case "git":
		l, err = s.dialGit(ctx)
	default:
		return s.dialFile(ctx)
	}
	if err != nil {
		return nil, err
	}
	with, err := begin(ctx, l, s.MaxRefs, wanted)
	if err != nil {
		l.close()
		return nil, err
	}
	return with, nil
}

// connect opens a TCP connection that ends with ctx, at the latest.
func (s *Source) connect(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.remote.address())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return &boundConn{c, stop}, nil
}

// boundConn is a connection that is closed when a context ends.
type boundConn struct {
	net.Conn
	stop func() bool
}

func (b *boundConn) Close() error {
	b.stop()
	return b.Conn.Close()
}

// dialGit speaks the git protocol, which has neither encryption nor passwords.
func (s *Source) dialGit(ctx context.Context) (link, error) {
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	hello := fmt.Sprintf("git-upload-pack %s\x00host=%s\x00\x00version=2\x00", s.remote.endpoint.Path, s.remote.endpoint.Host)
	if _, err := fmt.Fprintf(c, "%04x%s", len(hello)+4, hello); err != nil {
		_ = c.Close()
		return nil, err
	}
	return newStream(s.bounded(c), c, func() { _ = c.Close() }, func() error { return nil }), nil
}

// bounded reads no more from a remote than a fetch may bring.
func (s *Source) bounded(r io.Reader) io.Reader {
	return &countingReader{r, s.MaxFetch, tooMuch("source.max_fetch", "the server sends more than %d bytes", s.MaxFetch)}
}

// fileConversation lets go-git run git-upload-pack for a repository on this machine.
type fileConversation struct {
	transport.UploadPackSession
	refs   *packp.AdvRefs
	pack   io.ReadCloser // nil: none was asked for
	cancel func()
}

func (s *Source) dialFile(ctx context.Context) (conversation, error) {
	ep := s.remote.endpoint
	session, err := gitfile.DefaultClient.NewUploadPackSession(&ep, nil)
	if err != nil {
		return nil, err
	}
	refs, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		_ = session.Close()
		return nil, err
	}
	return &fileConversation{UploadPackSession: session, refs: refs, cancel: func() {}}, nil
}

func (f *fileConversation) list(context.Context, string) (*listing, error) {
	l := &listing{refs: f.refs.References}
	refs, err := f.refs.AllReferences()
	if err != nil {
		return nil, err
	}
	if head, err := refs.Reference(plumbing.HEAD); err == nil {
		l.head = head.Target().String()
		l.refs[plumbing.HEAD.String()] = l.refs[l.head]
	}
	return l, nil
}

func (f *fileConversation) fetch(ctx context.Context, r request) (*answer, error) {
	req := packp.NewUploadPackRequestFromCapabilities(f.refs.Capabilities)
	req.Wants, req.Shallows, req.Depth = []plumbing.Hash{r.want}, r.shallow, packp.DepthCommits(r.depth)
	if !r.have.IsZero() {
		req.Haves = []plumbing.Hash{r.have}
	}
	for c, set := range map[capability.Capability]bool{capability.NoProgress: r.progress == nil, capability.Shallow: r.depth > 0 || len(r.shallow) > 0} {
		if set {
			if err := req.Capabilities.Set(c); err != nil {
				return nil, err
			}
		}
	}
	ctx, f.cancel = context.WithCancel(ctx)
	resp, err := f.UploadPack(ctx, req)
	if err != nil {
		return nil, err
	}
	f.pack = resp
	return &answer{pack: &sideband{packets: newPackets(resp), progress: r.progress}, shallow: resp.Shallows}, nil
}

// close does not wait for who still sends: go-git ends a transport at a read that
// fails after its context, and else Close waits for ever. The first reads may find
// what is buffered, and later ones bytes, by chance.
func (f *fileConversation) close() {
	f.cancel()
	if f.pack == nil {
		_ = f.Close()
		return
	}
	const enough = 64
	buffer := make([]byte, 64<<10)
	for range enough {
		if _, err := f.pack.Read(buffer); err != nil {
			break
		}
	}
	_ = f.pack.Close()
}

// maxKeys bounds a file of keys, certificates or known hosts in bytes.
const maxKeys = 4 << 20

// trusted reads a file that decides whom this machine believes.
func (s *Source) trusted(key, path string) ([]byte, error) {
	return s.file(key, path, host.ReadTrusted)
}

// private reads a file that nobody but its owner may read.
func (s *Source) private(key, path string) ([]byte, error) {
	return s.file(key, path, host.ReadSecret)
}

func (s *Source) file(key, path string, read func(string, int64) ([]byte, error)) ([]byte, error) {
	if s.HandedOver {
		read = func(path string, _ int64) ([]byte, error) { return os.ReadFile(path) }
	}
	data, err := read(path, maxKeys)
	if err == nil {
		return data, nil
	}
	err = localFailure("reading "+key, err)
	var distrust *host.DistrustError
	if errors.As(err, &distrust) {
		return nil, &source.Error{Err: err, Hint: distrust.Hint()}
	}
	return nil, err
}

// HandOver returns the options for a process that may not open the files that the
// remote is reached with: give returns the name under which that process finds what
// read returns for a path. Files that this remote has no use for are left out.
func (s *Source) HandOver(give func(path string, read func(path string) ([]byte, error)) string) Options {
	o := s.Options
	o.HandedOver = true
	o.CAFile, o.ClientCert, o.ClientKey, o.TokenFile, o.PasswordFile, o.SSHKey, o.KnownHosts = "", "", "", "", "", "", nil
	from := func(key string, read func(key, path string) ([]byte, error)) func(string) ([]byte, error) {
		return func(path string) ([]byte, error) { return read(key, path) }
	}
	switch s.remote.endpoint.Protocol {
	case "https":
		o.CAFile = give(s.CAFile, from("source.ca_file", s.trusted))
		o.ClientCert = give(s.ClientCert, from("source.client_cert", s.trusted))
		o.ClientKey = give(s.ClientKey, from("source.client_key", s.private))
		o.TokenFile = give(s.TokenFile, from("source.token_file", s.private))
		o.PasswordFile = give(s.PasswordFile, from("source.password_file", s.private))
	case "ssh":
		o.SSHKey = give(s.SSHKey, from("source.ssh_key", s.private))
		for _, path := range s.KnownHosts {
			o.KnownHosts = append(o.KnownHosts, give(path, from("source.known_hosts", s.trusted)))
		}
	}
	return o
}
