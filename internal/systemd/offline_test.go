package systemd_test

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

const vendor = "usr/lib/systemd/system/"

// offlineCases are roots, the unit that is asked for, and why the case is here.
// A value that begins with "-> " is a symlink.
var offlineCases = []struct {
	name, unit string
	root       map[string]string
}{
	{name: "wanted", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=multi-user.target\n",
	}},
	{name: "wanted and required by several", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=a.target b.target\nRequiredBy=c.target\nWantedBy=d.target\n",
	}},
	{name: "of the admin", unit: "a.service", root: map[string]string{
		"etc/systemd/system/a.service": "[Install]\nWantedBy=multi-user.target\n",
		vendor + "a.service":           "[Install]\nWantedBy=vendor.target\n",
	}},
	{name: "of /usr/local", unit: "a.timer", root: map[string]string{
		"usr/local/lib/systemd/system/a.timer": "[Install]\nWantedBy=timers.target\n",
	}},
	{name: "of /run", unit: "a.service", root: map[string]string{
		"run/systemd/system/a.service": "[Install]\nWantedBy=multi-user.target\n",
	}},
	{name: "alias", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nAlias=b.service c.service\n",
	}},
	{name: "alias that is a wants directory", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nAlias=multi-user.target.wants/a.service\n",
	}},
	{name: "alias of another type", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nAlias=b.timer\nWantedBy=c.target\n",
	}},
	{name: "alias of a mount", unit: "m.mount", root: map[string]string{
		vendor + "m.mount": "[Install]\nAlias=n.mount\nWantedBy=local-fs.target\n",
	}},
	{name: "also", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=a.target\nAlso=a.socket\n",
		vendor + "a.socket":  "[Install]\nWantedBy=sockets.target\nAlso=a.service\n",
	}},
	{name: "only also", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nAlso=a.socket\n",
		vendor + "a.socket":  "[Install]\nWantedBy=sockets.target\n",
	}},
	{name: "also one that is missing", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=a.target\nAlso=gone.service\n",
	}},
	{name: "instance", unit: "t@one.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=multi-user.target\n",
	}},
	{name: "instance with a file of its own", unit: "t@one.service", root: map[string]string{
		vendor + "t@.service":    "[Install]\nWantedBy=multi-user.target\n",
		vendor + "t@one.service": "[Install]\nWantedBy=one.target\n",
	}},
	{name: "instance with an alias", unit: "t@one.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nAlias=u@.service\n",
	}},
	{name: "template with a default", unit: "t@.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=multi-user.target\nDefaultInstance=one\n",
	}},
	{name: "instance beside a default", unit: "t@two.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=multi-user.target\nDefaultInstance=one\n",
	}},
	{name: "template without a default", unit: "t@.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=multi-user.target\n",
	}},
	{name: "template with an alias", unit: "t@.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nAlias=u@.service v.service\n",
	}},
	{name: "template wanted by a template", unit: "t@.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=w@.target\n",
	}},
	{name: "specifiers", unit: "web-api@eu-1.service", root: map[string]string{
		vendor + "web-api@.service": "[Install]\nWantedBy=%i.target %p.target %j.target\nRequiredBy=%N.target x-%n.target\n",
	}},
	{name: "specifiers without an instance", unit: "web-api.service", root: map[string]string{
		vendor + "web-api.service": "[Install]\nWantedBy=x%i.target %p.target %j.target\nRequiredBy=%N.target\nAlso=%p.socket\n",
		vendor + "web-api.socket":  "[Install]\nWantedBy=sockets.target\n",
	}},
	{name: "specifiers with a default", unit: "t@.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=%i.target %N.target\nDefaultInstance=one\n",
	}},
	{name: "drop-ins", unit: "a.service", root: map[string]string{
		vendor + "a.service":                            "[Install]\nWantedBy=a.target\n",
		vendor + "a.service.d/20.conf":                  "[Install]\nWantedBy=vendor.target\n",
		"etc/systemd/system/a.service.d/20.conf":        "[Install]\nWantedBy=admin.target\n",
		"etc/systemd/system/a.service.d/10.conf":        "[Install]\nWantedBy=\nWantedBy=ten.target\n",
		"etc/systemd/system/a.service.d/README":         "[Install]\nWantedBy=no.target\n",
		"usr/local/lib/systemd/system/service.d/5.conf": "[Install]\nRequiredBy=type.target\n",
	}},
	{name: "drop-ins of a prefix and a template", unit: "web-api@eu.service", root: map[string]string{
		vendor + "web-api@.service":                         "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/web-.service.d/10.conf":         "[Install]\nWantedBy=prefix.target\n",
		"etc/systemd/system/web-api@.service.d/20.conf":     "[Install]\nWantedBy=template.target\n",
		"etc/systemd/system/web-api@eu.service.d/30.conf":   "[Install]\nWantedBy=instance.target\n",
		"etc/systemd/system/web-api@asia.service.d/40.conf": "[Install]\nWantedBy=other.target\n",
	}},
	{name: "masked drop-in", unit: "a.service", root: map[string]string{
		// systemctl looks for it inside the root.
		"dev/null":                               "",
		vendor + "a.service":                     "[Install]\nWantedBy=a.target\n",
		vendor + "a.service.d/20.conf":           "[Install]\nWantedBy=vendor.target\n",
		"etc/systemd/system/a.service.d/20.conf": "-> /dev/null",
	}},
	{name: "quotes and an empty value", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=a.target\nWantedBy=\nWantedBy=\"b.target\" 'c.target'\n",
	}},
	{name: "a line that goes on", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Unit]\nDescription=a\\\n  b\n[Install]\nWantedBy=a.target \\\n  b.target\n",
	}},
	{name: "static", unit: "a.service", root: map[string]string{
		vendor + "a.service": "[Service]\nExecStart=/bin/true\n",
	}},
	{name: "masked", unit: "a.service", root: map[string]string{
		vendor + "a.service":           "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/a.service": "-> /dev/null",
	}},
	{name: "masked at run time", unit: "a.service", root: map[string]string{
		vendor + "a.service":           "[Install]\nWantedBy=a.target\n",
		"run/systemd/system/a.service": "-> /dev/null",
	}},
	{name: "masked by an empty file", unit: "a.service", root: map[string]string{
		vendor + "a.service":           "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/a.service": "",
	}},
	{name: "missing", unit: "a.service"},
	{name: "asked for by its alias", unit: "b.service", root: map[string]string{
		vendor + "a.service": "[Install]\nWantedBy=a.target\n",
		vendor + "b.service": "-> a.service",
	}},
	{name: "asked for by an alias of the template", unit: "u@one.service", root: map[string]string{
		vendor + "t@.service": "[Install]\nWantedBy=a.target\n",
		vendor + "u@.service": "-> t@.service",
	}},
	{name: "already enabled, with an old link", unit: "a.service", root: map[string]string{
		vendor + "a.service":                              "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/old.target.wants/a.service":   "-> /usr/lib/systemd/system/a.service",
		"etc/systemd/system/other.service":                "-> /usr/lib/systemd/system/a.service",
		"etc/systemd/system/x.target.wants/other.service": "-> /usr/lib/systemd/system/a.service",
		"etc/systemd/system/x.target.wants/b.service":     "-> /usr/lib/systemd/system/b.service",
	}},
	{name: "instances of a template", unit: "t@.service", root: map[string]string{
		vendor + "t@.service":                               "[Install]\nWantedBy=a.target\nDefaultInstance=one\n",
		"etc/systemd/system/a.target.wants/t@two.service":   "-> /usr/lib/systemd/system/t@.service",
		"etc/systemd/system/a.target.wants/t@three.service": "-> /usr/lib/systemd/system/t@.service",
	}},
	{name: "instances of a template without a default", unit: "t@.service", root: map[string]string{
		vendor + "t@.service":                             "[Install]\nAlias=u@.service\n",
		"etc/systemd/system/a.target.wants/t@two.service": "-> /usr/lib/systemd/system/t@.service",
	}},
	{name: "one instance of several", unit: "t@two.service", root: map[string]string{
		vendor + "t@.service":                               "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/a.target.wants/t@two.service":   "-> /usr/lib/systemd/system/t@.service",
		"etc/systemd/system/a.target.wants/t@three.service": "-> /usr/lib/systemd/system/t@.service",
	}},
	{name: "relative link", unit: "a.service", root: map[string]string{
		vendor + "a.service":                            "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/old.target.wants/a.service": "-> ../../../../usr/lib/systemd/system/a.service",
	}},
	{name: "linked", unit: "a.service", root: map[string]string{
		"opt/app/a.service":            "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/a.service": "-> /opt/app/a.service",
	}},
	{name: "enabled at run time", unit: "a.service", root: map[string]string{
		vendor + "a.service":                          "[Install]\nWantedBy=a.target\n",
		"run/systemd/system/a.target.wants/a.service": "-> /usr/lib/systemd/system/a.service",
	}},
	{name: "of a merged /usr", unit: "a.service", root: map[string]string{
		"lib":                          "-> usr/lib",
		"etc/systemd/system/a.service": "[Install]\nWantedBy=a.target\n",
	}},
}

// TestAsSystemctl holds what Offline plans against what the real systemctl does.
func TestAsSystemctl(t *testing.T) {
	if _, err := exec.LookPath("systemctl"); err != nil {
		lacking.Skip(t, "no systemctl here: LINKS ARE NOT COMPARED")
	}
	for _, test := range offlineCases {
		t.Run(test.name, func(t *testing.T) {
			root := lay(t, test.root)
			o := systemd.Offline{Host: host.New(root)}

			state, err := o.State(test.unit)
			if err != nil {
				t.Fatalf("state: %v", err)
			}
			if want := isEnabled(root, test.unit); state != want {
				t.Errorf("state before: got %q, systemctl says %q", state, want)
			}

			gone, disableErr := o.Unlinks(test.unit)
			links, enableErr := o.Links(test.unit)
			before := symlinks(t, root)

			out, err := exec.Command("systemctl", "--root="+root, "--quiet", "enable", test.unit).CombinedOutput()
			if (err != nil) != (enableErr != nil) {
				t.Errorf("enable: our error is %v, systemctl's %v: %s", enableErr, err, out)
			}
			want := symlinks(t, root)
			got := map[string]string{}
			for path, target := range before {
				got[path] = target
			}
			for _, link := range links {
				got[link.Path] = link.Target
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("enable (-systemctl +ours):\n%s\n%s", diff, out)
			}
			state, err = o.State(test.unit)
			if want := isEnabled(root, test.unit); state != want || err != nil {
				t.Errorf("state after enable: got %q, %v, systemctl says %q", state, err, want)
			}

			// What was planned before enabling is for the root as it was.
			fresh := lay(t, test.root)
			out, err = exec.Command("systemctl", "--root="+fresh, "--quiet", "disable", test.unit).CombinedOutput()
			if (err != nil) != (disableErr != nil) {
				t.Errorf("disable: our error is %v, systemctl's %v: %s", disableErr, err, out)
			}
			left := symlinks(t, fresh)
			for _, path := range gone {
				delete(before, path)
			}
			if diff := cmp.Diff(left, before, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("disable (-systemctl +ours):\n%s\n%s", diff, out)
			}

			// And after enabling: everything that was made goes.
			gone, err = o.Unlinks(test.unit)
			if (err != nil) != (disableErr != nil) {
				t.Errorf("disable after enable: %v", err)
			}
			all := symlinks(t, root)
			for _, path := range gone {
				delete(all, path)
			}
			out, _ = exec.Command("systemctl", "--root="+root, "--quiet", "disable", test.unit).CombinedOutput()
			if diff := cmp.Diff(symlinks(t, root), all, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("disable after enable (-systemctl +ours):\n%s\n%s", diff, out)
			}
		})
	}
}

func isEnabled(root, unit string) string {
	out, _ := exec.Command("systemctl", "--root="+root, "is-enabled", unit).Output()
	// What newer versions print, older ones say on stderr.
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "not-found")
}

// lay makes a root. The directories of units are there, because systemctl
// cannot do without them.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content := files[name]
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"etc/systemd/system", vendor} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func symlinks(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink == 0 {
			return err
		}
		target, err := os.Readlink(path)
		found[strings.TrimPrefix(path, root)] = target
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
