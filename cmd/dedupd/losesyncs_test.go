//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loseSyncs in the environment makes syncs of the whole process do nothing and succeed:
// "fsync", "fdatasync", or "all".
const loseSyncs = "DEDUPD_TEST_LOSE_SYNCS"

func init() {
	if kind := os.Getenv(loseSyncs); kind != "" && os.Getenv(asCommand) != "" {
		if err := installLoseSyncs(kind); err != nil {
			fmt.Fprintln(os.Stderr, loseSyncs, err)
			os.Exit(1)
		}
	}
}

// installLoseSyncs has the kernel answer the system calls with error 0 (seccomp(2)).
func installLoseSyncs(kind string) error {
	var calls []uint32
	if kind == "fsync" || kind == "all" {
		calls = append(calls, unix.SYS_FSYNC)
	}
	if kind == "fdatasync" || kind == "all" {
		calls = append(calls, unix.SYS_FDATASYNC)
	}
	if calls == nil {
		return fmt.Errorf("cannot lose %q", kind)
	}
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{{Code: load, K: 0}} // the number of the call
	for _, nr := range calls {
		filter = append(filter,
			unix.SockFilter{Code: equal, K: nr, Jf: 1},
			unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO})
	}
	filter = append(filter, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	runtime.LockOSThread() // the next two are of one thread; the filter is of all
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
