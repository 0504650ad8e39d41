package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/expand"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// block is one fenced code block of a document.
type block struct{ language, text string }

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

func blocks(t *testing.T, name string) []block {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	for _, m := range fence.FindAllStringSubmatch(string(data), -1) {
		all = append(all, block{m[1], m[2]})
	}
	return all
}

// Every shell block of the guides runs, in order, as a person would type it.
func TestGuidesRun(t *testing.T) {
	bin := filepath.Dir(buildProgram(t))
	for _, name := range []string{"docs/quickstart.md", "docs/fleet.md", "docs/authors.md", "docs/trust.md"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			script := "set -eu\n"
			switch name {
			case "docs/fleet.md":
				script += "mkdir testdata\ncp -r \"$EXAMPLE\" testdata/fleet\n"
			case "docs/authors.md":
				script += "cp -r \"$EXAMPLE\"/. .\ngit init -q -b main\ngit add -A\ngit commit -qm example\necho >>files/web/greeter\n"
			}
			n := 0
			for _, b := range blocks(t, name) {
				if b.language == "sh" {
					script += b.text
					n++
				}
			}
			if n == 0 {
				t.Fatal("no shell block")
			}
			example, err := filepath.Abs("../../testdata/fleet")
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "EXAMPLE="+example,
				"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
				"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if name == "docs/quickstart.md" && (!strings.Contains(string(out), "+ /etc/motd (0644)") || !strings.HasSuffix(string(out), "Welcome to web1.\n")) {
				t.Errorf("the guide promises other output than\n%s", out)
			}
		})
	}
}

// The demo holds every exit status, and what a broken push leaves, against what
// it says.
func TestDemoRuns(t *testing.T) {
	if out, err := exec.Command("../../demo/run", buildProgram(t)).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The README's host config is one.
func TestReadmeExampleTranslates(t *testing.T) {
	bin, n := buildProgram(t), 0
	for _, b := range blocks(t, "README.md") {
		if b.language != "yaml" {
			continue
		}
		n++
		file := filepath.Join(t.TempDir(), "web1.bu")
		if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(bin, "translate", "--to", "plan", file).CombinedOutput(); err != nil || string(out) != "+ /etc/motd (0644)\n" {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if n == 0 {
		t.Error("README.md shows no host config")
	}
}

// buildProgram builds the program once and returns its path.
func buildProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "reconf-pull")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// Every TOML example is a file that the program reads.
func TestExamplesDecode(t *testing.T) {
	for _, name := range []string{"docs/configuration.md", "docs/locks.md", "docs/quickstart.md"} {
		for _, b := range blocks(t, name) {
			if b.language != "toml" {
				continue
			}
			if _, err := config.Load(write(t, b.text), false, ""); err != nil {
				t.Errorf("%s: %v\n%s", name, err, b.text)
			}
		}
	}
	for _, b := range blocks(t, "docs/fleet.md") {
		if b.language != "toml" {
			continue
		}
		c := fleet.Config{}
		if err := tomlfile.Decode("fleet.toml", []byte(b.text), &c); err != nil {
			t.Error(err)
		}
		if c.Schema != 1 || c.HostsDir != "hosts" || c.FilesDir != "." {
			t.Errorf("the defaults in docs/fleet.md are %+v", c)
		}
	}
	if _, err := config.Load("../../packaging/config.toml", false, ""); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// docs/configuration.md has a row for every key, and no other.
func TestEveryKeyIsDocumented(t *testing.T) {
	keys := keysOf("", reflect.TypeFor[config.Config]())
	documented := rows(t, "docs/configuration.md", regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|"))
	slices.Sort(keys)
	slices.Sort(documented)
	if !slices.Equal(keys, documented) {
		t.Errorf("keys are      %v\ndocumented are %v", keys, documented)
	}
}

// docs/fleet.md has a row for every key of fleet.toml and for every function of
// a template.
func TestFleetIsDocumented(t *testing.T) {
	var keys []string
	for _, key := range keysOf("", reflect.TypeFor[fleet.Config]()) {
		switch key {
		case "group":
			keys = append(keys, keysOf("group.X.", reflect.TypeFor[fleet.Group]())...)
		case "host":
			keys = append(keys, keysOf("host.N.", reflect.TypeFor[fleet.HostTable]())...)
		default:
			keys = append(keys, key)
		}
	}
	documented := rows(t, "docs/fleet.md", regexp.MustCompile("(?m)^\\| `([a-z_]+(?:\\.[a-zA-Z_.]+)?)` \\|"))
	slices.Sort(keys)
	slices.Sort(documented)
	if !slices.Equal(keys, documented) {
		t.Errorf("keys are      %v\ndocumented are %v", keys, documented)
	}
	page, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range expand.Functions() {
		if !regexp.MustCompile("`" + name + "[` ]").Match(page) {
			t.Errorf("docs/fleet.md does not name the function %s", name)
		}
	}
}

func keysOf(prefix string, s reflect.Type) []string {
	var keys []string
	for i := range s.NumField() {
		f := s.Field(i)
		if !f.IsExported() {
			continue
		}
		key := prefix + f.Tag.Get("toml")
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, keysOf(key+".", f.Type)...)
		} else {
			keys = append(keys, key)
		}
	}
	return keys
}

// The table of exit statuses is the one that --help prints.
func TestExitStatusesAreDocumented(t *testing.T) {
	documented := rows(t, "docs/operations.md", regexp.MustCompile(`(?m)^\| (\d+) \|`))
	out, err := exec.Command(buildProgram(t), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	var printed []string
	for _, m := range regexp.MustCompile(`(?m)^ +(\d+)  `).FindAllStringSubmatch(string(out), -1) {
		printed = append(printed, m[1])
	}
	if !slices.Equal(documented, printed) || len(printed) == 0 {
		t.Errorf("documented are %v, --help prints %v", documented, printed)
	}
}

// Every command that --help lists has its row.
func TestEveryCommandIsDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(buildProgram(t), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(out), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		name := strings.Fields(line)[0]
		if name != "help" && !regexp.MustCompile(fmt.Sprintf("`%s[ `]", name)).Match(data) {
			t.Errorf("docs/operations.md says nothing of %s", name)
		}
	}
}

// docs/hooks.md has a row for every variable and every phase that scripts can
// meet, and no other variable.
func TestHooksAreDocumented(t *testing.T) {
	variable := regexp.MustCompile(`RECONF_[A-Z_]+[A-Z]`)
	var known []string
	for _, pattern := range []string{"../../internal/hooks/*.go", "../../internal/update/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			known = append(known, variable.FindAllString(string(data), -1)...)
		}
	}
	slices.Sort(known)
	known = slices.Compact(known)
	documented := rows(t, "docs/hooks.md", regexp.MustCompile("(?m)^\\| `(RECONF_[A-Z_]+)` \\|"))
	slices.Sort(documented)
	if !slices.Equal(known, documented) {
		t.Errorf("variables are  %v\ndocumented are %v", known, documented)
	}
	text, err := os.ReadFile("../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	list := rows(t, "internal/hooks/hooks.go", regexp.MustCompile(`(?m)^\t[A-Z][A-Za-z]+ +(?:Phase )?= "([a-z_]+)"`))
	if len(list) < 11 {
		t.Errorf("the phases found in the code are %v", list)
	}
	for _, phase := range list {
		if !strings.Contains(string(text), "`"+phase+"`") {
			t.Errorf("docs/hooks.md says nothing of %s", phase)
		}
	}
}

func rows(t *testing.T, name string, row *regexp.Regexp) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range row.FindAllStringSubmatch(string(data), -1) {
		found = append(found, m[1])
	}
	return found
}
