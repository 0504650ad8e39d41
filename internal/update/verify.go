package update

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/pipeline"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// verify looks, in another boot than the one that wrote them, whether the files of
// the change are still there: another OS deployment brings its own /etc, and a disk
// may have lost what it said was durable. Then configure is done again, and what
// follows from files; its backups are those of the pin. Within one boot nothing is
// lost, and what differs is somebody's.
func (u *Update) verify(ctx context.Context, change *state.Change, job *engine.Job) error {
	at := slices.IndexFunc(change.Tasks, func(t state.Task) bool { return t.Name == "configure" })
	if at < 0 {
		return nil
	}
	configure := &change.Tasks[at]
	if configure.Status != state.Done || configure.Attempts == 0 || configure.BootID == u.bootID() {
		return nil
	}
	lost, err := u.lost(ctx, job)
	if err != nil || len(lost) == 0 {
		return err
	}
	again := []string{"configure", "post-configure", "migration", "post-update", "health"}
	if why := u.WillReboot(job.Plan); why != "" && u.rebooted(change) {
		// This boot began without the files that it was for.
		change.Reboot = &state.Reboot{Reason: why, BootID: u.bootID(), Since: u.Host.Now()}
		again = append(again, "reboot")
	}
	what := fmt.Sprintf("%d of its paths are not as it left them, %s is the first", len(lost), lost[0])
	if configure.Attempts >= u.MaxAttempts {
		why := fmt.Errorf("begun %d times, and in this boot %s", configure.Attempts, what)
		configure.Status, configure.Detail = state.Failed, why.Error()
		return &pipeline.StepError{Step: configure.Name, Err: why}
	}
	u.Log.WithField("change", change.ID).Warnf("configure is done again after a boot: %s", what)
	u.inhibit(ctx, change)
	for i := range change.Tasks {
		if task := &change.Tasks[i]; slices.Contains(again, task.Name) {
			task.Status, task.Detail, task.Reboot = state.Todo, "", nil
		}
	}
	return nil
}

// lost are the paths that the change wrote, or removed, and that are not so.
func (u *Update) lost(ctx context.Context, job *engine.Job) ([]string, error) {
	entries := job.Manifest.Lookup()
	written := &state.Manifest{}
	late, err := state.ReadBlocked(job.Dir)
	if err != nil {
		return nil, err
	}
	var lost []string
	for i := range job.Plan.Items {
		item := &job.Plan.Items[i]
		left := slices.ContainsFunc(late, func(b state.Blocked) bool { return b.Path == item.Path })
		switch entry := entries[item.Path]; {
		case !item.Write || left:
		case item.After.Kind != disk.Absent && entry != nil:
			written.Entries = append(written.Entries, *entry)
		case item.Before.Kind != disk.Directory: // one that is not empty stays
			now, err := u.Host.Files.Read(ctx, item.Path, max(fsat.Most, item.Before.Size))
			var blocked *fsat.BlockedError
			if errors.As(err, &blocked) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if now.Kind != disk.Absent && now.Equal(item.Before) {
				lost = append(lost, item.Path)
			}
		}
	}
	drifted, _, err := plan.Drifted(ctx, u.Host, written)
	return append(lost, drifted...), err
}
