package gogit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/reconf-pull/reconf-pull/internal/version"
)

// link is a way to a git-upload-pack. What it returns is read to its end, or not
// any more, before it is called again.
type link interface {
	// greet begins the conversation, asks for protocol version 2 and returns what the
	// server says first, which may be of version 0.
	greet(ctx context.Context) (*packets, error)
	// call sends a request and returns the answer.
	call(ctx context.Context, request []byte) (*packets, error)
	close()
}

// conversation is what a fetch says to a remote.
type conversation interface {
	// list asks for the refs that begin with a prefix; it may return others as well.
	list(ctx context.Context, prefix string) (*listing, error)
	fetch(ctx context.Context, r request) (*answer, error)
	close()
}

// session is a conversation with a git-upload-pack over a link. go-git knows version 0 only, in
// which the server lists every ref at every poll: about 68 bytes each.
type session struct {
	link    link
	maxRefs int
	v2      bool
	caps    map[string]string // what the server can do, by version 2's names or version 0's
	said    *listing          // version 0: the refs, which came with the greeting
}

// listing are refs of the remote that somebody asked for.
type listing struct {
	refs map[string]plumbing.Hash
	head string // the branch that HEAD names, if the server says so
}

// request is what is to be transferred.
type request struct {
	want     plumbing.Hash
	have     plumbing.Hash // zero: nothing
	shallow  []plumbing.Hash
	depth    int // 0: everything
	progress io.Writer
}

// answer is a pack, and which commits of it are without their parents.
type answer struct {
	pack    io.Reader
	shallow []plumbing.Hash
}

// begin greets the server. wanted is a ref that a server of version 0 is asked for.
func begin(ctx context.Context, l link, maxRefs int, wanted string) (*session, error) {
	s := &session{link: l, maxRefs: maxRefs, caps: map[string]string{}}
	in, err := l.greet(ctx)
	if err != nil {
		return nil, err
	}
	first, ok, err := in.line()
	if err == nil && strings.HasPrefix(first, "# service=") { // http
		if _, _, err = in.next(); err == nil {
			first, ok, err = in.line()
		}
	}
	if err != nil {
		return nil, err
	}
	if first != "version 2" {
		if first == "version 1" {
			first, ok, err = in.line()
		}
		if err == nil {
			err = s.advertised(in, first, ok, wanted)
		}
		return s, err
	}
	s.v2 = true
	for {
		line, ok, err := in.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if err := s.can(line); err != nil {
			return nil, err
		}
	}
	if format := s.caps["object-format"]; format != "" && format != "sha1" {
		return nil, fmt.Errorf("the repository has %s objects, which are not supported yet", printable(format))
	}
	return s, nil
}

// can notes a capability.
func (s *session) can(text string) error {
	const enough = 200
	if len(s.caps) == enough {
		return fmt.Errorf("%w: more than %d capabilities", errProtocol, enough)
	}
	name, value, _ := strings.Cut(text, "=")
	s.caps[name] = value
	return nil
}

// advertised reads what a server of version 0 begins with: every ref that it has.
func (s *session) advertised(in *packets, line string, ok bool, wanted string) error {
	s.said = &listing{refs: map[string]plumbing.Hash{}}
	names := 0
	for n := 0; ok; n++ {
		if n == 0 {
			ref, caps, _ := strings.Cut(line, "\x00")
			line = ref
			for _, one := range strings.Fields(caps) {
				if target, ok := strings.CutPrefix(one, "symref=HEAD:"); ok {
					s.said.head = target
				} else if err := s.can(one); err != nil {
					return err
				}
			}
		}
		if n >= s.maxRefs {
			return tooMuch("source.max_refs", "the repository has more than %d refs", s.maxRefs)
		}
		id, name, found := strings.Cut(line, " ")
		if !found || !plumbing.IsHash(id) {
			if strings.HasPrefix(line, "shallow ") {
				break // a shallow repository: nothing of that is needed
			}
			return fmt.Errorf("%w: %q is no ref", errProtocol, printable(line))
		}
		if names += len(name); names > s.maxNames() {
			return tooMuch("source.max_refs", "the names of the repository's refs have more than %d bytes", s.maxNames())
		}
		if name == wanted || name == "HEAD" || strings.HasPrefix(name, branchPrefix) {
			s.said.refs[name] = plumbing.NewHash(id)
		}
		var err error
		if line, ok, err = in.line(); err != nil {
			return err
		}
	}
	if format := s.caps["object-format"]; format != "" && format != "sha1" {
		return fmt.Errorf("the repository has %s objects, which are not supported yet", printable(format))
	}
	return nil
}

// maxNames bounds what the names of refs may have in bytes: one packet has room for
// 64 KiB of them.
func (s *session) maxNames() int {
	const least, typical = 1000, 256
	return max(least, s.maxRefs) * typical
}

const branchPrefix = "refs/heads/"

// list asks for the refs that begin with a prefix.
func (s *session) list(ctx context.Context, prefix string) (*listing, error) {
	if !s.v2 {
		return s.said, nil
	}
	b := s.command("ls-refs")
	addLine(b, "symrefs")
	addLine(b, "ref-prefix %s", prefix)
	b.WriteString("0000")
	in, err := s.link.call(ctx, b.Bytes())
	if err != nil {
		return nil, err
	}
	l := &listing{refs: map[string]plumbing.Hash{}}
	names := 0
	for n := 0; ; n++ {
		line, ok, err := in.line()
		if err != nil {
			return nil, err
		}
		if !ok {
			return l, nil
		}
		if names += len(line); names > s.maxNames() {
			return nil, tooMuch("source.max_refs", "the names of the repository's refs have more than %d bytes", s.maxNames())
		}
		if n >= s.maxRefs {
			return nil, tooMuch("source.max_refs", "the repository has more than %d refs that begin with %s", s.maxRefs, prefix)
		}
		fields := strings.Split(line, " ")
		if len(fields) < 2 || !plumbing.IsHash(fields[0]) {
			return nil, fmt.Errorf("%w: %q is no ref", errProtocol, printable(line))
		}
		l.refs[strings.Clone(fields[1])] = plumbing.NewHash(fields[0])
		for _, attribute := range fields[2:] {
			if target, ok := strings.CutPrefix(attribute, "symref-target:"); ok && fields[1] == "HEAD" {
				l.head = target
			}
		}
	}
}

func (s *session) close() { s.link.close() }

func (s *session) command(name string) *bytes.Buffer {
	b := &bytes.Buffer{}
	addLine(b, "command=%s", name)
	if _, ok := s.caps["agent"]; ok {
		addLine(b, "agent=%s", userAgent())
	}
	if _, ok := s.caps["object-format"]; ok {
		addLine(b, "object-format=sha1")
	}
	b.WriteString("0001")
	return b
}

// userAgent is what servers note in their logs.
func userAgent() string {
	return "reconf-pull/" + strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return '-'
		}
		return r
	}, version.String())
}

// fetch asks for a pack.
func (s *session) fetch(ctx context.Context, r request) (*answer, error) {
	if s.v2 {
		return s.fetch2(ctx, r)
	}
	b := &bytes.Buffer{}
	caps := []string{"agent=" + userAgent()}
	// Some servers insist on multi_ack; its answers are skipped.
	for _, one := range []string{"ofs-delta", "side-band-64k", "multi_ack_detailed"} {
		if _, ok := s.caps[one]; ok {
			caps = append(caps, one)
		}
	}
	if _, ok := s.caps["no-progress"]; ok && r.progress == nil {
		caps = append(caps, "no-progress")
	}
	if _, ok := s.caps["shallow"]; !ok {
		r.depth = 0 // a server that can only send everything
	} else if r.depth > 0 || len(r.shallow) > 0 {
		caps = append(caps, "shallow")
	}
	addLine(b, "want %s %s", r.want, strings.Join(caps, " "))
	for _, id := range r.shallow {
		addLine(b, "shallow %s", id)
	}
	if r.depth > 0 {
		addLine(b, "deepen %d", r.depth)
	}
	b.WriteString("0000")
	if !r.have.IsZero() {
		addLine(b, "have %s", r.have)
	}
	addLine(b, "done")
	in, err := s.link.call(ctx, b.Bytes())
	if err != nil {
		return nil, err
	}
	a := &answer{}
	if r.depth > 0 {
		if err := a.shallows(in); err != nil {
			return nil, err
		}
	}
	for {
		ahead, err := in.r.Peek(len("0000ACK"))
		if err != nil {
			return nil, err
		}
		if text := string(ahead[4:]); text != "ACK" && text != "NAK" {
			break
		}
		if _, _, err := in.next(); err != nil {
			return nil, err
		}
	}
	if _, ok := s.caps["side-band-64k"]; ok {
		a.pack = &sideband{packets: in, progress: r.progress}
	} else {
		a.pack = in.r
	}
	return a, nil
}

func (s *session) fetch2(ctx context.Context, r request) (*answer, error) {
	b := s.command("fetch")
	addLine(b, "ofs-delta")
	if r.progress == nil {
		addLine(b, "no-progress")
	}
	features := strings.Fields(s.caps["fetch"])
	if !slices.Contains(features, "shallow") {
		r.depth, r.shallow = 0, nil
	}
	for _, id := range r.shallow {
		addLine(b, "shallow %s", id)
	}
	if r.depth > 0 {
		addLine(b, "deepen %d", r.depth)
	}
	addLine(b, "want %s", r.want)
	if !r.have.IsZero() {
		addLine(b, "have %s", r.have)
	}
	addLine(b, "done")
	b.WriteString("0000")
	in, err := s.link.call(ctx, b.Bytes())
	if err != nil {
		return nil, err
	}
	a := &answer{}
	for {
		section, ok, err := in.line()
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("%w: an answer without a pack", errProtocol)
		case section == "packfile":
			a.pack = &sideband{packets: in, progress: r.progress}
			return a, nil
		case section == "shallow-info":
			if err := a.shallows(in); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%w: a section %q", errProtocol, printable(section))
		}
	}
}

// shallows reads which commits come without their parents.
func (a *answer) shallows(in *packets) error {
	for {
		line, ok, err := in.line()
		if err != nil || !ok {
			return err
		}
		what, id, _ := strings.Cut(line, " ")
		if !plumbing.IsHash(id) || what != "shallow" && what != "unshallow" {
			return fmt.Errorf("%w: %q says of no commit that it is shallow", errProtocol, printable(line))
		}
		const enough = 10_000
		if len(a.shallow) == enough {
			return fmt.Errorf("%w: more than %d shallow commits", errProtocol, enough)
		}
		if what == "shallow" {
			a.shallow = append(a.shallow, plumbing.NewHash(id))
		}
	}
}

// stream is a link over one connection to a git-upload-pack of its own.
type stream struct {
	in    *packets
	out   io.Writer
	end   func() // of the connection
	wrong func() error
}

func newStream(r io.Reader, w io.Writer, end func(), wrong func() error) *stream {
	return &stream{in: newPackets(r), out: w, end: end, wrong: wrong}
}

// greet finds out whether there is a conversation at all: a server that has no such
// repository says so beside it.
func (s *stream) greet(context.Context) (*packets, error) {
	if _, err := s.in.r.Peek(1); err != nil {
		if why := s.wrong(); why != nil {
			return nil, why
		}
		return nil, err
	}
	return s.in, nil
}

func (s *stream) call(_ context.Context, request []byte) (*packets, error) {
	if _, err := s.out.Write(request); err != nil {
		return nil, err
	}
	return s.in, nil
}

func (s *stream) close() { s.end() }

// limitError is something foreign that is larger than the configuration allows.
type limitError struct{ key, text string }

func (e *limitError) Error() string { return e.text + ", the limit of " + e.key }

func tooMuch(key, format string, args ...any) error {
	return &limitError{key, fmt.Sprintf(format, args...)}
}

// countingReader fails when more than a limit comes through it.
type countingReader struct {
	r    io.Reader
	left int64
	over error
}

func (c *countingReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		if n, err := c.r.Read(p[:min(1, len(p))]); n == 0 {
			return 0, err
		}
		return 0, c.over
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// notFound tells whether a server's own words say that there is no such repository:
// neither ssh nor the git protocol has a status for it.
func notFound(said string) bool {
	said = strings.ToLower(said)
	return slices.ContainsFunc([]string{
		"does not appear to be a git repository", "repository not found", "could not be found", "no such repository",
		"repository not exported", "does not exist", "not our repository",
	}, func(words string) bool { return strings.Contains(said, words) })
}

var (
	errNotFound = errors.New("no such repository")
	errEmpty    = errors.New("the repository is empty")
)
