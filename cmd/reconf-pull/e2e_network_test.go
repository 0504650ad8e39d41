package main_test

import (
	"encoding/pem"
	"maps"
	"net/http/cgi"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// fleetName is a name that the certificate of Go's test server is for.
const fleetName = "fleet.example.com"

// serveFleet serves the host's fleet repo over https, as git's own CGI does, on the
// private network and under a name that only the DNS server there knows. It returns
// the CA that the host has to trust.
func (m *machine) serveFleet() (ca string) {
	m.t.Helper()
	server := httptest.NewUnstartedServer(&cgi.Handler{
		Path: filepath.Join(m.Repo().Git("--exec-path"), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Dir(m.Repo().Dir()), "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	})
	server.Listener.Close()
	server.Listener = m.Listen("443")
	server.StartTLS()
	m.t.Cleanup(server.Close)
	m.Serve("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=", "--user=root",
		"--listen-address="+bootedhost.Gateway, "--bind-interfaces", "--no-resolv", "--no-hosts", "--local=/example.com/",
		"--address=/"+fleetName+"/"+bootedhost.Gateway)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

// A push that takes from the host the firewall's leave, the name, the route or the
// trust that it needs to pull undoes itself, whatever carries it; then the host takes
// the next push.
func TestPushThatCutsTheNetwork(t *testing.T) {
	m := bootWith(t, bootedhost.Options{OS: bootedhost.Debian13, PrivateNetwork: true})
	ca := m.serveFleet()
	config := []string{
		"[source]", "url = 'https://" + fleetName + "/fleet.git'", "ca_file = '/srv/fleet-ca.pem'",
		"[service]", "settle = '500ms'",
		"[[service.watch]]", "path = '/etc/nftables.conf'", "unit = 'nftables.service'",
		"[[service.watch]]", "path = '/etc/systemd/network/*'", "unit = 'systemd-networkd.service'",
	}
	m.write("/etc/reconf-pull/config.toml", config...)
	m.firstStart()

	const (
		open   = "flush ruleset\ntable inet wall {\n\tchain in { type filter hook input priority 0; policy accept; }\n}\n"
		drop   = "flush ruleset\ntable inet wall {\n\tchain in { type filter hook input priority 0; iif lo accept; drop; }\n}\n"
		reject = "flush ruleset\ntable inet wall {\n\tchain out { type filter hook output priority 0; oif lo accept; reject; }\n}\n"
	)
	network := func(address string) string {
		return unlines("[Match]", "Name="+bootedhost.Interface, "[Network]", "Address="+address+"/24", "LinkLocalAddressing=no")
	}
	files := map[string]string{
		"/etc/nftables.conf":                      open,
		"/etc/resolv.conf":                        "nameserver " + bootedhost.Gateway + "\n",
		"/etc/systemd/network/10-private.network": network(bootedhost.Address),
		"/srv/fleet-ca.pem":                       ca,
	}
	push := func(version string, changed map[string]string, units ...string) {
		t.Helper()
		lines := []string{"storage:", "  files:", "    - {path: /etc/version, contents: {inline: " + version + "}}"}
		wanted := maps.Clone(files)
		maps.Copy(wanted, changed)
		for path, text := range wanted {
			m.Repo().Write("files"+path, text)
			mode := "0644"
			if strings.HasPrefix(path, "/usr/local/bin/") {
				mode = "0755"
			}
			lines = append(lines, "    - {path: "+path+", mode: "+mode+", overwrite: true, contents: {local: files"+path+"}}")
		}
		lines = append(lines, "systemd:", "  units:", "    - {name: nftables.service, enabled: true}")
		m.push(append(lines, units...)...)
	}
	m.write("/srv/fleet-ca.pem", ca)
	m.WaitFor(10*time.Second, func() bool { _, status := m.Try("getent", "hosts", fleetName); return status == 0 }, "the name "+fleetName)
	push("first", nil)
	m.converge()
	if got := m.Run("nft", "list", "ruleset"); got == "" {
		t.Fatal("the firewall of the first push is not up")
	}

	wall := unlines("[Service]", "Type=oneshot", "RemainAfterExit=yes", "ExecStart=/usr/sbin/nft add table inet moat",
		"ExecStart=/usr/sbin/nft add chain inet moat out '{ type filter hook output priority 0; policy drop; }'",
		"ExecStop=/usr/sbin/nft delete table inet moat", "[Install]", "WantedBy=multi-user.target")
	m.Repo().Write("moat.service", wall)
	m.Repo().Write("dark.service", unlines("[Service]", "Type=oneshot", "RemainAfterExit=yes", "ExecStart=/usr/local/bin/link down", "ExecStop=/usr/local/bin/link up",
		"[Install]", "WantedBy=multi-user.target"))
	for _, bad := range []struct {
		what  string
		files map[string]string
		units []string
	}{
		{what: "a firewall that drops", files: map[string]string{"/etc/nftables.conf": drop}},
		{what: "a firewall that rejects", files: map[string]string{"/etc/nftables.conf": reject}},
		{what: "a unit that drops", units: []string{"    - {name: moat.service, enabled: true, contents_local: moat.service}"}},
		{what: "no resolver", files: map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.1\n"}},
		{what: "another address", files: map[string]string{"/etc/systemd/network/10-private.network": network("198.51.100.7")}},
		{what: "another CA", files: map[string]string{"/srv/fleet-ca.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("other")}))}},
		{what: "a program that a unit calls", files: map[string]string{"/usr/local/bin/link": unlines("#!/bin/sh", "ip link set "+bootedhost.Interface+" $1")},
			units: []string{"    - {name: dark.service, enabled: true, contents_local: dark.service}"}},
	} {
		t.Log(bad.what)
		push("bad", bad.files, bad.units...)
		began := time.Now()
		m.fails("health: the fleet repo cannot be reached any more from the changed host", "the change was rolled back")
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("%s: it took %s", bad.what, took)
		}
		t.Logf("undone after %s", time.Since(began).Round(time.Second))
		m.gives("first", "cat", "/etc/version")
		for path, text := range files {
			if got := string(m.Read(path)); got != text {
				t.Errorf("%s: %s is\n%s", bad.what, path, got)
			}
		}
		out, status := m.Try("reconf-pull", "status")
		if status != 1 {
			t.Errorf("%s: status ends with %d", bad.what, status)
		}
		m.says(out, "health:   failing\n", "held: ", "the fleet repo cannot be reached any more")
		m.says(m.Journal(agent), "reconf-pull.service: Main process exited, code=exited, status=1")
		m.fails("is held since", "the fleet repo cannot be reached")
	}
	push("good", map[string]string{"/etc/nftables.conf": open + "# changed\n"})
	m.converge()
	m.gives("good", "cat", "/etc/version")
}
