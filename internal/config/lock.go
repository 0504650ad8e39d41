package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/reconf-pull/reconf-pull/internal/lock"
)

// The names that a lock has when lock.name says nothing.
const (
	defaultForemanLock = "reconf-pull-{{.Group}}"
	defaultEtcdFleet   = "fleet"
)

// groups are what the FleetLock protocol takes.
var groups = regexp.MustCompile(`^[a-zA-Z0-9.-]+$`)

// check looks at the values of [lock]; bad is told where, and what is wrong.
func (l *Lock) check(bad func(key, message string)) {
	if l.Scope != "always" && l.Scope != "reboot" {
		bad("scope", fmt.Sprintf("lock.scope = %q is none of always, reboot", l.Scope))
	}
	if l.Timeout <= 0 {
		bad("timeout", "lock.timeout must be longer than 0")
	}
	if l.Poll <= 0 {
		bad("poll", "lock.poll must be longer than 0")
	}
	if l.Slots < 1 {
		bad("slots", "lock.slots must be at least 1")
	}
	if !groups.MatchString(l.Group) {
		bad("group", fmt.Sprintf("lock.group = %q may have letters, digits, dots and hyphens only", l.Group))
	}
	if name, err := l.LockName("host"); err != nil {
		bad("name", "lock.name "+err.Error())
	} else if l.Kind == "foreman" && (strings.Trim(name, "0123456789") == "" || strings.Contains(name, "/")) {
		bad("name", fmt.Sprintf("lock.name = %q is no name for Foreman: it must not be a number nor have a slash", l.Name))
	}
	if (l.Cert == "") != (l.Key == "") {
		bad("cert", "lock.cert and lock.key go together")
	}
	if (l.User == "") != (l.PasswordFile == "") {
		bad("user", "lock.user and lock.password_file go together")
	}
	if l.User != "" && slices.ContainsFunc(l.Endpoints, func(e string) bool { return strings.HasPrefix(e, "http:") }) {
		bad("user", "lock.user: credentials are not sent over http: use https in lock.endpoints")
	}
	switch l.Kind {
	case lock.NoLock:
	case "etcd":
		if len(l.Endpoints) == 0 {
			bad("kind", "lock.endpoints must name the members of the etcd cluster")
		}
	case "foreman", "fleetlock":
		if l.URL == "" {
			bad("kind", "lock.url must say where the lock server is")
		}
	}
	if message := wrongURL(l.URL); l.URL != "" && message != "" {
		bad("url", "lock.url "+message)
	}
	for _, endpoint := range l.Endpoints {
		if message := wrongURL(endpoint); message != "" {
			bad("endpoints", "lock.endpoints "+message)
		}
	}
}

// wrongURL never shows the URL: it may have a password.
func wrongURL(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "":
		return "has to be https://HOST[:PORT][/PATH], or http"
	case u.User != nil:
		return "must not have a user or a password: see lock.user, lock.cert"
	}
	return ""
}

// LockName is lock.name for a host: the lock of a Foreman, or the fleet in etcd.
func (l *Lock) LockName(host string) (string, error) {
	text := l.Name
	switch {
	case text != "":
	case l.Kind == "etcd":
		text = defaultEtcdFleet
	default:
		text = defaultForemanLock
	}
	t, err := template.New("lock.name").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", fmt.Errorf("is no template: %w", err)
	}
	var name strings.Builder
	if err := t.Execute(&name, struct{ Group, Host string }{l.Group, host}); err != nil {
		return "", fmt.Errorf("= %q may use {{.Group}} and {{.Host}} only", l.Name)
	}
	if name.String() == "" {
		return "", fmt.Errorf("= %q gives no name", l.Name)
	}
	return name.String(), nil
}
