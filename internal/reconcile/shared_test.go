package reconcile_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

// TestShared translates hosts that are alike one after another with one memory,
// and each by itself: nothing of one may show in another.
func TestShared(t *testing.T) {
	const head = "variant: fcos\nversion: 1.6.0\n"
	file := func(path, rest string) string { return "    - {path: " + path + ", " + rest + "}\n" }
	own := map[string]string{ // %[1]s is the name of the host
		"plain":      head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}") + file("/etc/b", "contents: {local: files/%[1]s/b}, mode: 0600"),
		"quoted":     head + "storage:\n  files:\n" + file("/etc/a", `contents: {local: "files/%[1]s/a"}`) + file("/etc/b", `contents: {local: 'files/%[1]s/b'}`),
		"block":      head + "storage:\n  files:\n    - path: /etc/a\n      append:\n        - local: files/%[1]s/a\n        - local: files/%[1]s/b\n        - inline: more\n",
		"named":      head + "# of %[1]s\nstorage:\n  files:\n" + file("/etc/%[1]s", "contents: {local: files/%[1]s/a}"),
		"twice":      head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}") + file("/etc/b", "contents: {local: ./files/%[1]s/a}") + file("/etc/c", "contents: {local: files/%[1]s/a}"),
		"same":       head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/common}"),
		"blank":      head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}") + file("/etc/%[1]s", "contents: {inline: blank-0}"),
		"umlaut":     head + "# größer\nstorage:\n  files:\n" + file("/etc/ü", "contents: {local: files/%[1]s/a}"),
		"alias":      head + "storage:\n  files:\n    - path: /etc/a\n      contents: &c {local: files/%[1]s/a}\n    - path: /etc/b\n      contents: *c\n",
		"unit":       head + "systemd:\n  units:\n    - name: a.service\n      contents_local: files/%[1]s/unit\nstorage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}"),
		"both":       head + "systemd:\n  units:\n    - name: a.service\n      contents_local: files/%[1]s/unit\nstorage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/unit}"),
		"one-unit":   head + "systemd:\n  units:\n    - name: a.service\n      contents_local: files/unit\nstorage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}"),
		"tree":       head + "storage:\n  trees: [{local: files/%[1]s, path: /srv}]\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}"),
		"template":   head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/t.tmpl}") + file("/etc/b", "contents: {local: files/%[1]s/b}"),
		"missing":    head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}") + file("/etc/b", "contents: {local: files/%[1]s/only-2}"),
		"overridden": head + "storage:\n  files:\n" + file("/etc/common", "overwrite: true, contents: {local: files/%[1]s/a}"),
		"pointer":    head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/pointer}"),
		"warned":     head + "storage:\n  files:\n" + file("/etc/a", "mode: 420, contents: {local: files/%[1]s/a}"),
		"conflict":   head + "storage:\n  links: [{path: /etc/common, target: x}]\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a}"),
		"hash":       head + "storage:\n  files:\n" + file("/etc/a", "contents: {local: files/%[1]s/a, verification: {hash: sha256-ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}}"),
	}
	const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1\n"
	files := map[string]string{
		"fleet.toml":              "[group.all]\nhosts = [\"*\"]\nlayers = [\"groups/all\", \"groups/some.bu\"]\n[group.odd]\nhosts = [\"*-3\"]\nlayers = [\"groups/odd.bu\"]\n",
		"groups/all/a.bu":         head + "storage:\n  files:\n" + file("/etc/common", "contents: {local: files/common}"),
		"groups/some.bu":          head + "systemd:\n  units: [{name: x.service, enabled: true}]\n",
		"groups/odd.bu":           head + "storage:\n  files:\n" + file("/etc/odd", "contents: {local: files/common}"),
		"files/common":            "c",
		"files/unit":              "[Service]\nExecStart=/bin/true\n",
		"files/t.tmpl":            "{{ .Host.Name }}",
		"files/missing-2/only-2":  "2",
		"files/pointer-3/pointer": pointer,
	}
	const each = 3
	for kind, layer := range own {
		for n := range each {
			name := fmt.Sprintf("%s-%d", kind, n+1)
			text := layer
			if kind != "same" {
				text = fmt.Sprintf(layer, name)
			}
			files["hosts/"+name+".bu"] = text
			files["files/"+name+"/a"] = "a"[:min(1, n+1)]
			files["files/"+name+"/b"] = "b of " + name
			files["files/"+name+"/unit"] = fmt.Sprintf("[Service]\nExecStart=/bin/echo %d\n", n/2)
			if kind == "pointer" && n < 2 {
				files["files/"+name+"/pointer"] = "small"
			}
		}
	}
	tree := sourcetest.Text(files)
	repo, err := fleet.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		Want     desired.State
		Findings finding.List
		Failed   string
	}
	translated := func(name string, shared *reconcile.Shared) (r result) {
		hc, err := repo.Host(fleet.Machine{Names: []string{name}})
		if err != nil {
			t.Fatal(err)
		}
		translation := reconcile.Translation{Tree: tree, Config: hc, Strict: true, Contents: &contents.Opener{Tree: tree}, Shared: shared}
		r.Want, r.Findings, err = translation.Run(context.Background())
		if err != nil {
			r.Failed = err.Error()
		}
		return r
	}
	hosts, err := repo.Hosts()
	if err != nil || len(hosts) != each*len(own) {
		t.Fatal(hosts, err)
	}
	shared := reconcile.NewShared(t.TempDir())
	valid, broken := 0, 0
	for _, name := range hosts {
		alone, together := translated(name, nil), translated(name, shared)
		if diff := cmp.Diff(alone, together); diff != "" {
			t.Errorf("%s (- alone, + after others):\n%s", name, diff)
		}
		if alone.Failed == "" {
			valid++
		} else {
			broken++
		}
	}
	if broken != 3 {
		t.Errorf("%d valid and %d broken, want 3", valid, broken)
	}
}
