//go:build unix

package nixstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dedupd/dedupd/nar"
)

// dumpBuffer is how many bytes are read from a large file at a time.
const dumpBuffer = 64 << 10

// entriesBuffer is how many bytes of a directory are read at a time. It is also enough for
// any symbolic link.
const entriesBuffer = 32 << 10

// zeros stand for contents that nobody looks at.
var zeros [1 << 20]byte

// A dumper writes the NAR of a tree of files. It goes down by descriptors of directories,
// never through a symbolic link, so that what somebody moves about meanwhile cannot lead
// it out of the tree.
type dumper struct {
	ctx context.Context
	w   *nar.Writer

	// from is the offset in the NAR before which only the lengths of contents matter:
	// there are zeros, and the files are not opened.
	from  int64
	depth int // the most levels seen
	buf   []byte
}

// Dump writes the NAR of the file at path, in a store or not, to w.
func Dump(ctx context.Context, w io.Writer, path string) error {
	_, err := dump(ctx, w, path, 0)
	return err
}

// dump writes the NAR of the file at path to w, with zeros for the contents of files that
// end before the offset from. It returns the depth of the tree, the root being level 0.
func dump(ctx context.Context, w io.Writer, path string, from int64) (depth int, err error) {
	d := &dumper{ctx: ctx, w: nar.NewWriter(bufio.NewWriterSize(w, dumpBuffer)), from: from, buf: make([]byte, entriesBuffer)}
	if err := d.node(unix.AT_FDCWD, path, "", 0, 0); err != nil {
		return d.depth, fmt.Errorf("dump %s: %w", path, err)
	}
	return d.depth, d.w.Close()
}

// node writes the file that is called name in the directory dir, and at path in the NAR.
// typ is what the directory says of its type, 0 if it says nothing.
func (d *dumper) node(dir int, name, path string, typ uint32, level int) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	d.depth = max(d.depth, level)
	var st unix.Stat_t
	if typ == 0 || typ == unix.S_IFREG && d.w.Offset() < d.from {
		if err := retry(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		typ = uint32(st.Mode) & unix.S_IFMT
	}
	switch typ {
	case unix.S_IFREG:
		return d.regular(dir, name, path, &st)
	case unix.S_IFLNK:
		return d.symlink(dir, name, path)
	case unix.S_IFDIR:
		return d.directory(dir, name, path, level)
	}
	return &fs.PathError{Op: "dump", Path: path, Err: fmt.Errorf("a file of type %#o has no place in a NAR", typ)}
}

// regular writes a regular file. st is known already if the file may not be needed.
func (d *dumper) regular(dir int, name, path string, st *unix.Stat_t) error {
	if st.Mode != 0 {
		if err := d.header(path, st); err != nil {
			return err
		}
		if d.w.Offset()+st.Size <= d.from {
			return d.skip(st.Size)
		}
	}
	fd, err := open(dir, name, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if st.Mode == 0 {
		if err := unix.Fstat(fd, st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return &fs.PathError{Op: "open", Path: path, Err: errChanged}
		}
		if err := d.header(path, st); err != nil {
			return err
		}
	}
	if skipped := d.from - d.w.Offset(); skipped > 0 {
		if err := d.skip(skipped); err != nil {
			return err
		}
		if _, err := unix.Seek(fd, skipped, io.SeekStart); err != nil {
			return &fs.PathError{Op: "seek", Path: path, Err: err}
		}
	}
	if _, err := d.w.ReadFrom(fileReader{d.ctx, fd}); errors.Is(err, io.ErrUnexpectedEOF) {
		return &fs.PathError{Op: "read", Path: path, Err: errChanged}
	} else if err != nil {
		return err
	}
	return nil
}

var errChanged = errors.New("the file changed while it was read")

func (d *dumper) header(path string, st *unix.Stat_t) error {
	return d.w.WriteHeader(&nar.Header{Path: path, Type: nar.Regular, Executable: st.Mode&unix.S_IXUSR != 0, Size: st.Size})
}

// skip writes n zeros.
func (d *dumper) skip(n int64) error {
	for n > 0 {
		k, err := d.w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return d.ctx.Err()
}

func (d *dumper) symlink(dir int, name, path string) error {
	var n int
	err := retry(func() (err error) {
		n, err = unix.Readlinkat(dir, name, d.buf)
		return err
	})
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	return d.w.WriteHeader(&nar.Header{Path: path, Type: nar.Symlink, Target: string(d.buf[:n])})
}

func (d *dumper) directory(dir int, name, path string, level int) error {
	fd, err := open(dir, name, unix.O_DIRECTORY)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	entries, err := readDir(fd, d.buf)
	if err != nil {
		return &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	if err := d.w.WriteHeader(&nar.Header{Path: path, Type: nar.Directory}); err != nil {
		return err
	}
	if path != "" {
		path += "/"
	}
	for _, e := range entries {
		if err := d.node(fd, e.name, path+e.name, e.typ, level+1); err != nil {
			return err
		}
	}
	return nil
}

// open opens a file that is no symbolic link. A FIFO that has taken the place of a file
// does not block it.
func open(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0)
		return err
	})
	return fd, err
}

// A fileReader reads a file by its descriptor: package os would ask the kernel more for
// each file than this package does in all.
type fileReader struct {
	ctx context.Context
	fd  int
}

func (r fileReader) Read(p []byte) (n int, err error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	err = retry(func() error {
		n, err = unix.Read(r.fd, p)
		return err
	})
	switch {
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// retry calls fn until no signal interrupts it.
func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}
