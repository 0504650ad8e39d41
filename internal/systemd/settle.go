package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Failure is a unit that fell over.
type Failure struct {
	Unit  string
	State UnitState
	Why   string
}

// Settle watches units for d and returns those that fell over: that failed, or
// that systemd has had to start again. before is what States said before they
// were touched; a unit that had failed then, and was not started since, is no
// failure of ours.
func (m *Manager) Settle(ctx context.Context, units []string, before map[string]UnitState, d time.Duration) ([]Failure, error) {
	const interval = 200 * time.Millisecond
	deadline, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	left := slices.Sorted(slices.Values(units))
	left = slices.Compact(slices.DeleteFunc(left, Template))
	var failures []Failure
	for last := false; len(left) > 0; {
		states, err := m.States(ctx, left)
		if err != nil {
			return failures, err
		}
		left = slices.DeleteFunc(left, func(unit string) bool {
			why := fallen(before[unit], states[unit])
			if why == "" {
				return false
			}
			failures = append(failures, Failure{Unit: unit, State: states[unit], Why: why})
			return true
		})
		if last {
			break
		}
		select {
		case <-tick.C:
		case <-deadline.Done():
			last = true // one more look: what fails in the last moment counts
		}
		if ctx.Err() != nil {
			return failures, ctx.Err()
		}
	}
	slices.SortFunc(failures, func(a, b Failure) int { return strings.Compare(a.Unit, b.Unit) })
	return failures, nil
}

// fallen says why a unit counts as fallen over, "" if it does not.
func fallen(before, now UnitState) string {
	same := now.InvocationID == before.InvocationID
	switch {
	case now.ActiveState == "failed":
		if same && before.ActiveState == "failed" {
			return ""
		}
		return strings.TrimSuffix("failed: "+Why(now), ": ")
	case now.SubState == "auto-restart" || now.SubState == "auto-restart-queued":
		return strings.TrimSuffix("fails and is restarted by systemd: "+Why(now), ": ")
	}
	// A start by us begins to count at 0.
	var counted uint32
	if same {
		counted = before.Restarts
	}
	if now.Restarts > counted {
		return fmt.Sprintf("restarted by systemd %d times", now.Restarts-counted)
	}
	return ""
}

// JournalTail is the last n lines that a unit, or systemd about it, wrote during
// one invocation; without one, during this boot. run starts journalctl, because
// libsystemd is the only other way to read a journal.
func JournalTail(ctx context.Context, run func(ctx context.Context, argv ...string) ([]byte, error), unit, invocation string, n int) ([]string, error) {
	const (
		limit   = 5 * time.Second
		most    = 100
		longest = 1000 // bytes of a line
	)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// What a program said in its last moment may not have been written yet. Not
	// everybody may ask for it, and without it there is still something to read.
	_, _ = run(ctx, "journalctl", "--sync")
	argv := []string{"journalctl", "--quiet", "--no-pager", "--boot", "--lines=" + strconv.Itoa(most),
		"--all", "--output=json", "--output-fields=MESSAGE,INVOCATION_ID,_SYSTEMD_INVOCATION_ID",
		"_SYSTEMD_UNIT=" + unit, "+", "_PID=1", "UNIT=" + unit}
	if invocation != "" {
		argv = append(argv, "+", "INVOCATION_ID="+invocation) // systemd's child that could not start the program
	}
	out, err := run(ctx, argv...)
	if err != nil {
		return nil, fmt.Errorf("reading the journal of %s: %w", unit, err)
	}
	var lines []string
	for text := range bytes.Lines(out) {
		var entry map[string]any
		if err := json.Unmarshal(text, &entry); err != nil {
			return nil, fmt.Errorf("reading the journal of %s: %w", unit, err)
		}
		// journald does not know the invocation of a program that had ended before it
		// read what the program said, which is what is sought most: such an entry
		// counts to the invocation that others around it name.
		by, about := field(entry["_SYSTEMD_INVOCATION_ID"]), field(entry["INVOCATION_ID"])
		if invocation != "" && by != invocation && about != invocation && by+about != "" {
			lines = nil
			continue
		}
		for line := range strings.Lines(field(entry["MESSAGE"])) {
			if line = strings.TrimRight(line, "\n"); len(line) > longest {
				line = strings.ToValidUTF8(line[:longest], "") + "…"
			}
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-min(max(n, 1), most)):], nil
}

// field is the text of a journal field. One that is no UTF-8 is an array of
// bytes, and one that a program sent twice an array of texts.
func field(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []any:
		var raw []byte
		for _, one := range v {
			if n, ok := one.(float64); ok {
				raw = append(raw, byte(n))
			}
		}
		return strings.ToValidUTF8(string(raw), "\uFFFD")
	}
	return ""
}
