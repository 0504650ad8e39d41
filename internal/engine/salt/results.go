package salt

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// state is what Salt says of one state.
type state struct {
	ID, SLS, Function, Name string
	Failed                  bool
	Pending                 bool // a dry run would change something, or the state gave no result
	Changed                 bool
	Below                   []string // paths that the changes are of, where they are not Name's alone
	Comment                 string
	number                  int
}

// compileError is what Salt says when it got to no state.
type compileError struct{ lines []string }

func (e *compileError) Error() string { return strings.Join(e.lines, "; ") }

// errNoJSON is an output that is nothing of what salt-call prints.
var errNoJSON = errors.New("salt-call printed no results")

// parse reads what salt-call printed with --out=json: a map of states, or a
// list of lines when it did not get that far, which is a *compileError.
func parse(out []byte) ([]state, error) {
	var answer struct {
		Local json.RawMessage `json:"local"`
	}
	// Programs that Salt asks things of may print before it does.
	for rest := out; ; {
		start := bytes.IndexByte(rest, '{')
		if start < 0 {
			return nil, errNoJSON
		}
		rest = rest[start:]
		if json.NewDecoder(bytes.NewReader(rest)).Decode(&answer) == nil && len(answer.Local) > 0 && string(answer.Local) != "null" {
			break
		}
		next := bytes.Index(rest, []byte("\n{"))
		if next < 0 {
			return nil, errNoJSON
		}
		rest = rest[next+1:]
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(answer.Local, &raw); err != nil || raw == nil {
		return nil, &compileError{lines(answer.Local)}
	}
	states := make([]state, 0, len(raw))
	for name, data := range raw {
		s, err := parseState(name, data)
		if err != nil {
			return nil, err
		}
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b state) int {
		return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.SLS, b.SLS), strings.Compare(a.ID, b.ID), strings.Compare(a.Function, b.Function))
	})
	return states, nil
}

// lines are those of an answer that is no map: a list, or one text.
func lines(data json.RawMessage) []string {
	var many []any
	if json.Unmarshal(data, &many) == nil && len(many) > 0 {
		var out []string
		for _, one := range many {
			out = append(out, fmt.Sprint(one))
		}
		return out
	}
	var one string
	if json.Unmarshal(data, &one) == nil && one != "" {
		return []string{one}
	}
	return []string{"salt-call says nothing of what is wrong"}
}

// parseState reads one result. Its name is state_|-id_|-name_|-function.
func parseState(name string, data json.RawMessage) (state, error) {
	var r struct {
		ID      string          `json:"__id__"`
		SLS     string          `json:"__sls__"`
		Number  int             `json:"__run_num__"`
		Name    any             `json:"name"`
		Result  *bool           `json:"result"`
		Comment any             `json:"comment"`
		Changes json.RawMessage `json:"changes"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return state{}, fmt.Errorf("%w: %q: %w", errNoJSON, short(name), err)
	}
	s := state{
		ID: r.ID, SLS: r.SLS, number: r.Number,
		Failed: r.Result != nil && !*r.Result, Pending: r.Result == nil, Comment: comment(r.Comment),
	}
	s.Name, _ = r.Name.(string)
	if parts := strings.Split(name, "_|-"); len(parts) >= 4 {
		s.Function = parts[0] + "." + parts[len(parts)-1]
		if s.ID == "" {
			s.ID = parts[1]
		}
	}
	if s.SLS == "" { // of a function that does not exist, only the comment says where
		if found := inSLS.FindStringSubmatch(s.Comment); found != nil {
			s.SLS = found[1]
		}
	}
	switch string(bytes.TrimSpace(r.Changes)) {
	case "", "null", "{}", "[]", `""`:
	default:
		s.Changed = true
	}
	// file.recurse and its like tell the paths below.
	var of map[string]json.RawMessage
	if json.Unmarshal(r.Changes, &of) == nil {
		for _, key := range slices.Sorted(maps.Keys(of)) {
			if strings.HasPrefix(key, "/") {
				s.Below = append(s.Below, key)
			}
		}
	}
	return s, nil
}

func comment(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		var parts []string
		for _, one := range v {
			parts = append(parts, fmt.Sprint(one))
		}
		return strings.Join(parts, "\n")
	}
	return fmt.Sprint(value)
}

var (
	inSLS     = regexp.MustCompile(`in SLS '([^']+)'`)
	rendering = regexp.MustCompile(`Rendering SLS '(?:base:)?([^']+)' failed`)
	specified = regexp.MustCompile(`(?:SLS|sls|ID) '?(?:base:)?(migrations\.[\w-]+)`)
	inLine    = regexp.MustCompile(`line (\d+)(?:, column (\d+))?`)
)

// judge turns results into what is wrong. Every id of expected must be among
// them: an output that was cut off is no success.
func judge(states []state, expected []string, dry bool, where func(sls string) string) finding.List {
	var wrong finding.List
	seen := map[string]bool{}
	for _, s := range states {
		if s.SLS == mainSLS {
			seen[s.ID] = true
		}
		if !s.Failed && (dry || !s.Pending) {
			continue
		}
		what := s.Comment
		if s.Pending {
			what = "it gave no result. " + what
		}
		wrong = append(wrong, finding.Finding{
			Severity: finding.Error, Position: finding.Position{File: where(s.SLS)},
			Message: fmt.Sprintf("state %s (%s): %s", plain(s.ID), s.Function, plain(what)),
		})
	}
	for _, id := range expected {
		if len(wrong) == 0 && !seen[id] {
			wrong = append(wrong, finding.Finding{
				Severity: finding.Error, Position: finding.Position{File: where(mainSLS)},
				Message: fmt.Sprintf("state %s: Salt did not get to it and does not say why", plain(id)),
			})
		}
	}
	return bounded(wrong)
}

// explain turns the lines of a compile error into findings that name the file.
// The excerpts that Salt adds are left out: they may be of rendered contents.
func (e *compileError) explain(where func(sls string) string) finding.List {
	var list finding.List
	for _, line := range e.lines {
		message, _, _ := strings.Cut(line, "\n---")
		f := finding.Finding{Severity: finding.Error}
		for _, pattern := range []*regexp.Regexp{rendering, inSLS, specified} {
			if found := pattern.FindStringSubmatch(message); found != nil {
				f.File = where(found[1])
				break
			}
		}
		if found := inLine.FindAllStringSubmatch(message, -1); found != nil && f.File != "" {
			last := found[len(found)-1]
			f.Line, _ = strconv.Atoi(last[1])
			f.Column, _ = strconv.Atoi(last[2])
		}
		f.Message = plain(message)
		list = append(list, f)
	}
	return bounded(list)
}

// bounded keeps a report readable when everything is wrong at once.
func bounded(list finding.List) finding.List {
	const most = 20
	if len(list) <= most {
		return list
	}
	return append(list[:most:most], finding.Finding{Severity: finding.Error, Message: fmt.Sprintf("and %d more", len(list)-most)})
}

// plain is foreign text on one line that a terminal can be shown.
func plain(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	return short(text)
}

func short(text string) string {
	const most = 1000
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}
