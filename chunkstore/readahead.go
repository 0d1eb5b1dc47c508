package chunkstore

import (
	"context"
	"io"
)

// A readAhead reads from a slow reader, a network or a decoder, in a goroutine of its
// own, a few blocks ahead of the one who reads from it.
type readAhead struct {
	src     io.Reader
	turn    *turn // of the goroutine, for decoding
	pool    *bufferPool
	full    chan block
	stopped chan struct{}

	cur block // being read
	off int
}

type block struct {
	b   []byte
	err error
}

const (
	blockSize  = 128 << 10
	blocksFull = 3
)

func newReadAhead(src io.Reader, t *turn, pool *bufferPool) *readAhead {
	return &readAhead{src: src, turn: t, pool: pool, full: make(chan block, blocksFull), stopped: make(chan struct{})}
}

// run reads until the source ends, fails, or nobody wants more. The error of the source
// goes to the reader.
func (r *readAhead) run(ctx context.Context) error {
	defer close(r.full)
	for {
		b := r.pool.get(blockSize)
		n, err := 0, error(nil)
		r.turn.take()
		for n < len(b) && err == nil {
			var k int
			k, err = r.src.Read(b[n:])
			n += k
		}
		r.turn.give()
		select {
		case r.full <- block{b[:n], err}:
		case <-r.stopped:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
	}
}

// stop says that no more will be read.
func (r *readAhead) stop() { close(r.stopped) }

func (r *readAhead) Read(p []byte) (int, error) {
	for r.off == len(r.cur.b) {
		if r.cur.err != nil {
			return 0, r.cur.err
		}
		if r.cur.b != nil {
			r.pool.put(r.cur.b)
		}
		var ok bool
		if r.cur, ok = <-r.full; !ok {
			r.cur = block{err: context.Canceled}
		}
		r.off = 0
	}
	n := copy(p, r.cur.b[r.off:])
	r.off += n
	return n, nil
}
