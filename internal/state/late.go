package state

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

// KeepLate keeps, in the directory of a change, what somebody put at a path since the
// change was pinned: a link, or the bytes of a file. It returns where that lies.
func KeepLate(dir, path string, node disk.Node, from io.Reader, keys *secret.Keys) (string, error) {
	dir = filepath.Join(dir, "late")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	name, err := lateName(dir, path, node.Secret)
	if err != nil {
		return "", err
	}
	if node.Kind == disk.Link {
		err = os.Symlink(node.Target, name)
	} else {
		err = Pristine{Secrets: keys}.write(name, from, node.Secret)
	}
	if err != nil {
		return "", err
	}
	return name, atomicfile.SyncDir(dir)
}

// lateName is a name that is free. The whole path would make one that is too long for
// some.
func lateName(dir, path string, encrypted bool) (string, error) {
	const most = 255 // NAME_MAX
	sum := sha256.Sum256([]byte(path))
	prefix, base := hex.EncodeToString(sum[:8])+"-", filepath.Base(path)
	for n := 0; ; n++ {
		suffix := "." + strconv.Itoa(n)
		if encrypted {
			suffix += secret.Suffix
		}
		name := filepath.Join(dir, prefix+base[:min(len(base), most-len(prefix)-len(suffix))]+suffix)
		_, err := os.Lstat(name)
		if errors.Is(err, os.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// Free returns how many bytes there are for what is written to a directory of the
// state, and the device that has them.
func Free(dir string) (device, bytes uint64, err error) {
	var st unix.Stat_t
	var space unix.Statfs_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(dir, &space)); err != nil {
		return 0, 0, fmt.Errorf("looking for free space at %s: %w", dir, err)
	}
	return st.Dev, space.Bavail * uint64(space.Bsize), nil
}
