package state_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDirs(t *testing.T) state.Dirs {
	t.Helper()
	dir := t.TempDir()
	dirs := state.Dirs{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}
	fatal(t, dirs.Create())
	return dirs
}

func TestLoad(t *testing.T) {
	for name, c := range map[string]struct {
		file       string
		unreadable string // in the error; "" for none
	}{
		"whole":        {`{"schema": 1, "ref": "refs/heads/main", "unknown": "to this release"}`, ""},
		"empty":        {"", "unexpected end"},
		"garbage":      {"\x00\x00\x00\x00", "invalid character"},
		"cut off":      {`{"schema": 1, "applied": {`, "unexpected end"},
		"no schema":    {`{}`, "no schema number"},
		"a newer one":  {`{"schema": 2}`, "newer release"},
		"another kind": {`[]`, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := newDirs(t)
			fatal(t, os.WriteFile(dirs.File(), []byte(c.file), 0o600))
			st, err := state.Load(dirs)
			if c.unreadable == "" {
				fatal(t, err)
				if st.Ref != "refs/heads/main" {
					t.Errorf("%+v", st)
				}
				return
			}
			if !errors.Is(err, state.ErrUnreadable) || !strings.Contains(err.Error(), c.unreadable) {
				t.Errorf("err = %v", err)
			}
			data, err := os.ReadFile(dirs.File())
			if err != nil || string(data) != c.file {
				t.Errorf("the file was touched: %q, %v", data, err)
			}
		})
	}
	st, err := state.Load(newDirs(t))
	if diff := cmp.Diff(&state.State{Schema: state.Schema}, st); diff != "" || err != nil {
		t.Errorf("a first run: %v %s", err, diff)
	}
}

func TestSaveAndLoad(t *testing.T) {
	dirs := newDirs(t)
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	want := &state.State{
		Schema: state.Schema, Ref: "refs/heads/main", Open: []string{"1-a"},
		Applied: &state.Applied{Generation: 3, Host: "web1", Commit: "c", Digest: "d", Time: when},
		Change:  &state.Change{ID: "4-b", Reasons: []string{"r"}, Pinned: when, Tasks: []state.Task{{Name: "configure", Status: state.Doing, Attempts: 2, Started: when}}},
	}
	fatal(t, state.Save(dirs, want))
	got, err := state.Load(dirs)
	fatal(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLock(t *testing.T) {
	dirs := newDirs(t)
	lock, err := state.Acquire(dirs)
	fatal(t, err)
	fatal(t, lock.Say("applying"))
	var busy *state.BusyError
	if _, err := state.Acquire(dirs); !errors.As(err, &busy) || !strings.Contains(busy.Error(), "applying") {
		t.Errorf("a second run: %v", err)
	}
	fatal(t, lock.Release())
	lock, err = state.Acquire(dirs)
	fatal(t, err)
	fatal(t, lock.Release())
}

func TestPristine(t *testing.T) {
	store := state.Pristine{Dir: t.TempDir()}
	read := func() string {
		t.Helper()
		r, err := store.Open("/etc/a")
		fatal(t, err)
		defer r.Close()
		data, err := os.ReadFile(r.(*os.File).Name())
		fatal(t, err)
		return string(data)
	}
	node := disk.Node{Kind: disk.File, Mode: 0o600, UID: 7, SHA256: "x", Size: 5}
	if _, ok, err := store.Node("/etc/a"); ok || err != nil {
		t.Errorf("before: %v, %v", ok, err)
	}
	// A copy that fails half way, or that a crash cut off, is none.
	if err := store.Keep("/etc/a", node, failing{}); err == nil {
		t.Error("a copy that could not be read was kept")
	}
	if _, ok, err := store.Node("/etc/a"); ok || err != nil {
		t.Errorf("after a failure: %v, %v", ok, err)
	}
	fatal(t, store.Keep("/etc/a", node, strings.NewReader("first")))
	// The first one is never replaced.
	fatal(t, store.Keep("/etc/a", disk.Node{Kind: disk.Link, Target: "b"}, strings.NewReader("second")))
	got, ok, err := store.Node("/etc/a")
	if diff := cmp.Diff(node, got); diff != "" || !ok || err != nil || read() != "first" {
		t.Errorf("%v %v %q %s", ok, err, read(), diff)
	}
	names, err := os.ReadDir(store.Dir)
	if err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	fatal(t, os.WriteFile(filepath.Join(store.Dir, names[0].Name(), "node.json"), []byte("{"), 0o600))
	if _, _, err := store.Node("/etc/a"); !errors.Is(err, state.ErrUnreadable) {
		t.Errorf("damaged: %v", err)
	}
}

type failing struct{}

func (failing) Read(p []byte) (int, error) { return copy(p, "half"), errors.New("no more") }

func TestManifest(t *testing.T) {
	odd := []string{"/etc/a", "/etc/with\ttab", "/etc/with\"quotes\"", `"`, "/etc/new\nline", "/etc/cr\r\nlf", "/etc/cr\r", "/etc/%0D%25", "/etc/ünïcode/日本", "/etc/\xff\xfe", " /blank ", "#", "/etc/a,b;c"}
	m := &state.Manifest{Units: []state.UnitEntry{{Name: "a@x.service", Enabled: true, Before: "disabled"}, {Name: "b.service"}}}
	for n, p := range odd {
		m.Entries = append(m.Entries, state.Entry{
			Path: p, Node: disk.Node{Kind: disk.Link, Mode: 0o4755, UID: n, GID: n + 1, Target: odd[len(odd)-1-n], SHA256: "5a", Size: int64(n)},
			Origin: state.Foreign, Source: "git:" + p[:1], Stat: disk.Stat{Inode: 1<<64 - 1, Size: int64(n), MTime: -1, CTime: 1 << 62},
		})
	}
	file := filepath.Join(t.TempDir(), "manifest")
	fatal(t, state.WriteManifest(file, m))
	got, err := state.ReadManifest(file)
	fatal(t, err)
	if diff := cmp.Diff(m, got); diff != "" {
		t.Error(diff)
	}
	if got.Lookup()["/etc/cr\r\nlf"] == nil {
		t.Error("an entry is not found by its path")
	}
	for name, text := range map[string]string{
		"empty": "", "no manifest": "hello\n", "newer": "reconf-pull-manifest\t2\n", "a row too many": "reconf-pull-manifest\t1\nreconf-pull-manifest\t1\n",
		"cut off": "reconf-pull-manifest\t1\npath\t/etc/a\tfile\t644\n", "no number": "reconf-pull-manifest\t1\npath\t/a\tfile\tx\t0\t0\t\t\tcreated\t\t0\t0\t0\t0\n",
		"no inode": "reconf-pull-manifest\t1\npath\t/a\tfile\t644\t0\t0\t\t\tcreated\t\t-1\t0\t0\t0\n", "open quote": "reconf-pull-manifest\t1\nunit\t\"a",
	} {
		fatal(t, os.WriteFile(file, []byte(text), 0o600))
		if _, err := state.ReadManifest(file); !errors.Is(err, state.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzManifest: whatever is read does not panic, and what was read once is
// written and read again as it is.
func FuzzManifest(f *testing.F) {
	f.Add([]byte("reconf-pull-manifest\t1\npath\t/etc/a\tfile\t644\t0\t0\tab\t\tcreated\tgit:x\t1\t2\t3\t4\nunit\ta.service\ttrue\tdisabled\n"))
	f.Add([]byte("reconf-pull-manifest\t1\npath\t\"/a\"\"\n%0D\"\tlink\t0\t0\t0\t\t\"x\ty\"\tforeign\t\t1\t2\t3\t4\n"))
	f.Add([]byte(""))
	file := filepath.Join(f.TempDir(), "manifest")
	f.Fuzz(func(t *testing.T, data []byte) {
		fatal(t, os.WriteFile(file, data, 0o600))
		first, err := state.ReadManifest(file)
		if err != nil {
			return
		}
		fatal(t, state.WriteManifest(file, first))
		second, err := state.ReadManifest(file)
		fatal(t, err)
		for _, m := range []*state.Manifest{first, second} {
			for i := range m.Entries {
				m.Entries[i].Source, m.Entries[i].SHA256 = "", "" // ids in hex, which have no line ends
			}
			for i := range m.Units {
				m.Units[i] = state.UnitEntry{Enabled: m.Units[i].Enabled} // names that systemd takes
			}
		}
		if diff := cmp.Diff(first.Entries, second.Entries, cmp.Comparer(func(a, b disk.Kind) bool { return true }), cmp.Comparer(func(a, b state.Origin) bool { return true })); diff != "" {
			t.Error(diff)
		}
	})
}

// FuzzLoad: a state file that is not one is never taken for a first run.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"", "{", "null", `{"schema": 1}`, `{"schema": 1, "change": {"tasks": [{"status": "doing"}]}}`, `{"schema": 2}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dirs := newDirs(t)
		fatal(t, os.WriteFile(dirs.File(), data, 0o600))
		st, err := state.Load(dirs)
		if err != nil && !errors.Is(err, state.ErrUnreadable) {
			t.Errorf("the error is %v", err)
		}
		if err == nil && st.Schema != state.Schema {
			t.Errorf("taken for a state: %+v", st)
		}
	})
}

// The file of a manifest says which contents are secrets, in words that an older
// release reads too.
func TestManifestOfSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "manifest")
	want := &state.Manifest{Entries: []state.Entry{
		{Path: "/etc/a", Node: disk.Node{Kind: disk.File, SHA256: "x", Secret: true}, Origin: state.Created, Source: "git:1 +" + state.SecretSource + "git:2"},
		{Path: "/etc/b", Node: disk.Node{Kind: disk.File, SHA256: "y"}, Origin: state.Created, Source: "git:1"},
		{Path: "/etc/c", Node: disk.Node{Kind: disk.File, SHA256: "z", Secret: true}, Origin: state.Created}, // of an attempt
	}}
	fatal(t, state.WriteManifest(path, want))
	got, err := state.ReadManifest(path)
	fatal(t, err)
	for i, entry := range got.Entries {
		if entry.Secret != want.Entries[i].Secret || i < 2 && entry.Source != want.Entries[i].Source {
			t.Errorf("%+v", entry)
		}
	}
	if a, b := got.Entries[0].Stored(), got.Entries[1].Stored(); a != "x.age" || b != "y" {
		t.Errorf("stored as %s and %s", a, b)
	}
}
