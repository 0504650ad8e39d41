package salt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// standIn stands for a salt-call: it answers what it is told to, or what a real
// one answered.
type standIn struct {
	t       *testing.T
	answers []salt.Answer // one a call
	missing error
	fails   error // of a call
	calls   [][]string
	folder  string
	stopped int
	look    func(folder string) // during a call
}

func (*standIn) Name() string                    { return engine.Salt }
func (*standIn) Place(p string) string           { return p }
func (s *standIn) Prepare(context.Context) error { return s.missing }
func (s *standIn) Stop(context.Context, string) error {
	s.stopped++
	return nil
}

func (s *standIn) Call(ctx context.Context, c salt.Call) (salt.Answer, error) {
	s.calls = append(s.calls, c.Args)
	s.folder = c.Folder
	if info, err := os.Stat(c.Folder); err != nil || info.Mode().Perm() != 0o700 {
		s.t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	if s.look != nil {
		s.look(c.Folder)
	}
	if s.fails != nil {
		return salt.Answer{}, s.fails
	}
	answer := s.answers[0]
	s.answers = s.answers[1:]
	return answer, ctx.Err()
}

// recorded are the three answers that a real salt-call gave.
func recorded(t *testing.T, name string) []salt.Answer {
	t.Helper()
	var all []salt.Answer
	for _, run := range []string{"run1", "run2", "run3"} {
		out, err := os.ReadFile(filepath.Join("testdata", "recordings", name, run+".json"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, salt.Answer{Stdout: out, Exit: 2})
	}
	return all
}

type bench struct {
	*salt.Engine
	caller *standIn
	job    *engine.Job
	root   string
}

// newBench has a job that makes one link, which Salt is told about, and a migration.
func newBench(t *testing.T, link string) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: links get owners")
	}
	root := t.TempDir()
	h := host.New(root)
	b := &bench{root: root, caller: &standIn{t: t}}
	b.Engine = &salt.Engine{
		Native: &native.Engine{Host: h, Blobs: t.TempDir(), Accounts: &host.Accounts{Host: h}}, Caller: b.caller, Run: t.TempDir(),
	}
	b.job = &engine.Job{
		ID: "1-abcdef", Dir: t.TempDir(), Manifest: &state.Manifest{},
		Plan:    &plan.Plan{Items: []plan.Item{{Path: link, Write: true, After: disk.Node{Kind: disk.Link, Target: "/nowhere"}}}},
		Request: engine.Request{Host: "rec", Migrations: []engine.Migration{{Path: "hosts/rec/10-clean.sls", Data: []byte("x: {test.nop: []}")}}},
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, link)), 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

// clean requires that nothing of Salt is left, and the link is there or not.
func (b *bench) clean(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(salt.Folder(b.Run)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

const ok = `{"local": {"file_|-/etc/l_|-/etc/l_|-symlink": {"__id__": "/etc/l", "__sls__": "main", "result": true, "changes": {"new": "/etc/l"}}}}`

func TestCheckStopsWhereSaltDoes(t *testing.T) {
	for _, c := range []struct {
		name, link, want string
		calls            int
	}{
		{"yaml-error-in-migration", "/srv/rec/m/a", "hosts/rec/10-clean.sls:5:1: Rendering SLS", 1},
		{"jinja-error-in-migration", "/srv/rec/m/a", "hosts/rec/10-clean.sls:5: Rendering SLS", 1},
		{"requisite-missing", "/srv/rec/i/a", "main.sls: state /srv/rec/i/a (file.managed): The following requisites were not found", 1},
		{"unknown-function", "/srv/rec/d/a", "main.sls: state /srv/rec/d/a (file.manged): State 'file.manged' was not found", 1},
		{"pillar-error", "/srv/rec/f/a", "Pillar failed to render", 1},
		{"empty-sls", "/etc/l", "main.sls: state /etc/l: Salt did not get to it", 1},
		{"one-state-fails", "/srv/rec/b/ok1", "main.sls: state /srv/rec/b/isdir (file.managed): Specified target", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.link)
			b.caller.answers = recorded(t, c.name)
			_, err := b.Check(t.Context(), b.job)
			var wrong *finding.Failure
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if len(b.caller.calls) != c.calls || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%d calls: %v", len(b.caller.calls), err)
			}
			b.clean(t)
		})
	}
}

func TestCheckAsksTwice(t *testing.T) {
	b := newBench(t, "/etc/l")
	b.caller.answers = []salt.Answer{{Stdout: []byte(ok)}, {Stdout: []byte(ok)}}
	if _, err := b.Check(t.Context(), b.job); err != nil {
		t.Fatal(err)
	}
	if len(b.caller.calls) != 2 || !slices.Contains(b.caller.calls[0], "mock=True") || !slices.Contains(b.caller.calls[1], "test=True") {
		t.Errorf("%q", b.caller.calls)
	}
	b.clean(t)
}

func TestAnswersThatAreNone(t *testing.T) {
	for want, answer := range map[string]salt.Answer{
		"exit status 1: salt-call printed no results: ImportError: no module": {Exit: 1, Stderr: []byte("Traceback\nImportError: no module\n")},
		"printed more than 64 MiB": {Stdout: []byte(ok), Cut: true},
	} {
		b := newBench(t, "/etc/l")
		b.caller.answers = []salt.Answer{answer}
		if _, err := b.Check(t.Context(), b.job); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		b.clean(t)
	}
}

// A migration that fails in the run fails the change; one that is told to stop,
// or never began, says so.
func TestApplyFails(t *testing.T) {
	b := newBench(t, "/srv/rec/m/a")
	b.caller.answers = recorded(t, "failing-migration")[2:]
	result, err := b.Apply(t.Context(), b.job)
	if !result.Ended {
		t.Error("nothing is known of what the migrations did")
	}
	var failed *salt.RunError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "hosts/rec/10-clean.sls: state stop it (cmd.run)") || errors.Is(err, engine.ErrUntouched) {
		t.Errorf("got %v", err)
	}
	b.clean(t)

	b = newBench(t, "/etc/l")
	b.caller.fails = context.DeadlineExceeded
	if result, err := b.Apply(t.Context(), b.job); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, engine.ErrUntouched) || result.Ended {
		t.Errorf("a time limit: %v, %v", result, err)
	}
	b.clean(t)

	b = newBench(t, "/etc/l")
	b.caller.missing = errors.New("no salt-call")
	if _, err := b.Apply(t.Context(), b.job); !errors.Is(err, engine.ErrUntouched) {
		t.Errorf("without Salt: %v", err)
	}
	b.clean(t)
}

// A Salt that says that it did what it did not is not believed.
func TestSaltIsLookedAfter(t *testing.T) {
	b := newBench(t, "/etc/l")
	b.job.Migrations = nil
	b.caller.answers = []salt.Answer{{Stdout: []byte(ok)}}
	if _, err := b.Apply(t.Context(), b.job); err == nil || !strings.Contains(err.Error(), "/etc/l (nothing instead of link to /nowhere of 0:0)") {
		t.Errorf("got %v", err)
	}
	b.clean(t)
	back, err := b.Rollback(t.Context(), b.job)
	if err != nil || len(back.Notes) > 0 {
		t.Errorf("%v, %v", back.Notes, err)
	}
	b.job.Migrations = []engine.Migration{{Path: "x.sls"}}
	if back, err = b.Rollback(t.Context(), b.job); err != nil || len(back.Notes) != 1 || !strings.Contains(back.Notes[0], "migrations") {
		t.Errorf("%v, %v", back.Notes, err)
	}
}

// What a run that was killed left is ended and deleted by the next one.
func TestSweep(t *testing.T) {
	b := newBench(t, "/etc/l")
	if err := salt.Sweep(t.Context(), b.Run, b.caller); err != nil || b.caller.stopped != 0 {
		t.Errorf("nothing was left: %v, stopped %d times", err, b.caller.stopped)
	}
	left := filepath.Join(salt.Folder(b.Run), "sls", "files")
	if err := errors.Join(os.MkdirAll(left, 0o700), os.WriteFile(filepath.Join(left, "secret"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := salt.Sweep(t.Context(), b.Run, b.caller); err != nil || b.caller.stopped != 1 {
		t.Errorf("%v, stopped %d times", err, b.caller.stopped)
	}
	b.clean(t)
}

// The bytes of a secret lie in the folder while Salt runs and go with it. What Salt is
// told names neither them nor their hash.
func TestSecretsGoWithTheFolder(t *testing.T) {
	b := newBench(t, "/etc/l")
	private, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(private.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Native.Secrets = secret.New(nil, []string{key})
	const plain = "hunter2"
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(plain)))
	item := plan.Item{Path: "/etc/db", Write: true, After: disk.Node{Kind: disk.File, Mode: 0o600, SHA256: sum, Size: int64(len(plain)), Secret: true}}
	var stored bytes.Buffer
	if err := errors.Join(b.Native.Secrets.Encrypt(&stored, strings.NewReader(plain)),
		os.WriteFile(filepath.Join(b.Native.Blobs, item.After.Stored()), stored.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	b.job.Plan.Items = append([]plan.Item{item}, b.job.Plan.Items...)
	b.caller.fails = errors.New("no answer")
	b.caller.look = func(folder string) {
		var holding []string
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if bytes.Contains(data, []byte(plain)) {
				holding = append(holding, filepath.Base(filepath.Dir(path)))
			}
			if bytes.Contains(data, []byte(sum)) || strings.Contains(path, sum) {
				t.Errorf("%s tells the hash", path)
			}
			return err
		})
		if err != nil || !slices.Equal(holding, []string{"files"}) {
			t.Errorf("the secret is in %v, %v", holding, err)
		}
	}
	if _, err := b.Apply(t.Context(), b.job); err == nil || len(b.caller.calls) != 1 || strings.Contains(err.Error(), sum) {
		t.Errorf("%d calls, %v", len(b.caller.calls), err)
	}
	b.clean(t)
	// Another key than the one that it was stored for: nothing is begun.
	other, err := age.GenerateX25519Identity()
	if err = errors.Join(err, os.WriteFile(key, []byte(other.String()), 0o600)); err != nil {
		t.Fatal(err)
	}
	b.Native.Secrets = secret.New(nil, []string{key})
	var nobody *secret.NoIdentityError
	if _, err := b.Apply(t.Context(), b.job); !errors.As(err, &nobody) || !errors.Is(err, engine.ErrUntouched) || errors.Is(err, engine.ErrDamaged) || strings.Contains(err.Error(), sum) {
		t.Errorf("%v", err)
	}
	b.clean(t)
}
