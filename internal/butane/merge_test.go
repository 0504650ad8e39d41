package butane_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

func translate(t *testing.T, layer, doc string) butane.Config {
	t.Helper()
	cfg, list := butane.Translate(layer, []byte(doc), nil, t.TempDir(), true)
	if len(list.Errors()) > 0 {
		t.Fatalf("%s:\n%s", layer, show(list))
	}
	return cfg
}

func TestMergeDepth(t *testing.T) {
	config := `{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/deep"}]}}`
	for range 15 {
		config = fmt.Sprintf(`{"ignition":{"version":"3.4.0","config":{"replace":{"source":"data:;base64,%s"}}}}`,
			base64.StdEncoding.EncodeToString([]byte(config)))
	}
	layer := func() string {
		return "variant: fcos\nversion: 1.5.0\nignition:\n  config:\n    merge:\n      - inline: '" + config + "'\n"
	}
	cfg, list := butane.Merge([]butane.Config{translate(t, "a.bu", layer())}, nil)
	if len(list) > 0 || len(cfg.Ignition.Storage.Files) != 1 {
		t.Errorf("16 deep: %v\n%s", cfg.Ignition.Storage.Files, show(list))
	}
	config = fmt.Sprintf(`{"ignition":{"version":"3.4.0","config":{"merge":[{"source":"data:;base64,%s"}]}}}`,
		base64.StdEncoding.EncodeToString([]byte(config)))
	_, list = butane.Merge([]butane.Config{translate(t, "a.bu", layer())}, nil)
	if len(list) != 1 || !strings.Contains(list[0].Message, "more than 16 deep") || list[0].Line != 6 {
		t.Errorf("17 deep:\n%s", show(list))
	}
}

func TestMergeFetch(t *testing.T) {
	const layer = `variant: fcos
version: 1.5.0
ignition:
  config:
    merge:
      - source: https://example.com/a.ign
        compression: gzip
        http_headers:
          - name: Authorization
            value: hunter2
        verification:
          hash: sha256-ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb
`
	cfg := translate(t, "a.bu", layer)
	for name, c := range map[string]struct {
		fetch butane.Fetch
		want  string
	}{
		"nobody fetches": {nil, "cannot be fetched here"},
		"not found":      {func(desired.Content) ([]byte, error) { return nil, fmt.Errorf("404 Not Found") }, "404 Not Found"},
		"not compressed": {func(desired.Content) ([]byte, error) { return []byte("a"), nil }, "decompressing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, list := butane.Merge([]butane.Config{cfg}, c.fetch)
			text := show(list)
			if len(list.Errors()) != 1 || !strings.Contains(text, c.want) || !strings.HasPrefix(text, "a.bu:6:17: error:") {
				t.Errorf("findings:\n%s", text)
			}
			if strings.Contains(text, "hunter2") {
				t.Errorf("a secret is shown:\n%s", text)
			}
		})
	}
}

func TestMergeNothing(t *testing.T) {
	cfg, list := butane.Merge(nil, nil)
	if len(list) > 0 {
		t.Errorf("findings:\n%s", show(list))
	}
	if _, list := desired.Translate(cfg.Ignition, cfg, nil); len(list) > 0 {
		t.Errorf("findings:\n%s", show(list))
	}
}

// BenchmarkTranslate is a tree of 2,000 files of 64 KiB, which as text would
// take Butane seconds and gigabytes.
func BenchmarkTranslate(b *testing.B) {
	files := map[string]string{}
	for i := range 2000 {
		files[fmt.Sprintf("tree/%d/%d", i/100, i)] = strings.Repeat("x", 64<<10)
	}
	tree := sourcetest.Text(files)
	layer := []byte("variant: fcos\nversion: 1.6.0\nstorage:\n  trees:\n    - local: tree\n      path: /opt\n")
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "files")
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		refs, err := butane.References("web1.bu", layer, nil)
		if err != nil {
			b.Fatal(err)
		}
		e := butane.Exporter{Tree: tree, FilesDir: ".", Dir: dir, Nonce: "n"}
		if list, err := e.Export(refs); err != nil || len(list) > 0 {
			b.Fatal(err, list)
		}
		cfg, list := butane.Translate("web1.bu", layer, nil, dir, true)
		merged, more := butane.Merge([]butane.Config{cfg}, nil)
		state, most := desired.Translate(merged.Ignition, merged, butane.Blobs("n"))
		if len(list)+len(more)+len(most) > 0 || len(state.Files) != 2000 {
			b.Fatal(show(list), show(more), show(most))
		}
	}
}
