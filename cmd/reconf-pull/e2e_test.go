package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

const agent = "reconf-pull.service"

// machine is a booted host that has the agent as packages install it, and whose
// timer waits for an hour.
type machine struct {
	*bootedhost.Host
	t *testing.T
}

func boot(t *testing.T, os bootedhost.OS) *machine {
	t.Helper()
	return bootWith(t, bootedhost.Options{OS: os})
}

func bootWith(t *testing.T, o bootedhost.Options) *machine {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a host")
	}
	t.Parallel()
	o.Name = "web1"
	return prepareHost(t, o)
}

// prepareHost is a host that is off, with the agent and its units.
func prepareHost(t *testing.T, o bootedhost.Options) *machine {
	t.Helper()
	o.Files = map[string]string{"/usr/lib/tmpfiles.d/reconf-pull.conf": "../../packaging/tmpfiles.d/reconf-pull.conf"}
	for _, unit := range packagedUnits(t) {
		o.Files["/usr/lib/systemd/system/"+unit] = "../../packaging/systemd/" + unit
	}
	m := &machine{bootedhost.Prepare(t, o), t}
	program, err := builtAgent()
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/usr/bin/reconf-pull", program, 0o755)
	m.write("/etc/reconf-pull/config.toml",
		"[source]", "url = '"+bootedhost.RepoURL+"'",
		"[service]", "settle = '500ms'",
	)
	m.write("/etc/systemd/system/reconf-pull.timer.d/test.conf", "[Timer]", "OnBootSec=", "OnBootSec=1h")
	m.write("/etc/systemd/system/reconf-pull.service.d/test.conf",
		"[Unit]",
		"StartLimitIntervalSec=0", // tests run it more often than anybody else
		"[Service]",
		// journald may not know whose the words of a program are that ended at once.
		"StandardOutput=truncate:/run/said", "StandardError=inherit",
	)
	return m
}

// packagedUnits are the names of all units that packages install.
func packagedUnits(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../packaging/systemd/*.*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no units are packaged: %v", err)
	}
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(file))
	}
	return names
}

// on is boot and the first start.
func on(t *testing.T, os bootedhost.OS) *machine {
	t.Helper()
	m := boot(t, os)
	m.firstStart()
	return m
}

func (m *machine) firstStart() {
	m.t.Helper()
	m.PowerOn()
	// The release's own timers would start services in the middle of a test.
	m.Run("systemctl", "stop", "*.timer")
	m.Run("systemctl", "start", "network-online.target")
	m.Run("systemctl", "enable", "--now", "--quiet", "reconf-pull.timer")
}

// builtAgent is the program, built once.
var builtAgent = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "reconf-pull")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "reconf-pull")
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building reconf-pull: %w\n%s", err, out)
	}
	return os.ReadFile(binary)
})

func (m *machine) write(path string, lines ...string) {
	m.t.Helper()
	m.Write(path, []byte(unlines(lines...)), 0o644)
}

func unlines(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

// push makes the lines this host's config, beside the files that were written
// to the repo before.
func (m *machine) push(lines ...string) {
	m.t.Helper()
	m.Repo().Write("hosts/"+m.Name+".bu", unlines(append([]string{"variant: fcos", "version: 1.6.0"}, lines...)...))
	m.Repo().Push("change " + m.Name)
}

// pull starts the agent as its timer does and returns its exit status and what
// it said.
func (m *machine) pull() (int, string) {
	m.t.Helper()
	_, _ = m.Try("systemctl", "start", agent) // whether the unit failed is not what is asked for
	return m.lastPull()
}

func (m *machine) lastPull() (int, string) {
	m.t.Helper()
	status, err := strconv.Atoi(m.property(agent, "ExecMainStatus"))
	if err != nil {
		m.t.Fatal(err)
	}
	return status, string(m.Read("/run/said"))
}

// converge pulls and expects that all went well: the host has what is wanted
// and nothing is left to do.
func (m *machine) converge() string {
	m.t.Helper()
	status, said := m.pull()
	if status != 0 {
		m.t.Fatalf("the run ended with %d:\n%s", status, said)
	}
	m.healthy()
	return said
}

func (m *machine) healthy() {
	m.t.Helper()
	for _, command := range []string{"status", "plan"} {
		if out, status := m.Try("reconf-pull", command); status != 0 {
			m.t.Errorf("reconf-pull %s ends with %d:\n%s", command, status, out)
		}
	}
	if out := m.Run("find", "/etc", "/opt", "/usr/local", "/var", "-name", ".*.reconf*"); out != "" {
		m.t.Errorf("temporary files are left:\n%s", out)
	}
}

func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.Run("systemctl", "show", "--value", "--property="+name, "--", unit)
}

// during returns what do did to any unit of the host, the agent's service
// apart: "web.service started", "restarted" or "stopped".
func (m *machine) during(do func()) []string {
	m.t.Helper()
	before := m.running()
	do()
	after := m.running()
	var did []string
	for unit, invocation := range after {
		switch before[unit] {
		case invocation:
		case "":
			did = append(did, unit+" started")
		default:
			did = append(did, unit+" restarted")
		}
	}
	for unit := range before {
		if after[unit] == "" {
			did = append(did, unit+" stopped")
		}
	}
	slices.Sort(did)
	return did
}

// running are the invocations of all active units but podman's own mounts.
func (m *machine) running() map[string]string {
	m.t.Helper()
	running := map[string]string{}
	for unit := range strings.SplitSeq(m.Run("systemctl", "show", "--property=Id,ActiveState,InvocationID", "*"), "\n\n") {
		values := map[string]string{}
		for line := range strings.SplitSeq(unit, "\n") {
			key, value, _ := strings.Cut(line, "=")
			values[key] = value
		}
		if id := values["Id"]; id != agent && !strings.HasPrefix(id, "var-lib-containers-") && values["ActiveState"] == "active" && values["InvocationID"] != "" {
			running[id] = values["InvocationID"]
		}
	}
	return running
}

func (m *machine) expect(what string, got []string, want ...string) {
	m.t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		m.t.Errorf("%s: -want +got:\n%s", what, diff)
	}
}

// gives compares what a command prints.
func (m *machine) gives(want string, command ...string) {
	m.t.Helper()
	if got, _ := m.Try(command...); strings.TrimRight(got, "\n") != want {
		m.t.Errorf("%s gives %q, want %q", strings.Join(command, " "), got, want)
	}
}

// state is every file of the agent's state, with all that a write would change.
func (m *machine) state() string {
	m.t.Helper()
	return m.Run("find", "/var/lib/reconf-pull", "-printf", "%p %i %s %m %T@ %C@\n")
}

// openChange is the change that was pinned and not recorded, nil if there is none.
func (m *machine) openChange() *change {
	m.t.Helper()
	var st struct{ Change *change }
	if err := json.Unmarshal(m.Read("/var/lib/reconf-pull/state.json"), &st); err != nil {
		m.t.Fatal(err)
	}
	return st.Change
}

type change struct {
	ID    string
	Tasks []struct{ Name, Status string }
}

// doing is the step that was cut off.
func (c *change) doing() string {
	for _, task := range c.Tasks {
		if task.Status == "doing" {
			return task.Name
		}
	}
	return "between steps"
}

// sleeper is a service that runs until it is stopped; more are lines for [Service].
func sleeper(more ...string) string {
	return unlines(slices.Concat([]string{"[Service]", "ExecStart=/bin/sleep infinity"}, more, []string{"[Install]", "WantedBy=multi-user.target"})...)
}

func TestPackagedUnits(t *testing.T) {
	for name, os := range map[string]bootedhost.OS{"Debian12": bootedhost.Debian12, "Debian13": bootedhost.Debian13} {
		t.Run(name, func(t *testing.T) {
			m := on(t, os)
			if out, status := m.Try(append([]string{"systemd-analyze", "verify", "--"}, packagedUnits(t)...)...); out != "" || status != 0 {
				t.Errorf("systemd-analyze verify ends with %d:\n%s", status, out)
			}
			m.analyzed()
			m.gives("1d", "systemctl", "show", "--value", "--property=TimeoutStartUSec", agent) // longer than run.timeout can be
			m.gives("directory 755 root:root", "stat", "--format=%F %a %U:%G", "/run/reconf-pull")
			// An outage is no failure of the host.
			m.Run("sed", "-i", "s,^url = .*,url = 'file:///nowhere.git',", "/etc/reconf-pull/config.toml")
			if status, said := m.pull(); status != 69 || m.UnitState(agent).Result != "success" {
				t.Errorf("without a fleet repo: status %d, %+v\n%s", status, m.UnitState(agent), said)
			}
			m.gives("running", "systemctl", "is-system-running")
		})
	}
}

func TestTimer(t *testing.T) {
	m := boot(t, bootedhost.Debian13)
	m.Repo().Write("app.service", sleeper())
	m.push("systemd: {units: [{name: app.service, enabled: true, contents_local: app.service}]}")
	m.write("/etc/systemd/system/reconf-pull.timer.d/test.conf", "[Timer]", "OnBootSec=", "OnBootSec=1s", "RandomizedDelaySec=0")
	m.PowerOn()
	m.Run("systemctl", "enable", "--now", "--quiet", "reconf-pull.timer")
	applied := func() bool {
		return m.Exists("/var/lib/reconf-pull/generations/1") && m.UnitState(agent).ActiveState == "inactive"
	}
	m.WaitFor(time.Minute, applied, "a run by the timer")
	m.healthy()
	m.gives("active", "systemctl", "is-active", "app.service")
	m.gives("enabled", "systemctl", "is-enabled", "app.service")

	// And after a boot, with nothing new.
	m.Reboot()
	m.WaitFor(time.Minute, func() bool { return m.Exists("/run/reconf-pull/last.json") }, "a run after the boot")
	m.WaitFor(time.Minute, func() bool { return m.UnitState(agent).ActiveState == "inactive" }, "its end")
	if status, said := m.lastPull(); status != 0 || !strings.Contains(said, "web1 is up to date at ") {
		t.Errorf("the run after the boot ended with %d:\n%s", status, said)
	}
	m.healthy()

	// What it says goes to the journal, a line each and without a time of its own.
	m.write("/etc/systemd/system/reconf-pull.service.d/test.conf", "")
	m.push("systemd: {units: [{name: app.service, enabled: false}]}")
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", agent)
	m.Run("journalctl", "--sync")
	said := m.Run("journalctl", "--boot", "--quiet", "--no-pager", "--output=cat", "--identifier=reconf-pull")
	if !strings.Contains(said, "Plan: 1 to remove") || !strings.Contains(said, "\nweb1 is now at ") {
		t.Errorf("the journal has:\n%s", said)
	}
}
