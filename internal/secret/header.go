package secret

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"
)

// Stanza is what a file says about one recipient.
type Stanza struct {
	Kind string // X25519, ssh-ed25519, ssh-rsa, …
	// Tag names the key, where the kind has one: of X25519 it cannot be told whose
	// it is.
	Tag string
}

// Header is what everybody can see of an encrypted file.
type Header struct{ Stanzas []Stanza }

// ReadHeader reads the header of an age file, binary or armored. Its error is a
// *FileError, a *NoIdentityError for a file with a passphrase, or the reader's own.
func ReadHeader(r io.Reader) (Header, error) {
	var h Header
	from := &watched{r: r}
	binary, err := unarmor(from)
	if err != nil {
		return h, err
	}
	raw, err := age.ExtractHeader(binary)
	if err != nil {
		return h, from.or(errDamaged)
	}
	for line := range bytes.Lines(raw) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || fields[0] != "->" {
			continue
		}
		s := Stanza{Kind: fields[1]}
		if strings.HasPrefix(s.Kind, "ssh-") && len(fields) > 2 {
			s.Tag = fields[2]
		}
		h.Stanzas = append(h.Stanzas, s)
	}
	if kinds := h.Kinds(); passphrase(kinds) {
		return h, &NoIdentityError{Kinds: kinds, Files: sshKeys}
	}
	return h, nil
}

// Kinds are those of the recipients, each once.
func (h Header) Kinds() []string {
	var kinds []string
	for _, s := range h.Stanzas {
		if !slices.Contains(kinds, s.Kind) {
			kinds = append(kinds, s.Kind)
		}
	}
	return kinds
}

// MayBeFor tells whether one of the recipients may be among those of the file:
// false is certain.
func (h Header) MayBeFor(recipients []Recipient) bool {
	for _, r := range recipients {
		for _, s := range h.Stanzas {
			if s.Kind == r.stanza.Kind && (s.Tag == r.stanza.Tag || r.stanza.Tag == "") {
				return true
			}
		}
	}
	return false
}

// Recipient is a public key that a file can be encrypted to.
type Recipient struct {
	key    age.Recipient
	stanza Stanza
	text   string
}

// String is the public key as its owner publishes it.
func (r Recipient) String() string { return r.text }

// Same tells whether two are one key.
func (r Recipient) Same(other Recipient) bool { return r.text == other.text }

// RecipientError is a line that is no public key.
type RecipientError struct {
	Line   int
	Reason string
}

func (e *RecipientError) Error() string { return e.Reason }

// ParseRecipients reads public keys, one a line: of age, or of ssh as sshd writes
// them. Kinds of ssh keys that age cannot use are passed over where there is
// another one. The error is a *RecipientError.
func ParseRecipients(data []byte) ([]Recipient, error) {
	var (
		all    []Recipient
		number int
		unfit  *RecipientError
	)
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, reason, ssh := parseRecipient(line)
		if reason == "" {
			all = append(all, r)
			continue
		}
		unfit = &RecipientError{number, reason}
		if !ssh {
			return nil, unfit
		}
	}
	switch {
	case len(all) > 0:
		return all, nil
	case unfit != nil:
		return nil, unfit
	}
	return nil, &RecipientError{1, "there is no public key in it"}
}

// parseRecipient says why a line is none, and whether it is a key of ssh all the
// same.
func parseRecipient(line string) (r Recipient, reason string, isSSH bool) {
	switch {
	case strings.HasPrefix(line, "AGE-SECRET-KEY-"), strings.HasPrefix(line, "-----BEGIN"):
		return r, "it is a private key: it does not belong into a repo, and is to be replaced", false
	case strings.HasPrefix(line, "age1"):
		keys, err := age.ParseRecipients(strings.NewReader(line))
		if err != nil {
			return r, "it is no public key of age", false
		}
		kind := "X25519"
		if _, ok := keys[0].(*age.HybridRecipient); ok {
			kind = "mlkem768x25519"
		}
		return Recipient{keys[0], Stanza{Kind: kind}, line}, "", false
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return r, "it is neither a public key of age nor one of ssh", false
	}
	text := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	to, err := agessh.ParseRecipient(text)
	if err != nil {
		return r, fmt.Sprintf("age cannot encrypt to a key of the kind %s: it takes ed25519, and RSA of 2048 bits or more", key.Type()), true
	}
	// age names ssh keys by the beginning of their hash (age's README, "SSH keys").
	const tag = 4
	sum := sha256.Sum256(key.Marshal())
	return Recipient{to, Stanza{key.Type(), base64.RawStdEncoding.EncodeToString(sum[:tag])}, text}, "", true
}

// Encrypt encrypts what it reads to the recipients, as text when armored.
func Encrypt(into io.Writer, from io.Reader, to []Recipient, armored bool) error {
	var keys []age.Recipient
	for _, r := range to {
		keys = append(keys, r.key)
	}
	if !armored {
		return encrypt(into, from, keys)
	}
	text := armor.NewWriter(into)
	if err := encrypt(text, from, keys); err != nil {
		return err
	}
	return text.Close()
}
