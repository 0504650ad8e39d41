package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/reconf-pull/reconf-pull/internal/host"
)

// maxKeys bounds a file of private keys in bytes.
const maxKeys = 1 << 20

// sshKeys are the private keys that sshd makes and age can use.
var sshKeys = []string{"/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_rsa_key"}

// Keys are the private keys of this host. They are read when the first one is
// needed, and kept: what a run encrypted it can decrypt, whatever becomes of their
// files.
type Keys struct {
	configured []string
	host       *host.Host

	once    sync.Once
	private []age.Identity
	public  []age.Recipient
	err     error
}

// New are the keys in files, or without any those of the host's sshd.
func New(h *host.Host, files []string) *Keys { return &Keys{configured: files, host: h} }

// KeyError says that the host's private keys cannot be used.
type KeyError struct {
	Err  error
	hint string
}

func (e *KeyError) Error() string { return "the private keys of this host: " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

// Hint says how to have one.
func (e *KeyError) Hint() string {
	var distrust *host.DistrustError
	if errors.As(e.Err, &distrust) {
		return distrust.Hint()
	}
	return e.hint
}

// files are where the keys are looked for.
func (k *Keys) files() []string {
	if len(k.configured) > 0 {
		return k.configured
	}
	return sshKeys
}

func (k *Keys) identities() ([]age.Identity, error) {
	if k == nil {
		return nil, &KeyError{Err: errors.New("only the host itself decrypts its secrets")}
	}
	k.once.Do(func() { k.err = k.load() })
	return k.private, k.err
}

// own are the recipients that the keys belong to.
func (k *Keys) own() ([]age.Recipient, error) {
	_, err := k.identities()
	if err != nil {
		return nil, err
	}
	return k.public, nil
}

func (k *Keys) load() error {
	for _, file := range k.files() {
		identities, err := k.read(file)
		if errors.Is(err, fs.ErrNotExist) && len(k.configured) == 0 {
			continue
		}
		if err != nil {
			return &KeyError{Err: err, hint: "mend it, or name another file in secrets.identities of config.toml"}
		}
		k.private = append(k.private, identities...)
	}
	if len(k.private) == 0 {
		return &KeyError{
			Err:  fmt.Errorf("there is no %s", strings.Join(sshKeys, " and no ")),
			hint: "ssh-keygen -A makes them; or name a file that age-keygen made in secrets.identities of config.toml",
		}
	}
	k.public = recipients(k.private)
	return nil
}

// read reads the keys of one file: of age, or one of ssh.
func (k *Keys) read(file string) ([]age.Identity, error) {
	real, sshd := file, len(k.configured) == 0
	if sshd {
		var err error
		if real, err = k.host.Path(file); err != nil {
			return nil, err
		}
	}
	readFile := host.ReadSecret
	if sshd {
		readFile = host.ReadGroupSecret // Fedora's and RHEL's sshd have a group of their own for the host keys
	}
	data, err := readFile(real, maxKeys)
	if err != nil {
		return nil, err
	}
	identities, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s %w", real, err)
	}
	return identities, nil
}

// parse reads private keys. Its errors name lines and quote none.
func parse(data []byte) ([]age.Identity, error) {
	text := bytes.TrimSpace(data)
	switch {
	case bytes.HasPrefix(text, []byte(armor.Header)), bytes.HasPrefix(data, []byte(intro)):
		return nil, errors.New("is encrypted itself, and there is nobody on a host to type its passphrase")
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		identity, err := agessh.ParseIdentity(data)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, errors.New("has a passphrase, and there is nobody on a host to type it")
		}
		if err != nil {
			return nil, errors.New("is no private key of ssh that age can use: it takes ed25519 and RSA")
		}
		return []age.Identity{identity}, nil
	}
	var all []age.Identity
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "AGE-PLUGIN-") {
			return nil, fmt.Errorf("needs a plugin of age (line %d), and plugins are not supported", number)
		}
		identities, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil {
			return nil, fmt.Errorf("has no private key of age in line %d: it begins with AGE-SECRET-KEY-1", number)
		}
		all = append(all, identities...)
	}
	if len(all) == 0 {
		return nil, errors.New("has no private key in it")
	}
	return all, nil
}

// recipients are those of private keys. age does not mix those that a quantum
// computer could break with those that it could not.
func recipients(private []age.Identity) []age.Recipient {
	var classic, hybrid []age.Recipient
	for _, identity := range private {
		switch i := identity.(type) {
		case *age.HybridIdentity:
			hybrid = append(hybrid, i.Recipient())
		case *age.X25519Identity:
			classic = append(classic, i.Recipient())
		case *agessh.Ed25519Identity:
			classic = append(classic, i.Recipient())
		case *agessh.RSAIdentity:
			r := i.Recipient()
			if _, err := r.Wrap(make([]byte, 16)); err == nil { // RSA keys may be too short
				classic = append(classic, r)
			}
		}
	}
	if len(hybrid) > 0 {
		return hybrid
	}
	return classic
}
