package expand

import (
	"slices"
	"strings"
	"text/template/parse"
)

// Reads are the inputs that the template names: [Host Arch], [Vars log level].
// A path stands for everything below it, [Vars] for all vars, an empty one for
// everything that there is. What stands in a branch that is not taken counts
// too, so that a template is only read for it and not run.
func (t *Template) Reads() [][]string {
	w := walker{template: t, seen: map[visit]bool{}}
	w.named(called, true)
	slices.SortFunc(w.reads, func(a, b []string) int { return slices.Compare(a, b) })
	var reads [][]string
	for _, path := range w.reads {
		// What an earlier, shorter path stands for needs no line of its own.
		if last := len(reads) - 1; last < 0 || len(path) < len(reads[last]) || !slices.Equal(reads[last], path[:len(reads[last])]) {
			reads = append(reads, path)
		}
	}
	return reads
}

// walker follows what the dot and $ stand for as far as they are the data that
// the template was given. Whatever else they are was read to get there.
type walker struct {
	template *Template
	seen     map[visit]bool
	reads    [][]string
}

type visit struct {
	name string
	root bool
}

// scope tells whether the dot, and $, are the template's data.
type scope struct{ dot, dollar bool }

func (w *walker) named(name string, root bool) {
	v := visit{name, root}
	one := w.template.tmpl.Lookup(name)
	if w.seen[v] || one == nil || one.Tree == nil {
		return
	}
	w.seen[v] = true
	w.list(one.Root, scope{root, root})
}

func (w *walker) list(l *parse.ListNode, s scope) {
	if l == nil {
		return
	}
	inside := scope{false, s.dollar}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			w.pipe(n.Pipe, s)
		case *parse.IfNode:
			w.pipe(n.Pipe, s)
			w.list(n.List, s)
			w.list(n.ElseList, s)
		case *parse.WithNode:
			w.pipe(n.Pipe, s)
			w.list(n.List, inside)
			w.list(n.ElseList, s)
		case *parse.RangeNode:
			w.pipe(n.Pipe, s)
			w.list(n.List, inside)
			w.list(n.ElseList, s)
		case *parse.TemplateNode:
			if path, ok := w.whole(n.Pipe, s); ok && len(path) == 0 {
				w.named(n.Name, true)
				continue
			}
			if n.Pipe != nil {
				w.pipe(n.Pipe, s)
			}
			w.named(n.Name, false)
		}
	}
}

// whole is the path that a pipeline is and nothing else.
func (w *walker) whole(p *parse.PipeNode, s scope) ([]string, bool) {
	if p == nil || len(p.Decl) > 0 || len(p.Cmds) != 1 || len(p.Cmds[0].Args) != 1 {
		return nil, false
	}
	return path(p.Cmds[0].Args[0], s)
}

func (w *walker) pipe(p *parse.PipeNode, s scope) {
	for _, cmd := range p.Cmds {
		args := cmd.Args
		if name, ok := args[0].(*parse.IdentifierNode); ok {
			args = w.keyed(name.Ident, args[1:], s)
		}
		for _, arg := range args {
			w.arg(arg, s)
		}
	}
}

// keyed notes what index, hasKey and dig look up, as far as their keys are
// written out, and returns the arguments that are left.
func (w *walker) keyed(function string, args []parse.Node, s scope) []parse.Node {
	var table parse.Node
	var keys, rest []parse.Node
	switch {
	case len(args) < 2:
		return args
	case function == "index" || function == "hasKey":
		table, keys, rest = args[0], args[1:], args[1:]
	case function == "dig" && len(args) > 2:
		table, keys, rest = args[len(args)-1], args[:len(args)-2], args[:len(args)-1]
	default:
		return args
	}
	from, ok := path(table, s)
	if !ok {
		return args
	}
	for _, key := range keys {
		text, ok := key.(*parse.StringNode)
		if !ok {
			break
		}
		from = append(from, text.Text)
	}
	w.reads = append(w.reads, from)
	return rest
}

func (w *walker) arg(n parse.Node, s scope) {
	if p, ok := path(n, s); ok {
		w.reads = append(w.reads, p)
		return
	}
	switch n := n.(type) {
	case *parse.PipeNode:
		w.pipe(n, s)
	case *parse.ChainNode:
		w.arg(n.Node, s)
	}
}

// path is what a node names of the data, if it does.
func path(n parse.Node, s scope) ([]string, bool) {
	switch n := n.(type) {
	case *parse.DotNode:
		return nil, s.dot
	case *parse.FieldNode:
		return slices.Clone(n.Ident), s.dot
	case *parse.VariableNode:
		return slices.Clone(n.Ident[1:]), s.dollar && n.Ident[0] == "$"
	default:
		return nil, false
	}
}

// String is a path as a template writes it.
func String(path []string) string { return "." + strings.Join(path, ".") }
