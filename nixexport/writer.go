package nixexport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

var errClosed = errors.New("the stream is closed")

// A Writer writes a stream. It is not for use by several goroutines. After an error it is
// dead: what was written is the beginning of a stream, which readers refuse.
type Writer struct {
	w        *bufio.Writer
	storeDir string
	err      error
}

// NewWriter returns a Writer of a stream of paths in a store directory.
func NewWriter(w io.Writer, storeDir string) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, bufferSize), storeDir: storeDir}
}

// Write appends a path, whose NAR nar writes. What it refers to, but for itself, must come
// before, or be where the stream is read.
func (w *Writer) Write(p *Path, nar func(io.Writer) error) error {
	if w.err != nil {
		return w.err
	}
	w.number(1)
	if w.err = nar(w.w); w.err != nil {
		return w.err
	}
	b := binary.LittleEndian.AppendUint64(nil, magic)
	b = appendString(b, p.StorePath.Path(w.storeDir))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(p.References)))
	for _, ref := range p.References {
		b = appendString(b, ref.Path(w.storeDir))
	}
	deriver := ""
	if !p.Deriver.IsZero() {
		deriver = p.Deriver.Path(w.storeDir)
	}
	b = appendString(b, deriver)
	_, w.err = w.w.Write(binary.LittleEndian.AppendUint64(b, 0))
	return w.err
}

// Close writes the end of the stream, without which readers refuse it.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.number(0)
	err := w.w.Flush()
	w.err = errClosed
	return err
}

// number writes a number. Its error is the next one's, too.
func (w *Writer) number(n uint64) {
	var b [lenSize]byte
	binary.LittleEndian.PutUint64(b[:], n)
	w.w.Write(b[:])
}
