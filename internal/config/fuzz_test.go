package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/config"
)

// FuzzLoad: a file that is taken bounds everything, and one that is not is a
// configuration error.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"../../packaging/config.toml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("[lock]\nkind = 'etcd'\nendpoints = ['https://a:1']\nname = '{{.Group}}'\n[reboot]\nwindows = ['Sat 02:00-05:00 UTC']\npaths = ['/a/**']\n"))
	f.Add([]byte("[[service.watch]]\npath = '/etc/{x}'\nunit = 'a@{x}.service'\n[translate]\nmax_file = '1GiB'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(file, false, "")
		var wrong *config.Error
		if err != nil {
			if !errors.As(err, &wrong) {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		if c.Source.Timeout <= 0 || c.Source.MaxFetch <= 0 || c.Source.MaxObject <= 0 || c.Source.MaxObjects <= 0 || c.Source.MaxRefs <= 0 ||
			c.Translate.MaxFile <= 0 || c.Translate.MaxText <= 0 || c.Translate.MaxEntries <= 0 || c.Translate.MaxDepth <= 0 ||
			c.Hooks.Timeout <= 0 || c.Hooks.MaxLines <= 0 || c.Run.Timeout <= 0 {
			t.Errorf("something is not bounded: %+v", c)
		}
		c.RebootPaths()
		c.Watches()
	})
}
