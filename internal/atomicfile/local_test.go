package atomicfile

import (
	"slices"
	"testing"
)

func TestLocalMounts(t *testing.T) {
	const kinds = "nodev\tsysfs\nnodev\ttmpfs\nnodev\toverlay\n\text4\n\txfs\nnodev\tnfs4\nnodev\tzfs\n\tvfat\n"
	const mounts = `21 1 253:0 / / rw,relatime - ext4 /dev/vda rw,discard
22 21 0:20 / /proc rw - proc proc rw
23 21 253:0 /srv /srv/bind\040here rw - ext4 /dev/vda rw
24 21 253:1 / /var rw shared:1 - xfs /dev/vdb rw,noquota
25 21 253:2 / /boot/efi ro - vfat /dev/vdc ro,fmask=0022
26 21 0:33 / /home rw - nfs4 server:/home rw
27 21 0:34 / /tank\040one rw - zfs tank rw
28 21 253:3 / /data ro shared:3 master:2 - xfs /dev/vdd rw
29 21 0:35 / /tmp rw - tmpfs tmpfs rw
`
	want := []string{"/", "/var", "/tank one", "/data"}
	if got := localMounts(mounts, kinds); !slices.Equal(got, want) {
		t.Errorf("localMounts = %q, want %q", got, want)
	}
}

func TestSyncLocal(t *testing.T) {
	if err := SyncLocal(); err != nil {
		t.Error(err)
	}
}
