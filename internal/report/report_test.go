package report_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

func file(mode uint32, sum string) disk.Node {
	return disk.Node{Kind: disk.File, Mode: mode, SHA256: sum, Size: 7}
}

func equal(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimLeft(want, "\n"), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// everything is a plan with one item of each kind.
func everything() *plan.Plan {
	absent := disk.Node{}
	dir := disk.Node{Kind: disk.Directory, Mode: 0o755}
	link := disk.Node{Kind: disk.Link, Target: "there"}
	return &plan.Plan{
		Items: []plan.Item{
			{Path: "/a", Action: plan.Create, Write: true, After: dir, Origin: state.Parent},
			{Path: "/a/new", Action: plan.Create, Write: true, After: file(0o640, "1")},
			{Path: "/adopted", Action: plan.Adopt, Before: file(0o644, "1"), After: file(0o644, "1")},
			{Path: "/conflict", Action: plan.Conflict, Write: true, Before: file(0o644, "1"), After: file(0o644, "2"), Note: "changed on the host too"},
			{Path: "/drift", Action: plan.Drift, Before: file(0o644, "1"), After: file(0o644, "2"), Note: "changed on the host"},
			{Path: "/gone", Action: plan.Remove, Write: true, Before: file(0o644, "1"), After: absent},
			{Path: "/kept", Action: plan.Keep, Before: dir, After: absent, Note: "not empty"},
			{Path: "/kind", Action: plan.Update, Write: true, Before: file(0o644, "1"), After: dir},
			{Path: "/link", Action: plan.Create, Write: true, After: link},
			{Path: "/mode", Action: plan.Update, Write: true, Before: file(0o644, "1"), After: file(0o600, "1")},
			{Path: "/owner", Action: plan.Update, Write: true, Before: file(0o644, "1"), After: disk.Node{Kind: disk.File, Mode: 0o644, SHA256: "1", User: "app", GID: 7}},
			{Path: "/recorded", Action: plan.Record, Before: file(0o644, "1"), After: file(0o644, "1")},
			{Path: "/restored", Action: plan.Restore, Write: true, Before: file(0o644, "1"), After: file(0o644, "2"), Note: "from /usr/etc"},
			{Path: "/taken", Action: plan.Adopt, Write: true, Before: file(0o644, "1"), After: file(0o644, "2")},
			{Path: "/twin", Action: plan.Create, Write: true, After: disk.Node{Kind: disk.HardLink, Target: "/a/new"}},
		},
		Units:   []plan.Unit{{Name: "on.service", Enable: true, Reason: "enabled: true"}, {Name: "off.service", Reason: "enabled: false"}},
		Stopped: []string{"off.service"},
		Effect: service.Effect{
			Touches: []service.Touch{
				{Unit: "off.service", Action: service.Restart, Reasons: []string{"/gone"}},
				{Unit: "on.service", Action: service.Restart, Reasons: []string{"/a/new", "/mode"}},
				{Unit: "srv.mount", Action: service.Keep, Reasons: []string{"/kind"}, Note: service.NextStart},
			},
			Late:     []service.Touch{{Unit: "reconf-pull.timer", Action: service.Restart, Reasons: []string{"/link"}}},
			Commands: []service.Command{{Argv: []string{"systemd-tmpfiles", "--create"}, Files: []string{"/etc/tmpfiles.d/a.conf"}}},
		},
		Ignored: []string{"passwd.users changed: takes effect on newly provisioned machines only"},
	}
}

func TestPlanText(t *testing.T) {
	var b strings.Builder
	if err := (&report.PlanText{Host: host.New(t.TempDir())}).Write(t.Context(), &b, everything()); err != nil {
		t.Fatal(err)
	}
	equal(t, `
Plan: 3 to create, 3 to update, 1 to adopt, 1 in conflict, 1 to remove, 1 to restore, 1 drifted, 1 left behind, 1 unit to enable, 1 unit to disable, 2 units to restart or start.
Files:
  + /a (directory 0755)
  + /a/new (0640)
  ! /conflict (conflict; changed on the host too)
  ! /drift (drift; changed on the host)
  - /gone
  ! /kept (left as it is; not empty)
  ~ /kind (file becomes directory)
  + /link (-> there)
  ~ /mode (mode 0644 -> 0600)
  ~ /owner (owner 0:0 -> app:7)
  ~ /restored (restore; from /usr/etc)
  ~ /taken (adopt)
  + /twin (hard link to /a/new)
Units:
  enable on.service (enabled: true)
  disable off.service (enabled: false)
  stop off.service (its unit file goes, or it is masked)
  restart on.service: /a/new, /mode
  leave srv.mount (takes effect at next start): /kind
  restart reconf-pull.timer: /link
  run systemd-tmpfiles --create /etc/tmpfiles.d/a.conf
  note: passwd.users changed: takes effect on newly provisioned machines only
`, b.String())
}

func TestEmptyPlan(t *testing.T) {
	var b strings.Builder
	if err := (&report.PlanText{}).Write(t.Context(), &b, &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	equal(t, "Plan: nothing to change.\n", b.String())
}

func TestPlanColor(t *testing.T) {
	var b strings.Builder
	p := &plan.Plan{Items: []plan.Item{{Path: "/a", Action: plan.Create, Write: true, After: file(0o644, "1")}}}
	if err := (&report.PlanText{Color: true}).Write(t.Context(), &b, p); err != nil {
		t.Fatal(err)
	}
	equal(t, "Plan: 1 to create.\nFiles:\n  \x1b[32m+\x1b[0m /a (0644)\n", b.String())
}

// TestShown: neither side of a path shows what others may not read, and the
// plan that is carried out keeps it.
func TestShown(t *testing.T) {
	p := &plan.Plan{Items: []plan.Item{
		{Path: "/secret", After: file(0o600, "secret-sum"), Before: file(0o640, "older-secret-sum")},
		{Path: "/open", After: file(0o644, "open-sum")},
	}}
	text, err := json.Marshal(report.Shown(p))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "secret-sum") || !strings.Contains(string(text), "open-sum") {
		t.Errorf("%s", text)
	}
	if p.Items[0].After.SHA256 != "secret-sum" || p.Items[0].Before.Size != 7 {
		t.Error("the plan itself was changed")
	}
	doc := report.NewPlanDocument(&reconcile.Proposal{Host: "web1", Plan: &plan.Plan{}})
	text, err = json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "null") {
		t.Errorf("a list without entries is null: %s", text)
	}
}

var (
	commit = strings.Repeat("ab", 20)
	at     = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func TestStatusText(t *testing.T) {
	s := report.Status{
		Health: report.Failing, Engine: "native", Managed: 2, Source: "/srv/fleet.git", Next: "mend it",
		Applied: &state.Applied{Generation: 3, Host: "web1", Ref: "refs/heads/main", Commit: commit, Digest: "d1", Time: at},
		Subject: &source.CommitInfo{Subject: "a motd", Author: "Operator <o@example.com>"},
		Last:    &reconcile.Last{Time: at, Duration: "12ms", Commit: commit, Error: "first\nsecond", Drift: []string{"/etc/motd"}},
		Change: &state.Change{ID: "4-dd", Commit: commit, Reasons: []string{"the host config changed"}, Tasks: []state.Task{
			{Name: "configure", Status: state.Done, Attempts: 1}, {Name: "post-configure", Status: state.Failed, Attempts: 2, Detail: "one\ntwo"},
		}},
		Notes: []string{"/etc/motd: conflict (why)"},
	}
	var b strings.Builder
	if err := s.Write(&b, at.Add(90*time.Minute)); err != nil {
		t.Fatal(err)
	}
	equal(t, `
health:   failing
host:     web1
applied:  abababababab (main), generation 3, 1 h ago
commit:   a motd, by Operator <o@example.com>
digest:   d1
managed:  2 paths, engine native
source:   /srv/fleet.git
checked:  1 h ago, took 12ms
seen:     abababababab
error:    first
          second
drift:    /etc/motd
change:   4-dd to abababababab, because the host config changed
step:     configure: done
step:     post-configure: error (start 2): one
          two
note:     /etc/motd: conflict (why)
next:     mend it
`, b.String())
	equal(t, "failing: web1 at abababababab", s.OneLine())
}

func TestAges(t *testing.T) {
	for age, want := range map[time.Duration]string{
		-time.Hour: "in the future (2026-01-02T03:04:05Z)", 0: "0 s ago", 59 * time.Second: "59 s ago", time.Minute: "1 min ago",
		59 * time.Minute: "59 min ago", time.Hour: "1 h ago", 47 * time.Hour: "47 h ago", 48 * time.Hour: "2 days ago", 1000 * time.Hour: "41 days ago",
	} {
		var b strings.Builder
		s := report.Status{Last: &reconcile.Last{Time: at, Duration: "1ms"}}
		if err := s.Write(&b, at.Add(age)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "checked:  "+want+", took 1ms\n") {
			t.Errorf("%s: %s, want %s", age, b.String(), want)
		}
	}
}

func generation() *update.Generation {
	return &update.Generation{
		Number: 2, Host: "web1", Ref: "refs/heads/main", Commit: commit, Previous: strings.Repeat("cd", 20), Digest: "d2",
		Reasons: []string{"the host config changed", "2 paths drifted"}, Started: at, Ended: at.Add(1234 * time.Millisecond),
		Steps: []state.Task{
			{Name: "configure", Status: state.Done, Attempts: 1, Started: at, Ended: at.Add(time.Second)},
			{Name: "post-configure", Status: state.Done, Attempts: 3, Started: at, Ended: at.Add(time.Millisecond)},
			{Name: "record", Status: state.Doing, Attempts: 1, Started: at},
		},
		Changes: []update.PathChange{{Path: "/a", Action: plan.Update}, {Path: "/b", Action: plan.Keep, Note: "why"}},
		Units:   []plan.Unit{{Name: "on.service", Enable: true, Reason: "enabled: true"}, {Name: "off.service", Reason: "enabled: false"}},
		Touched: []string{"on.service"},
		Ignored: []string{"passwd.users changed"},
	}
}

func TestHistoryText(t *testing.T) {
	first := &update.Generation{Number: 1, Commit: commit, Reasons: []string{"first run"}, Started: at, Ended: at, Changes: []update.PathChange{{Path: "/a"}}}
	var b strings.Builder
	if err := report.WriteHistory(&b, []*update.Generation{generation(), first}); err != nil {
		t.Fatal(err)
	}
	equal(t, `
   2  2026-01-02 03:04:06Z  cdcdcdcdcdcd -> abababababab  2 paths, 1 unit, 1.234s  (the host config changed, 2 paths drifted)
   1  2026-01-02 03:04:05Z  nothing -> abababababab  1 path, 0 units, 0s  (first run)
`, b.String())
}

func TestGenerationText(t *testing.T) {
	var b strings.Builder
	if err := report.WriteGeneration(&b, generation()); err != nil {
		t.Fatal(err)
	}
	equal(t, `
generation 2 of web1
commit     abababababababababababababababababababab (main)
previous   cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
digest     d2
reasons    the host config changed, 2 paths drifted
started    2026-01-02T03:04:05Z
took       1.234s
step       configure       1s
step       post-configure  1ms (start 3)
update     /a
keep       /b (why)
enable     on.service (enabled: true)
disable    off.service (enabled: false)
touched    on.service
note       passwd.users changed
`, b.String())
}

func TestDesiredText(t *testing.T) {
	yes, no, text := true, false, "[Unit]\n"
	want := desired.State{
		Directories: []desired.Directory{{Path: "/srv/data", Mode: 0o750, User: desired.Owner{Name: "app"}}},
		Files: []desired.File{
			{Path: "/etc/a", Mode: 0o644, Contents: &desired.Content{Blob: "oid", Path: "files/a"}},
			{Path: "/etc/b", Mode: 0o644, Contents: &desired.Content{URL: "https://example.com/b"}},
			{Path: "/etc/c", Mode: 0o600, Contents: &desired.Content{Inline: []byte("hunter2")}, Group: desired.Owner{ID: 5}},
			{Path: "/etc/d", Mode: 0o644, Append: []desired.Content{{Inline: []byte("x")}}},
			{Path: "/etc/e", Mode: 0o644},
		},
		Links: []desired.Link{{Path: "/etc/l", Target: "a"}, {Path: "/etc/m", Target: "/etc/a", Hard: true}},
		Units: []desired.Unit{
			{Name: "a.service", Contents: &text, Enabled: &yes, Dropins: []desired.Dropin{{Name: "x.conf", Contents: &text}}},
			{Name: "b.service", Mask: &yes}, {Name: "c.service", Mask: &no, Enabled: &no},
		},
		Ignored: []desired.Section{{Name: "passwd.users"}},
	}
	var b strings.Builder
	if err := report.WriteDesired(&b, want); err != nil {
		t.Fatal(err)
	}
	equal(t, `
+ /srv/data (directory 0750 app:0)
+ /etc/a (0644, from files/a)
+ /etc/b (0644, fetched)
+ /etc/c (0600 0:5)
+ /etc/d (0644, appended to)
+ /etc/e (0644, contents left alone)
+ /etc/l (-> a)
+ /etc/m (hard link to /etc/a)
+ /etc/systemd/system/a.service (0644)
+ /etc/systemd/system/a.service.d/x.conf (0644)
enable a.service
mask b.service
unmask c.service
disable c.service
note: passwd.users takes effect on newly provisioned machines only
`, b.String())
	b.Reset()
	hc := &fleet.HostConfig{Name: "web1", Digest: "d", Layers: []fleet.Layer{{}}, References: []fleet.Reference{{}, {}}}
	if err := report.WriteSummary(&b, hc, want); err != nil {
		t.Fatal(err)
	}
	equal(t, "web1: 5 files, 1 directory, 2 links, 3 units; 1 layer, 2 references; digest d\n", b.String())
	doc, err := json.Marshal(report.NewDesiredDocument(hc, want))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(doc), "hunter2") || !strings.Contains(string(doc), `{"path":"/etc/m","kind":"hardlink","user":"0","group":"0","target":"/etc/a"}`) {
		t.Errorf("%s", doc)
	}
}
