// Package atomicfile writes files that others rely on.
//
// Its one rule: after Write returns nil the new content survives a power cut,
// and at every instant before that a reader finds the old content whole or the
// new one whole.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write replaces path with data: temporary file beside it, fsync, rename,
// fsync of the directory. The temporary file has a fixed name, so that what a
// crash leaves behind is replaced by the next Write and never piles up.
func Write(path string, data []byte, mode os.FileMode) error {
	if err := writeTemp(path, data, mode, true); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// WriteVolatile replaces path with data by rename, without any fsync: for
// tmpfs, where only readers matter.
func WriteVolatile(path string, data []byte, mode os.FileMode) error {
	return writeTemp(path, data, mode, false)
}

func writeTemp(path string, data []byte, mode os.FileMode, sync bool) (err error) {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// SyncFS makes everything durable that was written to the file system that
// holds path, contents and names alike: syncfs(2), which also reports the
// write-back errors since path was opened.
func SyncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncing the file system of %s: %w", path, err)
	}
	return nil
}
