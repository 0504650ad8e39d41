package update

import (
	"context"
	"fmt"

	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// osUpdate runs update.d.
type osUpdate struct{ script }

func (s *osUpdate) Idle() string {
	if !s.change.OSWork {
		return "no OS work is due"
	}
	return ""
}

func (s *osUpdate) Run(ctx context.Context) error {
	s.u.letGo() // the OS updater may look for inhibitors, or reboot by itself
	return s.script.Run(ctx)
}

// AskOSWork asks needs_update.d whether there is OS work; why says so. A broken
// script says neither yes nor no, and is reported at the end of the run.
func (u *Update) AskOSWork(ctx context.Context) (why string, err error) {
	st := u.State
	if u.Hooks == nil || st.HeldOSWork != nil || st.Reboot != nil {
		return "", nil // held, or whether it was in vain shows after the reboot
	}
	scripts := u.appliedHooks()
	if !runnable(scripts, hooks.NeedsUpdate) {
		return "", nil
	}
	yes, why, err := scripts.Ask(ctx, hooks.NeedsUpdate, u.questionEnvironment())
	if ctx.Err() != nil {
		return "", err
	}
	if err != nil {
		u.broken(err)
		err = nil
	}
	now := u.Host.Deployment()
	switch done := st.Updated; {
	case done == nil:
	case now == done.From && yes:
		return "", u.holdOSWork("needs-update", "the deployment that update.d was run on is booted again, and there is still OS work: "+why)
	case now == done.From && done.To == "":
		st.Updated = nil
		err = state.Save(u.Dirs, st)
	case done.To == "":
		st.Updated = &state.OSUpdate{From: done.From, To: now}
		err = state.Save(u.Dirs, st)
	}
	return why, err
}

// questionEnvironment is what a question outside a change may know.
func (u *Update) questionEnvironment() map[string]string {
	applied := u.State.Applied
	if applied == nil {
		applied = &state.Applied{}
	}
	return environment(&state.Change{Host: applied.Host, Commit: applied.Commit, Digest: applied.Digest}, &engine.Job{},
		map[string]string{"RECONF_CHANGED_UNITS_FILE": "", "RECONF_CHANGED_PATHS_FILE": ""})
}

func (u *Update) holdOSWork(step, why string) error {
	u.State.HeldOSWork = &state.OSWorkHold{Deployment: u.Host.Deployment(), Step: step, Reason: why, Time: u.Host.Now()}
	u.State.Updated = nil
	return state.Save(u.Dirs, u.State)
}

// judgeOSWork looks, once OS work was done, whether there still is the same: then
// it would be done for ever. The caller saves.
func (u *Update) judgeOSWork(ctx context.Context, c *state.Change, job *engine.Job) {
	if !c.OSWork {
		return
	}
	now := u.Host.Deployment()
	u.State.Updated = &state.OSUpdate{From: c.Deployment}
	if c.Reboot != nil && !u.rebooted(c) {
		return // shows after the reboot
	}
	if now != c.Deployment {
		u.State.Updated.To = now
		return
	}
	u.State.Updated = nil
	if u.Hooks == nil || !runnable(u.hooks(job), hooks.NeedsUpdate) {
		return
	}
	yes, why, err := u.hooks(job).Ask(ctx, hooks.NeedsUpdate, u.questionEnvironment())
	if err != nil && ctx.Err() == nil {
		u.broken(err)
	}
	if yes {
		u.State.HeldOSWork = &state.OSWorkHold{
			Deployment: now, Step: "needs-update", Time: u.Host.Now(),
			Reason: fmt.Sprintf("update.d was run, and needs_update.d still says yes: %s", why),
		}
	}
}
