package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

const (
	// fetchUser is the system user that fetches (packaging/sysusers.d).
	fetchUser = "reconf-pull"
	// nobodyElse is the uid and gid in its place on a host that lacks it: systemd gives
	// no use to the numbers from 65520 to 65533, and nobody is many.
	nobodyElse = 65521
)

// passedOn is what the process that fetches gets of this one's environment.
var passedOn = []string{
	"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "LANG", "LC_ALL", "TZ",
}

// setup is what the process that fetches is told.
type setup struct {
	gogit.Options
	Watched bool // somebody watches the progress
}

// source is the fleet repo.
func (a *app) source(m *machine, st *state.State) (*child.Source, error) {
	s := m.config.Source
	if a.url != "" {
		s.URL = a.url
	}
	if a.branch != "" {
		s.Branch = a.branch
	}
	if s.URL == "" {
		return nil, &config.Error{Err: fmt.Errorf("no fleet repo is configured: set url under [source] in %s, or say --url", config.Path)}
	}
	marks := map[string]string{}
	for ref, mark := range st.Marks {
		marks[ref] = mark.Commit
	}
	of := gogit.Options{
		URL: s.URL, Branch: s.Branch, Ref: st.Ref, Marks: marks, FullHistory: m.config.Verify.All, Dir: m.dirs.Mirror(), Timeout: time.Duration(s.Timeout),
		KnownHosts: []string{s.KnownHosts}, SSHKey: s.SSHKey, Username: s.Username, PasswordFile: s.PasswordFile,
		TokenFile: s.TokenFile, TokenType: s.TokenType, ClientCert: s.ClientCert, ClientKey: s.ClientKey, CAFile: s.CAFile,
		Limits: gogit.Limits{MaxFetch: int64(s.MaxFetch), MaxObject: int64(s.MaxObject), MaxObjects: s.MaxObjects, MaxRefs: s.MaxRefs},
	}
	checked, err := gogit.New(of)
	if err != nil {
		return nil, &config.Error{Err: err}
	}
	user, err := fetchAs(m.host)
	if err != nil {
		return nil, err
	}
	o := child.Options{
		Dir: m.dirs.Fetched(), User: user, Ref: st.Ref, Timeout: checked.Timeout, Memory: m.dirs.Folders(), Log: m.log,
		Setup: func(file child.HandOver) any {
			told := setup{Options: checked.HandOver(file), Watched: terminal(a.stderr)}
			if local := checked.Local(); local != "" {
				told.URL = local // the other process is in another directory
			}
			return told
		},
	}
	if s.Branch != "" {
		o.Ref = "refs/heads/" + strings.TrimPrefix(s.Branch, "refs/heads/")
	}
	if terminal(a.stderr) {
		o.Progress = a.stderr
	}
	if o.AgentUser = checked.Agent(); o.AgentUser != "" {
		o.Agent = os.Getenv("SSH_AUTH_SOCK")
	}
	o.Env, o.Read = fetchEnvironment(checked.Local(), user)
	src := child.New(o)
	a.close = append(a.close, src)
	return src, nil
}

// fetchAs is the user that fetches: nil, the one that runs this, where that is not
// root, or where a directory stands for the host, whose users are not this
// machine's.
func fetchAs(h *host.Host) (*run.User, error) {
	if !h.Live() || os.Geteuid() != 0 {
		return nil, nil
	}
	uid, gid, err := h.SystemUser(fetchUser)
	if errors.Is(err, host.ErrNoAccount) {
		return &run.User{UID: nobodyElse, GID: nobodyElse}, nil
	}
	if err != nil {
		return nil, err
	}
	if uid == 0 {
		return nil, &config.Error{Err: fmt.Errorf("the user %s, which fetches, is root", fetchUser)}
	}
	return &run.User{UID: uint32(uid), GID: uint32(gid)}, nil
}

// fetchEnvironment is what the process that fetches finds in its environment, and
// what it reads because of that. local is a fleet repo on this machine.
func fetchEnvironment(local string, user *run.User) (env, read []string) {
	for _, name := range passedOn {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		read = append(read, filepath.SplitList(os.Getenv(name))...)
	}
	if local != "" {
		read = append(read, local)
		// git uses no repository of somebody else, because its hooks and its config
		// are commands. None is run for a fetch, and by whom there is little to lose.
		env = append(env, "GIT_CONFIG_GLOBAL=/dev/null")
		if user != nil {
			env = append(env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
		}
	}
	return env, read
}

// fetchForParent is the process that fetches.
func fetchForParent(stderr io.Writer) int {
	var in unix.Stat_t
	if err := unix.Fstat(0, &in); err != nil || in.Mode&unix.S_IFMT != unix.S_IFIFO {
		fmt.Fprintf(stderr, "reconf-pull: error: reconf-pull run starts %s itself, when it needs it\n", child.Command)
		return exitInvalidArgument
	}
	if err := run.Closed(); err != nil {
		fmt.Fprintf(stderr, "closing itself off: %v\n", err)
		return exitFailure
	}
	if err := child.Serve(os.Stdin, os.Stdout, openMirror); err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitFailure
	}
	return exitSuccess
}

func openMirror(told []byte, progress io.Writer, log logrus.FieldLogger) (child.Mirror, error) {
	var s setup
	if err := json.Unmarshal(told, &s); err != nil {
		return nil, err
	}
	s.Log = log
	if s.Watched {
		s.Progress = progress
	}
	if err := clearOld(s.Dir); err != nil {
		return nil, err
	}
	mirror, err := gogit.New(s.Options)
	if err != nil {
		return nil, err
	}
	if local := mirror.Local(); local != "" {
		err := unix.Access(local, unix.R_OK|unix.X_OK)
		if errors.Is(err, unix.EACCES) {
			return nil, &source.Error{
				Err:  fmt.Errorf("%w: fetching %s: the user that fetches (uid %d) may not read it", source.ErrUnavailable, local, os.Getuid()),
				Hint: "It needs no more than to read it: chmod -R o+rX, and o+x for the directories above; or use an https or ssh URL.",
			}
		}
	}
	return mirror, nil
}

// clearOld removes what is no mirror of this release.
func clearOld(mirror string) error {
	dir, name := filepath.Split(mirror)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), name) })
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
