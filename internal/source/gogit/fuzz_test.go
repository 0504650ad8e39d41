package gogit

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/crypto/ssh"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

const zeroID = "0000000000000000000000000000000000000000"

// canned is a link to a server that says what it was given.
type canned struct{ greeting, answer []byte }

func (c *canned) greet(context.Context) (*packets, error) {
	return newPackets(bytes.NewReader(c.greeting)), nil
}

func (c *canned) call(context.Context, []byte) (*packets, error) {
	return newPackets(bytes.NewReader(c.answer)), nil
}

func (c *canned) close() {}

// FuzzSession: whatever a server says in either version of the protocol ends, and gives
// no ref, no shallow commit and no pack beside an error.
func FuzzSession(f *testing.F) {
	const id = "1234567890123456789012345678901234567890"
	v2 := "001e# service=git-upload-pack\n0000000eversion 2\n0015agent=git/2.39.5\n0013ls-refs=unborn\n0012fetch=shallow\n0017object-format=sha1\n0000"
	v0 := "00cd" + id + " HEAD\x00multi_ack thin-pack side-band side-band-64k ofs-delta shallow no-progress include-tag multi_ack_detailed symref=HEAD:refs/heads/main object-format=sha1 agent=git/2.39.5\n003d" + id + " refs/heads/main\n0000"
	for _, greeting := range []string{v2, v0, "000eversion 1\n" + v0, "0008ERR ", "0000", "zzzz", "fff1", "0003", "0009# ser"} {
		for _, answer := range []string{
			"0055" + id + " HEAD symref-target:refs/heads/main\n0000", "000dpackfile\n0009\x01PACK0006\x02x0000",
			"0011shallow-info\n0035shallow " + id + "0001000dpackfile\n0006\x03n", "0008NAK\n0009\x01PACK0000", "0031ACK " + id + " \n0008NAK\n0009\x01PACK", "0035shallow " + id + "00000008NAK\n",
		} {
			f.Add([]byte(greeting), []byte(answer), 1)
		}
	}
	f.Fuzz(func(t *testing.T, greeting, answer []byte, depth int) {
		const most = 50
		s, err := begin(t.Context(), &canned{greeting, answer}, most, "refs/heads/main")
		if err != nil {
			return
		}
		if l, err := s.list(t.Context(), branchPrefix); err == nil && len(l.refs) > most {
			t.Errorf("%d refs, and at most %d are allowed", len(l.refs), most)
		}
		a, err := s.fetch(t.Context(), request{want: plumbing.NewHash(zeroID), depth: depth})
		if err != nil {
			return
		}
		if n, err := io.Copy(io.Discard, a.pack); err == nil && n > int64(len(answer)) {
			t.Errorf("%d bytes of a pack in an answer of %d", n, len(answer))
		}
	})
}

// FuzzPackets: every byte that is read was sent.
func FuzzPackets(f *testing.F) {
	for _, seed := range []string{"0000", "0001", "0002", "0003", "0004", "0005a", "0005", "fff0", "ffff", "-001", "+005a", "0x05", "000aERR no"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, read := newPackets(bytes.NewReader(data)), 0
		for {
			_, packet, err := p.next()
			if err != nil {
				return
			}
			if read += 4 + len(packet); read > len(data) {
				t.Fatalf("%d bytes out of %d", read, len(data))
			}
		}
	})
}

// packOf is a pack with a good checksum; each object is its header and its content.
func packOf(objects ...[]byte) []byte {
	var b bytes.Buffer
	b.WriteString("PACK\x00\x00\x00\x02")
	_ = binary.Write(&b, binary.BigEndian, uint32(len(objects)))
	for _, o := range objects {
		b.Write(o)
	}
	sum := sha1.Sum(b.Bytes())
	return append(b.Bytes(), sum[:]...)
}

// packedObject is an object as packs have it: type, size that it claims, what stands
// before the content, and the content.
func packedObject(kind plumbing.ObjectType, size int, before, content string) []byte {
	b := []byte{byte(kind)<<4 | byte(size&15)}
	for size >>= 4; size > 0; size >>= 7 {
		b[len(b)-1] |= 0x80
		b = append(b, byte(size&0x7f))
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	return append(append(b, before...), z.Bytes()...)
}

// small are the limits of the tests below.
var small = Limits{MaxFetch: 1 << 20, MaxObject: 1 << 16, MaxObjects: 100, MaxRefs: 10}

// What a pack claims is refused before it is made: a delta of a few bytes may ask for
// gigabytes.
func TestHostilePacks(t *testing.T) {
	base := packedObject(plumbing.BlobObject, 4, "", "base")
	id := plumbing.ComputeHash(plumbing.BlobObject, []byte("base"))
	ref := string(id[:])
	huge := "\x04\x80\x80\x80\x80\x80\x01" // from 4 bytes make 32 GiB
	for name, c := range map[string]struct {
		pack []byte
		want string
	}{
		"a delta that makes 32 GiB":   {packOf(base, packedObject(plumbing.REFDeltaObject, len(huge), ref, huge)), "source.max_object"},
		"a file of 1 GiB":             {packOf(packedObject(plumbing.BlobObject, 1<<30, "", "x")), "source.max_object"},
		"a folder of 1 GiB":           {packOf(packedObject(plumbing.TreeObject, 1<<30, "", "x")), "a tree of 1073741824 bytes"},
		"a delta of 1 GiB":            {packOf(base, packedObject(plumbing.REFDeltaObject, 1<<30, ref, "x")), "source.max_object"},
		"more than it says":           {packOf(packedObject(plumbing.BlobObject, 4, "", strings.Repeat("x", 1<<20))), ""},
		"a delta that stands on none": {packOf(base, packedObject(plumbing.REFDeltaObject, 3, strings.Repeat("x", 20), "\x04\x01a")), "stand on nothing"},
		"a delta on itself":           {packOf(packedObject(plumbing.OFSDeltaObject, 3, "\x00", "\x04\x01a")), ""},
		"101 objects":                 {append([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x65"), make([]byte, 20)...), "source.max_objects"},
		"4 billion objects":           {append([]byte("PACK\x00\x00\x00\x02\xff\xff\xff\xff"), make([]byte, 20)...), "source.max_objects"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := packDir(t)
			err := receivePack(t.Context(), dir, bytes.NewReader(c.pack), small)
			text := ""
			var limit *limitError
			if errors.As(err, &limit) {
				text = limit.key
			} else if err != nil {
				text = err.Error()
			}
			if err == nil || !strings.Contains(text, c.want) {
				t.Errorf("error is %v, want %s", err, c.want)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "objects/pack")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func packDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "objects/pack"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// FuzzPack: a pack that is taken is one whose every object can be read back as what its
// id names, or is found out.
func FuzzPack(f *testing.F) {
	base := packedObject(plumbing.BlobObject, 4, "", "base")
	id := plumbing.ComputeHash(plumbing.BlobObject, []byte("base"))
	f.Add(packOf(base))
	f.Add(packOf(base, packedObject(plumbing.REFDeltaObject, 6, string(id[:]), "\x04\x07\x90\x04\x03new")))
	f.Add(packOf(base, packedObject(plumbing.OFSDeltaObject, 4, string([]byte{byte(len(base))}), "\x04\x01\x01a")))
	f.Add(packOf(packedObject(plumbing.TreeObject, 29, "", "100644 a\x00"+string(id[:]))))
	f.Add(packOf(packedObject(plumbing.CommitObject, 46, "", "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n")))
	f.Add(packOf())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > sha1.Size { // a good checksum, so that the rest is looked at
			sum := sha1.Sum(data[:len(data)-sha1.Size])
			data = append(data[:len(data)-sha1.Size:len(data)-sha1.Size], sum[:]...)
		}
		dir := packDir(t)
		if receivePack(t.Context(), dir, bytes.NewReader(data), small) != nil {
			return
		}
		m := newMirror(dir)
		defer m.close()
		open, err := openPacks(m.files)
		if err != nil {
			t.Fatalf("a pack that was taken cannot be opened: %v", err)
		}
		m.packs = open
		for _, p := range open {
			for i := range p.index.count() {
				var id plumbing.Hash
				if _, err := p.index.f.ReadAt(id[:], p.index.idAt(i)); err != nil {
					t.Fatal(err)
				}
				tree := m.repo().TreeOf(id.String())
				_, err1 := m.repo().Commit(t.Context(), id.String())
				_, err2 := tree.List(".")
				for _, err := range []error{err1, err2} {
					if err != nil && !errors.Is(err, source.ErrDamaged) && !errors.Is(err, source.ErrMalformed) {
						t.Errorf("%s: %v", id, err)
					}
				}
				if r, err := tree.Open(source.Entry{Path: "a", Mode: source.Regular, ID: id.String()}); err == nil {
					if content, err := io.ReadAll(r); err == nil && plumbing.ComputeHash(plumbing.BlobObject, content) != id {
						t.Errorf("%s is read as %q", id, content)
					}
					_ = r.Close()
				}
			}
		}
	})
}

// FuzzIndex: an index that was tampered with finds objects or does not; it never reads
// beyond itself.
func FuzzIndex(f *testing.F) {
	repo := f.TempDir()
	for _, args := range [][]string{
		{"init", "-q"}, {"-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "--allow-empty", "-m", "m"}, {"repack", "-adq"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", repo}, args...)...).CombinedOutput(); err != nil {
			f.Fatalf("%v\n%s", err, out)
		}
	}
	names, err := filepath.Glob(filepath.Join(repo, ".git/objects/pack/*.idx"))
	if err != nil || len(names) != 1 {
		f.Fatal(names, err)
	}
	good, err := os.ReadFile(names[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(indexMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x.idx"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if len(data) < 2*sha1.Size {
			return
		}
		x, err := openIndex(osfs.New(dir), "x.idx", plumbing.Hash(data[len(data)-2*sha1.Size:len(data)-sha1.Size]).String())
		if err != nil {
			return
		}
		defer x.close()
		for _, first := range []byte{0, 0x4b, 0xff} {
			id := plumbing.Hash{first}
			if at, err := x.FindOffset(id); err == nil && at < 0 {
				t.Errorf("%s is at %d", id, at)
			}
		}
		_, _ = x.FindHash(12)
	})
}

// FuzzKnownHosts: no file makes an unknown key a known one.
func FuzzKnownHosts(f *testing.F) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3HQq3jXFwQ4dkqyHnFJ5EA5n3dPJC0dmX1hRRIzC8l"))
	if err != nil {
		f.Fatal(err)
	}
	other := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	for _, hosts := range []string{"git.example.com", "[git.example.com]:2222,*", "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=", "@cert-authority *", "@revoked *", "!a,*", "@", "[", "\t"} {
		f.Add([]byte(hosts + " " + other + "\n# x\n"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("AAAAIJ3HQq3j")) {
			return // it is in there
		}
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{URL: "ssh://git@git.example.com:2222/x", KnownHosts: []string{file}})
		if err != nil {
			t.Fatal(err)
		}
		c := &ssh.ClientConfig{}
		if s.hostKeys(c) != nil {
			return
		}
		if len(c.HostKeyAlgorithms) == 0 {
			t.Error("any type of key would do")
		}
		if c.HostKeyCallback("git.example.com:2222", nowhere{}, key) == nil {
			t.Errorf("%q makes a key known that is not in it", data)
		}
	})
}

// nowhere is the address of a server.
type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "192.0.2.1:2222" }

// A name is as long as a packet, if nobody minds: a few thousand refs would fill the
// memory of a small host.
func TestLongNames(t *testing.T) {
	var refs, old bytes.Buffer
	for i := range 5000 {
		name := fmt.Sprintf("refs/heads/%s%d", strings.Repeat("x", 60_000), i)
		addLine(&refs, "%s %s", zeroID, name)
		caps := ""
		if i == 0 {
			caps = "\x00agent=x"
		}
		addLine(&old, "%s %s%s", zeroID, name, caps)
	}
	refs.WriteString("0000")
	old.WriteString("0000")
	var hello bytes.Buffer
	addLine(&hello, "version 2")
	hello.WriteString("0000")
	const want = "the names of the repository's refs have more than"
	s, err := begin(t.Context(), &canned{hello.Bytes(), refs.Bytes()}, DefaultMaxRefs, "refs/heads/main")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.list(t.Context(), branchPrefix); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("version 2: %v", err)
	}
	if _, err := begin(t.Context(), &canned{old.Bytes(), nil}, DefaultMaxRefs, "refs/heads/main"); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("version 0: %v", err)
	}
}
