package main_test

import "syscall"

// refuse lets the system call that a thread is about to make fail instead.
func refuse(tid int, errno syscall.Errno) error {
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	regs.Orig_rax, regs.Rax = ^uint64(0), uint64(-int64(errno))
	return syscall.PtraceSetRegs(tid, &regs)
}
