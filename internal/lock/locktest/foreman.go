package locktest

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Foreman is a stand-in for a Foreman with the plugin foreman_dlm 4.0, which cannot be
// had here: its API for locks, with client certificates that are verified for real.
type Foreman struct {
	URL string
	CA  *CA

	mu sync.Mutex
	// hosts may acquire locks, or are known and may not.
	hosts map[string]bool
	locks map[string]*foremanLock
	// events are "acquire web1" and "release web1".
	events []string
	first  func(http.ResponseWriter, *http.Request) bool
}

type foremanLock struct {
	id      int
	host    string
	enabled bool
	updated time.Time
}

// NewForeman starts one on a listener, which may be nil, that knows the hosts.
func NewForeman(tb testing.TB, listener net.Listener, hosts ...string) *Foreman {
	tb.Helper()
	f := &Foreman{CA: NewCA(tb), hosts: map[string]bool{}, locks: map[string]*foremanLock{}}
	for _, host := range hosts {
		f.hosts[host] = true
	}
	cert, key := f.CA.Issue("foreman.example.com")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		tb.Fatal(err)
	}
	server := httptest.NewUnstartedServer(f)
	if listener != nil {
		server.Listener.Close()
		server.Listener = listener
	}
	// As Apache with SSLVerifyClient optional: without a certificate there is an answer.
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: f.CA.Pool(), ClientAuth: tls.VerifyClientCertIfGiven}
	server.Config.ErrorLog = quiet
	server.StartTLS()
	tb.Cleanup(server.Close)
	f.URL = server.URL
	return f
}

// First lets answer see every request first: true is an answer that was given.
func (f *Foreman) First(answer func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.first = answer
}

// Disable disables or enables a lock, Forbid a host's acquiring.
func (f *Foreman) Disable(name string, disabled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lock(name).enabled = !disabled
}

// Forbid sets the host's parameter can_acquire_update_locks to false.
func (f *Foreman) Forbid(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[host] = false
}

// Give makes a host the holder, "" nobody.
func (f *Foreman) Give(name, host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lock(name).host = host
}

// Holder of a lock.
func (f *Foreman) Holder(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lock(name).host
}

// Events are all changes of holders until now.
func (f *Foreman) Events() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.events...)
}

func (f *Foreman) lock(name string) *foremanLock {
	l := f.locks[name]
	if l == nil {
		l = &foremanLock{id: len(f.locks) + 1, enabled: true, updated: time.Now()}
		f.locks[name] = l
	}
	return l
}

// ServeHTTP is the API.
func (f *Foreman) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	first := f.first
	f.mu.Unlock()
	if first != nil && first(w, r) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name, isLock := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/api/dlmlocks/"), "/lock")
	if !isLock || !strings.HasPrefix(r.URL.Path, "/api/dlmlocks/") || r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, "<html>The page you were looking for doesn't exist</html>", http.StatusNotFound)
		return
	}
	host := ""
	if len(r.TLS.PeerCertificates) > 0 {
		host = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	may, known := f.hosts[host]
	if !known {
		reply(w, http.StatusUnauthorized, map[string]any{"error": map[string]any{"message": "Unable to authenticate user"}})
		return
	}
	if r.Method == http.MethodGet && f.locks[name] == nil {
		reply(w, http.StatusNotFound, map[string]any{"error": map[string]any{"message": "Resource dlmlock not found by id '" + name + "'"}})
		return
	}
	l := f.lock(name)
	refused := map[string]any{"error": map[string]any{"id": l.id, "message": "Precondition failed. Lock is in invalid state for this operation."}}
	switch r.Method {
	case http.MethodPut:
		if !l.enabled || !may || l.host != "" && l.host != host {
			reply(w, http.StatusPreconditionFailed, refused)
			return
		}
		if l.host == "" {
			f.events = append(f.events, "acquire "+host)
		}
		l.host, l.updated = host, time.Now()
	case http.MethodDelete:
		if !l.enabled || l.host != "" && l.host != host {
			reply(w, http.StatusPreconditionFailed, refused)
			return
		}
		if l.host != "" {
			f.events = append(f.events, "release "+host)
		}
		l.host, l.updated = "", time.Now()
	}
	document := map[string]any{"id": l.id, "name": name, "enabled": l.enabled, "type": "ForemanDlm::Dlmlock::Update", "updated_at": l.updated, "host_id": nil, "host": nil}
	if l.host != "" {
		document["host_id"] = 7
		document["host"] = map[string]any{"name": l.host, "self": l.host == host}
	}
	reply(w, http.StatusOK, document)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // whoever asked may be gone
}
