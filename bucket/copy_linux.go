package bucket

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// cloneRange appends up to n bytes at off in r to dst, at dst's file position, if r is
// a file and the kernel can copy between the two. It returns how many; after 0
// the caller copies them itself, and so meets the error if there is one. (os.File
// would do it too, in io.Copy, but from r's position, which is not ours to move.)
func cloneRange(dst *os.File, r io.ReaderAt, off, n int64) int64 {
	src, ok := r.(*os.File)
	if !ok {
		return 0
	}
	var copied int
	withFd(src, func(from int) {
		withFd(dst, func(to int) {
			copied, _ = unix.CopyFileRange(from, &off, to, nil, int(n), 0)
		})
	})
	return int64(max(copied, 0))
}

// withFd calls fn with f's descriptor, which stays open meanwhile; not if f is closed.
func withFd(f *os.File, fn func(fd int)) {
	if c, err := f.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) { fn(int(fd)) })
	}
}
