package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

func load(t *testing.T, text string) (config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return config.Load(path, false, "")
}

// TestDefaults names every key: one that is added is added here and to the
// documentation.
func TestDefaults(t *testing.T) {
	want := config.Config{
		Source: config.Source{
			Timeout: config.Duration(2 * time.Minute), KnownHosts: "/etc/reconf-pull/known_hosts",
			URL: "", Branch: "", SSHKey: "", Username: "", PasswordFile: "", TokenFile: "", TokenType: "basic", ClientCert: "", ClientKey: "", CAFile: "",
			MaxFetch: gogit.DefaultMaxFetch, MaxObject: gogit.DefaultMaxObject, MaxObjects: gogit.DefaultMaxObjects, MaxRefs: gogit.DefaultMaxRefs,
		},
		Verify:    config.Verify{Mode: "none", AllowedSigners: "", RevokedSigners: "", Keyring: "", All: false},
		Host:      config.Host{Name: "", ShortName: false, MachineID: ""},
		Translate: config.Translate{Strict: true, MaxFile: 64 << 20, MaxText: butane.DefaultMaxText, MaxEntries: butane.DefaultMaxEntries, MaxDepth: butane.DefaultMaxDepth},
		Apply:     config.Apply{OnConflict: "replace", PruneModified: false, AllowMassRemoval: false, OnFailure: "rollback"},
		Drift:     config.Drift{Mode: "report"},
		Retry:     config.Retry{Attempts: 3, Backoff: config.Duration(time.Minute)},
		Reboot:    config.Reboot{Windows: nil, Timeout: config.Duration(10 * time.Minute), Paths: nil, WithoutScripts: "never", Command: nil},
		Lock:      config.Lock{Kind: "none", Scope: "always", Group: "default", Slots: 1, Timeout: config.Duration(30 * time.Second), Poll: config.Duration(time.Minute)},
		Run:       config.Run{Timeout: config.Duration(time.Hour)},
		Engine:    config.Engine{Kind: "auto", Timeout: config.Duration(15 * time.Minute), Container: config.Container{File: "/usr/share/reconf-pull/salt/Containerfile", Base: "", Image: ""}},
		Hooks:     config.Hooks{Timeout: config.Duration(10 * time.Minute), MaxLines: 10_000},
		Health:    config.Health{Source: "auto"},
		Service:   config.Service{JobTimeout: config.Duration(5 * time.Minute), Settle: config.Duration(3 * time.Second), Watch: nil},
		Keep:      10,
	}
	got, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("an empty file is not the default (-want +got):\n%s", diff)
	}
	got, err = config.Load(filepath.Join(t.TempDir(), "absent"), true, "")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("no file is not the default: %v\n%s", err, diff)
	}
}

// TestEveryKey sets every key to something else than its default, and fails
// when one was forgotten here.
func TestEveryKey(t *testing.T) {
	got, err := load(t, `
keep = 3
[source]
url = "https://git.example.com/fleet.git"
branch = "production"
timeout = "1m30s"
ssh_key = "/k"
known_hosts = "/h"
username = "u"
password_file = "/p"
token_file = "/t"
token_type = "bearer"
client_cert = "/cc"
client_key = "/ck"
ca_file = "/c"
max_fetch = "2GiB"
max_object = "1GiB"
max_objects = 7
max_refs = 8
[verify]
mode = "signed"
allowed_signers = "/a"
revoked_signers = "/r"
keyring = "/g"
all = true
[secrets]
identities = ["/i"]
[host]
name = "web1"
short_name = true
machine_id = "0123"
[translate]
strict = false
max_file = "512KiB"
max_text = "2MiB"
max_entries = 9
max_depth = 10
[apply]
on_conflict = "keep"
prune_modified = true
allow_mass_removal = true
on_failure = "keep"
[drift]
mode = "correct"
[retry]
attempts = 5
backoff = "0s"
[reboot]
windows = ["Sat,Sun 02:00-05:00 Europe/Berlin", "23:00-01:00"]
timeout = "20m"
paths = ["/etc/default/grub", "/etc/modprobe.d/**"]
without_scripts = "always"
command = ["systemctl", "kexec"]
[lock]
kind = "etcd"
scope = "reboot"
url = "https://l"
endpoints = ["https://a:2379", "https://b:2379"]
ca = "/ca"
cert = "/cert"
key = "/key"
user = "u"
password_file = "/p"
name = "{{.Group}}-of-{{.Host}}"
group = "web"
slots = 3
timeout = "5s"
poll = "2m"
[engine]
kind = "salt"
timeout = "20m"
[engine.container]
file = "/f"
base = "b"
image = "i"
[run]
timeout = "20m"
[hooks]
timeout = "30s"
max_lines = 11
[health]
source = "never"
[service]
job_timeout = "10s"
settle = "0s"
[[service.watch]]
path = "/etc/app/*"
unit = "app.service"
[[service.watch]]
path = "/etc/other"
run = ["/usr/bin/other", "--now"]
`)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		Keep: 3,
		Source: config.Source{
			URL: "https://git.example.com/fleet.git", Branch: "production", Timeout: config.Duration(90 * time.Second), SSHKey: "/k",
			KnownHosts: "/h", Username: "u", PasswordFile: "/p", TokenFile: "/t", TokenType: "bearer", ClientCert: "/cc", ClientKey: "/ck", CAFile: "/c",
			MaxFetch: 2 << 30, MaxObject: 1 << 30, MaxObjects: 7, MaxRefs: 8,
		},
		Verify:    config.Verify{Mode: "signed", AllowedSigners: "/a", RevokedSigners: "/r", Keyring: "/g", All: true},
		Secrets:   config.Secrets{Identities: []string{"/i"}},
		Host:      config.Host{Name: "web1", ShortName: true, MachineID: "0123"},
		Translate: config.Translate{Strict: false, MaxFile: 512 << 10, MaxText: 2 << 20, MaxEntries: 9, MaxDepth: 10},
		Apply:     config.Apply{OnConflict: "keep", PruneModified: true, AllowMassRemoval: true, OnFailure: "keep"},
		Drift:     config.Drift{Mode: "correct"},
		Retry:     config.Retry{Attempts: 5, Backoff: 0},
		Run:       config.Run{Timeout: config.Duration(20 * time.Minute)},
		Reboot: config.Reboot{
			Windows: windows(t, "Sat,Sun 02:00-05:00 Europe/Berlin", "23:00-01:00"), Timeout: config.Duration(20 * time.Minute),
			Paths: []string{"/etc/default/grub", "/etc/modprobe.d/**"}, WithoutScripts: "always", Command: []string{"systemctl", "kexec"},
		},
		Engine: config.Engine{Kind: "salt", Timeout: config.Duration(20 * time.Minute), Container: config.Container{File: "/f", Base: "b", Image: "i"}},
		Lock: config.Lock{
			Kind: "etcd", Scope: "reboot", URL: "https://l", Endpoints: []string{"https://a:2379", "https://b:2379"}, CA: "/ca", Cert: "/cert", Key: "/key",
			User: "u", PasswordFile: "/p", Name: "{{.Group}}-of-{{.Host}}", Group: "web", Slots: 3, Timeout: config.Duration(5 * time.Second), Poll: config.Duration(2 * time.Minute),
		},
		Hooks:  config.Hooks{Timeout: config.Duration(30 * time.Second), MaxLines: 11},
		Health: config.Health{Source: "never"},
		Service: config.Service{JobTimeout: config.Duration(10 * time.Second), Watch: []config.Watch{
			{Path: "/etc/app/*", Unit: "app.service"}, {Path: "/etc/other", Run: []string{"/usr/bin/other", "--now"}},
		}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b window.Window) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	different(t, "", reflect.ValueOf(got), reflect.ValueOf(config.Default()))
	if n := len(got.Watches()); n != 2 {
		t.Errorf("%d watches for the service table, want 2", n)
	}
}

func windows(t *testing.T, texts ...string) (all window.Windows) {
	t.Helper()
	for _, text := range texts {
		w, err := window.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	return all
}

func different(t *testing.T, name string, a, b reflect.Value) {
	t.Helper()
	if a.Kind() != reflect.Struct {
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			t.Errorf("%s is not set by this test", name)
		}
		return
	}
	for i := range a.NumField() {
		different(t, name+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		text, message, hint string
		line                int
	}{
		"unknown key":           {"[source]\nurll = 'x'", `unknown key "source.urll"`, `did you mean "source.url"?`, 2},
		"unknown table":         {"\n[notify]\nurl = 'x'", `unknown key "notify"`, "", 2},
		"another case":          {"[Source]\nurl = 'x'", `unknown key "Source"`, `did you mean "source"?`, 1},
		"no TOML":               {"[source\nurl = 'x'", "expected", "", 1},
		"no TOML after a key":   {"[source]\nurl\n[host]", "expected", "", 2},
		"wrong type":            {"[host]\nshort_name = 'yes'", "bool", "", 2},
		"a duration's unit":     {"[source]\ntimeout = '90'", `"90" is no duration: write it as 90s, 2m or 1h30m`, "", 2},
		"a duration's number":   {"[source]\ntimeout = 90", "duration", "", 2},
		"no time at all":        {"[source]\ntimeout = '0s'", "source.timeout must be longer than 0", "", 2},
		"negative time":         {"[service]\njob_timeout = '-1s'", "service.job_timeout must be longer than 0", "", 2},
		"negative settle":       {"[service]\nsettle = '-1s'", "service.settle must not be negative", "", 2},
		"a size's unit":         {"[translate]\nmax_file = '64MB'", `"64MB" is no size: write it as 512KiB, 64MiB or 1GiB`, "", 2},
		"a size of nothing":     {"[translate]\nmax_file = '0MiB'", `"0MiB" is no size`, "", 2},
		"a size with more":      {"[translate]\nmax_file = '1 MiB'", `"1 MiB" is no size`, "", 2},
		"a token's type":        {"[source]\ntoken_type = 'Bearer'", `source.token_type = "Bearer" is none of basic, bearer`, "", 2},
		"no refs":               {"[source]\nmax_refs = 0", "source.max_refs must be at least 1", "", 2},
		"no depth":              {"[translate]\nmax_depth = -1", "translate.max_depth must be at least 1", "", 2},
		"a password over http":  {"[lock]\nkind = 'etcd'\nuser = 'u'\npassword_file = '/p'\nendpoints = ['https://a:1', 'http://b:1']", "lock.user: credentials are not sent over http", "", 3},
		"on_conflict":           {"[apply]\n\non_conflict = 'ask'", `apply.on_conflict = "ask" is none of replace, keep, fail`, "", 3},
		"drift mode":            {"[drift]\nmode = 'repair'", `drift.mode = "repair" is none of report, correct`, "", 2},
		"on_failure":            {"[apply]\non_failure = 'undo'", `apply.on_failure = "undo" is none of rollback, keep`, "", 2},
		"no Containerfile":      {"[engine.container]\nfile = 'Containerfile'", "engine.container.file must be an absolute path", "", 2},
		"no time to run":        {"[run]\ntimeout = \"0s\"", "run.timeout must be longer than 0", "", 2},
		"days":                  {"[run]\ntimeout = \"48h\"", "run.timeout must not be longer than 20h", "", 2},
		"never tried":           {"[retry]\nattempts = 0", "retry.attempts must be at least 1", "", 2},
		"no patience":           {"[retry]\nbackoff = '-1s'", "retry.backoff must not be negative", "", 2},
		"a window":              {"[reboot]\nwindows = ['Sat 2-5']", `window "Sat 2-5": no time: write it as 02:00-05:00`, "", 2},
		"a window's zone":       {"[reboot]\nwindows = ['02:00-05:00 Mars']", `no time zone "Mars"`, "", 2},
		"a reboot at once":      {"[reboot]\ntimeout = '0s'", "reboot.timeout must be longer than 0", "", 2},
		"a relative path":       {"[reboot]\npaths = ['/etc/a', 'etc/b']", `reboot.paths: "etc/b": path is not absolute`, "", 2},
		"without scripts":       {"[reboot]\nwithout_scripts = 'yes'", `reboot.without_scripts = "yes" is none of always, never`, "", 2},
		"no program":            {"[reboot]\ncommand = []", "reboot.command has no program", "", 2},
		"no lock":               {"[lock]\nkind = 'file'", `lock.kind = "file" is none of none, foreman, fleetlock, etcd`, "", 2},
		"no lock server":        {"[lock]\nkind = 'fleetlock'", "lock.url must say where the lock server is", "", 2},
		"no etcd":               {"[lock]\nkind = 'etcd'", "lock.endpoints must name the members", "", 2},
		"a password in a URL":   {"[lock]\nendpoints = ['https://a:1', 'https://u:p@b']", "lock.endpoints must not have a user or a password", "", 2},
		"no URL":                {"[lock]\nurl = 'foreman.example.com'", "lock.url has to be https://HOST[:PORT][/PATH]", "", 2},
		"a lock's scope":        {"[lock]\nscope = 'now'", `lock.scope = "now" is none of always, reboot`, "", 2},
		"a lock's group":        {"[lock]\ngroup = 'a b'", `lock.group = "a b" may have letters, digits, dots and hyphens only`, "", 2},
		"a lock's name":         {"[lock]\nname = '{{.Role}}'", `lock.name = "{{.Role}}" may use {{.Group}} and {{.Host}} only`, "", 2},
		"no template":           {"[lock]\nname = '{{'", "lock.name is no template", "", 2},
		"a lock by number":      {"[lock]\nkind = 'foreman'\nurl = 'https://f'\nname = '12'", `lock.name = "12" is no name for Foreman`, "", 4},
		"a lock of no slots":    {"[lock]\nslots = 0", "lock.slots must be at least 1", "", 2},
		"never asked again":     {"[lock]\npoll = '0s'", "lock.poll must be longer than 0", "", 2},
		"no time to answer":     {"[lock]\ntimeout = '0s'", "lock.timeout must be longer than 0", "", 2},
		"a lock's key alone":    {"[lock]\nkey = '/k'", "lock.cert and lock.key go together", "", 0},
		"a password for nobody": {"[lock]\npassword_file = '/p'", "lock.user and lock.password_file go together", "", 0},
		"another mode":          {"[verify]\nmode = 'gpg'", `verify.mode = "gpg" is none of none, signed`, "", 2},
		"nobody to sign":        {"[verify]\nmode = 'signed'\nrevoked_signers = '/r'", `verify.mode = "signed" needs allowed_signers, keyring or both`, "", 2},
		"signers for nothing":   {"[verify]\nallowed_signers = '/a'", "verify.allowed_signers is set and nothing is verified", "", 2},
		"all for nothing":       {"[verify]\nall = true", "verify.all is set and nothing is verified", "", 2},
		"signers somewhere":     {"[verify]\nmode = 'signed'\nallowed_signers = 'a'", "verify.allowed_signers must be an absolute path", "", 3},
		"keep nothing":          {"keep = 0", "keep must be at least 1", "", 1},
		"a watch of nothing":    {"[[service.watch]]\nunit = 'a.service'", "service.watch: ", "", 0},
		"a watch without end":   {"[[service.watch]]\npath = '/etc/a'", "service.watch: ", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.text)
			var bad *config.Error
			var failure *finding.Failure
			if !errors.As(err, &bad) || !errors.As(err, &failure) || len(failure.Findings) != 1 {
				t.Fatalf("error %v (%T), want one finding in a *config.Error", err, err)
			}
			f := failure.Findings[0]
			if !strings.Contains(f.Message, c.message) || f.Hint != c.hint || c.line > 0 && f.Line != c.line || filepath.Base(f.File) != "config.toml" {
				t.Errorf("%s: %s (hint %q), want line %d: %s (hint %q)", f.Position, f.Message, f.Hint, c.line, c.message, c.hint)
			}
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := load(t, "keep = 0\n[apply]\non_conflict = 'x'\n[drift]\nmode = 'x'\n[source]\ntimeout = '0s'")
	var failure *finding.Failure
	if !errors.As(err, &failure) || len(failure.Findings) != 4 {
		t.Fatalf("%v, want four findings", err)
	}
}

// TestMissingFile: one that was named must exist.
func TestMissingFile(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "absent.toml"), false, "")
	var bad *config.Error
	if !errors.As(err, &bad) || !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "reading the configuration: ") {
		t.Errorf("error %v", err)
	}
}
