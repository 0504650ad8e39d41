package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// Entry is one message of the journal.
type Entry struct {
	Priority int // of syslog: 0 (emergency) to 7 (debug)
	Message  string
}

// Programs starts journalctl: libsystemd is the only other way to read a journal.
type Programs interface {
	Run(ctx context.Context, argv ...string) ([]byte, error)
	Stream(ctx context.Context, stdout io.Writer, argv ...string) error
}

// Follow waits for the end of the run and gives what it says to emit meanwhile:
// every message of this run, once, and none of another. unreadable is told if
// that cannot be had; the run is waited for nevertheless. emit is not called
// after Follow has returned.
func (i *Invocation) Follow(ctx context.Context, programs Programs, emit func(Entry), unreadable func(error)) (ServiceState, error) {
	r := &reader{unit: i.Unit, invocation: i.ID, since: i.since(), emit: emit}
	following, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := programs.Stream(following, r, append(r.argv(), "--follow", "--no-tail", "--since=@"+strconv.FormatUint(i.sinceWall(), 10))...)
		if err != nil && following.Err() == nil {
			unreadable(err)
		}
	}()
	end, err := i.Wait(ctx)
	if err == nil {
		// What it said last may not have reached the journal yet.
		_, _ = programs.Run(ctx, "journalctl", "--sync")
	}
	stop()
	<-ended
	if err != nil {
		return end, err
	}
	// And not the one who was reading it.
	r.part = nil
	from := "--after-cursor=" + r.cursor
	if r.cursor == "" {
		from = "--since=@" + strconv.FormatUint(i.sinceWall(), 10)
	}
	rest, unread := programs.Run(ctx, append(r.argv(), from)...)
	_, _ = r.Write(rest)
	if unread == nil && r.count == 0 {
		unreadable(errNothing)
	}
	return end, nil
}

var errNothing = errorText("the journal has nothing of this run")

type errorText string

func (e errorText) Error() string { return string(e) }

// since is the moment, by the monotonic clock, before which nothing is of this
// run. systemd notes that the unit left the inactive state after it has started
// the program.
func (i *Invocation) since() uint64 {
	if i.State.mainBegan > i.before && i.State.mainBegan < i.State.began {
		return i.State.mainBegan
	}
	return i.State.began
}

// sinceWall is where journalctl begins to look: somewhat before, in seconds.
func (i *Invocation) sinceWall() uint64 {
	const second, slack = 1_000_000, 2
	return max(i.State.beganAt/second, slack) - slack
}

// reader takes what journalctl prints.
type reader struct {
	unit, invocation string
	since            uint64
	emit             func(Entry)

	part   []byte // of a line whose end is still to come
	cursor string // of the last message that was seen
	count  int    // of those that were emitted
}

func (r *reader) argv() []string {
	return []string{
		"journalctl", "--quiet", "--no-pager", "--boot", "--all", "--output=json",
		"--output-fields=MESSAGE,PRIORITY,INVOCATION_ID,_SYSTEMD_INVOCATION_ID,_SYSTEMD_UNIT,_PID",
		"_SYSTEMD_UNIT=" + r.unit, "+", "_SYSTEMD_INVOCATION_ID=" + r.invocation, "+", "INVOCATION_ID=" + r.invocation,
	}
}

// Write never fails: what is no message is passed over.
func (r *reader) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		r.part = append(r.part, line...)
		if ended {
			r.line(r.part)
			r.part = r.part[:0]
		}
		rest = after
	}
	return len(p), nil
}

func (r *reader) line(text []byte) {
	var entry map[string]any
	if json.Unmarshal(text, &entry) != nil {
		return
	}
	r.cursor = field(entry["__CURSOR"])
	const notice = 5
	e := Entry{Priority: notice, Message: clean(field(entry["MESSAGE"]))}
	if n, err := strconv.Atoi(field(entry["PRIORITY"])); err == nil {
		e.Priority = n
	}
	if r.ours(entry) {
		r.count++
		r.emit(e)
	}
}

// ours tells whether a message is of this run: by its program, or by the child of
// systemd that could not become it. What systemd itself says about the run is in
// the status. journald does not know the invocation of a
// program that had ended before it read what the program said: such a message
// is told by its time, since a service runs once at a time.
func (r *reader) ours(entry map[string]any) bool {
	by, about := field(entry["_SYSTEMD_INVOCATION_ID"]), field(entry["INVOCATION_ID"])
	if field(entry["_SYSTEMD_UNIT"]) != r.unit {
		return by == r.invocation || about == r.invocation && field(entry["_PID"]) != "1"
	}
	if by != "" {
		return by == r.invocation
	}
	at, err := strconv.ParseUint(field(entry["__MONOTONIC_TIMESTAMP"]), 10, 64)
	return err == nil && at >= r.since
}

// clean makes a message harmless to a terminal.
func clean(message string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) && c != '\t' && c != '\n' {
			return unicode.ReplacementChar
		}
		return c
	}, message)
}
