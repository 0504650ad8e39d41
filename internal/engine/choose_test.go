package engine_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/engine"
)

func TestChoose(t *testing.T) {
	sls := []engine.Migration{{Path: "hosts/web1/10-move.sls"}}
	for _, c := range []struct {
		name       string
		kind       string
		migrations []engine.Migration
		programs   []string
		root       bool
		want       engine.Choice
		reason     string // of an error
		hint       string
	}{
		{name: "auto without migrations", kind: engine.Auto, programs: []string{"salt-call", "podman"}, want: engine.Choice{Name: engine.Native, Reason: "the host config has no *.sls migrations"}},
		{name: "auto with both", kind: engine.Auto, migrations: sls, programs: []string{"salt-call", "podman"}, want: engine.Choice{Name: engine.Salt, Reason: "the host config has *.sls migrations, and salt-call is there"}},
		{name: "auto with podman", kind: engine.Auto, migrations: sls, programs: []string{"podman"}, want: engine.Choice{Name: engine.SaltContainer, Reason: "the host config has *.sls migrations, and podman is there, but no salt-call"}},
		{
			name: "auto with neither", kind: engine.Auto, migrations: sls, reason: "hosts/web1/10-move.sls is a migration for Salt, and this host has neither salt-call nor podman",
			hint: "install salt-call or podman, or take the file out of the fleet repo",
		},
		{name: "native", kind: engine.Native, want: engine.Choice{Name: engine.Native, Reason: "engine.kind says so"}},
		{
			name: "native with migrations", kind: engine.Native, migrations: sls, programs: []string{"salt-call"}, reason: `hosts/web1/10-move.sls is a migration for Salt, and engine.kind is "native"`,
			hint: `set engine.kind = "auto", or take the file out of the fleet repo`,
		},
		{name: "salt without migrations", kind: engine.Salt, want: engine.Choice{Name: engine.Salt, Reason: "engine.kind says so"}},
		{name: "a container without podman", kind: engine.SaltContainer, migrations: sls, want: engine.Choice{Name: engine.SaltContainer, Reason: "engine.kind says so"}},
		{name: "another root", kind: engine.Salt, migrations: sls, programs: []string{"salt-call"}, root: true, want: engine.Choice{Name: engine.Native, Reason: "Salt knows no other root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := engine.Choose(c.kind, c.migrations, engine.Machine{Live: !c.root, Has: func(p string) bool { return slices.Contains(c.programs, p) }})
			if c.reason == "" {
				if err != nil || got != c.want {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			var wrong *engine.ChoiceError
			if !errors.As(err, &wrong) || wrong.Reason != c.reason || wrong.Hint() != c.hint {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// Migrations do the same for who has no vars, however that is written down.
func TestSameWork(t *testing.T) {
	sls := []engine.Migration{{Path: "a.sls", Data: []byte("x")}}
	one := &engine.Request{Migrations: sls, Vars: map[string]any{}}
	for _, c := range []struct {
		other engine.Request
		want  bool
	}{
		{engine.Request{Migrations: sls}, true},
		{engine.Request{Migrations: sls, Vars: map[string]any{"a": 1}}, false},
		{engine.Request{Migrations: []engine.Migration{{Path: "a.sls", Data: []byte("y")}}}, false},
		{engine.Request{}, false},
	} {
		if got := one.SameWork(&c.other); got != c.want {
			t.Errorf("%v: %v", c.other, got)
		}
	}
}
