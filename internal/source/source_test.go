package source_test

import (
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

func TestHasStem(t *testing.T) {
	for _, test := range []struct {
		name, stem string
		want       bool
	}{
		{"web1", "web1", true},
		{"web1.bu", "web1", true},
		{"WEB1.bu.tmpl", "web1", true},
		{"web1.example.com.bu", "Web1.Example.Com", true},
		{"web1.example.com.bu", "web1.example.com.b", false},
		{"\u212Aey.bu", "key", true}, // the sign for kelvin, which is a k in another case
		{"web10.bu", "web1", false},
		{"web1", "web1.bu", false},
		{"a.web1", "web1", false},
		{".web1", "web1", false},
		{"", "web1", false},
		{"anything", "", true},
		{"any.thing", "/", false},
	} {
		if got := source.HasStem(test.name, test.stem); got != test.want {
			t.Errorf("%q has the stem %q: %v", test.name, test.stem, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain é":               "plain é",
		"\x1b[31mred\a\r\n\t":   " [31mred    ",
		"not\xffUTF-8":          "notUTF-8",
		"\u202eevil":            " evil",
		strings.Repeat("é", 20): "éééééééééé…",
	} {
		if got := source.Printable(text, 21); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
