// Package child fetches the fleet repo in a process without privileges.
//
// Its one rule: this process believes nothing that the other says. It asks it for
// objects by their ids and hashes what comes; it opens nothing that the other can
// write; and what the other has to say in words is bounded and made printable.
package child

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// Both ends are the same program, so that the protocol has no versions: frames of
// one byte that says what they are, four bytes of length, and that many of
// content. A request gets any number of notes and then one answer; only cancel has
// none, and comes while a request is served.
const (
	setUp   = 'S' // JSON
	fetch   = 'F' // -> JSON of a source.Revision
	deepen  = 'D'
	discard = 'X'
	open    = 'O' // kind, id -> size, handle or 0, first bytes
	next    = 'N' // handle -> more bytes; none: the end
	release = 'E' // handle
	size    = 'Z' // id -> size
	commits = 'H' // number, id -> length and bytes of each; none: the first is too large
	cancel  = 'C'

	answer   = 'r'
	failed   = 'e' // JSON of a failure
	progress = 'p' // what the server says while it packs
	note     = 'l' // JSON of a logNote
)

const (
	// maxFrame bounds a frame in bytes; chunk is what of an object is put into one:
	// a folder of 10,000 entries fits.
	maxFrame = 1<<20 + 64
	chunk    = 512 << 10
	// maxBatch bounds the commits of one answer in bytes.
	maxBatch = 256 << 10
	// maxNotes bounds how often something is said while one request is served, and
	// maxText how much at once.
	maxNotes = 10_000
	maxText  = 2_000
)

var errProtocol = errors.New("what it says is not what was asked for")

type wire struct {
	r *bufio.Reader
	w *bufio.Writer // which passes on large parts as they are
}

func newWire(r io.Reader, w io.Writer) *wire {
	return &wire{bufio.NewReaderSize(r, 64<<10), bufio.NewWriter(w)}
}

func (c *wire) send(kind byte, content ...[]byte) error {
	length := 0
	for _, part := range content {
		length += len(part)
	}
	if length > maxFrame {
		return fmt.Errorf("%d bytes are too many for a message", length)
	}
	var head [5]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(length))
	_, _ = c.w.Write(head[:]) // what goes wrong is kept for Flush
	for _, part := range content {
		_, _ = c.w.Write(part)
	}
	return c.w.Flush()
}

func (c *wire) receive() (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); errors.Is(err, io.EOF) {
		return 0, nil, io.ErrUnexpectedEOF // it must not be taken for the end of an object
	} else if err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length > maxFrame {
		return 0, nil, fmt.Errorf("%w: a message of %d bytes", errProtocol, length)
	}
	content = make([]byte, length)
	if _, err := io.ReadFull(c.r, content); err != nil {
		return 0, nil, fmt.Errorf("%w: a message is cut off", errProtocol)
	}
	return head[0], content, nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func rawID(id string) ([]byte, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != objects.IDSize || hex.EncodeToString(raw) != id { // in capitals it would be another name
		return nil, fmt.Errorf("%.60q is no object id", id)
	}
	return raw, nil
}

// logNote is a message for the log.
type logNote struct{ Level, Text, Error string }

// failure is an error on its way.
type failure struct {
	Text, Hint string
	Hinted     bool // it was a *source.Error
	Kinds      []string
}

// kinds are what callers decide on, and no others: one that is taken for a file which
// is not in a tree, or for a run that somebody ended, would be believed.
var kinds = map[string]error{
	"unavailable": source.ErrUnavailable, "local": source.ErrLocal, "damaged": source.ErrDamaged, "untrusted": source.ErrUntrusted,
	"shallow": source.ErrShallow, "malformed": source.ErrMalformed, "missing": objects.ErrMissing,
	"full": syscall.ENOSPC, "quota": syscall.EDQUOT, "broken": syscall.EIO,
}

func packFailure(err error) []byte {
	f := failure{Text: err.Error()}
	var hinted *source.Error
	if f.Hinted = errors.As(err, &hinted); f.Hinted {
		f.Text, f.Hint = hinted.Error(), hinted.Hint
	}
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			f.Kinds = append(f.Kinds, name)
		}
	}
	f.Text, f.Hint = source.Printable(f.Text, maxText), source.Printable(f.Hint, maxText)
	data, _ := json.Marshal(f) // of strings and numbers
	return data
}

// remoteError is what went wrong in the other process, in its words.
type remoteError struct {
	text  string
	kinds []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.kinds }

// unpackFailure: ended is why the request was given up, nil where it was not.
func unpackFailure(data []byte, ended error, rename func(string) string) error {
	var f failure
	if err := json.Unmarshal(data, &f); err != nil || f.Text == "" {
		return fmt.Errorf("%w: an error without a text", errProtocol)
	}
	e := &remoteError{text: rename(source.Printable(f.Text, maxText))}
	for _, name := range f.Kinds {
		if kind, ok := kinds[name]; ok {
			e.kinds = append(e.kinds, kind)
		}
	}
	if ended != nil {
		e.kinds = append(e.kinds, ended)
	}
	if f.Hinted {
		return &source.Error{Err: e, Hint: rename(source.Printable(f.Hint, maxText))}
	}
	return e
}
