// Package signature tells who signed a commit: with an OpenSSH key of an
// allowed_signers file, or with an OpenPGP key of a keyring.
//
// Its one rule: what git verify-commit refuses with the same files is refused.
// It reads no files and starts no program; it is given bytes.
package signature

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// File is a local file and its content.
type File struct {
	Path string
	Data []byte
}

// Signer is who signed a commit.
type Signer struct {
	Name string `json:"name"` // principal of allowed_signers, or user id
	Key  string `json:"key"`  // as ssh-keygen and gpg write it: "ED25519 SHA256:…", a fingerprint
}

func (s Signer) String() string { return s.Name + " (" + s.Key + ")" }

// ErrUnsigned is a commit that nobody signed.
var ErrUnsigned = errors.New("nobody signed it")

// Verifier knows the keys that are trusted.
type Verifier struct {
	ssh     *allowedSigners
	revoked *revokedKeys
	pgp     *keyring
	now     func() time.Time
}

// Options are the files that say who is trusted; at least one of AllowedSigners
// and Keyring is needed.
type Options struct {
	AllowedSigners *File // ssh-keygen(1), ALLOWED SIGNERS
	RevokedSigners *File // public keys one a line, or a KRL
	Keyring        *File // OpenPGP certificates, armored or binary
	// Location is in which the times of allowed_signers that name no zone are.
	Location *time.Location
	// Now decides whether an OpenPGP key has expired.
	Now func() time.Time
}

// New reads the files. A line of allowed_signers that cannot be used is passed
// over, as ssh-keygen does, and named when a commit is refused; a revocation
// file or a keyring that cannot be read is an error.
func New(o Options) (*Verifier, error) {
	v := &Verifier{now: o.Now}
	var err error
	if o.AllowedSigners != nil {
		v.ssh = parseAllowedSigners(o.AllowedSigners, o.Location)
	}
	if o.RevokedSigners != nil {
		if v.revoked, err = parseRevoked(o.RevokedSigners); err != nil {
			return nil, err
		}
	}
	if o.Keyring != nil {
		if v.pgp, err = readKeyring(o.Keyring); err != nil {
			return nil, err
		}
	}
	if v.ssh == nil && v.pgp == nil {
		return nil, errors.New("there are neither allowed signers nor a keyring")
	}
	return v, nil
}

// Verify tells who signed a commit object. Its error says in words why nobody
// that is trusted did; a commit that nobody signed is ErrUnsigned.
func (v *Verifier) Verify(raw []byte) (Signer, error) {
	c, err := ParseCommit(raw)
	switch {
	case err != nil:
		return Signer{}, fmt.Errorf("it is no well-formed commit: %w", err)
	case len(c.Signature) == 0:
		return Signer{}, ErrUnsigned
	case bytes.HasPrefix(c.Signature, []byte("-----BEGIN SSH SIGNATURE-----")):
		if v.ssh == nil {
			return Signer{}, errors.New("it is signed with an ssh key, and no allowed_signers file is configured")
		}
		return v.verifySSH(c)
	case bytes.HasPrefix(c.Signature, []byte("-----BEGIN PGP SIGNATURE-----")), bytes.HasPrefix(c.Signature, []byte("-----BEGIN PGP MESSAGE-----")):
		if v.pgp == nil {
			return Signer{}, errors.New("it is signed with an OpenPGP key, and no keyring is configured")
		}
		return v.pgp.verify(c, v.now)
	case bytes.HasPrefix(c.Signature, []byte("-----BEGIN SIGNED MESSAGE-----")):
		return Signer{}, errors.New("it has an X.509 signature; only those of ssh and OpenPGP are known")
	}
	return Signer{}, errors.New("its signature is of no known kind")
}

// block checks that a signature is one armored block and nothing else, so that
// nobody takes another part of it for the signature than we do.
func block(armored []byte, kind string) error {
	text := bytes.TrimRight(armored, " \t\r\n")
	end := []byte("-----END " + kind + "-----")
	if at := bytes.Index(text, end); at < 0 {
		return errors.New("its signature is cut off")
	} else if at+len(end) != len(text) {
		return errors.New("its signature has data behind its end")
	}
	return nil
}
