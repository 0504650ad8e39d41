package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
)

// WriteDesired prints what a host config asks for as the plan for a host that
// has nothing yet: owners stay names and nothing is fetched.
func WriteDesired(w io.Writer, s desired.State) error {
	var b strings.Builder
	for _, d := range s.Directories {
		fmt.Fprintf(&b, "+ %s (directory %04o%s)\n", d.Path, d.Mode, owners(d.User, d.Group))
	}
	for _, f := range s.Files {
		fmt.Fprintf(&b, "+ %s (%04o%s%s)\n", f.Path, f.Mode, owners(f.User, f.Group), secrecy(f)+from(f))
	}
	for _, l := range s.Links {
		arrow := "->"
		if l.Hard {
			arrow = "hard link to"
		}
		fmt.Fprintf(&b, "+ %s (%s %s%s)\n", l.Path, arrow, l.Target, owners(l.User, l.Group))
	}
	for _, u := range s.Units {
		if u.Contents != nil {
			fmt.Fprintf(&b, "+ %s (0644)\n", desired.UnitPath(u.Name))
		}
		for _, d := range u.Dropins {
			if d.Contents != nil {
				fmt.Fprintf(&b, "+ %s (0644)\n", desired.DropinPath(u.Name, d.Name))
			}
		}
		for _, property := range []struct {
			value   *bool
			yes, no string
		}{{u.Mask, "mask", "unmask"}, {u.Enabled, "enable", "disable"}} {
			switch {
			case property.value == nil:
			case *property.value:
				fmt.Fprintf(&b, "%s %s\n", property.yes, u.Name)
			default:
				fmt.Fprintf(&b, "%s %s\n", property.no, u.Name)
			}
		}
	}
	for _, section := range s.Ignored {
		fmt.Fprintf(&b, "note: %s takes effect on newly provisioned machines only\n", section.Name)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func owners(user, group desired.Owner) string {
	name := func(o desired.Owner) string {
		if o.Name != "" {
			return o.Name
		}
		return fmt.Sprint(o.ID)
	}
	if user == (desired.Owner{}) && group == (desired.Owner{}) {
		return ""
	}
	return " " + name(user) + ":" + name(group)
}

func secrecy(f desired.File) string {
	if f.Secret() {
		return ", secret"
	}
	return ""
}

func from(f desired.File) string {
	switch {
	case f.Contents != nil && f.Contents.Blob != "":
		return ", from " + f.Contents.Path
	case f.Contents != nil && f.Contents.URL != "":
		return ", fetched"
	case f.Contents != nil:
		return ""
	case len(f.Append) > 0:
		return ", appended to"
	default:
		return ", contents left alone"
	}
}

// WriteSummary counts what a host config asks for.
func WriteSummary(w io.Writer, hc *fleet.HostConfig, s desired.State) error {
	_, err := fmt.Fprintf(w, "%s: %s, %s, %s, %s; %s, %s; digest %s\n", hc.Name,
		counted(len(s.Files), "file", "files"), counted(len(s.Directories), "directory", "directories"),
		counted(len(s.Links), "link", "links"), counted(len(s.Units), "unit", "units"),
		counted(len(hc.Layers), "layer", "layers"), counted(len(hc.References), "reference", "references"), hc.Digest)
	return err
}

// DesiredSchema is the version of the document of translate --to plan --json.
const DesiredSchema = 1

// DesiredDocument is what a host config asks for, for programs. It names
// contents and does not hold them.
type DesiredDocument struct {
	Schema  int               `json:"schema"`
	Host    string            `json:"host"`
	Digest  string            `json:"digest"`
	Paths   []DesiredPath     `json:"paths"`
	Units   []DesiredUnit     `json:"units"`
	Ignored []desired.Section `json:"ignored,omitempty"`
}

// DesiredPath is one path that is asked for.
type DesiredPath struct {
	Path  string `json:"path"`
	Kind  string `json:"kind"`
	Mode  string `json:"mode,omitempty"`
	User  string `json:"user,omitempty"`
	Group string `json:"group,omitempty"`
	To    string `json:"target,omitempty"`
}

// DesiredUnit is what is asked of a unit besides its files.
type DesiredUnit struct {
	Name    string `json:"name"`
	Enabled *bool  `json:"enabled,omitempty"`
	Mask    *bool  `json:"mask,omitempty"`
}

// NewDesiredDocument describes a desired state.
func NewDesiredDocument(hc *fleet.HostConfig, s desired.State) *DesiredDocument {
	doc := &DesiredDocument{Schema: DesiredSchema, Host: hc.Name, Digest: string(hc.Digest), Paths: []DesiredPath{}, Units: []DesiredUnit{}, Ignored: s.Ignored}
	name := func(o desired.Owner) string {
		if o.Name != "" {
			return o.Name
		}
		return fmt.Sprint(o.ID)
	}
	for _, d := range s.Directories {
		doc.Paths = append(doc.Paths, DesiredPath{d.Path, "directory", fmt.Sprintf("%04o", d.Mode), name(d.User), name(d.Group), ""})
	}
	for _, f := range s.Files {
		doc.Paths = append(doc.Paths, DesiredPath{f.Path, "file", fmt.Sprintf("%04o", f.Mode), name(f.User), name(f.Group), ""})
	}
	for _, l := range s.Links {
		kind := "link"
		if l.Hard {
			kind = "hardlink"
		}
		doc.Paths = append(doc.Paths, DesiredPath{l.Path, kind, "", name(l.User), name(l.Group), l.Target})
	}
	for _, u := range s.Units {
		if u.Contents != nil {
			doc.Paths = append(doc.Paths, DesiredPath{desired.UnitPath(u.Name), "file", "0644", "0", "0", ""})
		}
		for _, d := range u.Dropins {
			if d.Contents != nil {
				doc.Paths = append(doc.Paths, DesiredPath{desired.DropinPath(u.Name, d.Name), "file", "0644", "0", "0", ""})
			}
		}
		doc.Units = append(doc.Units, DesiredUnit{u.Name, u.Enabled, u.Mask})
	}
	return doc
}
