package systemd

import (
	"bytes"

	"github.com/coreos/go-systemd/v22/unit"
)

// OnChange is the last X-Reconf-OnChange= in the [Unit] sections of a unit's
// file and its drop-ins, in systemd's order; "" when there is none, or when the
// last one is empty.
func OnChange(fragments ...[]byte) string {
	var value string
	for _, fragment := range fragments {
		// What cannot be read ends the fragment, not the question: systemd itself
		// warns about such a line and goes on.
		options, _ := unit.DeserializeOptions(bytes.NewReader(fragment))
		for _, option := range options {
			if option.Section == "Unit" && option.Name == "X-Reconf-OnChange" {
				value = option.Value
			}
		}
	}
	return value
}
