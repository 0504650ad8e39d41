package child

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/run"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// readable is what TLS, ssh, name look-ups and git have to read. Credentials are
// not: they are handed over.
var readable = []string{
	"/usr", "/bin", "/lib", "/lib64", "/lib32",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/crypto-policies",
	"/etc/resolv.conf", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman",
	"/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/mdns.allow",
	"/etc/passwd", "/etc/group", "/etc/localtime", "/etc/ld.so.cache", "/etc/gitconfig",
	"/dev/urandom", "/dev/random",
}

// peer is the other process.
type peer struct {
	wire    *wire
	in, out *os.File // of ours
	process *run.Process
	said    *run.Capped
	names   *files
	agent   *agent        // nil: none
	waited  time.Duration // for answers
}

func (s *Source) start(files *files) (_ *peer, err error) {
	theirIn, in, err1 := os.Pipe()
	out, theirOut, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	defer theirIn.Close()
	defer theirOut.Close()
	const said = 4 << 10
	p := &peer{wire: newWire(out, in), in: in, out: out, said: &run.Capped{Most: said}, names: files, agent: files.agent}
	env := append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/", "GOTRACEBACK=none"}, s.o.Env...)
	if files.socket != "" {
		env = append(env, "SSH_AUTH_SOCK="+files.socket)
	}
	confined := run.Confined{
		Args: []string{Command}, Env: env, User: s.o.User,
		Read: append(s.o.Read, readable...), Write: []string{s.o.Dir},
		Stdin: theirIn, Stdout: theirOut, Stderr: p.said, Files: files.open,
	}
	if p.process, err = confined.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	s.o.Log.Debugf("fetching in process %d, Landlock version %d", p.process.Pid(), p.process.Landlock)
	return p, nil
}

// end waits for the process, which has no more to do, for a while. It returns how
// it ended.
func (p *peer) end(patience time.Duration) string {
	_ = p.in.Close()
	_ = p.out.Close()
	p.agent.close()
	select {
	case <-p.process.Ended():
	case <-time.After(patience):
		p.process.Kill()
		select {
		case <-p.process.Ended():
		case <-time.After(patience):
			return "it cannot be killed"
		}
	}
	text := "exit status 0"
	if err := p.process.Err(); err != nil {
		text = err.Error()
	}
	if line, _, _ := strings.Cut(strings.TrimSpace(string(p.said.Bytes())), "\n"); line != "" {
		text += ": " + source.Printable(line, maxText)
	}
	return text
}

// ask sends a request and waits for its answer, which may be an error of the
// request. A process that does anything else is ended.
func (p *peer) ask(ctx context.Context, takes time.Duration, s *Source, kind byte, content ...[]byte) (data []byte, err error) {
	began := time.Now() //nolint:forbidigo // how long it takes, by no clock that a test sets
	late := time.AfterFunc(takes+min(s.o.Patience, answers*s.o.Patience-p.waited), p.expire)
	defer func() {
		p.waited += max(0, time.Since(began)-takes)
		if !late.Stop() && s.peer == p { // an answer in the last moment
			data, err = nil, s.broken(os.ErrDeadlineExceeded)
		}
	}()
	if err := p.wire.send(kind, content...); err != nil {
		return nil, s.broken(err)
	}
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		_ = p.wire.send(cancel) // it is killed if it does not hear
		late.Reset(grace)
	})
	defer func() {
		if !stop() {
			<-told
		}
	}()
	for range maxNotes {
		kind, data, err := p.wire.receive()
		if err != nil && ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), s.broken(err))
		}
		if err != nil {
			return nil, s.broken(err)
		}
		switch kind {
		case answer:
			return data, nil
		case failed:
			err := unpackFailure(data, ctx.Err(), p.names.rename)
			if errors.Is(err, errProtocol) {
				return nil, s.broken(err)
			}
			return nil, err
		case progress:
			if s.o.Progress != nil {
				_, _ = io.WriteString(s.o.Progress, shown(data)) // for people who watch
			}
		case note:
			var n logNote
			if err := json.Unmarshal(data, &n); err != nil {
				return nil, s.broken(fmt.Errorf("%w: a note that cannot be read", errProtocol))
			}
			p.log(s.o.Log, n)
		default:
			return nil, s.broken(fmt.Errorf("%w: a message of kind %q", errProtocol, kind))
		}
	}
	return nil, s.broken(fmt.Errorf("%w: it says more than %d things at once", errProtocol, maxNotes))
}

// log writes down what the other process logged.
func (p *peer) log(log logrus.FieldLogger, n logNote) {
	if n.Error != "" {
		log = log.WithError(errors.New(p.names.rename(source.Printable(n.Error, maxText))))
	}
	text := p.names.rename(source.Printable(n.Text, maxText))
	switch n.Level {
	case "debug", "trace":
		log.Debug(text)
	case "info":
		log.Info(text)
	default:
		log.Warn(text)
	}
}

// expire makes everything that waits for the process fail.
func (p *peer) expire() {
	past := time.Unix(1, 0)
	_ = errors.Join(p.in.SetWriteDeadline(past), p.out.SetReadDeadline(past)) // of closed ones, at worst
}

// shown is what goes to a terminal of a server's progress.
func shown(data []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError || r == '\n' || r == '\r' {
			return r
		}
		return -1
	}, string(data[:min(len(data), maxText)]))
}
