package main_test

import (
	"encoding/pem"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// Token and private key are systemd's credentials: the configuration names neither,
// and only the service has them.
func TestCredentialsOfSystemd(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	backend := &cgi.Handler{
		Path: filepath.Join(m.Repo().Git("--exec-path"), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Dir(m.Repo().Dir()), "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, token, _ := r.BasicAuth(); token != "s3cret-token" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	key := filepath.Join(t.TempDir(), "age.key")
	if out, err := exec.Command("age-keygen", "-o", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, public, _ := strings.Cut(string(mustRead(t, key)), "# public key: ")
	public, _, _ = strings.Cut(public, "\n")
	encrypt := exec.Command("age", "-r", public)
	encrypt.Stdin = strings.NewReader("the s3cret of web1\n")
	cipher, err := encrypt.Output()
	if err != nil {
		t.Fatal(err)
	}

	m.write("/etc/reconf-pull/ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+server.URL+"/fleet.git'", "ca_file = '/etc/reconf-pull/ca.pem'", "[service]", "settle = '500ms'")
	m.Write("/etc/secrets/token", []byte("s3cret-token\n"), 0o600)
	m.Write("/etc/secrets/age.key", mustRead(t, key), 0o600)
	m.Run("chmod", "700", "/etc/secrets")
	m.Repo().Write("hosts/db.age", string(cipher))
	m.push("storage: {files: [{path: /etc/db, contents: {local: hosts/db.age}}]}")
	if status, said := m.pull(); status != 69 || !strings.Contains(said, "the server asks for credentials") {
		t.Errorf("without a token: %d\n%s", status, said)
	}

	credentials := func(lines ...string) {
		m.write("/etc/systemd/system/reconf-pull.service.d/credentials.conf", append([]string{"[Service]"}, lines...)...)
		m.Run("systemctl", "daemon-reload")
	}
	const token = "LoadCredential=reconf-pull.source.token_file:/etc/secrets/token"
	credentials(token)
	if status, said := m.pull(); status == 0 || !strings.Contains(said, "its recipients are X25519, and none is that of") && !strings.Contains(said, "there is no /etc/ssh/") {
		t.Errorf("without the private key: %d\n%s", status, said)
	}
	credentials(token, "LoadCredential=reconf-pull.secrets.identities:/etc/secrets/age.key")
	status, said := m.pull()
	if status != 0 {
		t.Fatalf("the run ended with %d:\n%s", status, said)
	}
	m.gives("the s3cret of web1", "cat", "/etc/db")
	m.gives("root:root 600", "stat", "--format=%U:%G %a", "/etc/db")
	if out := m.Run("journalctl", "--no-pager", "--output=cat") + said; strings.Contains(out, "s3cret") {
		t.Error("a secret was said")
	}
	if out, status := m.Try("reconf-pull", "plan"); status != 69 || !strings.Contains(out, "the server asks for credentials") {
		t.Errorf("a command has what is the service's: %d\n%s", status, out)
	}
}
