package bootedhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountOptions make the strictest ext4 there is: a rename is not flushed out of
// kindness, and nothing gets onto the disk early because five seconds have passed.
const mountOptions = "noauto_da_alloc,commit=600"

// From linux/fs.h; ext4 takes the same number as EXT4_IOC_SHUTDOWN.
const (
	fsIocShutdown       = 0x8004587d
	shutdownFlagNoFlush = 2 // FS_SHUTDOWN_FLAGS_NOLOGFLUSH
)

// disk is the ext4 of one host on a loop device. The image has no name any more and
// the device clears itself on its last close, so the end of this process frees both.
type disk struct {
	ns      *namespace
	loop    *os.File
	dir     string // mount point, in the namespace
	mounted bool
}

func newDisk(ns *namespace, template, dir string) (*disk, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	// Beside the template, so that file systems which share blocks need not copy.
	f, err := os.CreateTemp(filepath.Dir(template), "host-*.ext4")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := exec.Command("cp", "--reflink=auto", "--sparse=auto", template, f.Name()).CombinedOutput()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copying %s: %w: %s", template, err, out), os.Remove(f.Name()))
	}
	loop, err := attach(f)
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		return nil, err
	}
	return &disk{ns: ns, loop: loop, dir: dir}, nil
}

// attach puts a file behind a free loop device.
func attach(f *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("looking for a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		// In a container /dev is no devtmpfs, and the node of a new device is missing.
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("making %s: %w", path, err)
		}
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := &unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), config)
		if err == nil {
			return loop, nil
		}
		if err := errors.Join(err, loop.Close()); !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configuring %s: %w", path, err)
		}
	}
	return nil, errors.New("every loop device was taken by somebody else first")
}

func (d *disk) mount() error {
	// Others look at a new device, to see what it holds.
	var err error
	waitFor(10*time.Second, func() bool {
		err = d.ns.do(func() error { return unix.Mount(d.loop.Name(), d.dir, "ext4", 0, mountOptions) })
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return fmt.Errorf("mounting %s: %w", d.loop.Name(), err)
	}
	d.mounted = true
	return nil
}

// unmount returns when the file system is gone: a mount that some dying process
// still holds would be found again by the next one, shut down as it is.
func (d *disk) unmount() error {
	if !d.mounted {
		return nil
	}
	// A process that is just being started elsewhere in this program has copies of its
	// open files until it executes.
	var err error
	waitFor(30*time.Second, func() bool {
		err = d.ns.do(func() error { return unix.Unmount(d.dir, 0) })
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", d.loop.Name(), err)
	}
	d.mounted = false
	gone := waitFor(30*time.Second, func() bool {
		f, err := os.OpenFile(d.loop.Name(), os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			return false
		}
		return f.Close() == nil
	})
	if !gone {
		return fmt.Errorf("unmounting %s: still in use", d.loop.Name())
	}
	return nil
}

// root opens the root directory of the mounted disk.
func (d *disk) root() (fd int, err error) {
	err = d.ns.do(func() error {
		fd, err = unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func (d *disk) commit() error {
	root, err := d.root()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	fd, err := openIn(root, "/etc/machine-id", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A sync of a file that has nothing to sync commits nothing.
	if err := unix.Futimes(fd, []unix.Timeval{{}, {}}); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

// cutPower makes the file system drop everything that is not on the disk yet.
func (d *disk) cutPower() error {
	fd, err := d.root()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	flags := uint32(shutdownFlagNoFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocShutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("shutting down the file system: %w", errno)
	}
	return nil
}

func (d *disk) close() error {
	return errors.Join(d.unmount(), d.loop.Close())
}
