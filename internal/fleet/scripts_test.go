package fleet_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

func run(data string) sourcetest.File { return sourcetest.File{Mode: source.Executable, Data: data} }

func listed(scripts []fleet.Script) (lines []string) {
	for _, s := range scripts {
		lines = append(lines, string(s.Phase)+" "+s.Name+" "+s.Entry.Path)
	}
	return lines
}

func TestScripts(t *testing.T) {
	scripts := map[string]sourcetest.File{
		"hooks/migration.d/10-schema": run("m"),
		"hooks/pre_update.d/20-b":     run("b"),
		"hooks/pre_update.d/10-a":     {Data: "a"}, // not executable: hooks says so when it comes to it
		"hooks/pre_update.d/.gitkeep": {},
		"hooks/README.md":             {Data: "x"},
		"notes/pre_update.d/10-x":     run("x"),
	}
	for name, layers := range map[string]map[string]string{
		"beside a file":          {"hosts/web1.bu": "hosts/web1/"},
		"in a folder":            {"hosts/web1/a.bu": "hosts/web1/"},
		"in a folder, at a root": {"web1/a.bu": "web1/"},
		"beside, in other case":  {"hosts/web1.bu": "hosts/WEB1/"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]sourcetest.File{"hosts/web2.bu": {Data: empty}, "hosts/web2/hooks/update.d/10-other": run("x")}
			var dir string
			for layer, folder := range layers {
				files[layer], dir = sourcetest.File{Data: empty}, folder
			}
			for path, file := range scripts {
				files[dir+path] = file
			}
			h := mustHost(t, files, "web1")
			if err := h.Unsupported.Err(); err != nil {
				t.Error(err)
			}
			want := []string{
				"pre_update .gitkeep " + dir + "hooks/pre_update.d/.gitkeep",
				"pre_update 10-a " + dir + "hooks/pre_update.d/10-a",
				"pre_update 20-b " + dir + "hooks/pre_update.d/20-b",
				"migration 10-schema " + dir + "hooks/migration.d/10-schema",
			}
			if d := cmp.Diff(want, listed(h.Scripts())); d != "" {
				t.Errorf("scripts (-want +got):\n%s", d)
			}
			var inputs []string
			for _, in := range h.Inputs {
				if in.Kind == "hook" {
					inputs = append(inputs, in.String())
				}
			}
			want = []string{
				"hook " + dir + "hooks/migration.d/10-schema 100755 " + sourcetest.ID("blob", []byte("m")),
				"hook " + dir + "hooks/pre_update.d/.gitkeep 100644 " + sourcetest.ID("blob", nil),
				"hook " + dir + "hooks/pre_update.d/10-a 100644 " + sourcetest.ID("blob", []byte("a")),
				"hook " + dir + "hooks/pre_update.d/20-b 100755 " + sourcetest.ID("blob", []byte("b")),
			}
			if d := cmp.Diff(want, inputs); d != "" {
				t.Errorf("inputs (-want +got):\n%s", d)
			}
		})
	}
}

// Of two layers the later one wins, name by name: also by a file that does not run.
func TestScriptsOfLayers(t *testing.T) {
	files := text("hosts/web1.bu", "groups/web/a.bu")
	files["fleet.toml"] = sourcetest.File{Data: "[group.common]\nhosts = ['*']\nlayers = ['groups/common']\n[group.web]\nhosts = ['web*']\nlayers = ['groups/web']\n"}
	for _, path := range []string{
		"groups/common/hooks/update.d/10-a", "groups/common/hooks/update.d/20-b", "groups/common/hooks/update.d/30-c",
		"groups/web/hooks/update.d/20-b", "groups/web/hooks/update.d/25-d", "groups/web/hooks/pre_update.d/10-a",
		"groups/db/hooks/update.d/40-e",
	} {
		files[path] = run(path)
	}
	files["hosts/web1/hooks/update.d/25-d"] = run("x")
	files["hosts/web1/hooks/update.d/30-c"] = sourcetest.File{}
	want := []string{
		"pre_update 10-a groups/web/hooks/pre_update.d/10-a",
		"update 10-a groups/common/hooks/update.d/10-a",
		"update 20-b groups/web/hooks/update.d/20-b",
		"update 25-d hosts/web1/hooks/update.d/25-d",
		"update 30-c hosts/web1/hooks/update.d/30-c",
	}
	if d := cmp.Diff(want, listed(mustHost(t, files, "web1").Scripts())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	h := mustHost(t, with(files, "groups/common/hooks/updates.d/x", run("x")), "web1")
	if err := h.Unsupported.Err(); err == nil || !strings.HasPrefix(err.Error(), `groups/common/hooks: "updates.d" is no script directory`) {
		t.Errorf("a group's bad directory: %v", err)
	}
}

func TestRefusedScripts(t *testing.T) {
	const hooks = "hosts/web1/hooks"
	long := strings.Repeat("x", 256)
	for _, tt := range []struct {
		name, path string
		file       sourcetest.File
		want       string
	}{
		{"an unknown phase", hooks + "/check.d/10-x", run("x"), hooks + `: "check.d" is no script directory`},
		{"nearly a phase", hooks + "/pre-update.d/10-x", run("x"), hooks + `: "pre-update.d" is no script directory: is it meant to be pre_update.d?`},
		{"a phase without .d", hooks + "/update/10-x", run("x"), hooks + `: "update" is no script directory: is it meant to be update.d?`},
		{"a script beside the directories", hooks + "/10-x", run("x"), hooks + `: "10-x" is no script directory`},
		{"a directory name that steers the terminal", hooks + "/\x1b[2J/x", run("x"), hooks + `: "\x1b[2J" is no script directory`},
		{"a file for the folder", hooks, run("x"), hooks + ": it is a file, and not the folder of the script directories"},
		{"a symlink for the folder", hooks, sourcetest.File{Mode: source.Symlink, Data: "../x"}, hooks + ": it is a symlink, and not the folder"},
		{"a submodule for the folder", hooks, sourcetest.File{Mode: source.Submodule, Data: strings.Repeat("1", 40)}, hooks + ": it is a submodule, and not the folder"},
		{"a symlink for a directory", hooks + "/update.d", sourcetest.File{Mode: source.Symlink, Data: "/etc"}, hooks + "/update.d: it is a symlink, and not a script directory"},
		{"a file for a directory", hooks + "/update.d", run("x"), hooks + "/update.d: it is a file, and not a script directory"},
		{"a symlinked README", hooks + "/README", sourcetest.File{Mode: source.Symlink, Data: "x"}, hooks + `: "README" is no script directory`},
		{"a symlink", hooks + "/update.d/10-x", sourcetest.File{Mode: source.Symlink, Data: "/bin/sh"}, hooks + "/update.d/10-x: it is a symlink, and symlinks are not followed"},
		{"a mask", hooks + "/update.d/10-x", sourcetest.File{Mode: source.Symlink, Data: "/dev/null"}, hooks + "/update.d/10-x: it is a symlink"},
		{"a submodule", hooks + "/update.d/10-x", sourcetest.File{Mode: source.Submodule, Data: strings.Repeat("1", 40)}, hooks + "/update.d/10-x: it is a submodule, and not a script"},
		{"a folder", hooks + "/update.d/lib/x", run("x"), hooks + "/update.d/lib: it is a folder, and not a script"},
		{"a device", hooks + "/update.d/10-x", sourcetest.File{Mode: 0o020644, Data: "x"}, hooks + "/update.d/10-x: it has the mode 020644, and not a script"},
		{"a newline", hooks + "/update.d/10-x\ny", run("x"), hooks + `/update.d: "10-x\ny" cannot be the name of a script`},
		{"not UTF-8", hooks + "/update.d/\xff", run("x"), hooks + `/update.d: "\xff" cannot be the name of a script`},
		{"a long name", hooks + "/update.d/" + long, run("x"), hooks + "/update.d: the name \"" + long[:32] + "\"… is longer than 255 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := with(text("hosts/web1.bu"), "hosts/web1/hooks/health.d/10-good", run("x"))
			if tt.path == hooks {
				files = with(text("hosts/web1.bu"), "hosts/web1/README", run("x"))
			}
			good := mustHost(t, files, "web1")
			h := mustHost(t, with(files, tt.path, tt.file), "web1")
			err := h.Unsupported.Err()
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || len(h.Unsupported) != 1 {
				t.Errorf("refused with %v, want %s", err, tt.want)
			}
			if d := cmp.Diff(listed(good.Scripts()), listed(h.Scripts()), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("the scripts beside it (-without +with):\n%s", d)
			}
			if h.Digest == good.Digest {
				t.Error("it does not count in the digest: a host would call itself up to date")
			}
		})
	}
}
