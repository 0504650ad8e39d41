package bootedhost

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write puts a file onto the host, which may be off, and syncs it: a test's own set-up
// survives a power cut. Directories that lack are made. The file is replaced, never
// written in place, so a running program can be exchanged.
func (h *Host) Write(path string, data []byte, mode fs.FileMode) {
	h.tb.Helper()
	err := h.withRoot(func(root int) error { return replace(root, path, data, mode) })
	if err != nil {
		h.tb.Fatalf("%s: writing %s: %v", h.Name, path, err)
	}
}

// Read returns a file of the host, which may be off.
func (h *Host) Read(path string) []byte {
	h.tb.Helper()
	b, err := h.read(path)
	if err != nil {
		h.tb.Fatalf("%s: %v", h.Name, err)
	}
	return b
}

// Peek is Read for a host that may be in the middle of a boot: nil if there is no file.
func (h *Host) Peek(path string) []byte {
	b, err := h.read(path)
	if err != nil {
		return nil
	}
	return b
}

// Exists says whether the host, which may be off, has something at path; a link counts
// by what it points to.
func (h *Host) Exists(path string) bool {
	h.tb.Helper()
	err := h.withRoot(func(root int) error {
		fd, err := openIn(root, path, unix.O_PATH)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.tb.Fatalf("%s: looking at %s: %v", h.Name, path, err)
	}
	return err == nil
}

// Install puts a program into the host's /usr/bin.
func (h *Host) Install(binary string) {
	h.tb.Helper()
	h.copyFrom(binary, filepath.Join("/usr/bin", filepath.Base(binary)))
}

func (h *Host) copyFrom(local, path string) {
	h.tb.Helper()
	info, err := os.Stat(local)
	if err != nil {
		h.tb.Fatal(err)
	}
	data, err := os.ReadFile(local)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.Write(path, data, info.Mode())
}

func (h *Host) read(path string) (data []byte, err error) {
	err = h.withRoot(func(root int) error {
		fd, err := openIn(root, path, unix.O_RDONLY)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		data, err = io.ReadAll(f)
		return err
	})
	return data, err
}

// withRoot gives f the host's root directory: of the running system if there is one,
// so that /run and /proc are the host's, of the disk otherwise.
func (h *Host) withRoot(f func(root int) error) error {
	if h.up() {
		pid, err := h.findLeader()
		if err != nil {
			return err
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(fd)
	}
	if err := h.disk.mount(); err != nil {
		return err
	}
	fd, err := h.disk.root()
	if err == nil {
		err = f(fd)
		unix.Close(fd)
	}
	return errors.Join(err, h.disk.unmount())
}

// openIn opens an absolute path as the host would: its links are resolved below root, an absolute
// one never leads to a file of this machine.
func openIn(root int, path string, flags uint64) (int, error) {
	// Relative, because an absolute path that somehow lost its root would be this machine's.
	return unix.Openat2(root, "."+path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

func replace(root int, path string, data []byte, mode fs.FileMode) error {
	dir, err := mkdirIn(root, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := filepath.Base(path)
	temp := "." + name + ".bootedhost"
	if err := unix.Unlinkat(dir, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(data)
	// Chmod comes last, because it is not bound by the umask.
	err = errors.Join(err, f.Chmod(mode.Perm()), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := unix.Renameat(dir, temp, dir, name); err != nil {
		return err
	}
	return unix.Fsync(dir)
}

// mkdirIn opens a directory of the host, made if need be.
func mkdirIn(root int, path string) (int, error) {
	fd, err := openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := mkdirIn(root, filepath.Dir(path))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, filepath.Base(path), 0o755); err != nil {
		return -1, err
	}
	if err := unix.Fsync(parent); err != nil {
		return -1, err
	}
	return openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
}
