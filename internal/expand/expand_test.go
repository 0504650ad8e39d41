package expand_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/expand"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

var (
	host = expand.Host{Name: "web1", Arch: "arm64", MachineID: "00112233445566778899aabbccddeeff"}
	vars = map[string]any{
		"domain": "example.com", "port": int64(8080), "ratio": 0.5, "on": true, "empty": "",
		"log": map[string]any{"level": "info"}, "tags": []any{"a", "b"}, "users": []map[string]any{{"name": "ann"}, {"name": "bob"}},
		"big": strings.Repeat("x", 1<<19),
	}
)

func run(t *testing.T, source string) (string, error) {
	t.Helper()
	tmpl, err := expand.Parse("a.tmpl", []byte(source))
	if err != nil {
		return "", err
	}
	out, err := tmpl.Execute(host, vars, 1<<20)
	if err != nil {
		return "", err
	}
	return string(out.Data), nil
}

func TestExecute(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain\n", "plain\n"},
		{"", ""},
		{"{{.Host.Name}} {{.Host.Arch}} {{.Host.MachineID}}", "web1 arm64 00112233445566778899aabbccddeeff"},
		{"{{.Vars.domain}}:{{.Vars.port}} {{.Vars.ratio}} {{.Vars.on}} {{.Vars.log.level}}", "example.com:8080 0.5 true info"},
		{"{{range .Vars.tags}}[{{.}}]{{end}}", "[a][b]"},
		{"{{range $i, $u := .Vars.users}}{{$i}}={{$u.name}},{{end}}", "0=ann,1=bob,"},
		{"{{range 3}}{{.}}{{end}}", "012"},
		{"{{if eq .Vars.port 8080}}yes{{else}}no{{end}}", "yes"},
		{"{{define \"a\"}}<{{.Vars.port}}>{{end}}{{template \"a\" .}}{{template \"a\" $}}", "<8080><8080>"},
		{"{{with .Vars.log}}{{.level}} {{$.Host.Name}}{{end}}", "info web1"},
		{"a\n{{- /* gone */ -}}\nb", "ab"},

		{`{{lower "AB"}}{{upper "cd"}}{{trim " x "}}{{trimPrefix "a" "ab"}}{{trimSuffix "b" "ab"}}`, "abCDxba"},
		{`{{replace "a" "bb" "aXa"}} {{contains "b" "abc"}} {{hasPrefix "a" "abc"}} {{hasSuffix "c" "abc"}}`, "bbXbb true true true"},
		{`{{join "," .Vars.tags}} {{join "-" (splitList "." .Vars.domain)}} {{join "," (list 1 "b" true)}}`, "a,b example-com 1,b,true"},
		{`{{quote .Vars.port}} {{quote "a\"b\n"}}`, `"8080" "a\"b\n"`},
		{"x:{{nindent 2 \"a\\nb\"}}\n{{indent 1 \"a\\nb\"}}", "x:\n  a\n  b\n a\n b"},
		{`{{toJson .Vars.users}} {{toJson "<a>"}}`, `[{"name":"ann"},{"name":"bob"}] "<a>"`},
		{`{{b64enc "hello"}}`, "aGVsbG8="},
		{`{{default "x" .Vars.empty}} {{.Vars.empty | default "y"}} {{default "x" .Vars.domain}}`, "x y example.com"},
		{`{{dig "log" "level" "none" .Vars}} {{dig "log" "to" "none" .Vars}} {{dig "nope" "to" 5 .Vars}}`, "info none 5"},
		{`{{hasKey .Vars "port"}} {{hasKey .Vars.log "to"}}`, "true false"},
		{`{{index .Vars "log" "level"}} {{index .Vars.tags 1}} {{(index .Vars.users 0).name}}`, "info b ann"},
		{`{{$d := dict "a" 1 "b" (dict "c" 2)}}{{$d.a}}{{$d.b.c}}`, "12"},
		{`{{add .Vars.port 1}} {{sub 1 2}} {{mul 3 4}} {{div 7 2}} {{mod 7 2}} {{int "12"}} {{add (int (trimPrefix "web" .Host.Name)) 100}}`, "8081 -1 12 3 1 12 101"},
		{`{{printf "%s %5d|%-4s|%%|%.2f|%q|%v|%t" "a" 42 "b" 1.5 "c" .Vars.tags true}}`, `a    42|b   |%|1.50|"c"|[a b]|true`},
		{`{{print 1 "a" 2}} {{html "<"}} {{js "'"}} {{urlquery "a b"}}`, `1a2 &lt; \' a+b`},
	} {
		got, err := run(t, tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%s\ngot  %q, %v\nwant %q", tt.in, got, err, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a\nb {{.Vars.prot}}\n", "a.tmpl:2:10: there is no var prot for this host (did you mean port?)"},
		{"{{.Vars.zzzzzz}}", "a.tmpl:1:8: there is no var zzzzzz for this host (set it under [vars], [group.X] or [host.N] in fleet.toml, or ask for it with dig, which takes a default)"},
		{"{{.Vars.log.lvel}}", "a.tmpl:1:8: there is no var lvel for this host (did you mean level?)"},
		{"{{.Host.Nam}}", "a.tmpl:1:8: there is no value Nam for this host (did you mean Name?)"},
		{"{{.Var.port}}", "a.tmpl:1:7: there is no value Var for this host (did you mean Vars?)"},
		{"{{.host}}", "a.tmpl:1:3: there is no value host for this host (did you mean Host?)"},
		{`x {{index .Vars "prot"}}`, "a.tmpl:1:5: there is no"},
		{"a\n\t{{.Vars.port", "a.tmpl:2: unclosed action"},
		{"a\n{{.Vars.port\n\n", "a.tmpl:2: unclosed action"},
		{"{{if}}x{{end}}", "a.tmpl:1: missing value for if"},
		{"\n{{if true}}", "a.tmpl:2: unexpected EOF"},
		{"{{env \"HOME\"}}", `a.tmpl:1: function "env" not defined`},
		{"{{_at 1}}", `a.tmpl:1: function "_at" not defined`},
		{"{{template \"b\"}}", `a.tmpl:1:12: template "b" not defined`},
		{"{{.Vars.domain.x}}", "a.tmpl:1:8: there is no x in what is no table"},
		{`{{add 1 "x"}}`, "a.tmpl:1:3: no whole number"},
		{`{{div 1 0}}`, "a.tmpl:1:3: division by zero"},
		{`{{index .Vars.tags 2}}`, "a.tmpl:1:3: there is no element 2: the array has 2"},
		{`{{printf "%d" "a"}}`, "a.tmpl:1:3: printf: %d is not for a value of this type"},
		{`{{printf "%d %d" 1}}`, "a.tmpl:1:3: printf: more verbs than arguments"},
		{`{{printf "%d" 1 2}}`, "a.tmpl:1:3: printf: more arguments than verbs"},
		{`{{printf "%p" .Vars}}`, "a.tmpl:1:3: printf: there is no verb %p here"},
		{`{{printf "%*d" 1 2}}`, "a.tmpl:1:3: printf: each % needs a verb"},
		{`{{printf "%[1]d" 1}}`, "a.tmpl:1:3: printf: each % needs a verb"},
		{`{{printf "%99999d" 1}}`, "a.tmpl:1:3: printf: a width of more than three digits"},
		{`{{dict "a"}}`, "a.tmpl:1:3: dict needs a value for every key"},

		{"{{range 1000000000}}{{end}}", "a.tmpl:1:21: the template does not come to an end (look for a loop that is too long)"},
		{"{{range $i, $x := 1000000000}}{{if true}}{{end}}{{end}}", "a.tmpl:1:"},
		{"{{range 100000}}{{range 100000}}{{continue}}{{end}}{{end}}", "a.tmpl:1:"},
		{"\n{{define \"a\"}}{{template \"a\" .}}{{end}}{{template \"a\" .}}", "a.tmpl:2:26: templates call each other more than 100 deep (end the recursion)"},
		{`{{define "a"}}{{if .}}{{template "a" (slice . 1)}}{{template "a" (slice . 1)}}{{end}}{{end}}{{template "a" "0123456789012345678901234567890123456789"}}`, "a.tmpl:1:"},
		{"{{range 1000000}}0123456789{{end}}", "a.tmpl:1:18: the template makes more than 1048576 bytes (make it shorter, split it, or raise translate.max_text)"},
		{`{{$x := "a"}}{{range 40}}{{$x = printf "%s%s" $x $x}}{{end}}`, "a.tmpl:1:"},
		{`{{$x := "a"}}{{range 40}}{{$x = print $x $x}}{{end}}`, "a.tmpl:1:"},
		{`{{$x := "\\"}}{{range 40}}{{$x = js $x}}{{end}}`, "a.tmpl:1:"},
		{`{{$x := list 1}}{{range 60}}{{$x = list $x $x}}{{end}}{{$x}}`, "a.tmpl:1:"},
		{`{{$x := .Vars.big}}{{replace "x" $x $x}}`, "a.tmpl:1:22: a value of more than 1048576 bytes"},
		{`{{indent 2000000000 "a"}}`, "a.tmpl:1:3: a value of more than 1048576 bytes"},
		{`{{range 1000000}}{{upper $.Vars.big}}{{end}}`, "a.tmpl:1:"},
		{`{{printf "` + strings.Repeat("%s", 1000) + `" ` + strings.Repeat("$.Vars.big ", 1000) + `}}`, "a.tmpl:1:3: "},
		{strings.Repeat("{{if 1}}", 1<<14), "a.tmpl:1: "},
		{"{{" + strings.Repeat("(", 1<<19), "a.tmpl:1: "},
		{strings.Repeat("x", 1<<20+1), "a.tmpl: the template has 1048577 bytes: at most 1048576 (1 MiB) are allowed (split it)"},
	} {
		name := tt.in[:min(len(tt.in), 60)]
		_, err := run(t, tt.in)
		var bad *finding.Failure
		if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s\ngot  %v\nwant %s", name, err, tt.want)
		}
	}
}

// Nested as deep as the parser takes it, a template runs.
func TestNested(t *testing.T) {
	const depth = 10_000
	out, err := run(t, strings.Repeat("{{if 1}}", depth)+"x"+strings.Repeat("{{end}}", depth))
	if err != nil || out != "x" {
		t.Errorf("%.20s, %v", out, err)
	}
}

func TestReads(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain", ""},
		{"{{.Host.Name}}", ".Host.Name"},
		{"{{.Vars.a}} {{.Vars.b.c}} {{.Vars.b.d}} {{.Vars.a}}", ".Vars.a .Vars.b.c .Vars.b.d"},
		{"{{.Vars.b.c}} {{.Vars.b}}", ".Vars.b"},
		{"{{if .Host.Arch}}{{.Vars.a}}{{else}}{{.Vars.b}}{{end}}", ".Host.Arch .Vars.a .Vars.b"},
		{"{{range .Vars.tags}}{{.}}{{.x}}{{$.Vars.y}}{{else}}{{.Vars.z}}{{end}}", ".Vars.tags .Vars.y .Vars.z"},
		{"{{with .Vars.log}}{{.level}}{{end}}", ".Vars.log"},
		{"{{$x := .Vars.a}}{{$x.b}}", ".Vars.a"},
		{`{{index .Vars "a" "b"}}{{index .Vars.c .Host.Name}}`, ".Host.Name .Vars.a.b .Vars.c"},
		{`{{hasKey .Vars "a"}} {{dig "b" "c" .Vars.d .Vars}}`, ".Vars.a .Vars.b.c .Vars.d"},
		{`{{.Vars.a | default "x" | printf "%v"}} {{(index .Vars "q").r}} {{upper (print .Vars.s)}}`, ".Vars.a .Vars.q .Vars.s"},
		{`{{define "a"}}{{.Vars.x}}{{$.Vars.y}}{{end}}{{template "a" .}}`, ".Vars.x .Vars.y"},
		{`{{define "a"}}{{.x}}{{$.y}}{{end}}{{template "a" .Vars.z}}`, ".Vars.z"},
		{`{{define "a"}}{{.Vars.x}}{{end}}`, ""},
		{`{{define "a"}}{{template "a" .}}{{.Vars.x}}{{end}}{{block "b" .}}{{template "a" $}}{{end}}`, ".Vars.x"},
		{"{{range .Vars}}{{end}}", ".Vars"},
		{"{{.}}", "."},
		{"{{$x := .}}{{$x.Vars.a}}", "."},
		{"{{.Vars}}{{.Vars.a}}{{.Host.Arch}}", ".Host.Arch .Vars"},
	} {
		tmpl, err := expand.Parse("a", []byte(tt.in))
		if err != nil {
			t.Fatalf("%s: %v", tt.in, err)
		}
		var got []string
		for _, path := range tmpl.Reads() {
			got = append(got, expand.String(path))
		}
		if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, d)
		}
	}
}

// Every byte of the output leads back to where it was written.
func TestAt(t *testing.T) {
	const source = "a: 1\n{{- range .Vars.tags}}\n- {{.}}: x\n{{- end}}\n{{/* no */}}b: {{.Vars.domain}} # c\n{{define \"t\"}}in\n{{end}}{{template \"t\"}}end\n"
	const want = "a: 1\n- a: x\n- b: x\nb: example.com # c\nin\nend\n"
	tmpl, err := expand.Parse("a", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	out, err := tmpl.Execute(host, vars, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if string(out.Data) != want {
		t.Fatalf("got %q", out.Data)
	}
	for _, tt := range []struct{ at, from string }{
		{"1:1", "1:1"}, {"1:4", "1:4"},
		{"2:1", "3:1"}, {"2:3", "3:5"}, {"2:4", "3:8"}, {"2:6", "3:10"},
		{"3:1", "3:1"}, {"3:6", "3:10"},
		{"4:1", "5:13"}, {"4:4", "5:18"}, {"4:8", "5:18"}, {"4:16", "5:33"},
		{"5:1", "6:15"}, {"6:1", "7:24"},
		{"2:0", "3:0"},
	} {
		var line, column int
		if _, err := fmt.Sscanf(tt.at, "%d:%d", &line, &column); err != nil {
			t.Fatal(err)
		}
		line, column = out.At(line, column)
		if got := fmt.Sprintf("%d:%d", line, column); got != tt.from {
			t.Errorf("%s comes from %s, want %s", tt.at, got, tt.from)
		}
	}
}

// Whatever a template is: it ends, it does not panic, its output is bounded and
// the same again, and a var that it does not name does not matter.
func FuzzExecute(f *testing.F) {
	for _, seed := range []string{
		"{{.Host.Name}}{{.Vars.a}}", "{{range 1000000000}}{{end}}", `{{define "a"}}{{template "a" .}}{{end}}{{template "a" .}}`,
		`{{$x := "a"}}{{range 40}}{{$x = printf "%s%s" $x $x}}{{end}}`, `{{range $i, $x := .Vars.l}}{{break}}{{end}}`, `{{index .Vars "a"}}{{dig "b" 1 .Vars}}`,
		`{{with $}}{{.Vars.a}}{{end}}`, `{{block "b" .}}{{- .Vars.a -}}{{end}}`, `{{join "," (splitList "" .Vars.a)}}`, "{{/*", "{{printf \"%-9.3v|%x\" .Vars.a 1}}",
		`{{$ = .Vars}}{{$.a}}`, `{{(.Vars).a}}`, `{{and .Vars.a (slice .Vars.a 1)}}`, `{{html (js (urlquery .Vars.a))}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		tmpl, err := expand.Parse("a", []byte(source))
		if err != nil {
			return
		}
		given := map[string]any{"a": "abc", "l": []any{"x", int64(1)}, "unread": "x"}
		unread := true
		for _, path := range tmpl.Reads() {
			if len(path) < 2 && expand.String(path) != ".Host" || len(path) > 1 && path[0] == "Vars" && path[1] == "unread" {
				unread = false
			}
		}
		out, err := tmpl.Execute(host, given, 1<<16)
		var bad *finding.Failure
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("%T: %v", err, err)
		}
		if err != nil && strings.Contains(err.Error(), "internal error") {
			t.Fatal(err)
		}
		if err == nil && len(out.Data) > 1<<16 {
			t.Fatalf("%d bytes", len(out.Data))
		}
		again, err2 := tmpl.Execute(host, given, 1<<16)
		if fmt.Sprint(err) != fmt.Sprint(err2) || err == nil && string(out.Data) != string(again.Data) {
			t.Fatalf("%v, then %v", err, err2)
		}
		if !unread {
			return
		}
		given["unread"] = "y"
		other, err3 := tmpl.Execute(host, given, 1<<16)
		if (err == nil) != (err3 == nil) || err == nil && string(out.Data) != string(other.Data) {
			t.Fatalf("a var that is not read matters: %v", err3)
		}
	})
}
