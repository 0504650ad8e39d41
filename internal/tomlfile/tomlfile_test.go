package tomlfile_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

type duration struct{ time.Duration }

func (d *duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

type file struct {
	Schema   int    `toml:"schema"`
	FilesDir string `toml:"files_dir"`
	Source   struct {
		URL     string   `toml:"url"`
		Timeout duration `toml:"timeout"`
	} `toml:"source"`
	Host  map[string]hostTable `toml:"host"`
	Units []hostTable          `toml:"unit"`
}

type hostTable struct {
	Retired bool           `toml:"retired"`
	Vars    map[string]any `toml:"vars"`
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string // lines of the error; none: no error
	}{
		{"everything known", "schema = 1\n[source]\nurl = 'x'\ntimeout = '2m'\n[host.web1]\nretired = true\nvars = { a = { b = 1 } }\n", nil},
		{"empty", "", nil},
		{"unknown with a near one", "schema = 1\nfile_dir = 'x'\n", []string{`f.toml:2:1: unknown key "file_dir" (did you mean "files_dir"?)`}},
		{"unknown without a near one", "whatever = 1\n", []string{`f.toml:1:1: unknown key "whatever"`}},
		{"case matters", "Schema = 1\n", []string{`f.toml:1:1: unknown key "Schema" (did you mean "schema"?)`}},
		{"all of them", "a = 1\n\n[source]\n  ulr = 'x'\n[other]\nb = 1\nc = 2\n", []string{
			`f.toml:1:1: unknown key "a"`,
			`f.toml:4:3: unknown key "source.ulr" (did you mean "source.url"?)`,
			`f.toml:5:1: unknown key "other"`,
		}},
		{"dotted unknown parent", "x.y = 1\n", []string{`f.toml:1:1: unknown key "x"`}},
		{"in a map of tables", "[host.web1]\nretird = true\n", []string{`f.toml:2:1: unknown key "host.web1.retird" (did you mean "host.web1.retired"?)`}},
		{"in an array of tables", "[[unit]]\nretired = true\n[[unit]]\nretird = true\n", []string{`f.toml:4:1: unknown key "unit.retird" (did you mean "unit.retired"?)`}},
		{"in an inline table", "source = { ulr = 'x' }\n", []string{`f.toml:1:1: unknown key "source.ulr" (did you mean "source.url"?)`}},
		{"syntax", "schema = 1\nfiles_dir = \n", []string{`f.toml:2:13: expected value but found '\n' instead`}},
		{"twice", "schema = 1\nschema = 2\n", []string{`f.toml:2:11: Key 'schema' has already been defined`}},
		{"wrong type", "schema = 'one'\n", []string{`f.toml:1:1: "schema" is a string, and an integer is needed`}},
		{"value for a table", "host = 5\n", []string{`f.toml:1:1: "host" is an integer, and a table is needed`}},
		{"text refused", "[source]\ntimeout = 'soon'\n", []string{`f.toml:2:12: time: invalid duration "soon"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var into file
			err := tomlfile.Decode("f.toml", []byte(tt.in), &into)
			var got []string
			if err != nil {
				var e *finding.Failure
				if !errors.As(err, &e) {
					t.Fatalf("error is %T, want *finding.Failure", err)
				}
				got = strings.Split(err.Error(), "\n")
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
		})
	}
}

func TestDecodeKeepsDefaults(t *testing.T) {
	into := file{FilesDir: "."}
	if err := tomlfile.Decode("f.toml", []byte("schema = 1\n"), &into); err != nil {
		t.Fatal(err)
	}
	if into.FilesDir != "." || into.Schema != 1 {
		t.Errorf("got %+v", into)
	}
}

func TestFind(t *testing.T) {
	data := []byte("schema = 1\n[host.\"web 1\"]\n\tretired = true\n")
	for _, tt := range []struct {
		key  []string
		want string
	}{
		{[]string{"schema"}, "f.toml:1:1"},
		{[]string{"host", "web 1", "retired"}, "f.toml:3:2"},
		{[]string{"files_dir"}, "f.toml"},
		{[]string{"schema", "x"}, "f.toml"},
	} {
		if got := tomlfile.Find("f.toml", data, tt.key...).String(); got != tt.want {
			t.Errorf("Find(%q) = %s, want %s", tt.key, got, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"url", "branch", "timeout", "ca_file"}
	for word, want := range map[string]string{"ulr": "url", "brnch": "branch", "TIMEOUT": "timeout", "x": "", "cafile": "ca_file", "schema": ""} {
		if got := tomlfile.Nearest(word, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"schema = 1\n", "[host.a]\nx.y = 1\n", "[[unit]]\na=[{b=1}]\n", "\ufeffa = 'x", "''.'' = 1", "a = [[1], [{x=1}]]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var into file
		err := tomlfile.Decode("f.toml", data, &into)
		var e *finding.Failure
		if err != nil && (!errors.As(err, &e) || len(e.Findings) == 0 || err.Error() == "") {
			t.Errorf("error without a finding: %#v", err)
		}
	})
}
