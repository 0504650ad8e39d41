// Package hooks runs the script directories of a phase: those of the host's own
// and those of its layers in the fleet repo.
//
// Its one rule: nothing is skipped silently. What lies in such a directory runs,
// or is named with the reason why not.
package hooks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// Phase is the name of a script directory without its .d.
type Phase string

// The phases, in the order in which a change comes to them.
const (
	NeedsUpdate   Phase = "needs_update" // a question: see Ask
	PreUpdate     Phase = "pre_update"
	PreConfigure  Phase = "pre_configure"
	Configure     Phase = "configure"
	PostConfigure Phase = "post_configure"
	Migration     Phase = "migration" // each script once: see RunOnce
	Update        Phase = "update"
	NeedsReboot   Phase = "needs_reboot" // a question: see Ask
	PostUpdate    Phase = "post_update"
	Health        Phase = "health"
	Error         Phase = "error"
)

// Phases is all of them, in that order.
var Phases = []Phase{
	NeedsUpdate, PreUpdate, PreConfigure, Configure, PostConfigure, Migration, Update, NeedsReboot, PostUpdate, Health, Error,
}

// Dir is the directory of the host's own scripts: <phase>.d/ lies in it.
const Dir = "/etc/reconf-pull/hooks"

// Runner runs the scripts of the phases.
type Runner struct {
	Host *host.Host
	// Dirs are searched for <phase>.d, the first one that has a name wins.
	Dirs    []string
	Timeout time.Duration // of one script
	// MaxLines is how much of what one script prints is passed on.
	MaxLines int
	Log      logrus.FieldLogger
	// Output gets each line of a script ("update.d/10-dnf") as it comes: valid
	// UTF-8 of a bounded length, without control characters.
	Output func(script, line string)
	// Sync makes durable what scripts wrote, before anybody notes that they have run:
	// scripts do not sync, and none runs again because the power failed later. nil is
	// for tests without power cuts.
	Sync func() error
}

// Failure is a script that did not end well.
type Failure struct {
	Script string   // update.d/10-dnf
	Err    error    // its exit status or signal, its time limit, or what ended the run
	Tail   []string // the end of what it printed
}

func (f *Failure) Error() string {
	text := f.Script + ": " + f.Err.Error()
	if len(f.Tail) > 0 {
		text += ": " + strings.Join(f.Tail, "\n")
	}
	return text
}

func (f *Failure) Unwrap() error { return f.Err }

// Run runs the scripts of a phase. The first one that fails, with a *Failure,
// stops the phase. env is the RECONF_… variables but RECONF_PHASE.
func (r *Runner) Run(ctx context.Context, phase Phase, env map[string]string) error {
	scripts, err := r.scripts(phase)
	if err != nil {
		return err
	}
	for _, script := range scripts {
		if err := r.run(ctx, phase, script, env); err != nil {
			return err
		}
	}
	if len(scripts) > 0 {
		r.sync()
	}
	return nil
}

func (r *Runner) sync() {
	if r.Sync == nil {
		return
	}
	// A disk that fails need not be one that scripts write to.
	if err := r.Sync(); err != nil {
		r.Log.Warnf("what scripts wrote may not survive a power cut: %v", err)
	}
}

// Ask runs the scripts of a question, all of them. A script says no by status
// 0 and yes by 1 to 125; why names those that said yes, with the last line of
// each. A script that is broken (126, 127, death by a signal, its time limit)
// has said nothing: err holds its *Failure beside the answer of the others.
// When ctx has ended the answer is worth nothing.
func (r *Runner) Ask(ctx context.Context, phase Phase, env map[string]string) (yes bool, why string, err error) {
	scripts, err := r.scripts(phase)
	if err != nil {
		return false, "", err
	}
	var (
		reasons []string
		broken  []error
	)
	for _, script := range scripts {
		err := r.run(ctx, phase, script, env)
		if ctx.Err() != nil {
			return false, "", err
		}
		var (
			failure *Failure
			ended   *run.Error
		)
		switch {
		case err == nil:
		case errors.As(err, &failure) && errors.As(err, &ended) && ended.ExitCode() >= 1 && ended.ExitCode() <= 125:
			reason := failure.Script
			if n := len(failure.Tail); n > 0 {
				reason += ": " + failure.Tail[n-1]
			}
			reasons = append(reasons, reason)
		default:
			broken = append(broken, err)
		}
	}
	return len(reasons) > 0, strings.Join(reasons, "; "), errors.Join(broken...)
}

// Pending are those scripts of a phase whose content done does not know; of
// several with the same content, the first. done is asked with the hash.
func (r *Runner) Pending(phase Phase, scripts []Script, done func(hash string) (bool, error)) (pending []Script, err error) {
	seen := map[string]bool{}
	for _, script := range scripts {
		if script.Hash == "" {
			if script.Hash, err = r.contentHash(script.Path); err != nil {
				return nil, fmt.Errorf("reading %s: %w", script.name(phase), err)
			}
		}
		was, err := done(script.Hash)
		if err != nil {
			return nil, err
		}
		if !was && !seen[script.Hash] {
			pending = append(pending, script)
		}
		seen[script.Hash] = true
	}
	return pending, nil
}

// RunOnce is Run for the pending scripts. mark is called with the hash of each
// one that has succeeded, before the next one is started.
func (r *Runner) RunOnce(ctx context.Context, phase Phase, env map[string]string,
	done func(hash string) (bool, error), mark func(hash string) error,
) error {
	scripts, err := r.scripts(phase)
	if err != nil {
		return err
	}
	pending, err := r.Pending(phase, scripts, done)
	if err != nil {
		return err
	}
	for _, script := range pending {
		if err := r.run(ctx, phase, script, env); err != nil {
			return err
		}
		r.sync()
		if err := mark(script.Hash); err != nil {
			return fmt.Errorf("noting that %s has run: %w", script.name(phase), err)
		}
	}
	return nil
}

func (r *Runner) contentHash(path string) (string, error) {
	found, err := r.resolve(path)
	if err != nil {
		return "", err
	}
	f, err := os.Open(found.path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// scripts is List for somebody who runs them: the rest goes to the log.
func (r *Runner) scripts(phase Phase) ([]Script, error) {
	if !r.Host.Live() {
		return nil, errors.New("internal error: scripts of a root directory cannot be run")
	}
	scripts, ignored, err := r.List(phase)
	for _, one := range ignored {
		log := r.Log.WithField("hook", one.Path)
		if one.Meant {
			log.Debugf("%s is not run: %s", one.Path, one.Reason)
		} else {
			log.Warnf("%s is not run: %s", one.Path, one.Reason)
		}
	}
	return scripts, err
}

func (r *Runner) run(ctx context.Context, phase Phase, script Script, env map[string]string) error {
	name := script.name(phase)
	log := r.Log.WithField("hook", name)
	environment, err := environ(phase, env)
	if err != nil {
		return err
	}
	lines := &lines{most: r.MaxLines, emit: func(line string) { r.Output(name, line) }}
	log.Debug("started")
	began := r.Host.Now()
	group := run.Group{Argv: []string{script.Path}, Env: environment, Timeout: r.Timeout, Output: lines}
	err = group.Run(ctx)
	tail := lines.close()
	if err == nil {
		log.Debugf("finished in %s", r.Host.Now().Sub(began).Round(time.Millisecond))
		return nil
	}
	var ended *run.Error
	if errors.As(err, &ended) {
		err = &ending{ended}
	}
	return &Failure{Script: name, Err: err, Tail: tail}
}

// ending says how a program ended, without its name.
type ending struct{ err *run.Error }

func (e *ending) Error() string {
	var starting *fs.PathError
	if !errors.As(e.err, &starting) {
		return e.err.Err.Error()
	}
	if errors.Is(starting, fs.ErrPermission) {
		return fmt.Sprintf("starting it: %v: its interpreter must be executable, and the file system that it lies on must not be mounted with noexec", starting.Err)
	}
	if errors.Is(starting, fs.ErrNotExist) || errors.Is(starting, syscall.ENOEXEC) {
		return fmt.Sprintf("starting it: %v: its first line has to name an interpreter, as in #!/bin/sh", starting.Err)
	}
	return fmt.Sprintf("starting it: %v", starting.Err)
}

func (e *ending) Unwrap() error { return e.err }

// maxValue keeps one variable below what execve(2) takes.
const maxValue = 32 << 10

func environ(phase Phase, env map[string]string) ([]string, error) {
	all := []string{"RECONF_PHASE=" + string(phase)}
	for name, value := range env {
		if !strings.HasPrefix(name, "RECONF_") || name == "RECONF_PHASE" {
			return nil, fmt.Errorf("internal error: scripts get no variable %s", name)
		}
		value = strings.ReplaceAll(value, "\x00", "")
		if len(value) > maxValue {
			value = strings.ToValidUTF8(value[:maxValue], "") + "…"
		}
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return all, nil
}
