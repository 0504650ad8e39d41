// Package logging sets logrus up for people, for the journal and for programs.
//
// Its one rule: no time stamps of our own where the journal has them, and a
// priority prefix (sd-daemon(3)) that the journal takes off.
package logging

import (
	"bytes"
	"fmt"
	"io"
	"sort"

	"github.com/sirupsen/logrus"
)

// Options are what the flags say.
type Options struct {
	Level   string // debug, info, warn, error
	Format  string // text, json
	Color   bool
	Journal bool // stderr goes to the journal
}

// New returns the logger of a run. An unknown level or format is an error.
func New(w io.Writer, o Options) (logrus.FieldLogger, error) {
	level, err := logrus.ParseLevel(o.Level)
	if err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", o.Level)
	}
	log := &logrus.Logger{Out: w, Level: level, Hooks: logrus.LevelHooks{}}
	switch o.Format {
	case "json":
		log.Formatter = &logrus.JSONFormatter{}
	case "text":
		log.Formatter = &plain{Options: o}
	default:
		return nil, fmt.Errorf("--log-format %q is neither text nor json", o.Format)
	}
	return log, nil
}

type plain struct{ Options }

// Format writes one line: the message, then the fields that say where.
func (p *plain) Format(e *logrus.Entry) ([]byte, error) {
	var b bytes.Buffer
	switch {
	case p.Journal:
		fmt.Fprintf(&b, "<%d>", priority(e.Level))
	case e.Level <= logrus.WarnLevel && p.Color:
		fmt.Fprintf(&b, "\x1b[33m%s:\x1b[0m ", e.Level)
	case e.Level <= logrus.WarnLevel:
		fmt.Fprintf(&b, "%s: ", e.Level)
	}
	b.WriteString(e.Message)
	if e.Level == logrus.DebugLevel {
		keys := make([]string, 0, len(e.Data))
		for key := range e.Data {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			fmt.Fprintf(&b, " %s=%v", key, e.Data[key])
		}
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// priority is syslog's (RFC 5424, section 6.2.1).
func priority(level logrus.Level) int {
	switch level {
	case logrus.PanicLevel, logrus.FatalLevel:
		return 2
	case logrus.ErrorLevel:
		return 3
	case logrus.WarnLevel:
		return 4
	case logrus.InfoLevel:
		return 6
	default:
		return 7
	}
}
