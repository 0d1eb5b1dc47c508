package main

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unsyncedName is the name under which this program runs a command without syncs.
const unsyncedName = "unsynced-command"

// The system calls that make data durable.
var syncCalls = []uint32{
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_MSYNC, unix.SYS_SYNC, unix.SYS_SYNCFS,
}

// execUnsynced replaces this process by a command for which syncCalls do nothing, and
// say that they did it. The command itself, and what it is built from, is the same.
func execUnsynced(command []string) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	// The filter is the thread's, and exec keeps that of the thread that calls it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	filter := syncFilter()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, command, syscall.Environ()))
}

// syncFilter returns a program for seccomp(2): syncCalls return 0 without being called.
// It looks at numbers only, which are those of the architecture that this is built for.
func syncFilter() []unix.SockFilter {
	const load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	const equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	const answer = unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{{Code: load, K: 0}} // seccomp_data.nr
	for i, call := range syncCalls {
		filter = append(filter, unix.SockFilter{Code: equal, K: call, Jt: uint8(len(syncCalls) - i)})
	}
	return append(filter,
		unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ERRNO}, // errno 0
	)
}
