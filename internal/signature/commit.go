package signature

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Commit is a commit object taken apart as git does before it verifies it.
type Commit struct {
	Payload   []byte // what was signed: the object without its signatures
	Signature []byte // armored; nil: there is none
	Committed time.Time
}

// maxHeaders bounds what stands before the message of a commit in bytes; a
// mergetag is a whole tag with its message.
const maxHeaders = 1 << 20

// ParseCommit takes a commit object apart. It is stricter than git, which
// verifies what git fsck refuses: one tree, then parents, author and committer
// stand in this order in front of everything else, so that nobody who reads
// the object finds another tree or parent in it; and it has one signature at
// most.
func ParseCommit(raw []byte) (*Commit, error) {
	c := &Commit{}
	var payload bytes.Buffer
	var own, other bool // the last header is our signature; one that is none of ours
	signatures, stage := 0, atTree
	rest := raw
	for len(rest) > 0 && rest[0] != '\n' {
		line := rest
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			line = rest[:end+1]
		} else {
			return nil, errors.New("its headers do not end")
		}
		rest = rest[len(line):]
		if len(raw)-len(rest) > maxHeaders {
			return nil, fmt.Errorf("its headers have more than %d bytes", maxHeaders)
		}
		if bytes.IndexByte(line, 0) >= 0 {
			return nil, errors.New("its headers have a NUL byte")
		}
		switch {
		case line[0] == ' ' && own:
			c.Signature = append(c.Signature, line[1:]...)
			continue
		case line[0] == ' ' && other:
			continue
		case line[0] == ' ':
			if stage != atEnd {
				return nil, fmt.Errorf("the header %q goes on where none may", printable(line))
			}
			payload.Write(line)
			continue
		}
		own, other = false, false
		name, value, _ := bytes.Cut(line, []byte(" "))
		if stage != atEnd {
			if err := c.header(&stage, string(name), string(bytes.TrimSuffix(value, []byte("\n")))); err != nil {
				return nil, err
			}
			payload.Write(line)
			continue
		}
		switch {
		case string(name) == "gpgsig":
			if signatures++; signatures > 1 {
				return nil, errors.New("it has several gpgsig headers")
			}
			own = true
			c.Signature = append([]byte{}, value...)
		case bytes.HasPrefix(line, []byte("gpgsig")): // gpgsig-sha256 is for the object under its other name
			other = true
		case isFirst(string(name)):
			return nil, fmt.Errorf("it has another %s header behind its committer", name)
		default:
			payload.Write(line)
		}
	}
	if stage != atEnd {
		return nil, fmt.Errorf("it has no %s", stage)
	}
	payload.Write(rest)
	c.Payload = payload.Bytes()
	return c, nil
}

// stage is the header that has to come next.
type stage int

const (
	atTree stage = iota
	atParents
	atCommitter
	atEnd
)

func (s stage) String() string { return [...]string{"tree", "author", "committer", "end"}[s] }

func isFirst(name string) bool {
	return name == "tree" || name == "parent" || name == "author" || name == "committer"
}

func (c *Commit) header(at *stage, name, value string) error {
	switch {
	case *at == atTree && name == "tree" && isID(value):
		*at = atParents
	case *at == atParents && name == "parent" && isID(value):
	case *at == atParents && name == "author":
		*at = atCommitter
	case *at == atCommitter && name == "committer":
		var err error
		if c.Committed, err = identTime(value); err != nil {
			return err
		}
		*at = atEnd
	default:
		return fmt.Errorf("its header %q stands where %s is due", printable([]byte(name+" "+value)), *at)
	}
	return nil
}

func isID(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

// identTime is the time of "Name <address> seconds zone".
func identTime(ident string) (time.Time, error) {
	_, when, ok := strings.Cut(ident[strings.LastIndexByte(ident, '>')+1:], " ")
	seconds, _, _ := strings.Cut(when, " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	// The year 9999 is the last that allowed_signers can write.
	if !ok || err != nil || n < 0 || n > math.MaxInt32*100 {
		return time.Time{}, fmt.Errorf("its committer %q has no time", printable([]byte(ident)))
	}
	return time.Unix(n, 0), nil
}

// printable is foreign text that may go to a terminal.
func printable(b []byte) string {
	const shown = 80
	text := strings.TrimSuffix(string(b[:min(len(b), shown)]), "\n")
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
