package nixstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A dirEntry is a file in a directory.
type dirEntry struct {
	name string
	typ  uint32 // as in the mode of a file; 0 if the file system does not say
}

// direntHeader is the length of what precedes the name in a struct linux_dirent64:
// d_ino and d_off of eight bytes each, d_reclen of two, d_type of one. (getdents64(2).)
const direntHeader = 19

// readDir returns the entries of a directory, sorted by the bytes of their names. buf is
// scratch space. Package os would not say when it does not know a type, and would ask for it
// by a path, which may lead elsewhere.
func readDir(fd int, buf []byte) ([]dirEntry, error) {
	var entries []dirEntry
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, buf)
			return err
		})
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			if len(b) < direntHeader {
				return nil, errDirent
			}
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < direntHeader || size > len(b) {
				return nil, errDirent
			}
			name, _, _ := bytes.Cut(b[direntHeader:size], []byte{0})
			if s := string(name); s != "." && s != ".." {
				// The constants DT_* are the types of modes, 12 bits lower.
				entries = append(entries, dirEntry{s, uint32(b[18]) << 12})
			}
			b = b[size:]
		}
	}
	slices.SortFunc(entries, func(a, b dirEntry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

var errDirent = errors.New("malformed entry of a directory")
