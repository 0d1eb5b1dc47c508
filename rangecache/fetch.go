package rangecache

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// A fetch is one request to the source, for blocks of one object that follow each other.
// It goes on while a Reader holds it.
type fetch struct {
	cache    *Cache
	key      string
	off, end int64 // bytes of the object
	cancel   context.CancelFunc
	flights  []*flight // of its blocks

	// Guarded by Cache.mu, as all of the flights.
	holders int
	rest    []*flight // that no reader has passed
}

// A flight is a block on its way from the source, or one that has arrived and that the
// reader whom it was fetched for has not passed yet.
type flight struct {
	id      blockID
	fetch   *fetch
	length  int  // bytes of the block that it brings
	slotted bool // place.slot is for it, and nobody else's
	place   place
	landing bool // it has come, and is being written
	arrived bool
	wants   []*want
}

// A want is somebody who waits for a flight.
type want struct {
	p     []byte // to fill
	off   int    // from the block's bytes
	taken bool   // p is being filled
	done  chan struct{}
	err   error // read after done
}

// errUnwanted ends a request whose blocks nobody can have: the disk does not take them.
var errUnwanted = errors.New("the cache cannot keep what is read ahead")

// minAhead is how many blocks are read ahead at least, if there are so many.
const minAhead = 4

// start begins to fetch the blocks of an object from first on: those with bytes below
// need, and those up to until for which there is room, but none that is here or on its
// way. There must be a missing block to begin with. It returns nil if there is no room
// for what is not needed. The caller has c.mu, and holds the fetch.
func (c *Cache) start(key string, first blockID, need, until int64) *fetch {
	size := int64(c.opts.BlockSize)
	off := int64(first.number) * size
	most := off + c.opts.Fetch
	if until <= most+c.opts.Fetch/4 {
		most = until // rather than a small request for the rest
	}
	end := max(need, min(until, most))
	ahead := c.disk.left() / 8 // a share, that others come to theirs
	if off >= need && ahead < minAhead && off+int64(ahead)*size < end {
		return nil
	}
	f := &fetch{cache: c, key: key, off: off, end: off, holders: 1}
	for id := first; f.end < end; id.number++ {
		fl := &flight{id: id, fetch: f, length: int(min(size, end-f.end))}
		if c.has(id, fl.length) {
			break
		}
		if f.end >= need {
			if ahead--; ahead < 0 {
				break
			}
		}
		if fl.place.slot, fl.slotted = c.disk.take(); !fl.slotted && f.end >= need {
			break
		}
		f.flights = append(f.flights, fl)
		f.end += int64(fl.length)
	}
	if len(f.flights) == 0 {
		return nil
	}
	for _, fl := range f.flights {
		c.flights[fl.id] = fl
	}
	f.rest = f.flights
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(c.ctx)
	c.running.Go(func() {
		defer f.cancel()
		f.finish(f.run(ctx))
	})
	return f
}

// has says whether a block is on its way, or its first bytes are here. The caller has
// c.mu.
func (c *Cache) has(id blockID, length int) bool {
	if c.flights[id] != nil {
		return true
	}
	e, ok := c.blocks.GetEntryQuietly(id)
	return ok && int(e.Value.length) >= length
}

func (f *fetch) run(ctx context.Context) error {
	c := f.cache
	if err := c.memory.Acquire(ctx, int64(c.opts.BlockSize)); err != nil {
		return fmt.Errorf("wait for other requests: %w", err)
	}
	defer c.memory.Release(int64(c.opts.BlockSize))
	buf := c.pool.Get().(*[]byte)
	defer c.pool.Put(buf)
	c.fetches.Add(1)
	in := &arrivals{fetch: f, buf: *buf}
	err := c.source.Read(ctx, f.key, f.off, f.end-f.off, in)
	if err == nil && in.next < len(f.flights) {
		err = io.ErrUnexpectedEOF // of a source that does not keep its word
	}
	return err
}

// arrivals are what the source writes to.
type arrivals struct {
	fetch *fetch
	buf   []byte
	n     int // bytes of it that have come
	next  int // flight that they are of
}

func (a *arrivals) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		room, err := a.room()
		if err != nil {
			return all - len(p), err
		}
		n := copy(room, p)
		p = p[n:]
		if err := a.add(n); err != nil {
			return all - len(p), err
		}
	}
	return all, nil
}

// ReadFrom implements io.ReaderFrom.
func (a *arrivals) ReadFrom(r io.Reader) (all int64, err error) {
	for a.next < len(a.fetch.flights) {
		room, err := a.room()
		if err != nil {
			return all, err
		}
		n, err := r.Read(room)
		all += int64(n)
		if err := a.add(n); err != nil {
			return all, err
		}
		if err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
	}
	return all, nil
}

// room is where the next bytes go.
func (a *arrivals) room() ([]byte, error) {
	if a.next == len(a.fetch.flights) {
		return nil, errors.New("more bytes than were asked for")
	}
	return a.buf[a.n:a.fetch.flights[a.next].length], nil
}

// add says that n bytes more have come.
func (a *arrivals) add(n int) error {
	a.fetch.cache.fetched.Add(uint64(n))
	fl := a.fetch.flights[a.next]
	if a.n += n; a.n < fl.length {
		return nil
	}
	a.n = 0
	a.next++
	return fl.arrive(a.buf[:fl.length])
}

// arrive hands a block to those who wait for it, and puts it on the disk.
func (fl *flight) arrive(data []byte) error {
	c := fl.fetch.cache
	c.mu.Lock()
	wants := fl.take()
	fl.landing = true
	c.mu.Unlock()
	served := len(wants) > 0
	finish(wants, data, nil) // first of all
	kept := false
	if fl.slotted {
		var err error
		fl.place, err = c.disk.write(fl.id, fl.place.slot, data)
		kept = err == nil
	}
	c.mu.Lock()
	wants = fl.take() // came meanwhile
	fl.arrived = true
	switch {
	case !kept:
		c.drop(fl)
	case fl.fetch.holders == 0:
		c.settle(fl)
	}
	c.mu.Unlock()
	finish(wants, data, nil)
	if !kept && !served && len(wants) == 0 {
		return errUnwanted
	}
	return nil
}

// take returns those who wait, whose p may be filled from now on. The caller has c.mu.
func (fl *flight) take() []*want {
	wants := fl.wants
	fl.wants = nil
	for _, w := range wants {
		w.taken = true
	}
	return wants
}

func finish(wants []*want, data []byte, err error) {
	for _, w := range wants {
		if w.err = err; err == nil {
			copy(w.p, data[w.off:])
		}
		close(w.done)
	}
}

// settle leaves it to the cache whether it keeps a block that has arrived. The caller has
// c.mu.
func (c *Cache) settle(fl *flight) {
	if c.flights[fl.id] != fl {
		c.drop(fl) // another one has more of the block
		return
	}
	delete(c.flights, fl.id)
	fl.slotted = false
	c.blocks.Set(fl.id, fl.place)
}

// drop gives up a block that is not kept. The caller has c.mu.
func (c *Cache) drop(fl *flight) {
	if c.flights[fl.id] == fl {
		delete(c.flights, fl.id)
	}
	if fl.slotted {
		fl.slotted = false
		c.disk.free(fl.place.slot)
	}
}

// finish gives up what has not come, with the error of those who wait for it.
func (f *fetch) finish(err error) {
	c := f.cache
	for _, fl := range f.flights {
		c.mu.Lock()
		var wants []*want
		if !fl.arrived {
			wants = fl.take()
			c.drop(fl)
		}
		c.mu.Unlock()
		finish(wants, nil, err)
	}
}

// passed settles the blocks that end up to a byte, and says whether there are no others.
// The caller has c.mu.
func (f *fetch) passed(end int64) bool {
	c := f.cache
	for len(f.rest) > 0 {
		fl := f.rest[0]
		gone := c.flights[fl.id] != fl
		if !gone && !(fl.arrived && int64(fl.id.number)*int64(c.opts.BlockSize)+int64(fl.length) <= end) {
			return false
		}
		if !gone {
			c.settle(fl)
		}
		f.rest = f.rest[1:]
	}
	return true
}

// release says that a Reader does not want a fetch any more. Without anybody it ends: what
// has not come is dropped, and what has is for the cache. The caller has c.mu.
func (c *Cache) release(f *fetch) {
	if f.holders--; f.holders > 0 {
		return
	}
	for _, fl := range f.flights {
		switch {
		case fl.arrived:
			c.settle(fl)
		case fl.landing: // it is settled when it has arrived
		default:
			f.cancel()
			if c.flights[fl.id] == fl {
				delete(c.flights, fl.id) // its slot is free when nobody writes to it any more
			}
		}
	}
}
