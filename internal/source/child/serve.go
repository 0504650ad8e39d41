package child

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// Mirror is what the process without privileges has: the remote, and what was
// fetched from it.
type Mirror interface {
	objects.Store
	Fetch(ctx context.Context) (source.Revision, error)
	Deepen()
	Discard() error
}

// Opener opens the mirror by what Options.Setup said.
type Opener func(setup []byte, progress io.Writer, log logrus.FieldLogger) (Mirror, error)

// Serve answers requests until in is closed.
func Serve(in io.Reader, out io.Writer, opener Opener) error {
	s := &server{wire: newWire(in, out), open: opener, readers: map[uint64]io.ReadCloser{}}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	requests := make(chan request)
	go func() {
		defer close(requests)
		defer stop() // who asks is gone
		for {
			kind, content, err := s.wire.receive()
			if err != nil {
				return
			}
			if kind == cancel {
				s.cancel()
				continue
			}
			select {
			case requests <- request{kind, content}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for req := range requests {
		within, cancel := context.WithCancel(ctx)
		s.serving(cancel)
		content, err := s.serve(within, req)
		s.serving(nil)
		cancel()
		if err != nil {
			err = s.say(failed, packFailure(err))
		} else {
			err = s.say(answer, content...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type request struct {
	kind    byte
	content []byte
}

type server struct {
	wire   *wire
	open   Opener
	mirror Mirror

	readers map[uint64]io.ReadCloser
	last    uint64 // handle
	buffer  []byte // of what is being sent

	mu   sync.Mutex // of the lines below, and of what is written
	stop context.CancelFunc
}

// serving says how the request that is served can be ended.
func (s *server) serving(stop context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = stop
}

func (s *server) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		s.stop()
	}
}

func (s *server) say(kind byte, content ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wire.send(kind, content...)
}

func (s *server) serve(ctx context.Context, req request) (content [][]byte, err error) {
	if req.kind == setUp {
		log := logrus.New()
		log.SetOutput(io.Discard)
		log.SetLevel(logrus.DebugLevel)
		log.AddHook(&sayLog{s})
		s.mirror, err = s.open(req.content, &sayProgress{s}, log)
		return nil, err
	}
	if s.mirror == nil {
		return nil, errors.New("internal error: nothing was set up")
	}
	switch req.kind {
	case fetch:
		rev, err := s.mirror.Fetch(ctx)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(rev)
		return [][]byte{data}, err
	case deepen:
		s.mirror.Deepen()
		return nil, nil
	case discard:
		return nil, s.mirror.Discard()
	case open:
		return s.openObject(req.content)
	case next:
		return s.more(req.content)
	case release:
		return nil, s.release(req.content)
	case size:
		n, err := s.mirror.Size(hex.EncodeToString(req.content))
		return [][]byte{number(uint64(n))}, err
	case commits:
		return s.commits(ctx, req.content)
	}
	return nil, fmt.Errorf("internal error: unknown request %q", req.kind)
}

func (s *server) openObject(content []byte) ([][]byte, error) {
	kind, id, ok := bytes.Cut(content, []byte{0})
	if !ok {
		return nil, errProtocol
	}
	r, size, err := s.mirror.Open(objects.Kind(kind), hex.EncodeToString(id))
	if err != nil {
		return nil, err
	}
	// One byte more than there should be: a small object is read to its end.
	first := s.room(min(size+1, chunk))
	n, err := io.ReadFull(r, first)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return [][]byte{number(uint64(size)), number(0), first[:n]}, r.Close()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	s.last++
	s.readers[s.last] = r
	return [][]byte{number(uint64(size)), number(s.last), first}, nil
}

func (s *server) more(content []byte) ([][]byte, error) {
	r, err := s.reader(content)
	if err != nil {
		return nil, err
	}
	data := s.room(chunk)
	n, err := io.ReadFull(r, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return [][]byte{data[:n]}, nil
}

// room is used again for the next answer.
func (s *server) room(size int64) []byte {
	s.buffer = slices.Grow(s.buffer[:0], int(size))[:size]
	return s.buffer
}

func (s *server) release(content []byte) error {
	r, err := s.reader(content)
	if err != nil {
		return err
	}
	delete(s.readers, binary.BigEndian.Uint64(content))
	return r.Close()
}

func (s *server) reader(content []byte) (io.ReadCloser, error) {
	if len(content) == 8 {
		if r, ok := s.readers[binary.BigEndian.Uint64(content)]; ok {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no such reader", errProtocol)
}

func (s *server) commits(ctx context.Context, content []byte) ([][]byte, error) {
	if len(content) != 8+objects.IDSize {
		return nil, errProtocol
	}
	found, err := s.mirror.Commits(ctx, hex.EncodeToString(content[8:]), int(binary.BigEndian.Uint64(content)))
	if err != nil {
		return nil, err
	}
	var parts [][]byte
	total := 0
	for _, data := range found {
		if total += len(data) + 8; total > maxBatch {
			break // the first one is asked for as an object
		}
		parts = append(parts, number(uint64(len(data))), data)
	}
	return parts, nil
}

// sayProgress passes on what the remote says while it packs.
type sayProgress struct{ s *server }

func (p *sayProgress) Write(data []byte) (int, error) {
	for part := range slices.Chunk(data, maxText) {
		if err := p.s.say(progress, part); err != nil {
			return 0, err
		}
	}
	return len(data), nil
}

// sayLog passes on what is logged.
type sayLog struct{ s *server }

func (*sayLog) Levels() []logrus.Level { return logrus.AllLevels }

func (l *sayLog) Fire(entry *logrus.Entry) error {
	n := logNote{Level: entry.Level.String(), Text: entry.Message}
	if err, ok := entry.Data[logrus.ErrorKey].(error); ok {
		n.Error = err.Error()
	}
	n.Text, n.Error = source.Printable(n.Text, maxText), source.Printable(n.Error, maxText)
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return l.s.say(note, data)
}
