// Package report turns plans, state and history into text for people and
// JSON for programs.
//
// Its one rule: it reads and never decides, and it shows no contents of a file
// that others on the host may not read.
package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// PlanText shows plans.
type PlanText struct {
	Host  *host.Host
	Color bool
	// Diffs shows what changes in text files. The plan must come from plan.Make.
	Diffs bool
}

// others is the bit that lets everybody read a file. Without it the file is
// treated as a secret.
const others = 0o004

// most bounds what is read of a file to show its diff.
const most = 256 << 10

// Summary counts what the plan does: "2 to create, 1 to remove".
func Summary(p *plan.Plan) string {
	counts := map[plan.Action]int{}
	for i := range p.Items {
		item := &p.Items[i]
		if item.Origin == state.Parent && item.Write {
			continue // directories made along the way are not what a person asked for
		}
		if item.Write || slices.Contains([]plan.Action{plan.Drift, plan.Keep, plan.Conflict, plan.Blocked}, item.Action) {
			counts[item.Action]++
		}
	}
	var parts []string
	for _, one := range []struct {
		action plan.Action
		text   string
	}{
		{plan.Create, "to create"}, {plan.Update, "to update"}, {plan.Adopt, "to adopt"}, {plan.Conflict, "in conflict"},
		{plan.Remove, "to remove"}, {plan.Restore, "to restore"}, {plan.Drift, "drifted"}, {plan.Keep, "left behind"},
		{plan.Blocked, "blocked"},
	} {
		if n := counts[one.action]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, one.text))
		}
	}
	enable, disable := 0, 0
	for _, u := range p.Units {
		if u.Enable {
			enable++
		} else {
			disable++
		}
	}
	for _, one := range []struct {
		n    int
		text string
	}{{enable, "to enable"}, {disable, "to disable"}, {len(restarts(p)), "to restart or start"}} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", units(one.n), one.text))
		}
	}
	if len(parts) == 0 {
		return "nothing to change"
	}
	return strings.Join(parts, ", ")
}

func units(n int) string { return counted(n, "unit", "units") }

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func restarts(p *plan.Plan) []service.Touch {
	var all []service.Touch
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches, p.Effect.Late) {
		if touch.Action != service.Keep && !slices.Contains(p.Stopped, touch.Unit) {
			all = append(all, touch)
		}
	}
	return all
}

// Write prints the plan: its summary first, then a line for every path, then
// what happens to units and why.
func (t *PlanText) Write(ctx context.Context, w io.Writer, p *plan.Plan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Plan: %s.\n", Summary(p))
	b.WriteString(section("Files", t.files(ctx, p)) + section("Units", t.units(p)))
	for _, line := range p.Ignored {
		fmt.Fprintf(&b, "  note: %s\n", line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// section is a part of the plan under its title, nothing when it is empty.
func section(title, text string) string {
	if text == "" {
		return ""
	}
	return title + ":\n" + text
}

func (t *PlanText) files(ctx context.Context, p *plan.Plan) string {
	var b strings.Builder
	for i := range p.Items {
		item := &p.Items[i]
		sign, color := sign(item)
		if sign == "" {
			continue
		}
		fmt.Fprintf(&b, "  %s %s%s\n", t.paint(color, sign), item.Path, t.describe(item))
		if t.Diffs {
			b.WriteString(t.diff(ctx, item))
		}
	}
	return b.String()
}

// units are what happens to units, each with its reason.
func (t *PlanText) units(p *plan.Plan) string {
	var b strings.Builder
	for _, u := range p.Units {
		verb := "disable"
		if u.Enable {
			verb = "enable"
		}
		fmt.Fprintf(&b, "  %s %s (%s)\n", t.paint(cyan, verb), u.Name, u.Reason)
	}
	for _, unit := range p.Stopped {
		fmt.Fprintf(&b, "  %s %s (its unit file goes, or it is masked)\n", t.paint(cyan, "stop"), unit)
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches, p.Effect.Late) {
		if slices.Contains(p.Stopped, touch.Unit) {
			continue
		}
		verb, unit := string(touch.Action), touch.Unit
		if touch.Action == service.Keep {
			verb = "leave"
		}
		if touch.Note != "" {
			unit += " (" + touch.Note + ")"
		}
		fmt.Fprintf(&b, "  %s %s: %s\n", t.paint(cyan, verb), unit, strings.Join(touch.Reasons, ", "))
	}
	for _, command := range p.Effect.Commands {
		fmt.Fprintf(&b, "  %s %s\n", t.paint(cyan, "run"), strings.Join(append(slices.Clone(command.Argv), command.Files...), " "))
	}
	return b.String()
}

// WriteScripts prints the scripts around the plan, in the order in which they
// run.
func (t *PlanText) WriteScripts(w io.Writer, runs []reconcile.PhaseRuns) error {
	verb := "would run"
	if t.Host.Live() {
		verb = "run"
	}
	var b strings.Builder
	for _, phase := range runs {
		for _, s := range phase.Scripts {
			where := s.Path
			if s.Fleet {
				where += " of the fleet repo"
			}
			if s.New {
				where += ", new"
			}
			fmt.Fprintf(&b, "  %s %s.d/%s (%s)\n", t.paint(cyan, verb), phase.Phase, s.Name, where)
		}
		for _, one := range phase.NotRun {
			fmt.Fprintf(&b, "  note: %s is not run: %s\n", one.Path, one.Reason)
		}
	}
	_, err := io.WriteString(w, section("Scripts", b.String()))
	return err
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (t *PlanText) paint(color, text string) string {
	if !t.Color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// sign is + ~ - !, "" for what is only recorded.
func sign(item *plan.Item) (string, string) {
	switch item.Action {
	case plan.Create:
		return "+", green
	case plan.Update, plan.Restore:
		return "~", yellow
	case plan.Adopt:
		if !item.Write {
			return "", ""
		}
		return "~", yellow
	case plan.Remove:
		return "-", red
	case plan.Conflict, plan.Drift, plan.Keep, plan.Blocked:
		return "!", red
	default:
		return "", ""
	}
}

func (t *PlanText) describe(item *plan.Item) string {
	var parts []string
	before, after := item.Before, item.After
	switch {
	case item.Action == plan.Blocked:
		return fmt.Sprintf(" (blocked: %s; in %s)", item.Note, item.Place.Of(t.Host.UserName(item.Place.UID)))
	case item.Action == plan.Create && after.Kind == disk.Directory:
		parts = append(parts, fmt.Sprintf("directory %04o", after.Mode))
	case item.Action == plan.Create && after.Kind == disk.File:
		parts = append(parts, fmt.Sprintf("%04o", after.Mode))
	case (after.Kind == disk.Link || after.Kind == disk.HardLink) && after.Target != before.Target:
		arrow := "-> "
		if after.Kind == disk.HardLink {
			arrow = "hard link to "
		}
		parts = append(parts, arrow+after.Target)
	case before.Kind != after.Kind && after.Kind != disk.Absent:
		parts = append(parts, fmt.Sprintf("%s becomes %s", before.Kind, after.Kind))
	case after.Kind != disk.Absent:
		if before.Mode != after.Mode && after.Kind != disk.Link {
			parts = append(parts, fmt.Sprintf("mode %04o -> %04o", before.Mode, after.Mode))
		}
		if before.UID != after.UID || before.GID != after.GID || after.User+after.Group != "" {
			parts = append(parts, fmt.Sprintf("owner %s -> %s", owner(before), owner(after)))
		}
	}
	switch item.Action {
	case plan.Adopt, plan.Conflict, plan.Drift, plan.Restore:
		parts = append(parts, string(item.Action))
	case plan.Keep:
		parts = append(parts, "left as it is")
	}
	if item.Note != "" {
		parts = append(parts, item.Note)
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

func owner(n disk.Node) string {
	part := func(name string, id int) string {
		if name != "" {
			return name
		}
		return fmt.Sprint(id)
	}
	return part(n.User, n.UID) + ":" + part(n.Group, n.GID)
}

// diff is a unified diff of text that everybody on the host may read, and for
// everything else what can be said without showing it.
func (t *PlanText) diff(ctx context.Context, item *plan.Item) string {
	if !item.NeedsContent() && (item.After.Kind != disk.Absent || item.Before.Kind != disk.File) {
		return ""
	}
	if item.Secret() || item.After.Kind == disk.File && item.After.Mode&others == 0 || item.Before.Kind == disk.File && item.Before.Mode&others == 0 {
		return "      secret, changed\n"
	}
	old, err1 := t.before(item)
	new, err2 := after(ctx, item)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Sprintf("      cannot be shown: %v\n", err)
	}
	if !text(old) || !text(new) || item.After.Size > most || item.Before.Size > most {
		return fmt.Sprintf("      %s -> %s\n", size(item.Before), size(item.After))
	}
	out := diff.Diff("before", old, "after", new)
	var b strings.Builder
	for i, line := range bytes.SplitAfter(out, []byte("\n")) {
		if i < 3 || len(line) == 0 { // the header repeats the path
			continue
		}
		color := ""
		switch line[0] {
		case '+':
			color = green
		case '-':
			color = red
		case '@':
			color = cyan
		}
		shown := printable(strings.TrimSuffix(string(line), "\n"))
		if color != "" {
			shown = t.paint(color, shown)
		}
		b.WriteString("      " + shown + "\n")
	}
	return b.String()
}

func (t *PlanText) before(item *plan.Item) ([]byte, error) {
	if item.Before.Kind != disk.File || item.Before.Size > most {
		return nil, nil
	}
	return t.Host.Files.ReadFile(item.Path, most)
}

func after(ctx context.Context, item *plan.Item) ([]byte, error) {
	if item.After.Kind != disk.File || item.After.Size > most {
		return nil, nil
	}
	r, err := item.Open(ctx)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func text(data []byte) bool { return utf8.Valid(data) && !bytes.ContainsRune(data, 0) }

// printable keeps control characters of a file from steering the terminal.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return '�'
		}
		return r
	}, line)
}

func size(n disk.Node) string {
	if n.Kind != disk.File {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes sha256:%.12s", n.Size, n.SHA256)
}

// PlanSchema is the version of the plan document.
const PlanSchema = 1

// WriteEngine says which engine carries the plan out, and why, unless it is the
// one that needs no choice, and what it does besides the plan.
func WriteEngine(w io.Writer, r *engine.Request, p *plan.Plan) error {
	if r.Choice.Name == engine.Native && len(r.Migrations) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Engine %s: %s.\n", r.Choice.Name, r.Choice.Reason)
	how := "with Salt, after the files:"
	if r.Choice.Name == engine.Native {
		how = "would run with Salt:"
	}
	for _, m := range r.Migrations {
		fmt.Fprintf(&b, "  %s %s\n", how, m.Path)
	}
	for i := range p.Items {
		if item := &p.Items[i]; r.Choice.Name != engine.Native && item.Write && item.Place != nil {
			fmt.Fprintf(&b, "  by reconf-pull itself: %s (in %s; Salt would open it by its name)\n", item.Path, item.Place)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// PlanDocument is the plan for programs.
type PlanDocument struct {
	Schema  int        `json:"schema"`
	Host    string     `json:"host"`
	Ref     string     `json:"ref"`
	Commit  string     `json:"commit"`
	Digest  string     `json:"digest"`
	Reasons []string   `json:"reasons"`
	Changes bool       `json:"changes"`
	Plan    *plan.Plan `json:"plan"`
	// Scripts are those that a run would run, phase by phase in their order.
	Scripts []reconcile.PhaseRuns `json:"scripts,omitempty"`
	Engine  engine.Choice         `json:"engine"`
	// Migrations are the SLS files that Salt renders after the plan's own.
	Migrations []string     `json:"migrations,omitempty"`
	Findings   finding.List `json:"findings,omitempty"`
}

// Shown is a plan as programs may see it: hashes and sizes of secrets, and of files
// that others may not read, are left out.
func Shown(p *plan.Plan) *plan.Plan {
	shown := *p
	shown.Items = append([]plan.Item{}, p.Items...)
	for i := range shown.Items {
		shown.Items[i].Base = nil // the state's
		for _, node := range []*disk.Node{&shown.Items[i].Before, &shown.Items[i].After} {
			if node.Kind == disk.File && (node.Mode&others == 0 || shown.Items[i].Secret()) {
				node.SHA256, node.Size = "", 0
			}
		}
	}
	return &shown
}

// NewPlanDocument describes a proposal.
func NewPlanDocument(p *reconcile.Proposal) *PlanDocument {
	var migrations []string
	for _, m := range p.Engine.Migrations {
		migrations = append(migrations, m.Path)
	}
	return &PlanDocument{
		Engine: p.Engine.Choice, Migrations: migrations,
		Schema: PlanSchema, Host: p.Host, Ref: p.Revision.Ref, Commit: p.Revision.Commit, Digest: p.Digest,
		Reasons: append([]string{}, p.Reasons...), Changes: p.Changes(), Plan: Shown(p.Plan), Scripts: p.Runs, Findings: p.Findings,
	}
}
