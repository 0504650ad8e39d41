package gogit_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// git runs the real git in dir.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fleet makes a repository with two commits on main and returns its directory.
func fleet(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fleet")
	write(t, filepath.Join(dir, "hosts/web1.bu"), "variant: fcos\n")
	git(t, dir, "init", "-q", "-b", "main")
	commit(t, dir, "first")
	write(t, filepath.Join(dir, "files/motd"), "hello\n")
	write(t, filepath.Join(dir, "files/sub/deep"), "deep\n")
	if err := os.Symlink("motd", filepath.Join(dir, "files/link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "files/run"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(dir, "files/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	commit(t, dir, "second\n\nwith a body")
	return dir
}

func commit(t testing.TB, dir, message string) string {
	t.Helper()
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", message)
	return git(t, dir, "rev-parse", "HEAD")
}

type fetcher struct {
	*gogit.Source
	log *logtest.Hook
	dir string
}

// newSource makes a Source with a mirror below a fresh cache directory.
func newSource(t testing.TB, o gogit.Options) *fetcher {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "cache", "mirror")
	}
	log, hook := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	o.Log = log
	s, err := gogit.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &fetcher{s, hook, o.Dir}
}

func (f *fetcher) mustFetch(t testing.TB, want string) source.Revision {
	t.Helper()
	rev, err := f.Fetch(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if rev.Commit != want {
		t.Fatalf("fetched %s, want %s", rev.Commit, want)
	}
	return rev
}

// warnings are the messages that an operator sees.
func (f *fetcher) warnings() []string {
	var w []string
	for _, e := range f.log.AllEntries() {
		if e.Level <= logrus.WarnLevel {
			w = append(w, e.Message)
		}
	}
	return w
}

// readFile reads a file of a commit through the tree.
func (f *fetcher) readFile(commit, path string) (string, error) {
	tree, err := f.Tree(context.Background(), commit)
	if err != nil {
		return "", err
	}
	e, err := tree.Entry(path)
	if err != nil {
		return "", err
	}
	r, err := tree.Open(e)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func TestFetchLocal(t *testing.T) {
	for _, scheme := range []string{"", "file://"} {
		t.Run("scheme "+scheme, func(t *testing.T) {
			repo := fleet(t)
			first := git(t, repo, "rev-parse", "HEAD")
			s := newSource(t, gogit.Options{URL: scheme + repo})
			rev := s.mustFetch(t, first)
			if rev.Ref != "refs/heads/main" {
				t.Errorf("ref is %s", rev.Ref)
			}
			if got := git(t, s.dir, "rev-list", "--count", "HEAD"); got != "1" {
				t.Errorf("the first clone brought %s commits, want 1", got)
			}
			if got, err := s.readFile(first, "files/motd"); err != nil || got != "hello\n" {
				t.Errorf("files/motd is %q, %v", got, err)
			}
			write(t, filepath.Join(repo, "files/motd"), "changed\n")
			second := commit(t, repo, "third")
			s.mustFetch(t, second)
			if got, err := s.readFile(second, "files/motd"); err != nil || got != "changed\n" {
				t.Errorf("files/motd is %q, %v", got, err)
			}
			git(t, s.dir, "merge-base", "--is-ancestor", first, second)
			git(t, s.dir, "fsck", "--no-dangling")
			s.mustFetch(t, second)
			if w := s.warnings(); w != nil {
				t.Errorf("warnings: %q", w)
			}
		})
	}
}
