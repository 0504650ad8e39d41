package bootedhost

import (
	"net"
	"os/exec"
	"strings"
	"syscall"
)

// On a private network the test is at Gateway and the host at Address. Every host has
// such a network for itself, so these are the same for all.
const (
	Gateway = "192.0.2.1"
	Address = "192.0.2.2"
)

// Interface is what the host calls its end of the private network.
const Interface = "host0"

// bridge is the test's end. It is there while the host is off: nspawn makes a new pair
// of interfaces, and the host a new network namespace, at each boot, so that no rule or
// route survives one.
const bridge = "lan"

// connect makes the private network and tells the host, which is off, its address.
func (h *Host) connect() {
	h.tb.Helper()
	for _, args := range []string{
		"link set lo up",
		"link add " + bridge + " type bridge",
		"address add " + Gateway + "/24 dev " + bridge,
		"link set " + bridge + " up",
	} {
		cmd := exec.Command("ip", strings.Fields(args)...)
		out, err := h.output(cmd)
		if err != nil {
			h.tb.Fatalf("making the network of %s: ip %s: %v\n%s", h.Name, args, err, out)
		}
	}
	write := func(path, text string) { h.Write(path, []byte(text), 0o644) }
	write("/etc/systemd/network/10-private.network",
		"[Match]\nName="+Interface+"\n[Network]\nAddress="+Address+"/24\nGateway="+Gateway+"\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
	write("/etc/systemd/system/multi-user.target.d/network.conf", "[Unit]\nWants=systemd-networkd.service\n")
	write("/etc/systemd/system/network-online.target.d/network.conf", "[Unit]\nWants=systemd-networkd-wait-online.service\n")
	write("/etc/resolv.conf", "nameserver "+Gateway+"\n")
}

// output runs a command of this machine on the private network.
func (h *Host) output(cmd *exec.Cmd) (string, error) {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.ns.do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Listen opens a TCP port at Gateway for a server of the test's, until the test ends.
func (h *Host) Listen(port string) net.Listener {
	h.tb.Helper()
	var l net.Listener
	err := h.ns.do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(Gateway, port))
		return err
	})
	if err != nil {
		h.tb.Fatalf("%s: %v", h.Name, err)
	}
	h.tb.Cleanup(func() { _ = l.Close() })
	return l
}

// Serve starts a program of this machine on the private network, as a server for the
// host, and ends it with the test.
func (h *Host) Serve(name string, args ...string) {
	h.tb.Helper()
	var log strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	// By the end of the namespace's thread at the latest.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.ns.do(cmd.Start); err != nil {
		h.tb.Fatalf("%s: %v", h.Name, err)
	}
	h.tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.tb.Failed() {
			h.tb.Logf("%s says:\n%s", name, log.String())
		}
	})
}
