package gogit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

func glob(t testing.TB, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return found[0]
}

// rewrite replaces a file that go-git made read-only.
func rewrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func half(data []byte) []byte  { return data[:len(data)/2] }
func empty(data []byte) []byte { return nil }
func flip(data []byte) []byte {
	data = bytes.Clone(data)
	data[len(data)/2] ^= 0xff
	return data
}

// Whatever is wrong with the mirror, it is cloned again once, with one warning.
func TestDamagedMirror(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
	}{
		{"empty ref", func(t *testing.T, d string) { rewrite(t, filepath.Join(d, "refs/heads/main"), empty) }},
		{"garbage ref", func(t *testing.T, d string) {
			rewrite(t, filepath.Join(d, "refs/heads/main"), func([]byte) []byte { return []byte("\x00\x01garbage\n") })
		}},
		{"ref to nothing", func(t *testing.T, d string) {
			rewrite(t, filepath.Join(d, "refs/heads/main"), func([]byte) []byte { return []byte(strings.Repeat("1", 40) + "\n") })
		}},
		{"no ref", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "refs/heads/main")) }},
		{"no HEAD", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "HEAD")) }},
		{"empty HEAD", func(t *testing.T, d string) { rewrite(t, filepath.Join(d, "HEAD"), empty) }},
		{"garbage HEAD", func(t *testing.T, d string) {
			rewrite(t, filepath.Join(d, "HEAD"), func([]byte) []byte { return []byte("garbage") })
		}},
		{"garbage config", func(t *testing.T, d string) {
			rewrite(t, filepath.Join(d, "config"), func([]byte) []byte { return []byte("[[[[") })
		}},
		{"no objects", func(t *testing.T, d string) { _ = os.RemoveAll(filepath.Join(d, "objects")) }},
		{"no pack", func(t *testing.T, d string) { _ = os.Remove(glob(t, d, "objects/pack/*.pack")) }},
		{"no idx", func(t *testing.T, d string) { _ = os.Remove(glob(t, d, "objects/pack/*.idx")) }},
		{"truncated pack", func(t *testing.T, d string) { rewrite(t, glob(t, d, "objects/pack/*.pack"), half) }},
		{"empty pack", func(t *testing.T, d string) { rewrite(t, glob(t, d, "objects/pack/*.pack"), empty) }},
		{"truncated idx", func(t *testing.T, d string) { rewrite(t, glob(t, d, "objects/pack/*.idx"), half) }},
		{"empty idx", func(t *testing.T, d string) { rewrite(t, glob(t, d, "objects/pack/*.idx"), empty) }},
		{"flipped idx", func(t *testing.T, d string) { rewrite(t, glob(t, d, "objects/pack/*.idx"), flip) }},
		{"a file in its place", func(t *testing.T, d string) {
			_ = os.RemoveAll(d)
			_ = os.WriteFile(d, []byte("x"), 0o644)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			repo := fleet(t)
			tip := git(t, repo, "rev-parse", "HEAD")
			s := newSource(t, gogit.Options{URL: repo})
			s.mustFetch(t, tip)
			tt.damage(t, s.dir)
			s.mustFetch(t, tip)
			if w := s.warnings(); len(w) != 1 || !strings.Contains(w[0], "cloning it again") {
				t.Errorf("warnings: %q", w)
			}
			git(t, s.dir, "fsck", "--strict")
			s.mustFetch(t, tip)
			if w := s.warnings(); len(w) != 1 {
				t.Errorf("warnings of a third fetch: %q", w)
			}
		})
	}
}

// Every byte of the pack and of its index may be wrong: a tree that is read says
// so, or reads the right bytes.
func TestFlippedPack(t *testing.T) {
	for _, kind := range []string{"pack", "idx"} {
		t.Run(kind, func(t *testing.T) { flippedBytes(t, "objects/pack/*."+kind) })
	}
}

func flippedBytes(t *testing.T, pattern string) {
	repo := fleet(t)
	tip := git(t, repo, "rev-parse", "HEAD")
	s := newSource(t, gogit.Options{URL: repo})
	s.mustFetch(t, tip)
	pack := glob(t, s.dir, pattern)
	whole, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for i := range whole {
		rewrite(t, pack, func([]byte) []byte {
			data := bytes.Clone(whole)
			data[i] ^= 0x55
			return data
		})
		fresh := newSource(t, gogit.Options{URL: repo, Dir: s.dir})
		got, err := fresh.readFile(tip, "files/motd")
		switch {
		case err == nil && got != "hello\n":
			t.Fatalf("byte %d: read %q", i, got)
		case err != nil && !errors.Is(err, source.ErrDamaged):
			t.Fatalf("byte %d: %v", i, err)
		case err != nil:
			damaged++
		}
		_ = fresh.Close()
	}
	if damaged == 0 {
		t.Error("no damage was found at all")
	}
	fresh := newSource(t, gogit.Options{URL: repo, Dir: s.dir})
	if err := fresh.Discard(); err != nil {
		t.Fatal(err)
	}
	fresh.mustFetch(t, tip)
	if got, err := fresh.readFile(tip, "files/motd"); err != nil || got != "hello\n" {
		t.Errorf("after discarding: %q, %v", got, err)
	}
}

func TestForcePush(t *testing.T) {
	repo := fleet(t)
	s := newSource(t, gogit.Options{URL: repo})
	first := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, first)
	git(t, repo, "commit", "-q", "--amend", "-m", "rewritten")
	s.mustFetch(t, git(t, repo, "rev-parse", "HEAD"))
	git(t, repo, "checkout", "-q", "--orphan", "other")
	write(t, filepath.Join(repo, "files/motd"), "from nowhere\n")
	commit(t, repo, "no history")
	git(t, repo, "branch", "-f", "main", "other")
	tip := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, tip)
	if got, err := s.readFile(tip, "files/motd"); err != nil || got != "from nowhere\n" {
		t.Errorf("files/motd is %q, %v", got, err)
	}
	git(t, repo, "branch", "-f", "main", first)
	s.mustFetch(t, first)
	if w := s.warnings(); w != nil {
		t.Errorf("warnings: %q", w)
	}
}

// A commit that takes up an old blob again: the server must know that a shallow
// mirror does not have it.
func TestOldBlobComesBack(t *testing.T) {
	repo := fleet(t)
	write(t, filepath.Join(repo, "files/motd"), "second\n")
	s := newSource(t, gogit.Options{URL: repo})
	s.mustFetch(t, commit(t, repo, "third"))
	write(t, filepath.Join(repo, "files/motd"), "hello\n")
	tip := commit(t, repo, "back to the first")
	s.mustFetch(t, tip)
	if got, err := s.readFile(tip, "files/motd"); err != nil || got != "hello\n" {
		t.Errorf("files/motd is %q, %v", got, err)
	}
}

func TestFullHistory(t *testing.T) {
	repo := fleet(t)
	s := newSource(t, gogit.Options{URL: repo, FullHistory: true})
	s.mustFetch(t, git(t, repo, "rev-parse", "HEAD"))
	if got := git(t, s.dir, "rev-list", "--count", "HEAD"); got != "2" {
		t.Errorf("%s commits, want 2", got)
	}
}

// Deltas on deltas, of every kind of object, are resolved as git does.
func TestDeltas(t *testing.T) {
	repo := fleet(t)
	text := strings.Repeat("a line that stays the same, and long enough to be worth a delta\n", 400)
	for i := range 30 {
		write(t, filepath.Join(repo, "files/motd"), fmt.Sprintf("%d\n%s%d\n", i, text, i))
		for j := range 20 {
			write(t, filepath.Join(repo, fmt.Sprintf("hosts/h%d/a.bu", j)), fmt.Sprintf("%s%d", text, i*j))
		}
		commit(t, repo, fmt.Sprint(i))
	}
	git(t, repo, "repack", "-q", "-a", "-d", "-f", "--depth=50", "--window=50")
	s := newSource(t, gogit.Options{URL: repo, FullHistory: true})
	tip := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, tip)
	git(t, s.dir, "fsck", "--strict", "--no-dangling")
	pack := glob(t, s.dir, "objects/pack/*.pack")
	git(t, s.dir, "verify-pack", strings.TrimSuffix(pack, ".pack")+".idx")
	if got, err := s.readFile(tip, "files/motd"); err != nil || got != "29\n"+text+"29\n" {
		t.Errorf("files/motd: %d bytes, %v", len(got), err)
	}
}

func TestBranch(t *testing.T) {
	repo := fleet(t)
	main := git(t, repo, "rev-parse", "HEAD")
	git(t, repo, "checkout", "-q", "-b", "stable")
	stable := commit(t, repo, "on stable")
	for i := range 7 {
		git(t, repo, "branch", fmt.Sprintf("topic/%d", i))
	}
	s := newSource(t, gogit.Options{URL: repo})
	if rev := s.mustFetch(t, stable); rev.Ref != "refs/heads/stable" {
		t.Errorf("the remote's HEAD is %s", rev.Ref)
	}
	git(t, repo, "checkout", "-q", "main")
	if rev := s.mustFetch(t, stable); rev.Ref != "refs/heads/stable" {
		t.Errorf("the branch was not remembered: %s", rev.Ref)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	remembered := newSource(t, gogit.Options{URL: repo, Ref: "refs/heads/stable"})
	remembered.mustFetch(t, stable)
	configured := newSource(t, gogit.Options{URL: repo, Ref: "refs/heads/stable", Branch: "main", Dir: remembered.dir})
	configured.mustFetch(t, main)
	configured.mustFetch(t, main)
	missing := newSource(t, gogit.Options{URL: repo, Branch: "trunk"})
	refused(t, missing, source.ErrUnavailable, `no branch "trunk"`, "main, stable, topic/0, topic/1, topic/2 and 4 more")
}

func TestAnotherURL(t *testing.T) {
	one, two := fleet(t), fleet(t)
	tip := commit(t, two, "of two")
	s := newSource(t, gogit.Options{URL: one})
	s.mustFetch(t, git(t, one, "rev-parse", "HEAD"))
	moved := newSource(t, gogit.Options{URL: two, Dir: s.dir})
	moved.mustFetch(t, tip)
	if got := git(t, s.dir, "config", "remote.origin.url"); got != two {
		t.Errorf("the mirror is of %s", got)
	}
}

func TestNoRepository(t *testing.T) {
	dir := t.TempDir()
	refused(t, newSource(t, gogit.Options{URL: dir}), source.ErrUnavailable, "no such repository")
	refused(t, newSource(t, gogit.Options{URL: filepath.Join(dir, "nope")}), source.ErrUnavailable, "no such repository")
	git(t, dir, "init", "-q", "-b", "main")
	refused(t, newSource(t, gogit.Options{URL: dir}), source.ErrUnavailable, "the repository is empty")
}

func TestNoGit(t *testing.T) {
	repo := fleet(t)
	t.Setenv("PATH", t.TempDir())
	refused(t, newSource(t, gogit.Options{URL: repo}), source.ErrUnavailable, "git is not installed")
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		lacking.Skip(t, "mounting a tmpfs needs root")
	}
	repo := fleet(t)
	s := newSource(t, gogit.Options{URL: repo, Dir: filepath.Join(tmpfs(t), "cache", "mirror")})
	tip := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, tip)

	noise := make([]byte, 3<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(repo, "files/big"), string(noise))
	commit(t, repo, "too big")
	refused(t, s, source.ErrLocal, "no space left on device", "Make room")

	git(t, repo, "reset", "-q", "--hard", "HEAD~")
	write(t, filepath.Join(repo, "files/motd"), "small\n")
	s.mustFetch(t, commit(t, repo, "small again"))
	if w := s.warnings(); w != nil {
		t.Errorf("warnings: %q", w)
	}

	clone := newSource(t, gogit.Options{URL: repo, Dir: filepath.Join(tmpfs(t), "mirror")})
	git(t, repo, "reset", "-q", "--hard", tip)
	write(t, filepath.Join(repo, "files/big"), string(noise))
	commit(t, repo, "too big")
	refused(t, clone, source.ErrLocal, "no space left on device")
	if left, err := os.ReadDir(filepath.Dir(clone.dir)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func tmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		lacking.Skip(t, "mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestTree(t *testing.T) {
	repo := fleet(t)
	tip := git(t, repo, "rev-parse", "HEAD")
	s := newSource(t, gogit.Options{URL: repo})
	s.mustFetch(t, tip)
	tree, err := s.Tree(context.Background(), tip)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var walk func(string)
	walk = func(p string) {
		list, err := tree.List(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			got = append(got, fmt.Sprintf("%06o %s\t%s", uint32(e.Mode), e.ID, e.Path))
			if e.Mode == source.Directory {
				walk(e.Path)
			}
		}
	}
	walk(".")
	want := git(t, repo, "ls-tree", "-r", "-t", "--format=%(objectmode) %(objectname)%x09%(path)", "HEAD")
	if d := cmp.Diff(strings.Split(want, "\n"), got); d != "" {
		t.Errorf("(-git +tree):\n%s", d)
	}

	var link *source.SymlinkError
	if _, err := tree.Entry("files/link/x"); !errors.As(err, &link) || link.Link != "files/link" {
		t.Errorf("through a symlink: %v", err)
	}
	for _, p := range []string{"nope", "files/nope/x", "files/motd/x", "../x", "/files"} {
		if _, err := tree.Entry(p); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Entry(%s): %v", p, err)
		}
	}
	motd, err := tree.Entry("files/motd")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := tree.Size(motd); err != nil || n != 6 {
		t.Errorf("size %d, %v", n, err)
	}
	info, err := s.Describe(context.Background(), tip)
	if err != nil || info.Subject != "second" || info.Author != "Ada <ada@example.com>" || info.Time.IsZero() {
		t.Errorf("commit info %+v, %v", info, err)
	}
	if _, err := s.Tree(context.Background(), strings.Repeat("1", 40)); !errors.Is(err, source.ErrDamaged) {
		t.Errorf("a commit that is not there: %v", err)
	}
}

// A large blob passes through; it is never held.
func TestLargeBlobIsStreamed(t *testing.T) {
	if repo := os.Getenv("GOGIT_TEST_FETCH"); repo != "" {
		readLarge(t, repo)
		return
	}
	repo := fleet(t)
	f, err := os.Create(filepath.Join(repo, "files/big"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	tip := commit(t, repo, "big")
	dir := filepath.Join(t.TempDir(), "mirror")
	for _, step := range []struct {
		name  string
		limit int64 // MiB
	}{{"fetching", 60}, {"reading", 60}} {
		// In a process of its own: what counts is what the machine has to give.
		cmd := exec.Command(os.Args[0], "-test.run=^TestLargeBlobIsStreamed$")
		cmd.Env = append(os.Environ(), "GOGIT_TEST_FETCH="+repo, "GOGIT_TEST_DIR="+dir, "GOGIT_TEST_COMMIT="+tip, "GOGIT_TEST_STEP="+step.name)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var peak int64
		_, text, _ := strings.Cut(string(out), "VmHWM:")
		if _, err := fmt.Sscanf(text, "%d kB", &peak); err != nil {
			t.Fatalf("no peak in %s", out)
		}
		peak >>= 10
		t.Logf("%s a blob of 64 MiB: peak RSS %d MiB", step.name, peak)
		if peak > step.limit && !raceEnabled {
			t.Errorf("%s took %d MiB, more than %d", step.name, peak, step.limit)
		}
	}
}

// readLarge is the process that TestLargeBlobIsStreamed measures.
// Its own word counts: the kernel's count for the parent has git's memory in it.
func readLarge(t *testing.T, repo string) {
	defer func() {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Error(err)
		}
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		fmt.Println("VmHWM:", strings.SplitN(peak, "\n", 2)[0])
	}()
	s := newSource(t, gogit.Options{URL: repo, Dir: os.Getenv("GOGIT_TEST_DIR")})
	tip := os.Getenv("GOGIT_TEST_COMMIT")
	s.mustFetch(t, tip)
	if os.Getenv("GOGIT_TEST_STEP") == "fetching" {
		return
	}
	tree, err := s.Tree(context.Background(), tip)
	if err != nil {
		t.Fatal(err)
	}
	e, err := tree.Entry("files/big")
	if err != nil {
		t.Fatal(err)
	}
	r, err := tree.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != 64<<20 {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func BenchmarkPollLocal(b *testing.B) {
	repo := fleet(b)
	s := newSource(b, gogit.Options{URL: repo})
	s.mustFetch(b, git(b, repo, "rev-parse", "HEAD"))
	for b.Loop() {
		if _, err := s.Fetch(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
