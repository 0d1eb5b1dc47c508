package chunkstore

import (
	"context"
	"fmt"
	"io"

	"github.com/dedupd/dedupd/packfile"
)

// An Object is one that the store has, ready to be read. It may be used concurrently.
type Object struct {
	store *Store
	plan  *plan
}

// Object returns the object with the SHA-256 hash. The error wraps ErrNotFound if the
// store does not have it, and packfile.ErrCorrupt if a part of it is gone.
func (s *Store) Object(ctx context.Context, hash Hash) (*Object, error) {
	p, err := s.plan(ctx, hash)
	if err != nil {
		return nil, err
	}
	return &Object{s, p}, nil
}

// NAR says whether the object was taken in as a NAR.
func (o *Object) NAR() bool { return o.plan.nar }

// Size is the length of the object in bytes.
func (o *Object) Size() int64 { return o.plan.size }

// FrameSize is the length in bytes of the object as zstd frames.
func (o *Object) FrameSize() int64 { return o.plan.zsize }

// Layout names the bytes of the object as zstd frames: equal layouts of one object mean
// equal bytes.
func (o *Object) Layout() string { return o.plan.layout }

const (
	// maxGap is the length in bytes up to which what lies between two wanted frames of a
	// pack is read with them.
	maxGap = 128 << 10
	// maxRead is the length above which reads are not merged.
	maxRead = 1 << 20
)

// WriteFrames writes the bytes [off, off+n) of the object as zstd frames. Frames that
// are served as stored are neither decoded nor encoded. Every frame's checksum is
// checked before any of its bytes is written; an error ends the writing before a wrong
// byte leaves.
func (o *Object) WriteFrames(ctx context.Context, w io.Writer, off, n int64) error {
	return o.write(ctx, w, off, n, true)
}

// WritePlain writes the bytes [off, off+n) of the object itself.
func (o *Object) WritePlain(ctx context.Context, w io.Writer, off, n int64) error {
	return o.write(ctx, w, off, n, false)
}

func (o *Object) write(ctx context.Context, w io.Writer, off, n int64, frames bool) error {
	size := o.Size()
	if frames {
		size = o.FrameSize()
	}
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("bytes %d to %d of an object of %d", off, off+n, size)
	}
	if n == 0 {
		return nil
	}
	r := &objectReader{store: o.store, plan: o.plan, frames: frames, w: w, off: off, end: off + n}
	if cache := o.store.packs.cache; cache != nil {
		r.prefetch = &prefetcher{cache: cache.NewReader()}
		defer r.prefetch.cache.Close()
	}
	defer r.close()
	return r.run(ctx)
}

// An objectReader serves one range of one object.
type objectReader struct {
	store    *Store
	plan     *plan
	frames   bool // zstd frames, not plain bytes
	w        io.Writer
	off, end int64
	prefetch *prefetcher // nil without a cache

	view    packfile.View
	out     []byte // a piece that is not served as stored
	span    [packfile.SpanHash]byte
	decoded decodedFrame
}

// A decodedFrame is kept because the next chunk may be in it too.
type decodedFrame struct {
	pack   uint32
	offset uint64
	masked []byte
}

// A group is a run of pieces whose frames are read at once.
type group struct {
	first, last int // pieces [first, last)
	pack        uint32
	off, n      int64
	copies      int64 // bytes that making its largest piece takes beside the frame
	memory      int64 // bytes of Options.ReadMemory that it has
	buf         []byte
	cached      bool // buf is from the cache
	err         error
}

// run reads one group ahead of the one that is written, if there is memory for it. What
// holds memory never waits for more, and a group is all that a slow client can hold.
func (r *objectReader) run(ctx context.Context) error {
	cur := r.group(r.plan.find(r.off, r.frames))
	for cur != nil {
		if cur.memory == 0 {
			r.close()
			if err := r.store.reading.acquire(ctx, cur); err != nil {
				return err
			}
			r.read(ctx, cur)
		}
		next := r.group(cur.last)
		done := make(chan struct{})
		if next == nil || !r.store.reading.tryAcquire(next) {
			close(done)
		} else {
			go func() {
				defer close(done)
				r.read(ctx, next)
			}()
		}
		err := r.writeGroup(ctx, cur)
		<-done
		r.release(cur)
		if err != nil {
			r.release(next)
			return err
		}
		cur = next
	}
	return nil
}

// release gives back what a group has.
func (r *objectReader) release(g *group) {
	if g == nil || g.memory == 0 {
		return
	}
	r.store.buffers.put(g.buf)
	r.store.reading.release(g)
}

// close gives back what is kept from one group for the next.
func (r *objectReader) close() {
	r.store.buffers.put(r.out)
	r.store.buffers.put(r.decoded.masked)
	r.out, r.decoded = nil, decodedFrame{}
}

// group returns the pieces from first on that are read together, nil if the range ends
// before.
func (r *objectReader) group(first int) *group {
	if first >= len(r.plan.pieces) || r.start(first) >= r.end {
		return nil
	}
	g, most := &group{first: first, last: first}, int64(maxRead)
	if r.store.ReadersWait() || r.prefetch != nil && r.start(first) <= r.off {
		most = maxGap // frame by frame, unless they are small; and the first byte early
	}
	for ; g.last < len(r.plan.pieces) && r.start(g.last) < r.end; g.last++ {
		pp := &r.plan.pieces[g.last]
		if pp.literal() {
			continue
		}
		off, n := pp.stored()
		switch {
		case g.pack == 0:
			g.pack, g.off, g.n = pp.loc.Pack, off, n
		case pp.loc.Pack != g.pack || off < g.off || off > g.off+g.n+maxGap || off+n-g.off > most && off+n > g.off+g.n:
			return g
		default:
			g.n = max(g.n, off+n-g.off)
		}
		switch decoded := !r.frames || packfile.Kind(pp.loc.Kind) != packfile.KindPatch; {
		case decoded && r.frames:
			g.copies = max(g.copies, 2*pp.len+pp.zlen)
		case decoded:
			g.copies = max(g.copies, 2*pp.len)
		case len(pp.refs) > 0:
			g.copies = max(g.copies, pp.zlen)
		}
	}
	return g
}

// start is where piece i begins in what is served.
func (r *objectReader) start(i int) int64 {
	if r.frames {
		return r.plan.pieces[i].zat
	}
	return r.plan.pieces[i].at
}

func (r *objectReader) read(ctx context.Context, g *group) {
	if g.pack == 0 {
		return
	}
	g.buf = r.store.buffers.get(int(g.n))
	if r.prefetch == nil {
		g.err = r.store.packs.readAt(ctx, g.pack, g.buf, g.off)
		return
	}
	r.fetchAhead(ctx, g)
	until := r.prefetch.reading.find(r, g.first, g.pack, g.off, g.off+g.n).end
	g.cached, g.err = r.store.packs.readAhead(ctx, r.prefetch.cache, g.pack, g.buf, g.off, until)
}

func (r *objectReader) writeGroup(ctx context.Context, g *group) error {
	if g.err != nil {
		if isDamage(g.err) {
			r.store.noteDamage(ctx, r.plan, g.err)
		}
		return g.err
	}
	for i := g.first; i < g.last; i++ {
		pp := &r.plan.pieces[i]
		var stored []byte
		if !pp.literal() {
			off, n := pp.stored()
			stored = g.buf[off-g.off:][:n]
		}
		b, err := r.piece(pp, stored)
		if isDamage(err) && g.cached {
			g.cached = false
			if err = r.store.packs.readAround(ctx, g.pack, g.buf, g.off); err == nil {
				b, err = r.piece(pp, stored)
			}
		}
		if err != nil {
			if isDamage(err) {
				r.store.noteDamage(ctx, r.plan, err)
			}
			return fmt.Errorf("object %x, piece %d (chunk %s, pack number %d at %d): %w", r.plan.hash, i, pp.id, pp.loc.Pack, pp.loc.Offset, err)
		}
		start := r.start(i)
		from, to := max(0, r.off-start), min(int64(len(b)), r.end-start)
		if _, err := r.w.Write(b[from:to]); err != nil {
			return err
		}
	}
	return nil
}

// piece returns the bytes that a piece is served as. They are valid until the next call.
func (r *objectReader) piece(pp *planPiece, stored []byte) ([]byte, error) {
	if pp.literal() {
		plain := append(r.grow(int(pp.len) + int(pp.zlen))[:0], pp.plain...)
		if err := r.unmask(plain, pp, pp.spans); err != nil {
			return nil, err
		}
		return r.profile(plain), nil
	}
	kind := packfile.Kind(pp.loc.Kind)
	if err := r.view.Parse(kind, int(pp.loc.Chunks), stored, int(pp.loc.Prefix), pp.loc.CRC); err != nil {
		return nil, err
	}
	if r.frames && kind == packfile.KindPatch {
		if err := r.checkSpans(pp, r.view.Spans(0)); err != nil {
			return nil, err
		}
		b := r.view.Payload()
		if len(pp.refs) > 0 {
			// A copy: the same frame may be wanted again, with other values.
			b = append(r.grow(len(b))[:0], b...)
			if err := r.view.Patch(b, func(j int) []byte { return r.value(pp, j) }); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	masked, err := r.decode(pp)
	if err != nil {
		return nil, err
	}
	plain := append(r.grow(int(pp.len) + packfile.RawLen(int(pp.len)))[:0], masked...)
	if err := r.unmask(plain, pp, r.view.Spans(int(pp.loc.Index))); err != nil {
		return nil, err
	}
	return r.profile(plain), nil
}

// profile turns plain bytes, which lie in r.out, into what is served.
func (r *objectReader) profile(plain []byte) []byte {
	if !r.frames {
		return plain
	}
	n := len(plain)
	return packfile.AppendRaw(plain, plain[:n:n])[n:]
}

func (r *objectReader) unmask(plain []byte, pp *planPiece, spans []packfile.Span) error {
	if err := r.checkSpans(pp, spans); err != nil {
		return err
	}
	return packfile.Unmask(plain, spans, func(j int) []byte { return r.value(pp, j) })
}

func (r *objectReader) checkSpans(pp *planPiece, spans []packfile.Span) error {
	if len(spans) != len(pp.refs) {
		return fmt.Errorf("frame has %d spans, the recipe %d: %w", len(spans), len(pp.refs), packfile.ErrCorrupt)
	}
	return nil
}

// value returns the true bytes of the j-th span of a piece.
func (r *objectReader) value(pp *planPiece, j int) []byte {
	spans := pp.spans
	if !pp.literal() {
		spans = r.view.Spans(int(pp.loc.Index))
	}
	return r.plan.values[pp.refs[j]].appendSpan(r.span[:0], int(spans[j].Len))
}

// decode returns the masked bytes of a piece from the frame that r.view shows.
func (r *objectReader) decode(pp *planPiece) ([]byte, error) {
	d := &r.decoded
	if d.pack != pp.loc.Pack || d.offset != pp.loc.Offset {
		total := int(pp.loc.Len)
		if pp.loc.Chunks > 1 {
			var err error
			if total, err = r.view.DecodedLen(); err != nil {
				return nil, err
			}
		}
		*d = decodedFrame{masked: d.masked}
		dec := <-r.store.decoders
		masked, err := dec.Decode(d.masked[:0], &r.view, total)
		r.store.decoders <- dec
		if err != nil {
			return nil, err
		}
		*d = decodedFrame{pp.loc.Pack, pp.loc.Offset, masked}
	}
	start, end := int(pp.loc.Start), int(pp.loc.Start)+int(pp.loc.Len)
	if end > len(d.masked) {
		return nil, fmt.Errorf("frame has %d bytes, the chunk ends at %d: %w", len(d.masked), end, packfile.ErrCorrupt)
	}
	return d.masked[start:end], nil
}

// grow returns r.out with room for n bytes.
func (r *objectReader) grow(n int) []byte {
	if cap(r.out) < n {
		r.store.buffers.put(r.out)
		r.out = r.store.buffers.get(n)
	}
	return r.out[:n]
}
