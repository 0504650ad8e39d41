package expand

import (
	"fmt"
	"reflect"
	"text/template/parse"
)

// What one template may cost. They end what would not end by itself, and are
// far beyond what a config needs.
const (
	maxWork  = 32 << 20 // bytes that functions touch, and stepCost for each step
	stepCost = 128
	maxDepth = 100     // templates within templates
	maxValue = 1 << 20 // bytes of one value
)

// run is one execution.
type run struct {
	nodes  []parse.Node
	node   int // where it is, of nodes
	out    []byte
	limit  int
	left   int // of maxWork
	depth  int
	pieces []piece
}

// overError ends a template that takes more than it may.
type overError struct{ message, hint string }

func (e *overError) Error() string { return e.message }

func (r *run) here() int {
	if r.node >= len(r.nodes) {
		return 0
	}
	return int(r.nodes[r.node].Position())
}

// at is called before each node.
func (r *run) at(node int) (string, error) {
	r.node = node
	n := r.nodes[node]
	p := piece{out: len(r.out), from: int(n.Position()), text: n.Type() == parse.NodeText}
	if last := len(r.pieces) - 1; last >= 0 && r.pieces[last].out == p.out {
		r.pieces[last] = p
	} else {
		r.pieces = append(r.pieces, p)
	}
	return "", r.spend(stepCost)
}

func (r *run) enter(int) (string, error) {
	if r.depth++; r.depth > maxDepth {
		return "", &overError{fmt.Sprintf("templates call each other more than %d deep", maxDepth), "end the recursion"}
	}
	return "", r.spend(stepCost)
}

func (r *run) leave(int) string {
	r.depth--
	return ""
}

// Write takes the output.
func (r *run) Write(p []byte) (int, error) {
	if len(p) > r.limit-len(r.out) {
		return 0, &overError{fmt.Sprintf("the template makes more than %d bytes", r.limit), "make it shorter, split it, or raise translate.max_text"}
	}
	r.out = append(r.out, p...)
	return len(p), nil
}

// spend counts work that a function is about to do.
func (r *run) spend(n int) error {
	if r.left -= n; r.left < 0 {
		return &overError{"the template does not come to an end", "look for a loop that is too long"}
	}
	return nil
}

// tooLong refuses a value before it is made.
func tooLong(n int) error {
	if n > maxValue {
		return fmt.Errorf("a value of more than %d bytes", maxValue)
	}
	return nil
}

// charged is a function that spends what its arguments and its result weigh.
func (r *run) charged(fn any) any {
	v := reflect.ValueOf(fn)
	t := v.Type()
	var in []reflect.Type
	for i := range t.NumIn() {
		in = append(in, t.In(i))
	}
	signature := reflect.FuncOf(in, []reflect.Type{t.Out(0), reflect.TypeFor[error]()}, t.IsVariadic())
	return reflect.MakeFunc(signature, func(args []reflect.Value) []reflect.Value {
		give := func(out reflect.Value, err error) []reflect.Value {
			problem := reflect.Zero(reflect.TypeFor[error]())
			if err != nil {
				out, problem = reflect.Zero(t.Out(0)), reflect.ValueOf(&err).Elem()
			}
			return []reflect.Value{out, problem}
		}
		weight := 0
		for _, arg := range args {
			weight += weigh(arg.Interface(), r.left-weight)
		}
		if err := r.spend(weight); err != nil {
			return give(reflect.Value{}, err)
		}
		call := v.Call
		if t.IsVariadic() {
			call = v.CallSlice
		}
		out := call(args)
		if len(out) > 1 && !out[1].IsNil() {
			return give(reflect.Value{}, out[1].Interface().(error))
		}
		if s, ok := out[0].Interface().(string); ok && len(s) > maxValue {
			return give(reflect.Value{}, tooLong(len(s)))
		}
		return give(out[0], r.spend(weigh(out[0].Interface(), r.left)))
	}).Interface()
}

// weigh is about how many bytes a value prints as, counted to little more than
// limit: the same list may be in a list many times.
func weigh(value any, limit int) int {
	const one = 8
	n := one
	add := func(v any) bool {
		n += weigh(v, limit-n)
		return n <= limit
	}
	switch v := value.(type) {
	case string:
		n += len(v)
	case []string:
		for _, s := range v {
			n += one + len(s)
		}
	case []any:
		for _, e := range v {
			if !add(e) {
				break
			}
		}
	case []map[string]any:
		for _, e := range v {
			if !add(e) {
				break
			}
		}
	case map[string]any:
		for k, e := range v {
			n += len(k)
			if !add(e) {
				break
			}
		}
	}
	return n
}
