package main_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what the program prints into testdata/author")

// exampleRepo is the example fleet as a git repository.
func exampleRepo(t *testing.T) (dir string, run func(command string) string) {
	t.Helper()
	dir = t.TempDir()
	bin := filepath.Dir(buildProgram(t))
	run = func(command string) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "ROOT="+t.TempDir(), "NO_COLOR=1",
			"GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
			"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return fmt.Sprintf("%sexit status %d\n", out, cmd.ProcessState.ExitCode())
	}
	if err := os.CopyFS(dir, os.DirFS("../../testdata/fleet")); err != nil {
		t.Fatal(err)
	}
	if out := run("git init -q -b main && git add -A && git commit -qm first"); out != "exit status 0\n" {
		t.Fatal(out)
	}
	return dir, run
}

// What authors read, word for word, about the example fleet.
func TestWhatAuthorsRead(t *testing.T) {
	_, run := exampleRepo(t)
	for _, one := range []struct{ name, before, command string }{
		{"hosts", "", "reconf-pull hosts"},
		{"validate", "", "reconf-pull validate --strict"},
		{"explain-file", "", "reconf-pull explain /etc/motd --host web1"},
		{"explain-unit", "", "reconf-pull explain greeter.service --host web1"},
		{"explain-json", "", "reconf-pull explain greeter.service --host web1 --json"},
		{"explain-nothing", "", "reconf-pull explain /etc/gretter.conf --host web1"},
		{"plan", "", `reconf-pull plan --host web1 --root "$ROOT" .`},
		{"affected", "echo >>files/web/greeter; echo '# more' >>groups/db/sysctl.bu.tmpl; git mv hosts/web3.bu hosts/web4.bu; printf 'variant: fcos\\nversion: 1.6.0\\n' >hosts/new1.bu",
			"reconf-pull affected HEAD"},
		{"affected-json", "", "reconf-pull affected HEAD . --json"},
		{"validate-broken", "sed -i 's/enabled: true/enabld: true/' groups/web/greeter.bu; printf 'variant: fcos\\nversion: 9.9.9\\n' >hosts/db1.bu",
			"reconf-pull validate"},
		{"validate-github", "", "reconf-pull validate --format github"},
		{"validate-gitlab", "", "reconf-pull validate --format gitlab"},
		{"validate-json", "", "reconf-pull validate --format json"},
	} {
		if one.before != "" {
			if out := run(one.before); out != "exit status 0\n" {
				t.Fatal(out)
			}
		}
		got := run(one.command)
		file := filepath.Join("testdata/author", one.name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s prints\n%s\nwant\n%s", one.command, got, want)
		}
	}
}

// Every reconf-pull that CI or a hook runs by docs/authors.md works on the example.
func TestSnippetsForAuthorsRun(t *testing.T) {
	_, run := exampleRepo(t)
	if out := run("git update-ref refs/remotes/origin/main HEAD && echo >>files/web/greeter"); out != "exit status 0\n" {
		t.Fatal(out)
	}
	command := regexp.MustCompile(`(?m)^ *(?:- run:|-|entry:) (reconf-pull .*)$`)
	var text strings.Builder
	for _, b := range blocks(t, "docs/authors.md") {
		if b.language == "yaml" {
			text.WriteString(b.text)
		}
	}
	hooks, err := os.ReadFile("../../.pre-commit-hooks.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text.Write(hooks)
	if !strings.Contains(text.String(), "id: reconf-pull-validate\n") {
		t.Error("docs/authors.md does not name the hook")
	}
	found := command.FindAllStringSubmatch(text.String(), -1)
	if len(found) != 5 {
		t.Errorf("%d commands were found", len(found))
	}
	for _, m := range found {
		if out := run(m[1]); !strings.HasSuffix(out, "exit status 0\n") {
			t.Errorf("%s\n%s", m[1], out)
		}
	}
}
