package systemd

import (
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
)

// Notify tells the service manager what the run is doing: STATUS=…,
// EXTEND_TIMEOUT_USEC=…. A run outside a unit has nobody to tell, and no run
// depends on being heard: errors are dropped.
func Notify(state string) {
	_, _ = daemon.SdNotify(false, state)
}

// StderrIsJournal tells whether what is written to stderr goes to the journal,
// which adds time and priority by itself.
func StderrIsJournal() bool {
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}
