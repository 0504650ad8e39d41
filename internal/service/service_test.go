package service_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/reconf-pull/reconf-pull/internal/service"
)

// fakeHost has units, and what triggers what.
type fakeHost struct {
	units    []string
	triggers map[string][]string
}

func (h fakeHost) Exists(unit string) bool { return slices.Contains(h.units, unit) }

func (h fakeHost) Instances(template string) []string {
	stem, ext, _ := strings.Cut(template, "@")
	var found []string
	for _, unit := range h.units {
		if strings.HasPrefix(unit, stem+"@") && strings.HasSuffix(unit, ext) {
			found = append(found, unit)
		}
	}
	return found
}

func (h fakeHost) Triggers(unit string) []string { return h.triggers[unit] }

func silent(string) string { return "" }

// TestTable has at least one case for every row of the table. want lists the
// units in the words of describe.
func TestTable(t *testing.T) {
	for _, test := range []struct {
		name    string
		changed string // separated by white space
		units   string // of the host
		want    string
		reload  bool
	}{
		{"unit", "/etc/systemd/system/web.service", "", "restart web.service", true},
		{"unit of the admin's vendor", "/usr/local/lib/systemd/system/web.service", "", "restart web.service", true},
		{"runtime unit", "/run/systemd/system/web.service", "", "restart web.service", true},
		{"timer", "/etc/systemd/system/job.timer", "", "restart job.timer", true},
		{"path", "/etc/systemd/system/job.path", "", "restart job.path", true},
		{"socket without a service", "/etc/systemd/system/web.socket", "", "restart web.socket", true},
		{"socket", "/etc/systemd/system/web.socket", "web.service", "restart web.socket after stopping web.service", true},
		{"drop-in", "/etc/systemd/system/web.service.d/10-x.conf", "", "restart web.service", true},
		{"drop-in of a unit that is not ours", "/etc/systemd/system/sshd.service.d/10-x.conf", "sshd.service", "restart sshd.service", true},
		{"not a drop-in", "/etc/systemd/system/web.service.d/README", "", "", false},
		{"deeper than drop-ins", "/etc/systemd/system/web.service.d/x/y.conf", "", "", false},
		{"type drop-in", "/etc/systemd/system/service.d/10-x.conf", "web.service", "", true},
		{"prefix drop-in", "/etc/systemd/system/web-.service.d/10-x.conf", "web-a.service", "", true},
		{"prefix drop-in of instances", "/etc/systemd/system/web-@a.service.d/10-x.conf", "web-b@a.service", "", true},
		{"two paths, one unit", "/etc/systemd/system/web.service /etc/systemd/system/web.service.d/a.conf", "", "restart web.service", true},
		{"enablement", "/etc/systemd/system/multi-user.target.wants/web.service", "web.service", "", true},
		{"requirement", "/etc/systemd/system/a.service.requires/b.service", "a.service b.service", "", true},
		{"no unit", "/etc/systemd/system/README.md", "", "", false},
		{"user manager's unit", "/etc/systemd/user/web.service", "web.service", "", false},
		{"template", "/etc/systemd/system/web@.service", "web@a.service web@b.service other@c.service", "restart web@a.service, restart web@b.service", true},
		{"template without instances", "/etc/systemd/system/web@.service", "", "", true},
		{"drop-in of a template", "/etc/systemd/system/web@.service.d/x.conf", "web@a.service", "restart web@a.service", true},
		{"drop-in of an instance", "/etc/systemd/system/web@a.service.d/x.conf", "web@a.service web@b.service", "restart web@a.service", true},

		{"container", "/etc/containers/systemd/web.container", "", "restart web.service", true},
		{"container in a directory", "/etc/containers/systemd/team/web.container", "", "restart web.service", true},
		{"kube", "/etc/containers/systemd/web.kube", "", "restart web.service", true},
		{"volume", "/etc/containers/systemd/data.volume", "", "restart data-volume.service", true},
		{"network", "/etc/containers/systemd/front.network", "", "restart front-network.service", true},
		{"pod", "/etc/containers/systemd/web.pod", "", "restart web-pod.service", true},
		{"image", "/etc/containers/systemd/web.image", "", "restart web-image.service", true},
		{"build", "/etc/containers/systemd/web.build", "", "restart web-build.service", true},
		{"artifact", "/etc/containers/systemd/web.artifact", "", "restart web-artifact.service", true},
		{"quadlet template", "/etc/containers/systemd/web@.container", "web@a.service", "restart web@a.service", true},
		{"quadlet drop-in", "/etc/containers/systemd/web.container.d/x.conf", "", "restart web.service", true},
		{"quadlet drop-in in a directory", "/etc/containers/systemd/team/data.volume.d/x.conf", "", "restart data-volume.service", true},
		{"quadlet type drop-in", "/etc/containers/systemd/container.d/x.conf", "web.service", "", true},
		{"quadlet prefix drop-in", "/etc/containers/systemd/web-.container.d/x.conf", "web-a.service", "", true},
		{"a user's quadlet", "/etc/containers/systemd/users/1000/web.container", "web.service", "", false},
		{"support file", "/etc/containers/systemd/web.prod.yaml", "web.service", "restart web.service", false},
		{"support file with its quadlet", "/etc/containers/systemd/web.yaml /etc/containers/systemd/web.kube", "", "restart web.service", true},
		{"support file of nothing", "/etc/containers/systemd/notes.txt", "", "", false},

		{"environment", "/etc/local/environment/web.env", "web.service", "restart web.service", false},
		{"environment, dot", "/etc/containers/environment/web.prod.env", "web.service", "restart web.service", false},
		{"environment, dash", "/etc/containers/environment/web-systemd.env", "web.service", "restart web.service", false},
		{"environment, longest", "/etc/containers/environment/web-api.prod.env", "web.service web-api.service", "restart web-api.service", false},
		{"environment, no substring", "/etc/local/environment/website.env", "web.service", "", false},
		{"environment of nothing", "/etc/local/environment/web.env", "", "", false},
		{"environment with its unit", "/etc/local/environment/web.env /etc/systemd/system/web.service", "", "restart web.service", true},
		{"no environment", "/etc/local/environment/web.txt", "web.service", "", false},
		{"compose environment", "/etc/compose/environment/shop-db.env", "compose@shop.service", "restart compose@shop.service", false},
		{"compose environment, both", "/etc/compose/environment/shop.env", "compose@shop.service shop.service", "restart compose@shop.service, restart shop.service", false},
		{"compose is for compose only", "/etc/local/environment/shop.env", "compose@shop.service", "", false},

		{"container build", "/etc/containers/build/web/src/Containerfile", "container-build@web.service web.service", "first restart container-build@web.service, restart web.service", false},
		{"container build by its template", "/etc/containers/build/web/Containerfile", "container-build@.service web.service", "first restart container-build@web.service, restart web.service", false},
		{"container build without a builder", "/etc/containers/build/web/Containerfile", "web.service", "restart web.service", false},
		{"container build of nothing", "/etc/containers/build/web/Containerfile", "", "", false},
		{"compose build", "/etc/compose/build/shop/Containerfile", "compose-build@.service compose@shop.service shop.service", "first restart compose-build@shop.service, restart compose@shop.service", false},
		{"compose build, plain service", "/etc/compose/build/shop/Containerfile", "shop.service", "restart shop.service", false},

		{"sysusers", "/etc/sysusers.d/app.conf", "", "run systemd-sysusers /etc/sysusers.d/app.conf", false},
		{"tmpfiles", "/etc/tmpfiles.d/a.conf /usr/local/lib/tmpfiles.d/b.conf", "", "run systemd-tmpfiles --create /etc/tmpfiles.d/a.conf /usr/local/lib/tmpfiles.d/b.conf", false},
		{"sysctl", "/etc/sysctl.d/a.conf", "", "run systemd-sysctl /etc/sysctl.d/a.conf", false},
		{"modules", "/etc/modules-load.d/a.conf", "", "run systemd-modules-load /etc/modules-load.d/a.conf", false},
		{"modules at run time", "/run/modules-load.d/a.conf", "", "run systemd-modules-load /run/modules-load.d/a.conf", false},
		{"udev", "/etc/udev/rules.d/90-a.rules /etc/udev/rules.d/91-b.rules", "", "run udevadm control --reload", false},
		{"not read by sysctl", "/etc/sysctl.d/README", "", "", false},
		{"in the order of a boot", "/etc/tmpfiles.d/a.conf /etc/udev/rules.d/a.rules /etc/sysusers.d/a.conf /etc/sysctl.d/a.conf /etc/modules-load.d/a.conf", "",
			"run systemd-sysusers /etc/sysusers.d/a.conf, run systemd-modules-load /etc/modules-load.d/a.conf, run systemd-sysctl /etc/sysctl.d/a.conf, run systemd-tmpfiles --create /etc/tmpfiles.d/a.conf, run udevadm control --reload", false},

		{"slice", "/etc/systemd/system/web.slice", "", "keep web.slice (after reboot)", true},
		{"scope", "/etc/systemd/system/a.scope.d/x.conf", "", "keep a.scope (after reboot)", true},
		{"device", "/etc/systemd/system/dev-sda.device.d/x.conf", "", "keep dev-sda.device (after reboot)", true},
		{"mount", "/etc/systemd/system/srv.mount", "", "keep srv.mount (takes effect at next start)", true},
		{"automount", "/etc/systemd/system/srv.automount", "", "keep srv.automount (takes effect at next start)", true},
		{"swap", "/etc/systemd/system/swapfile.swap", "", "keep swapfile.swap (takes effect at next start)", true},
		{"target", "/etc/systemd/system/a.target", "", "keep a.target (takes effect at next start)", true},
		{"user@", "/etc/systemd/system/user@.service.d/x.conf", "user@1000.service", "keep user@1000.service (takes effect at next start)", true},
		{"getty@", "/etc/systemd/system/getty@tty1.service.d/x.conf", "", "keep getty@tty1.service (takes effect at next start)", true},
		{"serial-getty@", "/etc/systemd/system/serial-getty@.service.d/x.conf", "serial-getty@ttyS0.service", "keep serial-getty@ttyS0.service (takes effect at next start)", true},
		{"per connection", "/etc/systemd/system/ssh@.service", "ssh.socket ssh@3-10.0.0.1:22-10.0.0.2:4711.service", "keep ssh@3-10.0.0.1:22-10.0.0.2:4711.service (takes effect at next start)", true},
		{"per connection, unix socket", "/etc/systemd/system/ssh@.service", "ssh.socket ssh@0-1234-1000.service", "keep ssh@0-1234-1000.service (takes effect at next start)", true},
		{"a number that is no connection", "/etc/systemd/system/web@.service", "web@1-a.service", "restart web@1-a.service", true},
		{"dbus", "/etc/systemd/system/dbus.service.d/x.conf", "", "keep dbus.service (after reboot)", true},
		{"dbus-broker", "/etc/systemd/system/dbus-broker.service.d/x.conf", "", "keep dbus-broker.service (after reboot)", true},
		{"dbus.socket", "/etc/systemd/system/dbus.socket.d/x.conf", "dbus.service", "keep dbus.socket (after reboot)", true},
		{"logind", "/etc/systemd/system/systemd-logind.service.d/x.conf", "", "keep systemd-logind.service (after reboot)", true},
		{"journald", "/etc/systemd/system/systemd-journald.service.d/x.conf", "", "keep systemd-journald.service (after reboot)", true},

		{"the agent", "/etc/systemd/system/reconf-pull.service", "", "keep reconf-pull.service (takes effect at next start)", true},
		{"the agent's resume", "/etc/systemd/system/reconf-pull-resume.service.d/x.conf", "", "keep reconf-pull-resume.service (takes effect at next start)", true},
		{"the agent's timer", "/etc/systemd/system/reconf-pull.timer.d/interval.conf", "", "late restart reconf-pull.timer", true},
		{"the agent's path", "/etc/systemd/system/reconf-pull.path", "", "late restart reconf-pull.path", true},

		{"generator", "/etc/systemd/system-generators/x", "", "", true},
		{"fstab", "/etc/fstab", "", "", true},
		{"systemd itself", "/etc/systemd/system.conf.d/x.conf", "", "", true},
		{"nobody's", "/etc/hosts", "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := fakeHost{units: strings.Fields(test.units)}
			effect, err := service.Of(strings.Fields(test.changed), nil, silent, host)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(effect); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if effect.Reload != test.reload {
				t.Errorf("daemon-reload: %v, want %v", effect.Reload, test.reload)
			}
		})
	}
}

func describe(effect service.Effect) string {
	var all []string
	for _, command := range effect.Commands {
		args := command.Args(func(string) bool { return true })
		all = append(all, "run "+strings.Join(args, " "))
	}
	for _, touches := range []struct {
		when  string
		touch []service.Touch
	}{{"first ", effect.Early}, {"", effect.Touches}, {"late ", effect.Late}} {
		for _, touch := range touches.touch {
			text := touches.when + string(touch.Action) + " " + touch.Unit
			if len(touch.StopFirst) > 0 {
				text += " after stopping " + strings.Join(touch.StopFirst, " ")
			}
			if touch.Note != "" {
				text += " (" + touch.Note + ")"
			}
			all = append(all, text)
		}
	}
	return strings.Join(all, ", ")
}

func TestSocketStopsWhatItStarts(t *testing.T) {
	host := fakeHost{
		units: []string{"in.socket", "in@1-2-3.service"},
		triggers: map[string][]string{
			"web.socket": {"frontend.service"},
			"in.socket":  {"in@1-2-3.service"},
		},
	}
	effect, err := service.Of([]string{"/etc/systemd/system/web.socket", "/etc/systemd/system/in.socket"}, nil, silent, host)
	if err != nil {
		t.Fatal(err)
	}
	const want = "restart in.socket, restart web.socket after stopping frontend.service"
	if got := describe(effect); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestOnChange(t *testing.T) {
	for _, test := range []struct{ unit, value, want string }{
		{"web.service", "reload", "reload web.service"},
		{"web.service", "restart", "restart web.service"},
		{"web.service", "none", "keep web.service (left alone, X-Reconf-OnChange=none)"},
		{"web.service", "reboot", "keep web.service (the host is rebooted, X-Reconf-OnChange=reboot)"},
		{"srv.mount", "restart", "restart srv.mount"},
		{"web.service", "relaod", "restart web.service (X-Reconf-OnChange=relaod ignored: it is restart, reload, reboot or none)"},
		{"srv.mount", "yes", "keep srv.mount (takes effect at next start; X-Reconf-OnChange=yes ignored: it is restart, reload, reboot or none)"},
		// A run that restarts itself never ends.
		{"reconf-pull.service", "restart", "keep reconf-pull.service (takes effect at next start)"},
	} {
		t.Run(test.unit+" "+test.value, func(t *testing.T) {
			effect, err := service.Of([]string{"/etc/systemd/system/" + test.unit}, nil,
				func(string) string { return test.value }, fakeHost{})
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(effect); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if got := effect.Touches[0].Reboot; got != (test.value == "reboot") {
				t.Errorf("reboot: %v", got)
			}
		})
	}
}

func TestGlobs(t *testing.T) {
	globs, err := service.ParseGlobs([]string{"/etc/default/grub", "/etc/modprobe.d/*.conf", "/boot/**"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/etc/default/grub": true, "/etc/default/grub.d": false, "/etc/modprobe.d/a.conf": true, "/etc/modprobe.d/x/a.conf": false,
		"/boot/loader/entries/a": true, "/boot": false,
	} {
		if got := globs.Match(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if _, err := service.ParseGlobs([]string{"etc/a", "/etc/a**"}); err == nil || err.Error() != "\"etc/a\": path is not absolute\n\"/etc/a**\": ** is not a whole path element" {
		t.Errorf("%v", err)
	}
	if (service.Globs{}).Match("/etc") {
		t.Error("no globs match")
	}
}

func TestWatch(t *testing.T) {
	for _, test := range []struct {
		name    string
		watch   service.Watch
		changed string
		want    string
	}{
		{"literal", service.Watch{Path: "/etc/hosts", Unit: "dns.service"}, "/etc/hosts", "restart dns.service"},
		{"literal dot", service.Watch{Path: "/etc/a.b", Unit: "dns.service"}, "/etc/axb", ""},
		{"star", service.Watch{Path: "/etc/caddy/*.conf", Unit: "caddy.service"}, "/etc/caddy/a.conf /etc/caddy/x/b.conf", "restart caddy.service"},
		{"star stays in its element", service.Watch{Path: "/etc/caddy/*", Unit: "caddy.service"}, "/etc/caddy/x/b.conf", ""},
		{"question mark", service.Watch{Path: "/etc/a?", Unit: "a.service"}, "/etc/ab", "restart a.service"},
		{"two stars", service.Watch{Path: "/etc/caddy/**", Unit: "caddy.service"}, "/etc/caddy/x/y/b.conf", "restart caddy.service"},
		{"two stars are not the directory", service.Watch{Path: "/etc/caddy/**", Unit: "caddy.service"}, "/etc/caddy", ""},
		{"two stars in between", service.Watch{Path: "/etc/**/tls.pem", Unit: "caddy.service"}, "/etc/tls.pem /etc/a/b/tls.pem", "restart caddy.service"},
		{"capture", service.Watch{Path: "/etc/app/{name}/**", Unit: "app@{name}.service"}, "/etc/app/one/x /etc/app/two/y/z", "restart app@one.service, restart app@two.service"},
		{"capture is short", service.Watch{Path: "/etc/app/{name}.*", Unit: "{name}.service"}, "/etc/app/web.prod.ini", "restart web.service"},
		{"two captures", service.Watch{Path: "/srv/{a}/{b}.ini", Unit: "{b}@{a}.service"}, "/srv/x/y.ini", "restart y@x.service"},
		{"template", service.Watch{Path: "/etc/app.ini", Unit: "app@.service"}, "/etc/app.ini", "restart app@one.service"},
		{"run", service.Watch{Path: "/etc/x/{n}.nft", Run: []string{"nft", "-f", "{path}", "{n}", "{ print }"}}, "/etc/x/a.nft", "run nft -f /etc/x/a.nft a { print }"},
		{"run once", service.Watch{Path: "/etc/x/*", Run: []string{"update-x"}}, "/etc/x/a /etc/x/b", "run update-x"},
		{"before the table", service.Watch{Path: "/etc/systemd/system/web.service", Unit: "front.service"}, "/etc/systemd/system/web.service", "restart front.service"},
		{"types count here, too", service.Watch{Path: "/etc/x", Unit: "srv.mount"}, "/etc/x", "keep srv.mount (takes effect at next start)"},
		{"the agent is never restarted", service.Watch{Path: "/etc/x", Unit: "reconf-pull.service"}, "/etc/x", "keep reconf-pull.service (takes effect at next start)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.watch.Validate(); err != nil {
				t.Fatal(err)
			}
			host := fakeHost{units: []string{"app@one.service"}}
			effect, err := service.Of(strings.Fields(test.changed), []service.Watch{test.watch}, silent, host)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(effect); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestFirstWatchWins(t *testing.T) {
	watches := []service.Watch{
		{Path: "/etc/app/special", Unit: "special.service"},
		{Path: "/etc/app/*", Unit: "app.service"},
	}
	effect, err := service.Of([]string{"/etc/app/special", "/etc/app/x"}, watches, silent, fakeHost{})
	if err != nil {
		t.Fatal(err)
	}
	const want = "restart app.service, restart special.service"
	if got := describe(effect); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A unit that is watched instead of restarted is read by systemd all the same.
func TestWatchedUnitFileNeedsReload(t *testing.T) {
	effect, err := service.Of([]string{"/etc/systemd/system/web.service"},
		[]service.Watch{{Path: "/etc/systemd/system/web.service", Run: []string{"true"}}}, silent, fakeHost{})
	if err != nil {
		t.Fatal(err)
	}
	if !effect.Reload || len(effect.Touches) > 0 {
		t.Errorf("got %+v", effect)
	}
}

func TestBadWatch(t *testing.T) {
	for _, test := range []struct {
		watch service.Watch
		want  string
	}{
		{service.Watch{Path: "etc/x", Unit: "a.service"}, "not absolute"},
		{service.Watch{Path: "/etc/x"}, "exactly one of unit and run"},
		{service.Watch{Path: "/etc/x", Unit: "a.service", Run: []string{"b"}}, "exactly one of unit and run"},
		{service.Watch{Path: "/etc//x", Unit: "a.service"}, "empty element"},
		{service.Watch{Path: "/etc/x**", Unit: "a.service"}, "not a whole path element"},
		{service.Watch{Path: "/etc/{A}", Unit: "a.service"}, "no name for a capture"},
		{service.Watch{Path: "/etc/{path}", Unit: "a.service"}, "no name for a capture"},
		{service.Watch{Path: "/{a}/{a}", Unit: "a.service"}, "occurs twice"},
		{service.Watch{Path: "/etc/{a}", Unit: "{b}.service"}, "{b} in \"{b}.service\" is not in path"},
		{service.Watch{Path: "/etc/x", Unit: "{path}.service"}, "is not in path"},
		{service.Watch{Path: "/etc/x", Unit: "caddy"}, "no unit name"},
		{service.Watch{Path: "/etc/x", Run: []string{""}}, "no program"},
	} {
		err := test.watch.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got %v, want %q", test.watch, err, test.want)
		}
		if _, err := service.Of(nil, []service.Watch{test.watch}, silent, fakeHost{}); err == nil {
			t.Errorf("%+v: Of takes it", test.watch)
		}
	}
}

func TestWatchThatMakesNoUnitName(t *testing.T) {
	effect, err := service.Of([]string{"/etc/app/my app", "/etc/app/ok"},
		[]service.Watch{{Path: "/etc/app/{name}", Unit: "app@{name}.service"}}, silent, fakeHost{})
	if err == nil || !strings.Contains(err.Error(), "/etc/app/my app") {
		t.Errorf("got error %v, want one that names the path", err)
	}
	if got, want := describe(effect), "restart app@ok.service"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReasonsAreSortedAndUnique(t *testing.T) {
	changed := []string{
		"/etc/systemd/system/web.service.d/b.conf", "/etc/systemd/system/a.service", "/etc/systemd/system/web.service",
		"/etc/systemd/system/web.service.d/b.conf",
	}
	want := []service.Touch{
		{Unit: "a.service", Action: service.Restart, Reasons: []string{"/etc/systemd/system/a.service"}},
		{Unit: "web.service", Action: service.Restart, Reasons: []string{"/etc/systemd/system/web.service", "/etc/systemd/system/web.service.d/b.conf"}},
	}
	for range 2 {
		effect, err := service.Of(changed, nil, silent, fakeHost{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, effect.Touches, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		slices.Reverse(changed)
	}
}

func TestCommandArgs(t *testing.T) {
	command := service.Command{Argv: []string{"systemd-sysctl"}, Files: []string{"/etc/sysctl.d/a.conf", "/etc/sysctl.d/gone.conf"}}
	got := command.Args(func(path string) bool { return path != "/etc/sysctl.d/gone.conf" })
	if diff := cmp.Diff([]string{"systemd-sysctl", "/etc/sysctl.d/a.conf"}, got); diff != "" {
		t.Error(diff)
	}
	// Without files these programs would work through all of the host's.
	if got := command.Args(func(string) bool { return false }); got != nil {
		t.Errorf("got %q for files that are all gone", got)
	}
}

func FuzzOf(f *testing.F) {
	f.Add("/etc/systemd/system/web@a.service.d/x.conf", "/etc/{a}/**", "{a}@b.service")
	f.Add("/etc/containers/systemd/.d/x", "/**", "x.service")
	f.Add("/etc/local/environment/.env", "/{a}{b}", "{a}.{b}")
	f.Fuzz(func(t *testing.T, path, glob, unit string) {
		watch := service.Watch{Path: glob, Unit: unit}
		var watches []service.Watch
		if watch.Validate() == nil {
			watches = append(watches, watch)
		}
		host := fakeHost{units: []string{"web@1.service"}}
		first, _ := service.Of([]string{path}, watches, silent, host)
		second, _ := service.Of([]string{path}, watches, silent, host)
		if diff := cmp.Diff(first, second); diff != "" {
			t.Error(diff)
		}
	})
}

// What more paths ask for is done once, and as the first of them was decided.
func TestAdd(t *testing.T) {
	host := fakeHost{units: []string{"web.service", "db.service"}}
	of := func(paths ...string) service.Effect {
		effect, err := service.Of(paths, []service.Watch{{Path: "/etc/db/*", Unit: "db.service"}, {Path: "/etc/web/*", Run: []string{"check", "web"}}}, silent, host)
		if err != nil {
			t.Fatal(err)
		}
		return effect
	}
	first := []string{"/etc/systemd/system/web.service", "/etc/web/a", "/etc/sysctl.d/a.conf", "/etc/systemd/system/reconf-pull.timer"}
	second := []string{"/etc/db/a", "/etc/web/b", "/etc/sysctl.d/b.conf", "/etc/systemd/system/web.service.d/x.conf", "/etc/tmpfiles.d/c.conf"}
	got := of(first...)
	for range 2 {
		got.Add(of(second...))
	}
	order := cmpopts.SortSlices(func(a, b service.Command) bool { return strings.Join(a.Argv, " ") < strings.Join(b.Argv, " ") })
	if diff := cmp.Diff(of(append(first, second...)...), got, order); diff != "" {
		t.Errorf("(-together +added):\n%s", diff)
	}
}
