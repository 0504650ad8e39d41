// Package gogit fetches the fleet repo with go-git into a bare mirror with a
// single branch, and reads trees from it.
//
// Its one rule: the mirror is a cache. Nothing in it is believed without being
// hashed again, and whatever is wrong with it is cured by cloning it again. It
// is the only importer of go-git and of what go-git brings for ssh.
package gogit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/crypto/ssh"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// DefaultTimeout bounds a fetch when Options.Timeout is 0.
const DefaultTimeout = 2 * time.Minute

// maxPacks is how many packs the mirror may have before it is cloned again at a
// moment when nothing is new: each fetch adds one, none is ever merged, and
// every run opens them all.
const maxPacks = 64

// Options says where the fleet repo is and how to get at it.
type Options struct {
	URL    string // https, ssh (both spellings), git, file, http without credentials, or a path
	Branch string // short name; empty: Ref, else what the mirror has, else the remote's HEAD
	Ref    string // Revision.Ref of an earlier fetch, remembered by the caller; Branch wins
	Dir    string // the mirror; its parent is made when it is missing

	// FullHistory makes Fetch bring every commit instead of the newest one. Without
	// it a clone is shallow unless Marks has another commit for its ref than the
	// tip, which descent has to be proven from.
	FullHistory bool
	Marks       map[string]string // ref -> commit
	Timeout     time.Duration     // of one whole Fetch

	KnownHosts   []string // files, missing ones are passed over; ssh only
	SSHKey       string   // file; empty: the agent
	Username     string   // https, or the ssh user when the URL names none
	PasswordFile string   // https
	TokenFile    string   // https, instead of PasswordFile
	TokenType    string   // how a token is sent: "basic" (also when empty) or "bearer"
	ClientCert   string   // https: PEM file
	ClientKey    string   // of ClientCert
	CAFile       string   // https: trusted instead of the system's CAs

	// HandedOver: somebody who may open and has checked these files has given this
	// process copies under their names here.
	HandedOver bool

	Limits

	Progress io.Writer          `json:"-"` // what the server says while it packs, for a terminal; nil: nothing
	Log      logrus.FieldLogger `json:"-"`
}

// Limits bound what a remote can make this machine hold. 0 is the default.
type Limits struct {
	MaxFetch   int64 // bytes that one answer may have: the size of the repository, as it is packed
	MaxObject  int64 // bytes of one object, inflated
	MaxObjects int   // objects of one pack
	MaxRefs    int   // refs that the remote may list
}

// The limits that hold when Options say nothing.
const (
	DefaultMaxFetch   = 1 << 30
	DefaultMaxObject  = 512 << 20
	DefaultMaxObjects = 500_000
	DefaultMaxRefs    = 50_000
)

func (l *Limits) setDefaults() {
	if l.MaxFetch <= 0 {
		l.MaxFetch = DefaultMaxFetch
	}
	if l.MaxObject <= 0 {
		l.MaxObject = DefaultMaxObject
	}
	if l.MaxObjects <= 0 {
		l.MaxObjects = DefaultMaxObjects
	}
	if l.MaxRefs <= 0 {
		l.MaxRefs = DefaultMaxRefs
	}
}

// Source is a fleet repo and its mirror. It is used by one goroutine at a time.
type Source struct {
	Options
	remote remote
	mirror *mirror // as the last Fetch or Tree left it; nil: open it again
}

// New checks the options as far as that is possible without touching anything.
func New(o Options) (*Source, error) {
	r, err := parseRemote(o)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	o.setDefaults()
	return &Source{Options: o, remote: r}, nil
}

// Local is the path of a fleet repo on this machine, "" for one that is reached
// over the network.
func (s *Source) Local() string {
	if s.remote.endpoint.Protocol != "file" {
		return ""
	}
	return s.remote.endpoint.Path
}

// Agent is the user whom an ssh-agent is needed to log in as, "" where none is: the
// remote is not reached by ssh, or with a key file that needs no passphrase.
func (s *Source) Agent() string {
	if s.remote.endpoint.Protocol != "ssh" {
		return ""
	}
	if s.SSHKey != "" {
		pem, err := s.private("source.ssh_key", s.SSHKey)
		if err != nil {
			return "" // who reads it says so
		}
		var locked *ssh.PassphraseMissingError
		if _, err := ssh.ParseRawPrivateKey(pem); !errors.As(err, &locked) {
			return ""
		}
	}
	return s.remote.endpoint.User
}

// Fetch brings the tip of the branch. When the mirror has it already, nothing
// but the remote's ref is read.
func (s *Source) Fetch(ctx context.Context) (source.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()

	type result struct {
		m   *mirror
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Whoever is late (a disk that hangs, a git-upload-pack of this machine)
		// writes to the mirror no more, see commitTip.
		m, err := s.fetch(ctx)
		done <- result{m, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		select {
		case r = <-done:
		case <-time.After(200 * time.Millisecond): // to remove what it was writing
			r.err = ctx.Err()
		}
	}
	if r.err != nil {
		return source.Revision{}, s.explain(ctx, r.err)
	}
	s.mirror = r.m
	return source.Revision{Ref: r.m.ref.String(), Commit: r.m.tip.String()}, nil
}

func (s *Source) fetch(ctx context.Context) (_ *mirror, err error) {
	defer recovered(&err)
	m, err := openMirror(s.Dir)
	switch {
	case errors.Is(err, errNoMirror):
	case errors.Is(err, source.ErrDamaged):
		s.Log.WithError(err).Warn("the mirror is damaged: cloning it again")
	case err != nil:
		return nil, err
	case m.url != s.remote.display:
		s.Log.Infof("the mirror is one of %s: cloning again", m.url)
		m = nil
	case s.FullHistory:
		short, err := m.shallow()
		if err != nil {
			return nil, err
		}
		if short {
			s.Log.Info("the mirror is shallow: cloning it again with its whole history")
			m.close()
			m = nil
		}
	}

	tip, err := s.tip(ctx, m)
	if err != nil {
		return nil, err
	}
	defer tip.close()
	if m == nil {
		return s.clone(ctx, tip)
	}
	if m.tip == tip.hash && m.ref == tip.ref {
		if len(m.packs) <= maxPacks {
			return m, nil
		}
		fresh, err := s.clone(ctx, tip)
		if err != nil {
			s.Log.WithError(err).Debug("the mirror has many packs and could not be cloned again: going on with it")
			return m, nil
		}
		return fresh, nil
	}
	updated, err := s.update(ctx, m, tip)
	if errors.Is(err, source.ErrDamaged) {
		s.Log.WithError(err).Warn("the mirror is damaged: cloning it again")
		return s.clone(ctx, tip)
	}
	return updated, err
}

// Discard removes the mirror. The next Fetch clones it again.
func (s *Source) Discard() error {
	s.close()
	if err := removeMirror(s.Dir); err != nil {
		return &source.Error{Err: fmt.Errorf("removing the mirror: %w: %w", source.ErrLocal, err)}
	}
	return nil
}

// Close gives back the mirror's open files.
func (s *Source) Close() error {
	s.close()
	return nil
}

func (s *Source) close() {
	if s.mirror != nil {
		s.mirror.close()
		s.mirror = nil
	}
}
