// Package service decides which units a set of changed paths touches, and what
// is done to them.
//
// Its one rule: it is pure. What only the host knows is asked through Host, and
// the same paths and answers give the same Effect.
package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/systemd"
)

// Host answers what can only be asked of the host.
type Host interface {
	// Exists tells whether a unit is loaded or has a file of its own. An
	// instance does not exist just because its template does: it is loaded, or
	// enabled.
	Exists(unit string) bool
	// Instances are the loaded instances of a template (web@.service).
	Instances(template string) []string
	// Triggers are the units that a loaded socket, timer or path unit starts.
	Triggers(unit string) []string
}

// Action is what happens to a unit because something that belongs to it changed.
type Action string

const (
	// Restart: a unit that was active is restarted; one that was not is started
	// if it is enabled or wanted.
	Restart Action = "restart"
	// Reload: as Restart, but a unit that was active is asked to reload.
	Reload Action = "reload"
	// Keep: a unit that was active is left as it is; the Note says when the
	// change takes effect. One that was not is started if it is enabled or wanted.
	Keep Action = "keep"
)

// What Touch.Note says of a unit that is kept.
const (
	NextStart = "takes effect at next start"
	NextBoot  = "after reboot"
	// Reboots is said of a unit with X-Reconf-OnChange=reboot.
	Reboots = "the host is rebooted, X-Reconf-OnChange=reboot"
)

// Touch is a unit and what is done to it.
type Touch struct {
	Unit   string `json:"unit"`
	Action Action `json:"action"`
	// Reasons are the changed paths, sorted.
	Reasons []string `json:"reasons"`
	// Note is for the reader of the report.
	Note string `json:"note,omitempty"`
	// StopFirst are the services of a socket: systemd refuses to start a socket
	// whose service runs. Those that were active are stopped before the socket
	// is restarted, and started after it.
	StopFirst []string `json:"stop_first,omitempty"`
	// Reboot: the unit says that only a reboot makes the change take effect.
	Reboot bool `json:"reboot,omitempty"`
}

// Command is a program that has to see changed files.
type Command struct {
	Argv []string `json:"argv"`
	// Files are appended to Argv: those that exist when the command runs. A
	// command that has Files and none of them exists is not run.
	Files []string `json:"files,omitempty"`
	// Reasons are the changed paths, sorted.
	Reasons []string `json:"reasons"`
}

// Args is the command line, nil when there is nothing left to run it for.
func (c Command) Args(exists func(path string) bool) []string {
	args := slices.Clone(c.Argv)
	for _, file := range c.Files {
		if exists(file) {
			args = append(args, file)
		}
	}
	if len(c.Files) > 0 && len(args) == len(c.Argv) {
		return nil
	}
	return args
}

// Effect is what a set of changed paths asks for. Its parts go in this order:
// Commands, daemon-reload, Early, Touches, and after the change is recorded Late.
type Effect struct {
	// Reload: systemd or one of its generators reads something that changed.
	Reload bool `json:"reload"`
	// Commands are sorted in the order in which a boot runs them, the ones of
	// watches last. The first is systemd-sysusers, if there is one: it runs as
	// soon as its files are written, before the other paths.
	Commands []Command `json:"commands,omitempty"`
	// Early are restarted whatever state they are in, and have ended before the
	// first of Touches is restarted: they build what those run.
	Early []Touch `json:"early,omitempty"`
	// Touches is sorted by unit.
	Touches []Touch `json:"touches,omitempty"`
	// Late are the agent's own timer and path units.
	Late []Touch `json:"late,omitempty"`
}

// Sysusers is the program that has to run before users it declares can own files.
const Sysusers = "systemd-sysusers"

// commands are the programs of the table, in the order of a boot.
var commands = []struct {
	program []string
	dir     string
	ext     string
	files   bool
}{
	{[]string{Sysusers}, "sysusers.d", ".conf", true},
	{[]string{"systemd-modules-load"}, "modules-load.d", ".conf", true},
	{[]string{"systemd-sysctl"}, "sysctl.d", ".conf", true},
	{[]string{"systemd-tmpfiles", "--create"}, "tmpfiles.d", ".conf", true},
	{[]string{"udevadm", "control", "--reload"}, "udev/rules.d", ".rules", false},
}

// configDirs are where each of the programs above looks for its directory.
var configDirs = []string{"/etc/", "/run/", "/usr/local/lib/", "/usr/lib/", "/lib/"}

// Of tells what the changed paths (created, replaced and removed ones) ask for.
//
// Watches come before the built-in table, so that an operator's choice wins;
// the first match counts. A unit that is only derived from a file name is
// touched only if it exists or this very change makes it. onChange returns a
// unit's X-Reconf-OnChange=, "" where it has none. The error names every watch
// whose unit is no unit name.
func Of(changed []string, watches []Watch, onChange func(unit string) string, host Host) (Effect, error) {
	m := matcher{host: host, made: map[string]bool{}}
	changed = slices.Compact(slices.Sorted(slices.Values(changed)))
	for _, p := range changed {
		for _, unit := range m.defined(p) {
			m.made[unit] = true
		}
	}
	touched := &touches{host: host, onChange: onChange, byUnit: map[string]*Touch{}, early: map[string]*Touch{}}
	run := map[string]*Command{}
	var (
		effect Effect
		errs   []error
	)
	compiled, err := compile(watches)
	if err != nil {
		return Effect{}, err
	}
	for _, p := range changed {
		effect.Reload = effect.Reload || systemdReads(p)
		hit, err := m.match(p, compiled)
		if err != nil {
			errs = append(errs, err)
		}
		for _, unit := range hit.early {
			touched.addEarly(unit, p)
		}
		for _, unit := range hit.units {
			touched.add(unit, p)
		}
		if len(hit.argv) > 0 {
			key := hit.order + strings.Join(hit.argv, "\x00")
			if run[key] == nil {
				run[key] = &Command{Argv: hit.argv}
			}
			run[key].Reasons = append(run[key].Reasons, p)
			if hit.files {
				run[key].Files = append(run[key].Files, p)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(run)) {
		effect.Commands = append(effect.Commands, *run[key])
	}
	effect.Early = sorted(touched.early)
	for _, touch := range sorted(touched.byUnit) {
		if touch.Unit == ownTimer || touch.Unit == ownPath {
			effect.Late = append(effect.Late, touch)
			continue
		}
		effect.Touches = append(effect.Touches, touch)
	}
	return effect, errors.Join(errs...)
}

// Add makes the effect one of more paths: more is what they ask for by themselves.
// It may be added again.
func (e *Effect) Add(more Effect) {
	e.Reload = e.Reload || more.Reload
	for _, command := range more.Commands {
		same := func(c Command) bool {
			return slices.Equal(c.Argv, command.Argv) && (len(c.Files) > 0) == (len(command.Files) > 0)
		}
		if i := slices.IndexFunc(e.Commands, same); i >= 0 {
			command.Files, command.Reasons = union(e.Commands[i].Files, command.Files), union(e.Commands[i].Reasons, command.Reasons)
			e.Commands[i] = command
			continue
		}
		e.Commands = append(e.Commands, command)
	}
	e.Early, e.Touches, e.Late = together(e.Early, more.Early), together(e.Touches, more.Touches), together(e.Late, more.Late)
}

// together keeps what was decided about a unit first.
func together(touches, more []Touch) []Touch {
	for _, touch := range more {
		if i := slices.IndexFunc(touches, func(t Touch) bool { return t.Unit == touch.Unit }); i >= 0 {
			touches[i].Reasons = union(touches[i].Reasons, touch.Reasons)
			continue
		}
		touches = append(touches, touch)
	}
	slices.SortFunc(touches, func(a, b Touch) int { return strings.Compare(a.Unit, b.Unit) })
	return touches
}

func union(a, b []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
}

func sorted(byUnit map[string]*Touch) []Touch {
	var all []Touch
	for _, unit := range slices.Sorted(maps.Keys(byUnit)) {
		touch := *byUnit[unit]
		touch.Reasons = slices.Compact(touch.Reasons)
		all = append(all, touch)
	}
	return all
}

// touches collects units; every one of them is judged once.
type touches struct {
	host     Host
	onChange func(unit string) string
	byUnit   map[string]*Touch
	early    map[string]*Touch
}

// add touches a unit, or every loaded instance of a template.
func (t *touches) add(unit, reason string) {
	if systemd.Template(unit) {
		for _, instance := range t.host.Instances(unit) {
			if !systemd.Template(instance) {
				t.add(instance, reason)
			}
		}
		return
	}
	touch, known := t.byUnit[unit]
	if !known {
		touch = &Touch{Unit: unit}
		touch.Action, touch.Note = t.judge(unit)
		touch.Reboot = touch.Note == Reboots
		if touch.Action == Restart && path.Ext(unit) == ".socket" {
			touch.StopFirst = t.services(unit)
		}
		t.byUnit[unit] = touch
	}
	touch.Reasons = append(touch.Reasons, reason)
}

func (t *touches) addEarly(unit, reason string) {
	if t.early[unit] == nil {
		t.early[unit] = &Touch{Unit: unit, Action: Restart}
	}
	t.early[unit].Reasons = append(t.early[unit].Reasons, reason)
}

// services are the units that a socket starts. Those of one connection each
// keep running without the socket.
func (t *touches) services(socket string) []string {
	triggers := t.host.Triggers(socket)
	if len(triggers) == 0 {
		if service := strings.TrimSuffix(socket, ".socket") + ".service"; t.host.Exists(service) {
			triggers = []string{service}
		}
	}
	var stop []string
	for _, unit := range triggers {
		if !systemd.Template(unit) && !own(unit) && !t.perConnection(unit) {
			stop = append(stop, unit)
		}
	}
	slices.Sort(stop)
	return slices.Compact(stop)
}

// The agent's own units.
const (
	ownTimer = "reconf-pull.timer"
	ownPath  = "reconf-pull.path"
)

// own tells the units that a run must not restart: it would end itself, or pull
// its state away from under itself.
func own(unit string) bool {
	switch unit {
	case "reconf-pull.service", "reconf-pull-resume.service", "reconf-pull-state.service":
		return true
	}
	return false
}

// judge decides by name and type, unless the unit decides for itself.
func (t *touches) judge(unit string) (Action, string) {
	if own(unit) {
		return Keep, NextStart
	}
	value := strings.TrimSpace(t.onChange(unit))
	switch value {
	case "restart":
		return Restart, ""
	case "reload":
		return Reload, ""
	case "reboot":
		return Keep, Reboots
	case "none":
		return Keep, "left alone, X-Reconf-OnChange=none"
	}
	action, note := t.byType(unit)
	if value != "" {
		ignored := fmt.Sprintf("X-Reconf-OnChange=%s ignored: it is restart, reload, reboot or none", value)
		note = strings.TrimPrefix(note+"; "+ignored, "; ")
	}
	return action, note
}

func (t *touches) byType(unit string) (Action, string) {
	switch unit {
	case "dbus.service", "dbus.socket", "dbus-broker.service",
		"systemd-logind.service",
		"systemd-journald.service", "systemd-journald.socket",
		"systemd-journald-dev-log.socket", "systemd-journald-audit.socket":
		return Keep, NextBoot
	case "console-getty.service":
		return Keep, NextStart
	}
	switch prefix, _, _ := strings.Cut(unit, "@"); {
	case !strings.Contains(unit, "@"):
	case prefix == "user", prefix == "user-runtime-dir", // sessions and what runs in them
		prefix == "getty", prefix == "serial-getty", prefix == "autovt", prefix == "container-getty",
		prefix == "systemd-journald":
		return Keep, NextStart
	case t.perConnection(unit):
		return Keep, NextStart
	}
	switch path.Ext(unit) {
	case ".service", ".timer", ".path", ".socket":
		return Restart, ""
	case ".slice", ".scope", ".device":
		return Keep, NextBoot
	default:
		return Keep, NextStart
	}
}

// perConnection tells the instances that a socket with Accept=yes makes, one
// for each connection: foo@3-10.0.0.1:22-10.0.0.2:4711.service of foo.socket.
// Their instance begins with a counter and a dash (systemd's src/core/socket.c,
// instance_from_socket), and the socket of their template's name exists.
func (t *touches) perConnection(unit string) bool {
	prefix, rest, found := strings.Cut(unit, "@")
	if !found || path.Ext(unit) != ".service" {
		return false
	}
	number, _, found := strings.Cut(rest, "-")
	if !found || number == "" || strings.Trim(number, "0123456789") != "" {
		return false
	}
	return t.host.Exists(prefix + ".socket")
}

// byLength sorts the longest first.
func byLength(a, b string) int { return cmp.Compare(len(b), len(a)) }

// Own tells the units of the agent that a run must neither stop nor restart.
func Own(unit string) bool { return own(unit) || unit == ownTimer || unit == ownPath }
