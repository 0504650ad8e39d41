package salt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// recorded is the output of a run that the real salt-call made: testdata/recordings.
func recorded(t *testing.T, name, run string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "recordings", name, run+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func where(sls string) string {
	if sls == "migrations.10-clean" {
		return "hosts/web1/10-clean.sls"
	}
	return strings.ReplaceAll(sls, ".", "/") + ".sls"
}

// verdict is what becomes of an output: the findings, one a line.
func verdict(t *testing.T, out []byte, dry bool) string {
	t.Helper()
	states, err := parse(out)
	var compiled *compileError
	var list finding.List
	switch {
	case errors.As(err, &compiled):
		list = compiled.explain(where)
	case err != nil:
		return err.Error()
	default:
		list = judge(states, nil, dry, where)
	}
	return strings.ReplaceAll((&finding.Failure{Findings: list}).Error(), "\t", " ")
}

func TestRecordings(t *testing.T) {
	const (
		mock = "run1"
		dry  = "run2"
		real = "run3"
	)
	for _, c := range []struct{ name, run, want string }{
		{"converge", mock, ""},
		{"converge", dry, ""},
		{"converge", real, ""},
		{"one-state-fails", mock, ""},
		{"one-state-fails", dry, "main.sls: state /srv/rec/b/isdir (file.managed): Specified target /srv/rec/b/isdir is a directory\nmain.sls: state /srv/rec/b/dep (file.managed): One or more requisite failed: main./srv/rec/b/isdir"},
		{"yaml-error", mock, "main.sls: Rendering SLS 'base:main' failed: found unexpected end of stream"},
		{"duplicate-id", mock, `main.sls:5:1: Rendering SLS 'base:main' failed: while constructing a mapping in "<unicode string>", line 2, column 1 found conflicting ID '/srv/rec/e/a' in "<unicode string>", line 5, column 1`},
		{"unknown-function", mock, "main.sls: state /srv/rec/d/a (file.manged): State 'file.manged' was not found in SLS 'main' Reason: 'file.manged' is not available."},
		{"requisite-missing", mock, "main.sls: state /srv/rec/i/a (file.managed): The following requisites were not found: require: file: /nope"},
		{"pillar-error", mock, "Pillar failed to render with the following messages:\nbroken.sls: Rendering SLS 'broken' failed. Please see master log for details."},
		{"jinja-by-default", dry, ""},
		{"migration-include", real, ""},
		{"no-follow-symlink", real, ""},
		{"failing-migration", mock, ""},
		{"failing-migration", dry, ""},
		{"failing-migration", real, "hosts/web1/10-clean.sls: state stop it (cmd.run): Command \"echo hunter2 >&2; false\" run"},
		{"half-way", real, "hosts/web1/10-clean.sls: state second (cmd.run): Command \"false\" run"},
		{"yaml-error-in-migration", mock, `hosts/web1/10-clean.sls:5:1: Rendering SLS 'base:migrations.10-clean' failed: while parsing a flow node did not find expected node content in "<unicode string>", line 5, column 1`},
		{"jinja-error-in-migration", mock, "hosts/web1/10-clean.sls:5: Rendering SLS 'base:migrations.10-clean' failed: Jinja variable 'nosuch' is undefined; line 5"},
		{"include-missing", mock, "migrations/nowhere.sls: Specified SLS migrations.nowhere in saltenv base is not available on the salt master or through a configured fileserver"},
		{"empty-migration", real, ""},
	} {
		t.Run(c.name+" "+c.run, func(t *testing.T) {
			if diff := cmp.Diff(c.want, verdict(t, recorded(t, c.name, c.run), c.run != real)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An SLS without states gives a map without states, which is no success where
// there should be one.
func TestNoStateAtAll(t *testing.T) {
	states, err := parse(recorded(t, "empty-sls", "run1"))
	if err != nil || len(states) != 0 {
		t.Fatalf("%v, %v", states, err)
	}
	if list := judge(states, []string{"/etc/a"}, true, where); len(list) != 1 || !strings.Contains(list[0].Message, "/etc/a: Salt did not get to it") {
		t.Errorf("%v", list)
	}
}

// Of what was changed only the files of migrations are told: those of the plan are
// known, and a command is no path.
func TestMigrated(t *testing.T) {
	all := []string{"/srv/rec/app.conf", "/srv/rec/app.d/a", "/srv/rec/app.d/sub", "/srv/rec/app.d/sub/b", "/srv/rec/app.ini", "/srv/rec/app.log", "/srv/rec/gone"}
	for _, c := range []struct {
		name, folder, run string
		cutOff            bool
		want              []string
	}{
		{"the plan's own", "converge", "run3", false, nil},
		{"a first run", "migration-changes", "run3", false, all},
		{"the next", "migration-changes", "run4", false, nil},
		{"one after a run that was cut off", "migration-changes", "run4", true, []string{"/srv/rec/app.conf", "/srv/rec/app.d", "/srv/rec/app.ini", "/srv/rec/app.log", "/srv/rec/gone"}},
	} {
		states, err := parse(recorded(t, c.folder, c.run))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, migrated(states, c.cutOff)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestOutputsThatAreNone(t *testing.T) {
	for name, out := range map[string]string{
		"nothing": "", "text": "Traceback (most recent call last):\n  File {x}\n", "cut off": `{"local": {"file_|-a_|-a_|-managed": {"result": tr`,
		"another minion": `{"other": {}}`, "null": `{"local": null}`, "a state of numbers": `{"local": {"a_|-b_|-c_|-d": 5}}`, "a result of text": `{"local": {"a_|-b_|-c_|-d": {"result": "yes"}}}`,
	} {
		if _, err := parse([]byte(out)); !errors.Is(err, errNoJSON) {
			t.Errorf("%s: %v", name, err)
		}
	}
	states, err := parse([]byte("[WARNING ] {curly} things\n{ not this\n" + `{"local": {"file_|-a_|-b_|-managed": {"result": true, "changes": []}}}`))
	if err != nil || len(states) != 1 || states[0].ID != "a" || states[0].Function != "file.managed" || states[0].Changed {
		t.Errorf("after noise: %+v, %v", states, err)
	}
}

func TestReportsStayShort(t *testing.T) {
	var out strings.Builder
	out.WriteString(`{"local": {`)
	for n := range 100 {
		if n > 0 {
			out.WriteString(",")
		}
		out.WriteString(`"cmd_|-s` + string(rune('a'+n%26)) + strings.Repeat("x", n) + `_|-n_|-run": {"result": false, "comment": "` + strings.Repeat(`\u001b[2J `, 1000) + `"}`)
	}
	out.WriteString("}}")
	text := verdict(t, []byte(out.String()), false)
	if lines := strings.Count(text, "\n") + 1; lines != 21 || !strings.HasSuffix(text, "and 80 more") || strings.Contains(text, "\x1b") || len(text) > 30000 {
		t.Errorf("%d lines, %d bytes: %.200q", lines, len(text), text)
	}
}

// FuzzParse: nothing that salt-call prints makes us panic, or print what a
// terminal takes for an order.
func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/recordings/*/run*.json")
	if err != nil || len(names) < 40 {
		f.Fatalf("%d recordings, %v", len(names), err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		if text := verdict(t, out, false); strings.ContainsAny(text, "\x1b\x07\x00") {
			t.Errorf("%q", text)
		}
	})
}
