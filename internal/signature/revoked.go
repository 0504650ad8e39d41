package signature

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// revokedKeys is a file of keys that nothing may be signed with any more.
type revokedKeys struct {
	path string
	keys map[string]int // marshalled key -> line
	krl  *krl
}

// parseRevoked reads public keys one a line, as authorized_keys writes them, or
// a key revocation list of ssh-keygen -k.
func parseRevoked(f *File) (*revokedKeys, error) {
	r := &revokedKeys{path: f.Path, keys: map[string]int{}}
	if bytes.HasPrefix(f.Data, []byte(krlMagic)) {
		var err error
		if r.krl, err = parseKRL(f.Data); err != nil {
			return nil, fmt.Errorf("%s: the key revocation list cannot be read: %w", f.Path, err)
		}
		return r, nil
	}
	for i, text := range strings.Split(string(f.Data), "\n") {
		text = strings.Trim(text, blanks)
		if text == "" || text[0] == '#' {
			continue
		}
		// A key that is not understood might be the one that was lost.
		key, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", f.Path, i+1, err)
		}
		r.keys[string(plain(key).Marshal())] = i + 1
	}
	return r, nil
}

// plain is the key that a certificate is about.
func plain(key ssh.PublicKey) ssh.PublicKey {
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}

// has tells why a key is revoked, or the authority of its certificate; "" when
// neither is.
func (r *revokedKeys) has(key ssh.PublicKey) string {
	if r.krl != nil {
		if r.krl.has(key) {
			return " (key revocation list)"
		}
		return ""
	}
	if line, ok := r.keys[string(plain(key).Marshal())]; ok {
		return fmt.Sprintf(" in line %d", line)
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		if line, ok := r.keys[string(cert.SignatureKey.Marshal())]; ok {
			return fmt.Sprintf(" in line %d with the authority of its certificate", line)
		}
	}
	return ""
}
