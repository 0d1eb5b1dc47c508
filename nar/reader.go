package nar

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

const (
	bufferSize = 64 << 10

	// directRead is the size from which contents are read into the caller's
	// memory without passing through the buffer.
	directRead = 16 << 10

	// maxEmptyReads is how often a source may return neither bytes nor an error.
	maxEmptyReads = 100
)

// Reader reads a NAR from start to end, strictly: what it accepts is canonical,
// complete and followed by nothing, and a [Writer] would write it again byte for
// byte.
//
// [Reader.Next] goes to the next file, and Read or Discard deliver its contents,
// as in archive/tar. A Reader reads ahead by up to 64 KiB. Its memory is bounded
// whatever the input. It starts no goroutines, and is not for use by several.
//
// All errors except the io.EOF that ends an archive or a file are of type
// [*Error], and stick: every later call returns the same.
type Reader struct {
	src    io.Reader
	seeker io.Seeker // src, or nil if it cannot seek
	buf    []byte    // buf[r:w] is read but not parsed
	r, w   int
	srcErr error // what src ended with

	off   int64 // of buf[r] in the NAR
	pos   position
	depth int

	state readerState
	left  int64 // contents of the current file that are not read yet
	pad   int   // padding behind them
	err   error // what Next will return from now on
}

// readerState says where in the grammar Next continues.
type readerState byte

const (
	atStart     readerState = iota
	inFile                  // behind the header of a Regular file or Symlink
	inDirectory             // in front of an entry, or of the directory's ")"
	atEnd                   // behind the root's ")"
)

// NewReader returns a Reader that reads from src, from its current position. If
// src is an [io.Seeker] that works, large contents that are skipped are seeked
// over. Truncation is noticed all the same.
func NewReader(src io.Reader) *Reader {
	seeker, _ := src.(io.Seeker)
	return &Reader{src: src, seeker: seeker, buf: make([]byte, bufferSize)}
}

// Offset returns how many bytes of the NAR have been parsed: its structure up to
// what Next returned last, and the contents read or discarded since. Right after
// Next has returned a Regular file it equals [Header.Offset].
func (r *Reader) Offset() int64 { return r.off }

// Depth returns the deepest level met so far. The root is level 0. New versions
// of Nix refuse archives that reach [MaxDepth].
func (r *Reader) Depth() int { return r.depth }

// Next skips what is left of the current file and goes to the next one: the root
// first, then each directory's entries in order, each followed by its own entries.
// It returns io.EOF only after the end of a complete archive with nothing behind it.
// The Header is the caller's to keep.
func (r *Reader) Next() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.next()
	if err != nil {
		r.fail(err)
		return nil, r.err
	}
	return h, nil
}

// Read reads contents of the current file, and returns io.EOF at their end. A
// file that is not Regular has none.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.left)]
	var n int
	if r.r == r.w && len(p) >= directRead {
		var err error
		if n, err = r.readSource(p); err != nil {
			return 0, r.fail(err)
		}
	} else {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return 0, r.fail(err)
			}
		}
		n = copy(p, r.buf[r.r:r.w])
		r.r += n
	}
	r.off += int64(n)
	r.left -= int64(n)
	return n, nil
}

// Discard skips up to n bytes of the current file's contents, without copying
// them, and returns how many it skipped: fewer than n, with a nil error, only at
// their end.
func (r *Reader) Discard(n int64) (int64, error) {
	if r.err != nil {
		return 0, r.err
	}
	n = max(0, min(n, r.left))
	done, err := r.discard(n)
	if err != nil {
		return done, r.fail(err)
	}
	return done, nil
}

// fail makes err, and where it happened, the error that sticks.
func (r *Reader) fail(err error) error {
	switch {
	case err != io.EOF:
	case r.state == atEnd:
		r.err = io.EOF
		return r.err
	default:
		err = io.ErrUnexpectedEOF
	}
	r.err = &Error{Path: string(r.pos.path), Offset: r.off, Err: err}
	return r.err
}

func (r *Reader) next() (*Header, error) {
	switch r.state {
	case atStart:
		if err := r.expect(tokMagic); err != nil {
			return nil, err
		}
		return r.node()
	case inFile:
		if err := r.closeFile(); err != nil {
			return nil, err
		}
	}
	for len(r.pos.dirs) > 0 {
		found, err := r.entry()
		if err != nil {
			return nil, err
		}
		if found {
			return r.node()
		}
		r.pos.close()
		if err := r.closeEntry(); err != nil {
			return nil, err
		}
	}
	r.state = atEnd
	if _, err := r.peek(1); err != nil {
		return nil, err
	}
	return nil, malformed("bytes after the end")
}

// node parses a node at the current position, as far as its header goes.
func (r *Reader) node() (*Header, error) {
	r.depth = max(r.depth, len(r.pos.dirs))
	if err := r.expect(tokNode); err != nil {
		return nil, err
	}
	const n = wordSize // enough to tell the types apart, and less than any rest
	b, err := r.peek(n)
	if err != nil {
		return nil, err
	}
	h := &Header{Path: string(r.pos.path)}
	switch string(b) {
	case tokRegular[:n]:
		h.Type, r.state = Regular, inFile
		err = r.regular(h)
	case tokSymlink[:n]:
		h.Type, r.state = Symlink, inFile
		err = r.symlink(h)
	case tokDirectory[:n]:
		h.Type, r.state = Directory, inDirectory
		err = r.directory()
	default:
		err = malformed("unknown file type")
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// regular parses a regular file up to its contents.
func (r *Reader) regular(h *Header) error {
	if err := r.expect(tokRegular); err != nil {
		return err
	}
	b, err := r.peek(wordSize)
	if err != nil {
		return err
	}
	if string(b) == tokExecutable[:wordSize] {
		h.Executable = true
		if err := r.expect(tokExecutable); err != nil {
			return err
		}
	}
	if err := r.expect(tokContents); err != nil {
		return err
	}
	if b, err = r.peek(lenSize); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint64(b)
	if size > uint64(maxSize-r.off) {
		return malformed("contents of %d bytes", size)
	}
	r.skip(lenSize)
	h.Size, h.Offset = int64(size), r.off
	r.left, r.pad = h.Size, padding(h.Size)
	return nil
}

// symlink parses a symlink up to its ")".
func (r *Reader) symlink(h *Header) error {
	if err := r.expect(tokSymlink); err != nil {
		return err
	}
	h.Offset = r.off + lenSize
	target, err := r.str(MaxTargetLen, "symlink target")
	if err != nil {
		return err
	}
	h.Target = string(target)
	return checkTarget(h.Target)
}

// directory parses a directory up to its first entry.
func (r *Reader) directory() error {
	if err := r.expect(tokDirectory); err != nil {
		return err
	}
	return r.pos.open()
}

// closeFile parses what follows the header of a regular file or symlink.
func (r *Reader) closeFile() error {
	if _, err := r.discard(r.left); err != nil {
		return err
	}
	pad, err := r.peek(r.pad)
	if err != nil {
		return err
	}
	if err := checkPadding(pad); err != nil {
		return err
	}
	r.skip(len(pad))
	r.pad = 0
	if err := r.expect(tokClose); err != nil {
		return err
	}
	return r.closeEntry()
}

// closeEntry parses the ")" after a node, if the node was a directory's entry.
func (r *Reader) closeEntry() error {
	if len(r.pos.dirs) == 0 {
		return nil
	}
	return r.expect(tokClose)
}

// entry parses the start of a directory's next entry, and goes there. It returns
// false if the directory ended instead.
func (r *Reader) entry() (bool, error) {
	b, err := r.peek(len(tokClose))
	if err != nil {
		return false, err
	}
	if string(b) == tokClose {
		r.skip(len(tokClose))
		return false, nil
	}
	if err := r.expect(tokEntry); err != nil {
		return false, err
	}
	name, err := r.str(MaxNameLen, "name")
	if err != nil {
		return false, err
	}
	if err := r.pos.enter(name); err != nil {
		return false, err
	}
	return true, r.expect(tokEntryNode)
}

// str parses a string of at most limit bytes, which is called what in errors.
// The result is valid until the next call.
func (r *Reader) str(limit int, what string) ([]byte, error) {
	b, err := r.peek(lenSize)
	if err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(b)
	if size > uint64(limit) {
		return nil, malformed("%s of %d bytes", what, size)
	}
	end := lenSize + int(size)
	if b, err = r.peek(end + padding(int64(size))); err != nil {
		return nil, err
	}
	if err := checkPadding(b[end:]); err != nil {
		return nil, err
	}
	r.skip(len(b))
	return b[lenSize:end], nil
}

// expect parses exactly the encoded strings want. Input that ends too early
// counts as truncated only if what there is of it is right.
func (r *Reader) expect(want string) error {
	b, err := r.peek(len(want))
	if string(b) != want[:len(b)] {
		return unexpected(string(b), want)
	}
	if err != nil {
		return err
	}
	r.skip(len(b))
	return nil
}

// unexpected names the first of the encoded strings in want that got does not have.
func unexpected(got, want string) error {
	for {
		n := binary.LittleEndian.Uint64([]byte(want))
		end := lenSize + int(n)
		size := end + padding(int64(n))
		if !strings.HasPrefix(got, want[:size]) {
			return malformed("expected %q", want[lenSize:end])
		}
		got, want = got[size:], want[size:]
	}
}

// discard skips exactly n bytes of contents.
func (r *Reader) discard(n int64) (int64, error) {
	var done int64
	for done < n {
		step := min(n-done, int64(r.w-r.r))
		r.r += int(step)
		if step == 0 {
			step = r.seek(n - done - 1)
		}
		if step == 0 {
			if err := r.fill(); err != nil {
				return done, err
			}
		}
		r.off += step
		r.left -= step
		done += step
	}
	return done, nil
}

// seek skips n bytes of the source if that can be done without reading and is
// worth it, and returns how many it skipped. The buffer is empty. As a source can
// be positioned behind its end, the caller keeps one byte to read.
func (r *Reader) seek(n int64) int64 {
	if r.seeker == nil || r.srcErr != nil || n < bufferSize {
		return 0
	}
	// A terminal, for one, claims to seek and does not.
	from, err := r.seeker.Seek(0, io.SeekCurrent)
	if err == nil {
		var to int64
		if to, err = r.seeker.Seek(n, io.SeekCurrent); err == nil && to == from+n {
			return n
		}
	}
	r.seeker = nil
	return 0
}

// peek returns the next n bytes, which stay in the buffer, or fewer and an error.
// n is small. The result is valid until the next call.
func (r *Reader) peek(n int) ([]byte, error) {
	for r.w-r.r < n {
		if err := r.fill(); err != nil {
			return r.buf[r.r:r.w], err
		}
	}
	return r.buf[r.r : r.r+n], nil
}

// skip goes over n bytes that peek has returned.
func (r *Reader) skip(n int) {
	r.r += n
	r.off += int64(n)
}

// fill adds at least one byte to the buffer.
func (r *Reader) fill() error {
	r.w = copy(r.buf, r.buf[r.r:r.w])
	r.r = 0
	n, err := r.readSource(r.buf[r.w:])
	r.w += n
	return err
}

// readSource reads at least one byte into p, which has room, or returns an error,
// which sticks.
func (r *Reader) readSource(p []byte) (int, error) {
	for range maxEmptyReads {
		if r.srcErr != nil {
			break
		}
		n, err := r.src.Read(p)
		if n < 0 || n > len(p) {
			n, err = 0, errors.New("source returned an impossible count")
		}
		r.srcErr = err
		if n > 0 {
			return n, nil
		}
	}
	if r.srcErr == nil {
		r.srcErr = io.ErrNoProgress
	}
	return 0, r.srcErr
}
