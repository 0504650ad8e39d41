package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

func sumOf(r io.Reader) (sum string, size int64, err error) {
	h := sha256.New()
	size, err = io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), size, err
}
