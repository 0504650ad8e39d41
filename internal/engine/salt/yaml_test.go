package salt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// odd are texts that YAML, Jinja or a terminal would rather not have.
var odd = []string{
	"", " ", "a", "0644", "null", "true", "~", "{{ x }}", "{% raw %}", "# no", "- x", "a: b", "&a *b !c", "'", `"`, `\`, "a\nb", "a\r\nb", "\t", "\x01\x1b\x7f",
	"\u0085\u00a0\u2028\ufeff", "ü", "日本", "😀", "\U0010ffff", "a\\nb", strings.Repeat("x", 3000),
}

func TestQuote(t *testing.T) {
	for _, text := range odd {
		document := "#!yaml\n" + key(text) + "\n  value: " + quote(text) + "\n"
		if strings.ContainsFunc(document, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' }) {
			t.Errorf("%q is not printable ASCII", document)
		}
		var got map[string]map[string]string
		if err := yaml.Unmarshal([]byte(document), &got); err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got[text]["value"] != text {
			t.Errorf("%q comes out as %q", text, got)
		}
	}
}

func TestFlow(t *testing.T) {
	value := map[string]any{
		"text": "x: {{ y }}", "number": int64(7), "float": 1e21, "half": 0.5, "yes": true, "none": nil,
		"list": []any{"a", int64(1), []any{}}, "odd: key": map[string]any{}, "{": "}",
	}
	var got map[string]any
	if err := yaml.Unmarshal([]byte("v: "+flow(value)), &got); err != nil {
		t.Fatalf("%v\n%s", err, flow(value))
	}
	want := map[string]any{
		"text": "x: {{ y }}", "number": 7, "float": 1e21, "half": 0.5, "yes": true, "none": nil,
		"list": []any{"a", 1, []any{}}, "odd: key": map[string]any{}, "{": "}",
	}
	if diff := cmp.Diff(want, got["v"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What cannot be told to Salt is refused, with a way out.
func TestPathsThatAreNoText(t *testing.T) {
	for path, text := range map[string]bool{"/etc/ü": true, "/etc/\xff": false, "/etc/a\x00": false} {
		if isText(path) != text {
			t.Errorf("%q: %v", path, !text)
		}
	}
	if err := notText("/etc/\xff"); !strings.Contains(err.Error(), `"/etc/\xff" is no UTF-8`) || !strings.Contains(err.Error(), "native") {
		t.Error(err)
	}
}
