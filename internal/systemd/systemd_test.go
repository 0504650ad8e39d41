package systemd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

func TestOnChange(t *testing.T) {
	for _, test := range []struct {
		name      string
		fragments []string
		want      string
	}{
		{"none", []string{"[Unit]\nDescription=x\n"}, ""},
		{"unit", []string{"[Unit]\nX-Reconf-OnChange=reload\n"}, "reload"},
		{"drop-in wins", []string{"[Unit]\nX-Reconf-OnChange=reload\n", "[Unit]\nX-Reconf-OnChange=none\n"}, "none"},
		{"drop-in takes it back", []string{"[Unit]\nX-Reconf-OnChange=reload\n", "[Unit]\nX-Reconf-OnChange=\n"}, ""},
		{"drop-in does not say", []string{"[Unit]\nX-Reconf-OnChange=reload\n", "[Service]\nNice=1\n"}, "reload"},
		{"another section", []string{"[Service]\nX-Reconf-OnChange=reload\n"}, ""},
		{"comment", []string{"[Unit]\n#X-Reconf-OnChange=reload\n"}, ""},
		{"before a broken line", []string{"[Unit]\nX-Reconf-OnChange=none\nbroken\n"}, "none"},
		{"nothing", nil, ""},
	} {
		var fragments [][]byte
		for _, fragment := range test.fragments {
			fragments = append(fragments, []byte(fragment))
		}
		if got := systemd.OnChange(fragments...); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestOfflineOnChange(t *testing.T) {
	root := lay(t, map[string]string{
		vendor + "web-api@.service":                            "[Unit]\nX-Reconf-OnChange=restart\n",
		"etc/systemd/system/service.d/10.conf":                 "[Unit]\nX-Reconf-OnChange=none\n",
		"etc/systemd/system/web-.service.d/20.conf":            "[Unit]\nX-Reconf-OnChange=reload\n",
		"etc/systemd/system/web-api@other.service.d/30.conf":   "[Unit]\nX-Reconf-OnChange=none\n",
		"usr/local/lib/systemd/system/web-.service.d/20.conf":  "[Unit]\nX-Reconf-OnChange=restart\n",
		"usr/local/lib/systemd/system/plain.service":           "[Unit]\n",
		"usr/local/lib/systemd/system/plain.service.d/99.conf": "[Unit]\nX-Reconf-OnChange=\n",
	})
	o := systemd.Offline{Host: host.New(root)}
	for unit, want := range map[string]string{
		"web-api@eu.service": "reload", "plain.service": "", "gone.service": "",
	} {
		if got := o.OnChange(unit); got != want {
			t.Errorf("%s: got %q, want %q", unit, got, want)
		}
	}
}

func TestIsEnabled(t *testing.T) {
	for state, want := range map[string]bool{
		"enabled": true, "enabled-runtime": true, "alias": true, "static": true, "generated": true, "transient": true,
		"disabled": false, "linked": false, "linked-runtime": false, "indirect": false,
		"masked": false, "masked-runtime": false, "bad": false, "": false,
	} {
		if got := systemd.IsEnabled(state); got != want {
			t.Errorf("%q: %v", state, got)
		}
	}
}

// The systemctl of this machine may be older than UpheldBy= (systemd 254).
func TestUpheldBy(t *testing.T) {
	root := lay(t, map[string]string{vendor + "a.service": "[Install]\nUpheldBy=b.target\n"})
	got, err := systemd.Offline{Host: host.New(root)}.Links("a.service")
	if err != nil {
		t.Fatal(err)
	}
	want := []systemd.Link{{
		Path: "/etc/systemd/system/b.target.upholds/a.service", Target: "/usr/lib/systemd/system/a.service",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLinksThatCannotBeMade(t *testing.T) {
	for _, test := range []struct {
		name, install, want string
		is                  error
		links               int
	}{
		{name: "unknown specifier", install: "WantedBy=%H.target a.target", want: "%H.target", links: 1},
		{name: "no unit name", install: "WantedBy=../../x a.target", want: "no unit name", links: 1},
		{name: "slash", install: "RequiredBy=x/y.target", want: "no unit name"},
		{name: "alias that leaves the directory", install: "Alias=../x.service", want: "cannot have the alias"},
		{name: "alias in the directory of no unit", install: "Alias=..wants/a.service b.service", want: "cannot have the alias", links: 1},
		{name: "control character", install: "WantedBy=\x00.target \v.target a.target", want: `WantedBy="\x00.target" is no unit name`, links: 1},
		{name: "no type", install: "WantedBy=. a. a.b", want: "no unit name"},
		{name: "file out of the directories of units", install: "Also=../../x.service\nWantedBy=a.target", want: "Also=\"../../x.service\" is no unit name", links: 1},
		{name: "open quote", install: "WantedBy=\"a.target", want: "not closed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := lay(t, map[string]string{vendor + "a.service": "[Install]\n" + test.install + "\n"})
			links, err := systemd.Offline{Host: host.New(root)}.Links("a.service")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if len(links) != test.links {
				t.Errorf("got %v, want %d links", links, test.links)
			}
		})
	}
	root := lay(t, map[string]string{"etc/systemd/system/m.service": "-> /dev/null"})
	o := systemd.Offline{Host: host.New(root)}
	if _, err := o.Links("m.service"); !errors.Is(err, systemd.ErrMasked) {
		t.Errorf("masked: %v", err)
	}
	if _, err := o.Links("gone.service"); !errors.Is(err, systemd.ErrNoUnit) {
		t.Errorf("missing: %v", err)
	}
}

// A link out of the root must not show the machine's own units.
func TestOfflineStaysInTheRoot(t *testing.T) {
	outside := lay(t, map[string]string{"evil.service": "[Install]\nWantedBy=evil.target\n"})
	root := lay(t, map[string]string{
		vendor + "a.service":                 "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/evil.service":    "-> " + outside + "/evil.service",
		"etc/systemd/system/climb.service":   "-> ../../../../../../.." + outside + "/evil.service",
		"etc/systemd/system/a.service.d":     "-> " + outside,
		"usr/local/lib/systemd/system":       "-> " + outside,
		"etc/systemd/system/x.target.wants":  "-> " + outside,
		"etc/systemd/system/own.service":     "-> /opt/own.service",
		"opt/own.service":                    "[Install]\nWantedBy=own.target\n",
		"etc/systemd/system/self.service":    "-> self2.service",
		"etc/systemd/system/self2.service":   "-> self.service",
		"run/systemd/system/dangles.service": "-> nowhere.service",
	})
	o := systemd.Offline{Host: host.New(root)}
	for _, unit := range []string{"evil.service", "climb.service", "self.service", "dangles.service"} {
		if links, err := o.Links(unit); err == nil {
			t.Errorf("%s: got %v", unit, links)
		}
	}
	links, err := o.Links("own.service")
	if want := "/opt/own.service"; err != nil || len(links) != 1 || links[0].Target != want {
		t.Errorf("own.service: got %v, %v", links, err)
	}
	if o.Exists("evil.target") || !o.Exists("a.service") || o.Exists("t@x.service") {
		t.Error("Exists looks in the wrong place")
	}
}

func TestUnlinksOfAGoneUnit(t *testing.T) {
	root := lay(t, map[string]string{
		"etc/systemd/system/a.target.wants/gone.service": "-> /etc/systemd/system/gone.service",
		"etc/systemd/system/a.target.wants/here.service": "-> /etc/systemd/system/here.service",
	})
	got, err := systemd.Offline{Host: host.New(root)}.Unlinks("gone.service")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/etc/systemd/system/a.target.wants/gone.service"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestOrder(t *testing.T) {
	after := map[string][]string{
		"web.service": {"db.service", "network.target"},
		"db.service":  {"disk.service"},
		"x.service":   {"y.service"},
		"y.service":   {"x.service"},
	}
	jobs := []systemd.Job{
		{Unit: "web.service", Kind: systemd.Restart}, {Unit: "a.service", Kind: systemd.Start},
		{Unit: "disk.service", Kind: systemd.Start}, {Unit: "db.service", Kind: systemd.Restart},
		{Unit: "y.service", Kind: systemd.Start}, {Unit: "x.service", Kind: systemd.Start},
	}
	want := []string{"a.service", "disk.service", "db.service", "web.service", "y.service", "x.service"}
	for range 3 {
		var got []string
		for _, job := range systemd.Order(jobs, after) {
			got = append(got, job.Unit)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		jobs = append(jobs[1:], jobs[0])
	}
	for i := range jobs {
		jobs[i].Kind = systemd.Stop
	}
	first := systemd.Order(jobs, after)[0].Unit
	if first != "x.service" {
		t.Errorf("%s is stopped first", first)
	}
}

func TestClosure(t *testing.T) {
	before := map[string][]string{
		"reconf-pull.service": {"a.service", "shutdown.target"},
		"a.service":           {"b.service", "dev-sda.device"},
		"b.service":           {"a.service", "c.service"},
		"dev-sda.device":      {"never.service"},
	}
	asked := map[string]int{}
	got, err := systemd.Closure(systemd.OwnUnits, func(unit string) ([]string, error) {
		asked[unit]++
		return before[unit], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"a.service": true, "b.service": true, "c.service": true, "shutdown.target": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for unit, n := range asked {
		if n > 1 {
			t.Errorf("%s was asked %d times", unit, n)
		}
	}
	endless := 0
	if _, err := systemd.Closure([]string{"x"}, func(string) ([]string, error) {
		endless++
		return []string{strings.Repeat("x", endless)}, nil
	}); err == nil {
		t.Error("an endless walk ends without an error")
	}
}

func TestFallen(t *testing.T) {
	for _, test := range []struct {
		name        string
		before, now systemd.UnitState
		want        string
	}{
		{"runs", systemd.UnitState{}, systemd.UnitState{ActiveState: "active", InvocationID: "2"}, ""},
		{"ended well", systemd.UnitState{ActiveState: "active", InvocationID: "1"}, systemd.UnitState{ActiveState: "inactive", Result: "success", InvocationID: "2"}, ""},
		{"failed", systemd.UnitState{ActiveState: "active", InvocationID: "1"}, systemd.UnitState{ActiveState: "failed", Result: "exit-code", ExitStatus: 3, InvocationID: "2"}, "failed: exit-code 3"},
		{"failed again", systemd.UnitState{ActiveState: "failed", InvocationID: "1"}, systemd.UnitState{ActiveState: "failed", Result: "signal", InvocationID: "2"}, "failed: signal"},
		{"had failed before", systemd.UnitState{ActiveState: "failed", InvocationID: "1"}, systemd.UnitState{ActiveState: "failed", InvocationID: "1"}, ""},
		{"mount failed", systemd.UnitState{}, systemd.UnitState{ActiveState: "failed"}, "failed"},
		{"between two starts", systemd.UnitState{}, systemd.UnitState{ActiveState: "activating", SubState: "auto-restart", Result: "exit-code", ExitStatus: 1}, "fails and is restarted by systemd: exit-code 1"},
		{"after the second start", systemd.UnitState{InvocationID: "1", Restarts: 7}, systemd.UnitState{ActiveState: "active", InvocationID: "3", Restarts: 1}, "restarted by systemd 1 times"},
		{"was restarted long ago", systemd.UnitState{InvocationID: "1", Restarts: 7}, systemd.UnitState{ActiveState: "active", InvocationID: "1", Restarts: 7}, ""},
	} {
		if got := systemd.Fallen(test.before, test.now); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestWords(t *testing.T) {
	for value, want := range map[string][]string{
		"":                     nil,
		" a\tb ":               {"a", "b"},
		`"a b" 'c "d' e"f g"h`: {"a b", `c "d`, "ef gh"},
		`""`:                   {""},
		"a \\\n  b":            {"a", "b"},
	} {
		got, err := systemd.Words(value)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%q: %v %s", value, err, diff)
		}
	}
}

func TestJournalTail(t *testing.T) {
	var argv []string
	out := ""
	run := func(ctx context.Context, args ...string) ([]byte, error) {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("journalctl may take for ever")
		}
		if slices.Contains(args, "--sync") {
			return nil, errors.New("you may not")
		}
		argv = args
		return []byte(out), nil
	}
	tail := func(invocation string, n int) []string {
		t.Helper()
		lines, err := systemd.JournalTail(context.Background(), run, "a.service", invocation, n)
		if err != nil {
			t.Error(err)
		}
		return lines
	}
	out = unlines(
		`{"MESSAGE":"another's","_SYSTEMD_INVOCATION_ID":"older"}`,
		`{"MESSAGE":"Started a.service.","INVOCATION_ID":"abc"}`,
		`{"MESSAGE":"two\nlines","_SYSTEMD_INVOCATION_ID":"abc","INVOCATION_ID":"abc"}`,
		`{"MESSAGE":[108,97,116,105,110,32,252]}`,
		`{"MESSAGE":"ended before it was seen"}`,
		`{"MESSAGE":null,"INVOCATION_ID":"abc"}`,
	)
	equal(t, tail("abc", 10), "Started a.service.", "two", "lines", "latin \uFFFD", "ended before it was seen")
	equal(t, tail("abc", 2), "latin \uFFFD", "ended before it was seen")
	equal(t, tail("newer", 10))
	equal(t, tail("", 10), "another's", "Started a.service.", "two", "lines", "latin \uFFFD", "ended before it was seen")
	if !slices.Contains(argv, "_SYSTEMD_UNIT=a.service") || !slices.Contains(argv, "--lines=100") {
		t.Errorf("got %q", argv)
	}
	out = strings.Repeat(`{"MESSAGE":"`+strings.Repeat("ä", 2000)+`"}`+"\n", 1000)
	if lines := tail("", 5000); len(lines) != 100 || len(lines[0]) > 1100 {
		t.Errorf("got %d lines, the first with %d bytes", len(lines), len(lines[0]))
	}
	broken := errors.New("broken")
	if _, err := systemd.JournalTail(context.Background(), func(context.Context, ...string) ([]byte, error) {
		return nil, broken
	}, "a.service", "", 3); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// Of what the journal has, exactly one run is shown.
func TestReadJournal(t *testing.T) {
	const unit = `"_SYSTEMD_UNIT":"a.service",`
	got, cursor := systemd.ReadJournal("a.service", "abc", 1000,
		`{`+unit+`"MESSAGE":"of the run before","_SYSTEMD_INVOCATION_ID":"older","__MONOTONIC_TIMESTAMP":"2000"}`+"\n",
		`{`+unit+`"MESSAGE":"nobody's, before","__MONOTONIC_TIMESTAMP":"999"}`+"\n"+`{`+unit+`"MESSA`,
		`GE":"ours","PRIORITY":"4","_SYSTEMD_INVOCATION_ID":"abc"}`+"\n",
		`{`+unit+`"MESSAGE":"ended before it was seen","__MONOTONIC_TIMESTAMP":"1000"}`+"\n",
		`{`+unit+`"MESSAGE":[97,27,98,10,252],"_SYSTEMD_INVOCATION_ID":"abc"}`+"\n",
		`{"MESSAGE":"Starting a.service","INVOCATION_ID":"abc","_PID":"1","_SYSTEMD_UNIT":"init.scope"}`+"\n",
		`{"MESSAGE":"no such program","PRIORITY":"3","INVOCATION_ID":"abc","_PID":"7","_SYSTEMD_UNIT":"init.scope"}`+"\n",
		"no JSON\n",
		`{`+unit+`"MESSAGE":"of the next run","_SYSTEMD_INVOCATION_ID":"newer","__CURSOR":"s=9"}`+"\n",
		`{`+unit+`"MESSAGE":"not whole"`)
	if diff := cmp.Diff([]systemd.Entry{{4, "ours"}, {5, "ended before it was seen"}, {5, "a\uFFFDb\n\uFFFD"}, {3, "no such program"}}, got); diff != "" || cursor != "s=9" {
		t.Errorf("cursor %q, -want +got:\n%s", cursor, diff)
	}
}

// Outside a unit there is nobody to notify; that must cost nothing and fail nothing.
func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	start := time.Now()
	systemd.Notify("STATUS=testing")
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %s", took)
	}
	if systemd.StderrIsJournal() && testing.Verbose() {
		t.Log("stderr is the journal")
	}
}

// FuzzLinks: whatever stands in a unit, no planned link leaves the directory of
// units or the root.
func FuzzLinks(f *testing.F) {
	f.Add("WantedBy=a.target\nAlias=b.service\nAlso=c.service")
	f.Add("Alias=x.wants/../../a.service\nRequiredBy=%i%%.target")
	f.Add("DefaultInstance=../x\nWantedBy=\"a b\" .target")
	f.Fuzz(func(t *testing.T, install string) {
		root := lay(t, map[string]string{vendor + "a@.service": "[Install]\n" + install + "\n"})
		links, _ := systemd.Offline{Host: host.New(root)}.Links("a@one.service")
		for _, link := range links {
			rest, below := strings.CutPrefix(link.Path, "/etc/systemd/system/")
			if !below || strings.Count(rest, "/") > 1 || slices.Contains(strings.Split(rest, "/"), "..") ||
				strings.ContainsAny(rest, "\x00\n") || link.Target != "/usr/lib/systemd/system/a@.service" {
				t.Errorf("got %+v", link)
			}
		}
		more, _ := systemd.Offline{Host: host.New(root)}.Links("a@.service")
		for _, link := range more {
			if strings.Contains(link.Path, "/../") || strings.Count(link.Path, "/") > 5 {
				t.Errorf("got %+v", link)
			}
		}
	})
}
