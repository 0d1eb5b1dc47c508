package packfile

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// A Decoder decodes frames. It is for one goroutine at a time, and is worth
// keeping: it holds buffers.
type Decoder struct {
	z       *zstd.Decoder
	decoded []byte // Verify's
	other   []byte // proveRaw's changed payload …
	check   []byte // … and what it decodes to
}

// NewDecoder returns a Decoder. It starts no goroutines, and needs no closing.
func NewDecoder() (*Decoder, error) {
	z, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxFrame),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("new frame decoder: %w", err)
	}
	return &Decoder{z: z}, nil
}

// Decode appends the masked bytes of the frame's chunks to dst. They must be
// total bytes, the sum of the lengths in the pack's directory; if they are more or
// fewer the error wraps [ErrCorrupt], and no more memory was used for them than for
// total. Use [Unmask] on what it returns.
func (d *Decoder) Decode(dst []byte, v *View, total int) ([]byte, error) {
	return d.decode(dst, v.payload, total)
}

// decodeSlack is room behind the decoded bytes: with less of it the library
// takes slower loops, which check every copy.
const decodeSlack = 64

func (d *Decoder) decode(dst, payload []byte, total int) ([]byte, error) {
	if total < 0 || total > MaxFrame {
		return dst, corruptf("frame of %d decoded bytes", total)
	}
	n := len(dst)
	dst = slices.Grow(dst, total+decodeSlack)
	out, err := d.z.DecodeAll(payload, dst[:n:n+total+decodeSlack])
	if err != nil {
		return dst[:n], fmt.Errorf("%w: decode frame: %w", ErrCorrupt, err)
	}
	if len(out) != n+total {
		return dst[:n], corruptf("frame decodes to %d bytes, want %d", len(out)-n, total)
	}
	return out, nil
}

// Verify proves that a frame holds the given chunks: that it does what VerifyChunks says
// and, in KindPatch, that writing over the spans in the payload changes those bytes of the
// chunk and no others. Errors wrap [ErrCorrupt].
func (d *Decoder) Verify(v *View, chunks []Chunk) error {
	if err := d.VerifyChunks(v, chunks); err != nil {
		return err
	}
	if v.kind != KindPatch || len(v.spans) == 0 {
		return nil
	}
	places := make([]place, len(v.spans))
	for j, s := range v.spans {
		places[j] = place{off: int(s.Off), pos: int(v.pos[j]), n: int(s.Len)}
	}
	if err := d.proveRaw(v.payload, d.decoded, places); err != nil {
		return fmt.Errorf("%w: frame: %w", ErrCorrupt, err)
	}
	return nil
}

// VerifyChunks proves that a frame decodes to bytes and has spans that give the IDs of the
// given chunks. For a frame that was verified once, and whose checksum is right, that is all
// there is to know, in half the time. Errors wrap [ErrCorrupt].
func (d *Decoder) VerifyChunks(v *View, chunks []Chunk) error {
	if len(chunks) != v.chunks {
		return corruptf("frame of %d chunks, want %d", v.chunks, len(chunks))
	}
	total := 0
	for _, c := range chunks {
		if total += int(c.Len); c.Len > MaxChunk || total > MaxFrame {
			return corruptf("chunks of more than %d bytes", total)
		}
	}
	var err error
	if d.decoded, err = d.decode(d.decoded[:0], v.payload, total); err != nil {
		return err
	}
	rest := d.decoded
	for i, c := range chunks {
		masked := rest[:c.Len]
		rest = rest[c.Len:]
		if err := checkChunk(masked, v.Spans(i)); err != nil {
			return fmt.Errorf("%w: chunk %d of a frame: %w", ErrCorrupt, i, err)
		}
		if got := ChunkID(masked, v.Spans(i)); got != c.ID {
			return corruptf("chunk %d of a frame is %v, want %v", i, got, c.ID)
		}
	}
	return nil
}

// A place is n bytes that are at off in a chunk and at pos in a payload.
type place struct{ off, pos, n int }

// proveRaw proves that the bytes of a payload at the given places may be overwritten,
// each changing the byte of the chunk that it stands for and no other, given that
// the payload decodes to masked. It changes them all, decodes once more, and
// compares.
//
// Why one decoding is proof: each byte that a zstd decoder puts out is a copy of one
// byte of a literal, a run or a raw block. Every byte of every place is changed, so
// output that comes from a place but is elsewhere shows; and each in its own way, so
// that a place whose output comes from another place shows too.
func (d *Decoder) proveRaw(payload, masked []byte, places []place) error {
	d.other = append(d.other[:0], payload...)
	x := uint32(1)
	for _, p := range places {
		x = scramble(d.other[p.pos:p.pos+p.n], x)
	}
	var err error
	if d.check, err = d.decode(d.check[:0], d.other, len(masked)); err != nil {
		return err
	}
	x = 1
	for _, p := range places {
		x = scramble(d.check[p.off:p.off+p.n], x)
	}
	if !bytes.Equal(d.check, masked) {
		return errNotRaw
	}
	return nil
}

var errNotRaw = errors.New("spans are not in raw blocks of their own")

// scramble changes every byte of b by a sequence that goes on from x, and returns
// where it ends. Doing it twice from the same x changes nothing.
func scramble(b []byte, x uint32) uint32 {
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] ^= byte(x>>24) | 1
	}
	return x
}
