package signature

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// keyring are OpenPGP certificates.
type keyring struct {
	path string
	keys openpgp.EntityList
}

const armoredKeys = "-----BEGIN PGP PUBLIC KEY BLOCK-----"

// readKeyring reads certificates, armored (several blocks one after the other)
// or binary. gpg's own keyboxes are refused.
func readKeyring(f *File) (_ *keyring, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
		if err != nil {
			err = fmt.Errorf("%s: the keyring cannot be read: %w", f.Path, err)
		}
	}()
	k := &keyring{path: f.Path}
	data := f.Data
	if len(data) > 12 && string(data[8:12]) == "KBXf" {
		return nil, errors.New("it is a keybox of gpg: write its keys out with gpg --export")
	}
	if !bytes.Contains(data, []byte(armoredKeys)) {
		k.keys, err = openpgp.ReadKeyRing(bytes.NewReader(data))
		return k, err
	}
	for {
		at := bytes.Index(data, []byte(armoredKeys))
		if at < 0 {
			return k, nil
		}
		data = data[at:]
		next := len(data)
		if at := bytes.Index(data[1:], []byte(armoredKeys)); at >= 0 {
			next = at + 1
		}
		more, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(data[:next]))
		if err != nil {
			return nil, err
		}
		k.keys, data = append(k.keys, more...), data[next:]
	}
}

// verify decides as gpg does: a key that is expired or revoked now signs
// nothing, whenever the signature was made. Unlike gpg it takes no signature
// over SHA-1.
func (k *keyring) verify(c *Commit, now func() time.Time) (_ Signer, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its OpenPGP signature cannot be read: %v", r)
		}
	}()
	if err := block(c.Signature, openpgp.SignatureType); err != nil {
		return Signer{}, err
	}
	sig, err := readSignature(c.Signature)
	if err != nil {
		return Signer{}, fmt.Errorf("its OpenPGP signature cannot be read: %w", err)
	}
	key := fmt.Sprintf("the OpenPGP key %016X", *sig.IssuerKeyId)
	if len(sig.IssuerFingerprint) > 0 {
		key = fmt.Sprintf("the OpenPGP key %X", sig.IssuerFingerprint)
	}
	config := &packet.Config{Time: now}
	if config.RejectMessageHashAlgorithm(sig.Hash) {
		return Signer{}, fmt.Errorf("it is signed with %s over %s, which can be forged", key, sig.Hash)
	}
	entity, err := openpgp.CheckArmoredDetachedSignature(k.keys, bytes.NewReader(c.Payload), bytes.NewReader(c.Signature), config)
	var bad pgperrors.SignatureError
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer) && len(k.keys.KeysById(*sig.IssuerKeyId)) > 0:
		return Signer{}, fmt.Errorf("it is signed with %s, which is not for signing", key)
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return Signer{}, fmt.Errorf("it is signed with %s, which %s does not have", key, k.path)
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return Signer{}, fmt.Errorf("it is signed with %s, which is revoked in %s", key, k.path)
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return Signer{}, fmt.Errorf("it is signed with %s, which has expired by %s", key, k.path)
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return Signer{}, fmt.Errorf("its signature by %s has expired, or is not valid yet", key)
	case errors.As(err, &bad):
		return Signer{}, fmt.Errorf("its signature by %s is not of this content: it was altered after it was signed", key)
	case err != nil:
		return Signer{}, fmt.Errorf("its signature by %s cannot be used: %w", key, err)
	}
	return Signer{Name: owner(entity), Key: key}, nil
}

// readSignature reads the only packet that a signature may have.
func readSignature(armored []byte) (*packet.Signature, error) {
	b, err := armor.Decode(bytes.NewReader(armored))
	if err != nil {
		return nil, err
	}
	packets := packet.NewReader(b.Body)
	first, err := packets.Next()
	if err != nil {
		return nil, err
	}
	sig, ok := first.(*packet.Signature)
	if !ok || sig.IssuerKeyId == nil {
		return nil, errors.New("it does not say by which key it is")
	}
	if sig.SigType != packet.SigTypeBinary && sig.SigType != packet.SigTypeText {
		return nil, errors.New("it is not one of a document")
	}
	if _, err := packets.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("it is not a single signature")
	}
	return sig, nil
}

// owner is the primary user id, else the first by name.
func owner(e *openpgp.Entity) string {
	if id := e.PrimaryIdentity(); id != nil {
		return printable([]byte(id.Name))
	}
	var names []string
	for name := range e.Identities {
		names = append(names, name)
	}
	if slices.Sort(names); len(names) > 0 {
		return printable([]byte(names[0]))
	}
	return "nobody by name"
}
