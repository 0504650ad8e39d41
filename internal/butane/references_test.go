package butane

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	fcos "github.com/coreos/butane/config/fcos/v1_8_exp"
	fiot "github.com/coreos/butane/config/fiot/v1_1_exp"
	flatcar "github.com/coreos/butane/config/flatcar/v1_2_exp"
	openshift "github.com/coreos/butane/config/openshift/v4_23_exp"
	r4e "github.com/coreos/butane/config/r4e/v1_2_exp"
	"github.com/google/go-cmp/cmp"
)

// TestReferenceFields walks the newest schema of every variant, so that a Butane
// with one more field for a local file cannot be half supported.
func TestReferenceFields(t *testing.T) {
	found := map[string]bool{}
	for _, schema := range []any{fcos.Config{}, fiot.Config{}, flatcar.Config{}, openshift.Config{}, r4e.Config{}} {
		localFields(reflect.TypeOf(schema), "", found)
	}
	var known []string
	for _, f := range referenceFields {
		known = append(known, f.field)
	}
	slices.Sort(known)
	var want []string
	for field := range found {
		want = append(want, field)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, known); diff != "" {
		t.Errorf("fields that name local files (-Butane +known):\n%s", diff)
	}
}

func localFields(typ reflect.Type, at string, found map[string]bool) {
	switch typ.Kind() {
	case reflect.Pointer:
		localFields(typ.Elem(), at, found)
	case reflect.Slice:
		localFields(typ.Elem(), at+"[]", found)
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			below := strings.TrimPrefix(at+"."+name, ".")
			if strings.Contains(options, "inline") {
				below = at
			}
			localFields(f.Type, below, found)
		}
	default:
		name := at[strings.LastIndexByte(at, '.')+1:]
		if name = strings.TrimSuffix(name, "[]"); name == "local" || strings.HasSuffix(name, "_local") {
			found[at] = true
		}
	}
}

func TestReferences(t *testing.T) {
	refs, err := References("web1.bu", []byte(`variant: fcos
version: 1.8.0-experimental
ignition:
  config:
    merge:
      - local: merge
    replace:
      local: replace
  security:
    tls:
      certificate_authorities:
        - local: ca
passwd:
  users:
    - name: core
      ssh_authorized_keys_local: [key1, key2]
storage:
  files:
    - path: /a
      contents: &c {local: contents}
      append: [{local: append}, {inline: x}]
    - path: /b
      contents: *c
    - path: /c
      contents: {local: ~}
  trees:
    - local: tree
    - local: ""
  luks:
    - name: data
      key_file:
        local: keyfile
systemd:
  units:
    - name: a.service
      contents_local: unit
      dropins:
        - name: a.conf
          contents_local: dropin
        - name: b.conf
          contents_local: ""
  quadlets:
    - name: a.container
      contents_local: quadlet
      dropins:
        - name: a.conf
          contents_local: 5
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range refs {
		got = append(got, fmt.Sprintf("%s %s %s %s", r.Position, r.Field, r.Kind, r.Path))
	}
	want := []string{
		"web1.bu:6:16 ignition.config.merge[0].local text merge",
		"web1.bu:8:14 ignition.config.replace.local text replace",
		"web1.bu:12:18 ignition.security.tls.certificate_authorities[0].local text ca",
		"web1.bu:16:35 passwd.users[0].ssh_authorized_keys_local[0] text key1",
		"web1.bu:16:41 passwd.users[0].ssh_authorized_keys_local[1] text key2",
		"web1.bu:20:28 storage.files[0].contents.local blob contents",
		"web1.bu:20:28 storage.files[1].contents.local blob contents",
		"web1.bu:21:24 storage.files[0].append[0].local blob append",
		"web1.bu:27:14 storage.trees[0].local tree tree",
		"web1.bu:32:16 storage.luks[0].key_file.local text keyfile",
		"web1.bu:36:23 systemd.units[0].contents_local text unit",
		"web1.bu:39:27 systemd.units[0].dropins[0].contents_local text dropin",
		"web1.bu:44:23 systemd.quadlets[0].contents_local text quadlet",
		"web1.bu:47:27 systemd.quadlets[0].dropins[0].contents_local text 5",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("references differ (-want +got):\n%s", diff)
	}
}

func TestReferencesBroken(t *testing.T) {
	for name, doc := range map[string]string{
		"syntax":      "a: [",
		"own alias":   "a: &a [*a]",
		"merge":       "a:\n  <<: 5",
		"bad bytes":   "a: \xff",
		"bomb":        bomb(),
		"no alias":    "a: *b",
		"merged self": "a: &a\n  <<: *a",
	} {
		refs, err := References("x.bu", []byte(doc), nil)
		if err == nil || len(refs) > 0 {
			t.Errorf("%s: %v, %v", name, refs, err)
			continue
		}
		if !strings.HasPrefix(err.Error(), "x.bu:") {
			t.Errorf("%s: no line: %v", name, err)
		}
		cfg, list := Translate("x.bu", []byte(doc), nil, "", true)
		if len(list.Errors()) == 0 || cfg.Layer != "x.bu" {
			t.Errorf("%s: Translate finds nothing", name)
		}
	}
}

// bomb is a few lines that expand to 10^8 values.
func bomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 8; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	return b.String()
}

// TestMergeKeys compares the expanded document with what the YAML library makes
// of the written one.
func TestMergeKeys(t *testing.T) {
	for _, doc := range []string{
		"a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}",
		"a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}",
		"a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {y: 5, <<: *b}",
		"a: &a |\n  text\n\n  more\nb: *a",
		"a: &a 0644\nb: *a\nc: !!str 5\nd: *a",
		"a: &a ~\nb: *a\nc: \"<<\"",
		"a: &a \"tab\\t \\u263a \\\"quoted\\\" \\x01\"\nb: *a",
	} {
		d, err := parse("x", []byte(doc), nil)
		if err != nil {
			t.Errorf("%q: %v", doc, err)
			continue
		}
		if string(d.source) == doc {
			t.Errorf("%q: not respelled", doc)
		}
	}
}

func TestExcerptHidesContents(t *testing.T) {
	const doc = `variant: fcos
version: 1.6.0
storage:
  files:
    - path: /etc/a
      contents:
        inline: |
          hunter2
          hunter2

      mode: 0600
    - {path: /etc/b, contents: {inline: hunter2}}
    - path: /etc/c
      contents:
        inline: "hunter2
          hunter2"
        compression: gzip
    - path: /etc/d
      contents:
        source: "data:,hunter2"
    - path: /etc/e
      contents:
        source: https://user:hunter2@example.com/
        http_headers:
          - name: Authorization
            value: hunter2
    - path: /etc/f
      append:
        - inline: hunter2
        - source: https://example.com/f
passwd:
  users:
    - password_hash: hunter2
systemd:
  units:
    - name: a.service
      contents: >-
        hunter2
      dropins:
        - contents: hunter2
          name: a.conf
`
	d, err := parse("x", []byte(doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for i, line := range d.lines {
		pos := d.position(nil)
		pos.Line = i + 1
		got := d.excerpt(pos)
		if strings.Contains(got, "hunter2") {
			t.Errorf("line %d is shown: %s", i+1, got)
		}
		if got != "" {
			shown++
		} else if !strings.Contains(line, "hunter2") && strings.TrimSpace(line) != "" {
			t.Errorf("line %d is hidden: %s", i+1, line)
		}
	}
	if shown < 20 {
		t.Errorf("only %d lines may be shown", shown)
	}
}

func TestColumnCountsBytes(t *testing.T) {
	d, err := parse("x", []byte("{ключ: значение, b: {c: 1}}"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.position([]any{"b", "c"}).Column, strings.Index(d.lines[0], "1")+1; got != want {
		t.Errorf("column %d, want %d", got, want)
	}
}
