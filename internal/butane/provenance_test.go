package butane_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/butane"
)

const provenanceGroup = `variant: fcos
version: 1.5.0
storage:
  files:
    - path: /etc/app.conf
      mode: 0600
      contents: {inline: group}
      append:
        - inline: x
    - path: /etc/alone
  directories:
    - path: /srv/app
systemd:
  units:
    - name: app.service
      enabled: true
      contents: |
        [Service]
        ExecStart=/usr/bin/app
      dropins:
        - name: 10-a.conf
          contents: "[Service]\n"
`

const provenanceHost = `variant: fcos
version: 1.5.0
storage:
  files:
    - path: /etc/app.conf
      contents: {inline: host}
      append:
        - inline: y
  links:
    - path: /srv/app
      target: /var/app
systemd:
  units:
    - name: app.service
      enabled: false
      dropins:
        - name: 20-b.conf
          contents: "[Service]\n"
`

func TestExplain(t *testing.T) {
	cfg, list := butane.Merge([]butane.Config{
		translate(t, "groups/a.bu", provenanceGroup), translate(t, "groups/b.bu", "variant: fcos\nversion: 1.5.0\n"), translate(t, "hosts/web1.bu", provenanceHost),
	}, nil)
	if len(list.Errors()) > 0 {
		t.Fatal(show(list))
	}
	unit := []string{
		"unit app.service groups/a.bu:15 contents enabled<hosts/web1.bu:14",
		"drop-in app.service/10-a.conf groups/a.bu:21 contents",
		"unit app.service hosts/web1.bu:14 enabled",
		"drop-in app.service/20-b.conf hosts/web1.bu:17 contents",
	}
	for subject, want := range map[string][]string{
		"/etc/app.conf": {
			"file /etc/app.conf groups/a.bu:5 append contents<hosts/web1.bu:5 mode",
			"file /etc/app.conf hosts/web1.bu:5 append contents",
		},
		"/etc//alone":                     {"file /etc/alone groups/a.bu:10"},
		"/srv/app":                        {"directory /srv/app groups/a.bu:12", "link /srv/app hosts/web1.bu:10 target"},
		"app.service":                     unit,
		"/etc/systemd/system/app.service": unit,
		"/etc/systemd/system/app.service.d/10-a.conf": {unit[1]},
		"/etc/nothing": nil,
	} {
		var got []string
		for _, o := range cfg.Explain(subject) {
			line := fmt.Sprintf("%s %s %s:%d", o.Kind, o.Name, o.File, o.Line)
			for _, f := range o.Fields {
				line += " " + f.Name
				if f.Overridden != nil {
					line += fmt.Sprintf("<%s:%d", f.Overridden.File, f.Overridden.Line)
				}
			}
			got = append(got, line)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", subject, d)
		}
	}
}

func TestOverlaps(t *testing.T) {
	group := func(name string, docs ...string) butane.Group {
		g := butane.Group{Name: name}
		for i, doc := range docs {
			g.Files = append(g.Files, translate(t, fmt.Sprintf("groups/%s/%d.bu", name, i), doc))
		}
		return g
	}
	list := butane.Overlaps([]butane.Group{group("a", provenanceGroup), group("b", provenanceHost), group("c", provenanceGroup, provenanceHost)})
	var got []string
	for _, f := range list {
		got = append(got, fmt.Sprintf("%s: %s: %s", f.Severity, f.Position, strings.TrimSuffix(f.Message, ", and wins because it comes later")))
	}
	want := []string{
		"warning: groups/b/0.bu:5:7: contents of /etc/app.conf: group b sets it otherwise than group a at groups/a/0.bu:5:7",
		"warning: groups/b/0.bu:10:7: the kind of /srv/app: group b sets it otherwise than group a at groups/a/0.bu:12:7",
		"warning: groups/b/0.bu:14:7: enabled of app.service: group b sets it otherwise than group a at groups/a/0.bu:15:7",
		"warning: groups/c/0.bu:5:7: contents of /etc/app.conf: group c sets it otherwise than group b at groups/b/0.bu:5:7",
		"warning: groups/c/0.bu:12:7: the kind of /srv/app: group c sets it otherwise than group b at groups/b/0.bu:10:7",
		"warning: groups/c/0.bu:15:7: enabled of app.service: group c sets it otherwise than group b at groups/b/0.bu:14:7",
		"warning: groups/c/1.bu:5:7: contents of /etc/app.conf: group c sets it otherwise than group a at groups/a/0.bu:5:7",
		"warning: groups/c/1.bu:10:7: the kind of /srv/app: group c sets it otherwise than group a at groups/a/0.bu:12:7",
		"warning: groups/c/1.bu:14:7: enabled of app.service: group c sets it otherwise than group a at groups/a/0.bu:15:7",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if list := butane.Overlaps([]butane.Group{group("a", provenanceGroup), group("b", provenanceGroup)}); list != nil {
		t.Errorf("the same twice:\n%s", show(list))
	}
}
