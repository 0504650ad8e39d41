package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/secret"
	"github.com/reconf-pull/reconf-pull/internal/source/checkout"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/survey"
)

// encryption is one call of reconf-pull encrypt.
type encryption struct {
	globs, groups, recipients []string
	dir, output               string
	armored                   bool
}

func (a *app) encryptCommand() *cobra.Command {
	var e encryption
	cmd := &cobra.Command{
		Use:   "encrypt FILE",
		Short: "Encrypt a file so that only the named hosts can read it",
		Long: `Encrypt writes FILE.age, which a host config refers to with contents.local like any
other file: each of the named hosts decrypts it with a key that only it has. The public
key of a host NAME lies in the fleet repo as hosts/NAME.pub, beside its config: what
/etc/ssh/ssh_host_ed25519_key.pub of the host says, or what age-keygen prints. The file
is an age file: age -R hosts/NAME.pub makes the same.

FILE may be - for standard input. Nobody but the recipients can read the result, not
even its author: name a key of your own with --recipient to be one of them.`,
		Example: `  reconf-pull encrypt --host web1 --host web2 files/db.env
  reconf-pull encrypt --host 'web*' --recipient age1… files/db.env
  pwgen 32 1 | reconf-pull encrypt --group db --output files/db.password.age -`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, given []string) error { return a.encrypt(&e, given[0]) },
	}
	cmd.Flags().StringArrayVar(&e.globs, "host", nil, "hosts that this glob matches; may be given again")
	cmd.Flags().StringArrayVar(&e.groups, "group", nil, "the present hosts of this group; may be given again")
	cmd.Flags().StringArrayVar(&e.recipients, "recipient", nil, "public key of age or ssh; may be given again")
	cmd.Flags().StringVarP(&e.output, "output", "o", "", "file to write, - for standard output (default FILE.age)")
	cmd.Flags().BoolVar(&e.armored, "armor", false, "write text instead of bytes")
	cmd.Flags().StringVar(&e.dir, "dir", ".", "checkout of the fleet repo")
	return cmd
}

// noKeyError is a host that nothing can be encrypted to.
type noKeyError struct{ hosts []string }

func (e *noKeyError) Error() string {
	return "the fleet repo has no public key of " + strings.Join(e.hosts, ", ")
}

// Hint says where to take it from.
func (e *noKeyError) Hint() string {
	return fmt.Sprintf("keep what /etc/ssh/ssh_host_ed25519_key.pub of the host says as hosts/%s.pub, beside its config", e.hosts[0])
}

func (a *app) encrypt(e *encryption, file string) error {
	if len(e.globs)+len(e.groups)+len(e.recipients) == 0 {
		return &usageError{errors.New("nobody could read it: say --host, --group or --recipient")}
	}
	if e.output == "" {
		if file == "-" {
			return &usageError{errors.New("standard input has no name: say --output")}
		}
		e.output = file + secret.Suffix
	}
	if e.output == "-" && !e.armored && terminal(a.stdout) {
		return &usageError{errors.New("bytes are not for a terminal: say --armor")}
	}
	to, names, err := e.to()
	if err != nil {
		return err
	}
	plain, err := readPlain(file)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := secret.Encrypt(&out, bytes.NewReader(plain), to, e.armored); err != nil {
		return fmt.Errorf("encrypting %s: %w", file, err)
	}
	if e.output == "-" {
		return a.print(out.String())
	}
	if err := atomicfile.Write(e.output, out.Bytes(), 0o644); err != nil {
		return err
	}
	a.tell(noticePriority, fmt.Sprintf("reconf-pull: note: %s is for %s", e.output, strings.Join(names, ", ")))
	if file != "-" && !sameFile(file, e.output) {
		a.tell(noticePriority, "reconf-pull: hint: "+stillThere(file))
	}
	return nil
}

// to are the recipients, each key once, and who they are.
func (e *encryption) to() (to []secret.Recipient, names []string, err error) {
	add := func(name string, keys []secret.Recipient) {
		if slices.Contains(names, name) {
			return
		}
		names = append(names, name)
		for _, key := range keys {
			if !slices.ContainsFunc(to, key.Same) {
				to = append(to, key)
			}
		}
	}
	if len(e.globs)+len(e.groups) > 0 {
		if err := e.hosts(add); err != nil {
			return nil, nil, err
		}
	}
	for _, given := range e.recipients {
		keys, err := secret.ParseRecipients([]byte(given))
		if err != nil {
			return nil, nil, &usageError{fmt.Errorf("--recipient: %w", err)}
		}
		add(keys[0].String(), keys)
	}
	return to, names, nil
}

// hosts adds the public keys of the named hosts.
func (e *encryption) hosts(add func(string, []secret.Recipient)) (err error) {
	tree, err := checkout.Open(e.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	repo, err := fleet.Open(tree)
	if err != nil {
		return err
	}
	hosts, err := e.selected(repo)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range hosts {
		keys, err := survey.Recipients(repo, name)
		switch {
		case err != nil:
			return err
		case keys == nil:
			missing = append(missing, name)
		default:
			add(name, keys)
		}
	}
	if missing != nil {
		return &noKeyError{missing}
	}
	return nil
}

// selected are the names of the hosts.
func (e *encryption) selected(repo *fleet.Repo) ([]string, error) {
	var selected []string
	if len(e.globs) > 0 {
		for _, glob := range e.globs { // each has to match somebody
			found, _, err := survey.Select(repo, []string{glob})
			if err != nil {
				return nil, err
			}
			selected = append(selected, found...)
		}
	}
	if len(e.groups) == 0 {
		return selected, nil
	}
	_, all, err := survey.Select(repo, nil)
	if err != nil {
		return nil, err
	}
	for _, group := range e.groups {
		if _, ok := repo.Config.Groups[group]; !ok {
			return nil, &usageError{fmt.Errorf("--group %s: %s has no such group", group, fleet.ConfigFile)}
		}
		before := len(selected)
		for _, host := range all {
			if slices.Contains(repo.GroupsOf(host), group) {
				selected = append(selected, host)
			}
		}
		if len(selected) == before {
			return nil, &usageError{fmt.Errorf("--group %s has no host", group)}
		}
	}
	return selected, nil
}

func readPlain(file string) ([]byte, error) {
	var (
		plain []byte
		err   error
	)
	if file == "-" {
		plain, err = io.ReadAll(os.Stdin)
	} else {
		plain, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is to be encrypted: %w", err)
	}
	if secret.Is(plain) {
		return nil, &usageError{fmt.Errorf("%s is encrypted already", file)}
	}
	return plain, nil
}

func sameFile(a, b string) bool {
	one, err1 := os.Stat(a)
	two, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}

// stillThere says what becomes of the plain file.
func stillThere(file string) string {
	if local, err := gogit.OpenLocal(filepath.Dir(file)); err == nil {
		defer local.Close()
		if tracked, err := local.Tracked(filepath.Base(file)); err == nil && tracked {
			return fmt.Sprintf("git has %s in plain text: git rm --cached %s; where it was pushed it is no secret any more, and has to be changed", file, file)
		}
	}
	return fmt.Sprintf("%s is still there in plain text: remove it, or keep it where it is never committed", file)
}
