package hooks

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzLines: what reaches the journal is bounded and harmless, however it was written.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\nc\rd\n\x1b[31mred\x00\xff"), 3)
	f.Add([]byte(strings.Repeat("x", 5000)+"\n"), 1000)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		const most = 5
		var got []string
		l := &lines{most: most, emit: func(line string) { got = append(got, line) }}
		for rest := data; len(rest) > 0; {
			n := min(max(piece, 1), len(rest))
			if wrote, err := l.Write(rest[:n]); wrote != n || err != nil {
				t.Fatal(wrote, err)
			}
			rest = rest[n:]
		}
		tail := l.close()
		if len(got) > most+1 || len(tail) > maxTail {
			t.Errorf("%d lines and a tail of %d", len(got), len(tail))
		}
		for _, line := range append(got, tail...) {
			// A byte that is no UTF-8 becomes three.
			if len(line) > 3*maxLine+100 || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
				t.Errorf("a line %q", line)
			}
		}
	})
}
