package systemd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Kind is what a job does.
type Kind string

// Reload reloads a unit that runs, restarts it if it cannot reload, and does
// nothing to one that does not run; nor does TryRestart.
const (
	Start      Kind = "start"
	Stop       Kind = "stop"
	Restart    Kind = "restart"
	Reload     Kind = "reload"
	TryRestart Kind = "try-restart"
)

// Job is one operation on one unit.
type Job struct {
	Unit string
	Kind Kind
	// StopFirst are what a socket starts. The socket and they are stopped before
	// any job is queued, and those that ran are started again by jobs that are added.
	StopFirst []string
}

// Outcome is how a job ended, or why it was not waited for.
type Outcome string

const (
	Done     Outcome = "done"
	Failed   Outcome = "failed"
	Unknown  Outcome = "unknown"  // systemd has no such unit
	Running  Outcome = "running"  // a oneshot that has not ended in time: counts as started
	TimedOut Outcome = "timeout"  // not done in time
	Queued   Outcome = "queued"   // ordered after the agent's own units: waiting would never end
	Canceled Outcome = "canceled" // we were told to stop waiting
)

// Result is what became of a job. Err is set where the job failed, and says how.
type Result struct {
	Job
	Outcome Outcome
	Err     error
}

// OwnUnits are the units that a run is part of: a job that waits for one of
// them waits for the run to end.
var OwnUnits = []string{"reconf-pull.service", "reconf-pull-resume.service"}

// Apply queues all jobs in the order of their dependencies, without waiting in
// between, and then waits for them together, at most timeout. A job that fails
// does not stop the others: its Result says so, and the error is only for what
// concerns all of them. Results are in the order of queuing.
func (m *Manager) Apply(ctx context.Context, jobs []Job, timeout time.Duration) ([]Result, error) {
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	stopped, results, err := m.stopFirst(ctx, waiting, jobs)
	if err != nil {
		return results, err
	}
	jobs = withStarts(jobs, stopped)

	after, err := m.after(ctx, jobs)
	if err != nil {
		return results, err
	}
	queue := order(jobs, after)
	pending := m.queue(ctx, queue)
	// Only now: a unit that was not loaded before is in no other unit's Before=.
	late, lateErr := m.afterOwn(ctx)
	for _, p := range pending {
		if p.result == nil && p.job.Kind != Stop {
			// Without an answer nothing is safe to wait for.
			if lateErr != nil || late[p.job.Unit] || late[m.id(ctx, p.job.Unit)] {
				p.result = &Result{Job: p.job, Outcome: Queued}
			}
		}
	}
	return append(results, m.await(ctx, waiting, pending)...), errors.Join(lateErr, ctx.Err())
}

// stopFirst stops what the jobs want stopped and returns what had been running.
// A socket goes before its services: until it is closed, the next connection
// starts them again, and then systemd refuses to start the socket.
func (m *Manager) stopFirst(ctx, waiting context.Context, jobs []Job) ([]string, []Result, error) {
	var units []string
	var stops []Job
	for _, job := range jobs {
		if len(job.StopFirst) > 0 {
			units = append(units, job.StopFirst...)
			stops = append(stops, Job{Unit: job.Unit, Kind: Stop})
		}
	}
	if len(units) == 0 {
		return nil, nil, nil
	}
	slices.Sort(units)
	units = slices.Compact(units)
	states, err := m.States(ctx, units)
	if err != nil {
		return nil, nil, err
	}
	var active []string
	for _, unit := range units {
		if states[unit].Active() {
			active = append(active, unit)
		}
		stops = append(stops, Job{Unit: unit, Kind: Stop})
	}
	return active, m.await(ctx, waiting, m.queue(ctx, stops)), nil
}

// withStarts sees to it that what was stopped first comes back.
func withStarts(jobs []Job, stopped []string) []Job {
	jobs = slices.Clone(jobs)
	for _, unit := range stopped {
		at := slices.IndexFunc(jobs, func(job Job) bool { return job.Unit == unit })
		switch {
		case at < 0:
			jobs = append(jobs, Job{Unit: unit, Kind: Start})
		case jobs[at].Kind == Reload, jobs[at].Kind == TryRestart:
			jobs[at].Kind = Start // they do nothing to a unit that does not run
		}
	}
	return jobs
}

// after reads which of the jobs' units are ordered after which others. Both
// directions are read: a unit that is not loaded is missing in what the units
// loaded before it say.
func (m *Manager) after(ctx context.Context, jobs []Job) (map[string][]string, error) {
	after := map[string][]string{}
	for _, job := range jobs {
		before, err := m.names(ctx, job.Unit, "Before")
		if err == nil {
			var earlier []string
			earlier, err = m.names(ctx, job.Unit, "After")
			after[job.Unit] = append(after[job.Unit], earlier...)
		}
		for _, later := range before {
			after[later] = append(after[later], job.Unit)
		}
		if ctx.Err() != nil {
			// Everything else, such as a name that is none, fails where it is queued.
			return nil, err
		}
	}
	return after, nil
}

// order sorts jobs so that each comes after those its unit is ordered after,
// and stops the other way round, before everything else; otherwise by name.
// An ordering cycle is cut at its first name: systemd has to cut it, too.
func order(jobs []Job, after map[string][]string) []Job {
	byUnit := map[string][]Job{}
	var units []string
	for _, job := range jobs {
		if byUnit[job.Unit] == nil {
			units = append(units, job.Unit)
		}
		byUnit[job.Unit] = append(byUnit[job.Unit], job)
	}
	slices.Sort(units)
	var starts, stops []Job
	seen := map[string]bool{}
	var visit func(unit string)
	visit = func(unit string) {
		if seen[unit] {
			return
		}
		seen[unit] = true
		for _, earlier := range slices.Sorted(slices.Values(after[unit])) {
			if byUnit[earlier] != nil {
				visit(earlier)
			}
		}
		for _, job := range byUnit[unit] {
			if job.Kind == Stop {
				stops = append(stops, job)
			} else {
				starts = append(starts, job)
			}
		}
	}
	for _, unit := range units {
		visit(unit)
	}
	slices.Reverse(stops)
	return append(stops, starts...)
}

// pendingJob is a job that was queued; result is set when it need not be waited for.
type pendingJob struct {
	job    Job
	done   chan string
	result *Result
}

func (m *Manager) queue(ctx context.Context, jobs []Job) []*pendingJob {
	var pending []*pendingJob
	for _, job := range jobs {
		p := &pendingJob{job: job, done: make(chan string, 1)}
		const replace = "replace"
		var err error
		switch job.Kind {
		case Start:
			_, err = m.conn.StartUnitContext(ctx, job.Unit, replace, p.done)
		case Stop:
			_, err = m.conn.StopUnitContext(ctx, job.Unit, replace, p.done)
		case Restart:
			_, err = m.conn.RestartUnitContext(ctx, job.Unit, replace, p.done)
		case TryRestart:
			_, err = m.conn.TryRestartUnitContext(ctx, job.Unit, replace, p.done)
		case Reload:
			_, err = m.conn.ReloadOrTryRestartUnitContext(ctx, job.Unit, replace, p.done)
		default:
			err = fmt.Errorf("internal error: job kind %q", job.Kind)
		}
		switch {
		case err == nil:
		case notFound(err) && job.Kind == Stop:
			p.result = &Result{Job: job, Outcome: Done} // what is not there does not run
		case notFound(err):
			p.result = &Result{Job: job, Outcome: Unknown, Err: fmt.Errorf("%s %s: no such unit", job.Kind, job.Unit)}
		default:
			p.result = &Result{Job: job, Outcome: Failed, Err: fmt.Errorf("%s %s: %w", job.Kind, job.Unit, err)}
		}
		pending = append(pending, p)
	}
	return pending
}

func (m *Manager) await(ctx, waiting context.Context, pending []*pendingJob) []Result {
	var results []Result
	for _, p := range pending {
		if p.result == nil {
			select {
			case answer := <-p.done:
				p.result = m.ended(ctx, p.job, answer)
			case <-waiting.Done():
				select {
				case answer := <-p.done: // came with the bell
					p.result = m.ended(ctx, p.job, answer)
				default:
					p.result = m.overdue(ctx, p.job)
				}
			}
		}
		results = append(results, *p.result)
	}
	return results
}

// ended judges what systemd said when the job left its queue
// (org.freedesktop.systemd1(5), JobRemoved).
func (m *Manager) ended(ctx context.Context, job Job, answer string) *Result {
	switch answer {
	case "done", "skipped":
		return &Result{Job: job, Outcome: Done}
	case "canceled", "merged", "once", "collected":
		// Another job took this one's place: what counts is where the unit is.
		states, err := m.States(ctx, []string{job.Unit})
		if err == nil && states[job.Unit].Active() == (job.Kind != Stop) {
			return &Result{Job: job, Outcome: Done}
		}
	}
	return &Result{Job: job, Outcome: Failed, Err: m.failure(ctx, job, answer)}
}

func (m *Manager) failure(ctx context.Context, job Job, answer string) error {
	detail := []string{answer}
	if states, err := m.States(ctx, []string{job.Unit}); err == nil {
		detail = append(detail, Why(states[job.Unit]))
	}
	detail = slices.Compact(slices.DeleteFunc(detail, func(s string) bool { return s == "" }))
	return fmt.Errorf("%s %s: %s", job.Kind, job.Unit, strings.Join(detail, ", "))
}

// Why is systemd's own word for what happened to a unit that failed.
func Why(state UnitState) string {
	switch {
	case state.LoadState != "" && state.LoadState != "loaded":
		return state.LoadState
	case state.Result == "" || state.Result == "success":
		return ""
	case state.Result == "exit-code":
		return fmt.Sprintf("exit-code %d", state.ExitStatus)
	}
	return state.Result
}

// overdue judges a job that has not ended in time.
func (m *Manager) overdue(ctx context.Context, job Job) *Result {
	if ctx.Err() != nil {
		return &Result{Job: job, Outcome: Canceled, Err: fmt.Errorf("waiting for %s: %w", job.Unit, ctx.Err())}
	}
	states, err := m.States(ctx, []string{job.Unit})
	state := states[job.Unit]
	if err == nil && job.Kind != Stop && state.Type == "oneshot" && state.ActiveState == "activating" {
		return &Result{Job: job, Outcome: Running}
	}
	where := strings.Trim(state.ActiveState+" "+state.SubState, " ")
	return &Result{Job: job, Outcome: TimedOut, Err: fmt.Errorf("%s %s: not done in time, it is %s", job.Kind, job.Unit, where)}
}

// afterOwn are the units that are ordered after the agent's own, directly or
// through others. Before= is walked from the few own units, which have few
// successors, and not After= from every unit, which leads to half of the boot;
// systemd keeps both directions of all loaded units.
func (m *Manager) afterOwn(ctx context.Context) (map[string]bool, error) {
	return closure(OwnUnits, func(unit string) ([]string, error) { return m.names(ctx, unit, "Before") })
}

// closure walks next from all of from; each unit is asked once.
func closure(from []string, next func(unit string) ([]string, error)) (map[string]bool, error) {
	const most = 10000 // units; a host has hundreds
	found := map[string]bool{}
	queue := slices.Clone(from)
	for len(queue) > 0 && len(found) <= most {
		unit := queue[0]
		queue = queue[1:]
		names, err := next(unit)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			// A device has no job that waits, and hundreds of units come after it.
			if !found[name] && path.Ext(name) != ".device" {
				found[name] = true
				queue = append(queue, name)
			}
		}
	}
	if len(found) > most {
		return nil, fmt.Errorf("more than %d units are ordered after %s", most, from[0])
	}
	return found, nil
}

// id is the unit's own name, for one that is known by an alias.
func (m *Manager) id(ctx context.Context, unit string) string {
	value, err := m.conn.GetUnitPropertyContext(ctx, unit, "Id")
	if err != nil {
		return unit
	}
	id, _ := value.Value.Value().(string)
	return id
}
