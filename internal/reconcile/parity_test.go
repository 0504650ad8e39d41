package reconcile_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

var (
	live   = flag.Bool("live", false, "TestParity: call the salt-call on the PATH instead of replaying what it did")
	record = flag.Bool("record", false, "TestParity: write down what salt-call did (with -live)")
)

const recordings = "../../testdata/parity/recorded"

// TestParity has both engines apply every case of testdata/translate that is
// valid, and every one of testdata/parity: to an empty root, over another
// generation, and to a damaged root. The trees and the lists of services must
// be the same.
//
// Without -live what Salt did is replayed from its recordings. Those hold only
// for the very tree that was recorded: another SLS tree fails the test until
// `make parity RECORD=1` has recorded it, which needs a salt-call.
func TestParity(t *testing.T) {
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: files get owners")
	}
	if _, err := exec.LookPath("salt-call"); *live && err != nil {
		t.Fatal("there is no salt-call on the PATH")
	}
	var names []string
	for _, pattern := range []string{"../../testdata/translate/*.txtar", "../../testdata/parity/*.txtar"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	cases := 0
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c := newGolden(t, archive)
		if c.broken {
			continue
		}
		cases++
		p := &parity{golden: c, name: strings.TrimSuffix(filepath.Base(name), ".txtar")}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.test(t)
		})
	}
	if cases < 60 {
		t.Errorf("%d cases, want at least 60", cases)
	}
}

// parity is one case.
type parity struct {
	*golden
	name     string
	recorded map[string][]recordedCall // by situation
}

// recordedCall is one salt-call: what it was given, what it printed, and what
// it left on the disk.
type recordedCall struct {
	Args []string `json:"args"`
	// Tree is the SHA-256 over all that reconf-pull put into the folder.
	Tree string            `json:"tree"`
	Main string            `json:"main,omitempty"` // main.sls of the run, for people
	Exit int               `json:"exit"`
	Out  json.RawMessage   `json:"out"`
	Left map[string]string `json:"left,omitempty"`
}

func (p *parity) file() string { return filepath.Join(recordings, p.name+".json") }

func (p *parity) test(t *testing.T) {
	p.recorded = map[string][]recordedCall{}
	if !*live {
		data, err := os.ReadFile(p.file())
		if err == nil {
			err = json.Unmarshal(data, &p.recorded)
		}
		if err != nil {
			t.Fatalf("what salt-call did was not recorded (make parity RECORD=1): %v", err)
		}
	}
	for _, situation := range []string{"empty", "previous", "damaged"} {
		t.Run(situation, func(t *testing.T) { p.compare(t, situation) })
	}
	if *record && !t.Failed() {
		if err := errors.Join(os.MkdirAll(recordings, 0o755), os.WriteFile(p.file(), p.lines(t), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// lines are the recordings, one call a line.
func (p *parity) lines(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString("{")
	for i, situation := range slices.Sorted(maps.Keys(p.recorded)) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n%s: [", quoted(situation))
		for i, call := range p.recorded[situation] {
			if i > 0 {
				b.WriteString(",")
			}
			b.WriteByte('\n')
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false) // for people
			if err := enc.Encode(call); err != nil {
				t.Fatal(err)
			}
			b.Truncate(b.Len() - 1) // its newline
		}
		b.WriteString("\n]")
	}
	b.WriteString("\n}\n")
	return b.Bytes()
}

// compare brings a root of each engine into the situation, always natively,
// and then has each of them apply the case to its own.
func (p *parity) compare(t *testing.T, situation string) {
	ours, theirs := p.world(t, situation), p.world(t, situation)
	for _, w := range []*world{ours, theirs} {
		switch situation {
		case "previous":
			w.apply(engine.Native, w.files)
			w.apply(engine.Native, w.previous())
		case "damaged":
			w.apply(engine.Native, w.files)
			w.damage()
		}
	}
	if diff := cmp.Diff(ours.tree(), theirs.tree()); diff != "" {
		t.Fatalf("the roots differ before anything was compared:\n%s", diff)
	}
	ours.apply(engine.Native, ours.files)
	theirs.apply(engine.Salt, theirs.files)
	if recorded := len(p.recorded[situation]); !*live && theirs.calls != recorded {
		t.Errorf("salt-call was called %d times, and %d calls were recorded", theirs.calls, recorded)
	}
	if diff := cmp.Diff(ours.tree(), theirs.tree()); diff != "" {
		t.Errorf("the roots differ (-native +salt):\n%s", diff)
	}
	if diff := cmp.Diff(ours.lists(), theirs.lists()); diff != "" {
		t.Errorf("the lists differ (-native +salt):\n%s", diff)
	}
}

// world is a root with the state of an agent.
type world struct {
	*parity
	t         *testing.T
	situation string
	root      string
	dirs      state.Dirs
	calls     int
}

func (p *parity) world(t *testing.T, situation string) *world {
	t.Helper()
	w := &world{parity: p, t: t, situation: situation, root: t.TempDir()}
	// In the root that Salt sees /tmp is another one, where this is shown to it.
	base, err := os.MkdirTemp("/tmp", "reconf-parity-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	w.dirs = state.Dirs{State: filepath.Join(base, "state"), Cache: filepath.Join(base, "cache"), Run: filepath.Join(base, "run")}
	w.check(w.dirs.Create())
	for _, dir := range []string{"etc", "usr", "opt", "proc", "dev", "tmp"} {
		w.check(os.Mkdir(filepath.Join(w.root, dir), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		w.check(os.Symlink("usr/"+link, filepath.Join(w.root, link)))
	}
	m := &model{t: t, users: map[string]int{"root": 0}, groups: map[string]int{"root": 0}}
	m.accounts(p.config(t))
	for name, data := range map[string]string{"etc/hosts": "127.0.0.1 localhost\n", "etc/passwd": table(m.users), "etc/group": table(m.groups)} {
		w.check(os.WriteFile(filepath.Join(w.root, name), []byte(data), 0o644))
	}
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// apply is one run of the agent on these files of the fleet repo.
func (w *world) apply(name string, files map[string]string) {
	w.t.Helper()
	all := map[string]sourcetest.File{}
	for name, data := range files {
		all[name] = sourcetest.File{Mode: w.modes[name], Data: data}
	}
	// The commit is always the same, and the files are not.
	if err := os.Remove(w.dirs.Known()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	r := w.reconciler(w.t, w.root)
	var err error
	r.Dirs, r.Source = w.dirs, sameCommit{repo{tree: sourcetest.New(all)}}
	r.Contents.Downloads = w.dirs.Downloads()
	r.Settings.CorrectDrift = true
	r.Update.Dirs, r.Update.Keep = w.dirs, 10
	r.Update.State, err = state.Load(w.dirs)
	w.check(err)
	in := &native.Engine{Host: r.Host, Blobs: w.dirs.Blobs(), Accounts: r.Accounts, Runner: run.Host{}}
	r.Update.Engine = engine.Engines{
		engine.Native: in,
		engine.Salt:   &salt.Engine{Native: in, Caller: w.caller(), Run: w.dirs.Run},
	}
	r.Choose = func([]engine.Migration) (engine.Choice, error) { return engine.Choice{Name: name}, nil }
	if _, err := r.Run(w.t.Context()); err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	if entries, err := os.ReadDir(w.dirs.Run); err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "salt" }) {
		w.t.Errorf("the folder was left: %v, %v", entries, err)
	}
}

// sameCommit is a repo in which only the tree changes: Salt is told the commit.
type sameCommit struct{ repo }

func (sameCommit) Relation(context.Context, string, string) (source.Relation, error) {
	return source.Same, nil
}

// manifest is what the applied generation manages.
func (w *world) manifest() *state.Manifest {
	w.t.Helper()
	st, err := state.Load(w.dirs)
	w.check(err)
	m, err := state.ReadManifest(filepath.Join(w.dirs.Generation(st.Applied.Generation), "manifest"))
	w.check(err)
	return m
}

// chance is the same for the same path in every run.
func chance(p string, of uint32) uint32 {
	h := fnv.New32a()
	h.Write([]byte(p))
	return h.Sum32() % of
}

// previous is another generation of the case: other bytes, modes, owners,
// kinds and targets at the same paths, and more that goes.
func (w *world) previous() map[string]string {
	var files, links, directories []string
	add := func(list *[]string, format string, args ...any) { *list = append(*list, fmt.Sprintf(format, args...)) }
	below := map[string]bool{}
	entries := w.manifest().Entries
	for _, e := range entries {
		below[path.Dir(e.Path)] = true
	}
	for _, e := range entries {
		if e.Origin == state.Parent || strings.HasPrefix(e.Path, "/etc/systemd/") && strings.Count(e.Path, "/") > 4 && e.Kind == disk.Link {
			continue // a unit's enablement
		}
		p := quoted(e.Path)
		switch {
		case below[e.Path]:
			if e.Kind == disk.Directory {
				add(&directories, "{path: %s, mode: 0750, user: {id: 7}}", p)
			}
		case chance(e.Path, 5) == 0:
			add(&links, "{path: %s, target: /etc/hosts, overwrite: true}", p)
		case chance(e.Path, 5) == 1 && path.Ext(path.Dir(e.Path)) != ".d": // nor can systemctl enable a unit with such a drop-in
			add(&directories, "{path: %s, mode: 01770, group: {id: 9}, overwrite: true}", p)
			add(&files, "{path: %s, mode: 04755, contents: {inline: inside}}", quoted(e.Path+"/inside"))
		case chance(e.Path, 5) == 2:
			add(&files, "{path: %s, mode: 04711, user: {id: 5}, group: {id: 6}, overwrite: true, contents: {inline: \"other {{ bytes }}\"}}", p)
		case chance(e.Path, 5) == 3:
			add(&links, "{path: %s, target: /nowhere, overwrite: true, user: {id: 3}}", p)
		}
	}
	add(&files, "{path: /etc/goes/file, contents: {inline: goes}}")
	add(&links, "{path: /etc/goes/link, target: file}")
	add(&directories, "{path: /etc/goes/too, mode: 0700}")
	bu := "variant: fcos\nversion: 1.6.0\nstorage:\n"
	for name, list := range map[string][]string{"files": files, "links": links, "directories": directories} {
		if len(list) > 0 {
			bu += "  " + name + ":\n    - " + strings.Join(list, "\n    - ") + "\n"
		}
	}
	return map[string]string{"hosts/" + w.host + "/0-previous.bu": bu}
}

func quoted(p string) string {
	data, _ := json.Marshal(p)
	return string(data)
}

// damage changes what is managed, as somebody might.
func (w *world) damage() {
	w.t.Helper()
	for _, e := range w.manifest().Entries {
		real := filepath.Join(w.root, e.Path)
		info, err := os.Lstat(real)
		if err != nil {
			continue // damaged with its parent
		}
		switch chance(e.Path, 6) {
		case 0:
			if !info.IsDir() {
				w.check(os.Remove(real))
			}
		case 1:
			if info.Mode().IsRegular() {
				w.check(os.WriteFile(real, []byte("edited"), 0))
			}
		case 2:
			w.check(os.Lchown(real, 11, 12))
			if info.Mode()&os.ModeSymlink == 0 {
				w.check(unix.Chmod(real, 0o711))
			}
		case 3:
			if !info.IsDir() {
				w.check(errors.Join(os.Remove(real), os.Symlink("/etc/hosts", real)))
			}
		case 4:
			if !info.IsDir() {
				w.check(errors.Join(os.Remove(real), os.Mkdir(real, 0o755)))
			}
		case 5:
			if info.IsDir() {
				continue
			}
			w.check(errors.Join(os.Remove(real), os.WriteFile(real, []byte("something else"), 0o600)))
		}
	}
}

// tree is the root in words, with the owners of links.
func (w *world) tree() map[string]string { return words(w.t, w.root) }

func words(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	first := map[uint64]string{}
	files := fsat.New(root)
	defer files.Forget()
	walk(t, root, func(p string, st *unix.Stat_t) error {
		n, err := files.Read(t.Context(), p, fsat.Most)
		text := fmt.Sprintf("%s %04o %d:%d", n.Kind, n.Mode, n.UID, n.GID)
		switch n.Kind {
		case disk.Link:
			text += " " + n.Target
		case disk.File:
			text += " " + n.SHA256
			if st.Nlink > 1 {
				if first[st.Ino] != "" {
					text = "hardlink " + first[st.Ino]
				} else {
					first[st.Ino] = p
				}
			}
		}
		all[p] = text
		return err
	})
	return all
}

// lists are the four service lists and the changed paths of the generation.
func (w *world) lists() map[string]string {
	st, err := state.Load(w.dirs)
	w.check(err)
	all := map[string]string{}
	for _, name := range []string{"service_enabled", "service_disabled", "service_masked", "service_changed", "paths_changed"} {
		data, err := os.ReadFile(filepath.Join(w.dirs.Generation(st.Applied.Generation), name+".list"))
		w.check(err)
		all[name] = string(data)
	}
	return all
}

func (w *world) caller() salt.Caller {
	if *live {
		return &rooted{w}
	}
	return &standIn{w}
}

// rooted calls the real salt-call in the root, in a mount namespace of its own:
// it sees the programs of this machine, with what it writes to them in the root.
type rooted struct{ w *world }

func (*rooted) Name() string                       { return engine.Salt }
func (*rooted) Place(p string) string              { return p }
func (*rooted) Prepare(context.Context) error      { return nil }
func (*rooted) Stop(context.Context, string) error { return nil }

const rootScript = `
cd "$ROOT"
for dir in usr opt; do
	mkdir -p "$WORK/$dir"
	mount -t overlay overlay -o "lowerdir=/$dir,upperdir=$ROOT/$dir,workdir=$WORK/$dir" "$dir"
done
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
mkdir -p "$ROOT$FOLDER"
mount --bind "$FOLDER" "$ROOT$FOLDER"
exec chroot "$ROOT" salt-call "$@"
`

func (r *rooted) Call(ctx context.Context, c salt.Call) (salt.Answer, error) {
	before := r.w.tree()
	tree := given(r.w.t, c.Folder)
	main, err := os.ReadFile(filepath.Join(c.Folder, "sls", "main.sls"))
	if err != nil {
		return salt.Answer{}, err
	}
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation", "private", "sh", "-ec", rootScript, "sh", "-c", c.Folder}, c.Args...)...)
	cmd.Env = append(os.Environ(), "ROOT="+r.w.root, "FOLDER="+c.Folder, "WORK="+r.w.t.TempDir(), "LC_ALL=C.UTF-8", "HOME=/")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return salt.Answer{}, err
	}
	answer := salt.Answer{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Exit: cmd.ProcessState.ExitCode()}
	call := recordedCall{Args: c.Args, Tree: tree, Exit: answer.Exit, Out: steady(r.w.t, answer), Left: left(before, r.w.tree())}
	if len(call.Left) > 0 && !slices.Contains(c.Args, "test=True") {
		call.Main = string(main)
	}
	r.w.recorded[r.w.situation] = append(r.w.recorded[r.w.situation], call)
	return answer, nil
}

// steady is what was printed, without what is another in every run.
func steady(t *testing.T, answer salt.Answer) json.RawMessage {
	var out any
	if err := json.Unmarshal(answer.Stdout, &out); err != nil {
		t.Fatalf("salt-call printed no JSON: %v\n%s\n%s", err, answer.Stdout, answer.Stderr)
	}
	if whole, ok := out.(map[string]any); ok {
		if states, ok := whole["local"].(map[string]any); ok {
			for _, s := range states {
				if one, ok := s.(map[string]any); ok {
					delete(one, "start_time")
					delete(one, "duration")
				}
			}
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// left is what a call changed.
func left(before, after map[string]string) map[string]string {
	changed := map[string]string{}
	for p, text := range after {
		if before[p] != text {
			changed[p] = text
		}
	}
	for p := range before {
		if _, ok := after[p]; !ok {
			changed[p] = "gone"
		}
	}
	return changed
}

// given is a hash over what the engine put into the folder.
func given(t *testing.T, folder string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(folder, func(real string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(real, folder)
		if err != nil {
			return err
		}
		if name == "/var" || name == "/etc" {
			return fs.SkipDir // Salt's own
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %s\n", name, info.Mode())
		if d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(real)
		fmt.Fprintf(sum, "%x\n", sha256.Sum256(bytes.ReplaceAll(data, []byte(folder), []byte("FOLDER"))))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// standIn stands for salt-call where there is none: it says and does again what
// the real one said and did when it was given the same tree.
type standIn struct{ w *world }

func (*standIn) Name() string                       { return engine.Salt }
func (*standIn) Place(p string) string              { return p }
func (*standIn) Prepare(context.Context) error      { return nil }
func (*standIn) Stop(context.Context, string) error { return nil }

func (s *standIn) Call(_ context.Context, c salt.Call) (salt.Answer, error) {
	w := s.w
	calls := w.recorded[w.situation]
	if w.calls >= len(calls) {
		return salt.Answer{}, fmt.Errorf("call %d, %q, was not recorded", w.calls+1, c.Args)
	}
	call := calls[w.calls]
	w.calls++
	if !slices.Equal(call.Args, c.Args) {
		return salt.Answer{}, fmt.Errorf("the call was recorded with %q, not %q", call.Args, c.Args)
	}
	if tree := given(w.t, c.Folder); tree != call.Tree {
		main, err := os.ReadFile(filepath.Join(c.Folder, "sls", "main.sls"))
		return salt.Answer{}, errors.Join(err, fmt.Errorf("another tree was recorded for %q (make parity RECORD=1 records it); main.sls (-recorded +now):\n%s", c.Args, cmp.Diff(call.Main, string(main))))
	}
	return salt.Answer{Stdout: call.Out, Exit: call.Exit}, s.leave(call.Left, filepath.Join(c.Folder, "sls", "files"))
}

// leave makes the changes that the real salt-call made, with the bytes that it
// was given.
func (s *standIn) leave(changes map[string]string, files string) error {
	paths := slices.Sorted(maps.Keys(changes))
	for _, p := range slices.Backward(paths) {
		if changes[p] == "gone" {
			if err := os.Remove(filepath.Join(s.w.root, p)); err != nil {
				return err
			}
		}
	}
	for _, p := range paths {
		// A hard link to a file that was there is told the other way round when its
		// name is the first of the two.
		first := slices.IndexFunc(paths, func(q string) bool {
			now, err := s.look(q)
			return changes[q] == "hardlink "+p && err == nil && strings.HasSuffix(changes[p], now.SHA256) && now.Kind == disk.File
		})
		switch {
		case changes[p] == "gone":
			continue
		case first >= 0:
			real := filepath.Join(s.w.root, p)
			if err := os.Remove(real); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.Link(filepath.Join(s.w.root, paths[first]), real); err != nil {
				return err
			}
			continue
		}
		if err := s.make(filepath.Join(s.w.root, p), changes[p], files); err != nil {
			return fmt.Errorf("%s %s: %w", p, changes[p], err)
		}
	}
	return nil
}

// look is what stands at a path of the root.
func (s *standIn) look(p string) (fsat.Found, error) {
	files := fsat.New(s.w.root)
	defer files.Forget()
	return files.Read(s.w.t.Context(), p, fsat.Most)
}

func (s *standIn) make(real, text, files string) error {
	kind, rest, _ := strings.Cut(text, " ")
	if kind == "hardlink" {
		_ = os.Remove(real)
		return os.Link(filepath.Join(s.w.root, rest), real)
	}
	var mode uint32
	var uid, gid int
	var data string
	words := strings.SplitN(rest, " ", 3)
	if _, err := fmt.Sscanf(words[0]+" "+words[1], "%o %d:%d", &mode, &uid, &gid); err != nil {
		return err
	}
	if len(words) == 3 {
		data = words[2]
	}
	now, err := s.look(strings.TrimPrefix(real, s.w.root))
	if err != nil {
		return err
	}
	switch disk.Kind(kind) {
	case disk.Directory:
		if now.Kind != disk.Directory {
			err = os.Mkdir(real, 0o700)
		}
	case disk.Link:
		if now.Kind != disk.Absent {
			err = os.Remove(real)
		}
		err = errors.Join(err, os.Symlink(data, real))
	case disk.File:
		if now.Kind == disk.File && now.SHA256 == data {
			break
		}
		bytes, failed := os.ReadFile(filepath.Join(files, data))
		if data == hex.EncodeToString(sha256.New().Sum(nil)) {
			failed = nil
		}
		_ = os.Remove(real)
		err = errors.Join(failed, os.WriteFile(real, bytes, 0o600))
	}
	if err = errors.Join(err, os.Lchown(real, uid, gid)); kind != string(disk.Link) {
		err = errors.Join(err, unix.Chmod(real, mode))
	}
	return err
}
