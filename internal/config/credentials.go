package config

import (
	"os"
	"path/filepath"
)

// credentialPrefix begins the names of credentials; what follows is the key.
const credentialPrefix = "reconf-pull."

// useCredentials takes the files that systemd hands to the service for keys that the
// configuration does not set: a credential has the name of its key, such as
// reconf-pull.source.token_file.
func (c *Config) useCredentials(dir string) {
	if dir == "" {
		return
	}
	given := func(key string) (path string, ok bool) {
		path = filepath.Join(dir, credentialPrefix+key)
		_, err := os.Stat(path)
		return path, err == nil
	}
	for key, value := range c.secrets() {
		if path, ok := given(key); ok && *value == "" {
			*value = path
		}
	}
	if path, ok := given("secrets.identities"); ok && len(c.Secrets.Identities) == 0 {
		c.Secrets.Identities = []string{path}
	}
}

// secrets are the keys that name a file which is a secret, or goes with one.
func (c *Config) secrets() map[string]*string {
	return map[string]*string{
		"source.ssh_key":       &c.Source.SSHKey,
		"source.password_file": &c.Source.PasswordFile,
		"source.token_file":    &c.Source.TokenFile,
		"source.client_cert":   &c.Source.ClientCert,
		"source.client_key":    &c.Source.ClientKey,
		"lock.cert":            &c.Lock.Cert,
		"lock.key":             &c.Lock.Key,
		"lock.password_file":   &c.Lock.PasswordFile,
	}
}
