package gogit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"unicode"

	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"golang.org/x/crypto/ssh"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// failure says what went wrong in words of its own, and stays what a caller
// decides on.
type failure struct {
	kind  error // a sentinel of package source
	text  string
	cause error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return []error{f.kind, f.cause} }

// noBranchError: the remote answered and does not have the branch.
type noBranchError struct {
	branch string // empty: its HEAD names none
	exist  []string
}

func (e *noBranchError) Error() string {
	if e.branch == "" {
		return "the remote's HEAD names no branch"
	}
	return fmt.Sprintf("there is no branch %q", printable(e.branch))
}

func (e *noBranchError) hint() string {
	const shown = 5
	list := e.exist[:min(len(e.exist), shown)]
	text := "Set source.branch to one that exists: " + printable(strings.Join(list, ", "))
	if more := len(e.exist) - len(list); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if len(list) == 0 {
		return "Push a branch first: there is none."
	}
	return text + "."
}

type hostKeyError struct{ text, hint string }

func (e *hostKeyError) Error() string { return e.text }

// explain turns what a fetch ended with into what its reader can act on.
func (s *Source) explain(ctx context.Context, err error) error {
	var done *source.Error
	if errors.As(err, &done) {
		return done
	}
	var local *failure
	if errors.As(err, &local) {
		return &source.Error{Err: local, Hint: localHint(err)}
	}
	if s.isLocal(err) {
		return &source.Error{Err: localFailure("writing the mirror", err), Hint: localHint(err)}
	}
	text, hint := s.describe(ctx, err)
	return &source.Error{
		Err:  &failure{kind: source.ErrUnavailable, text: "fetching " + s.remote.display + ": " + text, cause: err},
		Hint: hint,
	}
}

// isLocal tells a full disk or an unwritable cache from a failing remote.
func (s *Source) isLocal(err error) bool {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return true
	}
	var at *fs.PathError
	return errors.As(err, &at) && (strings.HasPrefix(at.Path, s.Dir+"/") || strings.HasPrefix(at.Path, s.Dir+partInfix))
}

func localHint(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "Make room on the file system of the cache directory; what is in the mirror may be deleted at any time."
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "The user that fetches must be able to write the cache directory and to read the files that the configuration names."
	}
	return ""
}

func (s *Source) describe(ctx context.Context, err error) (text, hint string) {
	var (
		branch    *noBranchError
		key       *hostKeyError
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		network   *net.OpError
		alert     tls.AlertError
		redirect  *redirectError
		refuses   *proxyError
		asked     *url.Error
		status    *statusError
		limit     *limitError
		said      *saidError
		told      *pktline.ErrorLine
		broken    *packfile.Error
		text0     = printable(firstLine(err.Error()))
	)
	host := s.remote.address()
	if errors.As(err, &asked) { // the URL is said already
		text0 = printable(firstLine(asked.Err.Error()))
	}
	switch {
	case errors.As(err, &branch):
		return branch.Error(), branch.hint()
	case errors.As(err, &key):
		return key.text, key.hint
	case errors.As(err, &limit):
		return limit.text, "That is the limit of " + limit.key + ": raise it if the repository is meant to be like that."
	case errors.As(err, &redirect):
		return redirect.Error(), "Set source.url to where the repository is, if that is somebody to trust."
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Sprintf("no answer, or not all of it, within %s", s.Timeout),
			"The server stalls or the repository is large: see source.timeout."
	case errors.Is(ctx.Err(), context.Canceled):
		return "interrupted", ""
	case errors.As(err, &refuses):
		return refuses.Error(), "Check https_proxy and no_proxy in the environment of the service; a password for the proxy belongs into a file that root alone can read (EnvironmentFile=)."
	case errors.As(err, &network) && network.Op == "proxyconnect":
		return "the proxy that the environment names cannot be reached: " + printable(network.Err.Error()), "Check https_proxy and no_proxy in the environment of the service."
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("no such host: %s", dns.Name), "Check source.url, and whether this machine can resolve names."
	case errors.As(err, &dns):
		return fmt.Sprintf("looking up %s: %s", dns.Name, dns.Err), "Check whether this machine can resolve names."
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused by " + host, "Nothing listens there: check the port in source.url, and whether the server is up."
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to " + host, "Check this machine's network."
	case errors.As(err, &name):
		return "TLS: " + printable(name.Error()), "The certificate is for another name than the one in source.url."
	case errors.As(err, &authority):
		return "TLS: the certificate is signed by an unknown authority", "Name the authority's certificate in source.ca_file."
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "TLS: the certificate has expired or is not valid yet", "Renew it, and check this machine's clock."
	case errors.As(err, &invalid):
		return "TLS: " + printable(invalid.Error()), "The server's certificate cannot be used."
	case errors.As(err, &verify):
		return "TLS: " + printable(verify.Err.Error()), "The server's certificate cannot be used."
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "TLS: " + host + " does not speak it", "Check scheme and port in source.url."
	case errors.As(err, &alert), errors.As(err, &network) && network.Op == "remote error":
		why := strings.TrimPrefix(text0[strings.LastIndex(text0, ": ")+len(": "):], "tls: ")
		if s.ClientCert == "" {
			return "TLS: refused by the server: " + why, "If it asks for client certificates, name one in source.client_cert and source.client_key."
		}
		return "TLS: refused by the server: " + why, "It does not take the certificate of source.client_cert."
	case errors.As(err, &status):
		return s.describeStatus(status)
	case strings.Contains(err.Error(), "ssh: unable to authenticate"):
		return fmt.Sprintf("authentication refused for user %s", printable(s.remote.endpoint.User)),
			"The server does not accept this host's key: add its public half there as a read-only deploy key."
	case strings.Contains(err.Error(), "no common algorithm for host key"):
		return "the server has no host key of a type that is known for " + host, s.scanHint()
	case errors.Is(err, errNotFound), errors.Is(err, transport.ErrRepositoryNotFound), errors.As(err, &said) && notFound(said.text):
		return s.notFound()
	case errors.Is(err, errEmpty), errors.Is(err, transport.ErrEmptyRemoteRepository):
		return errEmpty.Error(), "Push a commit first."
	case errors.Is(err, exec.ErrNotFound):
		return "git is not installed, which is needed for a repository on this machine", "Install git, or use an https or ssh URL."
	case errors.Is(err, errProtocol):
		return text0, "Check the path in source.url: a login page, or a proxy's, answers like that."
	case errors.As(err, &said):
		return "the server said: " + printable(firstLine(said.text)), ""
	case errors.As(err, &told):
		return "the server said: " + printable(firstLine(told.Text)), ""
	case errors.Is(err, source.ErrDamaged), errors.As(err, &broken), errors.Is(err, packfile.ErrEmptyPackfile), errors.Is(err, packfile.ErrMalformedPackFile),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return "the server broke off, or sent what cannot be read: " + text0, "It is tried again at the next run."
	case isSSH(err):
		return text0, "Check source.url with ssh -v."
	}
	return text0, ""
}

func (s *Source) describeStatus(e *statusError) (text, hint string) {
	switch anonymous := s.TokenFile == "" && s.PasswordFile == ""; e.code {
	case http.StatusUnauthorized:
		if anonymous {
			return "the server asks for credentials", "Name a token file in source.token_file."
		}
		return "authentication refused", "The token or password is wrong, or has expired."
	case http.StatusForbidden:
		return "access refused (403): " + orNothing(e.reason), "Whoever the credentials are for may not read this repository."
	case http.StatusNotFound:
		return s.notFound()
	}
	return fmt.Sprintf("the server answered %d: %s", e.code, orNothing(e.reason)), "Look into the server's log."
}

func orNothing(reason string) string {
	if reason == "" {
		return "it says no more"
	}
	return reason
}

func (s *Source) notFound() (text, hint string) {
	if s.remote.endpoint.Protocol == "https" && s.TokenFile == "" && s.PasswordFile == "" {
		return errNotFound.Error(), "Check the path in source.url; to whom a private repository is not open, many servers say that it does not exist."
	}
	return errNotFound.Error(), "Check the path in source.url, and that the credentials may read it."
}

func isSSH(err error) bool {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	return errors.As(err, &exit) || errors.As(err, &missing) || strings.Contains(err.Error(), "ssh: ")
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// printable is source.Printable of a short text.
func printable(text string) string { return source.Printable(text, source.MaxText) }

// plainWriter passes a server's progress on, without escape sequences.
type plainWriter struct{ w io.Writer }

func (p *plainWriter) Write(data []byte) (int, error) {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\r' {
			return r
		}
		return -1
	}, string(data))
	if _, err := io.WriteString(p.w, clean); err != nil {
		return 0, err
	}
	return len(data), nil
}
