package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTerminationWhileReading: a file of root's that has no end, for all that a run can
// wait, is read until SIGTERM, and not 5 seconds longer. Of a user's it is not read at all.
func TestTerminationWhileReading(t *testing.T) {
	tr := newTrial(t)
	tr.push("variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - {path: /etc/big, contents: {inline: small}}\n")
	dir := tr.place()
	big := filepath.Join(dir, "root/etc/big")
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for size := int64(8 << 40); os.Truncate(big, size) != nil; size /= 2 {
		continue
	}
	argv := tr.argv(dir)
	cmd := exec.Command(argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); !reads(cmd.Process.Pid, big); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("it does not read the file:\n%s", said.String())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("it goes on for more than 5 seconds after SIGTERM")
	}
	if code := cmd.ProcessState.ExitCode(); code != 75 {
		t.Errorf("exit status %d:\n%s", code, said.String())
	}
	if err := os.Lchown(big, 4001, 4001); err != nil {
		t.Fatal(err)
	}
	if code, said := tr.ran(argv); code != 1 || !strings.Contains(said, "/etc/big is blocked: it has ") {
		t.Errorf("a user's: exit status %d:\n%s", code, said)
	}
}

// reads tells whether a process has a file open.
func reads(pid int, file string) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && name == file {
			return true
		}
	}
	return false
}
