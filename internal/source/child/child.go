package child

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// Command is the argument with which the program becomes the other process.
const Command = "fetch-child"

const (
	// defaultPatience is Options.Patience where that is 0.
	defaultPatience = time.Minute
	// answers is how often an answer may take its time: a process that is always just
	// in time would keep this one for days.
	answers = 15
	// grace is what an end in good order may take.
	grace = time.Second
)

// Options say how the other process is started, and what it is told.
type Options struct {
	// Dir is the one directory that it may write. It is made when it is missing, and
	// made anew when it is somebody else's.
	Dir  string
	User *run.User // nil: whoever runs this
	Env  []string  // besides PATH
	Read []string  // besides what TLS, ssh, name look-ups and git need
	// Agent is the socket of an ssh-agent with which it may log in as AgentUser, ""
	// for none.
	Agent, AgentUser string
	// Setup returns what the Opener gets, as JSON.
	Setup func(file HandOver) any
	// Ref is the only Revision.Ref that a Fetch may bring; "": any branch.
	Ref     string
	Timeout time.Duration // of one whole Fetch; the other process keeps it, too
	// Patience is what an answer may take besides, and all answers of one process
	// together 15 times that: one that is late has no answer.
	Patience time.Duration

	// Memory is a file, in a directory that the other process cannot write, where
	// what was found in large folders is remembered; "": none. It is not waited for
	// until it is on the disk.
	Memory string

	Progress io.Writer // for a terminal; nil: nothing
	Log      logrus.FieldLogger
}

// HandOver gives the other process a copy in memory of what read returns for the
// path, and returns the name under which it is found there: that process may not be
// allowed to open the file. One that is not there is not there for it, either.
type HandOver = func(path string, read func(path string) ([]byte, error)) string

// Source is a fleet repo that another process fetches. It may be used by several
// goroutines, and Fetch by one at a time.
type Source struct {
	objects.Repo
	o Options

	mu   sync.Mutex // one request after the other
	peer *peer      // nil: none runs
	deep bool
}

// New starts nothing.
func New(o Options) *Source {
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	s := &Source{o: o}
	s.Repo.Store = s
	if o.Memory != "" {
		s.Repo.Memory = &objects.Memory{Load: s.recall}
	}
	return s
}

// maxMemory bounds Options.Memory in bytes; a larger file is none.
const maxMemory = 4 << 20

// recall reads what an earlier process remembered. A file that somebody else could have
// written, or none, is no memory.
func (s *Source) recall() []byte {
	data, err := host.ReadTrusted(s.o.Memory, maxMemory)
	if err != nil {
		return nil
	}
	return data
}

// remember keeps it for the next.
func (s *Source) remember() {
	if s.Memory == nil {
		return
	}
	data, learnt := s.Memory.Save()
	if !learnt {
		return
	}
	if err := atomicfile.WriteVolatile(s.o.Memory, data, 0o600); err != nil {
		s.o.Log.Debugf("remembering folders: %v", err)
	}
}

// forget removes it.
func (s *Source) forget() error {
	if s.Memory == nil {
		return nil
	}
	s.Memory.Forget()
	if err := os.Remove(s.o.Memory); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Start starts the other process, and lets it make itself ready while this one does
// something else. What goes wrong is said by the first request.
func (s *Source) Start() {
	s.mu.Lock()
	// Not in the background: between fork and exec it holds what this process has
	// locked, and would do so for a moment if this one were killed.
	setup, err := s.launch()
	if err != nil {
		s.mu.Unlock()
		return // it is tried again
	}
	go func() {
		defer s.mu.Unlock()
		_ = s.greet(setup) // likewise
	}()
}

// Fetch brings the tip of the branch.
func (s *Source) Fetch(ctx context.Context) (source.Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := s.ask(ctx, s.o.Timeout, fetch)
	if err != nil {
		return source.Revision{}, err
	}
	var rev source.Revision
	if err := json.Unmarshal(data, &rev); err != nil {
		return rev, s.broken(fmt.Errorf("%w: no revision", errProtocol))
	}
	branch, ok := strings.CutPrefix(rev.Ref, "refs/heads/")
	if _, err := rawID(rev.Commit); err != nil || !ok || branch == "" || len(rev.Ref) > maxText || source.Printable(rev.Ref, maxText) != rev.Ref || s.o.Ref != "" && rev.Ref != s.o.Ref {
		return source.Revision{}, s.broken(fmt.Errorf("%w: commit %.60q of %.200q", errProtocol, rev.Commit, rev.Ref))
	}
	return rev, nil
}

// Deepen makes the next Fetch bring all commits, where the mirror is shallow.
func (s *Source) Deepen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deep = true
	_, _ = s.ask(context.Background(), 0, deepen) // a new process is told when it starts
}

// Discard removes the mirror, and forgets what was in it. The next Fetch clones it
// again.
func (s *Source) Discard() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.ask(context.Background(), 0, discard)
	return errors.Join(err, s.forget())
}

// Close ends the other process, which is doing nothing.
func (s *Source) Close() error {
	s.remember()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peer != nil {
		s.peer.process.Kill()
		s.peer.end(grace)
		s.peer = nil
	}
	return nil
}

// Open is objects.Store.
func (s *Source) Open(kind objects.Kind, id string) (io.ReadCloser, int64, error) {
	raw, err := rawID(id)
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := s.ask(context.Background(), 0, open, []byte(kind), []byte{0}, raw)
	if err != nil {
		return nil, 0, err
	}
	if len(data) < 16 {
		return nil, 0, s.broken(fmt.Errorf("%w: an object without a size", errProtocol))
	}
	r := &reader{s: s, of: s.peer, handle: binary.BigEndian.Uint64(data[8:]), data: data[16:]}
	return r, int64(binary.BigEndian.Uint64(data)), nil
}

// Size is objects.Store.
func (s *Source) Size(id string) (int64, error) {
	raw, err := rawID(id)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := s.ask(context.Background(), 0, size, raw)
	if err == nil && len(data) != 8 {
		err = s.broken(fmt.Errorf("%w: a size of %d bytes", errProtocol, len(data)))
	}
	if err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(data)), nil
}

// Commits is objects.Store.
func (s *Source) Commits(ctx context.Context, id string, most int) ([][]byte, error) {
	found, err := s.askCommits(ctx, id, most)
	if err != nil || len(found) > 0 {
		return found, err
	}
	one, err := s.Commit(ctx, id) // it is too large for one message
	return [][]byte{one}, err
}

func (s *Source) askCommits(ctx context.Context, id string, most int) (found [][]byte, err error) {
	raw, err := rawID(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := s.ask(ctx, 0, commits, number(uint64(most)), raw)
	if err != nil {
		return nil, err
	}
	for len(data) > 0 {
		if len(data) < 8 || binary.BigEndian.Uint64(data) > uint64(len(data)-8) {
			return nil, s.broken(fmt.Errorf("%w: a commit is cut off", errProtocol))
		}
		end := 8 + binary.BigEndian.Uint64(data)
		found, data = append(found, data[8:end]), data[end:]
	}
	return found, nil
}

// reader is an object that comes in parts.
type reader struct {
	s      *Source
	of     *peer
	handle uint64 // 0: all of it is here
	data   []byte
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.data) == 0 && r.handle != 0 {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		if r.s.peer != r.of {
			return 0, errGone
		}
		var err error
		if r.data, err = r.s.ask(context.Background(), 0, next, number(r.handle)); err != nil {
			return 0, err
		}
	}
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// Whole is objects.Whole.
func (r *reader) Whole() ([]byte, bool) { return r.data, r.handle == 0 }

func (r *reader) Close() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.handle == 0 || r.s.peer != r.of {
		return nil
	}
	_, err := r.s.ask(context.Background(), 0, release, number(r.handle))
	r.handle, r.data = 0, nil
	return err
}

// peerError is what is wrong with the other process itself.
type peerError struct {
	text  string
	cause error
}

func (e *peerError) Error() string   { return "the process that fetches " + e.text }
func (e *peerError) Unwrap() []error { return []error{source.ErrLocal, e.cause} }

var errGone = &peerError{"was started again, and what was being read is lost", io.ErrUnexpectedEOF}

const endedHint = "The next run starts another one. Where it was killed, the journal of the kernel says whether memory was short."

// broken ends a process that cannot be talked to.
func (s *Source) broken(err error) error {
	p := s.peer
	s.peer = nil
	p.process.Kill()
	ended := p.end(grace)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &source.Error{Err: &peerError{"did not answer in time, and was killed", err}, Hint: endedHint}
	case errors.Is(err, errProtocol):
		return &source.Error{
			Err:  &peerError{"was killed: " + err.Error(), err},
			Hint: "Something took it over, or it is not the same program: the next run starts another one. Nothing that it said was used.",
		}
	}
	return &source.Error{Err: &peerError{"ended before its time: " + ended, err}, Hint: endedHint}
}

// ask sends a request, which may take some time besides, and waits for its answer.
// s.mu is held.
func (s *Source) ask(ctx context.Context, takes time.Duration, kind byte, content ...[]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.peer == nil {
		if err := s.connect(); err != nil {
			return nil, err
		}
	}
	return s.peer.ask(ctx, takes, s, kind, content...)
}

// connect starts a process and tells it what to do.
func (s *Source) connect() error {
	setup, err := s.launch()
	if err != nil {
		return err
	}
	return s.greet(setup)
}

func (s *Source) launch() (setup []byte, err error) {
	if err := prepare(s.o.Dir, s.o.User); err != nil {
		return nil, err
	}
	files := &files{user: s.o.User}
	defer files.close()
	setup, err = json.Marshal(s.o.Setup(files.add))
	if err := errors.Join(err, files.err); err != nil {
		return nil, err
	}
	if s.o.Agent != "" {
		if err := files.addAgent(s.o.Agent, s.o.AgentUser); err != nil {
			return nil, err
		}
	}
	if s.peer, err = s.start(files); err != nil {
		files.agent.close()
		return nil, &source.Error{Err: &peerError{"cannot be started: " + err.Error(), err}}
	}
	return setup, nil
}

func (s *Source) greet(setup []byte) error {
	started := s.peer
	_, err := started.ask(context.Background(), 0, s, setUp, setup)
	if err == nil && s.deep {
		_, err = started.ask(context.Background(), 0, s, deepen)
	}
	if err != nil && s.peer == started {
		started.end(grace)
		s.peer = nil
	}
	return err
}
