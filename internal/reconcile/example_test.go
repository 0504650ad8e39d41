package reconcile_test

import (
	"context"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
)

// The example fleet is without a flaw: every host translates, no group is idle,
// no two of them contradict each other.
func TestExampleFleet(t *testing.T) {
	tree, err := checkout.Open("../../testdata/fleet")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	repo, err := fleet.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := repo.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	list, err := repo.Check(hosts)
	if err != nil || len(list) > 0 || len(hosts) < 12 {
		t.Errorf("%d hosts, %v, %v", len(hosts), list, err)
	}
	retired := 0
	for _, name := range hosts {
		hc, err := repo.Host(fleet.Machine{Names: []string{name}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if hc.Retired != "" {
			retired++
			continue
		}
		tr := reconcile.Translation{Tree: tree, Config: hc, Strict: true, Contents: &contents.Opener{Tree: tree, MaxFile: 1 << 20}, Overlaps: true}
		want, findings, err := tr.Run(context.Background())
		if err != nil || len(findings) > 0 || len(want.Files) == 0 {
			t.Errorf("%s: %d files, %v, %v", name, len(want.Files), findings, err)
		}
		for _, f := range want.Files {
			if f.Contents != nil && (strings.Contains(string(f.Contents.Inline), "{{") || strings.Contains(string(f.Contents.Inline), "<no value>")) {
				t.Errorf("%s: %s is not expanded", name, f.Path)
			}
		}
		if name == "shop1" {
			origins, err := tr.Explain(context.Background(), "/etc/compose/environment/shop.env")
			if err != nil || len(origins) != 1 || origins[0].File != "groups/compose/shop.bu.tmpl" || origins[0].Line != 8 {
				t.Errorf("%+v, %v", origins, err)
			}
		}
	}
	if retired != 2 {
		t.Errorf("%d retired hosts", retired)
	}
}
