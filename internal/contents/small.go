package contents

import (
	"errors"
	"io"
	"slices"
)

const (
	maxSmall = 64 << 10 // bytes of one file
	maxKept  = 8 << 20  // and of all
)

// Small is an Opener's files of up to 64 KiB, as git has them, the first 8 MiB that were
// read. It is for one goroutine.
type Small struct {
	blobs map[string][]byte
	size  int // in bytes
}

func (s *Small) get(blob string) ([]byte, bool) {
	if s == nil {
		return nil, false
	}
	data, ok := s.blobs[blob]
	return data, ok
}

func (s *Small) put(blob string, data []byte) {
	if _, known := s.blobs[blob]; known || s.size+len(data) > maxKept {
		return
	}
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	s.size += len(data)
	s.blobs[blob] = data
}

// keeping keeps what passes, once all of it did: only then it was found to be what its
// id names.
type keeping struct {
	io.ReadCloser
	blob string
	in   *Small
	data []byte
	over bool // it is too large
}

func (k *keeping) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	if k.over = k.over || len(k.data)+n > maxSmall; k.over {
		k.data = nil
		return n, err
	}
	k.data = append(k.data, p[:n]...)
	if errors.Is(err, io.EOF) {
		k.in.put(k.blob, slices.Clip(k.data))
	}
	return n, err
}
