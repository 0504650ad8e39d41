package reconcile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
)

// TestKnown: a run with nothing new reads no layer, and takes nobody's word for
// it that nothing is new.
func TestKnown(t *testing.T) {
	b := newBench(t)
	upToDate := func(read bool, what string) {
		t.Helper()
		if out := b.pull(""); out.Result != reconcile.UpToDate || out.Host != "web1" || out.Digest != b.Update.State.Applied.Digest {
			t.Errorf("%s: %+v", what, out)
		}
		if opened := b.repo.tree.Opened(); len(opened) > 0 != read {
			t.Errorf("%s: these were read: %v", what, opened)
		}
	}
	upToDate(false, "nothing new")
	if err := os.Chmod(b.Dirs.Known(), 0o666); err != nil {
		t.Fatal(err)
	}
	upToDate(true, "anybody could have written it")
	upToDate(false, "it was written anew")

	if err := os.WriteFile(b.Dirs.Known(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	upToDate(true, "it was cut short")
	b.repo.commit++
	upToDate(true, "another commit")
	if err := os.MkdirAll(filepath.Join(b.Host.Root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Host.Root, "etc/machine-id"), []byte(strings.Repeat("7", 32)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now := b.Host.Now
	b.Host = host.New(b.Host.Root) // which read the id that was there
	b.Host.Now = now
	upToDate(true, "another machine-id")
	b.Names = []string{"web", "web1"}
	upToDate(true, "another name is tried first")
	upToDate(false, "the same names")

	b.repo.push("{path: /etc/one, target: second}")
	if out := b.pull(""); out.Result != reconcile.Applied {
		t.Errorf("a push: %+v", out)
	}
	b.has("/etc/one", "second")
	upToDate(false, "after a push")
}
