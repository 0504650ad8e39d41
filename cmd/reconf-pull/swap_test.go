package main_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// swapTime is how long a run may take whatever is put in its way: it never waits for a
// resident, and never reads what he made as large as he likes.
const swapTime = 20 * time.Second

// A swap is what a resident does while the agent runs.
type swap struct {
	call  int // before which of those that touch his home, from 1
	who   *resident
	back  int   // calls after which he undoes it, 0 if he does not
	tries []try // until one is possible
}

// A try is to put something else there.
type try struct {
	part part
	kind string
}

// part is a component of a managed path of a resident, or the temporary name beside it.
type part struct {
	path string // below the home
	temp bool
}

func (p part) String() string {
	if p.temp {
		return "the temporary file of " + p.path
	}
	return p.path
}

// linked are the swaps for a link, and where it leads.
var linked = map[string]string{
	"link to /root": "root", "link to /etc/tmpfiles.d": "etc/tmpfiles.d", "link to /var/victim": "var/victim",
	"link to alice's private": "home/alice/private", "link to bob's private": "home/bob/private",
	"link to /etc/shadow": "etc/shadow", "link to /root/settings": "root/settings",
	"link to /usr/bin/su": "usr/bin/su", "link to bob's notes": "home/bob/private/notes",
}

// moved are the swaps for something that lies in the home already. What is a directory
// and root's cannot be moved out of the directory that it is in.
var moved = map[string]string{
	"root's directory": "vault", "root's secret": "secret", "root's program": "program", "file of his": "hers",
}

var otherKinds = []string{
	"FIFO", "empty directory", "huge sparse file", "hard link", "link to what was there", "nothing",
}

var swapKinds = slices.Concat(slices.Sorted(maps.Keys(linked)), slices.Sorted(maps.Keys(moved)), otherKinds)

// A player swaps at the right moment of one run.
type player struct {
	swap
	root    string
	touched int
	about   string // the call
	called  string // what it is about
	did     *try   // nil before it, and where none was possible
	at      string // what was swapped, below the home
	aside   bool   // there was something
	put     uint64 // the inode of what was put there
	undone  bool
	err     error // of undoing it
}

// aside is what the thing is called for which another one stands there now.
const aside = "aside"

// judge is a judge of calls.
func (pl *player) judge(c call) verdict {
	if touchedBy(c, pl.root, pl.who) == nil {
		return verdict{}
	}
	pl.touched++
	switch {
	case pl.touched == pl.call:
		pl.called = c.of()
		pl.about = c.name + " " + strings.TrimPrefix(pl.called, pl.root)
		for i := 0; i < len(pl.tries) && pl.did == nil; i++ {
			if pl.swapIn(pl.tries[i]) == nil {
				pl.did = &pl.tries[i]
			}
		}
	case pl.back > 0 && pl.touched == pl.call+pl.back:
		pl.err = pl.swapBack()
	}
	return verdict{}
}

// touch is what a call has to do with a resident's managed paths.
type touch struct {
	parts   []part // on the way to what the call is about, and below that
	itself  *part  // what it is about, where that is one of them
	changes bool   // it does something to it
}

// touchedBy is nil of a call that has nothing to do with them.
func touchedBy(c call, root string, who *resident) *touch {
	home := filepath.Join(root, "home", who.name)
	for _, name := range []string{c.of(), c.from()} {
		rel, err := filepath.Rel(home, name)
		if name == "" || err != nil || strings.HasPrefix(rel, "..") {
			continue
		}
		if parts := who.parts(rel); parts != nil {
			to := &touch{parts: parts, changes: durable.has(c.name) && !strings.HasSuffix(c.name, "sync") && c.name != "syncfs"}
			if c.name == "openat" {
				to.changes = c.args[2]&makesFile != 0
			}
			to.itself = who.itself(rel, parts)
			return to
		}
	}
	return nil
}

// itself is the managed path, or the temporary file of one, that a name in the home is of.
func (who *resident) itself(rel string, parts []part) *part {
	for i := range parts {
		if parts[i].temp || parts[i].path == rel && slices.Contains(who.managed, rel) {
			return &parts[i]
		}
	}
	return nil
}

// parts are those on the way to something in the home, and below it.
func (who *resident) parts(rel string) (all []part) {
	staged := rel
	if name := beside.FindStringSubmatch(path.Base(rel)); name != nil {
		staged = path.Join(path.Dir(rel), name[1])
	}
	for _, managed := range who.managed {
		temp := staged != rel && staged == managed
		below, above := strings.HasPrefix(rel, managed+"/"), rel == "." || strings.HasPrefix(managed, rel+"/")
		if rel != managed && !temp && !below && !above {
			continue
		}
		for p := managed; p != "."; p = path.Dir(p) {
			all = append(all, part{path: p})
		}
		if temp {
			all = append(all, part{managed, true})
		}
	}
	slices.SortFunc(all, func(a, b part) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}

// as does something with the rights of a user, on a thread that has no others from then
// on and ends with it.
func as(uid int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			err = errno
		}
		// These two say who it was before, and nothing of whether they worked.
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(uid), 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
		if is, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); int(is) != uid {
			err = fmt.Errorf("acting as %d, not %d", is, uid)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// inHome does something as the resident, in his home. He gets no further than any user.
func (pl *player) inHome(do func(home, root int) error) error {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	root, err := unix.Open(pl.root, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	home, err := unix.Openat(root, "home/"+pl.who.name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	return as(pl.who.uid, func() error { return do(home, root) })
}

// swapIn moves what stands there aside and puts something else in its place.
func (pl *player) swapIn(how try) error {
	if pl.at = how.part.path; how.part.temp {
		dir, name := path.Split(pl.at)
		names, err := filepath.Glob(filepath.Join(pl.root, "home", pl.who.name, dir, "."+name+".reconf-*"))
		if err == nil && len(names) == 0 {
			names = []string{pl.called} // it is about to be made
		}
		if err != nil || len(names) != 1 || !beside.MatchString(path.Base(names[0])) {
			return errors.Join(err, unix.ENOENT)
		}
		pl.at = path.Join(dir, path.Base(names[0]))
	}
	return pl.inHome(func(home, root int) error {
		there := path.Join(path.Dir(pl.at), aside)
		err := unix.Renameat(home, pl.at, home, there)
		pl.aside = err == nil
		if err == nil || errors.Is(err, unix.ENOENT) && how.kind != "nothing" {
			err = pl.make(how.kind, home, root)
		}
		if err != nil && pl.aside {
			return errors.Join(err, unix.Renameat(home, there, home, pl.at))
		}
		var st unix.Stat_t
		if unix.Fstatat(home, pl.at, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			pl.put = st.Ino
		}
		return err
	})
}

// make puts a thing of some kind where nothing stands now.
func (pl *player) make(kind string, home, root int) error {
	const huge = 8 << 40
	dir := path.Dir(pl.at)
	if to, ok := linked[kind]; ok {
		target, err := filepath.Rel(path.Join("/home", pl.who.name, dir), "/"+to)
		return errors.Join(err, unix.Symlinkat(target, home, pl.at))
	}
	if from, ok := moved[kind]; ok {
		if from == "vault" {
			from = path.Join(dir, from)
		}
		return unix.Renameat(home, from, home, pl.at)
	}
	switch kind {
	case "FIFO":
		return unix.Mknodat(home, pl.at, unix.S_IFIFO|0o666, 0)
	case "empty directory":
		return unix.Mkdirat(home, pl.at, 0o755)
	case "huge sparse file":
		fd, err := unix.Openat(home, pl.at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		return errors.Join(unix.Ftruncate(fd, huge), unix.Close(fd))
	case "hard link":
		// Of root's secret only where the kernel lets everybody (fs.protected_hardlinks).
		if unix.Linkat(root, "etc/shadow", home, pl.at, 0) == nil {
			return nil
		}
		return unix.Linkat(root, "var/mail/"+pl.who.name, home, pl.at, 0)
	case "link to what was there":
		return unix.Symlinkat(aside, home, pl.at)
	}
	return nil
}

// swapBack undoes the swap, unless something else stands there by now.
func (pl *player) swapBack() error {
	if pl.did == nil || pl.undone {
		return nil
	}
	return pl.inHome(func(home, _ int) error {
		dir := path.Dir(pl.at)
		var st unix.Stat_t
		err := unix.Fstatat(home, pl.at, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Ino != pl.put {
			return nil
		}
		if err == nil {
			err = unix.Renameat(home, pl.at, home, path.Join(dir, "was"))
		}
		if pl.aside && (err == nil || errors.Is(err, unix.ENOENT)) {
			err = unix.Renameat(home, path.Join(dir, aside), home, pl.at)
		}
		pl.undone = err == nil || errors.Is(err, unix.ENOENT) // the agent removed it
		if pl.undone {
			err = nil
		}
		return err
	})
}

// swapWatch are the calls at which a resident swaps something.
var swapWatch = lookups.with(writing.names)

// ends is a traced run that is killed when its time is over.
func (tr *trial) ends(dir string, watched watch, judge func(call) verdict) ended {
	var kill sync.Once
	var timer *time.Timer
	end := judged(tr.t, tr.argv(dir), watched, func(c call) verdict {
		kill.Do(func() {
			timer = time.AfterFunc(swapTime, func() { _ = syscall.Kill(c.tid, syscall.SIGKILL) })
		})
		return judge(c)
	})
	if timer != nil {
		timer.Stop()
	}
	return end
}

// TestSwaps lets the residents of a host swap every component of the paths that are
// managed in their homes, at every call that has to do with it, for whatever they can put
// there. Nothing that is not theirs changes or can be read by them, the run ends in its
// time, and what is none of their business is applied.
func TestSwaps(t *testing.T) {
	seed := seed(t)
	counted(t, "seed %d (RECONF_TEST_SEED=%d)", seed, seed)
	tr := newTrial(t)
	first := tr.homes()
	all := os.Getenv("RECONF_TEST_CRASHES") != ""
	for n, half := range halves {
		if !all && seed%uint64(len(halves)) != uint64(n) {
			continue
		}
		tr.push(butaneOf(half.first))
		applied := tr.copyOf(first)
		tr.run(applied)
		swaps := &swaps{tr: tr, who: half.inHomes(), seed: seed, all: all}
		swaps.everywhere("first run", first)
		tr.push(butaneOf(half.later))
		swaps.everywhere("update", applied)
	}
}

// swaps are those of the residents of a host.
type swaps struct {
	tr   *trial
	who  []resident
	seed uint64
	all  bool // and not just one for each call
}

func (sw *swaps) everywhere(what, from string) {
	tr, t := sw.tr, sw.tr.t
	t.Helper()
	whole := tr.copyOf(from)
	calls := make([][]*touch, len(sw.who)) // of each
	touching := map[string]bool{}
	end := tr.ends(whole, swapWatch, func(c call) verdict {
		for i := range sw.who {
			if to := touchedBy(c, filepath.Join(whole, "root"), &sw.who[i]); to != nil {
				calls[i] = append(calls[i], to)
				touching[c.name] = true
			}
		}
		return verdict{}
	})
	if !end.status.Exited() || end.status.ExitStatus() != 0 {
		t.Fatalf("%s: undisturbed it ends with %v:\n%s", what, end.status, end.said)
	}
	want := survey(t, whole)
	watched := swapWatch.with(nil)
	maps.DeleteFunc(watched.names, func(_ uint64, name string) bool { return !touching[name] })
	swaps := sw.chosen(calls)
	var mu sync.Mutex
	made, impossible, blocked := map[string]int{}, 0, 0
	parallel(len(swaps), func(n int) {
		dir := tr.copyOf(from)
		defer tr.remove(dir)
		did, held := tr.play(what, dir, swaps[n-1], watched, want, n%2 == 0)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case did == nil:
			impossible++
		case held:
			blocked++
			fallthrough
		default:
			made[did.kind]++
		}
	})
	if total := len(swaps) - impossible; len(made) < len(swapKinds) || !sw.all && impossible > total/4 {
		t.Errorf("%s: %d swaps are not possible, and these are: %v", what, impossible, made)
	}
	counted(t, "%s: %d calls, %d swaps, %d blocked a path, %d more are not possible %v",
		what, len(calls[0])+len(calls[1]), len(swaps)-impossible, blocked, impossible, made)
}

// chosen are the swaps that are tried: all; or one for each call, one more of a managed
// path itself, and where the call changes that, one of each sort.
func (sw *swaps) chosen(calls [][]*touch) (swaps []swap) {
	for i := range sw.who {
		random := rand.New(rand.NewPCG(sw.seed, uint64(i)))
		for n, to := range calls[i] {
			add := func(tries []try) {
				swaps = append(swaps, swap{n + 1, &sw.who[i], random.IntN(4), tries})
			}
			tries := triesOf(to.parts, swapKinds)
			random.Shuffle(len(tries), func(i, j int) { tries[i], tries[j] = tries[j], tries[i] })
			if sw.all {
				for i := range tries {
					add(tries[i : i+1])
				}
				continue
			}
			add(tries)
			if to.itself == nil {
				continue
			}
			// What root hides is what somebody would like to have at a managed path.
			sorts := [][]string{{"root's secret"}}
			if strings.HasSuffix(to.itself.path, "data") || strings.HasSuffix(to.itself.path, "dir") {
				sorts = [][]string{{"root's directory"}}
			}
			if to.changes {
				sorts = append(sorts, slices.Sorted(maps.Keys(linked)), slices.Sorted(maps.Keys(moved)), otherKinds)
			}
			for _, sort := range sorts {
				tries := triesOf([]part{*to.itself}, sort)
				random.Shuffle(len(tries), func(i, j int) { tries[i], tries[j] = tries[j], tries[i] })
				add(tries)
			}
		}
	}
	return swaps
}

func triesOf(parts []part, kinds []string) (all []try) {
	for _, p := range parts {
		for _, kind := range kinds {
			all = append(all, try{p, kind})
		}
	}
	return all
}

// TestCrashInHomes ends the program before each change in a home: what it leaves there is
// somebody's, but finished by the next run all the same.
func TestCrashInHomes(t *testing.T) {
	tr := newTrial(t)
	first := tr.homes()
	points := 0
	for _, half := range halves {
		tr.push(butaneOf(half.first))
		applied := tr.copyOf(first)
		tr.run(applied)
		points += tr.crashInHomes("first run", first, half)
		tr.push(butaneOf(half.later))
		points += tr.crashInHomes("update", applied, half)
	}
	counted(t, "%d crash points", points)
}

func (tr *trial) crashInHomes(what, from string, half half) int {
	who := half.inHomes()
	inHomes := func(c call, dir string) bool {
		return slices.ContainsFunc(who, func(r resident) bool { return touchedBy(c, filepath.Join(dir, "root"), &r) != nil })
	}
	whole := tr.copyOf(from)
	var calls []int
	judged(tr.t, tr.argv(whole), durable, func(c call) verdict {
		if inHomes(c, whole) {
			calls = append(calls, c.n)
		}
		return verdict{}
	})
	want := onlyRoot(tr.end(whole))
	parallel(len(calls), func(n int) {
		dir := tr.copyOf(from)
		defer tr.remove(dir)
		var about string
		traced(tr.t, tr.argv(dir), func(k int, name string) syscall.Signal {
			if k != calls[n-1] {
				return 0
			}
			about = name
			return syscall.SIGKILL
		})
		point := fmt.Sprintf("%s, killed at operation %d (%s)", what, calls[n-1], about)
		for range 2 { // the second one has nothing to do
			code, said := tr.ran(tr.argv(dir))
			if code != 0 {
				tr.t.Errorf("%s: the next run ends with %d:\n%s", point, code, said)
			}
			// Not the state: the plan of the change has inodes in it.
			if diff := cmp.Diff(want, onlyRoot(tr.end(dir))); diff != "" {
				tr.t.Errorf("%s: ends elsewhere (-uninterrupted +crashed):\n%s\nthe next run said:\n%s", point, diff, said)
			}
		}
	})
	return len(calls)
}
