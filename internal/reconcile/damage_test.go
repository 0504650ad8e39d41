package reconcile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/reconcile"
)

// Whatever of the mirror is damaged, it is cloned again, once a run: it is only a cache,
// and nobody comes to mend it.
func TestDamagedMirror(t *testing.T) {
	const big = "files/big"
	for _, test := range []struct {
		name     string
		damage   func(opened, discards int) bool // of what is opened for that time since the push
		path     string
		want     string // of the first run's error
		discards int
	}{
		{"a layer, until it is cloned again", func(_, discards int) bool { return discards == 0 }, "hosts/web1.bu", "", 1},
		{"a file, when it is planned", func(_, discards int) bool { return discards == 0 }, big, "", 1},
		{"a file, when it is stored", func(opened, discards int) bool { return opened == 2 && discards == 0 }, big, "mirror is damaged: " + big, 1},
		{"the remote's own", func(int, int) bool { return true }, big, "mirror is damaged: " + big, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			opened := 0
			b.repo.damage = func(path string) bool {
				if path != test.path {
					return false
				}
				opened++
				return test.damage(opened, b.repo.discards)
			}
			large := strings.Repeat("x", 100_000) // which is not kept in memory between plan and pin
			b.repo.files = map[string]string{big: large}
			b.repo.commit++
			b.repo.bu = "variant: fcos\nversion: 1.6.0\nstorage: {files: [{path: /etc/big, contents: {local: " + big + "}}]}\n"
			out := b.pull(test.want)
			if b.repo.discards != test.discards {
				t.Errorf("discarded %d times", b.repo.discards)
			}
			if test.want != "" {
				if _, err := os.Lstat(filepath.Join(b.Host.Root, "etc/big")); err == nil || b.Update.State.Change != nil {
					t.Errorf("something was changed: %+v", b.Update.State.Change)
				}
				b.has("/etc/one", "first")
				b.repo.damage = nil
				out = b.pull("")
			}
			if data, err := os.ReadFile(filepath.Join(b.Host.Root, "etc/big")); err != nil || string(data) != large || out.Result != reconcile.Applied {
				t.Errorf("%v: %d bytes, %v", out.Result, len(data), err)
			}
		})
	}
}

// A plan, too.
func TestPlanOfADamagedMirror(t *testing.T) {
	b := newBench(t)
	b.repo.damage = func(string) bool { return b.repo.discards == 0 }
	b.repo.push("{path: /etc/one, target: second}")
	prop, err := b.Propose(t.Context())
	if err != nil || b.repo.discards != 1 || len(prop.Plan.Items) != 1 {
		t.Errorf("%+v, %v, discarded %d times", prop, err, b.repo.discards)
	}
}
