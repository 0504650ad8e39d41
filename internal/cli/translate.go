package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

func (a *app) hashCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hash [DIR]",
		Short: "Print a host's digest and everything it is computed over",
		Long: `Hash prints the digest of a host config and a line for every input with its id, so
that two hosts, or two commits, can be compared with diff. DIR is a checkout of the
fleet repo; without it the configured source is fetched, or where none is configured
and --host names a host, the working directory is taken.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error { return a.hash(cmd.Context(), given) },
	}
	a.sourceFlags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) hash(ctx context.Context, given []string) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	_, hc, err := a.hostConfig(ctx, m, given)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"host": hc.Name, "digest": hc.Digest, "inputs": hc.Inputs})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s\n", hc.Digest, hc.Name)
	for _, in := range hc.Inputs {
		fmt.Fprintln(&b, in)
	}
	return a.print(b.String())
}

// hostConfig reads a host config from a checkout, or from the source.
func (a *app) hostConfig(ctx context.Context, m *machine, given []string) (source.Tree, *fleet.HostConfig, error) {
	if len(given) == 0 && a.host != "" && a.url == "" && m.config.Source.URL == "" {
		given = []string{"."} // where an author is, there is no configured source
	}
	if len(given) == 1 {
		if strings.HasSuffix(given[0], ".bu") {
			return document(given[0])
		}
		tree, err := checkout.Open(given[0])
		if err != nil {
			return nil, nil, err
		}
		found, hc, err := a.findHost(m, tree, a.host != "")
		if err == nil {
			a.tellUncommitted(given[0], hc.Name, string(hc.Digest))
		}
		return found, hc, err
	}
	st, err := state.Load(m.dirs)
	if err != nil {
		return nil, nil, err
	}
	r, err := a.reconciler(m, st)
	if err != nil {
		return nil, nil, err
	}
	tree, err := r.Tip(ctx)
	if err != nil {
		return nil, nil, err
	}
	return a.findHost(m, tree, false)
}

// findHost asks for this machine, or as an author for any host: then nothing of
// this machine goes into the host config.
func (a *app) findHost(m *machine, tree source.Tree, author bool) (source.Tree, *fleet.HostConfig, error) {
	names, _, err := a.names(m)
	if err != nil {
		return nil, nil, err
	}
	repo, err := fleet.Open(tree)
	if err != nil {
		return nil, nil, err
	}
	machine := fleet.Machine{Names: names, Limits: limits(m)}
	if !author {
		machine.Facts = &fleet.Facts{Arch: runtime.GOARCH, MachineID: m.host.MachineID()}
	}
	hc, err := repo.Host(machine)
	return tree, hc, err
}

// document is a single Butane file as a host config of its own; its local
// files lie beside it.
func document(file string) (source.Tree, *fleet.HostConfig, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, nil, fmt.Errorf("reading the Butane file: %w", err)
	}
	tree, err := checkout.Open(filepath.Dir(file))
	if err != nil {
		return nil, nil, err
	}
	hc, err := fleet.Single(tree, filepath.Base(file))
	return tree, hc, err
}

func (a *app) translateCommand() *cobra.Command {
	to, output, overlaps := "", "", false
	cmd := &cobra.Command{
		Use:   "translate [DIR | FILE.bu]",
		Short: "Translate a host config without any host",
		Long: `Translate shows what becomes of a host config: as Ignition for a new machine, or as
the plan for a host that has nothing yet, also as a folder for Salt. DIR is a checkout of the fleet repo, FILE.bu
a single Butane file whose local files lie beside it; without either the configured
source is fetched.`,
		Example: `  reconf-pull translate --host web1 . --to plan
  reconf-pull translate web1.bu > web1.ign
  reconf-pull translate --host web1 --to sls --output /root/web1.sls .`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return a.translate(cmd.Context(), to, output, overlaps, given)
		},
	}
	cmd.Flags().StringVar(&to, "to", "ignition", "ignition, plan, summary or sls")
	cmd.Flags().StringVar(&output, "output", "", "the folder that --to sls makes")
	cmd.Flags().BoolVar(&overlaps, "strict", false, "warn of what two groups set differently")
	a.sourceFlags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) translate(ctx context.Context, to, output string, overlaps bool, given []string) error {
	if !slices.Contains([]string{"ignition", "plan", "summary", "sls"}, to) {
		return &usageError{fmt.Errorf("--to %q is none of ignition, plan, summary, sls", to)}
	}
	if (to == "sls") != (output != "") {
		return &usageError{errors.New("--to sls and --output DIR, the folder that is made, go together")}
	}
	m, t, err := a.translation(ctx, given)
	if err != nil {
		return err
	}
	t.Overlaps = overlaps
	if to == "ignition" {
		return a.ignition(t)
	}
	want, warnings, err := t.Run(ctx)
	if err != nil {
		return err
	}
	if err := a.warn(warnings); err != nil {
		return err
	}
	switch {
	case to == "sls":
		return a.writeSLS(ctx, m, t.Config, want, t.Contents, output)
	case a.json:
		return a.printJSON(report.NewDesiredDocument(t.Config, want))
	case to == "summary":
		return report.WriteSummary(a.stdout, t.Config, want)
	default:
		return report.WriteDesired(a.stdout, want)
	}
}

// translation is of the host that the command line names, or of this one.
func (a *app) translation(ctx context.Context, given []string) (*machine, reconcile.Translation, error) {
	m, err := a.machine()
	if err != nil {
		return nil, reconcile.Translation{}, err
	}
	tree, hc, err := a.hostConfig(ctx, m, given)
	if err != nil {
		return nil, reconcile.Translation{}, err
	}
	opener := a.contents(m)
	opener.Tree = tree
	return m, reconcile.Translation{Tree: tree, Config: hc, Strict: m.config.Translate.Strict, Contents: &opener}, nil
}

func (a *app) ignition(t reconcile.Translation) error {
	raw, translated, err := t.Ignition()
	if err != nil {
		return err
	}
	if err := a.warn(translated.Findings); err != nil {
		return err
	}
	out, err := json.MarshalIndent(raw, "", "  ")
	if err != nil {
		return err
	}
	return a.print(string(out) + "\n")
}

func (a *app) warn(list finding.List) error { return list.Write(a.stderr) }
