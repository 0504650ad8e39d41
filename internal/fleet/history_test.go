package fleet_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/survey"
)

// git runs git in dir as nobody in particular.
func git(t testing.TB, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func mirror(t testing.TB, url string) *gogit.Source {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	src, err := gogit.New(gogit.Options{URL: url, Dir: filepath.Join(t.TempDir(), "mirror"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// everyDigest is the inputs of every host, or what is wrong with it.
func everyDigest(t testing.TB, tree source.Tree) map[string]string {
	t.Helper()
	r, err := fleet.Open(tree)
	if err != nil {
		return map[string]string{"fleet.toml": err.Error()}
	}
	hosts, err := r.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range hosts {
		h, err := r.Host(fleet.Machine{Names: []string{name}})
		if err != nil {
			all[name] = err.Error()
			continue
		}
		all[name] = fmt.Sprintf("%s %v", h.Digest, h.Inputs)
	}
	return all
}

// A clean checkout and its commit have the same hosts with the same digests, at
// every commit of a history that touches everything that a digest knows, and
// those are affected by a commit whose digest differs from the one before.
func TestDigestOfCheckoutAndCommit(t *testing.T) {
	work := t.TempDir()
	if err := os.CopyFS(work, os.DirFS("../../testdata/fleet")); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{"groups/db/hooks/pre_configure.d/10-checkpoint", "hosts/web1/hooks/health.d/10-greeter"} {
		if err := os.Chmod(filepath.Join(work, script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	git(t, work, "init", "-q", "-b", "main")
	random := rand.New(rand.NewPCG(1, 2))
	write := func(name, data string) {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(name string, change func(string) string) {
		data, err := os.ReadFile(filepath.Join(work, name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, change(string(data)))
	}
	add := func(name string) func(int) {
		return func(i int) { edit(name, func(s string) string { return fmt.Sprintf("%s# %d\n", s, i) }) }
	}
	changes := []func(i int){
		add("files/web/greeter"), add("hosts/web1.bu"), add("groups/common/motd.bu.tmpl"), add("files/common/chrony.conf.tmpl"), add("README.md"), add("fleet.toml"),
		func(i int) {
			edit("fleet.toml", func(s string) string { return strings.Replace(s, "port = 808", fmt.Sprintf("port = %d808", i), 1) })
		},
		func(i int) {
			edit("fleet.toml", func(s string) string { return fmt.Sprintf("%s[group.g%d]\nhosts = [\"*%d\"]\n", s, i, i%4) })
		},
		func(i int) { write(fmt.Sprintf("files/web/www/sub/page%d.html", i), "x") },
		func(i int) { write(fmt.Sprintf("hosts/new%d.bu", i), empty) },
		func(i int) {
			write(fmt.Sprintf("hosts/folder%d/a.bu.tmpl", i), empty+"# {{.Host.MachineID}} {{.Vars}}\n")
		},
		func(i int) { write(fmt.Sprintf("groups/web/hooks/configure.d/%d-x", i), "#!/bin/sh\n") },
		func(int) {
			if err := os.Chmod(filepath.Join(work, "files/web/www/robots.txt"), 0o644|os.FileMode(random.IntN(2)*0o111)); err != nil {
				t.Fatal(err)
			}
		},
		func(i int) {
			if err := os.Symlink(fmt.Sprint(i), filepath.Join(work, fmt.Sprintf("files/web/www/link%d", i))); err != nil {
				t.Fatal(err)
			}
		},
		func(i int) { write(fmt.Sprintf("hosts/broken%d.bu.tmpl", i), "{{") },
	}
	var src *gogit.Source
	var parent source.Tree
	before, kinds := map[string]string{}, map[string]int{}
	for i := range 50 {
		if i > 0 {
			changes[(i-1)%len(changes)](i)
			changes[random.IntN(len(changes))](i + 100)
		}
		git(t, work, "add", "-A")
		git(t, work, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
		if src == nil {
			src = mirror(t, work)
		}
		rev, err := src.Fetch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		committed, err := src.Tree(context.Background(), rev.Commit)
		if err != nil {
			t.Fatal(err)
		}
		clean, err := checkout.Open(work)
		if err != nil {
			t.Fatal(err)
		}
		want := everyDigest(t, committed)
		if d := cmp.Diff(want, everyDigest(t, clean)); d != "" {
			t.Fatalf("commit %d (-commit +checkout):\n%s", i, d)
		}
		if err := clean.Close(); err != nil {
			t.Fatal(err)
		}
		if len(want) < 13 {
			t.Fatalf("commit %d: %d hosts", i, len(want))
		}
		for host, digest := range want {
			switch was, ok := before[host]; {
			case !ok:
				kinds["new"]++
			case was == digest:
				kinds["same"]++
			default:
				kinds["changed"]++
			}
		}
		if parent != nil {
			affectedAgrees(t, i, parent, committed, before, want)
		}
		parent, before = committed, want
	}
	if kinds["same"] < 100 || kinds["changed"] < 50 {
		t.Errorf("the history proves little: %v", kinds)
	}
}

// affectedAgrees compares who is affected with the digests on both sides.
func affectedAgrees(t *testing.T, commit int, old, new source.Tree, before, after map[string]string) {
	t.Helper()
	found, err := survey.Affected(t.Context(), old, new)
	if err != nil {
		t.Fatal(err)
	}
	affected := map[string]bool{}
	for _, e := range found.Affected {
		affected[e.Host] = true
		if e.Was != "" {
			affected[e.Was] = true
		}
		if before[e.Host] == after[e.Host] && e.Kind != survey.Broken {
			t.Errorf("commit %d: %s is %s, and has the digest that it had", commit, e.Host, e.Kind)
		}
	}
	for _, side := range []map[string]string{before, after} {
		for host := range side {
			if before[host] != after[host] && !affected[host] {
				t.Errorf("commit %d: the digest of %s differs, and it is not affected", commit, host)
			}
		}
	}
}

// A host of a large fleet: what is looked up, and not how long it takes, must
// not depend on how many others there are.
func BenchmarkHostOfManyFromMirror(b *testing.B) {
	for _, hosts := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(hosts), func(b *testing.B) {
			work := b.TempDir()
			files := many(50)
			files["fleet.toml"] = file("[vars]\nx = 1\n[group.all]\nhosts = ['*']\nlayers = ['groups/all.bu']\n")
			files["groups/all.bu"] = file(empty)
			for i := range hosts {
				files[fmt.Sprintf("hosts/h%05d.bu", i)] = file(empty)
			}
			for name, f := range files {
				path := filepath.Join(work, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(f.Data), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			git(b, work, "init", "-q", "-b", "main")
			git(b, work, "add", "-A")
			git(b, work, "commit", "-q", "-m", "x")
			src := mirror(b, work)
			rev, err := src.Fetch(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				tree, err := src.Tree(context.Background(), rev.Commit)
				if err != nil {
					b.Fatal(err)
				}
				r, err := fleet.Open(tree)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.Host(fleet.Machine{Names: []string{"web1"}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
