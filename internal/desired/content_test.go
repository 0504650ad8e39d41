package desired_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/desired"
)

func TestUnpack(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(bytes.Repeat([]byte{0}, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("sha256-%X", sha256.Sum256(make([]byte, 1000)))
	for name, c := range map[string]struct {
		content desired.Content
		stored  []byte
		limit   int64
		want    string
	}{
		"plain":          {desired.Content{}, []byte("a"), 1, ""},
		"too long":       {desired.Content{}, []byte("ab"), 1, "more than 1 bytes"},
		"gzip":           {desired.Content{Gzip: true, Verify: sum}, packed.Bytes(), 1000, ""},
		"gzip bomb":      {desired.Content{Gzip: true}, packed.Bytes(), 999, "more than 999 bytes"},
		"gzip, cut off":  {desired.Content{Gzip: true}, packed.Bytes()[:15], 1000, "unexpected EOF"},
		"not gzip":       {desired.Content{Gzip: true}, []byte("a"), 1000, "decompressing"},
		"another's hash": {desired.Content{Verify: sum}, []byte("a"), 1000, "they are sha256-ca978112"},
		"malformed hash": {desired.Content{Verify: "sha1-00"}, []byte("a"), 1000, "neither sha256- nor sha512-"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.content.Unpack(c.stored, c.limit)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
