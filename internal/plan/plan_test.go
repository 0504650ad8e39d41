package plan_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// world is a root, what was written to it last and what is wanted of it. Each
// is said in lines:
//
//	file[:mode] PATH [contents]   dir[:mode] PATH   link PATH TARGET   hard PATH TARGET   fifo PATH
//
// A line of the manifest begins with the origin. What is wanted may also be
// touch[:mode] PATH (no contents), append PATH TAIL, unit NAME WORD…, where a
// word is mask, unmask, enabled, disabled or contents with _ for blanks.
type world struct {
	t  *testing.T
	in plan.Input
}

func newWorld(t *testing.T, manifest, onDisk, wanted string) *world {
	t.Helper()
	h := host.New(t.TempDir())
	w := &world{t: t, in: plan.Input{
		Host: h, Accounts: &host.Accounts{Host: h, Runner: run.Host{}}, Contents: &contents.Opener{MaxFile: 1 << 20},
		Services: services{}, Pristine: state.Pristine{Dir: t.TempDir()}, Manifest: &state.Manifest{},
		Settings: plan.Settings{OnConflict: "replace", Protected: []string{"/var/lib/reconf-pull"}, Own: []string{"/etc/reconf-pull"}},
	}}
	w.disk(onDisk)
	w.manifest(manifest)
	w.want(wanted)
	return w
}

// services are unit file states by name.
type services map[string]string

func (s services) Exists(unit string) bool       { return s[unit] != "" }
func (s services) Instances(string) []string     { return nil }
func (s services) Triggers(unit string) []string { return nil }
func (s services) OnChange(string) string        { return "" }
func (s services) UnitFileState(_ context.Context, unit string) (string, error) {
	return s[unit], nil
}

func lines(text string) [][]string {
	var all [][]string
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 {
			all = append(all, words)
		}
	}
	return all
}

func sum(data string) string {
	s := sha256.Sum256([]byte(data))
	return hex.EncodeToString(s[:])
}

// parse is a line as a node and its contents; owners are whoever runs the test.
func parse(words []string) (string, disk.Node, string) {
	kind, octal, said := strings.Cut(words[0], ":")
	rest := strings.Join(words[min(2, len(words)):], " ")
	n := disk.Node{UID: os.Getuid(), GID: os.Getgid()}
	switch kind {
	case "file", "touch", "append":
		n.Kind, n.Mode = disk.File, 0o644
		if kind == "file" {
			n.SHA256, n.Size = sum(rest), int64(len(rest))
		}
	case "dir":
		n.Kind, n.Mode = disk.Directory, 0o755
	case "link":
		n.Kind, n.Target = disk.Link, rest
	case "hard":
		n.Kind, n.Target = disk.HardLink, rest
	case "fifo":
		n.Kind = disk.Other
	case "absent":
	default:
		panic("unknown kind " + kind)
	}
	if said {
		mode, err := strconv.ParseUint(octal, 8, 32)
		if err != nil {
			panic(err)
		}
		n.Mode = uint32(mode)
	}
	return words[1], n, rest
}

func (w *world) real(path string) string {
	w.t.Helper()
	real, err := w.in.Host.Path(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return real
}

func (w *world) disk(text string) {
	w.t.Helper()
	for _, words := range lines(text) {
		path, n, data := parse(words)
		real := w.real(path)
		err := os.MkdirAll(filepath.Dir(real), 0o755)
		switch n.Kind {
		case disk.File:
			err = errors.Join(err, os.WriteFile(real, []byte(data), 0o600), unix.Chmod(real, n.Mode))
		case disk.Directory:
			err = errors.Join(err, os.MkdirAll(real, 0o755), unix.Chmod(real, n.Mode))
		case disk.Link:
			err = errors.Join(err, os.Symlink(data, real))
		case disk.HardLink:
			err = errors.Join(err, os.Link(w.real(data), real))
		case disk.Other:
			err = errors.Join(err, unix.Mkfifo(real, 0o600))
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) manifest(text string) {
	for _, words := range lines(text) {
		if words[0] == "unit" {
			u := state.UnitEntry{Name: words[1], Enabled: words[2] == "enabled"}
			if len(words) > 3 {
				u.Before = words[3]
			}
			w.in.Manifest.Units = append(w.in.Manifest.Units, u)
			continue
		}
		path, n, _ := parse(words[1:])
		w.in.Manifest.Entries = append(w.in.Manifest.Entries, state.Entry{Path: path, Node: n, Origin: state.Origin(words[0])})
	}
}

// attempt is a change that did not end: every second line is what it found,
// the other what it wrote.
func (w *world) attempt(text string) {
	all := lines(text)
	var a plan.Attempt
	for i := 0; i < len(all); i += 2 {
		path, before, _ := parse(all[i])
		_, after, _ := parse(all[i+1])
		a.Items = append(a.Items, plan.Item{Path: path, Before: before, After: after, Origin: state.Created, Write: true})
	}
	w.in.Attempts = append(w.in.Attempts, a)
}

func (w *world) want(text string) {
	me, group := desired.Owner{ID: os.Getuid()}, desired.Owner{ID: os.Getgid()}
	d := &w.in.Desired
	for n, words := range lines(text) {
		at := finding.Position{File: "web1.bu", Line: n + 1}
		if words[0] == "unit" {
			d.Units = append(d.Units, unit(words[1], words[2:], at))
			continue
		}
		path, node, data := parse(words)
		kind, _, said := strings.Cut(words[0], ":")
		switch kind {
		case "file":
			d.Files = append(d.Files, desired.File{Path: path, Mode: node.Mode, User: me, Group: group, Contents: &desired.Content{Inline: []byte(data)}, Position: at})
		case "touch":
			d.Files = append(d.Files, desired.File{Path: path, Mode: node.Mode, User: me, Group: group, Unsaid: desired.Unsaid{Mode: !said}, Position: at})
		case "append":
			d.Files = append(d.Files, desired.File{Path: path, Mode: node.Mode, User: me, Group: group, Append: []desired.Content{{Inline: []byte(data)}},
				Unsaid: desired.Unsaid{Mode: !said, User: true, Group: true}, Position: at})
		case "dir":
			d.Directories = append(d.Directories, desired.Directory{Path: path, Mode: node.Mode, User: me, Group: group, Position: at})
		case "link", "hard":
			d.Links = append(d.Links, desired.Link{Path: path, Target: data, Hard: kind == "hard", User: me, Group: group, Position: at})
		}
	}
}

func unit(name string, words []string, at finding.Position) desired.Unit {
	u := desired.Unit{Name: name, Position: at}
	flag := func(b bool) *bool { return &b }
	for _, word := range words {
		switch word {
		case "mask", "unmask":
			u.Mask = flag(word == "mask")
		case "enabled", "disabled":
			u.Enabled = flag(word == "enabled")
		default:
			text := strings.NewReplacer("_", " ", ";", "\n").Replace(word)
			u.Contents = &text
		}
	}
	return u
}

// show is a plan in lines: what happens to each path and unit, then, after
// "--", what is managed afterwards.
func (w *world) show() string {
	w.t.Helper()
	p, err := plan.Make(w.t.Context(), w.in)
	var refused *plan.RefusedError
	var failure *finding.Failure
	switch {
	case errors.As(err, &failure):
		var b strings.Builder
		for _, f := range failure.Findings {
			fmt.Fprintf(&b, "%s: %s\n", f.Position, f.Message)
		}
		return b.String()
	case errors.As(err, &refused):
		return "refused: " + refused.Reason + "\n"
	case err != nil:
		w.t.Fatal(err)
	}
	var b strings.Builder
	for i := range p.Items {
		item := &p.Items[i]
		fmt.Fprintf(&b, "%s %s", item.Action, item.Path)
		if item.Write {
			b.WriteString(" write")
		}
		if item.Pristine != nil {
			b.WriteString(" pristine")
			if item.Pristine.Bytes >= 0 {
				fmt.Fprintf(&b, "=%d", item.Pristine.Bytes)
			}
		}
		if item.Note != "" {
			b.WriteString(" # " + item.Note)
		}
		b.WriteByte('\n')
	}
	for _, u := range p.Units {
		word := "disable"
		if u.Enable {
			word = "enable"
		}
		if u.Again {
			word = "re-enable"
		}
		fmt.Fprintf(&b, "%s %s # %s\n", word, u.Name, u.Reason)
	}
	for _, name := range p.Stopped {
		fmt.Fprintf(&b, "stop %s\n", name)
	}
	for _, f := range p.Findings {
		fmt.Fprintf(&b, "%s: %s\n", f.Severity, f.Message)
	}
	b.WriteString("--\n")
	for _, e := range p.Manifest.Entries {
		kind := e.Kind
		if kind == disk.Absent {
			kind = "absent"
		}
		fmt.Fprintf(&b, "%s %s %s\n", e.Origin, kind, e.Path)
	}
	for _, u := range p.Manifest.Units {
		fmt.Fprintf(&b, "unit %s %v before=%s\n", u.Name, u.Enabled, u.Before)
	}
	return b.String()
}

// planCase is one row; pristine has lines as the disk has.
type planCase struct {
	name                             string
	manifest, disk, wanted, pristine string
	set                              func(w *world)
	result                           string
}

func (c planCase) run(t *testing.T) {
	w := newWorld(t, c.manifest, c.disk, c.wanted)
	for _, words := range lines(c.pristine) {
		path, n, data := parse(words)
		if err := w.in.Pristine.Keep(path, n, strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if c.set != nil {
		c.set(w)
	}
	before := snapshot(t, w.in.Host.Root)
	got := w.show()
	var want strings.Builder
	for line := range strings.Lines(c.result) {
		if line = strings.TrimSpace(line); line != "" {
			want.WriteString(line + "\n")
		}
	}
	if diff := cmp.Diff(want.String(), got); diff != "" {
		t.Errorf("plan differs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, snapshot(t, w.in.Host.Root)); diff != "" {
		t.Errorf("making a plan changed the disk:\n%s", diff)
	}
}

func snapshot(t *testing.T, root string) map[string]disk.Node {
	t.Helper()
	all := map[string]disk.Node{}
	files := fsat.New("/")
	defer files.Forget()
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		found, err := files.Read(t.Context(), p, fsat.Most)
		all[p] = found.Node
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func correct(w *world) { w.in.Settings.CorrectDrift = true }

// TestThreeWay has every row of the table in spec/apply.md.
func TestThreeWay(t *testing.T) {
	const drifted, conflicted = "changed on the host, not in the repo", "changed on the host too; the local version is kept with the generation"
	for _, c := range []planCase{
		{name: "create", wanted: "file /etc/a v1\ndir /srv/d\nlink /etc/l a\nhard /etc/h /etc/a", disk: "dir /etc\ndir /srv", result: `
			create /etc/a write
			create /etc/h write
			create /etc/l write
			create /srv/d write
			--
			created file /etc/a
			created hardlink /etc/h
			created link /etc/l
			created directory /srv/d`},
		{name: "parents are made", wanted: "file /a/b/c v1", result: `
			create /a write
			create /a/b write
			create /a/b/c write
			--
			parent directory /a
			parent directory /a/b
			created file /a/b/c`},
		{name: "adopt what is equal", wanted: "file /etc/a v1\ndir /etc/d\nlink /etc/l a\nhard /etc/h /etc/a",
			disk: "file /etc/a v1\ndir /etc/d\nlink /etc/l a\nhard /etc/h /etc/a", result: `
			adopt /etc/a
			adopt /etc/d
			adopt /etc/h
			adopt /etc/l
			--
			foreign file /etc/a
			foreign directory /etc/d
			foreign hardlink /etc/h
			foreign link /etc/l`},
		{name: "adopt what Ignition made, but not the vendor's", wanted: "file /etc/a v1\nfile /etc/v v1\nfile /etc/f v1",
			disk: "file /etc/a v1\nfile /etc/v v1\nfile /etc/f v1\nfile /etc/.ignition-result.json\nfile /usr/etc/v v0\nfile /usr/share/factory/etc/f v0", result: `
			adopt /etc/a
			adopt /etc/f
			adopt /etc/v
			--
			provisioned file /etc/a
			foreign file /etc/f
			foreign file /etc/v`},
		{name: "adopt and replace, whatever Ignition made", wanted: "file /etc/a v1\ndir:0700 /etc/d\nlink /etc/l b\nfile /etc/m v1",
			disk: "file /etc/a v0\ndir /etc/d\nlink /etc/l a\nfile:0600 /etc/m v1\nfile /etc/.ignition-result.json", result: `
			adopt /etc/a write pristine
			adopt /etc/d write pristine
			adopt /etc/l write pristine
			adopt /etc/m write pristine
			--
			foreign file /etc/a
			foreign directory /etc/d
			foreign link /etc/l
			foreign file /etc/m`},
		{name: "pristine is never taken twice", wanted: "file /etc/a v1", disk: "file /etc/a v0", pristine: "file /etc/a vv", result: `
			adopt /etc/a write
			--
			foreign file /etc/a`},
		{name: "nothing to do", manifest: "created file /etc/a v1", disk: "file /etc/a v1", wanted: "file /etc/a v1", result: `
			--
			created file /etc/a`},
		{name: "update", manifest: "created file /etc/a v1\ncreated dir /etc/d\nprovisioned link /etc/l x", disk: "file /etc/a v1\ndir /etc/d\nlink /etc/l x",
			wanted: "file /etc/a v2\ndir:0700 /etc/d\nlink /etc/l y", result: `
			update /etc/a write
			update /etc/d write
			update /etc/l write
			--
			created file /etc/a
			created directory /etc/d
			provisioned link /etc/l`},
		{name: "update of what was there keeps it first", manifest: "foreign file /etc/a v1", disk: "file /etc/a v1", wanted: "file /etc/a v2", result: `
			update /etc/a write pristine
			--
			foreign file /etc/a`},
		{name: "record", manifest: "created file /etc/a v1", disk: "file /etc/a v2", wanted: "file /etc/a v2", result: `
			record /etc/a
			--
			created file /etc/a`},
		{name: "drift", manifest: "created file /etc/a v1\ncreated file /etc/b v1", disk: "file:0600 /etc/a v1", wanted: "file /etc/a v1\nfile /etc/b v1", result: `
			drift /etc/a # ` + drifted + `
			drift /etc/b # ` + drifted + `
			--
			created file /etc/a
			created file /etc/b`},
		{name: "drift corrected", manifest: "created file /etc/a v1\ncreated file /etc/b v1", disk: "file /etc/a x", wanted: "file /etc/a v1\nfile /etc/b v1", set: correct, result: `
			drift /etc/a write
			drift /etc/b write
			--
			created file /etc/a
			created file /etc/b`},
		{name: "drifted directory that a new path needs", manifest: "created dir /srv/d\ncreated dir /srv/d/e", disk: "dir /srv", wanted: "dir /srv/d\ndir /srv/d/e\nfile /srv/d/e/f v1", result: `
			drift /srv/d write # removed on the host, and a path of this config is to lie in it
			drift /srv/d/e write # removed on the host, and a path of this config is to lie in it
			create /srv/d/e/f write
			--
			created directory /srv/d
			created directory /srv/d/e
			created file /srv/d/e/f`},
		{name: "conflict replaced", manifest: "created file /etc/a v1", disk: "file /etc/a mine", wanted: "file /etc/a v2", result: `
			conflict /etc/a write # ` + conflicted + `
			--
			created file /etc/a`},
		{name: "conflict kept", manifest: "created file /etc/a v1", disk: "file /etc/a mine", wanted: "file /etc/a v2",
			set: func(w *world) { w.in.Settings.OnConflict = "keep" }, result: `
			conflict /etc/a # changed on the host too; left as it is (apply.on_conflict)
			--
			created file /etc/a`},
		{name: "conflict refused", manifest: "created file /etc/a v1", disk: "file /etc/a mine", wanted: "file /etc/a v2",
			set: func(w *world) { w.in.Settings.OnConflict = "fail" }, result: `
			web1.bu:1: /etc/a was changed on the host and in the repo (apply.on_conflict = "fail")`},
		{name: "remove ours", manifest: "created file /etc/a v1\nprovisioned link /etc/l x\ncreated hard /etc/h /etc/a\nparent dir /p\ncreated dir /p/d\ncreated file /p/d/f v1",
			disk: "file /etc/a v1\nlink /etc/l x\nhard /etc/h /etc/a\nfile /p/d/f v1", result: `
			remove /etc/a write
			remove /etc/h write
			remove /etc/l write
			remove /p write
			remove /p/d write
			remove /p/d/f write
			--`},
		{name: "foreign comes back from the pristine copy", manifest: "foreign file /etc/a v1\nforeign file /etc/l v1\nforeign dir:0700 /etc/d",
			disk: "file /etc/a v1\nfile /etc/l v1\ndir:0700 /etc/d", pristine: "file:0600 /etc/a v0\nlink /etc/l x\ndir /etc/d", result: `
			restore /etc/a write
			restore /etc/d write
			restore /etc/l write
			--`},
		{name: "foreign comes back from the vendor, or stays", manifest: "foreign file /etc/a v1\nforeign file /etc/b v1\nforeign dir /etc/c",
			disk: "file /etc/a v1\nfile /etc/b v1\ndir /etc/c\nfile /usr/etc/a v0", result: `
			restore /etc/a write # from /usr/etc/a
			keep /etc/b # it was there before and no copy of that is known
			keep /etc/c # it was there before and no copy of that is known
			--`},
		{name: "foreign that is already as before", manifest: "foreign file /etc/a v1", disk: "file /etc/a v1", pristine: "file /etc/a v1", result: `
			keep /etc/a # as it was before
			--`},
		{name: "changed ones stay", manifest: "created file /etc/a v1\nforeign file /etc/b v1\ncreated link /etc/l x\ncreated file /etc/gone v1",
			disk: "file /etc/a mine\nfile /etc/b mine\nlink /etc/l mine", result: `
			keep /etc/a # changed on the host since it was written
			keep /etc/b # changed on the host since it was written
			keep /etc/l # changed on the host since it was written
			--`},
		{name: "prune_modified", manifest: "created file /etc/a v1\nforeign file /etc/b v1\ncreated file /etc/pipe v1", disk: "file /etc/a mine\nfile /etc/b mine\nfifo /etc/pipe",
			pristine: "file /etc/b v0", set: func(w *world) { w.in.Settings.PruneModified = true }, result: `
			remove /etc/a write
			restore /etc/b write
			keep /etc/pipe # it is a device, a socket or a pipe now
			--`},
		{name: "a directory with something of somebody else", manifest: "parent dir /p\ncreated dir /p/d\ncreated file /p/d/f v1", disk: "file /p/d/f v1\nfile /p/d/mine x", result: `
			keep /p # not empty, it holds d
			keep /p/d # not empty, it holds mine
			remove /p/d/f write
			--`},
		{name: "a directory that is still needed becomes a parent", manifest: "created dir:0700 /p\ncreated file /p/f v1", disk: "dir:0700 /p\nfile /p/f v1", wanted: "file /p/f v1", result: `
			--
			parent directory /p
			created file /p/f`},
		{name: "a parent that is asked for by name", manifest: "parent dir /p\ncreated file /p/f v1", disk: "dir /p\nfile /p/f v1", wanted: "dir /p\nfile /p/f v1", result: `
			--
			created directory /p
			created file /p/f`},
		{name: "own files are never pruned", manifest: "created file /etc/reconf-pull/config.toml v1\ncreated file /etc/systemd/system/reconf-pull.service v1\ncreated file /etc/systemd/system/reconf-pull.timer.d/a.conf v1",
			disk: "file /etc/reconf-pull/config.toml v1\nfile /etc/systemd/system/reconf-pull.service v1\nfile /etc/systemd/system/reconf-pull.timer.d/a.conf v1", result: `
			keep /etc/reconf-pull/config.toml # reconf-pull does not remove its own files
			keep /etc/systemd/system/reconf-pull.service # reconf-pull does not remove its own files
			keep /etc/systemd/system/reconf-pull.timer.d/a.conf # reconf-pull does not remove its own files
			--`},
	} {
		t.Run(c.name, c.run)
	}
}

func TestFileWithoutContents(t *testing.T) {
	for _, c := range []planCase{
		{name: "created empty", disk: "dir /etc", wanted: "touch /etc/a", result: "create /etc/a write\n--\ncreated file /etc/a"},
		{name: "contents and unsaid mode left alone", disk: "file:0600 /etc/a x", wanted: "touch /etc/a", result: "adopt /etc/a\n--\nforeign file /etc/a"},
		{name: "a mode that is said", disk: "file:0600 /etc/a x", wanted: "touch:0640 /etc/a", result: "adopt /etc/a write pristine\n--\nforeign file /etc/a"},
		{name: "filled since", manifest: "created touch /etc/a", disk: "file /etc/a x", wanted: "touch /etc/a", result: "--\ncreated file /etc/a"},
		{name: "leaves empty", manifest: "created touch /etc/a", disk: "file /etc/a", result: "remove /etc/a write\n--"},
		{name: "leaves with what somebody put into it", manifest: "created touch /etc/a", disk: "file /etc/a x", result: "keep /etc/a # its contents are not of the config\n--"},
	} {
		t.Run(c.name, c.run)
	}
}

func TestKindChanges(t *testing.T) {
	for _, c := range []planCase{
		{name: "file to directory with a file in it", manifest: "created file /etc/x v1", disk: "file /etc/x v1", wanted: "dir /etc/x\nfile /etc/x/y v1", result: `
			update /etc/x write
			create /etc/x/y write
			--
			created directory /etc/x
			created file /etc/x/y`},
		{name: "file to implied directory", manifest: "created file /etc/x v1", disk: "file /etc/x v1", wanted: "file /etc/x/y v1", result: `
			update /etc/x write
			create /etc/x/y write
			--
			parent directory /etc/x
			created file /etc/x/y`},
		{name: "link to directory: what the link leads to is not looked at", manifest: "created link /etc/x /srv", disk: "link /etc/x /srv\nfile /srv/y v1", wanted: "dir /etc/x\nfile /etc/x/y v1", result: `
			update /etc/x write
			create /etc/x/y write
			--
			created directory /etc/x
			created file /etc/x/y`},
		{name: "link to implied directory", manifest: "created link /etc/x /srv", disk: "link /etc/x /srv\nfile /srv/y v1", wanted: "file /etc/x/y v1", result: `
			update /etc/x write
			create /etc/x/y write
			--
			parent directory /etc/x
			created file /etc/x/y`},
		{name: "directory to link", manifest: "created dir /etc/x\ncreated file /etc/x/y v1", disk: "file /etc/x/y v1", wanted: "link /etc/x /srv", result: `
			update /etc/x write
			remove /etc/x/y write
			--
			created link /etc/x`},
		{name: "directory that the admin already made the same link", manifest: "created dir /etc/x\ncreated file /etc/x/y v1", disk: "file /srv/y v1\ndir /etc\nlink /etc/x /srv", wanted: "link /etc/x /srv", result: `
			record /etc/x
			--
			created link /etc/x`},
		{name: "directory with foreign files", manifest: "created dir /etc/x\ncreated file /etc/x/y v1", disk: "file /etc/x/y v1\nfile /etc/x/mine x", wanted: "file /etc/x v1", result: `
			web1.bu:1: /etc/x is a directory on this host and holds mine, which is not of this config: move it away, a file is to stand there`},
		{name: "a pipe", disk: "fifo /etc/x", wanted: "file /etc/x v1", result: `
			web1.bu:1: /etc/x is a device, a socket or a pipe on this host: reconf-pull does not replace it`},
		{name: "a file of somebody else where a directory has to be", disk: "file /etc/x v1", wanted: "file /etc/x/y v1", result: `
			web1.bu:1: /etc/x is a file on this host, and a path of this config is to lie in it`},
		{name: "below a link of the host", disk: "link /etc/x ../srv\ndir /srv", wanted: "file /etc/x/y v1", result: `
			create /etc/x/y write
			--
			created file /etc/x/y`},
		{name: "below a link to nowhere", disk: "link /etc/x ../srv", wanted: "file /etc/x/y v1", result: `
			web1.bu:1: /etc/x is a link on this host that leads to no directory, and a path of this config is to lie in it`},
		{name: "below a parent that the admin made a link", manifest: "parent dir /etc/x\ncreated file /etc/x/y v1", disk: "dir /etc\nlink /etc/x ../srv\nfile /srv/y v1", wanted: "file /etc/x/y v1\nfile /etc/x/z v1", result: `
			keep /etc/x # changed on the host since it was written
			create /etc/x/z write
			--
			created file /etc/x/y
			created file /etc/x/z`},
	} {
		t.Run(c.name, c.run)
	}
}

// TestAttempts: what an attempt wrote or found counts as base, whichever of
// the two the disk has (design, rule 5).
func TestAttempts(t *testing.T) {
	const before, after = "file /etc/a v1", "file /etc/a v2"
	for _, onDisk := range []string{before, after} {
		halfway := func(w *world) { w.attempt(before + "\n" + after) }
		for _, c := range []planCase{
			{name: "back", wanted: before, result: "update /etc/a write\n--\ncreated file /etc/a"},
			{name: "on", wanted: "file /etc/a v3", result: "update /etc/a write\n--\ncreated file /etc/a"},
			{name: "away", result: "remove /etc/a write\n--"},
		} {
			if c.name == "back" && onDisk == before {
				c.result = "--\ncreated file /etc/a"
			}
			c.manifest, c.disk, c.set = "created "+before, onDisk, halfway
			t.Run("updated "+c.name+" from "+onDisk, c.run)
		}
	}
	for _, c := range []planCase{
		{name: "created and not wanted", disk: "file /etc/b v2", set: func(w *world) { w.attempt("absent /etc/b\nfile /etc/b v2") }, result: "remove /etc/b write\n--"},
		{name: "not yet created and not wanted", disk: "dir /etc", set: func(w *world) { w.attempt("absent /etc/b\nfile /etc/b v2") }, result: "--"},
		{name: "created and wanted otherwise", disk: "file /etc/b v2", wanted: "file /etc/b v3", set: func(w *world) { w.attempt("absent /etc/b\nfile /etc/b v2") },
			result: "update /etc/b write\n--\ncreated file /etc/b"},
		{name: "removed and wanted", manifest: "created file /etc/a v1", disk: "dir /etc", wanted: "file /etc/a v1", set: func(w *world) { w.attempt("file /etc/a v1\nabsent /etc/a") },
			result: "update /etc/a write\n--\ncreated file /etc/a"},
		{name: "changed by the admin since", manifest: "created file /etc/a v1", disk: "file /etc/a mine", wanted: "file /etc/a v3", set: func(w *world) { w.attempt("file /etc/a v1\nfile /etc/a v2") },
			result: "conflict /etc/a write # changed on the host too; the local version is kept with the generation\n--\ncreated file /etc/a"},
		{name: "two attempts", manifest: "created file /etc/a v1", disk: "file /etc/a v3", wanted: "file /etc/a v1",
			set: func(w *world) {
				w.attempt("file /etc/a v1\nfile /etc/a v2")
				w.attempt("file /etc/a v2\nfile /etc/a v3")
			}, result: "update /etc/a write\n--\ncreated file /etc/a"},
		{name: "a directory that became a link half way", manifest: "created dir /etc/x\ncreated file /etc/x/y v1", disk: "dir /etc\nlink /etc/x /srv\nfile /srv/y v1", wanted: "dir /etc/x\nfile /etc/x/y v1",
			set:    func(w *world) { w.attempt("dir /etc/x\nlink /etc/x /srv\nfile /etc/x/y v1\nabsent /etc/x/y") },
			result: "update /etc/x write\nupdate /etc/x/y write\n--\ncreated directory /etc/x\ncreated file /etc/x/y"},
		{name: "a unit that it enabled", set: func(w *world) {
			w.in.Services = services{"sshd.socket": "enabled"}
			w.in.Attempts = []plan.Attempt{{Units: []state.UnitEntry{{Name: "sshd.socket", Enabled: true, Before: "disabled"}}}}
		}, result: "disable sshd.socket # it leaves the config, as it was before\n--"},
	} {
		t.Run(c.name, c.run)
	}
}

func TestRefused(t *testing.T) {
	long := "/etc/" + strings.Repeat("x", 256)
	for _, c := range []planCase{
		{name: "kernel", wanted: "file /proc/sys/a v\ndir /sys\nlink /dev/x y\nfile /development v", result: `
			web1.bu:3: /dev/x lies below /dev, which the kernel makes anew at every boot
			web1.bu:1: /proc/sys/a lies below /proc, which the kernel makes anew at every boot
			web1.bu:2: /sys lies below /sys, which the kernel makes anew at every boot`},
		{name: "kernel through a link", disk: "dir /proc/sys\nlink /etc/p ../proc", wanted: "file /etc/p/x v", result: `
			web1.bu:1: /etc/p/x lies below /proc, which the kernel makes anew at every boot`},
		{name: "own state", wanted: "file /var/lib/reconf-pull/state.json v\ndir /var/lib/reconf-pull\ndir /var/lib/reconf-pull2", result: `
			web1.bu:2: /var/lib/reconf-pull lies below /var/lib/reconf-pull, where reconf-pull keeps its own state
			web1.bu:1: /var/lib/reconf-pull/state.json lies below /var/lib/reconf-pull, where reconf-pull keeps its own state`},
		{name: "own state through a link", disk: "dir /var/lib/reconf-pull\nlink /lib2 var/lib", wanted: "file /lib2/reconf-pull/state.json v", result: `
			web1.bu:1: /lib2/reconf-pull/state.json lies below /var/lib/reconf-pull, where reconf-pull keeps its own state`},
		{name: "below a link of the config", wanted: "link /etc/l /srv\nfile /etc/l/x v", result: `
			web1.bu:2: /etc/l/x lies below /etc/l, which is a link of this config (web1.bu:1)`},
		{name: "one file by two ways", disk: "dir /srv/d\nlink /etc/l /srv/d", wanted: "file /etc/l/x v\nfile /srv/d/x v", result: `
			web1.bu:2: /srv/d/x and /etc/l/x (web1.bu:1) are one file on this host: a parent of one of them is a link`},
		{name: "one file by two ways in a directory to be", disk: "dir /srv\nlink /etc/l /srv", wanted: "file /etc/l/new/x v\nfile /srv/new/x v", result: `
			web1.bu:2: /srv/new/x and /etc/l/new/x (web1.bu:1) are one file on this host: a parent of one of them is a link`},
		{name: "a name that is too long", wanted: "file " + long + " v", result: "web1.bu:1: " + long + " has a name of more than 255 bytes, which no file system takes"},
		{name: "hard links", disk: "dir /etc/d\nlink /etc/l x", wanted: "hard /etc/h1 /etc/none\nhard /etc/h2 /etc/d\nhard /etc/h3 /etc/l\nhard /etc/h4 /etc/dd\ndir /etc/dd", result: `
			web1.bu:1: /etc/h1 is to be a hard link to /etc/none, which is not a file on this host and not in this config
			web1.bu:2: /etc/h2 is to be a hard link to /etc/d, which is not a file on this host and not in this config
			web1.bu:3: /etc/h3 is to be a hard link to /etc/l, which is not a file on this host and not in this config
			web1.bu:4: /etc/h4 is to be a hard link to /etc/dd, which is not a file on this host and not in this config`},
		{name: "hard links in a ring", wanted: "hard /etc/a /etc/b\nhard /etc/b /etc/a", result: `
			web1.bu:1: /etc/a is to be a hard link to /etc/b, which is not a file on this host and not in this config
			web1.bu:2: /etc/b is to be a hard link to /etc/a, which is not a file on this host and not in this config`},
		{name: "a hard link to a hard link", disk: "dir /etc", wanted: "file /etc/c v\nhard /etc/a /etc/b\nhard /etc/b /etc/c", result: `
			create /etc/a write
			create /etc/b write
			create /etc/c write
			--
			created hardlink /etc/a
			created hardlink /etc/b
			created file /etc/c`},
	} {
		t.Run(c.name, c.run)
	}
}

func TestMassRemoval(t *testing.T) {
	var manifest, onDisk strings.Builder
	for n := range 21 {
		fmt.Fprintf(&manifest, "created file /etc/%02d v\n", n)
		fmt.Fprintf(&onDisk, "file /etc/%02d v\n", n)
	}
	kept := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "file /etc/%02d v\n", i)
		}
		return b.String()
	}
	for _, c := range []struct {
		name    string
		kept    int
		allow   bool
		refused bool
	}{
		{"11 of 21", 10, false, true},
		{"10 of 21", 11, false, false},
		{"all, allowed", 0, true, false},
	} {
		w := newWorld(t, manifest.String(), onDisk.String(), kept(c.kept))
		w.in.Settings.AllowMassRemoval = c.allow
		if got := w.show(); strings.HasPrefix(got, "refused: ") != c.refused {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestAppend(t *testing.T) {
	for _, c := range []planCase{
		{name: "to nothing", disk: "dir /etc", wanted: "append /etc/a tail", result: "create /etc/a write\n--\ncreated file /etc/a"},
		{name: "to what is there", disk: "file:0600 /etc/a head", wanted: "append /etc/a tail", result: "adopt /etc/a write pristine\n--\nforeign file /etc/a"},
		{name: "that Ignition did", disk: "file /etc/a headtail", wanted: "append /etc/a tail", result: "adopt /etc/a pristine=4\n--\nforeign file /etc/a"},
		{name: "again", manifest: "foreign file /etc/a headtail", disk: "file /etc/a headtail", pristine: "file /etc/a head", wanted: "append /etc/a tail", result: "--\nforeign file /etc/a"},
		{name: "something else", manifest: "foreign file /etc/a headtail", disk: "file /etc/a headtail", pristine: "file /etc/a head", wanted: "append /etc/a feet", result: "update /etc/a write\n--\nforeign file /etc/a"},
	} {
		t.Run(c.name, c.run)
	}
	for _, c := range []struct{ name, disk, manifest, pristine, want string }{
		{"found", "file /etc/a head", "", "", "headtail"},
		{"edited since Ignition", "file /etc/a head mine", "", "", "head minetail"},
		{"edited, the vendor's known", "file /etc/a head mine\nfile /usr/etc/a head", "", "", "headtail"},
		{"from the pristine copy", "file /etc/a oldfeet", "foreign file /etc/a oldfeet", "file /etc/a old", "oldtail"},
		{"nothing before us", "file /etc/a feet", "created file /etc/a feet", "", "tail"},
	} {
		w := newWorld(t, c.manifest, c.disk, "append /etc/a tail")
		for _, words := range lines(c.pristine) {
			path, n, data := parse(words)
			if err := w.in.Pristine.Keep(path, n, strings.NewReader(data)); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.bytes("/etc/a"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Contents and append together are the contents, then what is appended.
func TestContentsAndAppend(t *testing.T) {
	w := newWorld(t, "", "file /etc/a head", "file /etc/a one")
	w.in.Desired.Files[0].Append = []desired.Content{{Inline: []byte("two")}, {Inline: []byte("three")}}
	if got := w.bytes("/etc/a"); got != "onetwothree" {
		t.Errorf("%q", got)
	}
}

// bytes are those that the plan wants at a path.
func (w *world) bytes(path string) string {
	w.t.Helper()
	p, err := plan.Make(w.t.Context(), w.in)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range p.Items {
		if p.Items[i].Path != path {
			continue
		}
		r, err := p.Items[i].Open(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			w.t.Fatal(err)
		}
		if sum(string(data)) != p.Items[i].After.SHA256 || int64(len(data)) != p.Items[i].After.Size {
			w.t.Errorf("%s: the plan says %+v, the bytes are %q", path, p.Items[i].After, data)
		}
		return string(data)
	}
	return ""
}

func TestOwnersByName(t *testing.T) {
	owned := func(user, group string) func(*world) {
		return func(w *world) {
			w.in.Desired.Files[0].User, w.in.Desired.Files[0].Group = desired.Owner{Name: user}, desired.Owner{Name: group}
		}
	}
	const sysusers = "file /etc/a v\nfile /etc/sysusers.d/w.conf u web - web"
	for _, c := range []planCase{
		{name: "of /etc", disk: "file /etc/passwd web:x:7:8::/:/bin/sh\nfile /etc/group wheel:x:10:", wanted: "file /etc/a v", set: owned("web", "wheel"),
			result: "create /etc/a write\n--\ncreated file /etc/a"},
		{name: "of /usr/lib", disk: "dir /etc\nfile /usr/lib/passwd web:x:7:8::/:/bin/sh\nfile /usr/lib/group wheel:x:10:", wanted: "file /etc/a v", set: owned("web", "wheel"),
			result: "create /etc/a write\n--\ncreated file /etc/a"},
		{name: "missing", wanted: "file /etc/a v", set: owned("web", "wheel"), result: `
			web1.bu:1: user web of /etc/a does not exist on this host, and no sysusers.d file of this config declares it
			web1.bu:1: group wheel of /etc/a does not exist on this host, and no sysusers.d file of this config declares it`},
		{name: "declared", disk: "dir /etc/sysusers.d", wanted: sysusers, set: owned("web", "web"), result: `
			create /etc/a write
			create /etc/sysusers.d/w.conf write
			--
			created file /etc/a
			created file /etc/sysusers.d/w.conf`},
		{name: "a group declares no user", wanted: strings.Replace(sysusers, " u ", " g ", 1), set: owned("web", "web"), result: `
			web1.bu:1: user web of /etc/a does not exist on this host, and no sysusers.d file of this config declares it`},
	} {
		t.Run(c.name, c.run)
	}
	w := newWorld(t, "", "", sysusers)
	owned("web", "web")(w)
	p, err := plan.Make(t.Context(), w.in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/etc/sysusers.d/w.conf"}, p.Sysusers); diff != "" {
		t.Error(diff)
	}
	if after := item(p, "/etc/a").After; after.User != "web" || after.Group != "web" {
		t.Errorf("%+v", after)
	}
}

func item(p *plan.Plan, path string) *plan.Item {
	for i := range p.Items {
		if p.Items[i].Path == path {
			return &p.Items[i]
		}
	}
	return &plan.Item{}
}

func TestMasks(t *testing.T) {
	const path = "/etc/systemd/system/a.service"
	const link = "link " + path + " /dev/null"
	for _, c := range []planCase{
		{name: "mask", disk: "dir /etc/systemd/system", wanted: "unit a.service mask",
			result: "create " + path + " write\n--\ncreated link " + path + "\nunit a.service false before="},
		{name: "mask of the admin's unit", disk: "file " + path + " x", wanted: "unit a.service mask", set: func(w *world) { w.in.Services = services{"a.service": "enabled"} },
			result: "adopt " + path + " write pristine\ndisable a.service # it is masked\nstop a.service\n--\nforeign link " + path + "\nunit a.service false before=enabled"},
		{name: "mask ends", manifest: "created " + link, disk: link, result: "remove " + path + " write\n--"},
		{name: "unmask of what somebody masked", disk: link, wanted: "unit a.service unmask", result: "remove " + path + " write pristine # unmasked\n--\nforeign absent " + path},
		{name: "unmask of our mask", manifest: "created " + link, disk: link, wanted: "unit a.service unmask", result: "remove " + path + " write # unmasked\n--"},
		{name: "unmask of what is no mask", disk: "file " + path + " x", wanted: "unit a.service unmask", result: "--"},
		{name: "unmask ends", manifest: "foreign absent " + path, disk: "dir /etc/systemd/system", pristine: link, result: "restore " + path + " write\n--"},
		{name: "unmask goes on", manifest: "foreign absent " + path, disk: "dir /etc/systemd/system", wanted: "unit a.service unmask", result: "--\nforeign absent " + path},
		{name: "contents leave, unmask stays", manifest: "created file " + path + " x", disk: "file " + path + " x", wanted: "unit a.service unmask", set: func(w *world) { w.in.Services = services{"a.service": "static"} },
			result: "remove " + path + " write\nstop a.service\n--"},
	} {
		t.Run(c.name, c.run)
	}
}

func TestEnablement(t *testing.T) {
	const path = "/etc/systemd/system/a.service"
	is := func(s string) func(*world) { return func(w *world) { w.in.Services = services{"a.service": s} } }
	const old, changed = "[Install];WantedBy=x.target", "[Install];WantedBy=y.target"
	onDisk := func(text string) func(*world) {
		return func(w *world) {
			text := strings.ReplaceAll(text, ";", "\n")
			w.disk("dir /etc/systemd/system")
			if err := os.WriteFile(w.real(path), []byte(text), 0o644); err != nil {
				w.t.Fatal(err)
			}
			_, n, _ := parse([]string{"file", path})
			n.SHA256, n.Size = sum(text), int64(len(text))
			w.in.Manifest.Entries = []state.Entry{{Path: path, Node: n, Origin: state.Created}}
			w.in.Services = services{"a.service": "enabled"}
		}
	}
	for _, c := range []planCase{
		{name: "enable", wanted: "unit a.service enabled", set: is("disabled"), result: "enable a.service # enabled: true\n--\nunit a.service true before=disabled"},
		{name: "is enabled", wanted: "unit a.service enabled", set: is("enabled"), result: "--\nunit a.service true before=enabled"},
		{name: "disable", wanted: "unit a.service disabled", set: is("enabled"), result: "disable a.service # enabled: false\n--\nunit a.service false before=enabled"},
		{name: "before is remembered", manifest: "unit a.service enabled disabled", wanted: "unit a.service enabled", set: is("enabled"), result: "--\nunit a.service true before=disabled"},
		{name: "leaves, was disabled", manifest: "unit a.service enabled disabled", set: is("enabled"), result: "disable a.service # it leaves the config, as it was before\n--"},
		{name: "leaves, was enabled", manifest: "unit a.service disabled enabled", set: is("disabled"), result: "enable a.service # it leaves the config, as it was before\n--"},
		{name: "leaves, is as before", manifest: "unit a.service disabled disabled", set: is("disabled"), result: "--"},
		{name: "static", wanted: "unit a.service enabled", set: is("static"), result: "warning: a.service is static on this host, so it cannot be enabled\n--\nunit a.service true before=static"},
		{name: "masked by the admin", wanted: "unit a.service enabled", set: is("masked"), result: "warning: a.service is masked on this host, so it cannot be enabled\n--\nunit a.service true before=masked"},
		{name: "no such unit", wanted: "unit a.service enabled", result: "warning: a.service does not exist on this host, so it cannot be enabled\n--\nunit a.service true before="},
		{name: "its file leaves: disabled whatever it was before", manifest: "created file " + path + " x\nunit a.service enabled enabled", disk: "file " + path + " x", set: is("enabled"),
			result: "remove " + path + " write\ndisable a.service # it leaves the config\nstop a.service\n--"},
		{name: "install changes", wanted: "unit a.service enabled " + changed, set: onDisk(old), result: "update " + path + " write\nre-enable a.service # [Install] changes\n--\ncreated file " + path + "\nunit a.service true before=enabled"},
		{name: "install is only written otherwise", wanted: "unit a.service enabled ;[Install];#_why;WantedBy=x.target;[Unit]", set: onDisk(old), result: "update " + path + " write\n--\ncreated file " + path + "\nunit a.service true before=enabled"},
		{name: "nothing to enable", disk: "dir /etc/systemd/system", wanted: "unit a.service enabled [Service]", result: "create " + path + " write\nwarning: a.service has no [Install] section, so there is nothing to enable\n--\ncreated file " + path + "\nunit a.service true before="},
		{name: "unmasked and enabled", disk: "link " + path + " /dev/null", wanted: "unit a.service unmask enabled", set: is("masked"),
			result: "remove " + path + " write pristine # unmasked\nenable a.service # enabled: true\n--\nforeign absent " + path + "\nunit a.service true before=masked"},
	} {
		t.Run(c.name, c.run)
	}
}

// What only root can make: mounts and attributes.
func TestClosedPlaces(t *testing.T) {
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: it mounts and sets attributes")
	}
	mount := func(w *world, path string, flags uintptr) {
		w.t.Helper()
		w.disk("dir " + path)
		if err := unix.Mount("tmpfs", w.real(path), "tmpfs", flags, "size=1m"); err != nil {
			w.t.Fatal(err)
		}
		real := w.real(path)
		w.t.Cleanup(func() { _ = unix.Unmount(real, unix.MNT_DETACH) })
	}
	immutable := func(w *world, path string) {
		w.t.Helper()
		f, err := os.Open(w.real(path))
		if err != nil {
			w.t.Fatal(err)
		}
		set := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
		if err := set(unix.STATX_ATTR_IMMUTABLE); err != nil {
			lacking.Skip(w.t, "no attributes here: %v", err)
		}
		w.t.Cleanup(func() { _ = errors.Join(set(0), f.Close()) })
	}
	for _, c := range []planCase{
		{name: "read-only", wanted: "file /usr/lib/a v", set: func(w *world) { mount(w, "/usr", unix.MS_RDONLY) },
			result: "web1.bu:1: /usr/lib lies on a read-only file system\nweb1.bu:1: /usr/lib/a lies on a read-only file system"},
		{name: "immutable file", disk: "file /etc/a v0", wanted: "file /etc/a v", set: func(w *world) { immutable(w, "/etc/a") },
			result: "web1.bu:1: /etc/a is immutable or append-only on this host (chattr -ia)"},
		{name: "immutable directory", disk: "dir /etc/d", wanted: "file /etc/d/a v", set: func(w *world) { immutable(w, "/etc/d") },
			result: "web1.bu:1: /etc/d/a lies in /etc/d, which is immutable on this host (chattr -i)"},
		{name: "hard link over a mount", disk: "file /etc/a v", wanted: "hard /srv/a /etc/a", set: func(w *world) { mount(w, "/srv", 0) },
			result: "web1.bu:1: /srv/a is to be a hard link to /etc/a, which lies on another file system"},
		{name: "a mount point to be a file", disk: "dir /srv", wanted: "file /srv/d v", set: func(w *world) { mount(w, "/srv/d", 0) },
			result: "web1.bu:1: /srv/d is a directory on this host and holds a mounted file system, which is not of this config: move it away, a file is to stand there\nweb1.bu:1: /srv/d is a mount point on this host"},
		{name: "a mount point that leaves", manifest: "created dir /srv/d", disk: "dir /srv", set: func(w *world) { mount(w, "/srv/d", 0) },
			result: "keep /srv/d # not empty, it holds a mounted file system\n--"},
	} {
		t.Run(c.name, c.run)
	}
}

func TestDrifted(t *testing.T) {
	const all = "file /etc/same v\nfile /etc/text mine\nfile:0600 /etc/mode v\nlink /etc/link mine\nfile /etc/touched filled\nhard /etc/hard /etc/same\nlink /etc/hardgone x\nfile /etc/parent v"
	w := newWorld(t, "created file /etc/same v\ncreated file /etc/text v\ncreated file /etc/mode v\ncreated link /etc/link x\ncreated touch /etc/touched\ncreated hard /etc/hard /etc/same\ncreated hard /etc/hardgone /etc/same\ncreated file /etc/gone v\nparent dir /etc/parent\nforeign absent /etc/absent", all, "")
	got, _, err := plan.Drifted(t.Context(), w.in.Host, w.in.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/etc/text", "/etc/mode", "/etc/link", "/etc/hardgone", "/etc/gone"}, got); diff != "" {
		t.Errorf("drift differs (-want +got):\n%s", diff)
	}
}

func TestIgnoredSections(t *testing.T) {
	w := newWorld(t, "created file /etc/a v", "file /etc/a v", "file /etc/a v")
	w.in.Ignored = []desired.Section{{Name: "passwd.users", Hash: "1"}, {Name: "storage.disks", Hash: "1"}}
	w.in.Desired.Ignored = []desired.Section{{Name: "passwd.users", Hash: "2"}, {Name: "storage.disks", Hash: "1"}, {Name: "storage.raid", Hash: "1"}}
	p, err := plan.Make(t.Context(), w.in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"passwd.users changed: takes effect on newly provisioned machines only", "storage.raid changed: takes effect on newly provisioned machines only"}
	if diff := cmp.Diff(want, p.Ignored); diff != "" || !p.Empty() {
		t.Error(p.Empty(), diff)
	}
}

// An unchanged source is not read again to learn its hash.
func TestKnownSourceIsNotRead(t *testing.T) {
	w := newWorld(t, "created file /etc/a v", "file /etc/a v", "file /etc/a v")
	key := contents.Key(*w.in.Desired.Files[0].Contents)
	w.in.Manifest.Entries[0].Source = key
	w.in.Contents = unread{}
	if diff := cmp.Diff("--\ncreated file /etc/a\n", w.show()); diff != "" {
		t.Error(diff)
	}
}

type unread struct{}

func (unread) Open(context.Context, desired.Content) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(nil)), errors.New("read")
}

func (unread) Sum(context.Context, desired.Content) (string, int64, error) {
	return "", 0, errors.New("read")
}

// A hard link to a secret is one, also as what is kept of it; what leaves or was put
// in its place likewise.
func TestSecretsByOtherNames(t *testing.T) {
	w := newWorld(t, `
		created file:0600 /etc/db hunter2
		created hard /etc/linked /etc/db
		created file /etc/open text
	`, `
		file:0600 /etc/db hunter2
		hard /etc/linked /etc/db
		file /etc/open text
		file /etc/other hunter2
	`, `
		file:0600 /etc/kept hunter2
		hard /etc/other /etc/kept
	`)
	w.in.Manifest.Entries[0].Secret = true
	w.in.Desired.Files[0].Contents.Secret = true
	w.in.Contents.(*contents.Opener).Opaque = true
	p, err := plan.Make(t.Context(), w.in)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for i := range p.Items {
		got[p.Items[i].Path] = p.Items[i].Secret()
	}
	want := map[string]bool{"/etc/db": true, "/etc/linked": true, "/etc/open": false, "/etc/kept": true, "/etc/other": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
