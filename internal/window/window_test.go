package window_test

import (
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/window"
)

func parse(t *testing.T, texts ...string) window.Windows {
	t.Helper()
	var all window.Windows
	for _, text := range texts {
		w, err := window.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	return all
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	moment, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return moment
}

func TestOpenAndNext(t *testing.T) {
	// 2026-03-27 is a Friday; in Berlin clocks go forward on Sunday 2026-03-29 and
	// back on Sunday 2026-10-25.
	for _, test := range []struct {
		name    string
		windows []string
		now     string
		next    string // now itself: it is open
	}{
		{"no windows", nil, "2026-03-27T12:00:00Z", "2026-03-27T12:00:00Z"},
		{"daily, before", []string{"02:00-05:00 UTC"}, "2026-03-27T01:59:59Z", "2026-03-27T02:00:00Z"},
		{"daily, first moment", []string{"02:00-05:00 UTC"}, "2026-03-27T02:00:00Z", "2026-03-27T02:00:00Z"},
		{"daily, last moment", []string{"02:00-05:00 UTC"}, "2026-03-27T04:59:59Z", "2026-03-27T04:59:59Z"},
		{"daily, after", []string{"02:00-05:00 UTC"}, "2026-03-27T05:00:00Z", "2026-03-28T02:00:00Z"},
		{"days, on another day", []string{"Sat,Sun 02:00-05:00 UTC"}, "2026-03-27T03:00:00Z", "2026-03-28T02:00:00Z"},
		{"days, on the day", []string{"Sat,Sun 02:00-05:00 UTC"}, "2026-03-28T03:00:00Z", "2026-03-28T03:00:00Z"},
		{"weekly, just over", []string{"Fri 02:00-05:00 UTC"}, "2026-03-27T05:00:00Z", "2026-04-03T02:00:00Z"},
		{"range", []string{"Mon-Fri 22:00-23:00 UTC"}, "2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z"},
		{"range over the end of the week", []string{"Sat-Mon 22:00-23:00 UTC"}, "2026-03-30T22:30:00Z", "2026-03-30T22:30:00Z"},
		{"range of all", []string{"Wed-Tue 22:00-23:00 UTC"}, "2026-03-31T22:00:00Z", "2026-03-31T22:00:00Z"},
		{"full names, any case", []string{"friday,SAT 02:00-05:00 UTC"}, "2026-03-27T03:00:00Z", "2026-03-27T03:00:00Z"},
		{"midnight, evening", []string{"Sat 23:00-02:00 UTC"}, "2026-03-28T23:30:00Z", "2026-03-28T23:30:00Z"},
		{"midnight, next morning", []string{"Sat 23:00-02:00 UTC"}, "2026-03-29T01:59:00Z", "2026-03-29T01:59:00Z"},
		{"midnight, its own morning", []string{"Sat 23:00-02:00 UTC"}, "2026-03-28T01:00:00Z", "2026-03-28T23:00:00Z"},
		{"midnight, over", []string{"Sat 23:00-02:00 UTC"}, "2026-03-29T02:00:00Z", "2026-04-04T23:00:00Z"},
		{"to midnight", []string{"Sat 23:00-24:00 UTC"}, "2026-03-29T00:00:00Z", "2026-04-04T23:00:00Z"},
		{"to midnight, as 00:00", []string{"Sat 23:00-00:00 UTC"}, "2026-03-28T23:59:59Z", "2026-03-28T23:59:59Z"},
		{"the whole day", []string{"Sat 00:00-24:00 UTC"}, "2026-03-27T23:59:59Z", "2026-03-28T00:00:00Z"},
		{"the first of two", []string{"Sun 02:00-05:00 UTC", "Sat 10:00-11:00 UTC"}, "2026-03-27T12:00:00Z", "2026-03-28T10:00:00Z"},
		{"one of two", []string{"Sun 02:00-05:00 UTC", "Fri 12:00-13:00 UTC"}, "2026-03-27T12:00:00Z", "2026-03-27T12:00:00Z"},
		{"the zone's day, not ours", []string{"Sat 00:00-01:00 Europe/Berlin"}, "2026-03-27T23:30:00Z", "2026-03-27T23:30:00Z"},
		{"a zone far away", []string{"Sat 02:00-05:00 Pacific/Auckland"}, "2026-03-27T00:00:00Z", "2026-03-27T13:00:00Z"},
		{"a quarter of an hour", []string{"Sat 02:00-05:00 Asia/Kathmandu"}, "2026-03-27T00:00:00Z", "2026-03-27T20:15:00Z"},

		{"winter", []string{"Sat 02:00-05:00 Europe/Berlin"}, "2026-03-27T00:00:00Z", "2026-03-28T01:00:00Z"},
		{"summer", []string{"Sat 02:00-05:00 Europe/Berlin"}, "2026-03-29T12:00:00Z", "2026-04-04T00:00:00Z"},
		{"forward: begins in the skipped hour", []string{"Sun 02:30-04:00 Europe/Berlin"}, "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"},
		{"forward: open after the jump", []string{"Sun 02:30-04:00 Europe/Berlin"}, "2026-03-29T01:59:59Z", "2026-03-29T01:59:59Z"},
		{"forward: over at its time", []string{"Sun 02:30-04:00 Europe/Berlin"}, "2026-03-29T02:00:00Z", "2026-04-05T00:30:00Z"},
		{"forward: ends in the skipped hour", []string{"Sun 01:00-02:30 Europe/Berlin"}, "2026-03-29T00:59:59Z", "2026-03-29T00:59:59Z"},
		{"forward: over with the jump", []string{"Sun 01:00-02:30 Europe/Berlin"}, "2026-03-29T01:00:00Z", "2026-04-04T23:00:00Z"},
		{"forward: skipped as a whole", []string{"Sun 02:00-03:00 Europe/Berlin"}, "2026-03-28T12:00:00Z", "2026-04-05T00:00:00Z"},
		{"forward: skipped, daily", []string{"02:00-03:00 Europe/Berlin"}, "2026-03-28T12:00:00Z", "2026-03-30T00:00:00Z"},
		{"forward: over midnight", []string{"Sat 23:00-03:30 Europe/Berlin"}, "2026-03-29T01:29:59Z", "2026-03-29T01:29:59Z"},
		{"back: the first time", []string{"Sun 02:30-02:45 Europe/Berlin"}, "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"},
		{"back: the second time", []string{"Sun 02:30-02:45 Europe/Berlin"}, "2026-10-25T00:45:00Z", "2026-10-25T01:30:00Z"},
		{"back: over", []string{"Sun 02:30-02:45 Europe/Berlin"}, "2026-10-25T01:45:00Z", "2026-11-01T01:30:00Z"},
		{"back: opens again with the jump", []string{"Sun 01:00-02:30 Europe/Berlin"}, "2026-10-25T00:40:00Z", "2026-10-25T01:00:00Z"},
		{"back: an hour longer", []string{"Sun 01:00-04:00 Europe/Berlin"}, "2026-10-25T02:59:59Z", "2026-10-25T02:59:59Z"},
		{"back: over at its time", []string{"Sun 01:00-04:00 Europe/Berlin"}, "2026-10-25T03:00:00Z", "2026-11-01T00:00:00Z"},
		// Samoa had no 30 December 2011, a Friday.
		{"a day that was skipped", []string{"Fri 10:00-11:00 Pacific/Apia"}, "2011-12-29T22:00:00Z", "2012-01-05T20:00:00Z"},
		// In Santiago clocks go forward at midnight.
		{"midnight that was skipped", []string{"Sun 00:00-01:30 America/Santiago"}, "2026-09-05T12:00:00Z", "2026-09-06T04:00:00Z"},
	} {
		t.Run(test.name, func(t *testing.T) {
			windows, now := parse(t, test.windows...), at(t, test.now)
			next := windows.Next(now)
			if want := at(t, test.next); !next.Equal(want) {
				t.Errorf("next is %s, want %s", next.UTC().Format(time.RFC3339), test.next)
			}
			if open, want := windows.Open(now), test.now == test.next; open != want {
				t.Errorf("open: %v, want %v", open, want)
			}
			if !windows.Open(next) {
				t.Error("it is not open when it should open")
			}
		})
	}
}

// TestNextIsTheFirst compares Next with looking at every minute, over the days
// around both changes of the clock.
func TestNextIsTheFirst(t *testing.T) {
	windows := parse(t, "Sun 02:30-02:45 Europe/Berlin", "Sat,Mon 23:40-01:20 Europe/Berlin", "Tue 10:00-10:01 Australia/Lord_Howe")
	for _, from := range []string{"2026-03-26T00:00:00Z", "2026-10-01T00:00:00Z", "2026-10-22T00:00:00Z"} {
		begin := at(t, from)
		end := begin.Add(8 * 24 * time.Hour)
		want := windows.Next(end)
		for now := end.Add(-time.Minute); !now.Before(begin); now = now.Add(-time.Minute) {
			if windows.Open(now) {
				want = now
			}
			if got := windows.Next(now); !got.Equal(want) {
				t.Fatalf("next from %s is %s, want %s", now, got, want)
			}
		}
	}
}

func TestWithoutAZoneItIsTheHosts(t *testing.T) {
	local := time.Local
	t.Cleanup(func() { time.Local = local })
	time.Local = time.FixedZone("here", -5*60*60)
	if !parse(t, "Sat 02:00-05:00").Open(at(t, "2026-03-28T07:30:00Z")) {
		t.Error("closed at 02:30 here")
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "empty",
		"  ":                              "empty",
		"Sat,Sun":                         "no time",
		"02:00":                           `"02:00" has no end`,
		"2:00-5:00":                       `no time "2:00"`,
		"02:00-25:00":                     `no time "25:00"`,
		"02:60-05:00":                     `no time "02:60"`,
		"02:00-05:00:00":                  `no time "05:00:00"`,
		"24:00-05:00":                     "begins at 24:00",
		"02:00-02:00":                     "00:00-24:00",
		"Son 02:00-05:00":                 `no day "Son"`,
		"Sat, 02:00-05:00":                `no day ""`,
		"Mon- 02:00-05:00":                `no day ""`,
		"Sat, Sun 02:00-05:00":            "without spaces",
		"Sat 02:00-05:00 Mars/Olympus":    `no time zone "Mars/Olympus"`,
		"Sat 02:00-05:00 ../etc/passwd":   "no time zone",
		"Sat 02:00-05:00 Local":           `no time zone "Local"`,
		"Sat 02:00-05:00 Sun 02:00-05:00": "is too much",
		"Europe/Berlin 02:00-05:00":       `no day "Europe/Berlin"`,
	} {
		_, err := window.Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestWindowIsText(t *testing.T) {
	var w window.Window
	if err := w.UnmarshalText([]byte(" Sat,Sun  02:00-05:00 UTC ")); err != nil {
		t.Fatal(err)
	}
	if w.String() != "Sat,Sun 02:00-05:00 UTC" {
		t.Errorf("got %q", w)
	}
	if err := w.UnmarshalText([]byte("never")); err == nil || w.String() != "Sat,Sun 02:00-05:00 UTC" {
		t.Errorf("an invalid text: %v, %q", err, w)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("Sat,Sun 02:00-05:00 Europe/Berlin", int64(1774659600))
	f.Add("23:00-24:00", int64(0))
	f.Add("Mon-Fri 22:00-01:00 Pacific/Apia", int64(1325200000))
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		w, err := window.Parse(text)
		if err != nil {
			return
		}
		const year2100 = 4102444800
		now := time.Unix(seconds%year2100, 0)
		next := window.Windows{w}.Next(now)
		if next.Before(now) || !(window.Windows{w}).Open(next) {
			t.Errorf("%q: next from %s is %s", text, now, next)
		}
		again, err := window.Parse(w.String())
		if err != nil || again.String() != w.String() {
			t.Errorf("%q is written %q, which is %v", text, w, err)
		}
	})
}
