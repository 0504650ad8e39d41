package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
)

// TestCorpus has the program translate the examples of Butane's documentation,
// as their authors would: one file, and no host.
func TestCorpus(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "..", "..", "shared", "corpus", "butane-docs")
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		lacking.Skip(t, "the corpus lies beside the project, at %s, and is absent here", dir)
	}
	documents, err := filepath.Glob(filepath.Join(dir, "*.bu"))
	if err != nil {
		t.Fatal(err)
	}
	if len(documents) != 76 {
		t.Fatalf("%d documents, want 76", len(documents))
	}
	var (
		missing     = regexp.MustCompile(`(?m)^\S+\.bu:\d+:\d+: error: (\S+) does not exist in the fleet repo`)
		unsupported = regexp.MustCompile(`(?m)^\S+\.bu:\d+:\d+: error: .*(not supported after first boot|needs a verification hash)`)
		translated  = map[string]bool{}
		planned     int
		refused     int
	)
	for _, file := range documents {
		name := filepath.Base(file)
		status, stdout, stderr := program(t, "translate", "--to", "ignition", file)
		switch {
		case status == 0:
			translated[file] = true
			var config struct{ Ignition struct{ Version string } }
			if err := json.Unmarshal(stdout, &config); err != nil || config.Ignition.Version == "" {
				t.Errorf("%s: no Ignition config (%v):\n%s", name, err, stdout)
			}
		case status != 65 || len(stdout) > 0:
			t.Errorf("%s: exit status %d:\n%s%s", name, status, stdout, stderr)
		default:
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			named := missing.FindAllSubmatch(stderr, -1)
			for _, n := range named {
				if !bytes.Contains(source, n[1]) {
					t.Errorf("%s does not speak of %s", name, n[1])
				}
			}
			if len(named) == 0 {
				t.Errorf("%s: no missing file is named:\n%s", name, stderr)
			}
		}
	}
	for file := range translated {
		name := filepath.Base(file)
		switch status, _, stderr := program(t, "translate", "--to", "plan", file); {
		case status == 0:
			planned++
		case status == 65 && unsupported.Match(stderr):
			refused++
		default:
			t.Errorf("%s: exit status %d:\n%s", name, status, stderr)
		}
	}
	if len(translated) != 64 || planned != 56 || refused != 8 {
		t.Errorf("%d translated, %d planned, %d name an unsupported source; want 64, 56, 8", len(translated), planned, refused)
	}
}

// program runs the program that TestMain registered.
func program(t *testing.T, args ...string) (status int, stdout, stderr []byte) {
	t.Helper()
	var out, said strings.Builder
	cmd := exec.Command("reconf-pull", args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), []byte(out.String()), []byte(said.String())
}
