package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/survey"
)

// ValidationText shows what is wrong with a fleet repo.
type ValidationText struct {
	Color bool
	// Dir leads from the working directory to the fleet repo, so that an editor
	// finds the files; "" when it does not lie below.
	Dir string
}

// shownHosts is how many hosts a finding names in text.
const shownHosts = 5

// Write prints every finding with its line, a caret and the hosts that it
// concerns, and the sum at the end.
func (t *ValidationText) Write(w io.Writer, v *survey.Validation) error {
	var b strings.Builder
	for _, f := range v.Findings {
		shown := f.Finding
		shown.File = below(t.Dir, f.File)
		var one bytes.Buffer
		if err := (finding.List{shown}).Write(&one); err != nil {
			return err
		}
		b.WriteString(t.severity(one.String(), f.Severity))
		if named := concerned(f, len(v.Hosts)); named != "" {
			fmt.Fprintf(&b, "    %s\n", named)
		}
	}
	b.WriteString(sum(v) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// below is a path of the fleet repo as seen from the working directory.
func below(dir, file string) string {
	if file == "" {
		return ""
	}
	return path.Join(dir, file)
}

func (t *ValidationText) severity(text string, s finding.Severity) string {
	if !t.Color {
		return text
	}
	color := red
	if s != finding.Error {
		color = yellow
	}
	word := string(s) + ": "
	return strings.Replace(text, word, "\x1b["+color+"m"+word+"\x1b[0m", 1)
}

// concerned names the hosts of a finding, "" where its file says which one it is.
func concerned(f survey.Finding, all int) string {
	n := len(f.Hosts)
	switch {
	case n == 0 || n == 1 && strings.Contains(strings.ToLower(f.File), strings.ToLower(f.Hosts[0])):
		return ""
	case n == 1:
		return "host: " + f.Hosts[0]
	case n == all:
		return fmt.Sprintf("hosts: all %d", n)
	case n > shownHosts:
		return fmt.Sprintf("hosts: %s and %d more", strings.Join(f.Hosts[:shownHosts], ", "), n-shownHosts)
	default:
		return "hosts: " + strings.Join(f.Hosts, ", ")
	}
}

func sum(v *survey.Validation) string {
	errs, warnings := count(v)
	text := counted(len(v.Hosts), "host", "hosts")
	switch {
	case len(v.Hosts) == 0:
		text = "no host could be looked at"
	case errs == 0 && warnings == 0:
		return text + ": all valid"
	case errs == 0:
		return text + ": all valid, " + counted(warnings, "warning", "warnings")
	}
	if n := len(v.Broken); n > 0 {
		text += fmt.Sprintf(", %d broken", n)
	}
	text += ": " + counted(errs, "error", "errors")
	if warnings > 0 {
		text += ", " + counted(warnings, "warning", "warnings")
	}
	return text
}

func count(v *survey.Validation) (errs, warnings int) {
	for _, f := range v.Findings {
		if f.Severity == finding.Error {
			errs++
		} else {
			warnings++
		}
	}
	return errs, warnings
}

// ValidationSchema is the version of the document of validate --format json.
const ValidationSchema = 1

// ValidationDocument is a validation for programs. Files are relative to the
// root of the fleet repo.
type ValidationDocument struct {
	Schema   int              `json:"schema"`
	Valid    bool             `json:"valid"`
	Hosts    []string         `json:"hosts"`
	Broken   []string         `json:"broken"`
	Errors   int              `json:"errors"`
	Warnings int              `json:"warnings"`
	Findings []survey.Finding `json:"findings"`
}

// NewValidationDocument describes a validation.
func NewValidationDocument(v *survey.Validation) *ValidationDocument {
	errs, warnings := count(v)
	return &ValidationDocument{
		Schema: ValidationSchema, Valid: errs == 0, Errors: errs, Warnings: warnings,
		Hosts: append([]string{}, v.Hosts...), Broken: append([]string{}, v.Broken...), Findings: append([]survey.Finding{}, v.Findings...),
	}
}

// WriteGitHub prints workflow commands, which GitHub and Gitea show beside the
// lines of a change; dir leads from the root of the repo to the fleet.
func WriteGitHub(w io.Writer, v *survey.Validation, dir string) error {
	// What ends a command or a property of it is escaped as GitHub does it.
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	var b strings.Builder
	for _, f := range v.Findings {
		var properties []string
		for _, one := range []struct {
			name, value string
			set         bool
		}{
			{"file", below(dir, f.File), f.File != ""},
			{"line", fmt.Sprint(f.Line), f.Line > 0},
			{"col", fmt.Sprint(f.Column), f.Column > 0},
			{"title", "reconf-pull validate", true},
		} {
			if one.set {
				properties = append(properties, one.name+"="+property.Replace(one.value))
			}
		}
		fmt.Fprintf(&b, "::%s %s::%s\n", f.Severity, strings.Join(properties, ","), data.Replace(told(f, len(v.Hosts))))
	}
	b.WriteString(sum(v) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// told is a finding as the text of an annotation, which has a place already.
func told(f survey.Finding, all int) string {
	lines := []string{f.Message}
	if f.Field != "" {
		lines[0] += " (" + f.Field + ")"
	}
	if f.Hint != "" {
		lines = append(lines, "hint: "+f.Hint)
	}
	if named := concerned(f, all); named != "" {
		lines = append(lines, named)
	}
	return strings.Join(lines, "\n")
}

// quality is one issue of GitLab's code quality report.
type quality struct {
	Description string   `json:"description"`
	CheckName   string   `json:"check_name"`
	Fingerprint string   `json:"fingerprint"`
	Severity    string   `json:"severity"`
	Location    location `json:"location"`
}

type location struct {
	Path  string `json:"path"`
	Lines struct {
		Begin int `json:"begin"`
	} `json:"lines"`
}

// WriteGitLab prints a code quality report; dir leads from the root of the repo
// to the fleet. A fingerprint does not depend on the line, so that GitLab knows
// an issue again when it moves.
func WriteGitLab(w io.Writer, v *survey.Validation, dir string) error {
	all := []quality{}
	seen := map[string]int{}
	for _, f := range v.Findings {
		q := quality{Description: told(f, len(v.Hosts)), CheckName: "reconf-pull validate", Severity: "major"}
		if f.Severity != finding.Error {
			q.Severity = "minor"
		}
		file := f.File
		if file == "" {
			file = "."
		}
		q.Location.Path, q.Location.Lines.Begin = below(dir, file), max(f.Line, 1)
		identity := strings.Join([]string{string(f.Severity), q.Location.Path, f.Field, f.Message}, "\x00")
		seen[identity]++
		hash := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", identity, seen[identity]))
		q.Fingerprint = hex.EncodeToString(hash[:])
		all = append(all, q)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(all)
}
