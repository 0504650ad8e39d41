package bootedhost

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Repo is a real fleet repo: a bare remote, which hosts find at RepoURL, and a work
// tree that pushes to its branch main.
type Repo struct {
	tb   testing.TB
	bare string
	work string
}

// NewRepo makes an empty fleet repo.
func NewRepo(tb testing.TB) *Repo {
	tb.Helper()
	dir := tb.TempDir()
	r := &Repo{tb: tb, bare: filepath.Join(dir, "fleet.git"), work: filepath.Join(dir, "work")}
	if err := os.Mkdir(r.work, 0o755); err != nil {
		tb.Fatal(err)
	}
	r.Git("init", "--quiet", "--bare", "--initial-branch=main", r.bare)
	r.Git("init", "--quiet", "--initial-branch=main")
	r.Git("remote", "add", "origin", r.bare)
	return r
}

// Dir is the bare repository on this machine, for servers and second clones.
func (r *Repo) Dir() string { return r.bare }

// Git runs git in the work tree, untouched by this machine's git configuration.
func (r *Repo) Git(args ...string) string {
	r.tb.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.work
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Operator", "GIT_AUTHOR_EMAIL=operator@example.com",
		"GIT_COMMITTER_NAME=Operator", "GIT_COMMITTER_EMAIL=operator@example.com",
	)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.tb.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimRight(string(out), "\n")
}

// Write puts a file into the work tree.
func (r *Repo) Write(path, data string) {
	r.tb.Helper()
	path = filepath.Join(r.work, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		r.tb.Fatal(err)
	}
}

// WriteScript is Write for a file that git knows as executable.
func (r *Repo) WriteScript(path, data string) {
	r.tb.Helper()
	r.Write(path, data)
	if err := os.Chmod(filepath.Join(r.work, path), 0o755); err != nil {
		r.tb.Fatal(err)
	}
}

// Remove removes a file or a directory from the work tree.
func (r *Repo) Remove(path string) {
	r.tb.Helper()
	if err := os.RemoveAll(filepath.Join(r.work, path)); err != nil {
		r.tb.Fatal(err)
	}
}

// Push commits the whole work tree, changed or not, pushes it and returns the commit.
func (r *Repo) Push(message string) string {
	r.tb.Helper()
	r.Git("add", "--all")
	r.Git("commit", "--quiet", "--allow-empty", "--message="+message)
	r.Git("push", "--quiet", "origin", "HEAD:main")
	return r.Git("rev-parse", "HEAD")
}
