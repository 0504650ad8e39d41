package container

import (
	"strings"
	"testing"
)

// A tag stands for everything that the image is made from.
func TestTag(t *testing.T) {
	text := []byte("ARG BASE=a\nFROM ${BASE}\n")
	one := (&Image{}).tag(text)
	if !strings.HasPrefix(one, "localhost/reconf-pull-salt:") || one != (&Image{File: "elsewhere", Scratch: "x"}).tag(text) {
		t.Errorf("the tag is %s", one)
	}
	for name, other := range map[string]string{
		"another base": (&Image{Base: "b"}).tag(text), "another text": (&Image{}).tag(text[1:]),
	} {
		if other == one {
			t.Errorf("%s has the same tag", name)
		}
	}
}

func TestPulling(t *testing.T) {
	for _, test := range []struct{ said, want string }{
		{"", ""},
		{"Error: no such file", ""},
		{"STEP 1/2: FROM registry.example/base:1\nTrying to pull registry.example/base:1...\nError: creating build container: …", "registry.example/base:1"},
		{"[1/2] STEP 1/2: FROM registry.example/base:1 AS build\nError: creating build container: …", "registry.example/base:1"},
		{"STEP 1/2: FROM base\nSTEP 2/2: RUN false\nError: building at STEP \"RUN false\": exit status 1", ""},
	} {
		if got := pulling([]byte(test.said)); got != test.want {
			t.Errorf("%q: %q, want %q", test.said, got, test.want)
		}
	}
}
