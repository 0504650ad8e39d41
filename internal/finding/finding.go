// Package finding holds what is wrong with a host config, and where.
//
// Its one rule: a finding names a place that its reader can open (file, line,
// column, or the Butane field), says what to do, and never shows the contents
// of a managed file.
package finding

import (
	"fmt"
	"io"
	"strings"
)

// Severity says what a finding does to the run.
type Severity string

// An Error stops the run before anything changes; a Warning is printed only;
// Info is printed where a person asked for the whole translation.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Position is a place in the fleet repo. Line and Column count from 1; 0 means
// that only the file, or the field, is known.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	// Field is the place in Butane's words: storage.files[3].contents.local.
	Field string `json:"field,omitempty"`
}

// String is file:line:col as editors understand it.
func (p Position) String() string {
	switch {
	case p.File == "":
		return p.Field
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	default:
		return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
	}
}

// Finding is one thing that is wrong, or worth knowing, about a host config.
type Finding struct {
	Severity Severity `json:"severity"`
	Position
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	// Excerpt is the line of the layer that Position names, without its newline.
	Excerpt string `json:"excerpt,omitempty"`
}

// List is the findings of one host config, in the order of its layers.
type List []Finding

// Errors are the findings that stop a run.
func (l List) Errors() List {
	var errs List
	for _, f := range l {
		if f.Severity == Error {
			errs = append(errs, f)
		}
	}
	return errs
}

// Write prints every finding: severity, place and message on the first line,
// then the excerpt with a caret, then the hint.
func (l List) Write(w io.Writer) error {
	for _, f := range l {
		if _, err := io.WriteString(w, f.text()); err != nil {
			return err
		}
	}
	return nil
}

func (f Finding) text() string {
	var b strings.Builder
	if at := f.Position.String(); at != "" {
		fmt.Fprintf(&b, "%s: ", at)
	}
	fmt.Fprintf(&b, "%s: %s", f.Severity, f.Message)
	if f.Field != "" && f.File != "" {
		fmt.Fprintf(&b, " (%s)", f.Field)
	}
	b.WriteByte('\n')
	if f.Excerpt != "" {
		// Tabs stay tabs in the caret's line too, so that it stands under its column.
		pad := func(r rune) rune {
			if r == '\t' {
				return r
			}
			return ' '
		}
		before := f.Excerpt
		if at := f.Column - 1; at >= 0 && at < len(before) {
			before = before[:at]
		}
		fmt.Fprintf(&b, "    %s\n", f.Excerpt)
		if f.Column > 0 {
			fmt.Fprintf(&b, "    %s^\n", strings.Map(pad, before))
		}
	}
	if f.Hint != "" {
		fmt.Fprintf(&b, "    hint: %s\n", f.Hint)
	}
	return b.String()
}

// Failure is the error that a list with errors in it is returned as.
type Failure struct{ Findings List }

// Error is one line for every error, with its place and its hint.
func (f *Failure) Error() string {
	var lines []string
	for _, one := range f.Findings.Errors() {
		line := one.Message
		if at := one.Position.String(); at != "" {
			line = at + ": " + line
		}
		if one.Hint != "" {
			line += " (" + one.Hint + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// Err returns a *Failure when the list holds an error.
func (l List) Err() error {
	if len(l.Errors()) == 0 {
		return nil
	}
	return &Failure{Findings: l}
}
