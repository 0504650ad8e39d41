// Package tomlfile decodes the TOML files that people write: config.toml,
// fleet.toml and what follows.
//
// Its one rule: nothing that was written is passed over in silence. A key that
// the Go type does not have is an error that names its place and the nearest
// key that exists, and all of them are reported at once. It is the only
// importer of BurntSushi/toml.
package tomlfile

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// maxFindings bounds the findings about one file: finding the place of a key
// parses the file again, and whoever sees 20 of them has the wrong file.
const maxFindings = 20

// Decode reads data into the struct that into points to; name is what the file
// is called in messages. What the file does not say stays as it is in into, so
// defaults are set before. Its errors are of type *finding.Failure. Keys match the names
// in the toml tags exactly: this is stricter than the library, to which Schema
// and schema are the same.
func Decode(name string, data []byte, into any) error {
	md, err := toml.Decode(string(data), into)
	if err != nil {
		return &finding.Failure{Findings: finding.List{at(name, data, err)}}
	}
	var wrong finding.List
	var last toml.Key // the unknown table whose children need no finding of their own
	for _, key := range md.Keys() {
		if len(wrong) == maxFindings {
			break
		}
		if last != nil && len(key) >= len(last) && equal(key[:len(last)], last) {
			continue
		}
		i, siblings, t := undefined(reflect.TypeOf(into), key)
		if i < 0 {
			// The library reads a number where a map belongs, and keeps nothing of it.
			if got := md.Type(key...); t.Kind() == reflect.Map && !decodesItself(t) && got != "Hash" {
				f := finding.Finding{Severity: finding.Error, Position: Find(name, data, key...)}
				f.Message = fmt.Sprintf("%q is %s, and a table is needed", key.String(), called(strings.ToLower(got)))
				f.Excerpt = excerpt(data, f.Line)
				wrong = append(wrong, f)
			}
			continue
		}
		last = key[:i+1]
		f := finding.Finding{
			Severity: finding.Error,
			Position: Find(name, data, last...),
			Message:  fmt.Sprintf("unknown key %q", last.String()),
		}
		if f.Line == 0 {
			f.Position = Find(name, data, key...)
		}
		f.Excerpt = excerpt(data, f.Line)
		if near := Nearest(last[len(last)-1], siblings); near != "" {
			f.Hint = fmt.Sprintf("did you mean %q?", append(append(toml.Key{}, last[:i]...), near).String())
		}
		wrong = append(wrong, f)
	}
	if wrong != nil {
		return &finding.Failure{Findings: wrong}
	}
	return nil
}

// Find is where the file sets the key: with line and column when it does, the
// file alone when it does not. It parses the file again, so it is for messages.
func Find(name string, data []byte, key ...string) finding.Position {
	pos := finding.Position{File: name, Field: toml.Key(key).String()}
	var table map[string]toml.Primitive
	md, err := toml.Decode(string(data), &table)
	if err != nil {
		return pos
	}
	for i, part := range key {
		value, ok := table[part]
		if !ok {
			return pos
		}
		if i < len(key)-1 {
			table = nil
			if md.PrimitiveDecode(value, &table) == nil && table != nil {
				continue
			}
			// An array of tables: the first of them that has the next key.
			var tables []map[string]toml.Primitive
			if md.PrimitiveDecode(value, &tables) != nil {
				return pos
			}
			for _, table = range tables {
				if _, ok := table[key[i+1]]; ok {
					break
				}
			}
			continue
		}
		// The library tells the place of a key only in an error about its value.
		var parse toml.ParseError
		if err := md.PrimitiveDecode(value, &refusal{}); errors.As(err, &parse) && parse.Position.Line > 0 {
			pos.Line = parse.Position.Line
			pos.Column = indent(data, pos.Line) + 1
		}
	}
	return pos
}

// Order is the names below key as the file mentions them first, which a map
// forgets: of [group.b] and [group.a] it is b, a.
func Order(data []byte, key ...string) []string {
	var table map[string]any
	md, err := toml.Decode(string(data), &table)
	if err != nil {
		return nil
	}
	var names []string
	seen := map[string]bool{}
	for _, k := range md.Keys() {
		if len(k) <= len(key) || !equal(k[:len(key)], key) || seen[k[len(key)]] {
			continue
		}
		seen[k[len(key)]] = true
		names = append(names, k[len(key)])
	}
	return names
}

// refusal takes no value at all.
type refusal struct{}

func (*refusal) UnmarshalTOML(any) error { return errors.New("refused") }

// mismatch is how the library words a value of the wrong type; it has no type
// of its own for that error.
var mismatch = regexp.MustCompile(`^toml: (?:line (\d+) )?\(last key "(.*?)"\): `)

func at(name string, data []byte, err error) finding.Finding {
	f := finding.Finding{Severity: finding.Error, Position: finding.Position{File: name}}
	var parse toml.ParseError
	if errors.As(err, &parse) {
		f.Line, f.Column = parse.Position.Line, parse.Position.Col
		if at := parse.Position.Start; at >= 0 && at < len(data) && data[at] == '\n' && bytes.Count(data[:at], []byte("\n"))+1 < f.Line {
			f.Line-- // the library has counted the newline that it trips over
		}
		f.Column = min(f.Column, len(lineOf(data, f.Line))+1) // the library counts on past the end
		f.Message = strings.TrimSuffix(parse.Message, ".")
		f.Excerpt = excerpt(data, f.Line)
		return f
	}
	text := err.Error()
	if m := mismatch.FindStringSubmatch(text); m != nil {
		f.Line, _ = strconv.Atoi(m[1]) // an empty line number stays 0
		f.Field = m[2]
		f.Column = indent(data, f.Line) + 1
		f.Excerpt = excerpt(data, f.Line)
		text = text[len(m[0]):]
	}
	f.Message = strings.TrimPrefix(text, "toml: ")
	if m := types.FindStringSubmatch(text); m != nil {
		f.Message = fmt.Sprintf("%q is %s, and %s is needed", f.Field, called(m[1]), called(m[2]))
		if m[2] == "slice" {
			f.Hint = "write it in brackets: [...]"
		}
	}
	return f
}

// types is how the library words that a value has the wrong one.
var types = regexp.MustCompile(`^incompatible types: TOML value has type (.*); destination has type (.*)$`)

// called is a type in the words of TOML's specification.
func called(goType string) string {
	switch goType {
	case "bool", "boolean":
		return "a boolean"
	case "int", "int64", "integer":
		return "an integer"
	case "float", "float64":
		return "a float"
	case "slice", "[]any", "[]interface {}", "array":
		return "an array"
	case "map", "map[string]any", "map[string]interface {}", "table":
		return "a table"
	case "time", "time.Time":
		return "a date"
	default:
		return "a " + goType
	}
}

func lineOf(data []byte, line int) string {
	if line < 1 {
		return ""
	}
	lines := strings.SplitN(string(data), "\n", line+1)
	if len(lines) < line {
		return ""
	}
	return strings.TrimSuffix(lines[line-1], "\r")
}

func excerpt(data []byte, line int) string { return strings.ToValidUTF8(lineOf(data, line), "�") }

func indent(data []byte, line int) int {
	text := lineOf(data, line)
	return len(text) - len(strings.TrimLeft(text, " \t"))
}

func equal(a, b toml.Key) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// undefined returns the index of the first part of key that t has no place for,
// with the names that it has there; -1 and the type of its value when the whole
// key is known.
func undefined(t reflect.Type, key toml.Key) (int, []string, reflect.Type) {
	for i, part := range key {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
			if decodesItself(t) {
				return -1, nil, t
			}
			t = t.Elem()
		}
		if decodesItself(t) {
			return -1, nil, t
		}
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			names, types := fields(t)
			field, ok := types[part]
			if !ok {
				return i, names, nil
			}
			t = field
		default:
			return -1, nil, t
		}
	}
	return -1, nil, t
}

func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[toml.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func fields(t reflect.Type) ([]string, map[string]reflect.Type) {
	var names []string
	types := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if !f.IsExported() || name == "-" || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		names = append(names, name)
		types[name] = f.Type
	}
	return names, types
}

// Nearest is the name that was probably meant: the one that the fewest single
// edits make of word, "" when every one of them is too far off to be a typo.
func Nearest(word string, names []string) string {
	best, least := "", 3
	if n := utf8.RuneCountInString(word) / 2; n < least-1 {
		least = n + 1
	}
	for _, name := range names {
		if d := Distance(strings.ToLower(word), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	return best
}

// Distance is the number of single-rune insertions, deletions, substitutions
// and swaps of neighbours between a and b (Levenshtein with transpositions).
func Distance(a, b string) int {
	from, to := []rune(a), []rune(b)
	before, row, next := make([]int, len(to)+1), make([]int, len(to)+1), make([]int, len(to)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range from {
		next[0] = i + 1
		for j, s := range to {
			substitution := row[j]
			if r != s {
				substitution++
			}
			next[j+1] = min(substitution, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && r == to[j-1] && from[i-1] == s {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(to)]
}

// DecodeSome reads what into has a place for and passes over the rest: for a
// look at a schema number before anything else is believed.
func DecodeSome(data []byte, into any) error { return toml.Unmarshal(data, into) }
