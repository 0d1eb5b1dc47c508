package compression

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
)

// Limits bounds a decoder.
type Limits struct {
	// MaxMemory is the most memory, in bytes, that the decoder may take for everything together.
	// Zero means DefaultMaxMemory. Pass what Memory returned: it is then never exceeded by later
	// streams or frames of the same file, and the decoder can come from a pool.
	MaxMemory int64
	// Program decodes xz, where that pays; nil for doing all in this process. Its memory
	// comes under MaxMemory as well.
	Program *Program
}

// NewReader returns a reader of the decoded contents of r, whose type is t. It reads ahead of
// what it returns, the first HeaderSize bytes right away, and r to its end before it returns
// io.EOF: multi-stream xz and bzip2, multi-member gzip, and multi-frame zstd and lz4 are decoded
// as one file, and anything else that follows is an error. It does not close r.
//
// Memory is bounded whatever the input is; the ratio of output to input is not.
// Errors, here or from Read, which repeats them:
//   - wrapping ErrTooMuchMemory: the limit is too low for this input;
//   - wrapping ErrCorrupt: r was read without error, and is not well-formed. If it ended
//     too early, io.ErrUnexpectedEOF is wrapped too;
//   - *UnsupportedError: t is a type that cannot be decoded (bzip2 can be);
//   - wrapping ErrProgram: the Program could not do its work;
//   - anything else is the error of r, wrapped.
//
// Not every format lets a reader notice missing parts: zstd cut exactly between two frames, and lz4
// likewise, reads as complete. Callers check the size and hash of what they get.
//
// Close must be called. The reader is for one goroutine at a time, and starts none, but with a
// Program: then r is read by another one, until the reader returns an error or is closed.
func NewReader(t Type, r io.Reader, opts Limits) (io.ReadCloser, error) {
	d := &decoder{t: t, src: source{r: r}}
	if t == None {
		d.r = &d.src
		return d, nil
	}
	if opts.MaxMemory == 0 {
		opts.MaxMemory = DefaultMaxMemory
	}
	d.buf = buffers.Get().(*bufio.Reader)
	d.buf.Reset(&d.src)
	if err := d.open(opts); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Apart says whether r, which NewReader has returned, decodes in a process of its own:
// whoever reads it only waits.
func Apart(r io.Reader) bool {
	d, ok := r.(*decoder)
	if !ok {
		return false
	}
	_, ok = d.r.(*process)
	return ok
}

// decoder gives every library behind it the same manners.
type decoder struct {
	t     Type
	src   source
	buf   *bufio.Reader // reads src; nil if there is nothing to decode, and after Close
	r     io.Reader     // the library's decoder, reading buf
	reuse func()        // puts r into its pool; nil if it must not go there
	err   error         // sticky
}

// bufferSize is larger than any read by a library, so that none bypasses the buffer.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}

func (d *decoder) open(opts Limits) error {
	limit := opts.MaxMemory
	prefix, err := d.buf.Peek(HeaderSize)
	if err != nil && err != io.EOF {
		return d.explain(err)
	}
	need, err := Memory(d.t, prefix)
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if need > limit {
		return fmt.Errorf("decode %s: %w: %d bytes, limit %d", d.t, ErrTooMuchMemory, need, limit)
	}
	switch d.t {
	case XZ:
		var opened bool
		if opened, err = d.openProgram(opts.Program, limit); !opened && err == nil {
			err = d.openXZ(limit - overhead)
		}
	case Zstd:
		err = d.openZstd(limit - overhead)
	case Gzip:
		err = d.openGzip()
	case Brotli:
		d.openBrotli(need)
	case LZ4:
		err = d.openLZ4()
	case Bzip2:
		d.r = bzip2.NewReader(d.buf)
	}
	if err != nil {
		return d.explain(err)
	}
	return nil
}

// Read implements io.Reader.
func (d *decoder) Read(p []byte) (int, error) {
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	n, err := d.r.Read(p)
	if err != nil {
		d.err = d.explain(err)
	}
	return n, d.err
}

// Close releases the decoder. It returns no error and may be called more than once; reads after it
// fail.
func (d *decoder) Close() error {
	// Only a decoder that reached the end is reused: none of these libraries is tested as
	// thoroughly for a reset in mid-stream.
	if d.err == io.EOF && d.reuse != nil {
		d.reuse()
	}
	if p, ok := d.r.(*process); ok {
		p.close() // it reads buf
	}
	if d.buf != nil {
		d.buf.Reset(nil)
		buffers.Put(d.buf)
	}
	d.buf, d.r, d.reuse = nil, nil, nil
	d.err = errors.New("read of a closed decoder")
	return nil
}

// explain turns a library's error into one that says whose fault it is.
func (d *decoder) explain(err error) error {
	switch {
	case d.src.err != nil:
		// Whatever the library made of it. Some take an io.ErrUnexpectedEOF from a cut
		// connection for a clean end.
		return fmt.Errorf("read %s input: %w", d.t, d.src.err)
	case err == io.EOF:
		return err
	case errors.Is(err, ErrProgram):
		return fmt.Errorf("decode %s: %w", d.t, err)
	case errors.Is(err, xz.ErrMemlimit),
		errors.Is(err, zstd.ErrWindowSizeExceeded), // rarely a corrupt block larger than the window
		errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("decode %s: %w", d.t, ErrTooMuchMemory)
	case errors.Is(err, xz.ErrBuf) && d.src.eof:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("decode: %w: %s: %w", ErrCorrupt, d.t, err)
}

// The pools hold decoders whose window is at most commonWindow. Larger ones are built for one
// stream and left to the garbage collector, so that idle memory stays small.
var xzPool, zstdPool, gzipPool, brotliPool sync.Pool

func (d *decoder) openXZ(dictMax int64) (err error) {
	if dictMax != commonWindow { // it cannot be changed in a reset
		d.r, err = xz.NewReader(d.buf, uint32(min(dictMax, 1<<32-1)))
		return err
	}
	z, ok := xzPool.Get().(*xz.Reader)
	if ok {
		err = z.Reset(d.buf)
	} else {
		z, err = xz.NewReader(d.buf, commonWindow)
	}
	d.r, d.reuse = z, func() { xzPool.Put(z) }
	return err
}

func (d *decoder) openZstd(maxWindow int64) (err error) {
	limit := zstd.WithDecoderMaxMemory(uint64(maxWindow)) // caps the windows, not the output, of a stream
	if maxWindow > commonWindow {
		d.r, err = newZstd(d.buf, limit, zstd.WithDecoderMaxWindow(uint64(min(maxWindow, 1<<41))))
		return err
	}
	z, ok := zstdPool.Get().(*zstd.Decoder)
	if ok {
		err = z.Reset(d.buf)
	} else {
		z, err = newZstd(d.buf, limit)
	}
	d.r, d.reuse = z, func() {
		z.Reset(nil)
		zstdPool.Put(z)
	}
	return err
}

func newZstd(r io.Reader, limits ...zstd.DOption) (*zstd.Decoder, error) {
	// With a concurrency of one there are no goroutines, and Close has nothing to do.
	return zstd.NewReader(r, append(limits, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))...)
}

func (d *decoder) openGzip() (err error) {
	z, ok := gzipPool.Get().(*gzip.Reader)
	if ok {
		err = z.Reset(d.buf)
	} else {
		z, err = gzip.NewReader(d.buf)
	}
	d.r, d.reuse = z, func() { gzipPool.Put(z) }
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (d *decoder) openBrotli(need int64) {
	z, ok := brotliPool.Get().(*brotli.Reader)
	if ok {
		z.Reset(d.buf)
	} else {
		z = brotli.NewReader(d.buf)
	}
	d.r = z
	if need <= commonWindow+commonWindow/2+brotliOverhead {
		d.reuse = func() { brotliPool.Put(z) }
	}
}

// openLZ4 does not pool: a reset lz4.Reader keeps the history of blocks that depend on each other,
// and would lend one upload's bytes to a malformed other. The large buffers are in the library's
// own pools.
func (d *decoder) openLZ4() error {
	z := lz4.NewReader(d.buf)
	d.r = z
	return z.Apply(lz4.ConcurrencyOption(1))
}

// source remembers how its reader ended, which the libraries on top do not tell apart.
type source struct {
	r   io.Reader
	eof bool
	err error // other than io.EOF
}

// Read never returns bytes together with io.EOF: the xz library then ignores a last stream, or
// garbage, in those bytes.
func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.eof {
		return 0, io.EOF
	}
	n, err := s.r.Read(p)
	s.eof = err == io.EOF
	if err != nil && !s.eof {
		s.err = err
	}
	if n > 0 && s.eof {
		err = nil
	}
	return n, err
}
