package chunkstore

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/dedupd/dedupd/packfile"
)

// A piece is a part of an object, masked: a chunk or a literal to be.
type piece struct {
	masked []byte
	spans  []packfile.Span
	refs   []uint32 // numbers of the spans' values in the table
}

// A cutter masks the bytes of one object and cuts them into pieces. Bytes come in
// through Write; what they are is told afterwards, in their order:
//
//	structure …          masks nothing
//	contents …           masks; patterns do not reach beyond them
//	segment              ends a segment
//
// and every piece is handed to emit when it is certain. A boundary never falls into a
// span: it moves to the span's end, or to its start where the piece would grow above
// the maximum.
type cutter struct {
	repo  Repository
	mask  *masker
	split splitter
	emit  func(piece) error
	pool  *bufferPool

	// The bytes [base, base+len(orig)) of the object, as they are and masked. Those
	// before start are in pieces already.
	orig, masked []byte
	base         int64
	start        int64 // offsets in the object from here on
	decided      int64 // masking is decided up to here

	spans []cutSpan // not yet in a piece
	table []value
	refs  map[valueKey]uint32
	total int // spans so far
}

type cutSpan struct {
	off int64
	len uint32
	ref uint32
}

type valueKey struct {
	value value
	len   uint32
}

// cutterBuffer is what a cutter holds of an object: a piece of the maximum length, and
// as much again so that it rarely has to move what it has.
const cutterBuffer = 2 * packfile.MaxChunk

func newCutter(repo Repository, pool *bufferPool, emit func(piece) error) (*cutter, error) {
	split, err := newSplitter(repo)
	if err != nil {
		return nil, err
	}
	c := &cutter{repo: repo, mask: newMasker(repo.StoreDir), split: split, emit: emit, pool: pool, refs: map[valueKey]uint32{}}
	c.orig, c.masked = pool.get(cutterBuffer)[:0], pool.get(cutterBuffer)[:0]
	return c, nil
}

// close gives the buffers back. The cutter cannot be used afterwards.
func (c *cutter) close() {
	c.pool.put(c.orig)
	c.pool.put(c.masked)
	c.orig, c.masked = nil, nil
}

// Write takes the next bytes of the object. It never fails.
func (c *cutter) Write(p []byte) (int, error) {
	if len(c.orig)+len(p) > cap(c.orig) {
		done := int(c.start - c.base)
		c.orig = c.orig[:copy(c.orig, c.orig[done:])]
		c.masked = c.masked[:copy(c.masked, c.masked[done:])]
		c.base = c.start
	}
	c.orig = append(c.orig, p...)
	c.masked = append(c.masked, p...)
	return len(p), nil
}

// structure says that the bytes up to end are not to be masked.
func (c *cutter) structure(end int64) error {
	c.decided = end
	return c.cut(false)
}

// contents says that the bytes up to have are part of contents that go on until end.
func (c *cutter) contents(have, end int64) error {
	limit := end
	if have < end {
		limit = max(c.decided, have-int64(c.mask.maxMatch())+1)
	}
	from := c.decided
	f := c.mask.find(c.orig[from-c.base : have-c.base])
	for c.total < maxSpans {
		m, ok := f.next()
		if !ok || from+int64(m.start) >= limit {
			break
		}
		c.addSpan(from+int64(m.off), m.len)
		limit = max(limit, from+int64(m.end))
	}
	c.decided = limit
	return c.cut(false)
}

func (c *cutter) addSpan(off int64, n int) {
	at := off - c.base
	k := valueKey{valueOf(c.orig[at : at+int64(n)]), uint32(n)}
	ref, ok := c.refs[k]
	if !ok {
		ref = uint32(len(c.table))
		c.refs[k] = ref
		c.table = append(c.table, k.value)
	}
	c.spans = append(c.spans, cutSpan{off, uint32(n), ref})
	c.total++
	clear(c.masked[at : at+int64(n)])
}

// segment ends a segment at end, up to where everything is decided.
func (c *cutter) segment() error { return c.cut(true) }

// cut emits the pieces that are certain: all of the segment if it ends here, else
// those that no later byte can change.
func (c *cutter) cut(end bool) error {
	for {
		have := c.decided - c.start
		if have == 0 || !end && have < int64(c.repo.MaxSize) {
			return nil
		}
		from := c.start - c.base
		n := c.split.cut(c.masked[from : from+min(have, int64(c.repo.MaxSize))])
		if err := c.piece(c.avoidSpans(n)); err != nil {
			return err
		}
	}
}

// avoidSpans moves the end of a piece of n bytes out of a span.
func (c *cutter) avoidSpans(n int) int {
	end := c.start + int64(n)
	for _, s := range c.spans {
		if s.off >= end {
			break
		}
		if after := s.off + int64(s.len); after > end {
			if after-c.start <= int64(c.repo.MaxSize) {
				return int(after - c.start)
			}
			return int(s.off - c.start)
		}
	}
	return n
}

// piece emits the next n bytes.
func (c *cutter) piece(n int) error {
	from := int(c.start - c.base)
	p := piece{masked: append(c.pool.get(n)[:0], c.masked[from:from+n]...)}
	k := 0
	for k < len(c.spans) && c.spans[k].off < c.start+int64(n) {
		k++
	}
	if k > 0 {
		p.spans, p.refs = make([]packfile.Span, k), make([]uint32, k)
		for i, s := range c.spans[:k] {
			p.spans[i] = packfile.Span{Off: uint32(s.off - c.start), Len: s.len}
			p.refs[i] = s.ref
		}
		c.spans = c.spans[:copy(c.spans, c.spans[k:])]
	}
	if err := c.prove(p, c.orig[from:from+n]); err != nil {
		return err
	}
	c.start += int64(n)
	return c.emit(p)
}

var errProof = errors.New("internal error: what would be stored differs from what came in; nothing was stored")

// prove checks that p, unmasked with the table, is orig: NarHash says that the input
// was right, not that what is stored equals it.
func (c *cutter) prove(p piece, orig []byte) error {
	at := 0
	var span [packfile.SpanHash]byte
	for i, s := range p.spans {
		off := int(s.Off)
		v := c.table[p.refs[i]].appendSpan(span[:0], int(s.Len))
		if off < at || off+len(v) > len(orig) || !bytes.Equal(p.masked[at:off], orig[at:off]) || !bytes.Equal(v, orig[off:off+len(v)]) {
			return fmt.Errorf("span %d of %d: %w", i, len(p.spans), errProof)
		}
		at = off + len(v)
	}
	if !bytes.Equal(p.masked[at:], orig[at:]) {
		return errProof
	}
	return nil
}
