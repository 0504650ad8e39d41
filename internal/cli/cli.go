// Package cli is the command line: flags, the wiring of the real parts, what
// people read, and the exit statuses.
//
// Its one rule: only here do the adapters meet, and only here is an error
// printed and turned into an exit status.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/version"
)

// options are the flags of all commands.
type options struct {
	config    string
	root      string
	stateDir  string
	logLevel  string
	logFormat string
	color     string
	json      bool
	url       string
	branch    string
	host      string
	checkout  string // a directory instead of the source
}

type app struct {
	options
	stdout, stderr io.Writer
	close          []io.Closer // at the end of the command
}

// Main runs one command and returns its exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == child.Command {
		return fetchForParent(stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), endings()...)
	defer stop()
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	for _, c := range a.close {
		_ = c.Close() // nothing is left to be done
	}
	var service *serviceError
	if ctx.Err() != nil && err != nil && !errors.As(err, &service) {
		err = errEnded
	}
	return a.finish(err)
}

// endings are the signals that end a run in good order. That of a terminal that
// is gone is ignored where nohup(1) wants it so.
func endings() []os.Signal {
	all := []os.Signal{syscall.SIGTERM, os.Interrupt}
	if !signal.Ignored(syscall.SIGHUP) {
		all = append(all, syscall.SIGHUP)
	}
	return all
}

// errEnded is what a run that was told to stop ends with: its change is kept
// and the next run goes on.
var errEnded = errors.New("ended by a signal; the next run goes on from here")

// usageError is a command line that cannot be understood.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

const exitStatusHelp = `
Exit status:
   0  up to date, or applied
   1  a step failed, or something is held; disk full or an I/O error
   2  wrong usage
   3  plan, affected, status and lock status only: there are changes, something is
      pending, or the fleet lock is not to be had
  65  the host config is invalid, or refused, or the commit is not trusted
  66  no config for this host, or another host's
  69  the source is not reachable
  70  internal error, or the state cannot be read
  75  another run is active, no window is open, the fleet lock is busy, a reboot is
      pending, or this run was ended by a signal
  78  the configuration is invalid, or meant for another machine`

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reconf-pull",
		Short: "Make a running host what its Butane file in a git repo says",
		Long: `reconf-pull fetches the fleet repo, finds this host's Butane file, and only when
it or a file that it refers to has changed makes the running host match.
` + exitStatusHelp,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.config, "config", "", "configuration file (default "+config.Path+")")
	flags.StringVar(&a.options.root, "root", "/", "directory that stands for the host; other than / nothing is restarted")
	flags.StringVar(&a.stateDir, "state-dir", "", "directory for state, cache and run (default /var/lib, /var/cache and /run below --root)")
	flags.StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "text or json")
	flags.StringVar(&a.color, "color", "auto", "auto, always or never; NO_COLOR is respected")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	cmd.CompletionOptions.HiddenDefaultCmd = false
	cmd.AddCommand(
		a.runCommand(), a.planCommand(), a.statusCommand(), a.historyCommand(), a.showCommand(),
		a.suspendCommand(), a.resumeCommand(), a.retryCommand(), a.rollbackCommand(), a.acceptHistoryCommand(), a.lockCommand(),
		a.validateCommand(), a.hostsCommand(), a.affectedCommand(), a.explainCommand(), a.encryptCommand(), a.hashCommand(), a.translateCommand(), a.versionCommand(), a.reachCommand(),
	)
	return cmd
}

// sourceFlags override what config.toml says about the source and the host.
func (a *app) sourceFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.url, "url", "", "fleet repo: https, ssh, git or file URL, or a path (default source.url)")
	cmd.Flags().StringVar(&a.branch, "branch", "", "branch (default source.branch, else the remote's HEAD)")
	a.hostFlag(cmd)
}

func (a *app) hostFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.host, "host", "", "name of the host in the fleet repo (default host.name, else the hostname)")
}

func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON for programs")
}

// args turns cobra's complaints about arguments into usage errors.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": version.String()})
			}
			return a.print("reconf-pull " + version.String() + "\n")
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) print(text string) error {
	_, err := io.WriteString(a.stdout, text)
	return err
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
