package salt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/engine"
	"github.com/reconf-pull/reconf-pull/internal/engine/native"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// tree is what Salt is given for one job.
type tree struct {
	folder string // on this machine
	seen   string // the same as salt-call finds it
	place  func(string) string
	job    *engine.Job
	// apart are items that Salt is not given, because they lie in somebody's place.
	apart func(*plan.Item) bool
	// now is what stands at a path of the plan.
	now func(*plan.Item) (disk.Node, error)
	// open reads the wanted bytes of a file.
	open func(context.Context, *plan.Item) (io.ReadCloser, error)
	// byHand: the plan was made for a host that has nothing, and the tree may be
	// carried out on one that has something.
	byHand bool
}

// Write makes a folder for a person: the job with its plan, which plan.Make
// returned, as Salt would be given it on a host where it is to lie at dir.
func Write(ctx context.Context, dir string, job *engine.Job) error {
	t := &tree{
		folder: dir, seen: dir, job: job, place: func(p string) string { return p },
		apart:  func(*plan.Item) bool { return false }, // who carries it out says so
		now:    func(item *plan.Item) (disk.Node, error) { return item.Before, nil },
		open:   func(ctx context.Context, item *plan.Item) (io.ReadCloser, error) { return item.Open(ctx) },
		byHand: true,
	}
	if err := t.write(ctx); err != nil {
		return err
	}
	return t.writeMain(false, false)
}

// The names in the folder.
const (
	minionFile = "minion"
	slsDir     = "sls"
	filesDir   = "files"
	pillarDir  = "pillar"
	mainSLS    = "main"
	migrations = "migrations"
)

// write makes the whole folder, which must not be there yet.
func (t *tree) write(ctx context.Context) error {
	for _, dir := range []string{"", slsDir, filepath.Join(slsDir, filesDir), pillarDir} {
		if err := os.Mkdir(filepath.Join(t.folder, dir), 0o700); err != nil {
			return err
		}
	}
	// Mkdir's mode is subject to the umask, which may be wider than wanted.
	if err := os.Chmod(t.folder, 0o700); err != nil {
		return err
	}
	if err := t.writeFiles(ctx); err != nil {
		return err
	}
	names := t.slsNames()
	if len(names) > 0 {
		if err := os.Mkdir(filepath.Join(t.folder, slsDir, migrations), 0o700); err != nil {
			return err
		}
	}
	for i, m := range t.job.Migrations {
		if err := t.put(filepath.Join(slsDir, migrations, names[i]+".sls"), string(m.Data)); err != nil {
			return err
		}
	}
	pillar, err := t.pillar()
	if err != nil {
		return err
	}
	return errors.Join(
		t.put(filepath.Join(slsDir, "top.sls"), top(names)),
		t.put(filepath.Join(pillarDir, "top.sls"), "#!yaml\nbase:\n  \"*\":\n  - main\n"),
		t.put(filepath.Join(pillarDir, "main.sls"), pillar),
	)
}

func (t *tree) put(name, text string) error {
	return os.WriteFile(filepath.Join(t.folder, name), []byte(text), 0o600)
}

// writeMain writes the states of the plan: for the dry run without those that
// can only be judged when others have been carried out.
func (t *tree) writeMain(dry, failhard bool) error {
	text, err := t.main(dry)
	if err != nil {
		return err
	}
	return errors.Join(t.put(filepath.Join(slsDir, mainSLS+".sls"), text), t.put(minionFile, t.minion(failhard)))
}

// minion is the configuration of a Salt without a master, which leaves nothing
// outside the folder. The real run ends with the first state that fails: what
// comes after may rely on it.
func (t *tree) minion(failhard bool) string {
	at := func(names ...string) string { return quote(path.Join(append([]string{t.seen}, names...)...)) }
	var b strings.Builder
	b.WriteString("# Written by reconf-pull for one update.\n")
	for _, line := range [][2]string{
		{"id", quote(t.job.Host)},
		{"local", "true"}, {"file_client", `"local"`},
		{"fileserver_backend", `["roots"]`}, {"file_roots", "{base: [" + at(slsDir) + "]}"}, {"pillar_roots", "{base: [" + at(pillarDir) + "]}"},
		{"state_top", `"top.sls"`}, {"default_top", `"base"`},
		{"root_dir", at()}, {"pki_dir", at("etc", "pki")}, {"cachedir", at("var", "cache")}, {"sock_dir", at("var", "run")},
		{"pidfile", at("var", "salt-call.pid")}, {"extension_modules", at("var", "extmods")},
		{"log_file", `"/dev/null"`}, {"log_level_logfile", `"quiet"`},
		{"hash_type", `"sha256"`}, {"file_ignore_regex", "[]"}, {"file_ignore_glob", "[]"},
		{"grains_cache", "false"}, {"enable_fqdns_grains", "false"}, {"enable_gpu_grains", "false"},
		{"state_verbose", "true"}, {"state_output", `"full"`}, {"failhard", strconv.FormatBool(failhard)},
	} {
		fmt.Fprintf(&b, "%s: %s\n", line[0], line[1])
	}
	return b.String()
}

func top(migrated []string) string {
	var b strings.Builder
	b.WriteString("#!yaml\nbase:\n  \"*\":\n  - main\n")
	for _, name := range migrated {
		fmt.Fprintf(&b, "  - %s\n", quote(migrations+"."+name))
	}
	return b.String()
}

// slsNames are the names of the migrations in the tree: those of the fleet
// repo, but for what Salt takes for a folder or a pattern.
func (t *tree) slsNames() []string {
	var names []string
	for _, m := range t.job.Migrations {
		name := strings.Map(func(r rune) rune {
			if r < 0x80 && (r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
				return r
			}
			return '_'
		}, strings.TrimSuffix(path.Base(m.Path), ".sls"))
		unique := name
		for n := 2; slices.Contains(names, unique); n++ {
			unique = name + "-" + strconv.Itoa(n)
		}
		names = append(names, unique)
	}
	return names
}

// pillar is what migrations may ask about the change.
func (t *tree) pillar() (string, error) {
	var b strings.Builder
	b.WriteString("#!yaml\nreconf:\n")
	fmt.Fprintf(&b, "  host: %s\n  commit: %s\n", quote(t.job.Host), quote(t.job.Commit))
	vars := t.job.Vars
	if vars == nil {
		vars = map[string]any{}
	}
	fmt.Fprintf(&b, "  vars: %s\n  changed:", flow(vars))
	changed := t.job.Plan.Changed()
	if len(changed) == 0 {
		b.WriteString(" []")
	}
	b.WriteByte('\n')
	for _, p := range changed {
		if !isText(p) {
			return "", notText(p)
		}
		fmt.Fprintf(&b, "  - %s\n", quote(p))
	}
	return b.String(), nil
}

// writeFiles stores the bytes that states name, once for each.
func (t *tree) writeFiles(ctx context.Context) error {
	for _, item := range t.writes() {
		now, err := t.now(item)
		if err != nil {
			return err
		}
		if !needsSource(item, now) {
			continue
		}
		if err := t.store(ctx, item); err != nil {
			return fmt.Errorf("%s: %w", item.Path, err)
		}
	}
	return nil
}

func (t *tree) store(ctx context.Context, item *plan.Item) (err error) {
	name := filepath.Join(t.folder, slsDir, filesDir, bytesOf(item))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := t.open(ctx, item)
	if err != nil {
		return err
	}
	defer r.Close()
	seen := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, seen), r); err != nil {
		return err
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != item.After.SHA256 && item.Secret() {
		return fmt.Errorf("%w: it is another secret", engine.ErrDamaged)
	} else if got != item.After.SHA256 {
		return fmt.Errorf("%w: what is %s hashes to %s", engine.ErrDamaged, item.After.SHA256, got)
	}
	return nil
}

// bytesOf is the name of a file's bytes in the tree. What Salt says of it ends in
// the journal, so that of a secret tells nothing of what is in it.
func bytesOf(item *plan.Item) string {
	if !item.Secret() {
		return item.After.SHA256
	}
	sum := sha256.Sum256([]byte(item.Path))
	return "secret-" + hex.EncodeToString(sum[:])
}

// writes are the items that are carried out, in their order.
func (t *tree) writes() []*plan.Item {
	var items []*plan.Item
	for i := range t.job.Plan.Items {
		if item := &t.job.Plan.Items[i]; item.Write && !t.apart(item) {
			items = append(items, item)
		}
	}
	return native.Order(items)
}

// needsSource: a file that has its bytes already gets its owner and mode only.
func needsSource(item *plan.Item, now disk.Node) bool {
	return item.After.Kind == disk.File && item.After.SHA256 != "" && (item.NeedsContent() || now.Kind != disk.File)
}

// main is the SLS of the plan.
func (t *tree) main(dry bool) (string, error) {
	items := t.writes()
	included := t.included(items, dry)
	var b strings.Builder
	b.WriteString("#!yaml\n# Written by reconf-pull. The bytes of files lie in files/, named by their SHA-256.\n")
	for _, item := range items {
		if !included[item.Path] {
			continue
		}
		if !isText(item.Path) || !isText(item.After.Target) {
			return "", notText(item.Path)
		}
		if err := t.state(&b, item, included); err != nil {
			return "", err
		}
	}
	if len(included) == 0 {
		// Salt takes an SLS without states for a mistake.
		fmt.Fprintf(&b, "%s\n  test.nop: []\n", key(nothing))
	}
	return b.String(), nil
}

// nothing is the id of the state of a tree that has no other.
const nothing = "reconf-pull has nothing to write"

func notText(path string) error {
	return &finding.Failure{Findings: finding.List{{
		Severity: finding.Error, Hint: "rename it, or set engine.kind = \"native\"",
		Message: fmt.Sprintf("%q is no UTF-8, and Salt can only be told of text", path),
	}}}
}

// included are the paths that have a state. Directories are removed by us, and
// so is what must be out of the way before Salt begins. In a dry run Salt looks
// at the disk as it is: it cannot judge what stands on ground that will change.
func (t *tree) included(items []*plan.Item, dry bool) map[string]bool {
	obstructs := native.Obstructs(items)
	changing := map[string]bool{}
	included := map[string]bool{}
	for _, item := range items {
		before := item.Before.Kind
		if before != disk.Absent && before != item.After.Kind && item.After.Kind != disk.Absent {
			changing[item.Path] = true
		}
		switch {
		case obstructs(item):
		case item.After.Kind == disk.Absent && before == disk.Directory:
		case dry && (item.After.Kind == disk.HardLink || below(item.Path, changing)):
		default:
			included[item.Path] = true
		}
	}
	return included
}

// below tells whether the path is one of these or lies below one.
func below(p string, these map[string]bool) bool {
	for ; p != "/"; p = path.Dir(p) {
		if these[p] {
			return true
		}
	}
	return false
}

// state writes the state of one item. The path is its id.
func (t *tree) state(b *strings.Builder, item *plan.Item, included map[string]bool) error {
	now, err := t.now(item)
	if err != nil {
		return err
	}
	after := &item.After
	function, args := "", [][2]string{{"name", quote(t.place(item.Path))}}
	arg := func(name, value string) { args = append(args, [2]string{name, value}) }
	owner := func() {
		arg("user", id(after.UID))
		arg("group", id(after.GID))
	}
	switch after.Kind {
	case disk.Absent:
		function = "file.absent"
		// Never of a directory, even if one is there by the time that Salt is here.
		look := "file.file_exists"
		if item.Before.Kind == disk.Link {
			look = "file.is_link"
		}
		arg("onlyif", "[{fun: "+look+", path: "+quote(t.place(item.Path))+"}]")
	case disk.Directory:
		function = "file.directory"
		owner()
		arg("mode", mode(after.Mode))
		arg("follow_symlinks", "false")
		if t.byHand && item.IsParent() { // one that is there keeps its owner and mode
			arg("unless", "[{fun: file.directory_exists, path: "+quote(t.place(item.Path))+"}]")
		}
	case disk.File:
		function = "file.managed"
		if needsSource(item, now) {
			arg("source", quote("salt://"+filesDir+"/"+bytesOf(item)))
		} else {
			arg("replace", "false")
		}
		owner()
		arg("mode", mode(after.Mode))
		arg("follow_symlinks", "false")
		arg("show_changes", "false")
	case disk.Link:
		function = "file.symlink"
		arg("target", quote(after.Target))
		arg("atomic", "true")
	case disk.HardLink:
		function = "file.hardlink"
		arg("target", quote(t.place(after.Target)))
		arg("force", "true") // of files only: a directory is an error
	}
	var require []string
	for _, p := range []string{path.Dir(item.Path), after.Target} {
		if included[p] && after.Kind != disk.Absent && (p != after.Target || after.Kind == disk.HardLink) {
			require = append(require, "{file: "+quote(literal.Replace(p))+"}")
		}
	}
	if require != nil {
		arg("require", "["+strings.Join(require, ", ")+"]")
	}
	fmt.Fprintf(b, "%s\n  %s:\n", key(item.Path), function)
	for _, one := range args {
		fmt.Fprintf(b, "  - %s: %s\n", one[0], one[1])
	}
	if after.Kind == disk.Link && (after.UID != 0 || after.GID != 0) {
		// A link is root's unless it is given away by name, and names are another
		// machine's in a container.
		fmt.Fprintf(b, "%s\n  module.run:\n  - file.lchown: [{path: %s}, {user: %d}, {group: %d}]\n  - require: [{file: %s}]\n",
			key(ownerOf(item.Path)), quote(t.place(item.Path)), after.UID, after.GID, quote(literal.Replace(item.Path)))
	}
	return nil
}

// id is a number, but for root: Salt takes 0 for nobody in particular.
func id(number int) string {
	if number == 0 {
		return `"root"`
	}
	return strconv.Itoa(number)
}

// ownerOf is the id of the state that gives a link to its owner.
func ownerOf(path string) string { return "owner of " + path }

// mode is a string, or Salt would take it for a decimal number.
func mode(bits uint32) string { return quote(fmt.Sprintf("%04o", bits)) }
