package main_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// crowd is a host config so large that a run can be cut off at many instants:
// every version changes every file and unit, and has some of its own.
type crowd struct{ version string }

const (
	crowdFiles = 300
	crowdUnits = 10
)

func (c crowd) contents() map[string]string {
	files := map[string]string{"/opt/crowd/of-" + c.version + "/file": c.version}
	for i := range crowdFiles {
		files[fmt.Sprintf("/opt/crowd/%02d/file%03d", i%17, i)] = strings.Repeat(fmt.Sprintf("%s %d\n", c.version, i), 300)
	}
	return files
}

func (c crowd) units() []string {
	units := []string{"crowd-of-" + c.version + ".service"}
	for i := range crowdUnits {
		units = append(units, fmt.Sprintf("crowd-%d.service", i))
	}
	return units
}

func (c crowd) push(m *machine) {
	m.t.Helper()
	m.Repo().Remove("crowd")
	for path, data := range c.contents() {
		m.Repo().Write(strings.TrimPrefix(path, "/opt/"), data)
	}
	config := []string{"storage: {trees: [{local: crowd, path: /opt/crowd}]}", "systemd:", "  units:"}
	m.Repo().Write("crowd.service", sleeper("Environment=VERSION="+c.version))
	for _, unit := range c.units() {
		config = append(config, "    - {name: "+unit+", enabled: true, contents_local: crowd.service}")
	}
	m.push(config...)
}

// check compares every file and unit with what this version wants.
func (c crowd) check(m *machine) {
	m.t.Helper()
	var want []string
	for path, data := range c.contents() {
		want = append(want, fmt.Sprintf("%x  %s", sha256.Sum256([]byte(data)), path))
	}
	slices.Sort(want)
	got := strings.Split(m.Run("find", "/opt/crowd", "-type", "f", "-exec", "sha256sum", "{}", "+"), "\n")
	slices.Sort(got)
	m.expect("files", got, want...)

	var units []string
	for _, unit := range c.units() {
		units = append(units, unit+" active enabled VERSION="+c.version)
	}
	slices.Sort(units)
	var have []string
	for _, name := range strings.Fields(m.Run("sh", "-c", "cd /etc/systemd/system && ls -d crowd-*")) {
		// Not what the file says, but what runs.
		environment := m.Run("sh", "-c", "tr '\\0' '\\n' </proc/$(systemctl show --value --property=MainPID "+name+")/environ | grep VERSION=")
		have = append(have, strings.Join([]string{name, m.property(name, "ActiveState"), m.property(name, "UnitFileState"), environment}, " "))
	}
	m.expect("units", have, units...)
}

// finish is what the next run makes of a host that was cut off.
func (c crowd) finish(m *machine) {
	m.t.Helper()
	m.converge()
	c.check(m)
	before := m.state()
	m.expect("a second run", m.during(func() {
		if said := m.converge(); !strings.Contains(said, "web1 is up to date at ") {
			m.t.Errorf("the second run says:\n%s", said)
		}
	}))
	m.expect("the state after it", strings.Split(m.state(), "\n"), strings.Split(before, "\n")...)
}

// instant is when a run is cut off.
type instant struct {
	name string
	come func(c crowd) bool
	step string // which is cut off then, "" if that is left open
}

// bootCrowd makes a host with a large config and finds out at which instants
// its next changes can be cut off.
func bootCrowd(t *testing.T) (*machine, []instant) {
	m := on(t, bootedhost.Debian13)
	m.write("/etc/reconf-pull/config.toml", "[source]", "url = '"+bootedhost.RepoURL+"'", "[service]", "settle = '50ms'")
	crowd{"first"}.push(m)
	m.converge()
	c := crowd{"second"}
	c.push(m)
	started := time.Now()
	m.converge()
	c.check(m)
	var generation struct{ Started, Ended time.Time }
	if err := json.Unmarshal([]byte(m.Run("reconf-pull", "show", "--json")), &generation); err != nil {
		t.Fatal(err)
	}
	pinned, recorded := generation.Started.Sub(started), generation.Ended.Sub(started)
	t.Logf("a run pins its change after %s and records it after %s", pinned, recorded)

	var began time.Time
	after := func(d time.Duration) func(crowd) bool {
		return func(crowd) bool {
			if began.IsZero() {
				began = time.Now()
			}
			if time.Since(began) < d {
				return false
			}
			began = time.Time{}
			return true
		}
	}
	inPlace := func(path string) func(crowd) bool {
		return func(c crowd) bool { return strings.HasPrefix(string(m.Read(path)), c.version+" ") }
	}
	return m, []instant{
		{"before the pin", after(pinned * 9 / 10), ""},
		{"at the pin", func(crowd) bool { return m.openChange() != nil }, "configure"},
		{"at the first file", inPlace("/opt/crowd/00/file000"), "configure"},
		{"at half of the files", inPlace("/opt/crowd/08/file008"), "configure"},
		{"a third into the change", after(pinned + (recorded-pinned)/3), ""},
		{"two thirds into the change", after(pinned + (recorded-pinned)*2/3), ""},
	}
}

// cutOff pushes a version, starts a run and cuts it off. It returns whether a
// change was cut off.
func (c crowd) cutOff(m *machine, when instant, how func()) bool {
	m.t.Helper()
	c.push(m)
	m.Run("systemctl", "start", "--no-block", agent)
	for tick, end := time.NewTicker(100*time.Microsecond), time.Now().Add(time.Minute); !when.come(c); <-tick.C {
		if time.Now().After(end) {
			m.t.Fatalf("a run does not come to %s", when.name)
		}
	}
	how()
	change := m.openChange()
	if change == nil {
		m.t.Logf("%s: no change was under way", when.name)
		return false
	}
	m.t.Logf("%s: %s", when.name, change.doing())
	return when.step == "" || change.doing() == when.step
}

// Whenever the power fails, the next run makes the host what it should be.
func TestPowerCuts(t *testing.T) {
	m, instants := bootCrowd(t)
	inside, last := 0, crowd{"second"}
	for i, when := range instants {
		c := crowd{fmt.Sprintf("cut%d", i)}
		cut := func() {
			// Whoever syncs one file commits all renames until then, and no contents.
			m.Write("/var/synced", nil, 0o600)
			m.PowerOff()
		}
		if c.cutOff(m, when, cut) {
			inside++
		}
		m.PowerOn()
		m.noneTorn(last, c)
		last = c
		m.Run("systemctl", "stop", "*.timer")
		m.Run("systemctl", "start", "reconf-pull.timer", "network-online.target")
		if _, status := m.Try("reconf-pull", "status"); status != 3 && m.openChange() != nil {
			t.Errorf("status of a host that was cut off ends with %d", status)
		}
		c.finish(m)
	}
	if inside < 3 {
		t.Errorf("%d of %d cuts came when they should", inside, len(instants))
	}
}

// A kill leaves the page cache and the units that run.
func TestKills(t *testing.T) {
	m, instants := bootCrowd(t)
	inside, last := 0, crowd{"second"}
	for i, when := range instants {
		c := crowd{fmt.Sprintf("kill%d", i)}
		before := m.running()
		if c.cutOff(m, when, m.killRun) {
			inside++
		}
		m.noneTorn(last, c)
		last = c
		m.WaitFor(10*time.Second, func() bool { return m.Run("systemctl", "list-jobs", "--no-legend") == "" }, "the jobs that were queued")
		killed := m.running()
		c.finish(m)
		// What the killed run restarted is not restarted again.
		finished := m.running()
		for _, unit := range c.units() {
			if killed[unit] != "" && killed[unit] != before[unit] && killed[unit] != finished[unit] {
				t.Errorf("%s: %s was restarted twice", when.name, unit)
			}
		}
	}
	if inside < 3 {
		t.Errorf("%d of %d kills came when they should", inside, len(instants))
	}
}

// noneTorn expects that every file is one version's or the other's.
func (m *machine) noneTorn(old, new crowd) {
	m.t.Helper()
	whole := map[string]bool{}
	for _, c := range []crowd{old, new} {
		for path, data := range c.contents() {
			whole[fmt.Sprintf("%x  %s", sha256.Sum256([]byte(data)), path)] = true
		}
	}
	sums := m.Run("find", "/opt/crowd", "-type", "f", "!", "-name", ".*", "-exec", "sha256sum", "{}", "+")
	for sum := range strings.SplitSeq(sums, "\n") {
		if !whole[sum] {
			m.t.Errorf("neither %s nor %s: %s", old.version, new.version, sum)
		}
	}
}

// killRun kills the agent and its children.
func (m *machine) killRun() {
	m.t.Helper()
	m.KillNow(agent, false)
	m.WaitFor(10*time.Second, func() bool {
		return slices.Contains([]string{"failed", "inactive"}, m.UnitState(agent).ActiveState)
	}, "the end of the run")
}
