package update

import (
	"path"
	"slices"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/plan"
)

// lifeline are the paths through which a change can cut a host off from its
// fleet repo: our own configuration, the network, the firewall, names, trust.
var lifeline = []string{
	"/etc/reconf-pull", "/etc/systemd/system/reconf-pull.service", "/etc/systemd/system/reconf-pull.service.d",
	"/etc/NetworkManager", "/etc/systemd/network", "/etc/systemd/networkd.conf", "/etc/systemd/networkd.conf.d", "/etc/netplan", "/etc/network",
	"/etc/sysconfig/network-scripts", "/etc/wpa_supplicant", "/etc/iproute2", "/etc/sysctl.d", "/etc/modules-load.d", "/etc/modprobe.d",
	"/etc/nftables", "/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/etc/iptables", "/etc/sysconfig/iptables", "/etc/firewalld", "/etc/ufw",
	"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/systemd/resolved.conf", "/etc/systemd/resolved.conf.d",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/local/share/ca-certificates", "/etc/crypto-policies",
	"/etc/ssh", "/root/.ssh", "/etc/environment", "/etc/profile.d", "/etc/wireguard", "/etc/openvpn",
}

// networkUnits are what the names of units that carry the network begin with.
var networkUnits = []string{"systemd-networkd", "systemd-resolved", "NetworkManager", "nftables", "iptables", "firewalld", "ufw", "wpa_supplicant", "wg-quick", "openvpn", "dnsmasq", "unbound"}

// asksSource tells whether the health step polls the source (health.source).
func (u *Update) asksSource(p *plan.Plan) bool {
	switch {
	case u.Reach == nil || u.HealthSource == "never":
		return false
	case u.HealthSource == "always":
		return true
	}
	for _, changed := range p.Changed() {
		if slices.ContainsFunc(lifeline, func(dir string) bool { return changed == dir || strings.HasPrefix(changed, dir+"/") }) {
			return true
		}
	}
	for _, touch := range slices.Concat(p.Effect.Early, p.Effect.Touches) {
		unit := path.Base(touch.Unit)
		if slices.ContainsFunc(networkUnits, func(prefix string) bool { return strings.HasPrefix(unit, prefix) }) {
			return true
		}
	}
	return false
}
