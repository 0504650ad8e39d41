// Package window is times of the week in which something may be done, written
// as "Sat,Sun 02:00-05:00 Europe/Berlin".
//
// Its one rule: a window goes by the clock on the wall. It is open exactly
// while a clock in its zone shows a time in it, so nothing happens at an hour
// that nobody agreed to. When clocks are put forward from 02:00 to 03:00, a
// window from 02:30 to 04:00 opens at 03:00, and one from 02:00 to 03:00 not at
// all that day; when they are put back from 03:00 to 02:00, one from 02:30 to
// 02:45 opens twice.
package window

import (
	"fmt"
	"slices"
	"strings"
	"time"

	// A host without tzdata knows no zone but UTC, and its agent would refuse its
	// whole configuration for a name in it: having the zones costs 404 KiB in a
	// binary of 17 MiB. Those of the host, which are newer, come first.
	_ "time/tzdata"
)

// Window is one span of time on some days of the week, made by Parse.
type Window struct {
	text       string
	days       [7]bool // on which it begins, from Sunday
	begin, end int     // minutes after midnight; end ≤ begin is on the next day
	zone       *time.Location
}

const day = 24 * 60

// Parse reads "[days] HH:MM-HH:MM [zone]". Without days it is every day; days
// are names and ranges of names, as in Mon-Thu,Sat. A window that ends before
// it begins ends on the next day. Without a zone it is the host's.
func Parse(text string) (Window, error) {
	w := Window{text: strings.Join(strings.Fields(text), " "), zone: time.Local}
	bad := func(format string, args ...any) (Window, error) {
		return Window{}, fmt.Errorf("window %q: %w", text, fmt.Errorf(format, args...))
	}
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return bad("empty: write it as Sat,Sun 02:00-05:00 Europe/Berlin")
	}
	span := slices.IndexFunc(fields, func(field string) bool { return strings.Contains(field, ":") })
	switch {
	case span < 0:
		return bad("no time: write it as 02:00-05:00")
	case span > 1:
		return bad("days are written without spaces, as Sat,Sun")
	case len(fields) > span+2:
		return bad("%q is too much: nothing follows the zone", strings.Join(fields[span+2:], " "))
	}
	if span == 0 {
		w.days = [7]bool{true, true, true, true, true, true, true}
	} else if err := w.parseDays(fields[0]); err != nil {
		return bad("%w", err)
	}
	if err := w.parseSpan(fields[span]); err != nil {
		return bad("%w", err)
	}
	if len(fields) > span+1 {
		name := fields[span+1]
		zone, err := time.LoadLocation(name)
		if err != nil || name == "Local" {
			return bad("no time zone %q: write it as Europe/Berlin or UTC, or leave it out for the host's own", name)
		}
		w.zone = zone
	}
	return w, nil
}

func (w *Window) parseDays(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := parseDay(from)
		if err != nil {
			return err
		}
		last := first
		if isRange {
			if last, err = parseDay(to); err != nil {
				return err
			}
		}
		for d := first; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == last {
				break
			}
		}
	}
	return nil
}

// parseDay knows the English names, as systemd.time(7) does.
func parseDay(text string) (time.Weekday, error) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if name := d.String(); strings.EqualFold(text, name) || strings.EqualFold(text, name[:3]) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("no day %q: days are Mon, Tue, Wed, Thu, Fri, Sat, Sun", text)
}

func (w *Window) parseSpan(text string) error {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		return fmt.Errorf("%q has no end: write it as 02:00-05:00", text)
	}
	var err error
	if w.begin, err = parseTime(from); err != nil {
		return err
	}
	if w.end, err = parseTime(to); err != nil {
		return err
	}
	switch w.begin {
	case day:
		return fmt.Errorf("begins at 24:00: write 00:00 of the next day")
	case w.end:
		return fmt.Errorf("ends when it begins: the whole day is 00:00-24:00")
	}
	return nil
}

func parseTime(text string) (int, error) {
	if text == "24:00" {
		return day, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("no time %q: times run from 00:00 to 24:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// String is the window as it was written.
func (w Window) String() string { return w.text }

// UnmarshalText is Parse for decoders.
func (w *Window) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err == nil {
		*w = parsed
	}
	return err
}

func (w Window) open(now time.Time) bool {
	now = now.In(w.zone)
	today, clock := now.Weekday(), now.Hour()*60+now.Minute()
	if w.begin < w.end {
		return w.days[today] && w.begin <= clock && clock < w.end
	}
	return w.days[today] && w.begin <= clock || w.days[(today+6)%7] && clock < w.end
}

// next is the first moment from now on at which the window is open. It looks
// through the stretches in which the zone keeps its offset: in each of them the
// wall clock simply runs.
func (w Window) next(now time.Time) time.Time {
	for at := now.In(w.zone); ; {
		if w.open(at) {
			return at
		}
		_, until := at.ZoneBounds()
		_, offset := at.Zone()
		year, month, date := at.Date()
		// The one of today may have passed: a week and a day.
		for i := range 8 {
			wall := time.Date(year, month, date+i, 0, w.begin, 0, 0, time.UTC)
			begin := wall.Add(-time.Duration(offset) * time.Second).In(w.zone)
			if w.days[wall.Weekday()] && begin.After(at) && (until.IsZero() || begin.Before(until)) {
				return begin
			}
		}
		at = until.In(w.zone)
	}
}

// Windows are open when one of them is. No windows are no restriction.
type Windows []Window

// Open tells whether it may be done now.
func (w Windows) Open(now time.Time) bool {
	return len(w) == 0 || slices.ContainsFunc(w, func(one Window) bool { return one.open(now) })
}

// Next is now if it may be done now, else when it may be done next.
func (w Windows) Next(now time.Time) time.Time {
	if w.Open(now) {
		return now
	}
	first := w[0].next(now)
	for _, one := range w[1:] {
		if next := one.next(now); next.Before(first) {
			first = next
		}
	}
	return first
}
