package rangecache

import (
	"context"
	"crypto/sha256"
	"slices"
)

// A Reader reads through a cache for one purpose, such as an answer to a client. What is
// fetched for it goes on until it is closed. It is for one goroutine at a time.
type Reader struct {
	cache *Cache
	holds []*fetch
}

// NewReader returns a Reader, which must be closed.
func (c *Cache) NewReader() *Reader { return &Reader{cache: c} }

// Close ends the requests that nobody else wants.
func (r *Reader) Close() {
	c := r.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range r.holds {
		c.release(f)
	}
	r.holds = nil
}

const (
	// lead is how many bytes before the end of one request the next is sent, so that there
	// is no pause between them.
	lead = 4 << 20
	// maxAhead is how many requests of a Reader may be under way when it prefetches.
	maxAhead = 8
)

// ReadAt fills p with an object's bytes from off, and has what follows fetched up to the
// byte at until, of which more will be read soon. The errors are those of the source; if
// it fails, what is missing is asked for a second time by itself.
func (r *Reader) ReadAt(ctx context.Context, key string, p []byte, off, until int64) error {
	end := off + int64(len(p))
	err := r.readAt(ctx, key, p, off, max(end, until))
	if err != nil && ctx.Err() == nil {
		err = r.readAt(ctx, key, p, off, end)
	}
	return err
}

// Prefetch has the bytes [off, until) fetched, if there is room, and says whether the
// Reader may ask for more.
func (r *Reader) Prefetch(key string, off, until int64) bool {
	c := r.cache
	object := sha256.Sum256([]byte(key))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(r.holds) >= maxAhead {
		return false
	}
	r.advance(key, object, off, until)
	return true
}

// A piece is a block, or a part of one, that is read.
type piece struct {
	id     blockID
	off    int // in the block
	p      []byte
	here   place   // if flight is nil
	flight *flight // that brings it
	want   *want
}

func (r *Reader) readAt(ctx context.Context, key string, p []byte, off, until int64) error {
	c := r.cache
	object := sha256.Sum256([]byte(key))
	pieces := c.split(object, p, off)
	end := off + int64(len(p))
	for len(pieces) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.find(key, pieces, end, until); err != nil {
			return err
		}
		missing := pieces[:0] // those that cannot be read although they were here
		var failure error
		for i, pc := range pieces {
			switch {
			case pc.flight != nil:
				if err := c.wait(ctx, &pc); err != nil && ctx.Err() != nil {
					c.withdraw(pieces[i:])
					return err
				} else if err != nil {
					failure = err
				}
			case !c.load(pc.id, pc.here, pc.p, pc.off):
				missing = append(missing, pc)
			default:
				c.hits.Add(1)
				c.hitBytes.Add(uint64(len(pc.p)))
			}
		}
		if failure != nil {
			return failure
		}
		pieces = missing
	}
	r.passed(key, end)
	return nil
}

// split cuts a range into blocks.
func (c *Cache) split(object [sha256.Size]byte, p []byte, off int64) (pieces []piece) {
	for len(p) > 0 {
		at := int(off % int64(c.opts.BlockSize))
		n := min(len(p), c.opts.BlockSize-at)
		pieces = append(pieces, piece{id: blockID{object, c.number(off)}, off: at, p: p[:n]})
		p, off = p[n:], off+int64(n)
	}
	return pieces
}

// find says of each piece where it is, or begins to wait for it. What nobody fetches, it
// has fetched.
func (r *Reader) find(key string, pieces []piece, end, until int64) error {
	c := r.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	for i := range pieces {
		pc := &pieces[i]
		last := pc.off + len(pc.p)
		fl := c.flights[pc.id]
		if fl != nil && fl.length >= last {
			r.hold(fl.fetch)
		} else if e, ok := c.blocks.GetIfPresent(pc.id); ok && int(e.length) >= last {
			pc.flight, pc.here = nil, e
			continue
		} else {
			delete(c.flights, pc.id) // one that has too little of it
			r.holds = append(r.holds, c.start(key, pc.id, end, until))
			fl = c.flights[pc.id]
		}
		if fl.arrived {
			pc.flight, pc.here = nil, fl.place
			continue
		}
		pc.flight, pc.want = fl, &want{p: pc.p, off: pc.off, done: make(chan struct{})}
		fl.wants = append(fl.wants, pc.want)
	}
	r.advance(key, pieces[0].id.object, end, until)
	return nil
}

// wait waits for a piece that is on its way.
func (c *Cache) wait(ctx context.Context, pc *piece) error {
	c.misses.Add(1)
	select {
	case <-pc.want.done:
		return pc.want.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// withdraw has nobody write to pieces any more.
func (c *Cache) withdraw(pieces []piece) {
	var late []*want
	c.mu.Lock()
	for _, pc := range pieces {
		if pc.flight == nil {
			continue
		}
		if pc.want.taken {
			late = append(late, pc.want)
		} else {
			pc.flight.wants = slices.DeleteFunc(pc.flight.wants, func(w *want) bool { return w == pc.want })
		}
	}
	c.mu.Unlock()
	for _, w := range late {
		<-w.done
	}
}

// hold keeps a fetch going. The caller has Cache.mu.
func (r *Reader) hold(f *fetch) {
	if !slices.Contains(r.holds, f) {
		f.holders++
		r.holds = append(r.holds, f)
	}
}

// advance has the first block fetched that is missing soon after off, and what follows up
// to until. The caller has Cache.mu.
func (r *Reader) advance(key string, object [sha256.Size]byte, off, until int64) {
	c := r.cache
	size := int64(c.opts.BlockSize)
	for at := off; at < min(off+lead, until); at += size - at%size {
		id := blockID{object, c.number(at)}
		if c.has(id, int(min(size, until-at/size*size))) {
			continue
		}
		if f := c.start(key, id, at/size*size, until); f != nil {
			r.holds = append(r.holds, f)
		}
		return
	}
}

// passed lets go of the blocks that end with what was read, or before, and of the
// fetches that had no others.
func (r *Reader) passed(key string, end int64) {
	c := r.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	r.holds = slices.DeleteFunc(r.holds, func(f *fetch) bool {
		over := f.key == key && f.passed(end)
		if over {
			c.release(f)
		}
		return over
	})
}
