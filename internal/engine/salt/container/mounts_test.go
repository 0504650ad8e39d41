package container

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// inside are the directories that the container has of the host.
func inside(mounts []mount) []string {
	var all []string
	for _, m := range mounts {
		all = append(all, m.inside)
	}
	return all
}

var always = []string{"/etc", "/home", "/host_etc", "/root", "/run", "/var"}

// The paths of these tests are this machine's: it has /srv, /opt and /usr/local
// as every one has.
func TestMounts(t *testing.T) {
	dir := t.TempDir() // below /tmp
	for link, target := range map[string]string{"absolute": "/srv/data", "relative": "../../../../../../../../opt", "first": "second", "second": "/usr/local", "loop": "loop", "image": "/usr/lib"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		writes []string
		more   []string
	}{
		{"nothing", nil, nil},
		{"the usual", []string{"/etc/motd", "/var/lib/app", "/run/app", "/home/core/.bashrc", "/root/.bashrc"}, nil},
		{"others", []string{"/opt/app/file", "/srv", "/usr/local/bin/tool", "/mnt/new/file"}, []string{"/mnt", "/opt", "/srv", "/usr/local"}},
		{"through an absolute link", []string{dir + "/absolute/file"}, []string{"/srv", "/tmp"}},
		{"through a relative link", []string{dir + "/relative/file"}, []string{"/opt", "/tmp"}},
		{"through two links", []string{dir + "/first/file"}, []string{"/tmp", "/usr/local"}},
		{"the link itself", []string{dir + "/absolute", dir + "/loop", dir + "/image"}, []string{"/tmp"}},
		{"what is to be made", []string{dir + "/new/directory/file"}, []string{"/tmp"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			mounts, err := (&Caller{}).mounts(salt.Call{Folder: "/run/reconf-pull/salt", Writes: test.writes})
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(append(slices.Clone(always), test.more...)))
			if diff := cmp.Diff(want, inside(mounts)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for _, m := range mounts {
				if real, err := filepath.EvalSymlinks(m.host); err != nil || real != m.host {
					t.Errorf("%s is mounted from %s, which is %s: %v", m.inside, m.host, real, err)
				}
			}
		})
	}
	for _, written := range []string{
		"/usr/bin/tool", "/usr/lib/tool", "/bin/tool", "/lib64/tool", "/proc/tool", "/dev/tool", "/host_etc/tool", "/no-such-directory/file", "/no-such-directory", "/usr",
		dir + "/image/file", dir + "/loop/file",
	} {
		t.Run("not "+written, func(t *testing.T) {
			mounts, err := (&Caller{}).mounts(salt.Call{Folder: "/run/reconf-pull/salt", Writes: []string{"/etc/motd", written}})
			var refused *finding.Failure
			if !errors.As(err, &refused) || !strings.HasPrefix(refused.Findings[0].Message, written+" cannot be written by the Salt container: ") || refused.Findings[0].Hint == "" {
				t.Errorf("%v, %v", mounts, err)
			}
		})
	}
}

func TestHardLinks(t *testing.T) {
	for _, test := range []struct {
		path, target string
		ok           bool
	}{
		{"/etc/a", "/etc/b", true},
		{"/opt/a", "/opt/app/b", true},
		{"/etc/hosts", "/etc/hostname", true},
		{"/opt/a", "/srv/b", false},
		{"/etc/a", "/var/b", false},
		{"/etc/a", "/etc/hosts", false},
		{"/opt/a", "/usr/bin/b", false},
	} {
		call := salt.Call{Folder: "/run/reconf-pull/salt", Writes: []string{test.path}, Links: [][2]string{{test.path, test.target}}}
		_, err := (&Caller{}).mounts(call)
		var refused *finding.Failure
		if test.ok != (err == nil) || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s as a hard link to %s: %v", test.path, test.target, err)
		}
	}
}

// A migration may write anywhere.
func TestMountsOfMigrations(t *testing.T) {
	folder := t.TempDir()
	call := salt.Call{Folder: folder}
	mounts, err := (&Caller{}).mounts(call)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(slices.Values(append(slices.Clone(always), folder))); !slices.Equal(inside(mounts), want) {
		t.Errorf("without migrations there is %q", inside(mounts))
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(folder, "sls/migrations"), 0o700), os.WriteFile(filepath.Join(folder, "sls/migrations/a.sls"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if mounts, err = (&Caller{}).mounts(call); err != nil {
		t.Fatal(err)
	}
	for _, want := range append(slices.Clone(always), "/opt", "/srv", "/usr/local", "/mnt", "/tmp") {
		if !slices.Contains(inside(mounts), want) {
			t.Errorf("there is no %s in %q", want, inside(mounts))
		}
	}
	for _, m := range mounts {
		if belongsToImage(m.inside) && m.inside != secondEtc {
			t.Errorf("%s hides what the image has there", m.inside)
		}
	}
}
