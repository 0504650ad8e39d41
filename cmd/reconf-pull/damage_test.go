package main_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// damages are what can become of a file.
var damages = map[string]func(path string, whole []byte) error{
	"empty":     func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
	"one byte":  func(path string, whole []byte) error { return os.WriteFile(path, whole[:min(1, len(whole))], 0o600) },
	"half":      func(path string, whole []byte) error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
	"all but 3": func(path string, whole []byte) error { return os.WriteFile(path, whole[:max(len(whole)-3, 0)], 0o600) },
	"zeroes":    func(path string, whole []byte) error { return os.WriteFile(path, make([]byte, len(whole)), 0o600) },
	"garbage":   func(path string, _ []byte) error { return os.WriteFile(path, []byte("\xff\xfe{]\x1b[31m\n\n,"), 0o600) },
	"other JSON": func(path string, _ []byte) error {
		return os.WriteFile(path, []byte(`{"schema": "one", "items": 7}`), 0o600)
	},
	"null": func(path string, _ []byte) error { return os.WriteFile(path, []byte("null\n"), 0o600) },
	"newer": func(path string, whole []byte) error {
		newer := bytes.Replace(whole, []byte(`"schema": 1`), []byte(`"schema": 2`), 1)
		return os.WriteFile(path, bytes.Replace(newer, []byte("manifest\t1"), []byte("manifest\t2"), 1), 0o600)
	},
	"directory": func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	"loop":      func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Symlink(path, path)) },
}

// commands are all that read the state, with what they may end with when it is damaged.
func (tr *trial) commands(dir string) map[string][]string {
	run := tr.argv(dir)
	places := run[2:8] // --root, --state-dir, --config
	with := func(command ...string) []string { return append(append([]string{run[0]}, command...), places...) }
	plan := slices.Clone(run)
	plan[1] = "plan"
	return map[string][]string{
		"run": run, "plan": plan, "status": with("status"), "history": with("history"), "rollback": with("rollback"), "retry": with("retry"), "suspend": with("suspend", "a reason"),
	}
}

// TestDamagedState: whatever the state has become, no command goes on from
// nothing: it stops with 70 and a hint, or does not need what is damaged, and the
// host and the state stay as they are.
func TestDamagedState(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	applied := tr.place()
	tr.run(applied)
	tr.push(fewLater)
	tr.run(applied)
	cases := 0
	for _, file := range []string{"state.json", "verified.json", "generations/2/manifest", "generations/2/inputs.json", "generations/2/plan.json", "generations/2/generation.json"} {
		whole, err := os.ReadFile(filepath.Join(applied, "state", file))
		if err != nil {
			t.Fatal(err)
		}
		for damage, do := range damages {
			if damage == "newer" && !bytes.Contains(whole, []byte(`"schema": 1`)) && !bytes.Contains(whole, []byte("manifest\t1")) {
				continue
			}
			for command := range tr.commands("") {
				cases++
				dir := tr.copyOf(applied)
				if err := do(filepath.Join(dir, "state", file), whole); err != nil {
					t.Fatal(err)
				}
				before := tr.scanDamaged(dir)
				code, said := tr.ran(tr.commands(dir)[command])
				what := file + " " + damage + ", " + command
				switch {
				case !strings.Contains(file, "/") && command != "suspend" && code != 70:
					t.Errorf("%s: exit status %d, want 70:\n%s", what, code, said)
				case file == "generations/2/manifest" && slices.Contains([]string{"run", "plan", "status"}, command) && code != 70:
					t.Errorf("%s: exit status %d, want 70:\n%s", what, code, said)
				case code == 70 && (!strings.Contains(said, filepath.Join(dir, "state", file)) || !strings.Contains(said, "reconf-pull: hint: ")):
					t.Errorf("%s: no path or no hint:\n%s", what, said)
				case code == 1 && command != "rollback":
					t.Errorf("%s: exit status %d:\n%s", what, code, said)
				case command == "rollback" && code == 0 && file != "generations/2/inputs.json":
					t.Errorf("%s: went back by what is damaged:\n%s", what, said)
				}
				if strings.Contains(said, "panic") || strings.Contains(said, "\x1b") {
					t.Errorf("%s: says\n%q", what, said)
				}
				if diff := cmp.Diff(before, tr.scanDamaged(dir)); diff != "" && code != 0 {
					t.Errorf("%s: something was changed (exit status %d):\n%s\n%s", what, code, diff, said)
				}
				tr.remove(dir)
			}
		}
	}
	counted(t, "%d commands on damaged states", cases)
}

// scanDamaged is the tree of the host and what was damaged, byte by byte; what
// suspend writes is left out.
func (tr *trial) scanDamaged(dir string) map[string]string {
	tr.t.Helper()
	all := map[string]string{}
	for _, top := range []string{"root", "state"} {
		err := filepath.WalkDir(filepath.Join(dir, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Base(path) == "suspend" || filepath.Base(path) == "lock" {
				return err
			}
			all[path] = d.Type().String()
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				all[path] += string(data)
				return err
			}
			return nil
		})
		if err != nil {
			tr.t.Fatal(err)
		}
	}
	return all
}

// TestDamagedChange: what was stored for a change that was cut off is damaged; the
// next run makes it anew from its source and ends where an undisturbed one does.
func TestDamagedChange(t *testing.T) {
	tr := newTrial(t)
	tr.push(few)
	applied := tr.place()
	tr.run(applied)
	tr.push(fewLater)
	whole := tr.copyOf(applied)
	tr.run(whole)
	want := onlyRoot(tr.end(whole))
	cases := 0
	for _, at := range []string{"pinned", "half way"} {
		cut := tr.copyOf(applied)
		writes := 0
		_, status := traced(t, tr.argv(cut), func(_ int, name string) syscall.Signal {
			step, _ := tr.doing(cut)
			if step != "configure" || !slices.Contains(effects["renaming"], name) {
				return 0
			}
			if writes++; at == "pinned" || writes == 9 {
				return syscall.SIGKILL
			}
			return 0
		})
		if !status.Signaled() {
			t.Fatalf("not killed: %v", status)
		}
		changes, err := filepath.Glob(filepath.Join(cut, "state/changes/*"))
		if err != nil || len(changes) != 1 {
			t.Fatalf("changes: %v, %v", changes, err)
		}
		change := strings.TrimPrefix(changes[0], cut+"/")
		blobs, err := filepath.Glob(filepath.Join(cut, "state/blobs/*"))
		if err != nil {
			t.Fatal(err)
		}
		files := []string{change + "/plan.json", change + "/inputs.json", change + "/manifest", "blobs"}
		for _, file := range files {
			for damage, do := range damages {
				if damage == "newer" || damage == "directory" && file == "blobs" {
					continue
				}
				cases++
				what := at + ", " + file + " " + damage
				dir := tr.copyOf(cut)
				damaged := []string{filepath.Join(dir, file)}
				if file == "blobs" {
					damaged = nil
					for _, blob := range blobs {
						damaged = append(damaged, filepath.Join(dir, strings.TrimPrefix(blob, cut+"/")))
					}
				}
				for _, path := range damaged {
					data, err := os.ReadFile(path)
					if err == nil {
						err = do(path, data)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				code, said := tr.ran(tr.argv(dir))
				if strings.Contains(said, "panic") {
					t.Errorf("%s: says\n%s", what, said)
				}
				if code != 0 {
					t.Errorf("%s: the next run ends with %d:\n%s", what, code, said)
				} else if diff := cmp.Diff(want, onlyRoot(tr.end(dir))); diff != "" {
					t.Errorf("%s: ends elsewhere (-undisturbed +this):\n%s\nthe run said:\n%s", what, diff, said)
				}
				tr.remove(dir)
			}
		}
	}
	counted(t, "%d damaged changes", cases)
}
