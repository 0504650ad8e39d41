package salt

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// quote is a YAML scalar in double quotes, in ASCII: whatever the text holds,
// it comes out of the parser as it went in. The text is UTF-8.
func quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r >= ' ' && r < 0x7f:
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// maxSimpleKey is the longest key that YAML takes without a question mark.
const maxSimpleKey = 1000

// key is a line that opens the value of a mapping's key.
func key(text string) string {
	quoted := quote(text)
	if len(quoted) > maxSimpleKey {
		return "? " + quoted + "\n:"
	}
	return quoted + ":"
}

// flow is a value on one line.
func flow(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case string:
		return quote(v)
	case bool:
		return strconv.FormatBool(v)
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return quoteFloat(v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = flow(v[i])
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, "? "+quote(name)+" : "+flow(v[name]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return quote(fmt.Sprint(value))
}

// quoteFloat keeps a number a number: YAML 1.1 wants a dot before an exponent.
func quoteFloat(v float64) string {
	text := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.ContainsAny(text, ".NI") {
		text += ".0"
	}
	return text
}

// isText tells whether Salt can be told of a path: it knows text and not bytes.
func isText(path string) bool { return utf8.ValidString(path) && !strings.Contains(path, "\x00") }

// literal makes a path a pattern that only the path matches: requisites are
// patterns of fnmatch(3).
var literal = strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]")
