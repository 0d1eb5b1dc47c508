//go:build unix

package encodings

import "golang.org/x/sys/unix"

// setLowPriority has a process get a tenth of what others get, where there is not enough
// for all.
func setLowPriority(pid int) { unix.Setpriority(unix.PRIO_PROCESS, pid, 10) }
