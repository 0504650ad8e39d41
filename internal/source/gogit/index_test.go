package gogit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
)

// What the index says is what git wrote, with offsets of both widths, and for
// few and many questions.
func TestPackIndex(t *testing.T) {
	repo := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", repo}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "-q")
	for i := range 2000 {
		if err := os.WriteFile(filepath.Join(repo, fmt.Sprint("f", i)), []byte(fmt.Sprint(i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("add", "-A")
	run("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-qm", "all")
	run("repack", "-adq")
	packs, err := filepath.Glob(filepath.Join(repo, ".git/objects/pack/*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs: %q, %v", packs, err)
	}
	sum := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(packs[0]), "pack-"), ".pack")
	for _, version := range []string{"2", "2,0x1000"} { // offsets from 0x1000 on are wide ones
		t.Run(version, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "pack.idx")
			run("index-pack", "--index-version="+version, "-o", name, packs[0])
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			want := idxfile.NewMemoryIndex()
			if err := idxfile.NewDecoder(f).Decode(want); err != nil {
				t.Fatal(err)
			}
			x, err := openIndex(osfs.New(filepath.Dir(name)), filepath.Base(name), sum)
			if err != nil {
				t.Fatal(err)
			}
			defer x.close()
			all, err := want.Entries()
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			for {
				e, err := all.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if at, err := x.FindOffset(e.Hash); err != nil || at != int64(e.Offset) {
					t.Fatalf("%s stands at %d, %v: want %d", e.Hash, at, err, e.Offset)
				}
				if id, err := x.FindHash(int64(e.Offset)); err != nil || id != e.Hash {
					t.Fatalf("at %d stands %s, %v: want %s", e.Offset, id, err, e.Hash)
				}
				other := e.Hash
				other[len(other)-1] ^= 1
				if _, err := x.FindOffset(other); !errors.Is(err, plumbing.ErrObjectNotFound) {
					t.Fatalf("%s, which is not there: %v", other, err)
				}
				seen++
			}
			if seen < 2000 {
				t.Errorf("%d objects were looked at", seen)
			}
			if _, err := x.FindHash(1); !errors.Is(err, plumbing.ErrObjectNotFound) {
				t.Errorf("where no object begins: %v", err)
			}
			if _, err := openIndex(osfs.New(filepath.Dir(name)), filepath.Base(name), strings.Repeat("0", 40)); err == nil {
				t.Error("the index of another pack was taken")
			}
		})
	}
}
