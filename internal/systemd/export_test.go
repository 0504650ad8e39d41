package systemd

import "context"

var (
	Order   = order
	Closure = closure
	Fallen  = fallen
	Words   = words
)

// AfterOwn shows which units are never waited for.
func (m *Manager) AfterOwn(ctx context.Context) (map[string]bool, error) { return m.afterOwn(ctx) }

// ReadJournal is what of journalctl's output, given in pieces, is shown of a run.
func ReadJournal(unit, invocation string, since uint64, pieces ...string) (shown []Entry, cursor string) {
	r := &reader{unit: unit, invocation: invocation, since: since, emit: func(e Entry) { shown = append(shown, e) }}
	for _, piece := range pieces {
		_, _ = r.Write([]byte(piece))
	}
	return shown, r.cursor
}
