package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/run"
)

// Accounts resolves names of users and groups to ids: on the running machine
// by getent(1), because a static binary sees neither nss modules nor
// /usr/lib/passwd; below another root by its own /etc and /usr/lib files.
type Accounts struct {
	Host   *Host
	Runner run.Runner

	known map[string]int // database + ":" + name -> id
}

// ErrNoAccount says that the host does not know the name.
var ErrNoAccount = errors.New("no such account")

// User returns the uid of a name.
func (a *Accounts) User(ctx context.Context, name string) (int, error) {
	return a.lookup(ctx, "passwd", name)
}

// Group returns the gid of a name.
func (a *Accounts) Group(ctx context.Context, name string) (int, error) {
	return a.lookup(ctx, "group", name)
}

func (a *Accounts) lookup(ctx context.Context, database, name string) (int, error) {
	if name == "root" {
		return 0, nil
	}
	key := database + ":" + name
	if id, ok := a.known[key]; ok {
		return id, nil
	}
	var (
		entries []byte
		err     error
	)
	if a.Host.Live() {
		entries, err = a.getent(ctx, database, name)
	} else {
		entries, err = a.files(database)
	}
	if err != nil {
		return 0, err
	}
	id, ok := find(entries, name)
	if !ok {
		return 0, ErrNoAccount
	}
	if a.known == nil {
		a.known = map[string]int{}
	}
	a.known[key] = id
	return id, nil
}

func (a *Accounts) getent(ctx context.Context, database, name string) ([]byte, error) {
	out, err := a.Runner.Run(ctx, "getent", database, name)
	var failed *run.Error
	if errors.As(err, &failed) && failed.ExitCode() == 2 { // getent(1): the key was not found
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the %s entry of %s: %w", database, name, err)
	}
	return out, nil
}

func (a *Accounts) files(database string) ([]byte, error) {
	var all []byte
	for _, dir := range []string{"/etc/", "/usr/lib/"} {
		data, err := a.Host.ReadFile(dir + database)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("reading accounts: %w", err)
		}
		all = append(append(all, data...), '\n')
	}
	return all, nil
}

// SystemUser returns uid and primary group of a system user, who is in the files
// that systemd-sysusers(8) keeps. It asks nobody else, and is quick.
func (h *Host) SystemUser(name string) (uid, gid int, err error) {
	entries, err := (&Accounts{Host: h}).files("passwd")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(entries)) {
		fields := strings.Split(line, ":")
		if len(fields) < 4 || fields[0] != name {
			continue
		}
		uid, err1 := strconv.Atoi(fields[2])
		gid, err2 := strconv.Atoi(fields[3])
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, fmt.Errorf("reading the user %s of passwd: %w", name, err)
		}
		return uid, gid, nil
	}
	return 0, 0, ErrNoAccount
}

// UserName is the name of a user in the files that systemd-sysusers(8) keeps, "" where
// they have none and for root.
func (h *Host) UserName(uid int) string {
	entries, err := (&Accounts{Host: h}).files("passwd")
	if uid == 0 || err != nil {
		return ""
	}
	for line := range strings.Lines(string(entries)) {
		if fields := strings.Split(line, ":"); len(fields) > 2 && fields[2] == strconv.Itoa(uid) {
			return fields[0]
		}
	}
	return ""
}

// find reads the third field of the first entry with that name (passwd(5), group(5)).
func find(entries []byte, name string) (int, bool) {
	for line := range strings.Lines(string(entries)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		if id, err := strconv.Atoi(fields[2]); err == nil {
			return id, true
		}
	}
	return 0, false
}
