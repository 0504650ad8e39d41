package update_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/update"
)

// FuzzStored: a plan or inputs that a power cut or somebody damaged are read or are
// called damaged.
func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"files": [{"path": "/etc/a", "action": "create", "mode": 420}], "units": [{"name": "a.service"}]}`))
	f.Add([]byte(`{"host": "web1", "scripts": [{"phase": "health", "name": "a"}]}`))
	f.Add([]byte("null"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		for _, name := range []string{"plan.json", "inputs.json"} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := update.ReadPlan(dir); err != nil && !errors.Is(err, update.ErrDamaged) {
			t.Errorf("the plan: %v", err)
		}
		if _, err := update.ReadInputs(dir); err != nil && !errors.Is(err, update.ErrDamaged) {
			t.Errorf("the inputs: %v", err)
		}
	})
}
