package main_test

import (
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// A change that a power cut ended goes on at the next boot, by itself and long
// before the timer; a boot with nothing under way starts nothing.
func TestResumeAtBoot(t *testing.T) {
	m := on(t, bootedhost.Debian13)
	m.Run("systemctl", "enable", "--quiet", "reconf-pull-resume.service")
	c := crowd{"first"}
	c.push(m)
	m.converge()
	if m.Exists("/var/lib/reconf-pull/resume") {
		t.Error("the marker outlives its change")
	}

	c = crowd{"second"}
	c.push(m)
	m.Run("systemctl", "start", "--no-block", agent)
	m.WaitFor(30*time.Second, func() bool { return m.openChange() != nil }, "the change to be pinned")
	m.PowerCut()
	m.WaitFor(60*time.Second, func() bool {
		return m.property(agent, "ActiveState") == "inactive" && m.openChange() == nil && m.property(agent, "ExecMainStartTimestampMonotonic") != "0"
	}, "the change to be finished by the boot")
	c.check(m)
	m.healthy()

	m.Reboot()
	m.Run("systemctl", "is-system-running", "--wait")
	if got := m.property("reconf-pull-resume.service", "ConditionResult"); got != "no" {
		t.Errorf("a boot with nothing under way: ConditionResult=%s", got)
	}
	if got := m.property(agent, "ExecMainStartTimestampMonotonic"); got != "0" {
		t.Errorf("a boot with nothing under way ran the agent at %s", got)
	}
}
