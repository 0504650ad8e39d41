package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
	"github.com/reconf-pull/reconf-pull/internal/lock/locktest"
)

// lockedHosts are three hosts of one fleet that share a lock of one slot, in a real etcd.
func lockedHosts(t *testing.T, cluster *locktest.Etcd) []*machine {
	t.Helper()
	repo := bootedhost.NewRepo(t)
	var all []*machine
	for n := 1; n <= 3; n++ {
		m := prepareHost(t, bootedhost.Options{OS: bootedhost.Debian13, Name: fmt.Sprint("web", n), Repo: repo})
		for path, file := range map[string]string{"/etc/reconf-pull/lock-ca.pem": cluster.CA.File, "/etc/reconf-pull/lock.pem": cluster.Cert, "/etc/reconf-pull/lock.key": cluster.Key} {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			m.Write(path, data, 0o600)
		}
		m.configure("[lock]", "kind = 'etcd'", "endpoints = ['"+strings.Join(cluster.Endpoints, "', '")+"']",
			"ca = '/etc/reconf-pull/lock-ca.pem'", "cert = '/etc/reconf-pull/lock.pem'", "key = '/etc/reconf-pull/lock.key'", "poll = '5s'",
			"[reboot]", "paths = ['/etc/default/*']")
		m.hook("pre_update.d/10-log", `echo "begins $(date +%s.%N) $RECONF_COMMIT" >>/var/log/changes`)
		m.hook("health.d/10-app", "! grep --quiet bad /etc/app.conf")
		m.hook("health.d/20-log", `echo "ends $(date +%s.%N) $RECONF_COMMIT" >>/var/log/changes`)
		m.firstStart()
		m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
		all = append(all, m)
	}
	return all
}

// pushAll is one push for all hosts; more are further files.
func pushAll(hosts []*machine, version string, more ...string) (commit string) {
	repo := hosts[0].Repo()
	repo.Write("app.conf", version+"\n")
	files := append([]string{"    - {path: /etc/app.conf, contents: {local: app.conf}}"}, more...)
	for _, m := range hosts {
		repo.Write("hosts/"+m.Name+".bu", unlines(append([]string{"variant: fcos", "version: 1.6.0", "storage:", "  files:"}, files...)...))
	}
	return repo.Push(version)
}

func (m *machine) startsRun() {
	m.t.Helper()
	m.Run("systemctl", "start", "--no-block", agent)
}

// comesTo waits until the host, which may reboot meanwhile, has applied the commit and
// given the lock back.
func (m *machine) comesTo(commit string) {
	m.t.Helper()
	m.WaitFor(3*time.Minute, func() bool {
		var st struct {
			Applied, Change *struct{ Commit string }
			Lock            any `json:"fleet_lock"`
		}
		return json.Unmarshal(m.Peek("/var/lib/reconf-pull/state.json"), &st) == nil && st.Change == nil && st.Lock == nil && st.Applied != nil && st.Applied.Commit == commit
	}, "commit "+commit)
	m.WaitFor(time.Minute, func() bool { return m.UnitState(agent).ActiveState != "activating" }, "the end of the run")
}

// spans are the changes of a host, from pre_update to the last of health.
func (m *machine) spans(commit string) (from, to string) {
	m.t.Helper()
	for line := range strings.Lines(string(m.Read("/var/log/changes"))) {
		fields := strings.Fields(line)
		switch {
		case fields[2] != commit:
		case fields[0] == "begins":
			from = fields[1]
		default:
			to = fields[1]
		}
	}
	if from == "" || to == "" {
		m.t.Errorf("%s: change to %s lasted from %q to %q", m.Name, commit, from, to)
	}
	return from, to
}

// oneByOne checks that no two hosts changed at the same time.
func oneByOne(t *testing.T, hosts []*machine, commit string) {
	t.Helper()
	var all [][2]string
	for _, m := range hosts {
		from, to := m.spans(commit)
		all = append(all, [2]string{from, to})
	}
	slices.SortFunc(all, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	for n := 1; n < len(all); n++ {
		if all[n][0] < all[n-1][1] {
			t.Errorf("one change began at %s, the one before it ended at %s", all[n][0], all[n-1][1])
		}
	}
	t.Logf("changes to %.12s: %v", commit, all)
}

// Three hosts with one lock change one after the other, over their reboots; a push that
// fails on the first of them does not reach the others.
func TestFleetLockOfThreeHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("boots hosts")
	}
	bootedhost.Require(t)
	t.Parallel()
	cluster := locktest.NewEtcd(t, 1)
	hosts := lockedHosts(t, cluster)
	one, others := hosts[0], hosts[1:]

	commit := pushAll(hosts, "one")
	for _, m := range hosts {
		m.startsRun()
	}
	for _, m := range hosts {
		m.comesTo(commit)
	}
	oneByOne(t, hosts, commit)

	var boots []string
	for _, m := range hosts {
		boots = append(boots, m.BootID())
	}
	reboots := "    - {path: /etc/default/app, contents: {inline: two}}"
	commit = pushAll(hosts, "two", reboots)
	for _, m := range hosts {
		m.startsRun()
	}
	// The timers of a host that reboots are gone; those who wait go on asking.
	for n, m := range hosts {
		m.comesTo(commit)
		m.WaitReboot(boots[n])
	}
	oneByOne(t, hosts, commit)

	bad := pushAll(hosts, "bad", reboots)
	if status, said := one.pull(); status != 1 || !strings.Contains(said, "health.d/10-app") {
		t.Fatalf("the bad push ends with %d:\n%s", status, said)
	}
	waits := func() {
		t.Helper()
		for _, m := range others {
			status, said := m.pull()
			if status != 75 || m.UnitState(agent).Result != "success" {
				t.Errorf("%s: the run ends with %d:\n%s", m.Name, status, said)
			}
			const why = "the fleet lock is busy (etcd): held by web1 since 20"
			kept := fmt.Sprintf("(slot 1, commit %.12s, health failed, the lock is kept)", bad)
			m.says(said, why, kept, "asking for the fleet lock again in ")
			out, status := m.Try("reconf-pull", "status")
			if m.says(out, why, kept); status != 3 {
				t.Errorf("%s: status ends with %d:\n%s", m.Name, status, out)
			}
			out, status = m.Try("reconf-pull", "lock", "status")
			if m.says(out, "holder:   web1 since ", "here:     not held"); status != 3 {
				t.Errorf("%s: lock status ends with %d:\n%s", m.Name, status, out)
			}
			if n := strings.Count(m.Run("systemctl", "list-timers", "--all", "--no-legend", "--no-pager"), "reconf-pull-poll.timer"); n != 1 {
				t.Errorf("%s: %d timers ask again", m.Name, n)
			}
			m.gives("two", "cat", "/etc/app.conf")
		}
	}
	waits()
	out, _ := one.Try("reconf-pull", "status")
	one.says(out, "lock:     etcd, kept after a failure, since ")
	one.Reboot()
	one.startsRun()
	one.WaitFor(time.Minute, func() bool { return one.UnitState(agent).ActiveState == "failed" }, "a run that finds its digest held")
	waits()

	commit = pushAll(hosts, "three", reboots)
	if status, said := one.pull(); status != 0 {
		t.Fatalf("the fixed push ends with %d:\n%s", status, said)
	}
	for _, m := range hosts {
		m.comesTo(commit) // the others by their own timers
	}
	oneByOne(t, hosts, commit)
	for _, m := range others {
		for _, record := range []string{m.Run("reconf-pull", "history"), string(m.Read("/var/log/changes"))} {
			if strings.Contains(record, bad[:12]) {
				t.Errorf("%s took the bad commit:\n%s", m.Name, record)
			}
		}
	}

	// An operator's freeze.
	three := hosts[2]
	three.says(three.Run("reconf-pull", "lock", "acquire"), "until reconf-pull lock release")
	commit = pushAll(hosts, "four", reboots)
	if status, said := one.pull(); status != 75 || !strings.Contains(said, "held by web3") || !strings.Contains(said, "taken by hand") {
		t.Errorf("frozen: the run ends with %d:\n%s", status, said)
	}
	if status, said := three.pull(); status != 0 {
		t.Errorf("the host that freezes: the run ends with %d:\n%s", status, said)
	}
	out, status := three.Try("reconf-pull", "status")
	if three.says(out, "lock:     etcd, taken by hand, since ", "reconf-pull lock release gives it back"); status != 3 {
		t.Errorf("frozen: status ends with %d:\n%s", status, out)
	}
	three.says(three.Run("reconf-pull", "lock", "release"), "the fleet lock is given back")
	one.comesTo(commit)

	var holders []string
	held := map[string]bool{}
	for _, event := range cluster.History("/reconf-pull/fleet/locks/default/") {
		var value struct{ Host string }
		if event.Value == nil {
			delete(held, event.Key)
			continue
		}
		if err := json.Unmarshal(event.Value, &value); err != nil {
			t.Fatal(err)
		}
		if !held[event.Key] {
			holders = append(holders, value.Host)
		}
		if held[event.Key] = true; len(held) > 1 {
			t.Errorf("revision %d: two slots of one: %v", event.Revision, held)
		}
	}
	t.Logf("the lock was held by %v", holders)
}
