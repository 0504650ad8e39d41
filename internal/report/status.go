package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/update"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// StatusSchema is the version of the status document. Fields are only added
// within one version.
const StatusSchema = 1

// Status is what one host knows about itself.
type Status struct {
	Schema  int    `json:"schema"`
	Version string `json:"version"`
	Engine  string `json:"engine"`
	// Why it is that engine, which carried out the applied generation.
	EngineReason string `json:"engine_reason,omitempty"`

	Health  Health         `json:"health"`
	Applied *state.Applied `json:"applied,omitempty"`
	Change  *state.Change  `json:"change,omitempty"`
	Held    *state.Hold    `json:"held,omitempty"`
	// HeldOSWork keeps update.d and pending reboots from being tried again.
	HeldOSWork *state.OSWorkHold `json:"held_os_work,omitempty"`
	// Reboot was put off; Spent says why it is not done in the next window either.
	Reboot *state.Reboot `json:"reboot_pending,omitempty"`
	Spent  string        `json:"reboots_spent,omitempty"`
	// Windows are reboot.windows; Opens is the next opening, zero while one is open.
	Windows   []string          `json:"windows,omitempty"`
	Opens     time.Time         `json:"window_opens,omitzero"`
	Lock      *state.FleetLock  `json:"fleet_lock,omitempty"`
	Suspended *state.Suspension `json:"suspended,omitempty"`
	Last      *reconcile.Last   `json:"last,omitempty"`
	// Blocked are paths that somebody keeps from being managed, as the last run saw it.
	Blocked []state.Blocked    `json:"blocked,omitempty"`
	Managed int                `json:"managed_paths"`
	Notes   []string           `json:"notes,omitempty"` // conflicts and what was left behind by the last change
	Next    string             `json:"next"`
	Source  string             `json:"source,omitempty"`
	Subject *source.CommitInfo `json:"commit,omitempty"`
	// Verified is the newest verified commit of the branch that is followed: the
	// next one has to descend from it.
	Verified *state.Mark `json:"verified,omitempty"`
}

// Health decides the exit status.
type Health string

// The healths of a host.
const (
	Healthy Health = "healthy" // exit 0
	Failing Health = "failing" // exit 1
	Pending Health = "pending" // exit 3
)

// ReadStatus gathers the status from the state directory.
func ReadStatus(dirs state.Dirs, windows window.Windows, now time.Time) (*Status, error) {
	last, err := readLast(dirs)
	if err != nil {
		return nil, err
	}
	st, err := state.Load(dirs)
	if errors.Is(err, os.ErrPermission) && last != nil {
		// The state is for root alone; what the last run found is for everybody.
		s := &Status{Schema: StatusSchema, Engine: "native", Last: last, Health: Healthy, Next: "ask root for the rest: sudo reconf-pull status"}
		if last.Error != "" || len(last.Blocked) > 0 {
			s.Health = Failing
		}
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s := &Status{
		Schema: StatusSchema, Engine: "native", Applied: st.Applied, Change: st.Change, Held: st.Held, Last: last,
		HeldOSWork: st.HeldOSWork, Reboot: st.Reboot, Lock: st.Lock,
	}
	ref := st.Ref
	if ref == "" && st.Applied != nil {
		ref = st.Applied.Ref
	}
	if mark := st.Mark(ref); mark.Commit != "" {
		s.Verified = &mark
	}
	for _, w := range windows {
		s.Windows = append(s.Windows, w.String())
	}
	if !windows.Open(now) {
		s.Opens = windows.Next(now)
	}
	if st.Applied != nil {
		s.Spent = update.SpentReboots(st, st.Applied.Digest, now)
	}
	if s.Suspended, err = state.Suspended(dirs, now); err != nil {
		return nil, err
	}
	if s.Blocked, err = state.LastBlocked(dirs); err != nil {
		return nil, err
	}
	if s.Blocked == nil && last == nil && st.Applied != nil { // no run since the boot
		s.Blocked = st.Applied.Blocked
	}
	if st.Applied != nil {
		dir := dirs.Generation(st.Applied.Generation)
		m, err := state.ReadManifest(filepath.Join(dir, "manifest"))
		if err != nil {
			return nil, err
		}
		s.Managed = len(m.Entries)
		in, err := update.ReadInputs(dir)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", state.ErrUnreadable, err)
		}
		if in.Choice.Name != "" {
			s.Engine, s.EngineReason = in.Choice.Name, in.Choice.Reason
		}
		g, err := update.ReadGeneration(dir)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", state.ErrUnreadable, err)
		}
		for _, c := range g.Changes {
			if slices.Contains([]plan.Action{plan.Conflict, plan.Keep, plan.Drift}, c.Action) {
				s.Notes = append(s.Notes, fmt.Sprintf("%s: %s (%s)", c.Path, c.Action, c.Note))
			}
		}
	}
	s.judge()
	return s, nil
}

func readLast(dirs state.Dirs) (*reconcile.Last, error) {
	data, err := os.ReadFile(dirs.Last())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var last reconcile.Last
	if err := json.Unmarshal(data, &last); err != nil {
		return nil, fmt.Errorf("reading %s: %w", dirs.Last(), err)
	}
	return &last, nil
}

// judge finds the health and the one thing to do next.
func (s *Status) judge() {
	switch {
	case s.Change != nil && len(s.Change.Rollback) > 0 && s.Change.Ended():
		s.Health, s.Next = Failing, "rolling back did not end: mend what the step names and say reconf-pull retry; another commit goes on, too"
	case s.Held != nil && s.Held.Step == "rollback":
		s.Health, s.Next = Failing, "rolled back by hand: push another commit, or say reconf-pull retry"
	case s.Held != nil:
		s.Health, s.Next = Failing, "push a commit that mends it, or mend the host and say reconf-pull retry"
	case s.Change != nil && s.Change.Waits() != nil:
		s.Health, s.Next = Pending, "a reboot is waited for: the first run after it goes on with the change"
	case s.Change != nil && s.Change.Failure() != nil:
		s.Health = Failing
		s.Next = fmt.Sprintf("step %s failed and is begun again (retry.backoff): push a commit that mends it, or mend the host and say reconf-pull retry", s.Change.Failure().Name)
	case s.Change != nil:
		s.Health, s.Next = Pending, "a change is under way or was cut off: the next run finishes it (`reconf-pull run`)"
	case s.HeldOSWork != nil:
		s.Health, s.Next = Failing, "OS work is held: mend the host and say reconf-pull retry, or boot another OS deployment"
	case s.Last != nil && s.Last.Refused != nil:
		s.Health, s.Next = Failing, s.Last.Refused.Hint
	case s.Last != nil && s.Last.Error != "":
		s.Health, s.Next = Failing, "see the error above; every run tries again"
	case len(s.Blocked) > 0:
		s.Health = Failing
		s.Next = "have the owner of the place remove what is in the way: every run looks again; everything else is applied"
	case s.Suspended != nil:
		s.Health, s.Next = Pending, "suspended: `reconf-pull resume` ends it"
	case s.Applied == nil:
		s.Health, s.Next = Pending, "nothing was applied yet: `reconf-pull run`"
	case s.Reboot != nil && s.Spent != "":
		s.Health, s.Next = Pending, "too many reboots: find out why one is needed again and again, or reboot by hand"
	case s.Reboot != nil:
		s.Health, s.Next = Pending, "a reboot is pending: the next run inside the window does it, and so does any other reboot"
	case s.Lock != nil && s.Lock.Kept:
		s.Health, s.Next = Pending, "the fleet lock is kept after a failure: the next change that succeeds gives it back, and so does reconf-pull lock release"
	case s.Lock != nil && s.Lock.ByHand:
		s.Health, s.Next = Pending, "the fleet lock was taken by hand: reconf-pull lock release gives it back"
	case s.Lock != nil:
		s.Health, s.Next = Pending, "the fleet lock may still be held: the next run gives it back"
	case s.Last != nil && s.Last.Waiting != "":
		s.Health, s.Next = Pending, "something waits, see above; the next runs look again"
	case s.Last != nil && len(s.Last.Drift) > 0:
		s.Health, s.Next = Pending, "paths drifted: `reconf-pull plan` shows them"
	default:
		s.Health, s.Next = Healthy, "nothing to do"
	}
}

// Write prints the status for people.
func (s *Status) Write(w io.Writer, now time.Time) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	row("health", "%s", s.Health)
	if s.Applied != nil {
		row("host", "%s", s.Applied.Host)
		row("applied", "%s (%s), generation %d, %s", short(s.Applied.Commit), branch(s.Applied.Ref), s.Applied.Generation, ago(now, s.Applied.Time))
		if s.Subject != nil {
			row("commit", "%s, by %s", s.Subject.Subject, s.Subject.Author)
		}
		row("digest", "%s", s.Applied.Digest)
		row("managed", "%s, engine %s", paths(s.Managed), s.Engine)
		if s.EngineReason != "" {
			row("engine", "%s: %s", s.Engine, s.EngineReason)
		}
	}
	if s.Source != "" {
		row("source", "%s", s.Source)
	}
	if s.Verified != nil {
		by := ""
		if s.Verified.Signer != "" {
			by = ", signed by " + s.Verified.Signer
		}
		row("verified", "%s%s, %s", short(s.Verified.Commit), by, ago(now, s.Verified.Time))
	}
	if s.Last != nil {
		row("checked", "%s, took %s", ago(now, s.Last.Time), s.Last.Duration)
		if s.Last.Commit != "" {
			row("seen", "%s", short(s.Last.Commit))
		}
		if s.Last.Refused != nil {
			row("refused", "%s (%s)", short(s.Last.Refused.Commit), branch(s.Last.Refused.Ref))
		}
		if s.Last.Stale != "" {
			row("stale", "the remote is at %s, which is older than the newest verified commit", short(s.Last.Stale))
		}
		if s.Last.Error != "" {
			row("error", "%s", strings.ReplaceAll(s.Last.Error, "\n", "\n          "))
		}
		if s.Last.Waiting != "" {
			row("waiting", "%s", s.Last.Waiting)
		}
		for _, path := range s.Last.Drift {
			row("drift", "%s", path)
		}
	}
	if c := s.Change; c != nil {
		row("change", "%s to %s, because %s", c.ID, short(c.Commit), strings.Join(c.Reasons, ", "))
		for _, t := range slices.Concat(c.Tasks, c.Rollback) {
			text := fmt.Sprintf("%s: %s", t.Name, t.Status)
			if t.Attempts > 1 {
				text += fmt.Sprintf(" (start %d)", t.Attempts)
			}
			if w := t.Reboot; w != nil {
				text += ": " + waits(now, w)
			}
			if t.Detail != "" {
				text += ": " + strings.ReplaceAll(t.Detail, "\n", "\n          ")
			}
			row("step", "%s", text)
		}
	}
	if s.Suspended != nil {
		row("suspended", "%s", s.Suspended)
	}
	if h := s.Held; h != nil {
		row("held", "%s (%s) since %s", h.Digest, short(h.Commit), h.Time.UTC().Format(time.RFC3339))
		row("because", "%s: %s", h.Step, strings.ReplaceAll(h.Reason, "\n", "\n          "))
	}
	if h := s.HeldOSWork; h != nil {
		row("held", "OS work since %s", h.Time.UTC().Format(time.RFC3339))
		row("because", "%s: %s", h.Step, strings.ReplaceAll(h.Reason, "\n", "\n          "))
	}
	if s.Reboot != nil {
		row("reboot", "pending since %s: %s", s.Reboot.Since.UTC().Format(time.RFC3339), s.Reboot.Reason)
	}
	if s.Spent != "" {
		row("reboot", "%s", s.Spent)
	}
	if len(s.Windows) > 0 {
		when := "open now"
		if !s.Opens.IsZero() {
			when = "opens " + s.Opens.Format("Mon 2006-01-02 15:04 MST")
		}
		row("window", "%s; %s", when, strings.Join(s.Windows, " | "))
	}
	if s.Lock != nil {
		row("lock", "%s", s.Lock)
	}
	for i := range s.Blocked {
		row("blocked", "%s: %s", s.Blocked[i].Path, s.Blocked[i].Why())
	}
	for _, note := range s.Notes {
		row("note", "%s", note)
	}
	row("next", "%s", s.Next)
	_, err := io.WriteString(w, b.String())
	return err
}

// waits says how far the wait for a reboot has come.
func waits(now time.Time, w *state.Waiting) string {
	text := w.Reason
	if !w.Asked.IsZero() {
		text += fmt.Sprintf("; asked for %s", ago(now, w.Asked))
		if w.Asks > 1 {
			text += fmt.Sprintf(", for the %d. time", w.Asks)
		}
	}
	if w.Veto != "" {
		text += fmt.Sprintf("; held off since %s by %s", w.Since.UTC().Format(time.RFC3339), w.Veto)
	}
	return text
}

// OneLine is the status for a prompt.
func (s *Status) OneLine() string {
	if s.Applied == nil {
		return fmt.Sprintf("%s: nothing applied", s.Health)
	}
	return fmt.Sprintf("%s: %s at %s", s.Health, s.Applied.Host, short(s.Applied.Commit))
}

func short(commit string) string { return commit[:min(12, len(commit))] }

func branch(ref string) string { return strings.TrimPrefix(ref, "refs/heads/") }

func ago(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case d < 0:
		return "in the future (" + then.UTC().Format(time.RFC3339) + ")"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

// History reads the kept generations, the newest first.
func History(dirs state.Dirs) ([]*update.Generation, error) {
	st, err := state.Load(dirs)
	if err != nil {
		return nil, err
	}
	numbers, err := state.Generations(dirs)
	if err != nil {
		return nil, err
	}
	all := []*update.Generation{}
	for _, n := range slices.Backward(numbers) {
		if st.Applied == nil || n > st.Applied.Generation {
			continue // being recorded, or left by a crash: not part of the history yet
		}
		g, err := update.ReadGeneration(dirs.Generation(n))
		if err != nil {
			return nil, fmt.Errorf("%w: generation %d: %w", state.ErrUnreadable, n, err)
		}
		all = append(all, g)
	}
	failed, err := update.Failures(dirs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrUnreadable, err)
	}
	all = append(all, failed...)
	slices.SortStableFunc(all, func(a, b *update.Generation) int { return b.Ended.Compare(a.Ended) })
	return all, nil
}

// WriteHistory prints one line a generation.
func WriteHistory(w io.Writer, all []*update.Generation) error {
	for _, g := range all {
		from := "nothing"
		if g.Previous != "" {
			from = short(g.Previous)
		}
		number, result := fmt.Sprint(g.Number), ""
		if g.Result != "" {
			number, result = "-", ", "+g.Result+", "+g.Change // by which show finds it
		}
		_, err := fmt.Fprintf(w, "%4s  %s  %s -> %s  %s, %s, %s%s  (%s)\n", number, g.Ended.UTC().Format("2006-01-02 15:04:05Z"), from, short(g.Commit),
			paths(len(g.Changes)), units(len(g.Touched)), g.Ended.Sub(g.Started).Round(time.Millisecond), result, strings.Join(g.Reasons, ", "))
		if err != nil {
			return err
		}
	}
	return nil
}

func paths(n int) string { return counted(n, "path", "paths") }

// WriteGeneration prints the whole record of one generation.
func WriteGeneration(w io.Writer, g *update.Generation) error {
	var b strings.Builder
	if g.Result != "" {
		fmt.Fprintf(&b, "change     %s of %s, %s\n", g.Change, g.Host, g.Result)
		fmt.Fprintf(&b, "error      %s\n", strings.ReplaceAll(g.Error, "\n", "\n           "))
	} else {
		fmt.Fprintf(&b, "generation %d of %s\n", g.Number, g.Host)
	}
	fmt.Fprintf(&b, "commit     %s (%s)\n", g.Commit, branch(g.Ref))
	if g.Previous != "" {
		fmt.Fprintf(&b, "previous   %s\n", g.Previous)
	}
	fmt.Fprintf(&b, "digest     %s\nreasons    %s\nstarted    %s\ntook       %s\n", g.Digest, strings.Join(g.Reasons, ", "),
		g.Started.UTC().Format(time.RFC3339), g.Ended.Sub(g.Started).Round(time.Millisecond))
	for _, t := range slices.Concat(g.Steps, g.Back) {
		switch {
		case strings.HasPrefix(t.Detail, "skipped: "):
			fmt.Fprintf(&b, "step       %-15s %s\n", t.Name, t.Detail)
		case !t.Ended.IsZero():
			fmt.Fprintf(&b, "step       %-15s %s%s%s\n", t.Name, t.Ended.Sub(t.Started).Round(time.Millisecond), starts(t), detail(t))
		}
	}
	for _, c := range g.Changes {
		fmt.Fprintf(&b, "%-10s %s", c.Action, c.Path)
		if c.Note != "" {
			fmt.Fprintf(&b, " (%s)", c.Note)
		}
		b.WriteByte('\n')
	}
	for _, u := range g.Units {
		verb := "disable"
		if u.Enable {
			verb = "enable"
		}
		fmt.Fprintf(&b, "%-10s %s (%s)\n", verb, u.Name, u.Reason)
	}
	for _, unit := range g.Touched {
		fmt.Fprintf(&b, "touched    %s\n", unit)
	}
	for _, line := range g.Ignored {
		fmt.Fprintf(&b, "note       %s\n", line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func detail(t state.Task) string {
	if t.Detail == "" {
		return ""
	}
	return ", " + strings.ReplaceAll(t.Detail, "\n", "\n           ")
}

func starts(t state.Task) string {
	if t.Attempts < 2 {
		return ""
	}
	return fmt.Sprintf(" (start %d)", t.Attempts)
}
