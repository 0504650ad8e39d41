package update

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/service"
)

// Asking too seldom leaves a host cut off; asking too often rolls a good change back
// because the git server was restarted meanwhile.
func TestAsksSource(t *testing.T) {
	type file struct {
		path, text string
		mode       os.FileMode
	}
	unit := func(name, exec string) file {
		return file{"/etc/systemd/system/" + name, "[Service]\nExecStart=" + exec + "\n", 0o644}
	}
	for name, c := range map[string]struct {
		files   []file
		units   []string
		touched []string
		source  string
		want    bool
	}{
		"an application":                  {files: []file{{"/etc/app.conf", "nft\n", 0o644}, unit("app.service", "/usr/bin/app --ip=1")}, touched: []string{"app.service"}},
		"our configuration":               {files: []file{{"/etc/reconf-pull/config.toml", "", 0o644}}, want: true},
		"a file that it names":            {files: []file{{"/srv/ca.pem", "", 0o644}}, want: true},
		"a name that only begins like it": {files: []file{{"/srv/ca.pem.old", "", 0o644}, {"/etc/hostsfile", "", 0o644}}},
		"the resolver":                    {files: []file{{"/etc/resolv.conf", "", 0o644}}, want: true},
		"a network":                       {files: []file{{"/etc/systemd/network/10-lan.network", "", 0o644}}, want: true},
		"a network unit is restarted":     {touched: []string{"nftables.service"}, want: true},
		"a network unit is disabled":      {units: []string{"systemd-networkd.service"}, want: true},
		"a unit that calls nft":           {files: []file{unit("moat.service", "/usr/sbin/nft -f /etc/moat")}, want: true},
		"a unit that comes before the network": {
			files: []file{{"/etc/systemd/system/moat.service", "[Unit]\nBefore=network-pre.target\n", 0o644}}, want: true},
		"a script":                   {files: []file{{"/usr/local/bin/moat", "#!/bin/sh\nip link set eth0 down\n", 0o755}}, want: true},
		"a text about a script":      {files: []file{{"/usr/local/share/moat", "#!/bin/sh\nip link set eth0 down\n", 0o644}}},
		"a compiled program":         {files: []file{{"/usr/local/bin/moat", "\x7fELF nft ", 0o755}}},
		"always":                     {source: "always", want: true},
		"never, whatever is changed": {files: []file{{"/etc/resolv.conf", "", 0o644}}, source: "never"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			p := &plan.Plan{}
			for _, f := range c.files {
				real := filepath.Join(root, f.path)
				if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(real, []byte(f.text), f.mode); err != nil {
					t.Fatal(err)
				}
				p.Items = append(p.Items, plan.Item{Path: f.path, Write: true, After: disk.Node{Kind: disk.File}})
			}
			for _, unit := range c.units {
				p.Units = append(p.Units, plan.Unit{Name: unit})
			}
			for _, unit := range c.touched {
				p.Effect.Touches = append(p.Effect.Touches, service.Touch{Unit: unit})
			}
			u := &Update{
				Host: host.New(root), HealthSource: c.source, Lifeline: []string{"/srv/ca.pem"},
				Reach: func(context.Context) error { return nil },
			}
			if got := u.asksSource(p); got != c.want {
				t.Errorf("asksSource = %v", got)
			}
		})
	}
}
