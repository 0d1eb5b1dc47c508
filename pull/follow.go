package pull

import (
	"context"
	"io"
	"sync"
)

// update changes what is guarded by mu, and wakes those that wait for it.
func (f *fetch) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// available returns how many bytes at off can be read, and waits while there are none. At
// the end of the file it returns io.EOF. The last byte there is can only be read by the one
// who verifies, until it is verified.
func (f *fetch) available(ctx context.Context, off int64, verifier bool, waits func()) (int64, error) {
	for {
		f.mu.Lock()
		there, end := f.written, f.complete && (f.verified || verifier)
		if !verifier && !f.verified {
			there--
		}
		err := f.err
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		switch {
		case off < there:
			return there - off, nil
		case end:
			return 0, io.EOF
		case err != nil:
			return 0, err
		}
		waits()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// A reader reads the file from its start to its end, for the one who verifies it.
type reader struct {
	f   *fetch
	ctx context.Context
	off int64
}

func (r *reader) Read(p []byte) (int, error) {
	r.f.begun.Store(true)
	n, err := r.f.available(r.ctx, r.off, true, func() {})
	if err != nil {
		return 0, err
	}
	k, err := r.f.file.ReadAt(p[:min(int64(len(p)), n)], r.off)
	r.off += int64(k)
	return k, err
}

// A flusher is what a writer may be that holds bytes back.
type flusher interface{ Flush() error }

// followBuffer is what one client takes, in bytes.
const followBuffer = 64 << 10

var buffers = sync.Pool{New: func() any { return new([followBuffer]byte) }}

// copyTo writes the n bytes at off to w, all from there on if n is negative, as they come.
func (f *fetch) copyTo(ctx context.Context, w io.Writer, off, n int64) error {
	flush := func() {}
	if fl, ok := w.(flusher); ok {
		flush = func() { fl.Flush() } // the next write tells what is wrong
	}
	b := buffers.Get().(*[followBuffer]byte)
	defer buffers.Put(b)
	for n != 0 {
		there, err := f.available(ctx, off, false, flush)
		if err == io.EOF && n < 0 {
			return nil
		}
		if err != nil {
			return err
		}
		part := b[:min(followBuffer, there)]
		if n > 0 {
			part = part[:min(int64(len(part)), n)]
			n -= int64(len(part))
		}
		if _, err := f.file.ReadAt(part, off); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return nil
}
