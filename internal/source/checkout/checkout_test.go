package checkout_test

import (
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
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
)

func write(t *testing.T, path, data string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
}

// folder is a checkout with what git treats in its own way.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hosts/web1.bu"), "variant: fcos\n", 0o644)
	write(t, filepath.Join(dir, "files/run"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(dir, "files/empty"), "", 0o600)
	write(t, filepath.Join(dir, "files/deep/er/x"), "x", 0o644)
	write(t, filepath.Join(dir, "files/deep.txt"), "sorts before deep/", 0o644)
	write(t, filepath.Join(dir, "files/deep-er"), "sorts before deep/ too", 0o644)
	write(t, filepath.Join(dir, "files/with space and ü"), "x", 0o644)
	if err := os.Symlink("deep", filepath.Join(dir, "files/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "files/out")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "nothing/in/here"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "files/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *checkout.Tree {
	t.Helper()
	tree, err := checkout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	return tree
}

// A clean checkout has the ids that git gives its commit.
func TestIDsAreGits(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		lacking.Skip(t, "git is not installed")
	}
	dir := folder(t)
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	git("init", "-q")
	git("add", "-A")
	git("commit", "-q", "-m", "x")

	want := strings.Split(strings.TrimRight(git("ls-tree", "-r", "-t", "-z", "HEAD"), "\x00"), "\x00")
	tree := open(t, dir)
	got := map[string]string{}
	var walk func(string)
	walk = func(p string) {
		list, err := tree.List(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			kind := "blob"
			if e.Mode == source.Directory {
				kind = "tree"
				walk(e.Path)
			}
			got[e.Path] = fmt.Sprintf("%06o %s %s\t%s", uint32(e.Mode), kind, e.ID, e.Path)
			if alone, err := open(t, dir).Entry(e.Path); err != nil || alone != e {
				t.Errorf("Entry(%s) is %v, %v; listed as %v", e.Path, alone, err, e)
			}
		}
	}
	walk(".")
	wanted := map[string]string{}
	for _, line := range want {
		_, p, _ := strings.Cut(line, "\t")
		wanted[p] = line
	}
	if d := cmp.Diff(wanted, got); d != "" {
		t.Errorf("(-git +checkout):\n%s", d)
	}
	root, err := tree.Entry(".")
	if err != nil || root.ID != strings.TrimSpace(git("rev-parse", "HEAD^{tree}")) {
		t.Errorf("the root is %v, %v", root, err)
	}
}

func TestNothingIsFollowed(t *testing.T) {
	dir := folder(t)
	tree := open(t, dir)
	var link *source.SymlinkError
	if _, err := tree.Entry("files/link/er/x"); !errors.As(err, &link) || link.Link != "files/link" {
		t.Errorf("through a symlink: %v", err)
	}
	if _, err := tree.List("files/link"); !errors.As(err, &link) {
		t.Errorf("listing a symlink: %v", err)
	}
	e, err := tree.Entry("files/out")
	if err != nil || e.Mode != source.Symlink {
		t.Fatalf("files/out: %v, %v", e, err)
	}
	r, err := tree.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || string(data) != "/etc/passwd" {
		t.Errorf("files/out reads %q, %v", data, err)
	}
	for _, p := range []string{"files/nope", "nothing", "nothing/in", "files/empty/x", ".git/config", "nothing/../files/../../x"} {
		if _, err := tree.Entry(p); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Entry(%s): %v", p, err)
		}
	}
	if _, err := tree.Entry("files/fifo"); err == nil || !strings.Contains(err.Error(), "named pipe") {
		t.Errorf("a named pipe: %v", err)
	}
}

func TestSubmodule(t *testing.T) {
	dir := folder(t)
	write(t, filepath.Join(dir, "sub/.git"), "gitdir: ../x\n", 0o644)
	write(t, filepath.Join(dir, "sub/file"), "x", 0o644)
	tree := open(t, dir)
	if e, err := tree.Entry("sub"); err != nil || e.Mode != source.Submodule {
		t.Errorf("sub: %v, %v", e, err)
	}
	if _, err := tree.Entry("sub/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a submodule: %v", err)
	}
}

func TestChangedWhileReading(t *testing.T) {
	dir := folder(t)
	tree := open(t, dir)
	e, err := tree.Entry("files/run")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "files/run"), "#!/bin/ed\n", 0o755)
	r, err := tree.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("error is %v", err)
	}
}
