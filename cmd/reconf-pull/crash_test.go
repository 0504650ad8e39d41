package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

// A trial is a fleet repo with two versions and the program itself. Every run
// has a directory of its own, with the root and the state in it.
type trial struct {
	t       *testing.T
	binary  string
	repo    string
	scratch string
}

func newTrial(t *testing.T) *trial {
	t.Helper()
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: files get owners")
	}
	tr := &trial{t: t, binary: filepath.Join(t.TempDir(), "reconf-pull"), repo: t.TempDir(), scratch: t.TempDir()}
	// Hundreds of runs sync hundreds of times: in memory, where there is room.
	// What a missing sync loses is shown by real power cuts, not here.
	if dir, err := os.MkdirTemp("/dev/shm", "reconf-pull-"); err == nil {
		tr.scratch = dir
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	tr.must("go", "build", "-o", tr.binary, ".")
	tr.must("git", "-C", tr.repo, "init", "-q", "-b", "main")
	return tr
}

func (tr *trial) must(argv ...string) {
	tr.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_NAME=o", "GIT_AUTHOR_EMAIL=o@example.com",
		"GIT_COMMITTER_NAME=o", "GIT_COMMITTER_EMAIL=o@example.com", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
	if out, err := cmd.CombinedOutput(); err != nil {
		tr.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// push replaces the host config by another version.
func (tr *trial) push(butane string) {
	tr.t.Helper()
	path := filepath.Join(tr.repo, "hosts/web1.bu")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(butane), 0o644)); err != nil {
		tr.t.Fatal(err)
	}
	tr.must("git", "-C", tr.repo, "add", "-A")
	tr.must("git", "-C", tr.repo, "commit", "-q", "-m", "version")
}

// script puts a script of web1's into the repo, for the next push.
func (tr *trial) script(name, text string) {
	tr.t.Helper()
	path := filepath.Join(tr.repo, "hosts/web1/hooks", name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *trial) host() string {
	tr.t.Helper()
	dir, err := os.MkdirTemp(tr.scratch, "host-")
	if err != nil {
		tr.t.Fatal(err)
	}
	return dir
}

// place is a host before the change: what an admin and the image put there.
func (tr *trial) place() string {
	tr.t.Helper()
	dir := tr.host()
	for name, data := range map[string]string{
		"etc/foreign": "the admin's\n", "etc/hosts": "127.0.0.1 localhost\n", "usr/lib/systemd/system/sshd.socket": "[Install]\nWantedBy=sockets.target\n", "srv/moved/b": "not ours\n",
	} {
		path := filepath.Join(dir, "root", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o600)); err != nil {
			tr.t.Fatal(err)
		}
	}
	return dir
}

// copyOf copies a host in this process: it is done thousands of times.
func (tr *trial) copyOf(dir string) string {
	tr.t.Helper()
	into := tr.host()
	if err := copyTree(dir, into); err != nil {
		tr.t.Fatal(err)
	}
	return into
}

func copyTree(from, to string) error {
	links := map[uint64]string{}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		target := to + strings.TrimPrefix(path, from)
		var st unix.Stat_t
		if err = errors.Join(err, unix.Lstat(path, &st)); err != nil {
			return err
		}
		first, linked := links[st.Ino]
		switch {
		case path == from:
			return nil
		case linked:
			return os.Link(first, target)
		case d.IsDir():
			err = os.Mkdir(target, 0o700)
		case d.Type()&fs.ModeSymlink != 0:
			var text string
			if text, err = os.Readlink(path); err == nil {
				err = os.Symlink(text, target)
			}
			return errors.Join(err, os.Lchown(target, int(st.Uid), int(st.Gid)))
		default:
			var data []byte
			if data, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(target, data, 0o600)
			}
		}
		if st.Nlink > 1 && !d.IsDir() {
			links[st.Ino] = target
		}
		return errors.Join(err, os.Lchown(target, int(st.Uid), int(st.Gid)), unix.Chmod(target, st.Mode&0o7777))
	})
}

func (tr *trial) argv(dir string) []string {
	return []string{tr.binary, "run", "--root", filepath.Join(dir, "root"), "--state-dir", dir, "--config", os.DevNull, "--url", tr.repo, "--host", "web1"}
}

// run is a run to its end.
func (tr *trial) run(dir string) string {
	tr.t.Helper()
	argv := tr.argv(dir)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		tr.t.Fatalf("run: %v\n%s", err, out)
	}
	return string(out)
}

// volatile is what differs from run to run and says nothing about where it
// ended: times, how often a step was begun, and whether a pristine copy was made
// by this run or the one before it.
var volatile = []string{"time", "pinned", "started", "ended", "boot_id", "attempts", "pristine"}

// volatileTimes of them say nothing about how it goes on either.
const volatileTimes = 5

func without(v any, keys []string) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range keys {
			delete(v, key)
		}
		for key := range v {
			v[key] = without(v[key], keys)
		}
	case []any:
		for i := range v {
			v[i] = without(v[i], keys)
		}
	}
	return v
}

// end is everything that a run leaves: the root, and the state modulo times.
func (tr *trial) end(dir string) map[string]string { return tr.scan(dir, false) }

// hosts are the directories of all hosts.
func (tr *trial) hosts() *regexp.Regexp {
	return regexp.MustCompile(regexp.QuoteMeta(tr.scratch) + `/host-\d+`)
}

// scan reads a host. A whole scan is everything that a run could go by: two
// hosts that are the same in it go on the same way.
func (tr *trial) scan(dir string, whole bool) map[string]string {
	tr.t.Helper()
	all := map[string]string{}
	skipped := volatile
	if whole {
		skipped = volatile[:volatileTimes]
	}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		if name == "" {
			return nil
		}
		if name = name[1:]; name == "cache" && !whole {
			return fs.SkipDir // a mirror, disposable
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			all[name] = line + " -> " + target
			return err
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.HasPrefix(name, "run/") {
				data = nil
			}
			if filepath.Base(name) == "manifest" {
				data = withoutStat(data)
			}
			if isJSON := filepath.Ext(name) == ".json"; len(data) > 0 && (isJSON || whole) {
				var v any
				switch err := json.Unmarshal(data, &v); {
				case err == nil:
					if data, err = json.Marshal(without(v, skipped)); err != nil {
						return err
					}
				case isJSON && !whole:
					return fmt.Errorf("%s: %w", name, err)
				}
				data = tr.hosts().ReplaceAll(data, nil) // errors name it
			}
			if first, ok := inodes[st.Ino]; ok && st.Nlink > 1 {
				line += " is " + first
			}
			inodes[st.Ino] = name
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
			if len(data) < 2000 {
				line += " " + string(data)
			}
		}
		all[name] = line
		return nil
	})
	if err != nil {
		tr.t.Fatal(err)
	}
	return all
}

// withoutStat leaves inode, size and times out of a manifest.
func withoutStat(manifest []byte) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(string(manifest)) {
		fields := strings.Split(line, "\t")
		if fields[0] == "path" {
			fields = fields[:10]
		}
		out.WriteString(strings.TrimSpace(strings.Join(fields, "\t")) + "\n")
	}
	return out.Bytes()
}

// finish lets the next run go on after a crash and compares where it ends with
// the uninterrupted run.
func (tr *trial) finish(dir, what string, want map[string]string) {
	tr.t.Helper()
	code, said := tr.ran(tr.argv(dir))
	if code != 0 {
		tr.t.Errorf("%s: the next run ends with %d:\n%s", what, code, said)
		return
	}
	if diff := cmp.Diff(want, tr.end(dir)); diff != "" {
		tr.t.Errorf("%s: ends elsewhere (-uninterrupted +crashed):\n%s\nthe next run said:\n%s", what, diff, said)
	}
}

// quiet looks that a further run has nothing to do.
func (tr *trial) quiet(dir, what string, want map[string]string) {
	tr.t.Helper()
	if code, said := tr.ran(tr.argv(dir)); code != 0 || !strings.Contains(said, "up to date") {
		tr.t.Errorf("%s: the run after it ends with %d:\n%s", what, code, said)
	}
	if diff := cmp.Diff(want, tr.end(dir)); diff != "" {
		tr.t.Errorf("%s: the run after it changed something:\n%s", what, diff)
	}
}

// A course is a command that is cut off, and how the runs after it go on.
type course struct {
	what string
	from string                // the host before
	ops  int                   // durable operations when nothing cuts it off
	next func(string) []string // the command as long as nothing of it was saved, then run
	// settle goes on to the end and compares it with the uninterrupted course.
	settle func(dir, point string)
	// again looks that a further run has nothing to do; after one crash is enough.
	again func(dir, point string)
}

// crashTwice ends a course before its k-th durable operation, for every k, and
// what goes on from there at some of its operations. Hosts that are the same go on
// the same way, so that each is settled once.
func (tr *trial) crashTwice(c course) (points string) {
	t := tr.t
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	var once, twice, different atomic.Int64
	var seen sync.Map
	fresh := func(dir string) bool {
		all := tr.scan(dir, true)
		sum := sha256.New()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			fmt.Fprintf(sum, "%s %s\n", name, all[name])
		}
		_, known := seen.LoadOrStore(hex.EncodeToString(sum.Sum(nil)), true)
		if !known {
			different.Add(1)
		}
		return !known
	}
	killed := func(dir string, k int) (ops int, status syscall.WaitStatus) {
		return traced(t, c.next(dir), func(n int, _ string) syscall.Signal {
			if n == k {
				return syscall.SIGKILL
			}
			return 0
		})
	}
	parallel(c.ops, func(k int) {
		point := fmt.Sprintf("%s, killed at operation %d of %d", c.what, k, c.ops)
		dir := tr.copyOf(c.from)
		defer tr.remove(dir)
		if n, status := killed(dir, k); !status.Signaled() && n >= k {
			t.Errorf("%s: not killed: %v", point, status)
		}
		once.Add(1)
		if !fresh(dir) {
			return
		}
		whole := tr.copyOf(dir)
		defer tr.remove(whole)
		var firm []int
		ops := judged(t, c.next(whole), durable, func(c call) verdict { // it ends, which settling it then does not mind
			if isFirm(c, whole) {
				firm = append(firm, c.n)
			}
			return verdict{}
		}).ops
		c.settle(whole, point)
		if c.again != nil {
			c.again(whole, point)
		}
		for _, second := range seconds(firm, ops, rand.New(rand.NewPCG(seed, uint64(k)))) {
			twice.Add(1)
			again := tr.copyOf(dir)
			killed(again, second)
			if fresh(again) {
				c.settle(again, fmt.Sprintf("%s, and again at operation %d of %d (seed %d)", point, second, ops, seed))
			}
			tr.remove(again)
		}
	})
	return fmt.Sprintf("%s: %d crash points, %d crashed again, %d different hosts (seed %d)", c.what, once.Load(), twice.Load(), different.Load(), seed)
}

// seconds are the operations before which a run that goes on is ended too: the
// second, the middle and the last of its firm ones, and a random one.
func seconds(firm []int, ops int, random *rand.Rand) (all []int) {
	for _, nth := range []int{2, len(firm) / 2, len(firm)} {
		if 1 < nth && nth <= len(firm) { // before the first one nothing is new
			all = append(all, firm[nth-1])
		}
	}
	if ops > 1 {
		all = append(all, 2+random.IntN(ops-1))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (tr *trial) remove(dir string) {
	if err := os.RemoveAll(dir); err != nil {
		tr.t.Error(err)
	}
}

// parallel calls f with 1 to n, on all processors.
func parallel(n int, f func(k int)) {
	var group sync.WaitGroup
	points := make(chan int)
	for range runtime.NumCPU() {
		group.Go(func() {
			for k := range points {
				f(k)
			}
		})
	}
	for k := 1; k <= n; k++ {
		points <- k
	}
	close(points)
	group.Wait()
}

// few is a small host config with one of everything, and fewLater what it
// becomes: updates, removals, kind changes, enablement.
const few = `variant: fcos
version: 1.7.0
storage:
  directories:
    - {path: /etc/app, mode: 0750}
    - {path: /etc/moved}
    - {path: /etc/becomes-file}
  files:
    - {path: /etc/app/one, mode: 0600, contents: {inline: one}, user: {id: 7}}
    - {path: /etc/app/two, contents: {inline: two}}
    - {path: /etc/app/deep/er/gone, contents: {inline: gone}}
    - {path: /etc/moved/a, contents: {inline: a}}
    - {path: /etc/moved/b, contents: {inline: b}}
    - {path: /etc/becomes-directory, contents: {inline: x}}
    - {path: /etc/foreign, contents: {inline: ours}}
    - {path: /etc/hosts, append: [{inline: "10.0.0.1 db\n"}]}
    - {path: /opt/tool, mode: 04755, contents: {inline: tool}}
  links:
    - {path: /etc/link, target: app/one}
    - {path: /etc/hard, target: /etc/app/two, hard: true}
systemd:
  units:
    - name: web.service
      enabled: true
      contents: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
      dropins: [{name: a.conf, contents: "[Service]\nNice=1\n"}]
    - {name: old.service, enabled: true, contents: "[Install]\nWantedBy=multi-user.target\n"}
    - {name: sshd.socket, enabled: true}
    - {name: bad.service, mask: true}
`

const fewLater = `variant: fcos
version: 1.7.0
storage:
  directories:
    - {path: /etc/app, mode: 0700}
    - {path: /etc/becomes-directory}
  files:
    - {path: /etc/app/one, mode: 0640, contents: {inline: one more}}
    - {path: /etc/app/two, contents: {inline: two more}}
    - {path: /etc/becomes-file, contents: {inline: x}}
    - {path: /etc/becomes-directory/in, contents: {inline: in}}
    - {path: /etc/hosts, append: [{inline: "10.0.0.2 cache\n"}]}
    - {path: /opt/tool, mode: 06711, contents: {inline: tool}}
    - {path: /var/new/er, contents: {inline: new}}
  links:
    - {path: /etc/link, target: app/two}
    - {path: /etc/hard, target: /etc/app/two, hard: true}
    - {path: /etc/moved, target: /srv/moved}
systemd:
  units:
    - name: web.service
      enabled: true
      contents: "[Service]\nExecStart=/bin/false\n[Install]\nWantedBy=graphical.target\n"
    - {name: bad.service, mask: false, dropins: [{name: b.conf, contents: "[Service]\nNice=2\n"}]}
`

// TestCrashAtEveryOperation ends the program before its k-th durable
// operation, for every k of a first run and of an update, once and twice, and
// lets the next run go on.
func TestCrashAtEveryOperation(t *testing.T) {
	tr := newTrial(t)
	tr.script("pre_update.d/10-drain", "#!/bin/sh\n# first\n")
	tr.script("health.d/10-well", "#!/bin/sh\n")
	tr.push(few)
	first := tr.place()
	applied := tr.copyOf(first)
	tr.run(applied)
	tr.crashEverywhere("first run", first)
	tr.script("pre_update.d/10-drain", "#!/bin/sh\n# second\n")
	tr.push(fewLater)
	tr.crashEverywhere("update", applied)
}

func (tr *trial) crashEverywhere(what, from string) {
	t := tr.t
	t.Helper()
	whole := tr.copyOf(from)
	calls, points := map[string]int{}, map[point]bool{}
	end := judged(t, tr.argv(whole), durable, func(c call) verdict {
		calls[c.name]++
		points[pointOf(c, whole)] = true
		return verdict{}
	})
	if !end.status.Exited() || end.status.ExitStatus() != 0 {
		t.Fatalf("%s: the traced run: %v", what, end.status)
	}
	for does, names := range effects {
		if !slices.ContainsFunc(names, func(name string) bool { return calls[name] > 0 }) {
			t.Errorf("%s: no %s among %d operations: the wrong system calls are watched: %v", what, does, end.ops, calls)
		}
	}
	for _, p := range missed(onlyRoot(tr.end(from)), onlyRoot(tr.end(whole)), points) {
		t.Errorf("%s: %s was no crash point with its %s", what, p.name, p.does)
	}
	counted(t, "%s: %d operations %v", what, end.ops, calls)
	want := tr.end(whole)
	if what == "update" && want["root/srv/moved/b"] == "" {
		t.Errorf("%s: a link that took the place of a directory led to the removal of somebody else's file", what)
	}
	counted(t, "%s", tr.crashTwice(course{
		what: what, from: from, ops: end.ops, next: tr.argv,
		settle: func(dir, point string) { tr.finish(dir, point, want) },
		again:  func(dir, point string) { tr.quiet(dir, point, want) },
	}))
}

// many is a host config of 200 files; of the second version half are other
// files, and the rest have other contents, modes and kinds.
func many(version int) string {
	var b strings.Builder
	b.WriteString("variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n")
	for n := range 200 {
		switch {
		case version == 2 && n%5 == 0:
			continue // removed
		case version == 2 && n%5 == 1:
			fmt.Fprintf(&b, "    - {path: /opt/many/%d/file%d/below, contents: {inline: \"now a directory\"}}\n", n%9, n)
		case version == 2 && n%5 == 2:
			fmt.Fprintf(&b, "    - {path: /opt/many/%d/file%d, mode: 0600, contents: {inline: \"%s\"}}\n", n%9, n, strings.Repeat(fmt.Sprint("1", n), 500))
		default:
			fmt.Fprintf(&b, "    - {path: /opt/many/%d/file%d, contents: {inline: \"%s\"}}\n", n%9, n, strings.Repeat(fmt.Sprint(version, n), 500))
		}
	}
	b.WriteString("systemd:\n  units:\n")
	for n := range 10 {
		fmt.Fprintf(&b, "    - {name: u%d.service, enabled: true, contents: \"[Service]\\nNice=%d\\n[Install]\\nWantedBy=multi-user.target\\n\"}\n", n*version, version)
	}
	return b.String()
}

// TestKillAtAnyInstant kills the program at random instants of a large first
// run and of a large update.
func TestKillAtAnyInstant(t *testing.T) {
	const kills = 25
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	tr := newTrial(t)
	tr.push(many(1))
	first := tr.place()
	applied := tr.killed("first run", first, kills, random)
	tr.push(many(2))
	tr.killed("update", applied, kills, random)
}

func (tr *trial) killed(what, from string, kills int, random *rand.Rand) string {
	t := tr.t
	t.Helper()
	whole := tr.copyOf(from)
	started := time.Now()
	tr.run(whole)
	took := time.Since(started)
	want := tr.end(whole)
	survived := 0
	for range kills {
		dir := tr.copyOf(from)
		argv := tr.argv(dir)
		cmd := exec.Command(argv[0], argv[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(random.Int64N(int64(took)))
		time.Sleep(after)
		_ = cmd.Process.Kill() // too late when it has ended
		if cmd.Wait() == nil {
			survived++
		}
		point := fmt.Sprintf("%s, killed after %s of %s", what, after, took)
		tr.finish(dir, point, want)
		tr.quiet(dir, point, want)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	counted(t, "%s: %d kills within %s, %d came after the end", what, kills, took.Round(time.Millisecond), survived)
	return whole
}

// TestTermination: SIGTERM in the middle of a change ends the run with
// TEMPFAIL, and the next one goes on from there.
func TestTermination(t *testing.T) {
	tr := newTrial(t)
	tr.push(many(1))
	first := tr.place()
	whole := tr.copyOf(first)
	tr.run(whole)
	dir := tr.copyOf(first)
	// The pin makes all that it stored durable; then 200 files are staged.
	said := false
	_, status := traced(t, tr.argv(dir), func(_ int, name string) syscall.Signal {
		if name != "syncfs" || said {
			return 0
		}
		said = true
		return syscall.SIGTERM
	})
	if !status.Exited() || status.ExitStatus() != 75 {
		t.Errorf("ended with %d (%v), want 75", status.ExitStatus(), status)
	}
	var st struct {
		Change struct {
			Tasks []struct {
				Name, Status string
				Attempts     int
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	waits := false
	for _, task := range st.Change.Tasks {
		waits = waits || task.Name == "configure" && task.Status == "doing" && task.Attempts == 0
	}
	if err != nil || !waits {
		t.Errorf("the change is not waiting to go on, with its attempt given back: %v\n%s", err, data)
	}
	want := tr.end(whole)
	tr.finish(dir, "after SIGTERM", want)
	tr.quiet(dir, "after SIGTERM", want)
}
