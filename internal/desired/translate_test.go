package desired_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
)

// words is a Locator that says what it was asked for.
type words struct{}

func (words) Path(path string, field ...any) finding.Position      { return said(path, field) }
func (words) Unit(name string, field ...any) finding.Position      { return said(name, field) }
func (words) Dropin(u, name string, field ...any) finding.Position { return said(u+"/"+name, field) }
func (words) Section(name string) finding.Position                 { return said(name, nil) }

func said(what string, field []any) finding.Position {
	return finding.Position{Field: strings.TrimSpace(fmt.Sprintln(append([]any{what}, field...)...))}
}

func ptr[T any](v T) *T { return &v }

func file(path, source string) types.File {
	return types.File{Node: types.Node{Path: path}, FileEmbedded1: types.FileEmbedded1{Contents: types.Resource{Source: &source}}}
}

func TestTranslateFindings(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  types.Config
		want []string
	}{
		"relative path": {
			types.Config{Storage: types.Storage{Files: []types.File{file("etc/a", "data:,a")}}},
			[]string{`etc/a: error: path "etc/a" is not absolute`},
		},
		"one path, written in two ways": {
			types.Config{Storage: types.Storage{
				Files:       []types.File{file("/etc//a", "data:,a")},
				Directories: []types.Directory{{Node: types.Node{Path: "/etc/a/"}}},
			}},
			[]string{"/etc//a: error: /etc/a is asked for twice: as file here, as directory at /etc/a/"},
		},
		"a file and a unit": {
			types.Config{
				Storage: types.Storage{Files: []types.File{file("/etc/systemd/system/a.service", "data:,a")}},
				Systemd: types.Systemd{Units: []types.Unit{{Name: "a.service", Mask: ptr(true)}}},
			},
			[]string{"a.service: error: /etc/systemd/system/a.service is asked for twice: as unit a.service here, as file at /etc/systemd/system/a.service"},
		},
		"the root as a file": {
			types.Config{Storage: types.Storage{Files: []types.File{file("/..", "data:,a")}}},
			[]string{"/..: error: / cannot be a file"},
		},
		"below a link": {
			types.Config{Storage: types.Storage{
				Files: []types.File{file("/etc/l/x/y", "data:,a")},
				Links: []types.Link{{Node: types.Node{Path: "/etc/l"}, LinkEmbedded1: types.LinkEmbedded1{Target: ptr("/srv")}}},
			}},
			[]string{"/etc/l/x/y: error: /etc/l/x/y lies below /etc/l, which is a link at /etc/l"},
		},
		"targets": {
			types.Config{Storage: types.Storage{Links: []types.Link{
				{Node: types.Node{Path: "/a"}},
				{Node: types.Node{Path: "/b"}, LinkEmbedded1: types.LinkEmbedded1{Target: ptr("a\x00b")}},
			}}},
			[]string{"/a: error: the link /a has no target", "/b target: error: the target of the link /b has a NUL byte"},
		},
		"owners and modes": {
			types.Config{Storage: types.Storage{Directories: []types.Directory{{
				Node:               types.Node{Path: "/a", User: types.NodeUser{ID: ptr(-1)}, Group: types.NodeGroup{Name: ptr("a:b")}},
				DirectoryEmbedded1: types.DirectoryEmbedded1{Mode: ptr(0o10000)},
			}}}},
			[]string{"/a user id: error: user id -1 of /a is negative", `/a group name: error: "a:b" is not the name of a group`,
				"/a mode: error: mode 010000 of /a is out of range"},
		},
		"sources": {
			types.Config{Storage: types.Storage{Files: []types.File{
				file("/a", "ftp://x/"), file("/b", "data:;base64,###"), file("/c", "http://x/y"),
				{Node: types.Node{Path: "/d"}, FileEmbedded1: types.FileEmbedded1{Append: []types.Resource{{Source: ptr("data:,a")}, {Source: ptr("gs://x/y")}}}},
				{Node: types.Node{Path: "/e"}, FileEmbedded1: types.FileEmbedded1{Contents: types.Resource{Source: ptr("data:,a"), Compression: ptr("xz")}}},
				{Node: types.Node{Path: "/f"}, FileEmbedded1: types.FileEmbedded1{Contents: types.Resource{Source: ptr("data:,a"), Verification: types.Verification{Hash: ptr("md5-00")}}}},
				{Node: types.Node{Path: "/g"}, FileEmbedded1: types.FileEmbedded1{Contents: types.Resource{Source: ptr("data:,a"), Verification: types.Verification{Hash: ptr("sha256-00")}}}},
			}}},
			[]string{
				"/a contents source: error: /a: ftp source: not supported after first boot",
				"/b contents source: error: /b: decoding the data: URL: invalid data character",
				"/c contents source: error: /c: http://x/y: a remote source needs a verification hash",
				"/d append 1 source: error: /d: gs source: not supported after first boot",
				`/e contents compression: error: /e: compression "xz" is not known`,
				`/f contents verification hash: error: /f: verification hash "md5-00" is neither sha256- nor sha512-`,
				`/g contents verification hash: error: /g: verification hash "sha256-00" is not a sha256 sum in hex`,
			},
		},
		"units": {
			types.Config{Systemd: types.Systemd{Units: []types.Unit{
				{Name: "a.service", Contents: ptr("")},
				{Name: "../a.service"},
				{Name: "b.service", Dropins: []types.Dropin{{Name: "a/b.conf", Contents: ptr("")}, {Name: ".conf", Contents: ptr("")}, {Name: "c.conf"}}},
			}}},
			[]string{
				"a.service contents: error: a.service has empty contents, which systemd reads as masked",
				`../a.service: error: "../a.service" is not a name that systemd takes for a unit`,
				`b.service/a/b.conf: error: "a/b.conf" is not a file name for a drop-in`,
				`b.service/.conf: error: ".conf" is not a file name for a drop-in`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, list := desired.Translate(c.cfg, words{}, nil)
			var got []string
			for _, f := range list {
				got = append(got, fmt.Sprintf("%s: %s: %s", f.Position, f.Severity, f.Message))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTranslateContents(t *testing.T) {
	blob := func(data []byte) (string, string, bool) {
		oid, ok := strings.CutPrefix(string(data), "blob ")
		return oid, "files/" + oid, ok
	}
	const wrong = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	cfg := types.Config{Storage: types.Storage{Files: []types.File{
		{Node: types.Node{Path: "/z"}},
		{Node: types.Node{Path: "/a"}, FileEmbedded1: types.FileEmbedded1{
			Contents: types.Resource{Source: ptr("data:,blob%20ab"), Compression: ptr("gzip"), Verification: types.Verification{Hash: ptr(wrong)}},
			Append:   []types.Resource{{Source: ptr("data:,blob%20cd")}, {}},
		}},
		file("/empty", ""),
		{Node: types.Node{Path: "/url"}, FileEmbedded1: types.FileEmbedded1{Contents: types.Resource{
			Source: ptr("https://x/y"), Verification: types.Verification{Hash: ptr(wrong)},
			HTTPHeaders: types.HTTPHeaders{{Name: "A", Value: ptr("1")}, {Name: "B"}},
		}}},
	}}}
	state, list := desired.Translate(cfg, words{}, blob)
	if len(list) > 0 {
		t.Fatal(list)
	}
	want := []desired.File{
		{Path: "/a", Mode: 0o644, Contents: &desired.Content{Blob: "ab", Path: "files/ab", Gzip: true, Verify: wrong},
			Append: []desired.Content{{Blob: "cd", Path: "files/cd"}}, Position: said("/a", nil)},
		{Path: "/empty", Mode: 0o644, Contents: &desired.Content{}, Position: said("/empty", nil)},
		{Path: "/url", Mode: 0o644, Contents: &desired.Content{URL: "https://x/y", Headers: map[string]string{"A": "1"}, Verify: wrong}, Position: said("/url", nil)},
		{Path: "/z", Mode: 0o644, Unsaid: desired.Unsaid{Mode: true, User: true, Group: true}, Position: said("/z", nil)},
	}
	if diff := cmp.Diff(want, state.Files); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestIgnoredHash(t *testing.T) {
	ignored := func(users ...types.PasswdUser) []desired.Section {
		state, _ := desired.Translate(types.Config{Passwd: types.Passwd{Users: users}}, words{}, nil)
		return state.Ignored
	}
	if got := ignored(); got != nil {
		t.Errorf("nothing is ignored, and the list is %v", got)
	}
	a, b := ignored(types.PasswdUser{Name: "a"}), ignored(types.PasswdUser{Name: "b"})
	if len(a) != 1 || a[0].Name != "passwd.users" || len(a[0].Hash) != 64 || a[0].Hash == b[0].Hash {
		t.Errorf("%v, %v", a, b)
	}
}

// A secret is for its owner alone unless the config says a mode, also where it is only
// appended.
func TestModeOfSecrets(t *testing.T) {
	mode := 0o640
	res := func(name string) types.Resource { return types.Resource{Source: ptr("data:," + name)} }
	cfg := types.Config{Storage: types.Storage{Files: []types.File{
		{Node: types.Node{Path: "/a"}, FileEmbedded1: types.FileEmbedded1{Contents: res("x.age")}},
		{Node: types.Node{Path: "/b"}, FileEmbedded1: types.FileEmbedded1{Contents: res("x.age"), Mode: &mode}},
		{Node: types.Node{Path: "/c"}, FileEmbedded1: types.FileEmbedded1{Append: []types.Resource{res("x.age")}}},
		{Node: types.Node{Path: "/d"}, FileEmbedded1: types.FileEmbedded1{Contents: res("x")}},
		{Node: types.Node{Path: "/e"}, FileEmbedded1: types.FileEmbedded1{Append: []types.Resource{res("x")}}},
	}}}
	blob := func(data []byte) (string, string, bool) { return "id of " + string(data), string(data), true }
	got, findings := desired.Translate(cfg, words{}, blob)
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	for i, want := range []struct {
		mode   uint32
		secret bool
		unsaid bool
	}{{0o600, true, false}, {0o640, true, false}, {0o600, true, false}, {0o644, false, false}, {0o644, false, true}} {
		if f := got.Files[i]; f.Mode != want.mode || f.Secret() != want.secret || f.Unsaid.Mode != want.unsaid {
			t.Errorf("%+v", f)
		}
	}
}
