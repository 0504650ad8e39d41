package gogit_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// history is the repository
//
//	one - two - three - merge - tip   main
//	   \- side ---------/
//	other                             apart, with no commit of the others
func history(t *testing.T) (repo string, id map[string]string) {
	repo = filepath.Join(t.TempDir(), "fleet")
	id = map[string]string{}
	git(t, "/", "init", "-q", "-b", "main", repo)
	for _, name := range []string{"one", "two", "three"} {
		id[name] = commit(t, repo, name)
	}
	git(t, repo, "checkout", "-q", "-b", "side", id["one"])
	id["side"] = commit(t, repo, "side")
	git(t, repo, "checkout", "-q", "main")
	git(t, repo, "merge", "-q", "--no-ff", "-m", "merge", "side")
	id["merge"] = git(t, repo, "rev-parse", "HEAD")
	id["tip"] = commit(t, repo, "tip")
	git(t, repo, "checkout", "-q", "--orphan", "apart")
	id["other"] = commit(t, repo, "other")
	git(t, repo, "checkout", "-q", "main")
	return repo, id
}

func TestRelation(t *testing.T) {
	repo, id := history(t)
	s := newSource(t, gogit.Options{URL: repo, Branch: "main", FullHistory: true})
	s.mustFetch(t, id["tip"])
	for _, c := range []struct {
		older, tip string
		want       source.Relation
	}{
		{"tip", "tip", source.Same}, {"merge", "tip", source.Ahead}, {"one", "tip", source.Ahead}, {"side", "tip", source.Ahead},
		{"tip", "one", source.Behind}, {"merge", "side", source.Behind}, {"three", "side", source.Diverged}, {"side", "two", source.Diverged},
		{"other", "tip", source.Diverged},
	} {
		got, err := s.Relation(context.Background(), id[c.older], id[c.tip])
		if err != nil || got != c.want {
			t.Errorf("%s, seen from %s, is %s, %v; want %s", c.tip, c.older, got, err, c.want)
		}
	}
	for _, c := range []struct{ ancestor, want string }{
		{"merge", "tip"}, {"three", "merge side tip"}, {"side", "merge three tip two"}, {"one", "merge side three tip two"}, {"tip", ""},
	} {
		ids, err := s.Between(context.Background(), id[c.ancestor], id["tip"])
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for name, commit := range id {
			if slices.Contains(ids, commit) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != c.want || len(ids) != len(names) {
			t.Errorf("between %s and the tip: %q, want %q", c.ancestor, got, c.want)
		}
	}
	raw, err := s.Commit(context.Background(), id["merge"])
	if want := git(t, repo, "cat-file", "commit", id["merge"]); err != nil || strings.TrimSpace(string(raw)) != want {
		t.Errorf("%q, %v, want %q", raw, err, want)
	}
}

// A mirror that is too shallow to tell says so, and is cloned in full.
func TestShallowIsDeepened(t *testing.T) {
	repo, id := history(t)
	s := newSource(t, gogit.Options{URL: repo, Branch: "main"})
	s.mustFetch(t, id["tip"])
	if _, err := s.Relation(context.Background(), id["three"], id["tip"]); !errors.Is(err, source.ErrShallow) {
		t.Errorf("relation: %v", err)
	}
	if _, err := s.Between(context.Background(), id["three"], id["tip"]); !errors.Is(err, source.ErrShallow) {
		t.Errorf("between: %v", err)
	}
	next := commit(t, repo, "next")
	s.mustFetch(t, next)
	if got, err := s.Relation(context.Background(), id["tip"], next); err != nil || got != source.Ahead {
		t.Errorf("what came after a shallow clone needs no more than it: %s, %v", got, err)
	}
	s.Deepen()
	s.mustFetch(t, next)
	if got, err := s.Relation(context.Background(), id["three"], next); err != nil || got != source.Ahead {
		t.Errorf("deepened: %s, %v", got, err)
	}
	if n := git(t, s.dir, "rev-list", "--count", "HEAD"); n != "7" {
		t.Errorf("the mirror has %s commits, want 7", n)
	}
}

// With a mark, a first clone is shallow only when the tip is the mark.
func TestMarksDecideTheDepth(t *testing.T) {
	repo, id := history(t)
	for mark, want := range map[string]string{id["tip"]: "1", id["two"]: "6", "": "1"} {
		s := newSource(t, gogit.Options{URL: repo, Marks: map[string]string{"refs/heads/main": mark, "refs/heads/apart": id["one"]}})
		s.mustFetch(t, id["tip"])
		if n := git(t, s.dir, "rev-list", "--count", "HEAD"); n != want {
			t.Errorf("with the mark %s the clone has %s commits, want %s", mark, n, want)
		}
	}
}
