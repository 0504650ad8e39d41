package main_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A resident is a user of the host in whose home managed paths lie.
type resident struct {
	name    string
	uid     int
	managed []string // below the home
}

var residents = []resident{
	{"alice", 4001, []string{".config/app/settings", ".config/app/gone", "work/notes", ".config/app/data", "work/link"}},
	{"bob", 4002, []string{"deep/er/place/dir", "deep/er/link", "deep/er/place/tool", "deep/rc"}},
}

// Every file with root's secret in it is root's alone, and so are the residents' with theirs.
const rootsSecret = "SECRET-OF-0"

func secretOf(uid int) string { return fmt.Sprint("SECRET-OF-", uid) }

// A half of what the residents get: a file, an append, a directory and a link in two
// homes. The other half has them the other way round.
type half struct{ first, later []string }

var halves = []half{{
	first: []string{
		"directories: [{path: /home/bob/deep/er/place/dir, mode: 0750}]",
		"files:",
		"  - {path: /etc/security-fix, contents: {inline: first}}",
		"  - {path: /home/alice/.config/app/settings, mode: 0600, contents: {inline: first}, user: {id: 4001}}",
		"  - {path: /home/alice/.config/app/gone, contents: {inline: gone}}",
		`  - {path: /home/alice/work/notes, append: [{inline: "first note\n"}], user: {id: 4001}}`,
		"links: [{path: /home/bob/deep/er/link, target: place/tool}]",
	},
	later: []string{
		"directories: [{path: /home/bob/deep/er/place/dir, mode: 0755, user: {id: 4002}}]",
		"files:",
		"  - {path: /etc/security-fix, mode: 0600, contents: {inline: later}}",
		"  - {path: /home/alice/.config/app/settings, mode: 0644, contents: {inline: later}, user: {id: 4001}}",
		`  - {path: /home/alice/work/notes, append: [{inline: "later note\n"}], user: {id: 4001}}`,
		"links: [{path: /home/bob/deep/er/link, target: place/dir, user: {id: 4002}}]",
	},
}, {
	first: []string{
		"directories: [{path: /home/alice/.config/app/data, mode: 0700, user: {id: 4001}}]",
		"files:",
		"  - {path: /etc/security-fix, contents: {inline: first}}",
		"  - {path: /home/bob/deep/er/place/tool, mode: 0700, contents: {inline: tool}}",
		`  - {path: /home/bob/deep/rc, mode: 0644, append: [{inline: "first line\n"}], user: {id: 4002}}`,
		"links: [{path: /home/alice/work/link, target: ../.config/app/settings, user: {id: 4001}}]",
	},
	later: []string{
		"directories: [{path: /home/alice/.config/app/data, mode: 0755, user: {id: 4001}, group: {id: 4001}}]",
		"files:",
		"  - {path: /etc/security-fix, mode: 0600, contents: {inline: later}}",
		"  - {path: /home/bob/deep/er/place/tool, mode: 04755, contents: {inline: tool}}",
		`  - {path: /home/bob/deep/rc, mode: 0604, append: [{inline: "first line\n"}], user: {id: 4002}, group: {id: 4002}}`,
	},
}}

func butaneOf(storage []string) string {
	return "variant: fcos\nversion: 1.7.0\nstorage:\n  " + strings.Join(storage, "\n  ") + "\n"
}

// inHomes are the residents with what a half manages in their homes.
func (h half) inHomes() (all []resident) {
	for _, who := range residents {
		here := slices.DeleteFunc(slices.Clone(who.managed), func(p string) bool {
			return !strings.Contains(butaneOf(h.first), "/home/"+who.name+"/"+p+",")
		})
		all = append(all, resident{who.name, who.uid, here})
	}
	return all
}

// homes is a host with residents. Wherever a link may lead there are files and
// directories with the names of managed paths. In every directory of a resident lies one
// of root's, and in every home a secret and a program of root's: an owner of a directory
// can move about in it what root made there.
func (tr *trial) homes() string {
	tr.t.Helper()
	dir := tr.host()
	b := &builder{root: filepath.Join(dir, "root")}
	b.dir("", 0, 0o755)
	for _, name := range []string{"etc", "etc/tmpfiles.d", "home", "usr", "usr/bin", "var", "var/mail"} {
		b.dir(name, 0, 0o755)
	}
	b.file("etc/shadow", 0, 0o600, rootsSecret)
	b.file("etc/tmpfiles.d/x.conf", 0, 0o644, "d /run/x\n")
	b.file("usr/bin/su", 0, 0o4755, "su")
	b.dir("root", 0, 0o700)
	b.names("root", 0)
	b.dir("var/victim", 0, 0o755)
	b.names("var/victim", 0)
	for _, who := range residents {
		home := "home/" + who.name
		b.dir(home, who.uid, map[string]uint32{"alice": 0o755, "bob": 0o700}[who.name])
		b.file("var/mail/"+who.name, who.uid, 0o600, "mail")
		b.file(home+"/secret", 0, 0o600, rootsSecret)
		b.file(home+"/program", 0, 0o4755, "program")
		b.file(home+"/hers", who.uid, 0o644, "hers\n")
		b.dir(home+"/private", who.uid, 0o700)
		b.names(home+"/private", who.uid)
	}
	for _, name := range []string{"alice/.config", "alice/.config/app", "alice/work"} {
		b.dir("home/"+name, 4001, 0o755)
	}
	for _, name := range []string{"bob/deep", "bob/deep/er", "bob/deep/er/place", "bob/deep/er/place/dir"} {
		b.dir("home/"+name, 4002, 0o755)
	}
	b.file("home/alice/work/notes", 4001, 0o644, "a note\n")
	b.file("home/bob/deep/rc", 4002, 0o600, "a line\n")
	for _, name := range []string{
		"alice", "alice/.config", "alice/.config/app", "alice/work", "bob", "bob/deep", "bob/deep/er", "bob/deep/er/place",
	} {
		b.dir("home/"+name+"/vault", 0, 0o700)
		b.names("home/"+name+"/vault", 0)
	}
	if b.err != nil {
		tr.t.Fatal(b.err)
	}
	return dir
}

// builder makes files below a root.
type builder struct {
	root string
	err  error
}

func (b *builder) dir(name string, uid int, mode uint32) {
	p := filepath.Join(b.root, name)
	b.err = errors.Join(b.err, os.Mkdir(p, 0o700), os.Chown(p, uid, uid), unix.Chmod(p, mode))
}

func (b *builder) file(name string, uid int, mode uint32, text string) {
	p := filepath.Join(b.root, name)
	b.err = errors.Join(b.err, os.WriteFile(p, []byte(text), 0o600), os.Chown(p, uid, uid), unix.Chmod(p, mode))
}

// names fills a directory with secrets under every name on the way to a managed path,
// for walks that are led there.
func (b *builder) names(at string, uid int) {
	secret := secretOf(uid)
	for _, name := range []string{"settings", "notes", "tool", "rc", "link"} {
		b.file(at+"/"+name, uid, 0o600, secret)
	}
	b.file(at+"/open", uid, 0o644, secret) // only the directory hides it
	for _, name := range []string{"data", "dir", "app", "er", "place"} {
		b.dir(at+"/"+name, uid, 0o700)
		b.file(at+"/"+name+"/settings", uid, 0o644, secret)
	}
}

// thing is what a survey finds under a name.
type thing struct {
	inode    uint64
	mode     uint32
	uid, gid int
	managed  bool   // the config speaks of it
	holds    string // target, contents or their hash
	secret   []int  // whose secrets are in it
	// readers are the residents who can read a file, or enter a directory.
	readers []int
}

func (th thing) String() string {
	return fmt.Sprintf("%o %d:%d %q", th.mode, th.uid, th.gid, th.holds)
}

// bits are what a mode lets somebody do who is in no group but his own.
func (th thing) bits(uid int) uint32 {
	switch uid {
	case th.uid:
		return th.mode >> 6 & 7
	case th.gid:
		return th.mode >> 3 & 7
	}
	return th.mode & 7
}

// survey looks at everything in a directory, from the outside: nothing is opened that
// is no regular file, and nothing huge is read.
func survey(t *testing.T, dir string) map[string]thing {
	t.Helper()
	const most = 1 << 20
	all := map[string]thing{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err = errors.Join(err, unix.Lstat(p, &st)); err != nil {
			return err
		}
		name := path.Join(".", strings.TrimPrefix(p, dir))
		th := thing{inode: st.Ino, mode: st.Mode, uid: int(st.Uid), gid: int(st.Gid)}
		need := uint32(4)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			need = 1
		case unix.S_IFLNK:
			th.holds, err = os.Readlink(p)
		case unix.S_IFREG:
			th.holds, th.secret, err = contentsOf(p, min(st.Size, most))
		}
		for _, who := range residents {
			rel, _ := filepath.Rel("root/home/"+who.name, name)
			th.managed = th.managed || slices.Contains(who.managed, rel)
			within := name == "." || slices.Contains(all[path.Dir(name)].readers, who.uid) && th.bits(who.uid)&need != 0
			if within {
				th.readers = append(th.readers, who.uid)
			}
		}
		all[name] = th
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func contentsOf(p string, most int64) (holds string, secret []int, err error) {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	data := make([]byte, most)
	n, _ := f.Read(data)
	text := string(data[:n])
	for _, uid := range []int{0, 4001, 4002} {
		if strings.Contains(text, secretOf(uid)) {
			secret = append(secret, uid)
		}
	}
	if len(text) > 40 {
		sum := sha256.Sum256([]byte(text))
		text = hex.EncodeToString(sum[:])
	}
	return text, secret, nil
}
