package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/reconf-pull/reconf-pull/internal/survey"
)

// WriteHosts prints a line for every host: name, digest, layers.
func WriteHosts(w io.Writer, hosts []survey.Host) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, h := range hosts {
		digest, what := fmt.Sprintf("%.12s", h.Digest), strings.Join(h.Layers, " ")
		switch {
		case h.Findings != nil:
			digest, what = "-", "broken: reconf-pull validate says why"
		case h.Retired != "":
			what = "retired"
			if h.Retired != "true" {
				what += " (" + string(h.Retired) + ")"
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", h.Name, digest, what)
	}
	return table.Flush()
}

// HostsSchema is the version of the document of hosts --json.
const HostsSchema = 1

// HostsDocument is all hosts of a fleet repo, for programs.
type HostsDocument struct {
	Schema int           `json:"schema"`
	Hosts  []survey.Host `json:"hosts"`
}

// AffectedText shows whom a change of the fleet repo affects.
type AffectedText struct {
	Color    bool
	Old, New string // what was compared
}

// shownInputs is how many inputs of a host are named in text.
const shownInputs = 3

// Write prints a line for every host that is affected, and why.
func (t *AffectedText) Write(w io.Writer, a *survey.Affection) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s to %s: ", t.Old, t.New)
	switch n := len(a.Affected); n {
	case 0:
		fmt.Fprintf(&b, "none of %s affected\n", counted(a.Hosts, "host is", "hosts is"))
	default:
		fmt.Fprintf(&b, "%s affected, of %d\n", counted(n, "host", "hosts"), a.Hosts)
	}
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, e := range a.Affected {
		sign, color, why := "~", yellow, inputs(e.Inputs)
		switch e.Kind {
		case survey.Added:
			sign, color, why = "+", green, "new"
		case survey.Removed:
			sign, color, why = "-", red, "has no config any more: its machine keeps what it has"
		case survey.Renamed:
			why = "was " + e.Was
			if rest := inputs(e.Inputs); rest != "" {
				why += "; " + rest
			}
		case survey.Broken:
			sign, color, why = "!", red, "broken: reconf-pull validate says why"
		}
		if why == "" {
			why = "could not be read before"
		}
		fmt.Fprintf(table, "  %s\t%s\n", (&PlanText{Color: t.Color}).paint(color, sign)+" "+e.Host, why)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// inputs names what differs, without what every rename changes.
func inputs(list []survey.InputChange) string {
	var parts []string
	for _, in := range list {
		if in.Kind == "host" {
			continue
		}
		text := in.Kind + " " + in.Name
		if in.Field != "" {
			text = in.Name + " (" + in.Field + ")"
		}
		switch {
		case in.New == "" && in.Old != "":
			text += " gone"
		case in.Old == "" && in.New != "":
			text += " added"
		}
		parts = append(parts, text)
	}
	if n := len(parts) - shownInputs; n > 0 {
		parts = append(parts[:shownInputs], fmt.Sprintf("%d more", n))
	}
	return strings.Join(parts, ", ")
}

// AffectedSchema is the version of the document of affected --json.
const AffectedSchema = 1

// AffectedDocument is whom a change affects, for programs.
type AffectedDocument struct {
	Schema   int             `json:"schema"`
	Old      string          `json:"old"` // commit, or directory
	New      string          `json:"new"`
	Hosts    int             `json:"hosts"`
	Affected []survey.Effect `json:"affected"`
}
