// Package config is /etc/reconf-pull/config.toml.
//
// Its one rule: every key has a default except where the fleet repo is, and a
// key that does not exist is an error with its line and the nearest one.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lock"
	"github.com/reconf-pull/reconf-pull/internal/service"
	"github.com/reconf-pull/reconf-pull/internal/tomlfile"
	"github.com/reconf-pull/reconf-pull/internal/window"
)

// Path is where the file is looked for.
const Path = "/etc/reconf-pull/config.toml"

// Config is the whole file. docs/configuration.md says the same in words; a
// test compares the two.
type Config struct {
	Source    Source    `toml:"source"`
	Verify    Verify    `toml:"verify"`
	Secrets   Secrets   `toml:"secrets"`
	Host      Host      `toml:"host"`
	Translate Translate `toml:"translate"`
	Apply     Apply     `toml:"apply"`
	Drift     Drift     `toml:"drift"`
	Retry     Retry     `toml:"retry"`
	Run       Run       `toml:"run"`
	Engine    Engine    `toml:"engine"`
	Reboot    Reboot    `toml:"reboot"`
	Lock      Lock      `toml:"lock"`
	Hooks     Hooks     `toml:"hooks"`
	Health    Health    `toml:"health"`
	Service   Service   `toml:"service"`
	Keep      int       `toml:"keep"` // generations on disk
}

// Source is where the fleet repo is and how to get at it.
type Source struct {
	URL          string   `toml:"url"`
	Branch       string   `toml:"branch"`
	Timeout      Duration `toml:"timeout"`
	SSHKey       string   `toml:"ssh_key"`
	KnownHosts   string   `toml:"known_hosts"`
	Username     string   `toml:"username"`
	PasswordFile string   `toml:"password_file"`
	TokenFile    string   `toml:"token_file"`
	TokenType    string   `toml:"token_type"`
	ClientCert   string   `toml:"client_cert"`
	ClientKey    string   `toml:"client_key"`
	CAFile       string   `toml:"ca_file"`
	MaxFetch     Size     `toml:"max_fetch"`
	MaxObject    Size     `toml:"max_object"`
	MaxObjects   int      `toml:"max_objects"`
	MaxRefs      int      `toml:"max_refs"`
}

// Verify says who may change this host.
type Verify struct {
	Mode           string `toml:"mode"`
	AllowedSigners string `toml:"allowed_signers"`
	RevokedSigners string `toml:"revoked_signers"`
	Keyring        string `toml:"keyring"`
	All            bool   `toml:"all"`
}

// Secrets are the private keys that decrypt what is encrypted to this host.
type Secrets struct {
	Identities []string `toml:"identities"`
}

// Host says which config is this machine's.
type Host struct {
	Name      string `toml:"name"`
	ShortName bool   `toml:"short_name"`
	MachineID string `toml:"machine_id"`
}

// Translate bounds and judges what Butane is given.
type Translate struct {
	Strict     bool `toml:"strict"`
	MaxFile    Size `toml:"max_file"`
	MaxText    Size `toml:"max_text"`
	MaxEntries int  `toml:"max_entries"`
	MaxDepth   int  `toml:"max_depth"`
}

// Apply is what happens to paths that others changed too.
type Apply struct {
	OnConflict       string `toml:"on_conflict"`
	PruneModified    bool   `toml:"prune_modified"`
	AllowMassRemoval bool   `toml:"allow_mass_removal"`
	OnFailure        string `toml:"on_failure"`
}

// Engine is what carries changes out.
type Engine struct {
	Kind      string    `toml:"kind"`
	Timeout   Duration  `toml:"timeout"`
	Container Container `toml:"container"`
}

// Container is where the image comes from in which Salt is called.
type Container struct {
	File  string `toml:"file"`
	Base  string `toml:"base"`
	Image string `toml:"image"`
}

// Hooks bounds the scripts of the script directories.
type Hooks struct {
	Timeout  Duration `toml:"timeout"`
	MaxLines int      `toml:"max_lines"`
}

// Health is what a changed host has to prove.
type Health struct {
	Source string `toml:"source"`
}

// Run bounds a whole run. What is over then is gone on with by the next one.
type Run struct {
	Timeout Duration `toml:"timeout"`
}

// Retry bounds how often a step is begun, and how soon again.
type Retry struct {
	Attempts int      `toml:"attempts"`
	Backoff  Duration `toml:"backoff"`
}

// Reboot is when and how the machine is rebooted.
type Reboot struct {
	Windows        window.Windows `toml:"windows"`
	Timeout        Duration       `toml:"timeout"`
	Paths          []string       `toml:"paths"`
	WithoutScripts string         `toml:"without_scripts"`
	Command        []string       `toml:"command"`
}

// Lock is the fleet lock.
type Lock struct {
	Kind         string   `toml:"kind"`
	Scope        string   `toml:"scope"`
	URL          string   `toml:"url"`
	Endpoints    []string `toml:"endpoints"`
	CA           string   `toml:"ca"`
	Cert         string   `toml:"cert"`
	Key          string   `toml:"key"`
	User         string   `toml:"user"`
	PasswordFile string   `toml:"password_file"`
	Name         string   `toml:"name"`
	Group        string   `toml:"group"`
	Slots        int      `toml:"slots"`
	Timeout      Duration `toml:"timeout"`
	Poll         Duration `toml:"poll"`
}

// Drift is what happens to paths that changed on the host only.
type Drift struct {
	Mode string `toml:"mode"`
}

// Service bounds the unit operations and extends the table of what restarts what.
type Service struct {
	JobTimeout Duration `toml:"job_timeout"`
	Settle     Duration `toml:"settle"`
	Watch      []Watch  `toml:"watch"`
}

// Watch is one [[service.watch]].
type Watch struct {
	Path string   `toml:"path"`
	Unit string   `toml:"unit"`
	Run  []string `toml:"run"`
}

// Default is the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Source: Source{
			Timeout: Duration(2 * time.Minute), KnownHosts: "/etc/reconf-pull/known_hosts", TokenType: "basic",
			MaxFetch: 1 << 30, MaxObject: 512 << 20, MaxObjects: 500_000, MaxRefs: 50_000,
		},
		Verify:    Verify{Mode: "none"},
		Translate: Translate{Strict: true, MaxFile: 64 << 20, MaxText: 1 << 20, MaxEntries: 100_000, MaxDepth: 64},
		Apply:     Apply{OnConflict: "replace", OnFailure: "rollback"},
		Drift:     Drift{Mode: "report"},
		Retry:     Retry{Attempts: 3, Backoff: Duration(time.Minute)},
		Reboot:    Reboot{Timeout: Duration(10 * time.Minute), WithoutScripts: "never"},
		Run:       Run{Timeout: Duration(time.Hour)},
		Engine:    Engine{Kind: "auto", Timeout: Duration(15 * time.Minute), Container: Container{File: "/usr/share/reconf-pull/salt/Containerfile"}},
		Lock:      Lock{Kind: lock.NoLock, Scope: "always", Group: "default", Slots: 1, Timeout: Duration(30 * time.Second), Poll: Duration(time.Minute)},
		Hooks:     Hooks{Timeout: Duration(10 * time.Minute), MaxLines: 10_000},
		Health:    Health{Source: "auto"},
		Service:   Service{JobTimeout: Duration(5 * time.Minute), Settle: Duration(3 * time.Second)},
		Keep:      10,
	}
}

// Error is a configuration that cannot be used.
type Error struct{ Err error }

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// maxConfig is far more than anybody writes.
const maxConfig = 1 << 20

// Load reads the file, which nobody but root may write; a missing one is the default when optional.
// credentials is systemd's $CREDENTIALS_DIRECTORY, or "".
func Load(path string, optional bool, credentials string) (Config, error) {
	c := Default()
	if path == os.DevNull { // the shell's word for no configuration
		return c, nil
	}
	data, err := host.ReadTrusted(path, maxConfig)
	if errors.Is(err, os.ErrNotExist) && optional {
		c.useCredentials(credentials)
		return c, nil
	}
	if err != nil {
		return c, &Error{fmt.Errorf("reading the configuration: %w", err)}
	}
	if err := tomlfile.Decode(path, data, &c); err != nil {
		return c, &Error{err}
	}
	c.useCredentials(credentials)
	if list := c.check(path, data); len(list) > 0 {
		return c, &Error{&finding.Failure{Findings: list}}
	}
	return c, nil
}

// check looks at values; the decoder has looked at keys and types.
func (c *Config) check(path string, data []byte) finding.List {
	var list finding.List
	bad := func(message string, key ...string) {
		list = append(list, finding.Finding{Severity: finding.Error, Position: tomlfile.Find(path, data, key...), Message: message})
	}
	choice := func(value string, of []string, key ...string) {
		for _, one := range of {
			if value == one {
				return
			}
		}
		bad(fmt.Sprintf("%s = %q is none of %s", strings.Join(key, "."), value, strings.Join(of, ", ")), key...)
	}
	choice(c.Verify.Mode, []string{"none", "signed"}, "verify", "mode")
	for _, file := range []struct{ key, path string }{{"allowed_signers", c.Verify.AllowedSigners}, {"revoked_signers", c.Verify.RevokedSigners}, {"keyring", c.Verify.Keyring}} {
		switch {
		case file.path == "":
		case c.Verify.Mode == "none":
			bad(`verify.`+file.key+` is set and nothing is verified: set mode = "signed" in [verify], or remove it`, "verify", file.key)
		case !filepath.IsAbs(file.path):
			bad("verify."+file.key+" must be an absolute path", "verify", file.key)
		}
	}
	switch {
	case c.Verify.Mode == "none" && c.Verify.All:
		bad(`verify.all is set and nothing is verified: set mode = "signed" in [verify], or remove it`, "verify", "all")
	case c.Verify.Mode == "signed" && c.Verify.AllowedSigners == "" && c.Verify.Keyring == "":
		bad(`verify.mode = "signed" needs allowed_signers, keyring or both`, "verify", "mode")
	}
	for _, file := range c.Secrets.Identities {
		if !filepath.IsAbs(file) {
			bad("secrets.identities must be absolute paths", "secrets", "identities")
		}
	}
	choice(c.Apply.OnConflict, []string{"replace", "keep", "fail"}, "apply", "on_conflict")
	choice(c.Apply.OnFailure, []string{"rollback", "keep"}, "apply", "on_failure")
	choice(c.Engine.Kind, []string{"auto", "native", "salt", "salt-container"}, "engine", "kind")
	if c.Engine.Timeout <= 0 {
		bad("engine.timeout must be longer than 0", "engine", "timeout")
	}
	choice(c.Drift.Mode, []string{"report", "correct"}, "drift", "mode")
	if c.Source.Timeout <= 0 {
		bad("source.timeout must be longer than 0", "source", "timeout")
	}
	if c.Service.JobTimeout <= 0 {
		bad("service.job_timeout must be longer than 0", "service", "job_timeout")
	}
	if c.Service.Settle < 0 {
		bad("service.settle must not be negative", "service", "settle")
	}
	choice(c.Source.TokenType, []string{"basic", "bearer"}, "source", "token_type")
	for _, limit := range []struct {
		table, key string
		value      int
	}{
		{"source", "max_objects", c.Source.MaxObjects}, {"source", "max_refs", c.Source.MaxRefs},
		{"translate", "max_entries", c.Translate.MaxEntries}, {"translate", "max_depth", c.Translate.MaxDepth},
		{"hooks", "max_lines", c.Hooks.MaxLines},
	} {
		if limit.value < 1 {
			bad(limit.table+"."+limit.key+" must be at least 1", limit.table, limit.key)
		}
	}
	choice(c.Health.Source, []string{"auto", "always", "never"}, "health", "source")
	if c.Hooks.Timeout <= 0 {
		bad("hooks.timeout must be longer than 0", "hooks", "timeout")
	}
	if !filepath.IsAbs(c.Engine.Container.File) {
		bad("engine.container.file must be an absolute path", "engine", "container", "file")
	}
	if c.Run.Timeout <= 0 {
		bad("run.timeout must be longer than 0", "run", "timeout")
	}
	// What comes after it has to fit into TimeoutStartSec= of reconf-pull.service.
	if c.Run.Timeout > Duration(20*time.Hour) {
		bad("run.timeout must not be longer than 20h", "run", "timeout")
	}
	if c.Retry.Attempts < 1 {
		bad("retry.attempts must be at least 1", "retry", "attempts")
	}
	if c.Retry.Backoff < 0 {
		bad("retry.backoff must not be negative", "retry", "backoff")
	}
	choice(c.Reboot.WithoutScripts, []string{"always", "never"}, "reboot", "without_scripts")
	if c.Reboot.Timeout <= 0 {
		bad("reboot.timeout must be longer than 0", "reboot", "timeout")
	}
	if _, err := service.ParseGlobs(c.Reboot.Paths); err != nil {
		bad("reboot.paths: "+err.Error(), "reboot", "paths")
	}
	if c.Reboot.Command != nil && (len(c.Reboot.Command) == 0 || c.Reboot.Command[0] == "") {
		bad("reboot.command has no program", "reboot", "command")
	}
	choice(c.Lock.Kind, lock.Kinds, "lock", "kind")
	c.Lock.check(func(key, message string) { bad(message, "lock", key) })
	if c.Keep < 1 {
		bad("keep must be at least 1: the applied generation is one", "keep")
	}
	for _, w := range c.Watches() {
		if err := w.Validate(); err != nil {
			bad("service.watch: "+err.Error(), "service", "watch")
		}
	}
	return list
}

// RebootPaths are reboot.paths of a configuration that was loaded.
func (c *Config) RebootPaths() service.Globs {
	globs, _ := service.ParseGlobs(c.Reboot.Paths) // check has looked at them
	return globs
}

// Watches are the [[service.watch]] entries as the service table takes them.
func (c *Config) Watches() []service.Watch {
	var all []service.Watch
	for _, w := range c.Service.Watch {
		all = append(all, service.Watch{Path: w.Path, Unit: w.Unit, Run: w.Run})
	}
	return all
}

// Duration is written as Go writes it: "90s", "2m", "1h30m".
type Duration time.Duration

// UnmarshalText parses a duration; a number without a unit is an error.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration: write it as 90s, 2m or 1h30m", text)
	}
	*d = Duration(parsed)
	return nil
}

// Size is a number of bytes, written as "64MiB", "512KiB" or "1GiB".
type Size int64

// UnmarshalText parses a size with its unit.
func (s *Size) UnmarshalText(text []byte) error {
	for _, unit := range []struct {
		name   string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}} {
		number, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		var n int64
		if _, err := fmt.Sscanf(number, "%d", &n); err == nil && n > 0 && n < 1<<20 && fmt.Sprint(n) == number {
			*s = Size(n * unit.factor)
			return nil
		}
	}
	return fmt.Errorf("%q is no size: write it as 512KiB, 64MiB or 1GiB", text)
}
