package main_test

import (
	"crypto/rand"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A reference of 64 MiB passes through fetch, translation, pin and apply
// without ever being held whole: 60 MiB of memory are enough for all of it.
func TestLargeReferenceIsStreamed(t *testing.T) {
	const size, limit = 64 << 20, 60 << 10 // bytes, KiB
	dir := t.TempDir()
	repo, root := filepath.Join(dir, "fleet"), filepath.Join(dir, "root")
	for _, d := range []string{filepath.Join(repo, "hosts"), root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host := "variant: fcos\nversion: 1.5.0\nstorage:\n  files:\n    - path: /opt/large\n      contents: {local: large}\n"
	if err := os.WriteFile(filepath.Join(repo, "hosts/web1.bu"), []byte(host), 0o644); err != nil {
		t.Fatal(err)
	}
	large, err := os.Create(filepath.Join(repo, "large"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(large, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := large.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "large"}} {
		if out, err := exec.Command("git", append([]string{"-C", repo}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git: %v\n%s", err, out)
		}
	}
	// GNU time forks, so that neither the memory of this test nor, with a server
	// of its own, that of git's counts.
	peak := filepath.Join(dir, "peak")
	run := exec.Command("time", "-q", "-f", "%M", "-o", peak,
		buildProgram(t), "run", "--url", "git://"+daemon(t, dir)+"/fleet", "--host", "web1", "--root", root)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(peak)
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("peak memory %d MiB", used>>10)
	if used > limit {
		t.Errorf("a run with a reference of 64 MiB used %d MiB of memory, %d are allowed", used>>10, limit>>10)
	}
	if info, err := os.Stat(filepath.Join(root, "opt/large")); err != nil || info.Size() != size {
		t.Errorf("the file is not there whole: %v, %v", info, err)
	}
}

// daemon serves the repositories below dir over git:// and returns its address.
func daemon(t *testing.T, dir string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test has ended
			}
			git := exec.Command("git", "daemon", "--inetd", "--export-all", "--base-path="+dir, dir)
			// The socket itself: git must see the client's end of it close.
			socket, err := conn.(*net.TCPConn).File()
			if err == nil {
				git.Stdin, git.Stdout = socket, socket
				err = git.Run()
				socket.Close()
			}
			if conn.Close(); err != nil {
				t.Logf("git daemon: %v", err)
			}
		}
	}()
	return listener.Addr().String()
}
