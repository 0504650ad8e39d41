package gogit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A server whose packs all break off does not fill the disk with the folders in them.
func TestTrimBeforeABrokenPack(t *testing.T) {
	dir := packDir(t)
	folders := filepath.Join(dir, "folders")
	if err := os.Mkdir(folders, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for i := range 20 {
		file := filepath.Join(folders, fmt.Sprintf("%040d", i))
		if err := os.WriteFile(file, make([]byte, 2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, old, old.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if receivePack(t.Context(), dir, strings.NewReader("PACK, but no pack"), small) == nil {
		t.Error("it was taken")
	}
	left, err := os.ReadDir(folders)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 12 || left[0].Name() != fmt.Sprintf("%040d", 8) {
		t.Errorf("%v are left, want the 12 newest", left)
	}
}
