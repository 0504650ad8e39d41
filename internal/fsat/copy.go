package fsat

import (
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CopyTo writes the file's bytes into another one, which is empty and open for reading
// too, and into a hash. It shares blocks where the file system can, and leaves holes as
// they are. Never is it a hard link: a later chmod would reach into the copy.
func (r *File) CopyTo(into *os.File, sum hash.Hash) error {
	if unix.IoctlFileClone(int(into.Fd()), int(r.f.Fd())) == nil {
		r.bytes = &until{r.bytes.ctx, into} // what was shared, not what is there by now
		_, err := io.Copy(sum, r)
		return err
	}
	if r.Found.Allocated >= r.Found.Size() {
		_, err := io.Copy(io.MultiWriter(into, sum), r)
		return err
	}
	size := r.left
	for at := int64(0); at < size; {
		data, err := r.f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = size, nil // only a hole is left
		}
		if err != nil {
			return err
		}
		if data = min(data, size); data > at {
			if err := r.copyPart(io.Discard, sum, at, data-at); err != nil {
				return err
			}
		}
		if at = data; at == size {
			break
		}
		hole, err := r.f.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := into.Seek(at, io.SeekStart); err != nil {
			return err
		}
		if err := r.copyPart(into, sum, at, min(hole, size)-at); err != nil {
			return err
		}
		at = min(hole, size)
	}
	return into.Truncate(size)
}

// copyPart copies so many bytes from a place on.
func (r *File) copyPart(into io.Writer, sum hash.Hash, from, bytes int64) error {
	if _, err := r.f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	n, err := io.CopyN(io.MultiWriter(into, sum), r, bytes)
	if errors.Is(err, io.EOF) && n < bytes {
		err = r.changed()
	}
	return err
}
