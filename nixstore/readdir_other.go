//go:build unix && !linux

package nixstore

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A dirEntry is a file in a directory.
type dirEntry struct {
	name string
	typ  uint32 // 0: it has to be asked for
}

// readDir returns the entries of a directory, sorted by the bytes of their names. buf is
// scratch space.
func readDir(fd int, buf []byte) ([]dirEntry, error) {
	var names []string
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.ReadDirent(fd, buf)
			return err
		})
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	slices.SortFunc(names, strings.Compare)
	entries := make([]dirEntry, len(names))
	for i, name := range names {
		entries[i].name = name
	}
	return entries, nil
}
