package update

import (
	"context"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/disk"
	"github.com/reconf-pull/reconf-pull/internal/fsat"
	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// lifeline are the paths through which a change can cut a host off from its
// fleet repo: our own configuration, the network, the firewall, names, trust.
var lifeline = []string{
	"/etc/reconf-pull", "/etc/systemd/system/reconf-pull.service", "/etc/systemd/system/reconf-pull.service.d",
	"/etc/NetworkManager", "/etc/systemd/network", "/etc/systemd/networkd.conf", "/etc/systemd/networkd.conf.d", "/etc/netplan", "/etc/network",
	"/etc/sysconfig/network", "/etc/sysconfig/network-scripts", "/etc/wpa_supplicant", "/etc/iproute2", "/etc/dhcp", "/etc/dhcpcd.conf",
	"/etc/sysctl.conf", "/etc/sysctl.d", "/etc/modules-load.d", "/etc/modprobe.d",
	"/etc/nftables", "/etc/nftables.d", "/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/etc/iptables", "/etc/sysconfig/iptables",
	"/etc/sysconfig/ip6tables", "/etc/firewalld", "/etc/ufw", "/etc/default/ufw", "/etc/hosts.allow", "/etc/hosts.deny",
	"/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/resolvconf", "/etc/nsswitch.conf", "/etc/gai.conf",
	"/etc/systemd/resolved.conf", "/etc/systemd/resolved.conf.d", "/etc/dnsmasq.conf", "/etc/dnsmasq.d", "/etc/unbound",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/usr/local/share/ca-certificates", "/etc/crypto-policies",
	"/etc/ssh", "/root/.ssh", "/etc/environment", "/etc/environment.d", "/etc/profile.d",
	"/etc/wireguard", "/etc/openvpn", "/etc/ipsec.conf", "/etc/ipsec.d", "/etc/swanctl", "/etc/strongswan",
}

// networkUnits are what the names of units that carry the network begin with.
var networkUnits = []string{
	"systemd-networkd", "systemd-resolved", "NetworkManager", "network.", "networking.", "dhcpcd", "nftables", "iptables", "ip6tables", "netfilter-persistent", "firewalld", "ufw",
	"wpa_supplicant", "wg-quick", "openvpn", "strongswan", "ipsec", "tailscaled", "dnsmasq", "unbound", "named", "bind9",
}

// networkWords are what a unit or a program does that sets up the network: the
// programs that it calls, or the target that systemd.special(7) has for firewalls.
var networkWords = regexp.MustCompile(`(^|[^\w.-])(nft|ip6?tables(-\w+)*|ebtables|arptables|ipset|ufw|firewall-cmd|nmcli|nmstatectl|networkctl|resolvectl|resolvconf|` +
	`ip|tc|ifconfig|ifup|ifdown|ethtool|brctl|wg|wg-quick|ipsec|swanctl|sysctl|update-ca-certificates|update-ca-trust|network-pre\.target)($|[^\w.-])`)

// asksSource tells whether the health step polls the source (health.source). The
// files of the change are in place by then.
func (u *Update) asksSource(p *plan.Plan) bool {
	switch {
	case u.Reach == nil || u.HealthSource == "never":
		return false
	case u.HealthSource == "always":
		return true
	}
	own := slices.Concat(lifeline, u.Lifeline)
	for _, changed := range p.Changed() {
		if slices.ContainsFunc(own, func(dir string) bool { return changed == dir || strings.HasPrefix(changed, dir+"/") }) {
			return true
		}
	}
	touched := slices.Clone(p.Stopped)
	for _, unit := range p.Units {
		touched = append(touched, unit.Name)
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches) {
		touched = append(touched, touch.Unit)
	}
	for _, unit := range touched {
		if slices.ContainsFunc(networkUnits, func(prefix string) bool { return strings.HasPrefix(unit, prefix) }) {
			return true
		}
	}
	return slices.ContainsFunc(p.Changed(), u.setsUpNetwork)
}

// setsUpNetwork looks into a unit file or a program.
func (u *Update) setsUpNetwork(file string) bool {
	found, err := u.Host.Files.Follow(file)
	unit := strings.HasPrefix(file, "/etc/systemd/system/") || strings.HasPrefix(file, "/usr/local/lib/systemd/system/") || path.Ext(file) == ".container"
	if err != nil || found.Kind != disk.File || !unit && found.Mode&0o111 == 0 {
		return false
	}
	f, err := u.Host.Files.Open(context.Background(), found.Path, fsat.Most)
	if err != nil {
		return false
	}
	defer f.Close()
	const most = 64 << 10 // scripts and units are smaller; compiled programs say nothing
	text, err := io.ReadAll(io.LimitReader(f, most))
	return err == nil && (unit || strings.HasPrefix(string(text), "#!")) && networkWords.Match(text)
}
