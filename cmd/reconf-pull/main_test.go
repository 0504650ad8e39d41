package main_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"reconf-pull":        func() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) },
		"reconf-pull-locked": lockedRun,
		"reconf-pull-calls":  everyCall,
	})
}

// TestScripts runs the program as an operator does: a fleet repo, pushes to it,
// and a directory that stands for the host.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         t.TempDir(), // testscript leaves its own behind, empty
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               prepare,
		Condition: func(cond string) (bool, error) {
			if cond == "mounts" {
				return canMount(), nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": agentCommand, "refused": refused, "status": status,
			"gitrepo": gitrepo, "push": push, "sign": sign, "expandenv": expandEnv,
			"noleftovers": noLeftovers, "snapshot": snapshot, "unchanged": unchanged, "mode": mode, "lines": lines, "replace": replace,
			"stalling": stalling, "closedport": closedport, "serve": serve,
			"tmpfs": tmpfs, "readonly": readonly, "immutable": immutable, "mutable": mutable, "bomb": bomb, "fill": fill, "same": sameFile, "link": link, "locked": locked, "sum": sum, "nowhere": nowhere, "tree": tree, "writetree": writeTree,
		},
	})
}

// prepare makes an empty host and says which fleet repo and which name it has.
// $CONFIG is passed to every agent command; a script may replace the file.
func prepare(env *testscript.Env) error {
	for _, dir := range []string{"etc", "run", "usr/lib", "var/cache", "var/lib", "proc", "srv"} {
		if err := os.MkdirAll(filepath.Join(env.WorkDir, "root", dir), 0o755); err != nil {
			return err
		}
	}
	env.Setenv("ROOT", filepath.Join(env.WorkDir, "root"))
	env.Setenv("STATE", filepath.Join(env.WorkDir, "root/var/lib/reconf-pull"))
	env.Setenv("CONFIG", filepath.Join(env.WorkDir, "config.toml"))
	env.Setenv("URL", filepath.Join(env.WorkDir, "fleet.git"))
	env.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	env.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env.Setenv("GIT_"+who+"_NAME", "Operator")
		env.Setenv("GIT_"+who+"_EMAIL", "operator@example.com")
	}
	env.Values[snapshotsKey{}] = map[string]map[string]string{}
	config := filepath.Join(env.WorkDir, "config.toml")
	if _, err := os.Stat(config); err == nil {
		return nil
	}
	text := fmt.Sprintf("[source]\nurl = '%s'\n\n[host]\nname = 'web1'\n", filepath.Join(env.WorkDir, "fleet.git"))
	return os.WriteFile(config, []byte(text), 0o644)
}

// only refuses the form that a command does not have.
func only(ts *testscript.TestScript, neg, usage bool, text string) {
	if neg || !usage {
		ts.Fatalf("usage: %s", text)
	}
}

// execute runs a program and requires its exact exit status; stdout and stderr
// are then looked at as after exec.
func execute(ts *testscript.TestScript, want string, program string, args ...string) {
	number, err := strconv.Atoi(want)
	if err != nil {
		ts.Fatalf("%q is no exit status", want)
	}
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(program, args...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%s: %v", program, err)
	}
	if got != number {
		ts.Fatalf("%s %s: exit status %d, want %d", program, strings.Join(args, " "), got, number)
	}
}

// status N PROGRAM ARG… is exec with an exact exit status.
func status(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) > 1, "status N program args...")
	execute(ts, args[0], args[1], args[2:]...)
}

// agent N COMMAND ARG… runs reconf-pull on the script's host and requires exit
// status N.
func agentCommand(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) > 1, "agent N command args...")
	execute(ts, args[0], "reconf-pull", append([]string{args[1], "--config", ts.Getenv("CONFIG"), "--root", ts.Getenv("ROOT")}, args[2:]...)...)
}

// refused N COMMAND ARG… is agent, and requires that the host and what is
// remembered about it are as they were, with no temporary file anywhere.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) > 1, "refused N command args...")
	before := host(ts)
	agentCommand(ts, false, args)
	if diff := cmp.Diff(before, host(ts)); diff != "" {
		ts.Fatalf("the host changed (-before +after):\n%s", diff)
	}
	noLeftovers(ts, false, nil)
}

// own are the paths of the agent that hold nothing of the host. Which commit was
// verified last is remembered also when it is refused for what it holds.
var own = []string{"var/cache/reconf-pull", "run/reconf-pull", "var/lib/reconf-pull/verified.json"}

// host describes every path of the script's host. Of the state directory only
// files count, without their times: a first run makes directories.
func host(ts *testscript.TestScript) map[string]string {
	root := ts.Getenv("ROOT")
	tree := map[string]string{}
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(own, rel) {
			if !d.IsDir() {
				return nil
			}
			return fs.SkipDir
		}
		inState := strings.HasPrefix(rel+"/", "var/lib/reconf-pull/")
		if inState && (d.IsDir() || d.Name() == "lock") {
			return nil
		}
		tree[rel], err = describe(path, !inState && rel != "var/lib" && rel != "var/cache" && rel != "run")
		return err
	}))
	return tree
}

func describe(path string, times bool) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	stat := info.Sys().(*syscall.Stat_t)
	text := fmt.Sprintf("%s %d:%d", info.Mode(), stat.Uid, stat.Gid)
	if times {
		text += " " + info.ModTime().Format("15:04:05.000000000")
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return text + " -> " + target, err
	case info.Size() > 1<<30: // it is one hole
		return fmt.Sprintf("%s %d bytes", text, info.Size()), nil
	case info.Mode().IsRegular():
		data, err := os.ReadFile(path)
		return fmt.Sprintf("%s %d bytes %x", text, len(data), sha256.Sum256(data)), err
	}
	return text, nil
}

// temporary are the names under which anything is written before it is whole.
var temporary = regexp.MustCompile(`\.reconf(-|$)|\.new$|\.tmp([^l]|$)|\.part|^export-`)

// noleftovers requires that nothing on the host is half written.
func noLeftovers(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 0, "noleftovers")
	ts.Check(filepath.WalkDir(ts.Getenv("ROOT"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && temporary.MatchString(d.Name()) {
			return fmt.Errorf("%s was left behind", path)
		}
		return err
	}))
}

type snapshotsKey struct{}

// snapshot NAME remembers the host, unchanged NAME compares with it.
func snapshot(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "snapshot name")
	snapshots(ts)[args[0]] = host(ts)
}

func unchanged(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, false, len(args) == 1, "[!] unchanged name")
	before, ok := snapshots(ts)[args[0]]
	if !ok {
		ts.Fatalf("there is no snapshot %s", args[0])
	}
	diff := cmp.Diff(before, host(ts))
	if !neg && diff != "" {
		ts.Fatalf("the host changed (-before +after):\n%s", diff)
	}
	if neg && diff == "" {
		ts.Fatalf("the host did not change")
	}
}

func snapshots(ts *testscript.TestScript) map[string]map[string]string {
	return ts.Value(snapshotsKey{}).(map[string]map[string]string)
}

// gitrepo makes the fleet repo out of the script's folder fleet.
func gitrepo(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 0, "gitrepo")
	work := ts.MkAbs("fleet")
	ts.Check(os.MkdirAll(work, 0o755))
	ts.Check(ts.Exec("git", "init", "-q", "-b", "main", "--bare", ts.Getenv("URL")))
	ts.Check(ts.Exec("git", "-C", work, "init", "-q", "-b", "main"))
	ts.Check(ts.Exec("git", "-C", work, "remote", "add", "origin", ts.Getenv("URL")))
	push(ts, false, []string{"first"})
}

// push MESSAGE commits what is in the folder fleet and pushes it.
func push(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "push message")
	work := ts.MkAbs("fleet")
	for _, command := range [][]string{{"add", "-A"}, {"commit", "-q", "--allow-empty", "-m", args[0]}, {"push", "-q", "origin", "HEAD"}} {
		ts.Check(ts.Exec("git", append([]string{"-C", work}, command...)...))
	}
}

// sign KEY has the next commits signed with an ssh key, and with none for nobody.
func sign(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "sign key")
	work := ts.MkAbs("fleet")
	ts.Check(ts.Exec("git", "init", "-q", "-b", "main", work))
	for _, setting := range [][]string{{"gpg.format", "ssh"}, {"user.signingKey", ts.MkAbs(args[0])}, {"commit.gpgSign", strconv.FormatBool(args[0] != "nobody")}} {
		ts.Check(ts.Exec("git", append([]string{"-C", work, "config"}, setting...)...))
	}
}

// expandenv FILE replaces the variables in a file.
func expandEnv(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "expandenv file")
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(path), ts.Getenv)), 0o644))
}

// mode OCTAL FILE [UID:GID] compares the mode, and the owner.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2 || len(args) == 3, "mode octal file [uid:gid]")
	info, err := os.Lstat(ts.MkAbs(args[1]))
	ts.Check(err)
	stat := info.Sys().(*syscall.Stat_t)
	if got := fmt.Sprintf("%04o", stat.Mode&0o7777); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
	if got := fmt.Sprintf("%d:%d", stat.Uid, stat.Gid); len(args) == 3 && got != args[2] {
		ts.Fatalf("%s belongs to %s, want %s", args[1], got, args[2])
	}
}

// tree DIR FILE requires that the lines of FILE are all that is below DIR: mode, owner,
// path, and of a link where it leads, of a file its first line. What is the agent's own
// is left out. writetree DIR FILE writes them.
func tree(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "tree dir file")
	if is := below(ts, args[0]); is != ts.ReadFile(args[1]) {
		ts.Fatalf("%s is not as %s says, but:\n%s", args[0], args[1], is)
	}
}

func writeTree(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "writetree dir file")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(below(ts, args[0])), 0o644))
}

func below(ts *testscript.TestScript, dir string) string {
	var found strings.Builder
	dir = ts.MkAbs(dir)
	ts.Check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, dir+"/")
		if err != nil || path == dir {
			return err
		}
		if slices.Contains(own, rel) || rel == "var/lib/reconf-pull" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %d:%d %s", info.Mode(), stat.Uid, stat.Gid, rel)
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			ts.Check(err)
			line += " -> " + target
		} else if info.Mode().IsRegular() && info.Size() > 0 {
			data := make([]byte, 60) // of a file that may be too large for memory
			f, err := os.Open(path)
			ts.Check(err)
			n, err := f.Read(data)
			ts.Check(errors.Join(err, f.Close()))
			first, _, _ := strings.Cut(string(data[:n]), "\n")
			line += " " + strings.Trim(first, "\x00")
		}
		_, err = fmt.Fprintln(&found, line)
		return err
	}))
	return found.String()
}

// link FILE TARGET requires a symbolic link with exactly this target.
func link(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "link file target")
	got, err := os.Readlink(ts.MkAbs(args[0]))
	ts.Check(err)
	if got != args[1] {
		ts.Fatalf("%s leads to %s, want %s", args[0], got, args[1])
	}
}

// lines FILE N counts the lines of a file, stdout or stderr.
func lines(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "lines file n")
	if got := strconv.Itoa(strings.Count(ts.ReadFile(args[0]), "\n")); got != args[1] {
		ts.Fatalf("%s has %s lines, want %s", args[0], got, args[1])
	}
}

// replace FILE OLD NEW edits a file in place. \\n in OLD and NEW is a newline.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 3, "replace file old new")
	before := ts.ReadFile(args[0])
	after := strings.ReplaceAll(before, strings.ReplaceAll(args[1], `\n`, "\n"), strings.ReplaceAll(args[2], `\n`, "\n"))
	if before == after {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(after), 0o644))
}

// sum VAR FILE sets VAR to the SHA-256 of a file.
func sum(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "sum var file")
	ts.Setenv(args[0], fmt.Sprintf("%x", sha256.Sum256([]byte(ts.ReadFile(args[1])))))
}

// nowhere SECRET FILE… requires that the bytes of SECRET are in no file of the
// host, its state, cache and run directories included, but in these, and neither
// they nor their hash in what the last command said.
func nowhere(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) > 0, "nowhere secret file...")
	plain := bytes.TrimSpace([]byte(ts.ReadFile(args[0])))
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(ts.ReadFile(args[0]))))
	for _, said := range []string{"stdout", "stderr"} {
		if text := ts.ReadFile(said); strings.Contains(text, string(plain)) || strings.Contains(text, hash[:12]) {
			ts.Fatalf("%s shows the secret:\n%s", said, text)
		}
	}
	allowed := args[1:]
	for i := range allowed {
		allowed[i] = ts.MkAbs(allowed[i])
	}
	ts.Check(filepath.WalkDir(ts.Getenv("ROOT"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(allowed, path) {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, plain) {
			return fmt.Errorf("%s holds the secret", path)
		}
		return err
	}))
}

// same A B requires that two names are one file.
func sameFile(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, false, len(args) == 2, "[!] same a b")
	a, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if os.SameFile(a, b) == neg {
		ts.Fatalf("%s and %s: one file: %v", args[0], args[1], !neg)
	}
}

// listen opens a port of this machine until the script ends.
func listen(ts *testscript.TestScript) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	return l
}

// stalling VAR sets VAR to the address of a server that takes connections and
// never says a word; the first one makes the file VAR.connected.
func stalling(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "stalling var")
	l, connected := listen(ts), ts.MkAbs(args[0]+".connected")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_ = os.WriteFile(connected, nil, 0o644) // who waits for it will say that it is missing
		}
	}()
	ts.Setenv(args[0], l.Addr().String())
}

// closedport VAR sets VAR to an address where nothing listens.
func closedport(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "closedport var")
	l := listen(ts)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

// serve VAR DIR sets VAR to the address of a web server for a folder; each
// request becomes a line of the file DIR.log.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "serve var dir")
	dir := ts.MkAbs(args[1])
	log, err := os.OpenFile(dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	ts.Check(err)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(log, r.Method, r.URL.Path)
		files.ServeHTTP(w, r)
	}))
	ts.Defer(func() { server.Close(); _ = log.Close() })
	ts.Setenv(args[0], strings.TrimPrefix(server.URL, "http://"))
}

// locked FILE holds a lock on a file until the script ends.
func locked(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "locked file")
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR|os.O_CREATE, 0o600)
	ts.Check(err)
	ts.Check(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	ts.Defer(func() { _ = f.Close() })
}

// bomb FILE writes a small gzip file of more than the 64 MiB that are allowed.
func bomb(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "bomb file")
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.CopyN(w, zeros{}, 64<<20+1)
	ts.Check(errors.Join(err, w.Close()))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o644))
}

// fill FILE BYTES writes a file of bytes that no compression makes smaller.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "fill file bytes")
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	data := make([]byte, size)
	_, err = rand.NewChaCha8([32]byte{}).Read(data)
	ts.Check(errors.Join(err, os.WriteFile(ts.MkAbs(args[0]), data, 0o644)))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// canMount tells whether file systems can be mounted: by root only. In CI
// nothing is left out, so whoever is not root fails there.
func canMount() bool { return os.Geteuid() == 0 || os.Getenv("CI") != "" }

// tmpfs DIR SIZE mounts a small file system; it is gone when the script ends.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 2, "tmpfs dir size")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size="+args[1]))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
}

// readonly DIR lets nobody write to a file system that tmpfs mounted.
func readonly(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "readonly dir")
	ts.Check(unix.Mount("", ts.MkAbs(args[0]), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// immutable FILE lets nobody replace a file, as chattr +i does; mutable FILE
// undoes that.
func immutable(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "immutable file")
	file := ts.MkAbs(args[0])
	ts.Check(setFlags(file, unix.STATX_ATTR_IMMUTABLE))
	ts.Defer(func() { _ = setFlags(file, 0) }) // mutable may have done it
}

func mutable(ts *testscript.TestScript, neg bool, args []string) {
	only(ts, neg, len(args) == 1, "mutable file")
	ts.Check(setFlags(ts.MkAbs(args[0]), 0))
}

// setFlags sets the inode flags of ioctl_iflags(2); the immutable one is the
// same number there as in statx(2).
func setFlags(file string, flags int) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}
