package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// writeSLS writes the folder that a host with nothing yet would be given to
// Salt with. Owners are looked up on the host that it is made on.
func (a *app) writeSLS(ctx context.Context, m *machine, hc *fleet.HostConfig, want desired.State, opener *contents.Opener, into string) (err error) {
	dir, err := filepath.Abs(into)
	if err != nil {
		return &usageError{err}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return &usageError{fmt.Errorf("--output %s is there already: the folder is made", into)}
	}
	if list := undecrypted(want); list != nil {
		return &finding.Failure{Findings: list}
	}
	nothing, err := os.MkdirTemp("", "reconf-pull-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(nothing)) }()
	empty := host.New(nothing)
	p, err := plan.Make(ctx, plan.Input{
		Host: empty, Accounts: accounts(m), Contents: opener, Services: offlineServices{systemd.Offline{Host: empty}}, Desired: want,
		Manifest: &state.Manifest{}, Pristine: state.Pristine{Dir: filepath.Join(nothing, "pristine")}, OnChange: systemd.OnChange,
		Settings: plan.Settings{OnConflict: "replace"},
	})
	if err != nil {
		return err
	}
	job := &engine.Job{Plan: p, Manifest: &p.Manifest, Request: request(hc)}
	if err := salt.Write(ctx, dir, job); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return a.print(fmt.Sprintf(`%s holds everything that Salt needs, secrets too. On the host, as root:
  salt-call -c %s --local state.apply test=True
  salt-call -c %s --local state.apply
`, into, dir, dir))
}

// undecrypted names what the agent alone may write in plain text.
func undecrypted(want desired.State) finding.List {
	var list finding.List
	for _, f := range want.Files {
		if f.Secret() {
			list = append(list, finding.Finding{
				Severity: finding.Error, Position: f.Position, Message: f.Path + " is a secret, which would lie in the folder in plain text",
				Hint: "the agent makes such a folder itself, in memory, where engine.kind is salt",
			})
		}
	}
	return list
}

func request(hc *fleet.HostConfig) engine.Request {
	r := engine.Request{Host: hc.Name, Vars: hc.Vars}
	for _, m := range hc.Migrations {
		r.Migrations = append(r.Migrations, engine.Migration{Path: m.Entry.Path, Data: m.Data})
	}
	return r
}
