package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/config"
)

// What systemd hands over stands in for keys that the file does not set.
func TestCredentials(t *testing.T) {
	given := t.TempDir()
	for _, key := range []string{
		"source.ssh_key", "source.password_file", "source.token_file", "source.client_cert", "source.client_key",
		"lock.cert", "lock.key", "lock.password_file", "secrets.identities", "source.url", "verify.keyring",
	} {
		if err := os.WriteFile(filepath.Join(given, "reconf-pull."+key), []byte("x"), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[source]\ntoken_file = '/own'\n[lock]\nuser = 'u'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(key string) string { return filepath.Join(given, "reconf-pull."+key) }
	want := config.Default()
	want.Source.TokenFile, want.Lock.User = "/own", "u"
	want.Source.SSHKey, want.Source.PasswordFile = at("source.ssh_key"), at("source.password_file")
	want.Source.ClientCert, want.Source.ClientKey = at("source.client_cert"), at("source.client_key")
	want.Lock.Cert, want.Lock.Key, want.Lock.PasswordFile = at("lock.cert"), at("lock.key"), at("lock.password_file")
	want.Secrets.Identities = []string{at("secrets.identities")}
	got, err := config.Load(file, false, given)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	own := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(own, []byte("[secrets]\nidentities = ['/own']\n[source]\ntoken_file = '/own'\n[lock]\nuser = 'u'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want.Secrets.Identities = []string{"/own"}
	got, err = config.Load(own, false, given)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := config.Load(file, false, ""); err == nil || !strings.Contains(err.Error(), "go together") {
		t.Errorf("without credentials: %v", err)
	}
}

// Who can write the configuration is root.
func TestConfigurationOfOthers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o664); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(file, false, "")
	if err == nil || !strings.Contains(err.Error(), file+" is writable by its group (mode 0664)") {
		t.Errorf("error is %v", err)
	}
}
