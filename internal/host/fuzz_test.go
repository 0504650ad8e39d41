package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/host"
)

// FuzzIdentity: os-release, hostname and machine-id are one line each, whatever is in
// the files.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte("ID=fedora\nIMAGE_VERSION='41.1'\nBUILD_ID=\"x\"\n"))
	f.Add([]byte("web1.example.com\n"))
	f.Add([]byte("# comment\n\n0123456789abcdef0123456789abcdef\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"os-release", "hostname", "machine-id"} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		h := host.New(root)
		name, err := h.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{h.Deployment(), name, h.MachineID()} {
			if strings.Contains(text, "\n") {
				t.Errorf("%q", text)
			}
		}
	})
}
