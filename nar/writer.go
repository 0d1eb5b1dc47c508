package nar

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

var errClosed = errors.New("writer is closed")

// Writer writes a NAR. Only canonical archives can be written: headers come in
// NAR order, that is each directory before its entries, and entries sorted by the
// bytes of their names. (This is not the order of whole paths: "a-b" sorts before
// "a/b", but comes behind everything in "a".)
//
// Write a Regular file's header, then exactly [Header.Size] bytes of contents, and
// call [Writer.Close] at the end. After an error a Writer is dead: all calls return
// that error, an [*Error]. A Writer is not for use by several goroutines.
type Writer struct {
	w   *bufio.Writer
	off int64
	pos position

	started bool
	open    bool  // the current file or symlink still needs its ")"
	left    int64 // contents of the current file that are not written yet
	pad     int   // padding behind them
	scratch []byte
	err     error
}

// NewWriter returns a Writer that writes to w, with a buffer of 64 KiB, or through w
// itself if that is a [bufio.Writer] with no less.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, bufferSize)}
}

// WriteHeader starts the next file. The previous one must be complete. The first
// header must be the root's.
func (w *Writer) WriteHeader(h *Header) error {
	if w.err != nil {
		return w.err
	}
	w.scratch = w.scratch[:0]
	if err := w.header(h); err != nil {
		return w.fail(err)
	}
	return w.flushScratch()
}

// Write writes contents of the current file. More than the header announced is an
// error.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(p)) > w.left {
		return 0, w.fail(malformed("%d bytes too many", int64(len(p))-w.left))
	}
	n, err := w.w.Write(p)
	w.off += int64(n)
	w.left -= int64(n)
	if err != nil {
		return n, w.fail(err)
	}
	return n, nil
}

// ReadFrom writes contents of the current file, all that are missing, from r, without a
// copy in between. It is an error if r has less; what it has more is not read.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.w.ReadFrom(&io.LimitedReader{R: r, N: w.left})
	w.off += n
	w.left -= n
	if err == nil && w.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, w.fail(err)
	}
	return n, nil
}

// Offset returns how many bytes of the archive were written so far, buffered ones
// included. After a Regular file's header it is the [Header.Offset] of the contents.
func (w *Writer) Offset() int64 { return w.off }

// Close finishes the archive and flushes it. It does not close the underlying
// writer. Closing twice is fine.
func (w *Writer) Close() error {
	if w.err == errClosed {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	w.scratch = w.scratch[:0]
	if !w.started {
		return w.fail(malformed("no root"))
	}
	if err := w.closeFile(); err != nil {
		return w.fail(err)
	}
	for len(w.pos.dirs) > 0 {
		w.closeDirectory()
	}
	if err := w.flushScratch(); err != nil {
		return err
	}
	if err := w.w.Flush(); err != nil {
		return w.fail(err)
	}
	w.err = errClosed
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = &Error{Path: string(w.pos.path), Offset: w.off, Err: err}
	return w.err
}

// flushScratch writes the structure that was composed.
func (w *Writer) flushScratch() error {
	n, err := w.w.Write(w.scratch)
	w.off += int64(n)
	if err != nil {
		return w.fail(err)
	}
	return nil
}

// header composes everything between the contents before and those after h.
func (w *Writer) header(h *Header) error {
	if err := w.closeFile(); err != nil {
		return err
	}
	if err := w.enter(h.Path); err != nil {
		return err
	}
	w.scratch = append(w.scratch, tokNode...)
	switch h.Type {
	case Regular:
		if h.Size < 0 || h.Size > maxSize-w.off {
			return malformed("contents of %d bytes", h.Size)
		}
		w.scratch = append(w.scratch, tokRegular...)
		if h.Executable {
			w.scratch = append(w.scratch, tokExecutable...)
		}
		w.scratch = append(w.scratch, tokContents...)
		w.scratch = binary.LittleEndian.AppendUint64(w.scratch, uint64(h.Size))
		w.open, w.left, w.pad = true, h.Size, padding(h.Size)
	case Symlink:
		if err := checkTarget(h.Target); err != nil {
			return err
		}
		w.scratch = append(w.scratch, tokSymlink...)
		w.scratch = appendString(w.scratch, h.Target)
		w.open = true
	case Directory:
		w.scratch = append(w.scratch, tokDirectory...)
		return w.pos.open()
	default:
		return malformed("%v", h.Type)
	}
	return nil
}

// enter goes to path: it closes the directories that path is not in, and starts an
// entry in its parent.
func (w *Writer) enter(path string) error {
	if !w.started {
		if path != "" {
			return malformed("first path is %q, not the root", path)
		}
		w.started = true
		w.scratch = append(w.scratch, tokMagic...)
		return nil
	}
	parent, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		parent, name = path[:i], path[i+1:]
		if parent == "" {
			return malformed("path %q is absolute", path)
		}
	}
	for {
		if len(w.pos.dirs) == 0 {
			return malformed("path %q, but its directory is not open", path)
		}
		if d := w.pos.dirs[len(w.pos.dirs)-1]; string(w.pos.path[:d.path]) == parent {
			break
		}
		w.closeDirectory()
	}
	if err := w.pos.enter([]byte(name)); err != nil {
		return err
	}
	w.scratch = append(w.scratch, tokEntry...)
	w.scratch = appendString(w.scratch, name)
	w.scratch = append(w.scratch, tokEntryNode...)
	return nil
}

// closeFile composes the end of the current file, if there is one.
func (w *Writer) closeFile() error {
	if !w.open {
		return nil
	}
	if w.left > 0 {
		return malformed("contents are %d bytes short", w.left)
	}
	w.scratch = append(w.scratch, zeros[:w.pad]...)
	w.open, w.pad = false, 0
	w.closeNode()
	return nil
}

// closeDirectory composes the end of the innermost directory.
func (w *Writer) closeDirectory() {
	w.pos.close()
	w.closeNode()
}

// closeNode composes the ")" of a node, and that of the entry that it belongs to.
func (w *Writer) closeNode() {
	w.scratch = append(w.scratch, tokClose...)
	if len(w.pos.dirs) > 0 {
		w.scratch = append(w.scratch, tokClose...)
	}
}
