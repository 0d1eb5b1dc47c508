//go:build linux || darwin || freebsd

package chunkstore

import "golang.org/x/sys/unix"

// FreeSpace returns how many bytes this process can still write to the file system that
// dir is on.
func FreeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		if err := unix.Statfs(dir, &st); err != unix.EINTR {
			return int64(st.Bavail) * int64(st.Bsize), err
		}
	}
}
