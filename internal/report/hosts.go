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
