package hooks

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"unicode"
)

const (
	maxLine = 4 << 10
	maxTail = 10
)

// lines is the output of a script as lines. However much it prints, at most
// maxLine bytes and maxTail lines are kept.
type lines struct {
	emit func(string)
	// most bounds what one script can put into the journal, whose rate limit would also
	// swallow our own messages.
	most int

	mu      sync.Mutex
	closed  bool
	part    []byte // the line that has no end yet
	cut     int    // how much of it was dropped
	tail    []string
	count   int
	dropped int
}

// Write never fails: a script is not ended for what it prints.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		piece, after, ended := bytes.Cut(rest, []byte{'\n'})
		room := min(len(piece), maxLine-len(l.part))
		l.part = append(l.part, piece[:room]...)
		l.cut += len(piece) - room
		if ended {
			l.line()
		}
		rest = after
	}
	return len(p), nil
}

// line ends the present line.
func (l *lines) line() {
	text := clean(l.part)
	if l.cut > 0 {
		text += fmt.Sprintf("… (%d bytes more)", l.cut)
	}
	l.part, l.cut = l.part[:0], 0
	if len(l.tail) == maxTail {
		l.tail = append(l.tail[:0], l.tail[1:]...)
	}
	l.tail = append(l.tail, text)
	if l.count++; l.count > l.most {
		l.dropped++
		return
	}
	l.emit(text)
}

// close ends the last line and returns the last ones. What is written later,
// by something that the script left behind, goes nowhere.
func (l *lines) close() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.line()
	}
	l.closed = true
	if l.dropped > 0 {
		l.emit(fmt.Sprintf("… (%d lines more, not shown: hooks.max_lines)", l.dropped))
	}
	return l.tail
}

// clean makes a line harmless to a terminal and to the journal. Of a line that
// was overwritten, as progress bars are, the last version stays.
func clean(line []byte) string {
	line = bytes.TrimRight(line, "\r")
	line = line[bytes.LastIndexByte(line, '\r')+1:]
	return strings.Map(func(r rune) rune {
		if r != '\t' && unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(string(line), string(unicode.ReplacementChar)))
}
