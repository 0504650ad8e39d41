package objects

import (
	"strings"
	"testing"
)

// FuzzTree: no entry of a tree that is taken leads anywhere but into its folder.
func FuzzTree(f *testing.F) {
	id := strings.Repeat("i", 20)
	for _, seed := range []string{"100644 a\x00" + id, "40000 a\x00" + id + "120000 b\x00" + id, "100644 ..\x00" + id, "100644 .git\x00" + id, "7777777 a/b\x00" + id, "100644 \x00" + id, "100644 a\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		folder, err := parseTree(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for i := range folder.entries {
			e := folder.entry(i)
			if at, ok := folder.find(e.Path); !ok || at != i {
				t.Errorf("%q is not found", e.Path)
			}
			if e.Path == "" || e.Path == "." || e.Path == ".." || strings.ContainsAny(e.Path, "/\x00") || strings.EqualFold(e.Path, ".git") || seen[e.Path] {
				t.Errorf("an entry %q", e.Path)
			}
			seen[e.Path] = true
			if len(e.ID) != 40 {
				t.Errorf("an id %q", e.ID)
			}
		}
	})
}
