// Command server serves the git repositories below a directory over https, for bench/run.
//
// Its one rule: it is git's own http-backend behind TLS, and only counts what that says.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

func main() {
	backend := flag.String("backend", "", "git-http-backend")
	repos := flag.String("repos", "", "directory of the repositories")
	ca := flag.String("ca", "", "file for the certificate")
	port := flag.Int("port", 0, "port on 127.0.0.1")
	ask := flag.Bool("ask", false, "ask the server how many bytes of response bodies there were since it was last asked")
	flag.Parse()
	do := func() error { return serve(*backend, *repos, *ca, *port) }
	if *ask {
		do = func() error { return counted(*ca, *port) }
	}
	if err := do(); err != nil {
		log.Fatal(err)
	}
}

// counted asks a server that runs.
func counted(ca string, port int) error {
	data, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/-/bytes", port))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func serve(backend, repos, ca string, port int) error {
	cert, err := certificate(ca)
	if err != nil {
		return err
	}
	git := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + repos, "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	var body atomic.Int64
	mux := http.NewServeMux()
	mux.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { git.ServeHTTP(&counter{w, &body}, r) }))
	mux.HandleFunc("/-/bytes", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, body.Swap(0)) })
	server := &http.Server{
		Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Handler: mux, ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	return server.ListenAndServeTLS("", "")
}

type counter struct {
	http.ResponseWriter
	body *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.body.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// certificate makes one that lasts, and writes it for those who are to trust it.
func certificate(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}
