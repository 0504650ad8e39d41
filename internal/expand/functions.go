package expand

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// functions are what a template may call besides and, or, not, len, slice and
// the comparisons of text/template. Those that text/template has too are bounded
// here; the others have the names and the arguments that they have in Sprig.
func (r *run) functions() template.FuncMap {
	all := template.FuncMap{
		"html":     template.HTMLEscaper,
		"index":    index,
		"js":       template.JSEscaper,
		"print":    fmt.Sprint,
		"printf":   printf,
		"println":  fmt.Sprintln,
		"urlquery": template.URLQueryEscaper,

		"contains":   func(part, s string) bool { return strings.Contains(s, part) },
		"hasPrefix":  func(prefix, s string) bool { return strings.HasPrefix(s, prefix) },
		"hasSuffix":  func(suffix, s string) bool { return strings.HasSuffix(s, suffix) },
		"join":       join,
		"lower":      strings.ToLower,
		"replace":    replace,
		"splitList":  func(sep, s string) []string { return strings.Split(s, sep) },
		"trim":       strings.TrimSpace,
		"trimPrefix": func(prefix, s string) string { return strings.TrimPrefix(s, prefix) },
		"trimSuffix": func(suffix, s string) string { return strings.TrimSuffix(s, suffix) },
		"upper":      strings.ToUpper,

		"b64enc":  func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"indent":  indent,
		"nindent": func(n int, s string) (string, error) { s, err := indent(n, s); return "\n" + s, err },
		"quote":   func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
		"toJson":  toJSON,

		"default": func(fallback, v any) any {
			if truth, ok := template.IsTrue(v); ok && truth {
				return v
			}
			return fallback
		},
		"dict":   dict,
		"dig":    dig,
		"hasKey": func(table map[string]any, key string) bool { _, ok := table[key]; return ok },
		"list":   func(values ...any) []any { return values },

		"add": func(a, b any) (int64, error) { return count(a, b, func(a, b int64) int64 { return a + b }) },
		"sub": func(a, b any) (int64, error) { return count(a, b, func(a, b int64) int64 { return a - b }) },
		"mul": func(a, b any) (int64, error) { return count(a, b, func(a, b int64) int64 { return a * b }) },
		"div": func(a, b any) (int64, error) { return divide(a, b, func(a, b int64) int64 { return a / b }) },
		"mod": func(a, b any) (int64, error) { return divide(a, b, func(a, b int64) int64 { return a % b }) },
		"int": number,
	}
	for name, fn := range all {
		all[name] = r.charged(fn)
	}
	return all
}

// Functions are the names of all functions that are not text/template's own.
func Functions() []string { return slices.Sorted(maps.Keys((&run{}).functions())) }

// index is text/template's, except that a key that is missing is an error, as
// it is after a dot.
func index(value any, keys ...any) (any, error) {
	for _, key := range keys {
		if table, ok := value.(map[string]any); ok {
			name, ok := key.(string)
			if !ok {
				return nil, errors.New("the key of a table is a string")
			}
			if value, ok = table[name]; !ok {
				return nil, fmt.Errorf("map has no entry for key %q", name)
			}
			continue
		}
		list := reflect.ValueOf(value)
		if list.Kind() != reflect.Slice {
			return nil, errors.New("it is neither a table nor an array")
		}
		i, err := number(key)
		if err != nil {
			return nil, err
		}
		if i < 0 || i >= int64(list.Len()) {
			return nil, fmt.Errorf("there is no element %d: the array has %d", i, list.Len())
		}
		value = list.Index(int(i)).Interface()
	}
	return value, nil
}

// dig follows keys through tables: dig "log" "level" "info" .Vars. The last but
// one argument is the value where one of them is missing.
func dig(args ...any) (any, error) {
	const fewest = 3
	if len(args) < fewest {
		return nil, errors.New("dig needs a key, a default and a table")
	}
	value, fallback := args[len(args)-1], args[len(args)-2]
	for _, key := range args[:len(args)-2] {
		name, ok := key.(string)
		table, isTable := value.(map[string]any)
		if !ok || !isTable {
			return nil, errors.New("dig needs strings as keys, and tables to look them up in")
		}
		if value, ok = table[name]; !ok {
			return fallback, nil
		}
	}
	return value, nil
}

func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict needs a value for every key")
	}
	table := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if !ok {
			return nil, errors.New("the key of a table is a string")
		}
		table[key] = pairs[i+1]
	}
	return table, nil
}

func join(sep string, list any) (string, error) {
	v := reflect.ValueOf(list)
	if v.Kind() != reflect.Slice {
		return "", errors.New("join needs an array")
	}
	var parts []string
	size := 0
	for i := range v.Len() {
		part := fmt.Sprint(v.Index(i).Interface())
		if size += len(sep) + len(part); tooLong(size) != nil {
			return "", tooLong(size)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, sep), nil
}

func replace(before, after, s string) (string, error) {
	if err := tooLong(len(s) + strings.Count(s, before)*len(after)); err != nil {
		return "", err
	}
	return strings.ReplaceAll(s, before, after), nil
}

func indent(n int, s string) (string, error) {
	if n < 0 || n > maxValue || tooLong(len(s)+(strings.Count(s, "\n")+1)*n) != nil {
		return "", tooLong(maxValue + 1)
	}
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad), nil
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// printf is fmt's for formats whose output can be told in advance: * and [n]
// are refused, and so are widths of more than three digits. What fmt prints as
// %!d(string=x) is an error.
func printf(format string, args ...any) (string, error) {
	const digits = 3
	var out strings.Builder
	next := 0
	for format != "" {
		text, rest, found := strings.Cut(format, "%")
		out.WriteString(text)
		if !found {
			break
		}
		end := 0
		run := 0
		for end < len(rest) && strings.IndexByte("+-# 0123456789.", rest[end]) >= 0 {
			if run++; rest[end] < '0' || rest[end] > '9' {
				run = 0
			}
			if end++; run > digits {
				return "", errors.New("printf: a width of more than three digits")
			}
		}
		if end == len(rest) || rest[end] == '*' || rest[end] == '[' {
			return "", errors.New("printf: each % needs a verb, without * and [n]")
		}
		verb := "%" + rest[:end+1]
		format = rest[end+1:]
		if rest[end] == '%' {
			out.WriteByte('%')
			continue
		}
		if strings.IndexByte("vbcdoqxXUeEfFgGst", rest[end]) < 0 {
			return "", fmt.Errorf("printf: there is no verb %%%c here", rest[end])
		}
		if next == len(args) {
			return "", errors.New("printf: more verbs than arguments")
		}
		if err := tooLong(out.Len() + weigh(args[next], maxValue)); err != nil {
			return "", err
		}
		value := fmt.Sprintf(verb, args[next])
		if strings.HasPrefix(value, "%!"+verb[len(verb)-1:]+"(") {
			return "", fmt.Errorf("printf: %s is not for a value of this type", verb)
		}
		out.WriteString(value)
		next++
	}
	if next < len(args) {
		return "", errors.New("printf: more arguments than verbs")
	}
	return out.String(), nil
}

// number reads a whole number, also from a string.
func number(v any) (int64, error) {
	switch v := v.(type) {
	case int64:
		return v, nil
	case int:
		return int64(v), nil
	case float64:
		if v == float64(int64(v)) {
			return int64(v), nil
		}
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("no whole number")
}

func count(a, b any, op func(a, b int64) int64) (int64, error) {
	x, err := number(a)
	if err != nil {
		return 0, err
	}
	y, err := number(b)
	if err != nil {
		return 0, err
	}
	return op(x, y), nil
}

func divide(a, b any, op func(a, b int64) int64) (int64, error) {
	if n, err := number(b); err == nil && n == 0 {
		return 0, errors.New("division by zero")
	}
	return count(a, b, op)
}
