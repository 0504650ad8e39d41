package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/reconf-pull/reconf-pull/internal/"

// layers is the map of the project, from the top down: a package imports only
// what stands below it.
var layers = []string{
	"cli", "lock/foreman", "lock/fleetlock", "lock/etcd", "lock/httpclient", "report", "survey", "reconcile", "units", "engine/salt/container", "engine/salt/call", "engine/salt", "engine/native", "update", "pipeline", "engine", "plan", "contents",
	"config", "fleet", "butane", "desired", "service", "hooks", "systemd", "window", "state", "lock", "signature", "secret",
	"source/gogit", "source/child", "source/checkout", "source/objects", "source", "host", "fsat", "disk", "run", "logging", "expand", "tomlfile", "finding", "atomicfile", "version",
}

// importers are the packages that alone may import a third-party module.
var importers = map[string]string{
	"github.com/go-git/go-git/v5":           "source/gogit",
	"filippo.io/age":                        "secret",
	"github.com/pjbgf/sha1cd":               "source/objects",
	"github.com/hiddeco/sshsig":             "signature",
	"github.com/ProtonMail/go-crypto":       "signature",
	"github.com/coreos/butane":              "butane",
	"github.com/coreos/go-systemd/v22":      "systemd",
	"github.com/godbus/dbus/v5":             "systemd",
	"github.com/BurntSushi/toml":            "tomlfile",
	"github.com/spf13/cobra":                "cli",
	"github.com/cyphar/filepath-securejoin": "host",
	"github.com/rogpeppe/go-internal/diff":  "report",
	"gopkg.in/yaml.v3":                      "butane",
}

// forTests must not be linked into the program. The standard testing package is,
// through a helper that Butane keeps outside its test files.
var forTests = []string{"github.com/google/go-cmp", "github.com/rogpeppe/go-internal/testscript", "github.com/reconf-pull/reconf-pull/internal/bootedhost", "github.com/reconf-pull/reconf-pull/internal/lock/locktest"}

type listed struct {
	ImportPath, Doc string
	Imports         []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Doc,Imports"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestPackagesImportDownwardsOnly(t *testing.T) {
	for _, p := range list(t, "../../internal/...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		if p.Doc == "" {
			t.Errorf("%s has no package comment", name)
		}
		rank := slices.Index(layers, name)
		if rank < 0 {
			if !slices.Contains([]string{"bootedhost", "lacking", "lock/locktest", "source/sourcetest"}, name) {
				t.Errorf("%s has no place in the layers: add it where it belongs", name)
			}
			continue
		}
		for _, imported := range p.Imports {
			below, ok := strings.CutPrefix(imported, module)
			if ok && slices.Index(layers, below) <= rank {
				t.Errorf("%s imports %s, which does not lie below it", name, below)
			}
			for third, only := range importers {
				if (imported == third || strings.HasPrefix(imported, third+"/")) && name != only {
					t.Errorf("%s imports %s: only %s does", name, imported, only)
				}
			}
		}
	}
}

func TestNothingOfTheTestsIsLinked(t *testing.T) {
	for _, p := range list(t, "-deps", ".") {
		for _, banned := range forTests {
			if p.ImportPath == banned || strings.HasPrefix(p.ImportPath, banned+"/") {
				t.Errorf("the program links %s", p.ImportPath)
			}
		}
	}
}
