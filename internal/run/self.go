package run

import (
	"bytes"
	"context"
	"os"
	"strings"
	"time"
)

// Self starts this very program anew, at most for Timeout, also when its file
// was replaced or removed meanwhile. It gets this process's environment: it is
// meant to find what another start of this program would.
type Self struct{ Timeout time.Duration }

// Run returns an *Error with the end of what the program said.
func (s Self) Run(ctx context.Context, args ...string) error {
	cmd := command(append([]string{"/proc/self/exe"}, args...))
	cmd.Env = os.Environ()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := start(ctx, s.Timeout, cmd, &session{}); err != nil {
		return &Error{Argv: []string{"reconf-pull", args[0]}, Stderr: tail(strings.TrimPrefix(said.String(), "reconf-pull: error: ")), Err: err}
	}
	return nil
}
