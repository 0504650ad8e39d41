package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/config"
	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/reconcile"
	"github.com/reconf-pull/reconf-pull/internal/signature"
	"github.com/reconf-pull/reconf-pull/internal/state"
)

// maxKeys bounds a file of keys in bytes.
const maxKeys = 16 << 20

// trust reads who may change this host.
func trust(m *machine) (reconcile.Trust, error) {
	v := m.config.Verify
	if v.Mode == "none" {
		return reconcile.Trust{}, nil
	}
	t := reconcile.Trust{All: v.All}
	o := signature.Options{Location: time.Local, Now: m.host.Now}
	for _, one := range []struct {
		key, path string
		into      **signature.File
	}{{"allowed_signers", v.AllowedSigners, &o.AllowedSigners}, {"revoked_signers", v.RevokedSigners, &o.RevokedSigners}, {"keyring", v.Keyring, &o.Keyring}} {
		if one.path == "" {
			continue
		}
		data, err := host.ReadTrusted(one.path, maxKeys)
		if err != nil {
			return t, &config.Error{Err: fmt.Errorf("verify.%s: %w", one.key, err)}
		}
		*one.into = &signature.File{Path: one.path, Data: data}
		if one.key != "revoked_signers" {
			t.Files = append(t.Files, one.path)
		}
	}
	verifier, err := signature.New(o)
	if err != nil {
		return t, &config.Error{Err: fmt.Errorf("verify: %w", err)}
	}
	t.Verify = verifier.Verify
	return t, nil
}

func (a *app) acceptHistoryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept-history COMMIT",
		Short: "Let the branch go on from a commit, whatever it was before",
		Long: `A branch whose new tip does not descend from the newest verified commit was rewritten,
and is refused. Accept-history makes COMMIT, which is the tip or a commit before it,
the newest verified one of this host. Where [verify] asks for signatures it has to have
a good one. git merge -s ours MARK, and a push, heals all hosts at once instead.`,
		Example: "  reconf-pull accept-history 3f786850e387550fdab836ed7e6dc881de23001b",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return a.locked("accept-history", func(m *machine, st *state.State) error {
				r, err := a.reconciler(m, st)
				if err != nil {
					return err
				}
				ref, err := r.AcceptHistory(cmd.Context(), given[0])
				if err != nil {
					return err
				}
				mark := st.Marks[ref]
				text := fmt.Sprintf("from now on %s has to descend from %s", strings.TrimPrefix(ref, "refs/heads/"), mark.Commit)
				if mark.Signer != "" {
					text += ", which is signed by " + mark.Signer
				}
				return a.print(text + "\n")
			})
		},
	}
	a.sourceFlags(cmd)
	return cmd
}
