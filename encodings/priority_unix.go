//go:build unix

package encodings

import "golang.org/x/sys/unix"

// setLowPriority has a process run when nobody else wants to.
func setLowPriority(pid int) { unix.Setpriority(unix.PRIO_PROCESS, pid, 19) }
