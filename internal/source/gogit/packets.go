package gogit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxPacket is the largest packet of git's protocol, with its length.
const maxPacket = 65520

// kindOfPacket tells a packet with data from those that end something.
type kindOfPacket int

const (
	dataPacket      kindOfPacket = iota
	flushPacket                  // 0000
	delimiterPacket              // 0001
	endPacket                    // 0002
)

// packets reads git's protocol: four hex digits of a length, then that much.
type packets struct {
	r      *bufio.Reader
	buffer []byte
}

func newPackets(r io.Reader) *packets { return &packets{r: bufio.NewReader(r)} }

// next returns the next packet, which is good until the one after it is read. An
// ERR packet is an error.
func (p *packets) next() (kindOfPacket, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return 0, nil, err
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %q is no length of a packet", errProtocol, head)
	}
	if n < uint64(len(head)) {
		if n == 3 {
			return 0, nil, fmt.Errorf("%w: %q is no length of a packet", errProtocol, head)
		}
		return flushPacket + kindOfPacket(n), nil, nil
	}
	if n > maxPacket {
		return 0, nil, fmt.Errorf("%w: a packet of %d bytes", errProtocol, n)
	}
	if p.buffer == nil {
		p.buffer = make([]byte, maxPacket)
	}
	data := p.buffer[:int(n)-len(head)]
	if _, err := io.ReadFull(p.r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	if text, ok := bytes.CutPrefix(data, []byte("ERR ")); ok {
		return 0, nil, &saidError{string(text)}
	}
	return dataPacket, data, nil
}

// line is next for packets of text; ok is false for those that end something.
func (p *packets) line() (text string, ok bool, err error) {
	kind, data, err := p.next()
	return strings.TrimSuffix(string(data), "\n"), err == nil && kind == dataPacket, err
}

var errProtocol = errors.New("it does not speak git's protocol")

// saidError is what a server says is wrong.
type saidError struct{ text string }

func (e *saidError) Error() string { return "the server said: " + e.text }

// addLine appends a packet of text to a request.
func addLine(b *bytes.Buffer, format string, args ...any) {
	text := fmt.Sprintf(format, args...) + "\n"
	fmt.Fprintf(b, "%04x%s", len(text)+4, text)
}

// sideband is the pack in what a server sends beside it.
type sideband struct {
	packets  *packets
	progress io.Writer // nil: nobody wants to see it
	left     []byte
	err      error
}

func (s *sideband) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.left, s.err = s.data()
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *sideband) data() ([]byte, error) {
	kind, data, err := s.packets.next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case kind != dataPacket:
		return nil, io.EOF
	case len(data) == 0:
		return nil, nil
	}
	switch band, rest := data[0], data[1:]; band {
	case 1:
		return rest, nil
	case 2:
		if s.progress != nil {
			_, err = s.progress.Write(rest)
		}
		return nil, err
	case 3:
		return nil, &saidError{strings.TrimPrefix(string(rest), "fatal: ")}
	default:
		return nil, fmt.Errorf("%w: band %d", errProtocol, band)
	}
}
