package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// version is one of the configs that a host goes through in turn, again and again. The
// serial makes every push one of its own.
type version struct{ kind, serial int }

const (
	kinds        = 4
	versionFiles = 40
)

func (v version) next() version { return version{(v.kind + 1) % kinds, v.serial + 1} }

// push writes the version to the fleet repo: a tree, files with modes, a link, units
// that change, come, go and are masked, scripts, a migration of its own, and for two
// of four a file that asks for a reboot.
func (v version) push(m *machine) (commit string) {
	m.t.Helper()
	repo, name := m.Repo(), fmt.Sprintf("v%d", v.kind)
	repo.Remove("tree")
	repo.Write("tree/of-"+name+"/file", name)
	for i := range versionFiles {
		repo.Write(fmt.Sprintf("tree/%02d/file%02d", i%7, i), strings.Repeat(fmt.Sprintf("%s %d\n", name, i), 200))
	}
	repo.Write("serial", fmt.Sprintf("#!/bin/sh\n# %d\necho %d >/srv/migrated\n", v.serial, v.serial))
	repo.Write("a.service", sleeper("Environment=VERSION="+name))
	repo.Write("own.service", sleeper("Environment=VERSION="+name))
	lines := []string{
		"storage:",
		"  trees: [{local: tree, path: /opt/app}]",
		"  directories: [{path: /srv/app, mode: 075" + strconv.Itoa(v.kind) + "}]",
		"  links: [{path: /opt/current, target: /opt/app/of-" + name + "}]",
		"  files:",
		"    - {path: /etc/app.conf, mode: 064" + strconv.Itoa(v.kind) + ", contents: {inline: " + name + "}}",
		"    - {path: /etc/kernel.conf, contents: {inline: kernel-" + strconv.Itoa(v.kind/2) + "}}",
		"    - {path: /etc/tmpfiles.d/app.conf, contents: {inline: 'd /run/app-" + name + " 0755'}}",
		"    - {path: /etc/reconf-pull/hooks/migration.d/10-serial, mode: 0755, contents: {local: serial}}",
		"systemd:",
		"  units:",
		"    - {name: a.service, enabled: true, contents_local: a.service}",
		"    - {name: b.service, enabled: true, contents: \"" + strings.ReplaceAll(sleeper(), "\n", "\\n") + "\", dropins: [{name: 10-version.conf, contents: \"[Service]\\nEnvironment=VERSION=" + name + "\"}]}",
		"    - {name: own-" + name + ".service, enabled: true, contents_local: own.service}",
		"    - {name: vendor.service, mask: " + strconv.FormatBool(v.kind == 2) + "}",
	}
	if v.kind%2 == 0 {
		lines = append(lines, "    - {name: even.service, enabled: true, contents_local: a.service}")
	}
	m.push(lines...)
	return repo.Git("rev-parse", "HEAD")
}

// outcome is all of a host that a version decides, and how long it took. A host that was
// cut off and one that was not must have the same lines.
type outcome struct {
	lines []string
	took  time.Duration
	steps []step
}

type step struct {
	Name, Status, Detail string
	Started, Ended       time.Time
}

func (v version) outcome(m *machine) (o outcome) {
	m.t.Helper()
	const look = `
set -e
find /etc /opt /srv /usr/local -path /srv/fleet.git -prune -o -printf '%p %y %m %U:%G %l\n' | sort
find /etc /opt /srv /usr/local -path /srv/fleet.git -prune -o -type f ! -path /etc/reconf-pull/hooks/migration.d/10-serial ! -path /srv/migrated -exec sha256sum {} + | sort -k2
for unit in a b own-v0 own-v1 own-v2 own-v3 even vendor db; do
	pid=$(systemctl show --value --property=MainPID $unit.service)
	echo $unit $(systemctl show --value --property=LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload $unit.service) \
		$(test $pid = 0 || tr '\0' '\n' </proc/$pid/environ | grep VERSION= || :)
done
cmp /etc/kernel.conf /run/booted
cd /var/lib/reconf-pull
find . -path './generations/*' -prune -o -path './blobs/*' -prune -o -path './migrations/*' -prune -o -printf '%P %y %m\n' | sort
ls blobs | wc -l
ls generations | wc -l
find /run /etc /opt /srv /usr/local /var/lib /var/cache -name '.*.reconf*' -o -name '*.tmp' -path '*reconf-pull*'`
	text := m.Run("sh", "-c", look)
	text += fmt.Sprintf("\nmigrated %t", string(m.Read("/srv/migrated")) == fmt.Sprintln(v.serial))

	var st struct {
		Applied struct {
			Generation int
			Commit     string
		}
		Change, Held, Open any
	}
	if err := json.Unmarshal(m.Read("/var/lib/reconf-pull/state.json"), &st); err != nil {
		m.t.Fatal(err)
	}
	text += fmt.Sprintf("\nchange %v, held %v, open %v, generation %d\n", st.Change, st.Held, st.Open, st.Applied.Generation-v.serial)
	record := m.Read(fmt.Sprintf("/var/lib/reconf-pull/generations/%d/generation.json", st.Applied.Generation))
	var (
		all   map[string]any
		steps struct{ Steps []step }
	)
	if err := errors.Join(json.Unmarshal(record, &all), json.Unmarshal(record, &steps)); err != nil {
		m.t.Fatal(err)
	}
	for _, unique := range []string{"generation", "change", "commit", "previous", "digest", "started", "ended", "steps"} {
		delete(all, unique)
	}
	record, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, step := range steps.Steps {
		text += "step " + step.Name + " " + step.Status + "\n"
		// Steps before the pin, and the release after the record, are never seen under way.
		if !strings.HasPrefix(step.Detail, "skipped") && !slices.Contains([]string{"needs-update", "check", "lock", "release"}, step.Name) {
			o.steps = append(o.steps, step)
		}
	}
	o.lines = strings.Split(text+string(record), "\n")
	return o
}

// instant is one at random: so long after the start, or after the beginning of a step.
func (o outcome) instant(r *rand.Rand) instantOf {
	if r.IntN(3) == 0 {
		return instantOf{after: time.Duration(r.Int64N(int64(o.took) * 11 / 10))}
	}
	step := o.steps[r.IntN(len(o.steps))]
	return instantOf{step.Name, time.Duration(r.Int64N(max(int64(step.Ended.Sub(step.Started)), 0)*11/10 + int64(5*time.Millisecond)))}
}

type instantOf struct {
	step  string
	after time.Duration
}

func (i instantOf) String() string {
	if i.step == "" {
		return fmt.Sprintf("%s after the start", i.after.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s after %s began", i.after.Round(100*time.Microsecond), i.step)
}

// await waits for the instant. A step that has nothing to do does not come.
func (m *machine) await(i instantOf) {
	m.t.Helper()
	began := `"name": "` + i.step + `",
        "status": "doing"`
	for end := time.Now().Add(2 * time.Second); i.step != "" && time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		if bytes.Contains(m.Peek("/var/lib/reconf-pull/state.json"), []byte(began)) {
			break
		}
	}
	time.Sleep(i.after)
}

// settle waits until the host has the commit and does nothing more. Like the timer it
// starts the agent when that has ended without.
func (m *machine) settle(commit string) {
	m.t.Helper()
	starts := 0
	m.WaitFor(2*time.Minute, func() bool {
		up, _ := m.Try("timeout", "10", "systemctl", "is-system-running", "--wait")
		if up = strings.TrimSpace(up); up != "running" && up != "degraded" {
			return false // booting, or rebooting
		}
		look, status := m.Try("sh", "-c", "cat /var/lib/reconf-pull/state.json; systemctl is-active --quiet "+agent+" || test $? = 3 && test -z \"$(systemctl list-jobs --no-legend)\"")
		var st struct {
			Applied struct{ Commit string }
			Change  *change
		}
		known := json.Unmarshal([]byte(look), &st) == nil
		switch {
		case known && st.Applied.Commit == commit && st.Change == nil:
			return status == 0
		case known && st.Change != nil && st.Change.waits():
			time.Sleep(500 * time.Millisecond) // logind takes its time; after a kill it was perhaps not asked
		default:
			starts++
		}
		if starts > 6 {
			m.t.Fatalf("started %d times, the agent does not come to %s:\n%s", starts, commit, m.Run("cat", "/run/said"))
		}
		_, _ = m.Try("timeout", "60", "systemctl", "start", agent)
		return false
	}, "commit "+commit)
}

// bootVersions makes a host that has gone through all versions twice without being cut
// off, and tells what each leaves and how long it takes.
func bootVersions(t *testing.T) (m *machine, last version, want [kinds]outcome) {
	m = boot(t, bootedhost.Debian13)
	m.write("/etc/reconf-pull/config.toml", "keep = 2", "[source]", "url = '"+bootedhost.RepoURL+"'", "[service]", "settle = '50ms'", "[reboot]", "timeout = '10s'")
	m.write("/etc/systemd/system/booted.service", "[Unit]", "Before="+agent, "[Service]", "Type=oneshot", "RemainAfterExit=yes", "ExecStart=cp /etc/kernel.conf /run/booted", "[Install]", "WantedBy=multi-user.target")
	// Of a script's service systemd would have enough after five starts in ten seconds.
	m.write("/etc/systemd/system/db.service", "[Unit]", "StartLimitIntervalSec=0", strings.TrimSuffix(sleeper(), "\n"))
	m.Write("/etc/kernel.conf", []byte("kernel-0"), 0o644)
	m.hook("pre_update.d/10-drain", "systemctl stop db.service")
	m.hook("configure.d/10-derive", "cat /etc/app.conf >/srv/derived")
	m.hook("needs_reboot.d/10-kernel", "cmp /etc/kernel.conf /run/booted")
	m.hook("post_update.d/10-fill", "systemctl start db.service")
	m.hook("health.d/10-app", "cmp /etc/app.conf /srv/derived")
	m.firstStart()
	m.vendorUnit("vendor.service")
	m.Run("systemctl", "enable", "--quiet", "--now", "booted.service", "db.service", "reconf-pull-resume.service")

	last = version{kind: kinds - 1}
	for range 2 * kinds {
		last = last.next()
		commit := last.push(m)
		began := time.Now()
		m.settle(commit)
		want[last.kind] = last.outcome(m)
		steps := want[last.kind].steps
		want[last.kind].took = steps[len(steps)-1].Ended.Sub(began)
		t.Logf("version %d takes %s", last.kind, want[last.kind].took.Round(time.Millisecond))
	}
	return m, last, want
}

// crashes is how often each of the two tests below cuts a host off, and on how many
// hosts at the same time: RECONF_TEST_CRASHES is for soaking.
func crashes(t *testing.T) (number, hosts int) {
	t.Helper()
	number, hosts = 20, 1
	if text := os.Getenv("RECONF_TEST_CRASHES"); text != "" {
		var err error
		if number, err = strconv.Atoi(text); err != nil {
			t.Fatalf("RECONF_TEST_CRASHES: %v", err)
		}
	}
	if number > 50 {
		hosts = 2
	}
	return number, hosts
}

// seed is RECONF_TEST_SEED, or another one each time.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("RECONF_TEST_SEED")
	if text == "" {
		return rand.Uint64N(1_000_000)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("RECONF_TEST_SEED: %v", err)
	}
	return n
}

// A host comes to what it would have come to whenever its power failed.
func TestPowerCutsAtRandom(t *testing.T) {
	crash(t, "power cuts", func(m *machine, r *rand.Rand) (string, *change) {
		how := "power cut"
		if r.IntN(2) == 0 {
			how += " with all names"
			m.CommitNames()
		}
		m.PowerOff()
		change := m.peekChange()
		m.Start()
		return how, change
	})
}

// And whenever the agent was killed, alone or with its scripts, or was told to stop.
func TestKillsAtRandom(t *testing.T) {
	crash(t, "kills", func(m *machine, r *rand.Rand) (how string, change *change) {
		killed := 0
		switch r.IntN(5) {
		case 0:
			how = "stop"
			_, _ = m.Try("systemctl", "stop", agent)
		case 1, 2:
			how, killed = "kill of the agent alone", m.KillNow(agent, true)
		default:
			how, killed = "kill", m.KillNow(agent, false)
		}
		if killed > 0 || how == "stop" {
			change = m.peekChange()
		}
		m.WaitFor(time.Minute, func() bool {
			out, _ := m.Try("systemctl", "is-active", agent)
			return strings.TrimSpace(out) != "activating"
		}, "the end of the run")
		_, _ = m.Try("systemctl", "start", "--no-block", agent)
		return how, change
	})
}

// peekChange is openChange of a host that may be rebooting.
func (m *machine) peekChange() *change {
	var st struct{ Change *change }
	if json.Unmarshal(m.Peek("/var/lib/reconf-pull/state.json"), &st) != nil {
		return nil
	}
	return st.Change
}

// waits says whether a reboot was asked for.
func (c *change) waits() bool {
	return slices.ContainsFunc(c.Tasks, func(t struct{ Name, Status string }) bool { return t.Status == "wait" })
}

// crash goes on with versions, cutting the host off at random instants of each, and
// compares what it then comes to with what it comes to undisturbed.
func crash(t *testing.T, what string, cut func(*machine, *rand.Rand) (how string, inside *change)) {
	if testing.Short() {
		t.Skip("boots a host")
	}
	t.Parallel()
	number, hosts := crashes(t)
	s := seed(t)
	var done, inside atomic.Int64
	t.Run("host", func(t *testing.T) {
		for host := range hosts {
			t.Run(strconv.Itoa(host), func(t *testing.T) {
				r := rand.New(rand.NewPCG(s, uint64(host)))
				m, last, want := bootVersions(t)
				for done.Load() < int64(number) {
					last = last.next()
					commit := last.push(m)
					story := fmt.Sprintf("seed %d, host %d, push %d", s, host, last.serial)
					m.Run("systemctl", "start", "--no-block", agent)
					// One in three is cut off again while it goes on. The third time would be
					// once too often: its digest would be held.
					for cuts := 0; cuts == 0 || cuts == 1 && r.IntN(3) == 0; cuts++ {
						when := want[last.kind].instant(r)
						m.await(when)
						how, change := cut(m, r)
						where := "outside a change"
						if change != nil {
							where = "in " + change.doing()
							inside.Add(1)
						}
						story += fmt.Sprintf(", %s %s %s", how, when, where)
						if n := done.Add(1); n%50 == 0 {
							t.Logf("%d of %d %s", n, number, what)
						}
					}
					t.Log(story)
					m.settle(commit)
					if diff := cmp.Diff(want[last.kind].lines, last.outcome(m).lines); diff != "" {
						t.Fatalf("%s: -undisturbed +cut off:\n%s", story, diff)
					}
				}
			})
		}
	})
	counted(t, "%d %s with seed %d, %d of them in a change", done.Load(), what, s, inside.Load())
	if inside.Load() < done.Load()/5 {
		t.Error("hardly any of them came in a change")
	}
}
