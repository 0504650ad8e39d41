package child

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// agent answers for this user's ssh-agent, on a socket that has no name and only the
// other process has. That one may know which keys there are, and log in as one user
// with them; the agent itself signs whatever it is asked to, and hands its keys around.
type agent struct {
	theirs *os.File // until it was handed over
	ours   net.Conn
	asks   net.Conn // the agent
	user   string
}

func newAgent(to, user string) (_ *agent, err error) {
	asks, err := net.Dial("unix", to)
	if err != nil {
		return nil, &source.Error{
			Err:  &localError{"finding an SSH key: reaching the agent of SSH_AUTH_SOCK", err},
			Hint: "Name a private key file without a passphrase in source.ssh_key.",
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(&localError{"handing over an ssh-agent", os.NewSyscallError("socketpair", err)}, asks.Close())
	}
	ours := os.NewFile(uintptr(pair[0]), "agent")
	a := &agent{theirs: os.NewFile(uintptr(pair[1]), "agent"), asks: asks, user: user}
	a.ours, err = net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, errors.Join(&localError{"handing over an ssh-agent", err}, a.theirs.Close(), asks.Close())
	}
	go a.serve()
	return a, nil
}

// The messages of an agent that are needed (draft-ietf-sshm-ssh-agent).
const (
	agentFailure      = 5
	agentList         = 11
	agentSign         = 13
	maxAgentMessage   = 256 << 10 // as OpenSSH's
	userauthRequest   = 50        // RFC 4252, section 5
	maxSessionID      = 64
	agentLengthOfHead = 4
)

// serve passes on what may be asked, one question after the other.
func (a *agent) serve() {
	defer a.close()
	for {
		question, err := agentMessage(a.ours)
		if err != nil {
			return
		}
		answer := []byte{agentFailure}
		if a.mayAsk(question) {
			if err := sendAgent(a.asks, question); err != nil {
				return // as an agent that has ended
			}
			if answer, err = agentMessage(a.asks); err != nil {
				return
			}
		}
		if err := sendAgent(a.ours, answer); err != nil {
			return
		}
	}
}

// close ends both ways.
func (a *agent) close() {
	if a != nil {
		_ = a.ours.Close()
		_ = a.asks.Close()
	}
}

// mayAsk: for the list of keys, and for signatures that log in as the user.
func (a *agent) mayAsk(question []byte) bool {
	switch {
	case len(question) == 1:
		return question[0] == agentList
	case len(question) == 0 || question[0] != agentSign:
		return false
	}
	rest := question[1:]
	next := func() (text string) {
		if len(rest) < agentLengthOfHead || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-agentLengthOfHead) {
			rest = nil
			return ""
		}
		end := agentLengthOfHead + int(binary.BigEndian.Uint32(rest))
		text, rest = string(rest[agentLengthOfHead:end]), rest[end:]
		return text
	}
	octet := func(want byte) bool {
		ok := len(rest) > 0 && rest[0] == want
		rest = rest[min(1, len(rest)):]
		return ok
	}
	key, data := next(), next()
	const flags = 4
	if key == "" || len(rest) != flags {
		return false
	}
	rest = []byte(data)
	session := next()
	return session != "" && len(session) <= maxSessionID && octet(userauthRequest) && next() == a.user && next() == "ssh-connection" &&
		next() == "publickey" && octet(1) && next() != "" && next() == key && len(rest) == 0
}

func agentMessage(r io.Reader) ([]byte, error) {
	var head [agentLengthOfHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxAgentMessage {
		return nil, fmt.Errorf("a message of %d bytes", length)
	}
	message := make([]byte, length)
	_, err := io.ReadFull(r, message)
	return message, err
}

func sendAgent(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...))
	return err
}
