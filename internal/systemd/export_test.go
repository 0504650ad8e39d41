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
