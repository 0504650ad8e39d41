package service

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// Watch is one [[service.watch]] of config.toml or fleet.toml: what an operator
// wants to happen when a path changes.
//
//	[[service.watch]]
//	path = "/etc/app/{name}/**"
//	unit = "app@{name}.service"
type Watch struct {
	// Path is an absolute glob. * and ? stay within one path element, ** as a
	// whole element stands for any number of them, also none. {name} matches
	// like * but at least one character, and as few as it can, and remembers
	// what it matched. Everything else is literal.
	Path string `toml:"path"`
	// Unit is the full name of the unit that the path belongs to; {name} is
	// replaced. A template stands for all its loaded instances.
	Unit string `toml:"unit"`
	// Run is a command that is run instead, once for all paths that give the
	// same words; {name} is replaced, and {path} by the changed path.
	Run []string `toml:"run"`
}

// Validate says what is wrong with a watch, before any path is looked at.
func (w Watch) Validate() error {
	_, err := w.compile()
	return err
}

type compiledWatch struct {
	Watch
	pattern *regexp.Regexp
}

func compile(watches []Watch) ([]compiledWatch, error) {
	var (
		all  []compiledWatch
		errs []error
	)
	for _, w := range watches {
		c, err := w.compile()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, c)
	}
	return all, errors.Join(errs...)
}

var capture = regexp.MustCompile(`\{([^{}/]*)\}`)

var captureName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

const wholePath = "path"

func (w Watch) compile() (compiledWatch, error) {
	wrong := func(format string, args ...any) (compiledWatch, error) {
		return compiledWatch{}, fmt.Errorf("service.watch %q: %w", w.Path, fmt.Errorf(format, args...))
	}
	if !strings.HasPrefix(w.Path, "/") {
		return wrong("path is not absolute")
	}
	if (w.Unit == "") == (len(w.Run) == 0) {
		return wrong("exactly one of unit and run is needed")
	}
	names := map[string]bool{wholePath: len(w.Run) > 0}
	var expr strings.Builder
	elements := strings.Split(w.Path[1:], "/")
	for i, element := range elements {
		last := i == len(elements)-1
		switch {
		case element == "":
			return wrong("path has an empty element")
		case element == "**" && last:
			expr.WriteString(`/.+`)
			continue
		case element == "**":
			expr.WriteString(`(?:/[^/]+)*`)
			continue
		case strings.Contains(element, "**"):
			return wrong("** is not a whole path element")
		}
		expr.WriteByte('/')
		at := 0
		for _, loc := range capture.FindAllStringSubmatchIndex(element, -1) {
			name := element[loc[2]:loc[3]]
			switch {
			case !captureName.MatchString(name) || name == wholePath:
				return wrong("{%s} is no name for a capture: lower-case letters, digits and _, and not %q", name, wholePath)
			case names[name]:
				return wrong("{%s} occurs twice", name)
			}
			names[name] = true
			expr.WriteString(glob(element[at:loc[0]]))
			expr.WriteString(`(?P<` + name + `>[^/]+?)`)
			at = loc[1]
		}
		expr.WriteString(glob(element[at:]))
	}
	for _, template := range append([]string{w.Unit}, w.Run...) {
		for _, found := range capture.FindAllStringSubmatch(template, -1) {
			// Braces that cannot be a capture belong to the command: awk '{print $1}'.
			if name := found[1]; captureName.MatchString(name) && !names[name] {
				return wrong("{%s} in %q is not in path", name, template)
			}
		}
	}
	if w.Unit != "" {
		if probe := capture.ReplaceAllString(w.Unit, "x"); !systemd.UnitName(probe) {
			return wrong("%q is no unit name, with its type (.service, …)", w.Unit)
		}
	}
	if len(w.Run) > 0 && w.Run[0] == "" {
		return wrong("run has no program")
	}
	pattern, err := regexp.Compile(`^` + expr.String() + `$`)
	if err != nil {
		return wrong("%w", err)
	}
	return compiledWatch{Watch: w, pattern: pattern}, nil
}

// glob is a part of one path element as a regular expression.
func glob(part string) string {
	quoted := regexp.QuoteMeta(part)
	return strings.NewReplacer(`\*`, `[^/]*`, `\?`, `[^/]`).Replace(quoted)
}

// match returns what the captures matched, and whether the path did.
func (w compiledWatch) match(path string) (map[string]string, bool) {
	found := w.pattern.FindStringSubmatch(path)
	if found == nil {
		return nil, false
	}
	values := map[string]string{wholePath: path}
	for i, name := range w.pattern.SubexpNames() {
		if name != "" {
			values[name] = found[i]
		}
	}
	return values, true
}

func expand(template string, values map[string]string) string {
	return capture.ReplaceAllStringFunc(template, func(braced string) string {
		if value, known := values[braced[1:len(braced)-1]]; known {
			return value
		}
		return braced
	})
}

// Globs are absolute paths with the wildcards of Watch.Path, without captures.
type Globs struct{ patterns []compiledWatch }

// ParseGlobs reads globs; the error names every one that is none.
func ParseGlobs(paths []string) (Globs, error) {
	var (
		globs Globs
		errs  []error
	)
	for _, p := range paths {
		c, err := Watch{Path: p, Run: []string{"true"}}.compile()
		if err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", p, errors.Unwrap(err)))
			continue
		}
		globs.patterns = append(globs.patterns, c)
	}
	return globs, errors.Join(errs...)
}

// Match tells whether one of the globs matches the path.
func (g Globs) Match(path string) bool {
	for _, p := range g.patterns {
		if _, ok := p.match(path); ok {
			return true
		}
	}
	return false
}
