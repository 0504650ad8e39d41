package reconcile_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	butane "github.com/coreos/butane/config"
	"github.com/coreos/butane/config/common"
	ignition "github.com/coreos/ignition/v2/config/v3_7_experimental"
	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/sirupsen/logrus"
	"github.com/vincent-petithory/dataurl"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/plan"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
	"github.com/reconf-pull/reconf-pull/internal/state"
	"github.com/reconf-pull/reconf-pull/internal/systemd"
	"github.com/reconf-pull/reconf-pull/internal/units"
	"github.com/reconf-pull/reconf-pull/internal/update"
)

// TestIgnitionProperty applies every golden case of testdata/translate that is
// valid to a root, and compares the disk with a model of what Ignition's files
// stage does with the same Butane (spec/translate.md, Property). A second run
// then changes nothing.
func TestIgnitionProperty(t *testing.T) {
	if os.Getuid() != 0 {
		lacking.Skip(t, "needs root: files get owners")
	}
	names, err := filepath.Glob("../../testdata/translate/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	applied := 0
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c := newGolden(t, archive)
		if c.broken || c.grouped {
			continue
		}
		applied++
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), c.test)
	}
	if applied < 20 {
		t.Errorf("only %d cases were applied", applied)
	}
	t.Logf("%d cases", applied)
}

type golden struct {
	host     string
	layers   []string
	files    map[string]string
	modes    map[string]source.Mode
	remote   map[string]string
	filesDir string
	lenient  bool
	broken   bool // the want section has an error
	grouped  bool // a layer is of a group
}

// newGolden reads an archive; its directives are those of TestGolden in
// internal/butane.
func newGolden(t *testing.T, archive *txtar.Archive) *golden {
	t.Helper()
	// The case without a server of its own asks for this one.
	c := &golden{host: "golden", files: map[string]string{}, modes: map[string]source.Mode{}, remote: map[string]string{"https://example.com/a": "a"}, filesDir: "."}
	layer := map[string]string{}
	for _, f := range archive.Files {
		switch {
		case f.Name == "want":
			c.broken = strings.Contains(string(f.Data), ": error: ")
		case strings.HasPrefix(f.Name, "https/"):
			c.remote["https://"+strings.TrimPrefix(f.Name, "https/")] = string(f.Data)
		case strings.HasSuffix(f.Name, ".bu"):
			// All of them are this host's, one beside the other.
			name := fmt.Sprintf("hosts/golden/%d-%s", len(c.layers), path.Base(f.Name))
			layer[f.Name], c.files[name] = name, string(f.Data)
			c.layers = append(c.layers, name)
		default:
			c.files[f.Name] = string(f.Data)
		}
	}
	if slices.ContainsFunc(archive.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, "groups/") }) {
		c.groups(archive)
		return c
	}
	for line := range strings.Lines(string(archive.Comment)) {
		words := append(strings.Fields(line), "", "")
		name := words[1]
		if moved, ok := layer[name]; ok {
			name = moved
		}
		switch words[0] {
		case "exec":
			c.modes[name] = source.Executable
		case "symlink":
			c.modes[name], c.files[name] = source.Symlink, words[2]
		case "base64":
			data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(c.files[name]))
			if err != nil {
				t.Fatal(err)
			}
			c.files[name] = string(data)
		case "crlf":
			c.files[name] = strings.ReplaceAll(c.files[name], "\n", "\r\n")
		case "chomp":
			c.files[name] = strings.TrimSuffix(c.files[name], "\n")
		case "repeat": // up to this many bytes
			size, err := strconv.Atoi(words[2])
			if err != nil {
				t.Fatal(err)
			}
			c.files[name] = strings.Repeat(c.files[name], size/len(c.files[name])+1)[:size]
		case "files_dir":
			c.filesDir = name
		case "lenient":
			c.lenient = true
		}
	}
	c.files["fleet.toml"] = fmt.Sprintf("schema = 1\nfiles_dir = %q\n", c.filesDir)
	return c
}

// groups makes the archive the fleet repo of web1. Where it has no fleet.toml, each
// layer of a group is one for every host, in the order of the archive.
func (c *golden) groups(archive *txtar.Archive) {
	c.grouped, c.host, c.layers = true, "web1", nil
	var toml strings.Builder
	clear(c.files)
	for _, f := range archive.Files {
		c.files[f.Name] = string(f.Data)
		if strings.HasPrefix(f.Name, "groups/") {
			fmt.Fprintf(&toml, "[group.%s]\nhosts = [\"*\"]\nlayers = [%q]\n", strings.TrimSuffix(path.Base(f.Name), ".bu"), f.Name)
		}
	}
	if c.files["fleet.toml"] == "" {
		c.files["fleet.toml"] = toml.String()
	}
}

func (c *golden) test(t *testing.T) {
	cfg := c.config(t)
	root := t.TempDir()
	m := &model{t: t, nodes: map[string]node{}, users: map[string]int{}, groups: map[string]int{}}
	m.accounts(cfg)
	for name, data := range map[string]string{"etc/hosts": "127.0.0.1 localhost\n", "etc/passwd": table(m.users), "etc/group": table(m.groups)} {
		real := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	m.nodes = look(t, root)
	m.apply(cfg, c.remote)
	m.enable(cfg)

	r := c.reconciler(t, root)
	out, err := r.Run(t.Context())
	if err != nil || out.Result == reconcile.UpToDate {
		t.Fatalf("the run: %v, %v", out.Result, err)
	}
	if diff := cmp.Diff(m.nodes, look(t, root), cmp.AllowUnexported(node{})); diff != "" {
		t.Errorf("the disk is not what Ignition makes (-Ignition +run):\n%s", diff)
	}
	before := ctimes(t, root)
	r.Update.State, err = state.Load(r.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	out, err = r.Run(t.Context())
	if err != nil || out.Result != reconcile.UpToDate || len(out.Drift) > 0 {
		t.Errorf("the second run: %v, drift %v, %v", out.Result, out.Drift, err)
	}
	if diff := cmp.Diff(before, ctimes(t, root)); diff != "" {
		t.Errorf("the second run touched something:\n%s", diff)
	}
	// Nor is there anything to do when the plan is made again.
	prop, err := r.Propose(t.Context())
	if err != nil || !prop.Plan.Empty() {
		t.Errorf("the plan after it: %v, %v", prop.Plan, err)
	}
}

// repo is the fleet repo that has the layers.
type repo struct {
	reconcile.Source // whose other methods nothing asks for
	tree             source.Tree
}

func (repo) Fetch(context.Context) (source.Revision, error) {
	return source.Revision{Ref: "refs/heads/main", Commit: strings.Repeat("c", 40)}, nil
}
func (r repo) Tree(context.Context, string) (source.Tree, error) { return r.tree, nil }
func (repo) Discard() error                                      { return nil }

// offline is what a root that is not running says of its units.
type offline struct{ systemd.Offline }

func (o offline) UnitFileState(_ context.Context, unit string) (string, error) { return o.State(unit) }
func (offline) Err() error                                                     { return nil }
func (offline) Close()                                                         {}

// RoundTrip serves what the archive has.
func (c *golden) RoundTrip(req *http.Request) (*http.Response, error) {
	data, ok := c.remote[req.URL.String()]
	status := http.StatusOK
	if !ok {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Request: req, Body: io.NopCloser(strings.NewReader(data))}, nil
}

func (c *golden) reconciler(t *testing.T, root string) *reconcile.Reconciler {
	t.Helper()
	files := map[string]sourcetest.File{}
	for name, data := range c.files {
		files[name] = sourcetest.File{Mode: c.modes[name], Data: data}
	}
	h := host.New(root)
	state1 := t.TempDir()
	dirs := state.Dirs{State: filepath.Join(state1, "state"), Cache: filepath.Join(state1, "cache"), Run: filepath.Join(state1, "run")}
	if err := dirs.Create(); err != nil {
		t.Fatal(err)
	}
	st, err := state.Load(dirs)
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	accounts := &host.Accounts{Host: h, Runner: run.Host{}}
	return &reconcile.Reconciler{
		Host: h, Dirs: dirs, Source: repo{tree: sourcetest.New(files)}, Names: []string{c.host}, Strict: !c.lenient, Settings: plan.Settings{OnConflict: "replace"},
		Contents: contents.Opener{Downloads: dirs.Downloads(), MaxFile: 8 << 20, Client: &http.Client{Transport: c}}, Accounts: accounts,
		Services: func(context.Context) (reconcile.Services, error) { return offline{systemd.Offline{Host: h}}, nil }, OnChange: systemd.OnChange,
		Update: &update.Update{Host: h, Dirs: dirs, State: st, Log: log, Units: &units.Offline{Host: h, Log: log},
			Engine: &native.Engine{Host: h, Blobs: dirs.Blobs(), Accounts: accounts, Runner: run.Host{}}},
		Hooks: &hooks.Runner{Host: h, Dirs: []string{hooks.Dir}}, Log: log, Announce: func(*reconcile.Proposal) {},
		Choose: func([]engine.Migration) (engine.Choice, error) { return engine.Choice{Name: engine.Native}, nil },
	}
}

// config is what Butane and Ignition themselves make of the layers, with the
// real files: no placeholder, no step of the agent's.
func (c *golden) config(t *testing.T) types.Config {
	t.Helper()
	dir := t.TempDir()
	for name, data := range c.files {
		real := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(real), 0o755)
		switch c.modes[name] {
		case source.Symlink:
			err = errors.Join(err, os.Symlink(data, real))
		case source.Submodule:
		case source.Executable:
			err = errors.Join(err, os.WriteFile(real, []byte(data), 0o755))
		default:
			err = errors.Join(err, os.WriteFile(real, []byte(data), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var all types.Config
	for _, layer := range c.layers {
		all = ignition.Merge(all, c.rendered(t, dir, []byte(c.files[layer])))
	}
	return all
}

// rendered is a config with what it merges, as Ignition's fetch stages do it.
// What is not JSON goes through Butane first: a layer, or a .bu that one merges.
func (c *golden) rendered(t *testing.T, dir string, raw []byte) types.Config {
	t.Helper()
	if !bytes.HasPrefix(raw, []byte("{")) {
		out, rep, err := butane.TranslateBytes(raw, common.TranslateBytesOptions{
			Raw: true, TranslateOptions: common.TranslateOptions{FilesDir: filepath.Join(dir, c.filesDir), NoResourceAutoCompression: true},
		})
		if err != nil {
			t.Fatalf("Butane: %v\n%s", err, rep.String())
		}
		raw = out
	}
	cfg, rep, err := ignition.ParseCompatibleVersion(raw)
	if err != nil {
		t.Fatalf("Ignition: %v\n%s", err, rep.String())
	}
	if cfg.Ignition.Config.Replace.Source != nil {
		return c.rendered(t, dir, fetched(t, cfg.Ignition.Config.Replace, c.remote))
	}
	merged := cfg
	for _, child := range cfg.Ignition.Config.Merge {
		merged = ignition.Merge(merged, c.rendered(t, dir, fetched(t, child, c.remote)))
	}
	return merged
}

// fetched are the bytes of a resource.
func fetched(t *testing.T, res types.Resource, remote map[string]string) []byte {
	t.Helper()
	if res.Source == nil || *res.Source == "" {
		return nil
	}
	data, ok := remote[*res.Source]
	if !ok {
		u, err := dataurl.DecodeString(*res.Source)
		if err != nil {
			t.Fatalf("%s: %v", *res.Source, err)
		}
		data = string(u.Data)
	}
	if res.Compression == nil || *res.Compression == "" {
		return []byte(data)
	}
	r, err := gzip.NewReader(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// node is one path of a tree, in words; same is the path it is a hard link of.
type node struct {
	kind, mode, owner, data, same string
}

// model is a tree that Ignition's files stage works on
// (internal/exec/stages/files and internal/exec/util of Ignition 2.27).
type model struct {
	t             *testing.T
	nodes         map[string]node
	users, groups map[string]int
}

// accounts gives every name of the config an id.
func (m *model) accounts(cfg types.Config) {
	note := func(n types.Node) {
		if n.User.Name != nil && *n.User.Name != "root" {
			m.users[*n.User.Name] = 1000 + len(*n.User.Name)
		}
		if n.Group.Name != nil && *n.Group.Name != "root" {
			m.groups[*n.Group.Name] = 2000 + len(*n.Group.Name)
		}
	}
	for _, d := range cfg.Storage.Directories {
		note(d.Node)
	}
	for _, f := range cfg.Storage.Files {
		note(f.Node)
	}
	for _, l := range cfg.Storage.Links {
		note(l.Node)
	}
}

// table is a passwd or group file.
func table(ids map[string]int) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		fmt.Fprintf(&b, "%s:x:%d:%d::/:/bin/sh\n", name, ids[name], ids[name])
	}
	return b.String()
}

func (m *model) parents(p string) {
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if _, ok := m.nodes[dir]; !ok {
			m.nodes[dir] = node{kind: "directory", mode: "0755", owner: "0:0"}
		}
	}
}

// permissions: the owner that is said, else the one that is there, then the mode.
func (m *model) permissions(n node, mode *int, of types.Node) node {
	var uid, gid int
	if _, err := fmt.Sscanf(n.owner, "%d:%d", &uid, &gid); err != nil {
		m.t.Fatal(err)
	}
	id := func(now int, id *int, name *string, names map[string]int) int {
		switch {
		case id != nil:
			return *id
		case name != nil && *name != "":
			return names[*name]
		}
		return now
	}
	n.owner = fmt.Sprintf("%d:%d", id(uid, of.User.ID, of.User.Name, m.users), id(gid, of.Group.ID, of.Group.Name, m.groups))
	if mode != nil {
		n.mode = fmt.Sprintf("%04o", *mode)
	}
	return n
}

func (m *model) apply(cfg types.Config, remote map[string]string) {
	type entry struct {
		path string
		make func(p string)
	}
	var entries, last []entry
	for _, d := range cfg.Storage.Directories {
		entries = append(entries, entry{path.Clean(d.Path), func(p string) {
			n, ok := m.nodes[p]
			if !ok {
				n = node{kind: "directory", mode: "0755", owner: "0:0"}
			}
			m.nodes[p] = m.permissions(n, d.Mode, d.Node)
		}})
	}
	for _, f := range cfg.Storage.Files {
		entries = append(entries, entry{path.Clean(f.Path), func(p string) {
			n, ok := m.nodes[p]
			if !ok || f.Contents.Source != nil {
				n = node{kind: "file", mode: "0644", owner: "0:0", data: string(fetched(m.t, f.Contents, remote))}
			}
			for _, more := range f.Append {
				n.data += string(fetched(m.t, more, remote))
			}
			m.nodes[p] = m.permissions(n, f.Mode, f.Node)
		}})
	}
	for _, l := range cfg.Storage.Links {
		if l.Hard != nil && *l.Hard {
			last = append(last, entry{path.Clean(l.Path), func(p string) {
				n := m.nodes[path.Clean(*l.Target)]
				n.same = min(p, path.Clean(*l.Target))
				m.nodes[p], m.nodes[path.Clean(*l.Target)] = n, n
			}})
			continue
		}
		entries = append(entries, entry{path.Clean(l.Path), func(p string) {
			m.nodes[p] = m.permissions(node{kind: "link", owner: "0:0", data: *l.Target}, nil, l.Node)
		}})
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return strings.Count(a.path, "/") - strings.Count(b.path, "/") })
	for _, e := range append(entries, last...) {
		if e.path != "/" {
			m.parents(e.path)
			e.make(e.path)
		}
	}
	write := func(p string, n node) {
		m.parents(p)
		m.nodes[p] = n
	}
	for _, u := range cfg.Systemd.Units {
		file := unitDir + u.Name
		for _, d := range u.Dropins {
			if d.Contents != nil {
				write(file+".d/"+d.Name, node{kind: "file", mode: "0644", owner: "0:0", data: *d.Contents})
			}
		}
		if u.Contents != nil && *u.Contents != "" {
			write(file, node{kind: "file", mode: "0644", owner: "0:0", data: *u.Contents})
		}
		switch {
		case u.Mask != nil && *u.Mask:
			write(file, node{kind: "link", owner: "0:0", data: "/dev/null"})
		case u.Mask != nil && m.nodes[file].data == "/dev/null":
			delete(m.nodes, file)
		}
	}
}

const unitDir = "/etc/systemd/system/"

// enable makes the links that stand here for Ignition's preset file: those of
// WantedBy= and RequiredBy= of a unit that the config has and enables.
func (m *model) enable(cfg types.Config) {
	for _, u := range cfg.Systemd.Units {
		if u.Enabled == nil || !*u.Enabled || u.Mask != nil && *u.Mask {
			continue
		}
		file := unitDir + u.Name
		if at := strings.Index(u.Name, "@"); at >= 0 && m.nodes[file].kind == "" {
			file = unitDir + u.Name[:at+1] + path.Ext(u.Name)
		}
		_, install, _ := strings.Cut(m.nodes[file].data, "[Install]\n")
		for line := range strings.Lines(install) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			suffix, ok := map[string]string{"WantedBy": ".wants/", "RequiredBy": ".requires/"}[key]
			for target := range strings.FieldsSeq(value) {
				if ok {
					p := unitDir + target + suffix + u.Name
					m.parents(p)
					m.nodes[p] = node{kind: "link", owner: "0:0", data: file}
				}
			}
		}
	}
}

// look reads a tree from the disk.
func look(t *testing.T, root string) map[string]node {
	t.Helper()
	all := map[string]node{}
	inodes := map[uint64][]string{}
	walk(t, root, func(p string, st *unix.Stat_t) error {
		n := node{mode: fmt.Sprintf("%04o", st.Mode&0o7777), owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid)}
		real := filepath.Join(root, p)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			n.kind = "directory"
		case unix.S_IFLNK:
			target, err := os.Readlink(real)
			n.kind, n.mode, n.data = "link", "", target
			all[p] = n
			return err
		case unix.S_IFREG:
			data, err := os.ReadFile(real)
			if err != nil {
				return err
			}
			n.kind, n.data = "file", string(bytes.Clone(data))
			inodes[st.Ino] = append(inodes[st.Ino], p)
		}
		all[p] = n
		return nil
	})
	for _, same := range inodes {
		for _, p := range same {
			if n := all[p]; len(same) > 1 {
				n.same = slices.Min(same)
				all[p] = n
			}
		}
	}
	return all
}

func ctimes(t *testing.T, root string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	walk(t, root, func(p string, st *unix.Stat_t) error {
		all[p] = st.Ctim.Nano()
		return nil
	})
	return all
}

func walk(t *testing.T, root string, visit func(p string, st *unix.Stat_t) error) {
	t.Helper()
	err := filepath.WalkDir(root, func(real string, _ fs.DirEntry, err error) error {
		if err != nil || real == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(real, &st); err != nil {
			return err
		}
		return visit(strings.TrimPrefix(real, root), &st)
	})
	if err != nil {
		t.Fatal(err)
	}
}
