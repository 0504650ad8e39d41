package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/engine/salt"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// secondEtc is where the container has the host's /etc once more, without what
// podman mounts into the first.
const secondEtc = "/host_etc"

// mount is a directory of the host and where the container has it.
type mount struct{ host, inside string }

// mounts are what the container has of the host: what every change may need,
// and the directory in the root directory below which each path lies that is
// written. A migration may write anywhere: it gets all of those.
func (c *Caller) mounts(call salt.Call) ([]mount, error) {
	view := view{}
	for _, always := range []string{"/etc", "/var", "/run", "/home", "/root"} {
		if _, err := view.add(always); err != nil {
			return nil, err
		}
	}
	for _, written := range call.Writes {
		if _, err := view.cover(written); err != nil {
			return nil, err
		}
	}
	for _, link := range call.Links {
		if err := c.checkLink(view, link[0], link[1]); err != nil {
			return nil, err
		}
	}
	migrations, err := os.ReadDir(filepath.Join(call.Folder, "sls", "migrations"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(migrations) > 0 {
		if err := view.addAll(); err != nil {
			return nil, err
		}
	}
	mounts := []mount{{view["/etc"], secondEtc}}
	for inside, real := range view {
		mounts = append(mounts, mount{real, inside})
	}
	if view[top(call.Folder)] == "" {
		mounts = append(mounts, mount{call.Folder, call.Folder})
	}
	slices.SortFunc(mounts, func(a, b mount) int { return strings.Compare(a.inside, b.inside) })
	return mounts, nil
}

// view is the file system that the container sees: which directory of the host
// it has at which of its own.
type view map[string]string

// top is the directory that is mounted for a path: the one in the root
// directory. /usr is the image's own, except for the host's part of it.
func top(p string) string {
	elements := strings.SplitN(p, "/", 4)
	if len(elements) > 2 && elements[1] == "usr" && elements[2] == "local" {
		return "/usr/local"
	}
	return "/" + elements[1]
}

// add mounts a directory, and tells whether the host has it.
func (v view) add(dir string) (bool, error) {
	if v[dir] != "" {
		return true, nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := os.Stat(real)
	if err != nil || !info.IsDir() || strings.ContainsAny(dir+real, ":,") {
		return false, err
	}
	v[dir] = real
	return true, nil
}

// belongsToImage are directories that the container has to have for itself.
func belongsToImage(dir string) bool {
	switch dir {
	case "/", "/usr", "/bin", "/sbin", "/dev", "/proc", "/sys", secondEtc:
		return true
	}
	return strings.HasPrefix(dir, "/lib") // lib, lib32, lib64
}

// cover mounts everything that the way to a path leads through, and returns
// where it ends: the directory that is mounted for the path itself.
func (v view) cover(written string) (string, error) {
	refused := func(why string) (string, error) {
		return "", &finding.Failure{Findings: finding.List{{
			Severity: finding.Error, Message: written + " cannot be written by the Salt container: " + why,
			Hint: "put it below /etc, /var, /opt, /srv or /usr/local, or let this host set kind = \"native\" under [engine] in config.toml",
		}}}
	}
	const mostLinks = 40
	at := written
	for range mostLinks {
		dir := top(at)
		if belongsToImage(dir) {
			return refused(dir + " is the image's own there")
		}
		there, err := v.add(dir)
		if err != nil {
			return "", fmt.Errorf("looking at the way to %s: %w", written, err)
		}
		if !there {
			return refused("this host has no directory " + dir + " that could be mounted there")
		}
		next, err := v.follow(dir, at)
		if err != nil {
			return "", fmt.Errorf("looking at the way to %s: %w", written, err)
		}
		if next == "" {
			return dir, nil
		}
		at = next
	}
	return refused("there are too many symbolic links on the way to it")
}

// checkLink: link(2) makes no name of one mount for a file of another, be they
// one file system or not.
func (c *Caller) checkLink(v view, path, target string) error {
	one, err := v.cover(path)
	if err != nil {
		return err
	}
	two, err := v.cover(target)
	if err != nil {
		return err
	}
	if one == two && (c.Place(path) == path) == (c.Place(target) == target) {
		return nil
	}
	return &finding.Failure{Findings: finding.List{{
		Severity: finding.Error, Message: fmt.Sprintf("%s cannot be made a hard link to %s by the Salt container: they lie in two of its mounts", path, target),
		Hint: "make it a symbolic link, or let this host set kind = \"native\" under [engine] in config.toml",
	}}}
}

// follow looks for the first symbolic link above at, below the mounted dir, and
// returns where at lies behind it, "" when there is none. It is the container
// that will follow it, so it leads through the container's directories.
func (v view) follow(dir, at string) (string, error) {
	rest := strings.Split(strings.TrimPrefix(strings.TrimPrefix(at, dir), "/"), "/")
	inside := dir
	for i, name := range rest[:len(rest)-1] {
		real := v[dir] + strings.TrimPrefix(path.Join(inside, name), dir)
		info, err := os.Lstat(real)
		if errors.Is(err, os.ErrNotExist) {
			return "", nil // it is still to be made
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			inside = path.Join(inside, name)
			continue
		}
		target, err := os.Readlink(real)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join(inside, target)
		}
		return path.Join(append([]string{target}, rest[i+1:]...)...), nil
	}
	return "", nil
}

// addAll mounts every directory that could be written to.
func (v view) addAll() error {
	names, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	dirs := []string{"/usr/local"}
	for _, name := range names {
		dirs = append(dirs, "/"+name.Name())
	}
	for _, dir := range dirs {
		if belongsToImage(dir) {
			continue
		}
		if _, err := v.add(dir); err != nil {
			return err
		}
	}
	return nil
}
