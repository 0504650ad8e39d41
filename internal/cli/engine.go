package cli

import (
	"context"
	"path/filepath"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt/call"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt/container"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// engines are all that this machine has. Salt knows no other root.
func engines(m *machine) engine.Engines {
	in := &native.Engine{Host: m.host, Blobs: m.dirs.Blobs(), Secrets: m.secrets, Accounts: accounts(m), Runner: run.Host{}}
	all := engine.Engines{engine.Native: in}
	if m.host.Live() {
		for _, caller := range callers(m) {
			all[caller.Name()] = &salt.Engine{Native: in, Caller: caller, Run: m.dirs.Run}
		}
	}
	return all
}

// callers are the ways of calling Salt.
func callers(m *machine) []salt.Caller {
	c := m.config.Engine
	return []salt.Caller{
		&call.Host{Timeout: time.Duration(c.Timeout)},
		&container.Caller{
			Runner: run.Host{}, Timeout: time.Duration(c.Timeout), Log: m.log,
			Image: container.Image{
				Prebuilt: c.Container.Image, File: c.Container.File, Base: c.Container.Base,
				Scratch: filepath.Join(m.dirs.Run, "salt-image"),
			},
		},
	}
}

// chooser says which engine carries out a host config.
func chooser(m *machine) func([]engine.Migration) (engine.Choice, error) {
	return func(migrations []engine.Migration) (engine.Choice, error) {
		return engine.Choose(m.config.Engine.Kind, migrations, engine.Machine{Live: m.host.Live(), Has: run.Has})
	}
}

// sweepSalt ends and deletes what a run that was killed left of Salt.
func sweepSalt(ctx context.Context, m *machine) error {
	return salt.Sweep(ctx, m.dirs.Run, callers(m)...)
}
