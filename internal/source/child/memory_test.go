package child_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// What was found in a large folder is remembered in a file for the next process, which
// takes it from nobody but whoever runs this.
func TestMemoryFile(t *testing.T) {
	users(t, func(t *testing.T, user *run.User) {
		dir := place(t)
		repo, file := filepath.Join(dir, "fleet"), filepath.Join(dir, "run", "folders.json")
		git(t, "/", "init", "-q", "-b", "main", repo)
		for i := range 3000 {
			write(t, filepath.Join(repo, fmt.Sprintf("hosts/h%d.bu", i)), fmt.Sprint(i), 0o644)
		}
		git(t, repo, "add", "-A")
		git(t, repo, "commit", "-q", "-m", "many")
		tip, id := git(t, repo, "rev-parse", "HEAD"), git(t, repo, "rev-parse", "HEAD:hosts/h7.bu")
		look := func() string {
			t.Helper()
			s := newSource(t, dir, user, gogit.Options{URL: repo}, child.Options{Memory: file})
			ctx := context.Background()
			if _, err := s.Fetch(ctx); err != nil {
				t.Fatal(err)
			}
			tree, err := s.Tree(ctx, tip)
			if err != nil {
				t.Fatal(err)
			}
			e, err := tree.Entry("hosts/h7.bu")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return e.ID
		}
		if got := look(); got != id {
			t.Errorf("without a directory for it: %s", got)
		}
		if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != id {
			t.Errorf("the first time: %s", got)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		other := strings.Repeat("7", 40)
		write(t, file, strings.ReplaceAll(string(data), id, other), 0o600)
		if got := look(); got != other {
			t.Errorf("it was not used: %s", got)
		}
		s := newSource(t, dir, user, gogit.Options{URL: repo}, child.Options{Memory: file})
		if err := s.Discard(); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != id {
			t.Errorf("it was not discarded with the mirror: %s", got)
		}
		write(t, file, strings.ReplaceAll(string(data), id, other), 0o620)
		if got := look(); got != id {
			t.Errorf("its group could have written it: %s", got)
		}
		if data, err = os.ReadFile(file); err != nil || !strings.Contains(string(data), id) {
			t.Errorf("it was not made anew: %v\n%s", err, data)
		}
	})
}
