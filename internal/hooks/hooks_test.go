package hooks_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// bench is two places with script directories, and what came out of them.
type bench struct {
	*hooks.Runner
	own, repo string
	log       *logtest.Hook

	mu    sync.Mutex
	lines []string
}

// newBench needs root, and directories that nobody else can write, as /tmp is not.
func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking.Skip(t, "not root: scripts that are root's cannot be made")
	}
	dir, err := os.MkdirTemp("/var/lib", "reconf-pull-hooks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bench{own: filepath.Join(dir, "own"), repo: filepath.Join(dir, "repo")}
	log, hook := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	b.log = hook
	b.Runner = &hooks.Runner{
		Host: host.New("/"), Dirs: []string{b.own, b.repo}, Timeout: time.Minute, MaxLines: 10_000, Log: log,
		Output: func(script, line string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.lines = append(b.lines, script+": "+line)
		},
	}
	for _, dir := range b.Dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bench) output() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

// script writes one; without #! in it, it is bash.
func script(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(content, "#!") {
		content = "#!/bin/bash\n" + content + "\n"
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestScriptsRunInOrder(t *testing.T) {
	b := newBench(t)
	// The C locale: digits, upper case, lower case; 9 is after 10.
	for _, name := range []string{"b", "10-x.sh", "9-x", "B", "00-a", "a_b", "ä"} {
		script(t, b.repo+"/update.d/"+name, `echo "$0 $#"`)
	}
	script(t, b.own+"/update.d/50-own", "echo own")
	script(t, b.own+"/pre_update.d/00-other", "echo other")
	if err := b.Run(t.Context(), hooks.Update, nil); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{"00-a", "10-x.sh", "50-own", "9-x", "B", "a_b", "b", "ä"} {
		said := b.repo + "/update.d/" + name + " 0"
		if name == "50-own" {
			said = "own"
		}
		want = append(want, "update.d/"+name+": "+said)
	}
	equal(t, b.output(), want...)
}

func TestNoScriptsAreFine(t *testing.T) {
	b := newBench(t)
	b.Dirs = append(b.Dirs, "/no/such/directory")
	if err := b.Run(t.Context(), hooks.PreUpdate, nil); err != nil {
		t.Error(err)
	}
	if yes, why, err := b.Ask(t.Context(), hooks.NeedsReboot, nil); yes || why != "" || err != nil {
		t.Errorf("got %v, %q, %v", yes, why, err)
	}
}

func TestMerge(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"10-both", "20-repo", "30-masked", "40-broken", "50-backup"} {
		script(t, b.repo+"/update.d/"+name, "echo repo")
	}
	script(t, b.own+"/update.d/10-both", "echo own")
	link(t, "/dev/null", b.own+"/update.d/30-masked")
	script(t, b.own+"/update.d/40-broken", "echo own")
	if err := os.Chmod(b.own+"/update.d/40-broken", 0o644); err != nil {
		t.Fatal(err)
	}
	script(t, b.own+"/update.d/50-backup~", "echo old")
	if err := b.Run(t.Context(), hooks.Update, nil); err != nil {
		t.Fatal(err)
	}
	equal(t, b.output(), "update.d/10-both: own", "update.d/20-repo: repo", "update.d/50-backup: repo")
	_, ignored, err := b.List(hooks.Update)
	if err != nil {
		t.Fatal(err)
	}
	want := []hooks.Ignored{
		{Path: b.own + "/update.d/30-masked", Reason: "a mask: a link to /dev/null", Meant: true},
		{Path: b.own + "/update.d/40-broken", Reason: "not executable"},
		{Path: b.own + "/update.d/50-backup~", Reason: "an editor's copy (~)"},
		{Path: b.repo + "/update.d/10-both", Reason: b.own + "/update.d/10-both takes its place", Meant: true},
		{Path: b.repo + "/update.d/30-masked", Reason: "masked by " + b.own + "/update.d/30-masked", Meant: true},
		{Path: b.repo + "/update.d/40-broken", Reason: b.own + "/update.d/40-broken takes its place", Meant: true},
	}
	if diff := cmp.Diff(want, ignored); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// Each of them is in the log, as a warning unless somebody meant it.
	for _, one := range want {
		found := slices.ContainsFunc(b.log.AllEntries(), func(e *logrus.Entry) bool {
			return e.Data["hook"] == one.Path && strings.Contains(e.Message, one.Reason) && (e.Level == logrus.WarnLevel) != one.Meant
		})
		if !found {
			t.Errorf("%s is not in the log", one.Path)
		}
	}
}

// What the fleet repo would bring is the last place; the machine has none of
// it yet, whether its root is running or not.
func TestPreview(t *testing.T) {
	b := newBench(t)
	root := filepath.Dir(b.own)
	for _, at := range []struct{ root, dir string }{{"/", b.own}, {root, "/own"}} {
		b.Host, b.Dirs = host.New(at.root), []string{at.dir}
		real := b.own + "/migration.d/"
		script(t, real+"10-both", "echo own")
		if err := os.RemoveAll(real + "30-masked"); err != nil {
			t.Fatal(err)
		}
		link(t, "/dev/null", real+"30-masked")
		script(t, real+"40-own", "echo the same")
		var proposed []hooks.Proposed
		for _, name := range []string{"00-repo", "10-both", "30-masked", "50-off", "60-empty", "README"} {
			proposed = append(proposed, hooks.Proposed{
				Phase: hooks.Migration, Name: name, Path: "hosts/web1/hooks/migration.d/" + name,
				Executable: name != "50-off", Size: int64(len(strings.TrimPrefix(name, "60-empty"))), SHA256: "sha256 of " + name,
			})
		}
		proposed = append(proposed, hooks.Proposed{Phase: hooks.Update, Name: "00-other", Path: "x", Executable: true, Size: 1})
		scripts, ignored, err := b.Preview(hooks.Migration, proposed)
		if err != nil {
			t.Fatal(err)
		}
		own, repo := at.dir+"/migration.d/", "hosts/web1/hooks/migration.d/"
		want := []hooks.Script{
			{Name: "00-repo", Path: repo + "00-repo", Hash: "sha256 of 00-repo", Fleet: true},
			{Name: "10-both", Path: own + "10-both"}, {Name: "40-own", Path: own + "40-own"},
		}
		if diff := cmp.Diff(want, scripts); diff != "" {
			t.Errorf("scripts: -want +got:\n%s", diff)
		}
		left := []hooks.Ignored{
			{Path: own + "30-masked", Reason: "a mask: a link to /dev/null", Meant: true},
			{Path: repo + "10-both", Reason: own + "10-both takes its place", Meant: true},
			{Path: repo + "30-masked", Reason: "masked by " + own + "30-masked", Meant: true},
			{Path: repo + "50-off", Reason: "not executable"},
			{Path: repo + "60-empty", Reason: "empty"},
			{Path: repo + "README", Reason: "documentation"},
		}
		if diff := cmp.Diff(left, ignored); diff != "" {
			t.Errorf("ignored: -want +got:\n%s", diff)
		}
		pending, err := b.Pending(hooks.Migration, scripts, func(hash string) (bool, error) { return hash == "sha256 of 00-repo", nil })
		if err != nil || len(pending) != 2 || pending[0].Name != "10-both" || len(pending[0].Hash) != 64 {
			t.Errorf("pending: %v, %v", pending, err)
		}
	}
}

func TestIgnored(t *testing.T) {
	b := newBench(t)
	dir := b.own + "/update.d/"
	script(t, dir+"good", "true")
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	aside := filepath.Dir(b.own)
	want := map[string]string{}
	add := func(name, reason string) string {
		want[dir+name] = reason
		return dir + name
	}
	for name, reason := range map[string]string{
		".hidden": "a hidden file", "README": "documentation", "readme.md": "documentation",
		"a~": "an editor's copy (~)", "a.bak": "an editor's copy (.bak)", "#a#": "an editor's copy (#)", "a.swp": "an editor's copy (.swp)",
		"a.rpmnew": "a package manager's copy (.rpmnew)", "a.dpkg-old": "a package manager's copy (.dpkg-old)",
	} {
		script(t, add(name, reason), "echo wrong")
	}
	script(t, add("not-executable", "not executable"), "echo wrong")
	must(os.Chmod(dir+"not-executable", 0o644))
	script(t, add("for-others-executable", "not executable"), "echo wrong")
	must(os.Chmod(dir+"for-others-executable", 0o611))
	script(t, add("others", dir+"others belongs to uid 65534, not to root"), "echo wrong")
	must(os.Chown(dir+"others", 65534, 0))
	script(t, add("group-writable", dir+"group-writable is writable by its group (mode 0775)"), "echo wrong")
	must(os.Chmod(dir+"group-writable", 0o775))
	script(t, add("writable", dir+"writable is writable by everybody (mode 0757)"), "echo wrong")
	must(os.Chmod(dir+"writable", 0o757))
	must(os.WriteFile(add("empty", "empty"), nil, 0o755))
	must(os.Mkdir(add("directory", "a directory"), 0o755))
	must(exec.Command("mkfifo", "-m", "0755", add("pipe", "no regular file")).Run())

	link(t, "gone", add("dangling", "a link to nothing"))
	link(t, "good/no-directory", add("through-a-file", "a link to nothing"))
	link(t, "loop", add("loop", "a chain of links without an end"))
	link(t, "directory", add("link-to-directory", "a directory"))
	link(t, "others", add("link-to-others", dir+"others belongs to uid 65534, not to root"))
	// The target is fine, the way to it is not.
	script(t, aside+"/open/script", "echo wrong")
	must(os.Chmod(aside+"/open", 0o777))
	link(t, aside+"/open/script", add("open-way", aside+"/open is writable by everybody (mode 0777)"))
	script(t, aside+"/theirs/sub/script", "echo wrong")
	must(os.Chown(aside+"/theirs", 65534, 65534))
	link(t, "../../theirs/sub/script", add("their-way", aside+"/theirs belongs to uid 65534, not to root"))
	// A link that others could turn leads to a good one.
	link(t, dir+"good", aside+"/their-link")
	must(os.Lchown(aside+"/their-link", 65534, 65534))
	link(t, aside+"/their-link", add("their-link", aside+"/their-link belongs to uid 65534, not to root"))
	// And good ones.
	link(t, "good", dir+"link-to-good")
	link(t, ".././update.d/../../own/update.d/link-to-good", dir+"links-to-good")

	scripts, ignored, err := b.List(hooks.Update)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, one := range ignored {
		got[one.Path] = one.Reason
		if one.Meant {
			t.Errorf("nobody meant %s", one.Path)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var names []string
	for _, one := range scripts {
		names = append(names, one.Name)
	}
	equal(t, names, "good", "link-to-good", "links-to-good")
	if err := b.Run(t.Context(), hooks.Update, nil); err != nil {
		t.Error(err)
	}
	equal(t, b.output())
}

func TestDirectoriesAreTrustedUpToTheRoot(t *testing.T) {
	b := newBench(t)
	script(t, b.own+"/update.d/10-own", "echo own")
	link(t, "/dev/null", b.own+"/update.d/20-repo")
	script(t, b.repo+"/update.d/20-repo", "echo repo")
	parent := filepath.Dir(b.own)
	for _, test := range []struct {
		name   string
		change func() error
		want   []hooks.Ignored
	}{
		{"its own mode", func() error { return os.Chmod(b.own+"/update.d", 0o775) }, []hooks.Ignored{
			{Path: b.own + "/update.d", Reason: b.own + "/update.d is writable by its group (mode 0775)"},
		}},
		{"a parent's owner", func() error { return os.Chown(parent, 65534, 0) }, []hooks.Ignored{
			{Path: b.own + "/update.d", Reason: parent + " belongs to uid 65534, not to root"},
			{Path: b.repo + "/update.d", Reason: parent + " belongs to uid 65534, not to root"},
		}},
	} {
		if err := test.change(); err != nil {
			t.Fatal(err)
		}
		_, ignored, err := b.List(hooks.Update)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, ignored); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
	// What others could have put there masks nothing, either.
	if err := os.Chown(parent, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context(), hooks.Update, nil); err != nil {
		t.Fatal(err)
	}
	equal(t, b.output(), "update.d/20-repo: repo")
}

func TestListBelowARoot(t *testing.T) {
	b := newBench(t)
	root := filepath.Dir(b.own)
	b.Host, b.Dirs = host.New(root), []string{hooks.Dir}
	script(t, root+hooks.Dir+"/update.d/10-a", "true")
	script(t, root+"/usr/lib/script", "true")
	link(t, "/usr/lib/script", root+hooks.Dir+"/update.d/20-b")
	link(t, "../../../../../../../../usr/lib/script", root+hooks.Dir+"/update.d/30-c")
	script(t, root+hooks.Dir+"/update.d/40-d", "true")
	if err := os.Chmod(root+hooks.Dir+"/update.d/40-d", 0o777); err != nil {
		t.Fatal(err)
	}
	scripts, ignored, err := b.List(hooks.Update)
	if err != nil {
		t.Fatal(err)
	}
	want := []hooks.Script{
		{Name: "10-a", Path: hooks.Dir + "/update.d/10-a"}, {Name: "20-b", Path: hooks.Dir + "/update.d/20-b"}, {Name: "30-c", Path: hooks.Dir + "/update.d/30-c"},
	}
	if diff := cmp.Diff(want, scripts); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(ignored) != 1 || ignored[0].Reason != hooks.Dir+"/update.d/40-d is writable by everybody (mode 0777)" {
		t.Errorf("ignored: %v", ignored)
	}
	if err := b.Run(t.Context(), hooks.Update, nil); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("scripts of a root are run: %v", err)
	}
}

func TestStrays(t *testing.T) {
	b := newBench(t)
	script(t, b.own+"/pre-update.d/10-a", "true")
	script(t, b.own+"/update.d/10-a", "true")
	script(t, b.own+"/health/10-a", "true")
	script(t, b.repo+"/10-a", "true")
	strays, err := b.Strays()
	if err != nil {
		t.Fatal(err)
	}
	want := []hooks.Ignored{
		{Path: b.own + "/health", Reason: "no script directory: is it meant to be health.d?"},
		{Path: b.own + "/pre-update.d", Reason: "no script directory: is it meant to be pre_update.d?"},
		{Path: b.repo + "/10-a", Reason: "no script directory"},
	}
	if diff := cmp.Diff(want, strays); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	b := newBench(t)
	t.Setenv("SECRET_OF_THE_AGENT", "1")
	script(t, b.repo+"/error.d/10-env", `env -u _ -u PWD -u SHLVL | sort; readlink /proc/self/fd/0; pwd; [ -t 1 ] || echo no terminal`)
	env := map[string]string{"RECONF_ERROR": "two\nlines\x00"}
	want := []string{"RECONF_PHASE=error", "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "RECONF_ERROR=two", "lines"}
	for _, name := range []string{
		"HOST", "COMMIT", "PREVIOUS_COMMIT", "DIGEST", "REASONS", "CHANGED_UNITS_FILE", "CHANGED_PATHS_FILE", "STATE_ROOT", "FAILED_STEP",
	} {
		env["RECONF_"+name] = "the " + strings.ToLower(name)
		want = append(want, "RECONF_"+name+"=the "+strings.ToLower(name))
	}
	slices.Sort(want)
	want = append(want, "/dev/null", "/", "no terminal")
	if err := b.Run(t.Context(), hooks.Error, env); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range b.output() {
		got = append(got, strings.TrimPrefix(line, "error.d/10-env: "))
	}
	equal(t, got, want...)
	for _, name := range []string{"PATH", "RECONF_PHASE"} {
		if err := b.Run(t.Context(), hooks.Error, map[string]string{name: "x"}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLongValuesAreCut(t *testing.T) {
	b := newBench(t)
	script(t, b.repo+"/error.d/10-env", `echo ${#RECONF_ERROR} ${#RECONF_REASONS}`)
	if err := b.Run(t.Context(), hooks.Error, map[string]string{"RECONF_ERROR": strings.Repeat("ä", 1<<20), "RECONF_REASONS": strings.Repeat("x", 1000)}); err != nil {
		t.Fatal(err)
	}
	equal(t, b.output(), fmt.Sprintf("error.d/10-env: %d 1000", 32<<10+len("…")))
}

func TestTheFirstFailureStopsThePhase(t *testing.T) {
	b := newBench(t)
	script(t, b.repo+"/update.d/10-first", "echo first")
	script(t, b.repo+"/update.d/20-bad", "for i in $(seq 30); do echo line $i; done; echo what went wrong >&2; exit 7")
	script(t, b.repo+"/update.d/30-never", "echo never")
	err := b.Run(t.Context(), hooks.Update, nil)
	var failure *hooks.Failure
	var ended *run.Error
	if !errors.As(err, &failure) || !errors.As(err, &ended) || ended.ExitCode() != 7 || failure.Script != "update.d/20-bad" {
		t.Fatalf("got %v", err)
	}
	if want := "update.d/20-bad: exit status 7: line 22\n"; !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "\nwhat went wrong") {
		t.Errorf("got %q, want %q…", err, want)
	}
	if lines := b.output(); len(lines) != 32 || lines[31] != "update.d/20-bad: what went wrong" {
		t.Errorf("got %q", lines)
	}
}

func TestHowScriptsFail(t *testing.T) {
	for _, test := range []struct{ name, script, want string }{
		{"silent", "exit 1", "update.d/x: exit status 1"},
		{"signal", "kill -SEGV $$", "update.d/x: signal: segmentation fault"},
		{"time limit", "echo waiting; sleep 600", "update.d/x: its time limit of 1s is over: waiting"},
		{"no interpreter", "#!/no/such/shell\n", "update.d/x: starting it: no such file or directory: its first line has to"},
		{"an interpreter that is none", "#!/etc/passwd\n", "update.d/x: starting it: permission denied: its interpreter must be executable"},
		{"no #!", "#!\n", "update.d/x: starting it: exec format error: its first line has to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.Timeout = time.Second
			script(t, b.own+"/update.d/x", test.script)
			if err := b.Run(t.Context(), hooks.Update, nil); err == nil || !strings.Contains(err.Error(), test.want) || strings.Count(err.Error(), "update.d/x: ") != 1 {
				t.Errorf("got %q, want %q", err, test.want)
			}
		})
	}
}

func TestAsk(t *testing.T) {
	for _, test := range []struct {
		name    string
		scripts map[string]string
		yes     bool
		why     string
		errs    []string
	}{
		{"no", map[string]string{"10-a": "exit 0", "20-b": "echo nothing to do"}, false, "", nil},
		{"yes by 1", map[string]string{"10-a": "exit 1"}, true, "needs_update.d/10-a", nil},
		{"yes by 125, and why", map[string]string{"10-a": "exit 0", "20-b": "echo looking; echo 3 packages; exit 125"}, true, "needs_update.d/20-b: 3 packages", nil},
		{"all are asked", map[string]string{"10-a": "echo kernel; exit 1", "20-b": "echo image; exit 2"}, true, "needs_update.d/10-a: kernel; needs_update.d/20-b: image", nil},
		{"126", map[string]string{"10-a": "exit 126"}, false, "", []string{"needs_update.d/10-a: exit status 126"}},
		{"127", map[string]string{"10-a": "no-such-command"}, false, "", []string{"needs_update.d/10-a: exit status 127: ", "no-such-command: command not found"}},
		{"128", map[string]string{"10-a": "exit 128"}, false, "", []string{"needs_update.d/10-a: exit status 128"}},
		{"255", map[string]string{"10-a": "exit 255"}, false, "", []string{"needs_update.d/10-a: exit status 255"}},
		{"signal", map[string]string{"10-a": "kill -KILL $$"}, false, "", []string{"needs_update.d/10-a: signal: killed"}},
		{"time limit", map[string]string{"10-a": "sleep 600"}, false, "", []string{"needs_update.d/10-a: its time limit of 1s is over"}},
		{"cannot be started", map[string]string{"10-a": "#!/no/such/shell\n"}, false, "", []string{"needs_update.d/10-a", "no such file"}},
		{"a broken one stops nobody", map[string]string{"10-a": "exit 127", "20-b": "exit 1", "30-c": "kill -TERM $$"}, true, "needs_update.d/20-b",
			[]string{"needs_update.d/10-a: exit status 127", "needs_update.d/30-c: signal: terminated"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.Timeout = time.Second
			for name, content := range test.scripts {
				script(t, b.repo+"/needs_update.d/"+name, content)
			}
			yes, why, err := b.Ask(t.Context(), hooks.NeedsUpdate, nil)
			if yes != test.yes || why != test.why || (err != nil) != (test.errs != nil) {
				t.Errorf("got %v, %q, %v", yes, why, err)
			}
			for _, want := range test.errs {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q", err, want)
				}
			}
		})
	}
}

func TestAskIsEnded(t *testing.T) {
	b := newBench(t)
	script(t, b.repo+"/needs_update.d/10-yes", "exit 1")
	script(t, b.repo+"/needs_update.d/20-long", "trap 'exit 1' TERM; echo begun; sleep 600 & wait")
	script(t, b.repo+"/needs_update.d/30-never", "echo never")
	ctx := b.onLine(t, "needs_update.d/20-long: begun", nil)
	if yes, _, err := b.Ask(ctx, hooks.NeedsUpdate, nil); yes || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", yes, err)
	}
	equal(t, b.output(), "needs_update.d/20-long: begun")
}

// onLine ends the context when a script prints a line.
func (b *bench) onLine(t *testing.T, line string, began *time.Time) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	output := b.Output
	b.Output = func(script, said string) {
		output(script, said)
		if script+": "+said == line {
			if began != nil {
				*began = time.Now()
			}
			cancel()
		}
	}
	return ctx
}

// pids are what the lines with "pid" say.
func (b *bench) pids(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, line := range b.output() {
		if _, number, ok := strings.Cut(line, ": pid "); ok {
			pid, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// defiant is a script with everything that makes it hard to end.
const defiant = `
trap '' TERM HUP INT
echo pid $$
(trap '' TERM; echo pid $BASHPID; while :; do sleep 600; done) &
(setsid bash -c 'trap "" TERM; echo pid $$; while :; do sleep 600; done' &)
setsid bash -c 'echo pid $$; setsid bash -c "echo pid \$\$; sleep 600" & wait' &
sleep 0.3
echo ready
while :; do sleep 600; done`

func TestEverythingIsEndedWithinFiveSeconds(t *testing.T) {
	b := newBench(t)
	script(t, b.repo+"/update.d/10-defiant", defiant)
	script(t, b.repo+"/update.d/20-never", "echo never")
	var began time.Time
	ctx := b.onLine(t, "update.d/10-defiant: ready", &began)
	err := b.Run(ctx, hooks.Update, nil)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.allGone(t, 5)
}

func TestTheTimeLimitEndsEverything(t *testing.T) {
	b := newBench(t)
	b.Timeout = time.Second
	script(t, b.repo+"/update.d/10-defiant", defiant)
	began := time.Now()
	err := b.Run(t.Context(), hooks.Update, nil)
	if took := time.Since(began); took > b.Timeout+5*time.Second {
		t.Errorf("took %s", took)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	b.allGone(t, 5)
}

func (b *bench) allGone(t *testing.T, count int) {
	t.Helper()
	pids := b.pids(t)
	if len(pids) != count {
		t.Errorf("%d processes said their pid, want %d: %q", len(pids), count, b.output())
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("%d lives on", pid)
		}
	}
	if slices.ContainsFunc(b.output(), func(line string) bool { return strings.HasSuffix(line, "never") }) {
		t.Error("the next script was started")
	}
}

// TestAScriptMayLeaveADaemon: the phase goes on although the daemon keeps the output open.
func TestAScriptMayLeaveADaemon(t *testing.T) {
	b := newBench(t)
	script(t, b.repo+"/update.d/10-daemon", "(setsid sleep 600 & echo pid $!)")
	script(t, b.repo+"/update.d/20-next", "echo next")
	began := time.Now()
	if err := b.Run(t.Context(), hooks.Update, nil); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
	pids := b.pids(t)
	if len(pids) != 1 || !alive(pids[0]) {
		t.Fatalf("the daemon is gone: %q", b.output())
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Kill()
	_, _ = p.Wait()
	if lines := b.output(); lines[len(lines)-1] != "update.d/20-next: next" {
		t.Errorf("got %q", lines)
	}
}

func TestOutput(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"in order", "echo 1; echo 2 >&2; echo 3", []string{"1", "2", "3"}},
		{"empty lines", `printf 'a\n\n\nb'`, []string{"a", "", "", "b"}},
		{"without an end", "printf abc", []string{"abc"}},
		{"nothing", "true", nil},
		{"binary", `printf 'a\000b\033[31mc\377\tä\n'`, []string{"a�b�[31mc�\tä"}},
		{"progress", `printf '10%%\r50%%\r100%%\r\nnext\r\n'`, []string{"100%", "next"}},
		{"long line", `head -c 10000 /dev/zero | tr '\0' x; echo; echo next`, []string{strings.Repeat("x", 4096) + "… (5904 bytes more)", "next"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			script(t, b.own+"/health.d/x", test.script)
			if err := b.Run(t.Context(), hooks.Health, nil); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, line := range test.want {
				want = append(want, "health.d/x: "+line)
			}
			equal(t, b.output(), want...)
		})
	}
}

func TestAFloodIsBounded(t *testing.T) {
	b := newBench(t)
	// Far more than fits into any buffer, with one endless line.
	script(t, b.own+"/health.d/x", "seq 200000; head -c 50000000 /dev/zero; echo; echo the end; exit 1")
	err := b.Run(t.Context(), hooks.Health, nil)
	if err == nil || !strings.HasSuffix(err.Error(), "\nthe end") {
		t.Error("the end of the output is not in the error")
	}
	if len(err.Error()) > 100<<10 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	lines := b.output()
	if len(lines) != 10001 || lines[10000] != "health.d/x: … (190002 lines more, not shown: hooks.max_lines)" {
		t.Errorf("%d lines, the last one %q", len(lines), lines[len(lines)-1])
	}
}

func TestRunOnce(t *testing.T) {
	b := newBench(t)
	marked := map[string]bool{}
	done := func(hash string) (bool, error) { return marked[hash], nil }
	mark := func(hash string) error {
		if len(hash) != 64 || marked[hash] {
			t.Errorf("marked %q", hash)
		}
		marked[hash] = true
		return nil
	}
	once := func() error {
		b.mu.Lock()
		b.lines = nil
		b.mu.Unlock()
		return b.RunOnce(t.Context(), hooks.Migration, nil, done, mark)
	}
	dir := b.repo + "/migration.d/"
	script(t, dir+"10-a", "echo a")
	script(t, dir+"20-b", "echo b; exit 1")
	script(t, dir+"30-c", "echo c")
	script(t, dir+"40-a-again", "echo a")
	if err := once(); err == nil || !strings.Contains(err.Error(), "migration.d/20-b") {
		t.Errorf("got %v", err)
	}
	equal(t, b.output(), "migration.d/10-a: a", "migration.d/20-b: b")
	script(t, dir+"20-b", "echo b, repaired")
	scripts, _, err := b.List(hooks.Migration)
	if err != nil {
		t.Fatal(err)
	}
	pending, err := b.Pending(hooks.Migration, scripts, done)
	if err != nil || len(pending) != 2 || pending[0].Name != "20-b" || pending[1].Name != "30-c" {
		t.Errorf("pending: %v, %v", pending, err)
	}
	if err := once(); err != nil {
		t.Error(err)
	}
	equal(t, b.output(), "migration.d/20-b: b, repaired", "migration.d/30-c: c")
	// Another name or place is no other content.
	if err := os.Rename(dir+"10-a", dir+"50-renamed"); err != nil {
		t.Fatal(err)
	}
	link(t, dir+"30-c", dir+"60-link")
	if err := once(); err != nil {
		t.Error(err)
	}
	equal(t, b.output())
	// What cannot be remembered is not gone over.
	script(t, dir+"70-d", "echo d")
	script(t, dir+"80-e", "echo e")
	full := errors.New("disk full")
	b.lines = nil
	err = b.RunOnce(t.Context(), hooks.Migration, nil, done, func(string) error { return full })
	if !errors.Is(err, full) || !strings.Contains(err.Error(), "70-d") {
		t.Errorf("got %v", err)
	}
	equal(t, b.output(), "migration.d/70-d: d")
	b.lines = nil
	if err := b.RunOnce(t.Context(), hooks.Migration, nil, func(string) (bool, error) { return false, full }, mark); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	equal(t, b.output())
}
