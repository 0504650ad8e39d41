// Package secret decrypts what only this host may read, and encrypts it for this
// host and for others (age-encryption.org/v1).
//
// Its one rule: no error and no file that it makes shows a byte of what was
// encrypted, of its hash, or of a private key.
package secret

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// Suffix ends the names of encrypted files.
const Suffix = disk.Encrypted

// NoIdentityError is a file that none of this host's private keys decrypts.
type NoIdentityError struct {
	Kinds []string // of its recipients: X25519, ssh-ed25519, …
	Files []string // where the host's keys were looked for
}

func (e *NoIdentityError) Error() string {
	if passphrase(e.Kinds) {
		return "it is encrypted with a passphrase, and there is nobody on a host to type it"
	}
	return fmt.Sprintf("it is not encrypted to this host: its recipients are %s, and none is that of %s",
		strings.Join(e.Kinds, ", "), strings.Join(e.Files, " or "))
}

// Hint says how to make one that fits.
func (e *NoIdentityError) Hint() string {
	return "encrypt it again with this host among the recipients: reconf-pull encrypt --host NAME FILE, or age -R with the public key of " + e.Files[0]
}

func passphrase(kinds []string) bool { return slices.Contains(kinds, "scrypt") }

// FileError is a file that is no whole age file.
type FileError struct {
	Reason string
	hint   string
}

func (e *FileError) Error() string { return e.Reason }

// Hint says what it should be.
func (e *FileError) Hint() string { return e.hint }

var (
	errPlain = &FileError{"it is not encrypted, although its name ends in " + Suffix,
		"reconf-pull encrypt --host NAME FILE makes FILE" + Suffix + "; what was pushed in plain text is no secret any more: change it"}
	errDamaged = &FileError{"it is damaged: what follows its first line is no age file", "encrypt it again: reconf-pull encrypt --host NAME FILE"}
)

// ErrDamaged says that what was encrypted cannot be had back whole.
var ErrDamaged error = errDamaged

// Is tells whether data begins as an age file does.
func Is(data []byte) bool {
	_, err := unarmor(bytes.NewReader(data))
	return err == nil
}

const intro = "age-encryption.org/v1\n"

// unarmor reads a binary age file, or the armored form of one.
func unarmor(r io.Reader) (io.Reader, error) {
	const blank = " \t\r\n"
	whole := bufio.NewReader(r)
	start, err := whole.Peek(1 << 10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte(intro)):
		return whole, nil
	case bytes.HasPrefix(bytes.TrimLeft(start, blank), []byte(armor.Header)):
		return armor.NewReader(whole), nil
	}
	return nil, errPlain
}

// Open decrypts an age file, binary or armored, with one of the host's keys. Its
// error is a *KeyError, a *NoIdentityError, a *FileError or the reader's own, and
// so are those of the reader that it returns: what was read before one of them is
// not to be used.
func (k *Keys) Open(r io.Reader) (io.Reader, error) {
	identities, err := k.identities()
	if err != nil {
		return nil, err
	}
	from := &watched{r: r}
	binary, err := unarmor(from)
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(binary, identities...)
	var nobody *age.NoIdentityMatchError
	if errors.As(err, &nobody) {
		slices.Sort(nobody.StanzaTypes)
		return nil, &NoIdentityError{Kinds: slices.Compact(nobody.StanzaTypes), Files: k.files()}
	}
	if err != nil {
		return nil, from.or(errDamaged)
	}
	return &opened{plain, from}, nil
}

// watched remembers how reading ended, to tell a broken disk from a broken file.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

func (w *watched) or(err error) error {
	if w.err != nil {
		return w.err
	}
	return err
}

// opened is the plain text; age's own errors quote what they met.
type opened struct {
	plain io.Reader
	from  *watched
}

func (o *opened) Read(p []byte) (int, error) {
	n, err := o.plain.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = o.from.or(errDamaged)
	}
	return n, err
}

// Encrypt encrypts what it reads so that this host can decrypt it.
func (k *Keys) Encrypt(into io.Writer, from io.Reader) error {
	own, err := k.own()
	if err != nil {
		return err
	}
	return encrypt(into, from, own)
}

func encrypt(into io.Writer, from io.Reader, to []age.Recipient) error {
	w, err := age.Encrypt(into, to...)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, from); err != nil {
		return err
	}
	return w.Close()
}

// OpenStored decrypts a file of the state directory.
func (k *Keys) OpenStored(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening what is stored of a secret: %w", WithoutPath(err))
	}
	r, err := k.Open(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("decrypting what is stored of a secret: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

// WithoutPath is an error of the operating system without the path that it names,
// which in the state directory may be the hash of a secret.
func WithoutPath(err error) error {
	var (
		path *fs.PathError
		link *os.LinkError
	)
	switch {
	case errors.As(err, &path):
		return fmt.Errorf("%s: %w", path.Op, path.Err)
	case errors.As(err, &link):
		return fmt.Errorf("%s: %w", link.Op, link.Err)
	}
	return err
}
