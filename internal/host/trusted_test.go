package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

func TestReadTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		lacking.Skip(t, "only root gives files to others")
	}
	for _, c := range []struct {
		name  string
		do    func(dir, file string) error
		wrong string // path that the error names, below the directory
		why   string
	}{
		{name: "as it should be", do: func(string, string) error { return nil }},
		{"group may write", func(_, file string) error { return os.Chmod(file, 0o664) }, "keys/file", "writable by its group (mode 0664)"},
		{"everybody may write", func(_, file string) error { return os.Chmod(file, 0o646) }, "keys/file", "writable by everybody (mode 0646)"},
		{"of somebody", func(_, file string) error { return os.Chown(file, 1234, 0) }, "keys/file", "belongs to uid 1234"},
		{"folder of somebody", func(dir, _ string) error { return os.Chown(dir, 1234, 0) }, "keys", "belongs to uid 1234"},
		{"folder that everybody may write", func(dir, _ string) error { return os.Chmod(dir, 0o777) }, "keys", "writable by everybody"},
		{name: "sticky folder", do: func(dir, _ string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }},
		{"link to what others may write", func(_, file string) error {
			other := file + ".other"
			return errors.Join(os.Remove(file), os.WriteFile(other, nil, 0o600), os.Chmod(other, 0o666), os.Symlink(other, file))
		}, "keys/file", "writable by everybody"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			file := filepath.Join(dir, "file")
			if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("key"), 0o644), c.do(dir, file)); err != nil {
				t.Fatal(err)
			}
			data, err := host.ReadTrusted(file, 10)
			if c.wrong == "" {
				if err != nil || string(data) != "key" {
					t.Errorf("%q, %v", data, err)
				}
				return
			}
			var distrust *host.DistrustError
			if !errors.As(err, &distrust) || distrust.Path != filepath.Join(filepath.Dir(dir), c.wrong) || !strings.Contains(distrust.Reason, c.why) {
				t.Errorf("%v", err)
			}
		})
	}
	dir := t.TempDir()
	if _, err := host.ReadTrusted(dir, 10); err == nil {
		t.Error("a directory was read")
	}
	if _, err := host.ReadTrusted(filepath.Join(dir, "none"), 10); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := host.ReadTrusted(large, 10); err == nil || !strings.Contains(err.Error(), "limit of 10") {
		t.Errorf("a large file: %v", err)
	}
}

// A private key is read only where nobody else can read it: of the group alone there
// may be more.
func TestReadSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode  os.FileMode
		group bool
		why   string
	}{
		{0o600, false, ""}, {0o400, true, ""}, {0o640, true, ""}, {0o440, true, ""},
		{0o640, false, "is readable by its group (mode 0640)"}, {0o604, false, "is readable by everybody (mode 0604)"},
		{0o644, true, "is readable by everybody (mode 0644)"}, {0o660, true, "is writable by its group (mode 0660)"},
	} {
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		read := host.ReadSecret
		if c.group {
			read = host.ReadGroupSecret
		}
		data, err := read(file, 10)
		var distrust *host.DistrustError
		if c.why == "" {
			if string(data) != "key" || err != nil {
				t.Errorf("%o: %q, %v", c.mode, data, err)
			}
		} else if !errors.As(err, &distrust) || distrust.Reason != c.why || !strings.Contains(distrust.Hint(), "chown root "+file) {
			t.Errorf("%o: %v", c.mode, err)
		}
	}
}
