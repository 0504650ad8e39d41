package fleet_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/source/sourcetest"
)

const templated = `variant: fcos
version: 1.6.0
storage:
  files:
{{- range .Vars.sites}}
    - path: /etc/sites/{{.}}
      contents:
        local: files/site.conf.tmpl
{{- end}}
    - path: /etc/{{.Host.Name}}
`

func templates() map[string]sourcetest.File {
	return map[string]sourcetest.File{
		"fleet.toml": {Data: "[vars]\nport = 80\nunread = 1\nsites = ['a']\n[group.all]\nhosts = ['*']\nlayers = ['groups/all.bu.tmpl']\nvars = { sites = ['a', 'b'] }\n" +
			"[host.web2]\nvars = { port = 81 }\n[host.web3]\nmachine_id = 'cafe'\n"},
		"groups/all.bu.tmpl":   {Data: templated},
		"hosts/web1.bu.tmpl":   {Data: empty},
		"hosts/web2.bu":        {Data: empty},
		"hosts/web3/x.bu.tmpl": {Data: empty + "# {{.Host.MachineID}} {{.Host.Arch}}\n"},
		"files/site.conf.tmpl": {Data: "listen {{.Vars.port}}\n{{dig \"tls\" \"cert\" \"\" .Vars}}\n"},
	}
}

func TestTemplates(t *testing.T) {
	h := mustHost(t, templates(), "web1")
	const want = "variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - path: /etc/sites/a\n      contents:\n        local: files/site.conf.tmpl\n" +
		"    - path: /etc/sites/b\n      contents:\n        local: files/site.conf.tmpl\n    - path: /etc/web1\n"
	if d := cmp.Diff(want, string(h.Layers[0].Documents[0].Data)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var got []string
	for _, in := range h.Inputs {
		if in.Kind == "var" || in.Kind == "fact" {
			got = append(got, in.String())
		}
	}
	if d := cmp.Diff([]string{"var port 80", `var sites ["a", "b"]`, "var tls.cert -"}, got); d != "" {
		t.Errorf("inputs (-want +got):\n%s", d)
	}
	if len(h.References) != 2 || h.References[1].Position.String() != "groups/all.bu.tmpl:8:16" {
		t.Errorf("references %v", h.References)
	}
	data, err := h.Expand("files/site.conf.tmpl", []byte("listen {{.Vars.port}}\n"))
	if err != nil || string(data) != "listen 80\n" {
		t.Errorf("%q, %v", data, err)
	}
	hosts := []string{}
	r, err := fleet.Open(sourcetest.New(templates()))
	if err == nil {
		hosts, err = r.Hosts()
	}
	if d := cmp.Diff([]string{"web1", "web2", "web3"}, hosts); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// A digest has the facts of the machine that asks, and for authors the same ones
// everywhere.
func TestFacts(t *testing.T) {
	r, err := fleet.Open(sourcetest.New(templates()))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		facts *fleet.Facts
		want  string
	}{
		{nil, "# cafe amd64"},
		{&fleet.Facts{Arch: "arm64", MachineID: "cafe"}, "# cafe arm64"},
	} {
		h, err := r.Host(fleet.Machine{Names: []string{"web3"}, Facts: tt.facts})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(h.Layers[1].Documents[0].Data); !strings.HasSuffix(got, tt.want+"\n") {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// What a template names changes the digest, and nothing else of fleet.toml does.
func TestDigestOfTemplates(t *testing.T) {
	base := templates()
	before := mustHost(t, base, "web1").Digest
	toml := base["fleet.toml"].Data
	for _, tt := range []struct {
		name, path, data string
		changes          bool
	}{
		{"a var that is read", "fleet.toml", strings.Replace(toml, "port = 80", "port = 82", 1), true},
		{"its type", "fleet.toml", strings.Replace(toml, "port = 80", "port = '80'", 1), true},
		{"a var that is not read", "fleet.toml", strings.Replace(toml, "unread = 1", "unread = 2\nmore = 3", 1), false},
		{"a var of another host", "fleet.toml", strings.Replace(toml, "port = 81", "port = 83", 1), false},
		{"a var that is asked for and was missing", "fleet.toml", strings.Replace(toml, "[vars]\n", "[vars]\ntls = { cert = 'x' }\n", 1), true},
		{"a var that is overridden", "fleet.toml", strings.Replace(toml, "sites = ['a']", "sites = ['z']", 1), false},
		{"a comment and the order of keys", "fleet.toml", "# x\n" + strings.Replace(toml, "port = 80\nunread = 1", "unread = 1\nport = 80", 1), false},
		{"a new group that has nothing", "fleet.toml", toml + "[group.x]\nhosts = ['*']\n", false},
		{"the layer", "groups/all.bu.tmpl", templated + "# x\n", true},
		{"the template that is referred to", "files/site.conf.tmpl", "listen\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := mustHost(t, with(base, tt.path, sourcetest.File{Data: tt.data}), "web1").Digest
			if (after != before) != tt.changes {
				t.Errorf("digest changed: %v, want %v", after != before, tt.changes)
			}
		})
	}
}

func TestWrongTemplates(t *testing.T) {
	for _, tt := range []struct{ name, path, data, want string }{
		{"syntax", "groups/all.bu.tmpl", "variant: fcos\nx: {{.Vars.port\n", "groups/all.bu.tmpl:2: unclosed action"},
		{"a missing var", "hosts/web1.bu.tmpl", "variant: fcos\nx: {{.Vars.prot}}\n", "hosts/web1.bu.tmpl:2:11: there is no var prot for this host (did you mean port?)"},
		{"endless", "hosts/web1.bu.tmpl", "{{range 1000000000}}{{end}}", "hosts/web1.bu.tmpl:1:21: the template does not come to an end"},
		{"not UTF-8", "hosts/web1.bu.tmpl", "x\xff", "hosts/web1.bu.tmpl:1:2: it is not UTF-8"},
		{"file and template", "hosts/web1.bu", empty, "hosts/web1.bu.tmpl: host web1 has two configs: hosts/web1.bu and hosts/web1.bu.tmpl (keep one of them)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := host(t, with(templates(), tt.path, sourcetest.File{Data: tt.data}), "web1")
			var bad *finding.Failure
			if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	h := mustHost(t, templates(), "web1")
	if _, err := h.Expand("a.tmpl", []byte("x\n\xff")); err == nil || !strings.HasPrefix(err.Error(), "a.tmpl:2:1: it is not UTF-8") {
		t.Error(err)
	}
}

// fleet.toml with templates: whatever it says, a host config is one, or a finding.
func FuzzVars(f *testing.F) {
	f.Add("vars = { sites = ['a'], port = 1 }\n", "{{.Vars.port}}")
	f.Add("[vars]\nsites = []\n[group.g]\nhosts = ['/./']\nvars.port = { a = 1 }\n[host.web1]\nvars.port = 2\n", "{{range .Vars}}{{end}}")
	f.Fuzz(func(t *testing.T, toml, template string) {
		files := map[string]string{"fleet.toml": toml, "hosts/web1.bu.tmpl": empty + template}
		var digests []fleet.Digest
		for range 2 {
			r, err := fleet.Open(sourcetest.Text(files))
			if err == nil {
				var h *fleet.HostConfig
				if h, err = r.Host(fleet.Machine{Names: []string{"web1"}}); err == nil {
					digests = append(digests, h.Digest)
					continue
				}
			}
			var bad *finding.Failure
			var none *fleet.NoHostError
			if !errors.As(err, &bad) && !errors.As(err, &none) {
				t.Fatalf("%T: %v", err, err)
			}
		}
		if len(digests) == 1 || len(digests) == 2 && digests[0] != digests[1] {
			t.Errorf("equal input: %v", digests)
		}
	})
}
