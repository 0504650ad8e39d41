package butane_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ignerrors "github.com/coreos/ignition/v2/config/shared/errors"
	ignition "github.com/coreos/ignition/v2/config/v3_7_experimental"
	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/lacking"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

// TestCorpus translates the examples of Butane's own documentation: every
// variant, every version, written by people who did not know this program.
func TestCorpus(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "corpus", "butane-docs")
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		lacking.Skip(t, "the corpus lies beside the project, at %s, and is absent here", dir)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.bu"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 76 {
		t.Fatalf("%d documents, want 76", len(names))
	}
	var translated, missing, applied, unsupported int
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		layer := filepath.Base(name)
		refs, err := butane.References(layer, data, nil)
		if err != nil {
			t.Errorf("%s: %v", layer, err)
			continue
		}
		filesDir := t.TempDir()
		e := butane.Exporter{Tree: sourcetest.Text(nil), FilesDir: ".", Dir: filesDir, Nonce: "nonce"}
		absent, err := e.Export(refs)
		if err != nil {
			t.Errorf("%s: %v", layer, err)
			continue
		}
		if len(refs) > 0 {
			missing++
			for i, ref := range refs {
				if i >= len(absent) || absent[i].Field != ref.Field || !strings.Contains(absent[i].Message, filepath.Clean(ref.Path)) {
					t.Errorf("%s: %s names %s, and the findings are:\n%s", layer, ref.Field, ref.Path, show(absent))
				}
			}
			continue
		}
		cfg, list := butane.Translate(layer, data, nil, filesDir, true)
		if errs := list.Errors(); len(errs) > 0 {
			t.Errorf("%s:\n%s", layer, show(errs))
			continue
		}
		translated++
		sameAsParsed(t, cfg, list)
		merged, list := butane.Merge([]butane.Config{cfg}, nil)
		_, more := desired.Translate(merged.Ignition, merged, nil)
		errs := append(list, more...).Errors()
		if len(errs) == 0 {
			applied++
			continue
		}
		unsupported++
		for _, f := range errs {
			if f.Line == 0 || !strings.Contains(f.Message, "not supported after first boot") &&
				!strings.Contains(f.Message, "needs a verification hash") {
				t.Errorf("%s: unexpected finding:\n%s", layer, show(finding.List{f}))
			}
		}
	}
	if translated != 64 || missing != 12 || applied != 56 || unsupported != 8 {
		t.Errorf("translated %d, naming missing files %d, applied %d, unsupported %d; want 64, 12, 56, 8",
			translated, missing, applied, unsupported)
	}
}

// sameAsParsed compares a config with what Ignition's own parser makes of Butane's
// output, and the findings with what it finds there.
func sameAsParsed(t *testing.T, cfg butane.Config, list finding.List) {
	t.Helper()
	parsed, report, err := ignition.ParseCompatibleVersion(cfg.Raw)
	if err != nil {
		t.Errorf("Ignition refuses what Butane made of %s, and nothing was said: %v", cfg.Layer, err)
	}
	if diff := cmp.Diff(parsed, cfg.Ignition); diff != "" {
		t.Errorf("%s (-Ignition's parser, +here):\n%s", cfg.Layer, diff)
	}
	for _, entry := range report.Entries {
		if entry.Message != ignerrors.ErrModeSpecialBits.Error() && !slices.ContainsFunc(list, func(f finding.Finding) bool { return f.Message == entry.Message }) {
			t.Errorf("%s: Ignition's parser says %q, and the findings do not:\n%s", cfg.Layer, entry.Message, show(list))
		}
	}
}

func show(list finding.List) string {
	var b strings.Builder
	_ = list.Write(&b)
	return b.String()
}
