package bootedhost_test

import (
	"io"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/bootedhost"
)

// Each host of its own network reaches its test and nobody else, until it cuts itself
// off; and no rule of the kernel's survives the host.
func TestPrivateNetwork(t *testing.T) {
	for name, os := range map[string]bootedhost.OS{"Debian12": bootedhost.Debian12, "Debian13": bootedhost.Debian13} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // with itself: the addresses are the same
			h := bootedhost.Prepare(t, bootedhost.Options{OS: os, PrivateNetwork: true})
			l := h.Listen("80")
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, name+" "+conn.RemoteAddr().String()+"\n")
					_ = conn.Close()
				}
			}()
			ask := func() (string, int) {
				return h.Try("timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+bootedhost.Gateway+"/80 && read -r who from <&3 && echo ${who} ${from%:*}")
			}
			reaches := func(when string) {
				t.Helper()
				h.Run("systemctl", "start", "network-online.target")
				if got, status := ask(); got != name+" "+bootedhost.Address+"\n" || status != 0 {
					t.Errorf("%s the host gets %q, %d", when, got, status)
				}
			}
			h.PowerOn()
			reaches("after a boot")
			if got := h.Run("systemctl", "is-system-running"); got != "running" {
				t.Errorf("%s:\n%s", got, h.Run("systemctl", "list-units", "--failed"))
			}
			for how, again := range map[string]func(){"a reboot": h.Reboot, "a power cut": h.PowerCut} {
				h.Run("nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; policy drop; }")
				if got, status := ask(); status == 0 {
					t.Errorf("through the firewall the host gets %q", got)
				}
				again()
				reaches("after " + how)
			}
			h.Run("ip", "link", "set", bootedhost.Interface, "down")
			h.WaitFor(10*time.Second, func() bool { _, status := ask(); return status != 0 }, "the end of the link")
		})
	}
}
