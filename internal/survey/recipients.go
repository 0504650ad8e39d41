package survey

import (
	"errors"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

// Recipients are the public keys in a host's NAME.pub; none without such a file.
// What is wrong with the file is a *finding.Failure.
func Recipients(repo *fleet.Repo, host string) ([]secret.Recipient, error) {
	file, data, err := repo.Recipients(host)
	if file == "" || err != nil {
		return nil, err
	}
	keys, err := secret.ParseRecipients(data)
	var wrong *secret.RecipientError
	if errors.As(err, &wrong) {
		return nil, &finding.Failure{Findings: finding.List{{
			Severity: finding.Error, Position: finding.Position{File: file, Line: wrong.Line}, Message: wrong.Reason,
			Hint: "a line each has a public key: what /etc/ssh/ssh_host_ed25519_key.pub of the host says, or what age-keygen prints",
		}}}
	}
	return keys, err
}
