package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/contents"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/report"
	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/survey"
)

const fetchTimeout = 2 * time.Minute // of what a layer merges over http(s)

// directory is the checkout that an author's command works on.
func directory(given []string) string {
	if len(given) == 1 {
		return given[0]
	}
	return "."
}

func (a *app) validateCommand() *cobra.Command {
	var globs []string
	format, strict := "text", false
	cmd := &cobra.Command{
		Use:   "validate [DIR]",
		Short: "Translate every host of a checkout and show all that is wrong",
		Long: `Validate translates the config of every host of a checkout of the fleet repo, as the
hosts will do it, and shows everything that is wrong and not only the first. What is
wrong with a layer that hosts share is said once. DIR is the working directory unless
it is named. It needs neither root nor a configured agent.

It exits with 0 when all hosts are valid, with 65 when one is not, with 66 when there
is no host.`,
		Example: `  reconf-pull validate
  reconf-pull validate --host 'web*' --strict ~/fleet
  reconf-pull validate --format github`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			if a.json {
				format = "json"
			}
			return a.validate(cmd.Context(), directory(given), globs, format, strict)
		},
	}
	cmd.Flags().StringArrayVar(&globs, "host", nil, "only hosts that this glob matches; may be given again")
	cmd.Flags().StringVar(&format, "format", "text", "text, json, github (workflow commands, also for Gitea) or gitlab (code quality report)")
	cmd.Flags().BoolVar(&strict, "strict", false, "warn also of what two groups set differently, and fail on warnings")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) validate(ctx context.Context, dir string, globs []string, format string, strict bool) (err error) {
	if !slices.Contains([]string{"text", "json", "github", "gitlab"}, format) {
		return &usageError{fmt.Errorf("--format %q is none of text, json, github, gitlab", format)}
	}
	if err := a.checkColor(); err != nil {
		return err
	}
	tree, err := checkout.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	downloads, err := os.MkdirTemp("", "reconf-pull-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(downloads)) }()
	v := survey.Validator{
		Tree: tree, Overlaps: strict,
		Contents: &contents.Opener{Tree: tree, Downloads: downloads, MaxFile: maxRemote, Client: &http.Client{Timeout: fetchTimeout}},
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(memoryLimit))
	found, err := v.Run(ctx, globs)
	if err != nil {
		return err
	}
	at := fromHere(dir)
	switch format {
	case "json":
		err = a.printJSON(report.NewValidationDocument(found))
	case "github":
		err = report.WriteGitHub(a.stdout, found, at)
	case "gitlab":
		err = report.WriteGitLab(a.stdout, found, at)
	default:
		err = (&report.ValidationText{Color: a.colored(a.stdout), Dir: at}).Write(a.stdout, found)
	}
	if err == nil && found.Failed(strict) {
		return exitStatus(exitDataErr)
	}
	return err
}

// gcPercent lets the heap grow to five times what is in use: Butane leaves ten
// times more garbage than result, and little of a fleet is in use at once.
const gcPercent = 400

// memoryLimit is where the heap stops growing like that, in bytes. A fleet of
// 10,000 hosts with 60 references each has a quarter of it in use.
const memoryLimit = 200 << 20

// maxRemote bounds a config that a layer merges over http(s).
const maxRemote = 16 << 20

// fromHere leads from the working directory to dir, "" when dir does not lie below.
func fromHere(dir string) string {
	here, err1 := os.Getwd()
	abs, err2 := filepath.Abs(dir)
	rel, err3 := filepath.Rel(here, abs)
	if errors.Join(err1, err2, err3) != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return ""
	}
	return filepath.ToSlash(rel)
}

func (a *app) hostsCommand() *cobra.Command {
	var globs []string
	cmd := &cobra.Command{
		Use:   "hosts [DIR]",
		Short: "List every host of a checkout with its digest and layers",
		Long: `Hosts lists the hosts of a checkout of the fleet repo, the digest of each and the
layers that it is made of. DIR is the working directory unless it is named. Nothing is
translated: validate does that. It exits with 65 when a host config cannot be read.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error { return a.hosts(cmd.Context(), directory(given), globs) },
	}
	cmd.Flags().StringArrayVar(&globs, "host", nil, "only hosts that this glob matches; may be given again")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) hosts(ctx context.Context, dir string, globs []string) (err error) {
	tree, err := checkout.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	repo, err := fleet.Open(tree)
	if err != nil {
		return err
	}
	names, _, err := survey.Select(repo, globs)
	if err != nil {
		return err
	}
	hosts, err := survey.Hosts(ctx, repo, names)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(report.HostsDocument{Schema: report.HostsSchema, Hosts: hosts})
	} else {
		err = report.WriteHosts(a.stdout, hosts)
	}
	if err == nil && slices.ContainsFunc(hosts, func(h survey.Host) bool { return h.Findings != nil }) {
		return exitStatus(exitDataErr)
	}
	return err
}

func (a *app) affectedCommand() *cobra.Command {
	dir := "."
	cmd := &cobra.Command{
		Use:   "affected OLD [NEW]",
		Short: "List the hosts whose config differs between two commits",
		Long: `Affected compares the digest of every host between OLD and NEW, and says what differs:
whom a push will touch, before it is pushed. Either is a commit, a branch or a tag of
the git repository around --dir, or a directory when it is . or begins with ./, ../ or /.
Without NEW it is the checkout as it lies there, with what is not committed.

It exits with 0 when no host is affected, with 3 when one is, with 65 when a host
config that differs cannot be read.`,
		Example: `  reconf-pull affected origin/main
  reconf-pull affected HEAD~1 HEAD --json`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return a.affected(cmd.Context(), dir, append(given, dir)[:2])
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "checkout of the fleet repo")
	a.jsonFlag(cmd)
	return cmd
}

// side is one of two trees that are compared.
type side struct {
	source.Tree
	name string // as the user said it
	id   string // commit, or directory
}

func (a *app) affected(ctx context.Context, dir string, given []string) (err error) {
	var local *gogit.Local
	var sides []side
	defer func() {
		for _, s := range sides {
			if c, ok := s.Tree.(io.Closer); ok {
				err = errors.Join(err, c.Close())
			}
		}
		if local != nil {
			local.Close()
		}
	}()
	for i, name := range given {
		s := side{name: name, id: name}
		if i == 1 && name == dir || isDirectory(name) {
			if s.Tree, err = checkout.Open(name); err != nil {
				return err
			}
			if name == dir {
				s.name = "the checkout"
			}
			sides = append(sides, s)
			continue
		}
		if local == nil {
			if local, err = gogit.OpenLocal(dir); err != nil {
				return err
			}
		}
		if s.Tree, s.id, err = local.Tree(name); err != nil {
			return err
		}
		sides = append(sides, s)
	}
	found, err := survey.Affected(ctx, sides[0], sides[1])
	if err != nil && local != nil {
		return local.Explain(err)
	}
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(report.AffectedDocument{
			Schema: report.AffectedSchema, Old: sides[0].id, New: sides[1].id, Hosts: found.Hosts, Affected: append([]survey.Effect{}, found.Affected...),
		})
	} else {
		text := report.AffectedText{Color: a.colored(a.stdout), Old: sides[0].name, New: sides[1].name}
		err = text.Write(a.stdout, found)
	}
	switch {
	case err != nil:
		return err
	case slices.ContainsFunc(found.Affected, func(e survey.Effect) bool { return e.Kind == survey.Broken }):
		return exitStatus(exitDataErr)
	case len(found.Affected) > 0:
		return exitStatus(exitChanges)
	}
	return nil
}

// isDirectory tells a directory from a revision, which never begins like that.
func isDirectory(name string) bool {
	return name == "." || name == ".." || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || strings.HasPrefix(name, "/")
}

// propose makes a plan from the source, or from a checkout.
func (a *app) propose(ctx context.Context, r *reconcile.Reconciler) (_ *reconcile.Proposal, err error) {
	if a.checkout == "" {
		return r.Propose(ctx)
	}
	tree, err := checkout.Open(a.checkout)
	if err != nil {
		return nil, err
	}
	// What a layer fetches over http(s) is not kept on a machine that plans for another.
	downloads, err := os.MkdirTemp("", "reconf-pull-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(downloads)) }()
	r.Contents.Downloads = downloads
	p, err := r.ProposeTree(ctx, source.Revision{Ref: a.checkout}, tree)
	if p != nil {
		a.tellUncommitted(a.checkout, p.Host, p.Digest)
	}
	return p, err
}

// tellUncommitted says what of a host's inputs differs from the last commit of
// the checkout, when it is one.
func (a *app) tellUncommitted(dir, host, digest string) {
	names := uncommitted(dir, host, digest)
	if len(names) > 0 && !a.json {
		a.tell(noticePriority, "reconf-pull: note: not committed: "+strings.Join(names, ", "))
	}
}

const noticePriority = 5

// uncommitted names the inputs of a host that differ from HEAD. It is for a
// note: where there is no commit to compare with, nothing is said.
func uncommitted(dir, host, digest string) []string {
	local, err := gogit.OpenLocal(dir)
	if err != nil {
		return nil
	}
	defer local.Close()
	committed, _, err := local.Tree("HEAD")
	if err != nil {
		return nil
	}
	before, err := fleet.Open(committed)
	if err != nil {
		return []string{fleet.ConfigFile}
	}
	machine := fleet.Machine{Names: []string{host}}
	was, err := before.Host(machine)
	if err == nil && string(was.Digest) == digest {
		return nil
	}
	tree, err := checkout.Open(dir)
	if err != nil {
		return nil
	}
	defer func() { _ = tree.Close() }() // it was only read
	after, err := fleet.Open(tree)
	if err != nil {
		return nil
	}
	is, err := after.Host(machine)
	if err != nil {
		return nil
	}
	if was == nil {
		return []string{"all of " + host}
	}
	return survey.Differ(was, is)
}

func (a *app) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain PATH|UNIT [DIR]",
		Short: "Show which layer gave a path or a unit what",
		Long: `Explain shows every layer that says something of a path, a unit or a drop-in, by file
and line: what it sets, what of that a later layer overrides, and where contents come
from. DIR is a checkout of the fleet repo; without it the configured source is fetched,
or the working directory is taken where none is configured.

It exits with 66 when no layer of the host says anything of it.`,
		Example: `  reconf-pull explain /etc/motd --host web1
  reconf-pull explain nginx.service --host web1 ~/fleet`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, given []string) error { return a.explain(cmd.Context(), given[0], given[1:]) },
	}
	a.sourceFlags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) explain(ctx context.Context, subject string, given []string) error {
	_, t, err := a.translation(ctx, given)
	if err != nil {
		return err
	}
	origins, err := t.Explain(ctx, subject)
	if err != nil {
		return err
	}
	if len(origins) == 0 {
		want, _, err := t.Run(ctx)
		if err != nil {
			return err
		}
		return &survey.NothingError{Host: t.Config.Name, Subject: subject, Similar: survey.Similar(subject, want)}
	}
	explanation := report.NewExplanation(subject, t.Config, origins)
	if a.json {
		return a.printJSON(explanation)
	}
	return explanation.Write(a.stdout, a.colored(a.stdout))
}
