package child_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"encoding/pem"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// probe tries what the process that fetches must not be able to do, and tells in
// place of a fetch what it could.
type probe struct {
	Mirror    string   // its directory
	Write     []string // directories
	Read      []string // files
	Overwrite []string // files
	Given     []string // files that were handed over
	Parent    int
	Socket    string // abstract
}

func (p *probe) Fetch(context.Context) (source.Revision, error) {
	var could []string
	try := func(what string, err error) {
		if err == nil {
			could = append(could, what)
		}
	}
	for _, dir := range append(p.Write, p.Mirror) {
		file := filepath.Join(dir, "probe")
		try("write "+dir, os.WriteFile(file, []byte("x"), 0o644))
		try("make a directory in "+dir, os.Mkdir(file+".d", 0o755))
		try("make a link in "+dir, os.Symlink("/etc/shadow", file+".l"))
		try("make a device in "+dir, unix.Mknod(file+".n", unix.S_IFCHR|0o666, 259))
		try("remove from "+dir, os.Remove(filepath.Join(dir, "precious")))
	}
	for _, path := range p.Read {
		_, err := os.ReadFile(path)
		try("read "+path, err)
	}
	for _, path := range p.Given {
		_, err := os.ReadFile(path)
		try("read the copy of "+path, err)
	}
	for _, path := range p.Overwrite {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString("x")
		}
		try("overwrite "+path, err)
		try("truncate "+path, os.Truncate(path, 0))
		try("chmod "+path, os.Chmod(path, 0o777))
	}
	try("list the processes", func() error { _, err := os.ReadDir("/proc"); return err }())
	try("look into its parent", func() error { _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Parent)); return err }())
	try("signal its parent", unix.Kill(p.Parent, 0))
	try("trace its parent", unix.PtraceAttach(p.Parent))
	try("become root", unix.Setresuid(0, 0, 0))
	try("mount", unix.Mount("x", p.Mirror, "tmpfs", 0, ""))
	try("make namespaces", unix.Unshare(unix.CLONE_NEWUSER|unix.CLONE_NEWNS))
	conn, err := net.Dial("unix", p.Socket)
	try("reach an abstract socket", err)
	if err == nil {
		conn.Close()
	}
	out, err := exec.Command("/bin/sh", "-c", "echo x > /var/tmp/from-a-shell; cat /proc/self/status").CombinedOutput()
	try("run a shell that reads /proc: "+string(out), err)
	return source.Revision{}, errors.New("it could: " + strings.Join(could, "; "))
}

func (*probe) Deepen()        {}
func (*probe) Discard() error { return nil }
func (*probe) Open(objects.Kind, string) (io.ReadCloser, int64, error) {
	return nil, 0, objects.ErrMissing
}
func (*probe) Size(string) (int64, error) { return 0, objects.ErrMissing }
func (*probe) Commits(context.Context, string, int) ([][]byte, error) {
	return nil, objects.ErrMissing
}

// TestConfinement tries for real what is promised: nothing outside of the mirror is
// written, nothing of the state or of root's is read.
func TestConfinement(t *testing.T) {
	version := run.Landlock()
	t.Logf("Landlock version of this kernel: %d", version)
	users(t, func(t *testing.T, user *run.User) {
		if version == 0 && user == nil {
			lacking.Skip(t, "this kernel has no Landlock: the same user may do what it may")
		}
		dir := place(t)
		open, state := filepath.Join(dir, "open"), filepath.Join(dir, "state")
		write(t, filepath.Join(open, "precious"), "x", 0o666)
		write(t, filepath.Join(state, "state.json"), "secret", 0o644)
		write(t, filepath.Join(dir, "key"), "private key", 0o600)
		write(t, filepath.Join(dir, "config.toml"), "for everybody", 0o644)
		if err := errors.Join(os.Chmod(open, 0o777), os.Chmod(state, 0o700)); err != nil {
			t.Fatal(err)
		}
		abstract, err := net.Listen("unix", "@reconf-child-"+filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer abstract.Close()
		key := filepath.Join(dir, "key")
		s := newSource(t, dir, user, gogit.Options{URL: "https://nowhere.invalid"}, child.Options{
			Env: []string{"PROBE=files"},
			Setup: func(file child.HandOver) any {
				return probe{
					Mirror: filepath.Join(dir, "cache/mirror"), Write: []string{open, dir, "/tmp", "/var/tmp", "/dev/shm", "/run", filepath.Join(dir, "cache")},
					Read:      []string{filepath.Join(state, "state.json"), key, filepath.Join(dir, "config.toml"), "/etc/shadow", "/etc/machine-id", "/proc/self/status", "/root/.profile"},
					Overwrite: []string{filepath.Join(open, "precious"), key},
					Given:     []string{file(key, os.ReadFile), file(filepath.Join(dir, "nothing"), os.ReadFile)}, Parent: os.Getpid(), Socket: abstract.Addr().String(),
				}
			},
		})
		_, err = s.Fetch(context.Background())
		if err == nil || !strings.HasPrefix(err.Error(), "it could: ") {
			t.Fatalf("got %v", err)
		}
		could := strings.Split(strings.TrimPrefix(err.Error(), "it could: "), "; ")
		t.Logf("it could: %q", could)
		mirror := filepath.Join(dir, "cache/mirror")
		may := []string{"write " + mirror, "make a directory in " + mirror, "make a link in " + mirror, "read the copy of " + key}
		if user == nil {
			// Landlock does not know of modes; root is root.
			may = append(may, "chmod "+filepath.Join(open, "precious"), "chmod "+key, "become root")
		}
		never := []string{"read " + filepath.Join(state, "state.json"), "read /etc/shadow", "read " + key, "overwrite " + key, "write " + filepath.Join(dir, "cache"), "write /run", "look into its parent", "trace its parent", "mount"}
		for _, did := range could {
			if !slices.Contains(may, did) && (version > 0 || slices.Contains(never, did)) {
				t.Errorf("it could %s", did)
			}
		}
		for path, want := range map[string]string{key: "private key", filepath.Join(state, "state.json"): "secret", filepath.Join(open, "precious"): "x"} {
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", path, got, err)
			}
		}
		pids := children(t)
		if len(pids) != 1 {
			t.Fatalf("processes: %v", pids)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"NoNewPrivs:\t1"}
		if user != nil {
			want = append(want, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d", user.UID), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d", user.GID), "Groups:\t \n", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "CapInh:\t0000000000000000")
		}
		for _, line := range want {
			if !strings.Contains(string(status), line) {
				t.Errorf("its status lacks %q:\n%s", line, status)
			}
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pids[0]))
		if err != nil || !strings.Contains(string(limits), "Max core file size        0                    0") {
			t.Errorf("limits: %v\n%s", err, limits)
		}
		open2, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range open2 {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pids[0], fd.Name()))
			if !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "/memfd:reconf-pull") && !strings.HasPrefix(to, "anon_inode:") {
				t.Errorf("it has %s open", to)
			}
		}
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pids[0])); err != nil || cwd != "/" {
			t.Errorf("it is in %s, %v", cwd, err)
		}
		// This process may do what it could.
		if err := os.WriteFile(filepath.Join(open, "after"), nil, 0o644); err != nil {
			t.Error(err)
		}
		own, err := os.ReadFile("/proc/thread-self/status")
		if err != nil || strings.Contains(string(own), "NoNewPrivs:\t1") {
			t.Errorf("this process cannot gain privileges any more: %v", err)
		}
	})
}

// Credentials are root's; the process that uses them cannot open them, and what it
// says of them has their names.
func TestCredentialsAreHandedOver(t *testing.T) {
	users(t, func(t *testing.T, user *run.User) {
		dir, ctx := place(t), context.Background()
		repo := fleet(t, dir)
		tip := git(t, repo, "rev-parse", "HEAD")
		token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); password != "s3cret" {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			(&cgi.Handler{
				Path: "/usr/lib/git-core/git-http-backend", Root: "/",
				Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
			}).ServeHTTP(w, r)
		}))
		defer srv.Close()
		write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})), 0o600)
		of := gogit.Options{URL: srv.URL + "/fleet", TokenFile: token, CAFile: ca}

		_, err := newSource(t, dir, user, of, child.Options{}).Fetch(ctx)
		if err == nil || !errors.Is(err, source.ErrLocal) || !strings.Contains(err.Error(), token+": no such file") {
			t.Errorf("without a token: %v", err)
		}
		write(t, token, "s3cret\n", 0o644)
		_, err = newSource(t, dir, user, of, child.Options{}).Fetch(ctx)
		var hinted *source.Error
		if err == nil || !strings.Contains(err.Error(), token+" is readable by everybody (mode 0644)") || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint, "chmod go= "+token) {
			t.Errorf("with an open token: %v", err)
		}
		write(t, token, "wrong\n", 0o600)
		if _, err = newSource(t, dir, user, of, child.Options{}).Fetch(ctx); err == nil || !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), "authentication refused") {
			t.Errorf("with a wrong token: %v", err)
		}
		write(t, token, "s3cret\n", 0o600)
		rev, err := newSource(t, dir, user, of, child.Options{}).Fetch(ctx)
		if err != nil || rev.Commit != tip {
			t.Errorf("got %v, %v", rev, err)
		}
	})
}

// The directory of the other process is nobody else's, and what lay in its place is
// removed, not followed.
func TestPlaceOfTheMirror(t *testing.T) {
	if os.Geteuid() != 0 {
		lacking.Skip(t, "not root: there is no other user")
	}
	for name, before := range map[string]func(dir string) error{
		"nothing": func(string) error { return nil },
		"an older release's mirror": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "cache/mirror/objects/pack"), 0o700), os.Chmod(filepath.Join(dir, "cache"), 0o700),
				os.WriteFile(filepath.Join(dir, "cache/mirror/HEAD"), []byte("ref: refs/heads/main\n"), 0o600))
		},
		"a link": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "cache"), 0o700), os.Symlink(filepath.Join(dir, "precious"), filepath.Join(dir, "cache/mirror")))
		},
		"a link inside": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "cache/mirror"), 0o700), os.Symlink(filepath.Join(dir, "precious"), filepath.Join(dir, "cache/mirror/objects")))
		},
		"a file": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "cache"), 0o700), os.WriteFile(filepath.Join(dir, "cache/mirror"), nil, 0o600))
		},
		"another user's": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "cache/mirror/fleet.git"), 0o700), os.Chown(filepath.Join(dir, "cache/mirror"), 1000, 1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := place(t)
			repo := fleet(t, dir)
			write(t, filepath.Join(dir, "precious/file"), "precious", 0o600)
			if err := before(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := newSource(t, dir, nobody, gogit.Options{URL: repo}, child.Options{}).Fetch(context.Background()); err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(filepath.Join(dir, "cache/mirror"))
			if err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != nobody.UID || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info, err)
			}
			if data, err := os.ReadFile(filepath.Join(dir, "precious/file")); err != nil || string(data) != "precious" {
				t.Errorf("%q, %v", data, err)
			}
			if info, err := os.Lstat(filepath.Join(dir, "precious")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
	dir := place(t)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "cache"), 0o700), os.Chmod(filepath.Join(dir, "cache"), 0o777)); err != nil {
		t.Fatal(err)
	}
	_, err := newSource(t, dir, nobody, gogit.Options{URL: "/nowhere"}, child.Options{}).Fetch(context.Background())
	if err == nil || !errors.Is(err, source.ErrLocal) || !strings.Contains(err.Error(), "has mode 0777: others may write it") {
		t.Errorf("in a directory that everybody may write: %v", err)
	}
}
