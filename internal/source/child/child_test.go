package child_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// TestMain is the other process, too: an honest one, one that looks what it can do,
// or one that lies.
func TestMain(m *testing.M) {
	if len(os.Args) != 2 || os.Args[1] != child.Command {
		os.Exit(m.Run())
	}
	if err := run.Closed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if lie := os.Getenv("LIE"); lie != "" {
		os.Exit(tell(lie))
	}
	if err := child.Serve(os.Stdin, os.Stdout, openMirror); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func openMirror(told []byte, _ io.Writer, log logrus.FieldLogger) (child.Mirror, error) {
	switch os.Getenv("PROBE") {
	case "agent":
		return &agentProbe{}, nil
	case "files":
		var s probe
		return &s, json.Unmarshal(told, &s)
	}
	var o gogit.Options
	if err := json.Unmarshal(told, &o); err != nil {
		return nil, err
	}
	o.Log = log
	return gogit.New(o)
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// place is a directory that everybody may pass.
func place(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "reconf-child-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, path, data string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// fleet is a repository with a file of 3 MiB, and some history.
func fleet(t testing.TB, dir string) string {
	t.Helper()
	repo := filepath.Join(dir, "fleet")
	git(t, "/", "init", "-q", "-b", "main", repo)
	for i := range 40 {
		write(t, filepath.Join(repo, "hosts/web1.bu"), fmt.Sprintf("# %d\n", i), 0o644)
		if i == 20 {
			large := make([]byte, 3<<20)
			_, _ = rand.NewChaCha8([32]byte{}).Read(large)
			write(t, filepath.Join(repo, "large"), string(large), 0o644)
		}
		git(t, repo, "add", "-A")
		git(t, repo, "commit", "-q", "-m", fmt.Sprintf("commit %d", i))
	}
	return repo
}

// nobody is a user without any right.
var nobody = &run.User{UID: 65521, GID: 65521}

// users are whoever runs this, and as root the one that has no rights.
func users(t *testing.T, test func(t *testing.T, user *run.User)) {
	t.Run("same user", func(t *testing.T) { test(t, nil) })
	t.Run("other user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			lacking.Skip(t, "not root: there is no other user to become")
		}
		test(t, nobody)
	})
}

type fetcher struct {
	*child.Source
	log *logtest.Hook
	dir string
}

func newSource(t testing.TB, dir string, user *run.User, of gogit.Options, o child.Options) *fetcher {
	t.Helper()
	log, hook := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	o.Dir, o.User, o.Log = filepath.Join(dir, "cache/mirror"), user, log
	of.Dir = filepath.Join(o.Dir, "fleet.git")
	if of.Timeout == 0 {
		of.Timeout = time.Minute
	}
	o.Timeout = of.Timeout
	if strings.HasPrefix(of.URL, "/") {
		o.Read = append(o.Read, of.URL)
		o.Env = append(o.Env, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	}
	if o.Setup == nil {
		here, err := gogit.New(of)
		if err != nil {
			t.Fatal(err)
		}
		o.Setup = func(file child.HandOver) any { return here.HandOver(file) }
	}
	s := child.New(o)
	t.Cleanup(func() { _ = s.Close() })
	return &fetcher{s, hook, o.Dir}
}

func TestFetchAndRead(t *testing.T) {
	users(t, func(t *testing.T, user *run.User) {
		dir, ctx := place(t), context.Background()
		repo := fleet(t, dir)
		tip, first := git(t, repo, "rev-parse", "HEAD"), git(t, repo, "rev-parse", "HEAD~39")
		s := newSource(t, dir, user, gogit.Options{URL: repo}, child.Options{})
		s.Start()
		rev, err := s.Fetch(ctx)
		if err != nil || rev != (source.Revision{Ref: "refs/heads/main", Commit: tip}) {
			t.Fatalf("fetched %v, %v", rev, err)
		}
		tree, err := s.Tree(ctx, tip)
		if err != nil {
			t.Fatal(err)
		}
		large, err := tree.Entry("large")
		if err != nil {
			t.Fatal(err)
		}
		// Two readers of one process, and look-ups between their reads.
		a, err1 := tree.Open(large)
		b, err2 := tree.Open(large)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(repo, "large"))
		if err != nil {
			t.Fatal(err)
		}
		half := make([]byte, 1<<20)
		if _, err := io.ReadFull(a, half); err != nil {
			t.Fatal(err)
		}
		if n, err := tree.Size(large); err != nil || n != 3<<20 {
			t.Errorf("size %d, %v", n, err)
		}
		other, err := io.ReadAll(b)
		rest, err2 := io.ReadAll(a)
		if err := errors.Join(err, err2, a.Close(), b.Close()); err != nil || string(half)+string(rest) != string(want) || string(other) != string(want) {
			t.Errorf("the large file is not what it was: %v", err)
		}
		if _, err := s.Relation(ctx, first, tip); !errors.Is(err, source.ErrShallow) {
			t.Errorf("of a shallow mirror: %v", err)
		}
		s.Deepen()
		if _, err := s.Fetch(ctx); err != nil {
			t.Fatal(err)
		}
		if relation, err := s.Relation(ctx, first, tip); relation != source.Ahead || err != nil {
			t.Errorf("the tip is %s, %v", relation, err)
		}
		if relation, err := s.Relation(ctx, tip, first); relation != source.Behind || err != nil {
			t.Errorf("the first is %s, %v", relation, err)
		}
		between, err := s.Between(ctx, first, tip)
		if got := strings.Join(between, "\n"); err != nil || got != git(t, repo, "rev-list", first+".."+tip) {
			t.Errorf("between: %v\n%s", err, got)
		}
		if info, err := s.Describe(ctx, tip); err != nil || info.Subject != "commit 39" || info.Author != "Ada <ada@example.com>" {
			t.Errorf("%+v, %v", info, err)
		}
		info, err := os.Lstat(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; user != nil && uid != user.UID || info.Mode().Perm() != 0o700 {
			t.Errorf("the mirror belongs to %d and has mode %v", uid, info.Mode())
		}
		// A damaged mirror is told, thrown away and made again.
		packs, err := filepath.Glob(filepath.Join(s.dir, "fleet.git/objects/pack/*.pack"))
		if err != nil || len(packs) == 0 {
			t.Fatalf("no pack: %v", err)
		}
		for _, pack := range packs {
			if err := os.Truncate(pack, 100); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Fetch(ctx); err != nil {
			t.Fatal(err)
		}
		if last := s.log.LastEntry(); last == nil || !strings.Contains(last.Message, "cloning it again") {
			t.Errorf("it said %+v", last)
		}
		if err := s.Discard(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Tree(ctx, tip); err == nil {
			t.Error("a tree of a mirror that was thrown away")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Fetch(ctx); err != nil { // another process
			t.Fatal(err)
		}
	})
}

// Whenever the process is killed, what is asked next is answered by another one,
// and nothing that is wrong is ever read.
func TestKilledAtRandom(t *testing.T) {
	users(t, func(t *testing.T, user *run.User) {
		dir, ctx := place(t), context.Background()
		repo := fleet(t, dir)
		tip := git(t, repo, "rev-parse", "HEAD")
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		s := newSource(t, dir, user, gogit.Options{URL: repo, FullHistory: true}, child.Options{})
		killed := 0
		for range 25 {
			if random.IntN(3) == 0 {
				if err := s.Discard(); err != nil {
					t.Fatal(err)
				}
			}
			ended := make(chan struct{})
			done := make(chan int)
			go func() {
				n := 0
				for {
					select {
					case <-ended:
						done <- n
						return
					case <-time.After(time.Duration(random.IntN(40)) * time.Millisecond):
					}
					for _, pid := range children(t) {
						if syscall.Kill(pid, syscall.SIGKILL) == nil {
							n++
						}
						break
					}
				}
			}()
			err := readAll(ctx, s, tip)
			close(ended)
			killed += <-done
			if err != nil && !errors.Is(err, source.ErrLocal) {
				t.Fatalf("killed: %v", err)
			}
			if err := readAll(ctx, s, tip); err != nil && !errors.Is(err, source.ErrLocal) {
				t.Fatalf("after a kill: %v", err)
			}
			if err := readAll(ctx, s, tip); err != nil {
				t.Fatalf("after a kill: %v", err)
			}
		}
		t.Logf("%d kills", killed)
		if killed == 0 {
			t.Error("nothing was killed")
		}
	})
}

func readAll(ctx context.Context, s *fetcher, tip string) error {
	rev, err := s.Fetch(ctx)
	if err != nil {
		return err
	}
	tree, err := s.Tree(ctx, rev.Commit)
	if err != nil {
		return err
	}
	e, err := tree.Entry("large")
	if err != nil {
		return err
	}
	r, err := tree.Open(e)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if rev.Commit != tip {
		return fmt.Errorf("it fetched %s", rev.Commit)
	}
	return r.Close()
}

// children are this process's children that fetch.
func children(t *testing.T) (pids []int) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range threads {
		data, _ := os.ReadFile(file) // the thread may be gone
		for _, field := range strings.Fields(string(data)) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err == nil {
				if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), child.Command) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// A fetch that is given up ends at once, and so does the process.
func TestGivenUp(t *testing.T) {
	dir := place(t)
	s := newSource(t, dir, nil, gogit.Options{URL: "/nowhere"}, child.Options{Env: []string{"LIE=fetch: hangs"}})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(300*time.Millisecond, cancel)
	started := time.Now()
	_, err := s.Fetch(ctx)
	if !errors.Is(err, context.Canceled) || time.Since(started) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(started))
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("%v live on", left)
	}
}

// What it does wrong in the middle of its work has an error of its own, no panic
// and no trace of one.
func TestPanics(t *testing.T) {
	s := newSource(t, place(t), nil, gogit.Options{URL: "/nowhere"}, child.Options{Env: []string{"LIE=fetch: panics"}})
	_, err := s.Fetch(context.Background())
	if err == nil || !errors.Is(err, source.ErrLocal) || !strings.HasSuffix(err.Error(), "exit status 2: panic: out of order") {
		t.Errorf("%v", err)
	}
}

var _ objects.Store = (*child.Source)(nil)

// A commit with a message of megabytes is one like all others.
func TestLargeCommits(t *testing.T) {
	dir, ctx := place(t), context.Background()
	repo := fleet(t, dir)
	first := git(t, repo, "rev-parse", "HEAD")
	message := filepath.Join(dir, "message")
	write(t, message, strings.Repeat("A line of a long story.\n", 100_000), 0o644)
	for range 3 {
		git(t, repo, "commit", "-q", "--allow-empty", "-F", message)
	}
	tip := git(t, repo, "rev-parse", "HEAD")
	s := newSource(t, dir, nil, gogit.Options{URL: repo, FullHistory: true}, child.Options{})
	if _, err := s.Fetch(ctx); err != nil {
		t.Fatal(err)
	}
	if relation, err := s.Relation(ctx, first, tip); relation != source.Ahead || err != nil {
		t.Errorf("the tip is %s, %v", relation, err)
	}
	if between, err := s.Between(ctx, first, tip); len(between) != 3 || err != nil {
		t.Errorf("%d commits between, %v", len(between), err)
	}
}
