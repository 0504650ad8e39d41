package gogit_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
)

// largeFleet has folders of thousands of entries.
func largeFleet(t testing.TB) string {
	repo := fleet(t)
	for i := range 3000 {
		write(t, filepath.Join(repo, fmt.Sprintf("hosts/h%d.bu", i)), fmt.Sprint("variant: fcos # ", i, "\n"))
		write(t, filepath.Join(repo, fmt.Sprintf("many/%d", i)), fmt.Sprint(i))
	}
	commit(t, repo, "many")
	git(t, repo, "repack", "-q", "-a", "-d")
	return repo
}

// kept is what stands beside the packs of a mirror: it must be what git knows by its name.
func kept(t *testing.T, repo, dir string) map[string]bool {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(dir, "folders"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, "folders", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "tree")
		write(t, path, string(data))
		if got := git(t, repo, "hash-object", "-t", "tree", path); got != f.Name() {
			t.Errorf("%s is kept as %s", got, f.Name())
		}
		all[f.Name()] = true
	}
	return all
}

// A large folder is kept as it is, whether it came whole or as a delta; small ones are not.
func TestLargeFolders(t *testing.T) {
	repo := largeFleet(t)
	s := newSource(t, gogit.Options{URL: repo})
	tip := git(t, repo, "rev-parse", "HEAD")
	s.mustFetch(t, tip)
	want := map[string]bool{}
	expect := func() {
		t.Helper()
		for _, folder := range []string{"hosts", "many"} {
			want[git(t, repo, "rev-parse", "HEAD:"+folder)] = true
		}
		got := kept(t, repo, s.dir)
		for id := range want {
			if !got[id] {
				t.Errorf("%s is not kept", id)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d are kept, want %d", len(got), len(want))
		}
	}
	expect()
	write(t, filepath.Join(repo, "hosts/h7.bu"), "variant: flatcar\n")
	tip = commit(t, repo, "one host")
	s.mustFetch(t, tip)
	expect()
	if got, err := s.readFile(tip, "hosts/h7.bu"); err != nil || got != "variant: flatcar\n" {
		t.Errorf("%q, %v", got, err)
	}
	git(t, s.dir, "fsck", "--strict", "--no-dangling")
	if w := s.warnings(); w != nil {
		t.Errorf("warnings: %q", w)
	}
}

// What is kept beside the packs is believed no more than they are: a tree that is read
// says that it is damaged, or reads the right bytes.
func TestDamagedFolders(t *testing.T) {
	repo := largeFleet(t)
	tip := git(t, repo, "rev-parse", "HEAD")
	cut := func(data []byte) []byte { return data[:len(data)-1] }
	for name, damage := range map[string]func([]byte) []byte{"cut short": cut, "flipped": flip} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, gogit.Options{URL: repo})
			s.mustFetch(t, tip)
			rewrite(t, filepath.Join(s.dir, "folders", git(t, repo, "rev-parse", "HEAD:hosts")), damage)
			if _, err := s.readFile(tip, "hosts/h7.bu"); !errors.Is(err, source.ErrDamaged) {
				t.Errorf("got %v", err)
			}
			if err := s.Discard(); err != nil {
				t.Fatal(err)
			}
			s.mustFetch(t, tip)
			if got, err := s.readFile(tip, "hosts/h7.bu"); err != nil || got != "variant: fcos # 7\n" {
				t.Errorf("after discarding: %q, %v", got, err)
			}
		})
	}
	// What is too short to be one, as a power cut leaves it, or is not there.
	for name, damage := range map[string]func(path string){
		"empty": func(path string) { rewrite(t, path, empty) },
		"gone":  func(path string) { _ = os.Remove(path) },
	} {
		s := newSource(t, gogit.Options{URL: repo})
		s.mustFetch(t, tip)
		damage(filepath.Join(s.dir, "folders", git(t, repo, "rev-parse", "HEAD:hosts")))
		if got, err := s.readFile(tip, "hosts/h7.bu"); err != nil || got != "variant: fcos # 7\n" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A history of large folders does not fill the disk: a bounded part of each pack is kept,
// and a bounded part of all.
func TestManyLargeFolders(t *testing.T) {
	repo := largeFleet(t)
	long := strings.Repeat("n", 200)
	for i := range 9000 {
		write(t, filepath.Join(repo, fmt.Sprintf("long/%s%d", long, i)), "")
	}
	s := newSource(t, gogit.Options{URL: repo})
	size := func() (n int64) {
		files, err := os.ReadDir(filepath.Join(s.dir, "folders"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			info, err := f.Info()
			if err != nil {
				t.Fatal(err)
			}
			n += info.Size()
		}
		return n
	}
	const oneFolder, ofPack, before = 2 << 20, 8 << 20, 24 << 20
	s.mustFetch(t, commit(t, repo, "first"))
	first := size()
	for i := range 9 {
		write(t, filepath.Join(repo, "long", fmt.Sprint(i)), "")
		commit(t, repo, fmt.Sprint(i))
	}
	s.mustFetch(t, git(t, repo, "rev-parse", "HEAD"))
	if more := size() - first; more < oneFolder || more > ofPack {
		t.Errorf("a pack with nine large folders left %d bytes, and %d were there", more, first)
	}
	for i := range 15 {
		write(t, filepath.Join(repo, "long", fmt.Sprint("x", i)), "")
		s.mustFetch(t, commit(t, repo, fmt.Sprint("x", i)))
	}
	if n := size(); n > before+2*oneFolder || n < before-oneFolder {
		t.Errorf("%d bytes are kept after many fetches", n)
	}
	tip := git(t, repo, "rev-parse", "HEAD:long")
	if _, err := os.Stat(filepath.Join(s.dir, "folders", tip)); err != nil {
		t.Errorf("the newest is not among them: %v", err)
	}
}
