package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
)

// ExplanationSchema is the version of the document of explain --json.
const ExplanationSchema = 1

// Explanation tells which layer gave a path or a unit what, for programs.
type Explanation struct {
	Schema  int      `json:"schema"`
	Host    string   `json:"host"`
	Subject string   `json:"subject"`
	Origins []Origin `json:"origins"` // in the order of the layers
}

// Origin is what one layer says.
type Origin struct {
	butane.Origin
	Group    string `json:"group,omitempty"` // whose layer it is; empty: the host's own
	Template bool   `json:"template,omitempty"`
	// Source is the path in the fleet repo that contents come from.
	Source string `json:"source,omitempty"`
}

// NewExplanation adds what the host config knows of the origins.
func NewExplanation(subject string, hc *fleet.HostConfig, origins []butane.Origin) *Explanation {
	e := &Explanation{Schema: ExplanationSchema, Host: hc.Name, Subject: subject, Origins: []Origin{}}
	for _, o := range origins {
		one := Origin{Origin: o, Template: strings.HasSuffix(o.File, ".tmpl")}
		for _, layer := range hc.Layers {
			for _, d := range layer.Documents {
				if d.Entry.Path == o.File {
					one.Group = layer.Group
				}
			}
		}
		for _, ref := range hc.References {
			if ref.Position.File == o.File && (ref.Field == o.Field || strings.HasPrefix(ref.Field, o.Field+".contents")) {
				one.Source = ref.Path
				if ref.Entry.Path != "" {
					one.Source = ref.Entry.Path
				}
			}
		}
		e.Origins = append(e.Origins, one)
	}
	return e
}

// Write prints each layer with what it sets, and what of that does not count.
func (e *Explanation) Write(w io.Writer, color bool) error {
	paint := (&PlanText{Color: color}).paint
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s\n", e.Subject, e.Host)
	for _, o := range e.Origins {
		whose := "the host's own layer"
		if o.Group != "" {
			whose = "group " + o.Group
		}
		if o.Template {
			whose += ", a template"
		}
		fmt.Fprintf(&b, "  %s: %s %s (%s)\n", paint(cyan, o.Position.String()), o.Kind, o.Name, whose)
		for _, f := range o.Fields {
			text := f.Name
			if f.Name == "contents" && o.Source != "" {
				text += " from " + o.Source
				if strings.HasSuffix(o.Source, ".tmpl") {
					text += ", a template"
				}
			}
			if f.Overridden != nil {
				text = paint(yellow, text+": overridden at "+place(*f.Overridden))
			}
			fmt.Fprintf(&b, "    %s\n", text)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func place(p finding.Position) string {
	p.Field = ""
	return p.String()
}
