// Package expand runs the templates of a fleet repo: layers and files whose
// names end in .tmpl, in the language of text/template.
//
// Its one rule: a template is a pure function of the host's name and facts and
// of the fleet's vars, and it ends. It knows no clock, no environment and no
// files; its steps, its recursion and its output are bounded, and what it may
// read is known before it runs.
package expand

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
)

// Host is what a template knows of the host.
type Host struct{ Name, Arch, MachineID string }

// Template is a template that was read. One goroutine at a time may use it.
type Template struct {
	name   string
	source string
	tmpl   *template.Template
	run    *run
	nodes  []parse.Node // what _at counts
}

// called is the name of every template: nobody defines one of that name in it,
// and the library's errors begin with it.
const called = "."

// maxSource bounds what nested parentheses and blocks cost the parser.
const maxSource = 1 << 20

// Parse reads a template; name is what it is called in findings. Its error is a
// *finding.Failure.
func Parse(name string, source []byte) (*Template, error) {
	t := &Template{name: name, source: string(source), run: &run{}}
	if len(source) > maxSource {
		return nil, t.fail(finding.Position{}, "split it", "the template has %d bytes: at most %d (1 MiB) are allowed", len(source), maxSource)
	}
	tmpl, err := template.New(called).Option("missingkey=error").Funcs(t.run.functions()).Parse(t.source)
	if err != nil {
		return nil, t.said(err)
	}
	t.tmpl = tmpl
	return t, nil
}

// instrument puts the hidden functions between the nodes. They are not known
// while a template is parsed, so that none can call them.
func (t *Template) instrument() {
	if t.nodes != nil {
		return
	}
	t.tmpl.Funcs(template.FuncMap{"_at": t.run.at, "_enter": t.run.enter, "_leave": t.run.leave})
	for _, one := range t.tmpl.Templates() {
		if one.Tree == nil || one.Root == nil {
			continue
		}
		t.list(one.Tree, one.Root)
		root := one.Root
		root.Nodes = slices.Concat([]parse.Node{hidden(one.Tree, root.Pos, "_enter", 0)}, root.Nodes, []parse.Node{hidden(one.Tree, root.Pos, "_leave", 0)})
	}
}

// list notes before each node where the run is, which counts as a step. The
// body of a loop has one even when there is nothing in it.
func (t *Template) list(tree *parse.Tree, l *parse.ListNode) {
	if l == nil {
		return
	}
	var nodes []parse.Node
	for _, n := range slices.Concat(l.Nodes, []parse.Node{l}) {
		nodes = append(nodes, hidden(tree, n.Position(), "_at", len(t.nodes)))
		t.nodes = append(t.nodes, n)
		if n == parse.Node(l) {
			break
		}
		nodes = append(nodes, n)
		switch n := n.(type) {
		case *parse.IfNode:
			t.list(tree, n.List)
			t.list(tree, n.ElseList)
		case *parse.WithNode:
			t.list(tree, n.List)
			t.list(tree, n.ElseList)
		case *parse.RangeNode:
			t.list(tree, n.List)
			t.list(tree, n.ElseList)
		}
	}
	l.Nodes = nodes
}

// hidden is a call that prints nothing.
func hidden(tree *parse.Tree, pos parse.Pos, name string, arg int) parse.Node {
	args := []parse.Node{
		parse.NewIdentifier(name).SetTree(tree).SetPos(pos),
		&parse.NumberNode{NodeType: parse.NodeNumber, Pos: pos, IsInt: true, Int64: int64(arg), Text: strconv.Itoa(arg)},
	}
	cmd := &parse.CommandNode{NodeType: parse.NodeCommand, Pos: pos, Args: args}
	pipe := &parse.PipeNode{NodeType: parse.NodePipe, Pos: pos, Cmds: []*parse.CommandNode{cmd}}
	return &parse.ActionNode{NodeType: parse.NodeAction, Pos: pos, Pipe: pipe}
}

// Execute expands the template to at most limit bytes. Its error is a
// *finding.Failure.
func (t *Template) Execute(host Host, vars map[string]any, limit int) (_ *Expanded, err error) {
	t.instrument()
	r := t.run
	*r = run{nodes: t.nodes, limit: limit, left: maxWork}
	defer func() {
		if p := recover(); p != nil {
			err = t.fail(t.position(r.here()), "", "internal error: this template cannot be expanded: %v", p)
		}
	}()
	data := map[string]any{
		"Host": map[string]any{"Name": host.Name, "Arch": host.Arch, "MachineID": host.MachineID},
		"Vars": vars,
	}
	if err := t.tmpl.Execute(r, data); err != nil {
		var over *overError
		if errors.As(err, &over) {
			return nil, t.fail(t.position(r.here()), over.hint, "%s", over.message)
		}
		return nil, t.saidOf(err, vars)
	}
	return &Expanded{Data: r.out, pieces: r.pieces, from: linesOf(t.source), starts: linesOf(string(r.out))}, nil
}

// Expanded is what became of a template.
type Expanded struct {
	Data []byte

	pieces []piece
	from   []int // where the lines of the template begin
	starts []int // where those of Data begin
}

// piece is where a node began to write.
type piece struct {
	out  int // offset in the output
	from int // offset in the template
	text bool
}

// At is the place in the template that the given place of the output comes
// from; lines and columns count from 1, columns in bytes.
func (e *Expanded) At(line, column int) (int, int) {
	if line < 1 || line > len(e.starts) || len(e.pieces) == 0 {
		return line, column
	}
	at := e.starts[line-1] + max(column, 1) - 1
	i, ok := slices.BinarySearchFunc(e.pieces, at, func(p piece, at int) int { return p.out - at })
	if !ok {
		i--
	}
	if i < 0 {
		i = 0
	}
	p := e.pieces[i]
	offset := p.from
	if p.text {
		offset += at - p.out
	}
	fromLine, fromColumn := lineOf(e.from, offset)
	if column == 0 {
		fromColumn = 0
	}
	return fromLine, fromColumn
}

// linesOf are the offsets where lines begin.
func linesOf(text string) []int {
	starts := []int{0}
	for i := range len(text) {
		if text[i] == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// lineOf is line and column of an offset.
func lineOf(starts []int, offset int) (line, column int) {
	i, ok := slices.BinarySearch(starts, offset)
	if !ok {
		i--
	}
	return i + 1, offset - starts[i] + 1
}

func (t *Template) position(offset int) finding.Position {
	pos := finding.Position{File: t.name}
	pos.Line, pos.Column = lineOf(linesOf(t.source), offset)
	return pos
}

func (t *Template) fail(pos finding.Position, hint, format string, args ...any) error {
	pos.File = t.name
	return &finding.Failure{Findings: finding.List{{Severity: finding.Error, Position: pos, Message: fmt.Sprintf(format, args...), Hint: hint}}}
}

var (
	// place begins every error of the library; the column counts from 0.
	place = regexp.MustCompile(`(?s)^` + regexp.QuoteMeta(called) + `:(\d+)(?::(\d+))?: (?:executing ".*?" at <(.*?)>: )?(.*)$`)
	// missing is how it says that a map lacks a key.
	missing = regexp.MustCompile(`^map has no entry for key "(.*)"$`)
	// noTable is how it says that what stands before the last dot has no keys.
	noTable = regexp.MustCompile(`^(?:can't evaluate field|nil pointer evaluating interface {}\.) ?(\w+).*$`)
	// started is where an action began that does not end.
	started = regexp.MustCompile(` started at ` + regexp.QuoteMeta(called) + `:(\d+)`)
	// calling stands before the error of a function.
	calling = regexp.MustCompile(`^error calling \w+: `)
)

func (t *Template) said(err error) error { return t.saidOf(err, nil) }

// saidOf turns an error of the library into a finding.
func (t *Template) saidOf(err error, vars map[string]any) error {
	var pos finding.Position
	text, hint := strings.TrimPrefix(err.Error(), "template: "), ""
	if m := place.FindStringSubmatch(text); m != nil {
		pos.Line, _ = strconv.Atoi(m[1])
		if m[2] != "" {
			pos.Column, _ = strconv.Atoi(m[2])
			pos.Column++
		}
		if begun := started.FindStringSubmatch(m[4]); begun != nil {
			pos.Line, _ = strconv.Atoi(begun[1])
			m[4] = started.ReplaceAllString(m[4], "")
		}
		text = calling.ReplaceAllString(m[4], "")
		text = noTable.ReplaceAllString(text, "there is no $1 in what is no table")
		if key := missing.FindStringSubmatch(text); key != nil {
			text, hint = t.lacking(m[3], key[1], vars)
		}
	}
	return t.fail(pos, hint, "%s", text)
}

// lacking says which key is missing, and what was probably meant.
func (t *Template) lacking(expression, key string, vars map[string]any) (message, hint string) {
	names, what := []string{"Host", "Vars"}, "value"
	switch {
	case strings.Contains(expression, "Host."):
		names = []string{"Name", "Arch", "MachineID"}
	case strings.Contains(expression, "Vars."):
		names, what = keysOf(vars), "var"
		hint = "set it under [vars], [group.X] or [host.N] in fleet.toml, or ask for it with dig, which takes a default"
	}
	if near := tomlfile.Nearest(key, names); near != "" && !slices.Contains(names, key) {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	if hint == "" {
		hint = "a template knows .Host.Name, .Host.Arch, .Host.MachineID and .Vars"
	}
	return fmt.Sprintf("there is no %s %s for this host", what, key), hint
}

// keysOf are the names of all vars, also of those in tables.
func keysOf(vars map[string]any) []string {
	names := slices.Sorted(maps.Keys(vars))
	for _, name := range slices.Clone(names) {
		if table, ok := vars[name].(map[string]any); ok {
			names = append(names, keysOf(table)...)
		}
	}
	return names
}
