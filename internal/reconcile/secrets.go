package reconcile

import (
	"errors"
	"fmt"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/fleet"
	"github.com/reconf-pull/reconf-pull/internal/secret"
)

// header is what everybody can see of an encrypted file, or why it is none.
type header struct {
	secret.Header
	err error
}

// secrets looks at the encrypted files that the layers name, as far as that needs
// no private key.
func (t Translation) secrets() (finding.List, error) {
	var list finding.List
	for _, ref := range t.Config.References {
		if ref.Kind != butane.Blob || !desired.Encrypted(ref.Path) || !ref.Entry.Mode.IsFile() {
			continue
		}
		h, err := t.header(ref)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", ref.Entry.Path, err)
		}
		f := finding.Finding{Severity: finding.Error, Position: ref.Position}
		var hinted interface{ Hint() string }
		switch {
		case errors.As(h.err, &hinted):
			f.Message, f.Hint = ref.Path+": "+h.err.Error(), hinted.Hint()
		case t.Recipients != nil && !h.MayBeFor(t.Recipients):
			f.Message = fmt.Sprintf("%s is not encrypted to %s, whose public key is another one", ref.Path, t.Config.Name)
			f.Hint = fmt.Sprintf("encrypt it again: reconf-pull encrypt --host %s, and with the other hosts that need it", t.Config.Name)
		default:
			continue
		}
		list = append(list, f)
	}
	return list, nil
}

// header reads one once for all hosts. Its own error is the tree's.
func (t Translation) header(ref fleet.Reference) (header, error) {
	if t.Shared != nil {
		t.Shared.mu.Lock()
		known, ok := t.Shared.headers[ref.Entry.ID]
		t.Shared.mu.Unlock()
		if ok {
			return known, nil
		}
	}
	r, err := t.Tree.Open(ref.Entry)
	if err != nil {
		return header{}, err
	}
	defer r.Close()
	var h header
	h.Header, h.err = secret.ReadHeader(r)
	var (
		file   *secret.FileError
		nobody *secret.NoIdentityError
	)
	if h.err != nil && !errors.As(h.err, &file) && !errors.As(h.err, &nobody) {
		return h, h.err
	}
	if t.Shared != nil {
		t.Shared.mu.Lock()
		defer t.Shared.mu.Unlock()
		t.Shared.headers[ref.Entry.ID] = h
	}
	return h, nil
}
