package signature

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// namespace is what git signs in.
const namespace = "git"

// verifySSH decides as git does with ssh-keygen -Y find-principals and -Y verify.
func (v *Verifier) verifySSH(c *Commit) (Signer, error) {
	if err := block(c.Signature, sshsig.PEMType); err != nil {
		return Signer{}, err
	}
	sig, err := unarmor(c.Signature)
	if err != nil {
		return Signer{}, fmt.Errorf("its ssh signature cannot be read: %w", err)
	}
	key := describe(sig.PublicKey)
	if weak(sig.Signature.Format) {
		return Signer{}, fmt.Errorf("it is signed with %s by way of SHA-1, which can be forged", key)
	}
	if sig.Namespace != namespace {
		return Signer{}, fmt.Errorf("its signature by %s is for %q, not for git", key, printable([]byte(sig.Namespace)))
	}
	if err := sshsig.Verify(bytes.NewReader(c.Payload), sig, sig.PublicKey, sig.HashAlgorithm, namespace); err != nil {
		return Signer{}, fmt.Errorf("its signature by %s is not of this content: it was altered after it was signed", key)
	}
	if v.revoked != nil {
		if why := v.revoked.has(sig.PublicKey); why != "" {
			return Signer{}, fmt.Errorf("it is signed with %s, which %s revokes%s", key, v.revoked.path, why)
		}
	}
	principal, err := v.ssh.principal(sig.PublicKey, c.Committed)
	if err != nil {
		return Signer{}, fmt.Errorf("it is signed with %s: %w", key, err)
	}
	return Signer{Name: principal, Key: key}, nil
}

// weak tells signatures that are made over SHA-1.
func weak(format string) bool { return format == ssh.KeyAlgoRSA || format == "ssh-dss" }

// unarmor reads a signature; x/crypto is not trusted to survive every key.
func unarmor(armored []byte) (sig *sshsig.Signature, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return sshsig.Unarmor(armored)
}

// describe names a key as ssh-keygen does.
func describe(key ssh.PublicKey) string {
	kind := strings.TrimSuffix(key.Type(), "-cert-v01@openssh.com")
	kind = strings.TrimSuffix(strings.TrimPrefix(kind, "ssh-"), "@openssh.com")
	if strings.HasPrefix(kind, "ecdsa-") {
		kind = "ecdsa"
	}
	kind = strings.TrimPrefix(kind, "sk-ssh-")
	text := "the ssh key " + strings.ToUpper(kind) + " "
	if cert, ok := key.(*ssh.Certificate); ok {
		return text + ssh.FingerprintSHA256(cert.Key) + " with a certificate of " + ssh.FingerprintSHA256(cert.SignatureKey)
	}
	return text + ssh.FingerprintSHA256(key)
}

// allowedSigners is an allowed_signers file.
type allowedSigners struct {
	path  string
	lines []signerLine
	bad   []string // lines that cannot be used, and why
}

type signerLine struct {
	number     int
	principals string // a pattern list
	authority  bool
	namespaces string // a pattern list; limited tells whether there is one
	limited    bool
	after      time.Time // zero: not limited
	before     time.Time
	key        ssh.PublicKey
	marshalled string
}

func parseAllowedSigners(f *File, where *time.Location) *allowedSigners {
	a := &allowedSigners{path: f.Path}
	for i, text := range strings.Split(string(f.Data), "\n") {
		text = strings.Trim(text, " \t\r")
		if text == "" || text[0] == '#' {
			continue
		}
		line, err := parseSignerLine(text, where)
		if err != nil {
			a.bad = append(a.bad, fmt.Sprintf("line %d: %v", i+1, err))
			continue
		}
		line.number = i + 1
		a.lines = append(a.lines, *line)
	}
	return a
}

const blanks = " \t\r"

func parseSignerLine(text string, where *time.Location) (*signerLine, error) {
	line := &signerLine{}
	var rest string
	if quoted, ok := strings.CutPrefix(text, `"`); ok {
		if line.principals, rest, ok = strings.Cut(quoted, `"`); !ok {
			return nil, errors.New("the principals have no closing quote")
		}
	} else if at := strings.IndexAny(text, blanks); at >= 0 {
		line.principals, rest = text[:at], text[at:]
	}
	if rest = strings.TrimLeft(rest, blanks); line.principals == "" || rest == "" {
		return nil, errors.New("it needs principals and a key")
	}
	key, err := parseKey(rest)
	if err != nil {
		end, ok := pastOptions(rest)
		if !ok {
			return nil, errors.New("its options have no closing quote")
		}
		if err := line.options(rest[:end], where); err != nil {
			return nil, err
		}
		if key, err = parseKey(strings.TrimLeft(rest[end:], blanks)); err != nil {
			return nil, err
		}
	}
	line.key, line.marshalled = key, string(key.Marshal())
	return line, nil
}

// parseKey reads "type base64 comment".
func parseKey(text string) (key ssh.PublicKey, err error) {
	defer func() {
		if r := recover(); r != nil {
			key, err = nil, fmt.Errorf("its key cannot be read: %v", r)
		}
	}()
	fields := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(blanks, r) })
	if len(fields) < 2 {
		return nil, errors.New("it has no key")
	}
	// ParseAuthorizedKey takes options in front: what is given here has none.
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(fields[0] + " " + fields[1]))
	if err != nil || len(options) > 0 || key.Type() != fields[0] {
		return nil, fmt.Errorf("its key of type %q cannot be read", printable([]byte(fields[0])))
	}
	return key, nil
}

// pastOptions finds where options end: at a blank that is not quoted.
func pastOptions(text string) (int, bool) {
	quoted := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text) && text[i+1] == '"':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ' ' || c == '\t'):
			return i, true
		}
	}
	return len(text), !quoted
}

func (l *signerLine) options(text string, where *time.Location) (err error) {
	for text != "" {
		if len(text) >= len("cert-authority") && strings.EqualFold(text[:len("cert-authority")], "cert-authority") {
			l.authority, text = true, text[len("cert-authority"):]
		} else {
			name, rest, ok := strings.Cut(text, "=")
			if !ok {
				return fmt.Errorf("the option %q is not known", printable([]byte(text)))
			}
			value, rest, err := unquote(rest)
			if err != nil {
				return fmt.Errorf("%s: %w", printable([]byte(name)), err)
			}
			if err := l.option(strings.ToLower(name), value, where); err != nil {
				return err
			}
			text = rest
		}
		if text == "" {
			break
		}
		var more bool
		if text, more = strings.CutPrefix(text, ","); !more || text == "" {
			return fmt.Errorf("its options go on with %q", printable([]byte(text)))
		}
	}
	if !l.after.IsZero() && !l.before.IsZero() && !l.before.After(l.after) {
		return errors.New("valid-before is not after valid-after")
	}
	return nil
}

func (l *signerLine) option(name, value string, where *time.Location) (err error) {
	again := false
	switch name {
	case "namespaces":
		again = l.limited
		l.namespaces, l.limited = value, true
	case "valid-after":
		again = !l.after.IsZero()
		l.after, err = absoluteTime(value, where)
	case "valid-before":
		again = !l.before.IsZero()
		l.before, err = absoluteTime(value, where)
	default:
		return fmt.Errorf("the option %q is not known", printable([]byte(name)))
	}
	if err == nil && again {
		err = errors.New("it is there twice")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func unquote(text string) (value, rest string, err error) {
	text, ok := strings.CutPrefix(text, `"`)
	if !ok {
		return "", "", errors.New("its value is not quoted")
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == '"':
			i++
			b.WriteByte('"')
		case text[i] == '"':
			return b.String(), text[i+1:], nil
		default:
			b.WriteByte(text[i])
		}
	}
	return "", "", errors.New("it has no closing quote")
}

// absoluteTime reads YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, in UTC with a Z
// or UTC behind it.
func absoluteTime(text string, where *time.Location) (time.Time, error) {
	digits := text
	for _, zone := range []string{"Z", "UTC"} {
		if at := len(text) - len(zone); at > 0 && strings.EqualFold(text[at:], zone) {
			digits, where = text[:at], time.UTC
			break
		}
	}
	layout, ok := map[int]string{8: "20060102", 12: "200601021504", 14: "20060102150405"}[len(digits)]
	t, err := time.ParseInLocation(layout, digits, where)
	if !ok || err != nil || t.Unix() <= 0 {
		return t, fmt.Errorf("%q is no time: write YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, and Z behind it for UTC", printable([]byte(text)))
	}
	return t, nil
}

// principal finds who may sign with a key at a time. The first line that fits
// names the principals, whatever its namespaces; one of them must be allowed to
// sign for git, by that line or another.
func (a *allowedSigners) principal(key ssh.PublicKey, at time.Time) (string, error) {
	var why []string
	for i := range a.lines {
		found, err := a.lines[i].find(key, at)
		if err != nil {
			why = append(why, fmt.Sprintf("%s:%d: %v", a.path, a.lines[i].number, err))
			continue
		}
		for _, principal := range found {
			for j := range a.lines {
				err := a.lines[j].allows(key, principal, at)
				if err == nil {
					return principal, nil
				}
				if !errors.Is(err, errOther) {
					why = append(why, fmt.Sprintf("%s:%d: %v", a.path, a.lines[j].number, err))
				}
			}
		}
		if len(found) > 0 {
			break
		}
	}
	if len(why) > 0 {
		return "", errors.New(why[len(why)-1])
	}
	text := "no line of " + a.path + " has it"
	if len(a.bad) > 0 {
		text += "; passed over: " + strings.Join(a.bad[:min(len(a.bad), 3)], "; ")
	}
	return "", errors.New(text)
}

// errOther is a line for another key or another principal.
var errOther = errors.New("of another key")

// find lists the principals of a line whose key it is; none when it is another's.
func (l *signerLine) find(key ssh.PublicKey, at time.Time) ([]string, error) {
	cert, byAuthority, err := l.fits(key)
	if err != nil {
		return nil, nil
	}
	if err := l.valid(at); err != nil {
		return nil, err
	}
	var patterns []string
	for _, p := range strings.Split(l.principals, ",") {
		if p == "" {
			break
		}
		if p[0] != '!' { // nobody's name
			patterns = append(patterns, p)
		}
	}
	if !byAuthority {
		return patterns, nil
	}
	if err := check(cert, at); err != nil {
		return nil, err
	}
	var found []string
	for _, pattern := range patterns {
		for _, p := range cert.ValidPrincipals {
			if match(p, pattern) {
				found = append(found, p)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the certificate is for none of %s", printable([]byte(l.principals)))
	}
	return found, nil
}

// allows tells whether a line lets a principal sign for git with a key.
func (l *signerLine) allows(key ssh.PublicKey, principal string, at time.Time) error {
	cert, byAuthority, err := l.fits(key)
	if err != nil || !matchList(principal, l.principals) {
		return errOther
	}
	if byAuthority {
		if err := check(cert, at); err != nil {
			return err
		}
		named := len(cert.ValidPrincipals) == 0
		for _, p := range cert.ValidPrincipals {
			named = named || p == principal
		}
		if !named {
			return fmt.Errorf("the certificate is not for %s", printable([]byte(principal)))
		}
	}
	if l.limited && !matchList(namespace, l.namespaces) {
		return fmt.Errorf("the key is allowed for the namespaces %q, not for git", printable([]byte(l.namespaces)))
	}
	return l.valid(at)
}

// fits tells whether a line has this key, or that of the authority that
// certified it.
func (l *signerLine) fits(key ssh.PublicKey) (*ssh.Certificate, bool, error) {
	if !l.authority {
		if string(key.Marshal()) == l.marshalled {
			return nil, false, nil
		}
		return nil, false, errOther
	}
	cert, ok := key.(*ssh.Certificate)
	if ok && string(cert.SignatureKey.Marshal()) == l.marshalled {
		return cert, true, nil
	}
	return nil, false, errOther
}

func (l *signerLine) valid(at time.Time) error {
	switch {
	case !l.after.IsZero() && at.Before(l.after):
		return fmt.Errorf("the key is valid after %s only, and the commit is of %s", stamp(l.after), stamp(at))
	case !l.before.IsZero() && at.After(l.before):
		return fmt.Errorf("the key was valid until %s, and the commit is of %s", stamp(l.before), stamp(at))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// check looks at a certificate itself: its kind, its time, and that its
// authority made it, by the signature alone; who that is was compared before.
func check(cert *ssh.Certificate, at time.Time) error {
	if cert.CertType != ssh.UserCert {
		return errors.New("the certificate is none of a user")
	}
	if weak(cert.Signature.Format) {
		return errors.New("the certificate is signed by way of SHA-1, which can be forged")
	}
	if len(cert.ValidPrincipals) == 0 {
		return errors.New("the certificate names no principal")
	}
	checker := ssh.CertChecker{
		Clock: func() time.Time { return at },
		// They limit logins.
		SupportedCriticalOptions: []string{"force-command", "source-address", "verify-required"},
		IsUserAuthority:          func(ssh.PublicKey) bool { return true },
	}
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return fmt.Errorf("the certificate cannot be used: %s", strings.TrimPrefix(err.Error(), "ssh: "))
	}
	return nil
}

// matchList is match_pattern_list of OpenSSH: a pattern that matches and is
// negated decides, whatever else matches.
func matchList(text, patterns string) bool {
	matched := false
	for _, p := range strings.Split(patterns, ",") {
		p, negated := strings.CutPrefix(p, "!")
		if match(text, p) {
			if negated {
				return false
			}
			matched = true
		}
	}
	return matched
}

// match is match_pattern of OpenSSH: * and ? and nothing else.
func match(text, pattern string) bool {
	star, from := -1, 0 // the last * and what it has taken
	t, p := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			t, p = t+1, p+1
		case star >= 0:
			from++
			t, p = from, star+1
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
