package main_test

import "golang.org/x/sys/unix"

// old are the calls that change what is on the disk and that newer architectures
// do not have.
var old = map[uint64]string{unix.SYS_LCHOWN: "lchown", unix.SYS_CHOWN: "chown", unix.SYS_CHMOD: "chmod"}
