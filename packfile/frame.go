package packfile

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// A Kind says how a frame is served. It is stored in the pack's directory.
type Kind uint8

const (
	// KindPatch holds one chunk. Its payload is one or more zstd frames in
	// which the bytes of every span lie in raw blocks, as zeros. With the true
	// bytes written over them it is served as it is stored.
	KindPatch Kind = 1

	// KindDecode holds one or more chunks. Its payload is one zstd frame of
	// their masked bytes, one after another, and must be decoded to be served.
	KindDecode Kind = 2
)

// String returns the name of the kind.
func (k Kind) String() string {
	switch k {
	case KindPatch:
		return "patch"
	case KindDecode:
		return "decode"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// A Frame is one or more encoded chunks as they go into a pack.
//
// Stored is a prefix, which says where the spans are, and then the payload.
// Decoding the payload gives the masked chunks; what serving does with it, Kind
// says. The prefix is made of unsigned varints (as in encoding/binary), each in
// its shortest form:
//
//	for each chunk
//	    number of spans
//	    for each span
//	        (offset - end of the chunk's span before, or 0) << 1 | t
//	            t = 0: a store-path hash, 32 bytes; t = 1: a build-id, 20 bytes
//	        only in KindPatch:
//	        position in the payload - end of the span before there, or 0
//
// So the prefix of a chunk without spans is a single zero byte. Kind, number of
// chunks, their IDs and lengths, PrefixLen and CRC are in the pack's directory.
type Frame struct {
	Kind      Kind
	Chunks    []Chunk
	PrefixLen int    // bytes of the prefix in Stored
	Stored    []byte // prefix and payload
	CRC       uint32 // CRC-32C of Stored
}

// Info returns what the pack's directory says about the frame. It shares nothing
// with the frame.
func (f *Frame) Info() FrameInfo {
	return FrameInfo{
		Kind:    f.Kind,
		Prefix:  f.PrefixLen,
		Payload: len(f.Stored) - f.PrefixLen,
		CRC:     f.CRC,
		Chunks:  slices.Clone(f.Chunks),
	}
}

// ErrCRC is wrapped when the bytes of a frame do not have their checksum: they
// are not those that were written. It wraps [ErrCorrupt].
var ErrCRC = fmt.Errorf("%w: frame has the wrong checksum", ErrCorrupt)

// A View reads a stored frame. It keeps the slice that it was given, and does
// not change it. Any number of goroutines may read from one View; only Parse
// changes it.
type View struct {
	kind    Kind
	payload []byte
	spans   []Span   // of all chunks
	pos     []uint32 // KindPatch: where in payload each span's bytes are
	ends    []uint32 // several chunks: len(spans) behind each of them
	chunks  int
}

// ParseFrame returns a View of a stored frame: see [View.Parse].
func ParseFrame(kind Kind, chunks int, stored []byte, prefixLen int, crc uint32) (View, error) {
	var v View
	err := v.Parse(kind, chunks, stored, prefixLen, crc)
	return v, err
}

// Parse makes v a view of a stored frame, given what the pack's directory says
// about it. It checks the CRC before anything else ([ErrCRC]), so what fails later
// ([ErrCorrupt]) is damage from before the frame was stored, or somebody's intention.
// It does not decode the payload. After an error v is unusable. Memory of an earlier
// Parse is reused: what v returned then becomes invalid.
func (v *View) Parse(kind Kind, chunks int, stored []byte, prefixLen int, crc uint32) error {
	if got := checksum(stored); got != crc {
		return fmt.Errorf("%w: %08x, want %08x", ErrCRC, got, crc)
	}
	switch {
	case kind != KindPatch && kind != KindDecode:
		return corruptf("frame of unknown %v", kind)
	case chunks < 1 || kind == KindPatch && chunks > 1:
		return corruptf("%d chunks in a frame of kind %v", chunks, kind)
	case prefixLen < chunks || prefixLen > len(stored):
		return corruptf("prefix of %d bytes for %d chunks in a frame of %d bytes", prefixLen, chunks, len(stored))
	}
	v.kind, v.chunks, v.payload = kind, chunks, stored[prefixLen:]
	v.spans, v.pos, v.ends = v.spans[:0], v.pos[:0], v.ends[:0]
	c := cursor{b: stored[:prefixLen]}
	for range chunks {
		v.parseChunk(&c)
		if chunks > 1 {
			v.ends = append(v.ends, uint32(len(v.spans)))
		}
	}
	return c.end("frame prefix")
}

// parseChunk appends the spans of the next chunk in c.
func (v *View) parseChunk(c *cursor) {
	off, pos := 0, 0
	for n := c.count(1, "spans of a chunk"); n > 0 && c.err == nil; n-- {
		x := c.limited(MaxChunk<<1, "offset of a span")
		s := Span{Off: uint32(off + int(x>>1)), Len: SpanHash}
		if x&1 == 1 {
			s.Len = SpanBuildID
		}
		if off = s.end(); off > MaxChunk {
			c.fail("a span")
		}
		v.spans = append(v.spans, s)
		if v.kind != KindPatch {
			continue
		}
		pos += int(c.limited(uint64(len(v.payload)), "position of a span"))
		v.pos = append(v.pos, uint32(pos))
		if pos += int(s.Len); pos > len(v.payload) {
			c.fail("a span's bytes")
		}
	}
}

// Kind returns the frame's kind.
func (v *View) Kind() Kind { return v.kind }

// Chunks returns the number of chunks.
func (v *View) Chunks() int { return v.chunks }

// Payload returns the zstd frames, with zeros for every span. It is part of
// the slice that was parsed: do not change it.
func (v *View) Payload() []byte { return v.payload }

// Spans returns the spans of chunk i. That they lie inside the chunk is certain
// only after [Decoder.Verify]; [Unmask] checks it again. Do not change them.
func (v *View) Spans(i int) []Span {
	if v.chunks == 1 && i == 0 {
		return v.spans
	}
	start := uint32(0)
	if i > 0 {
		start = v.ends[i-1]
	}
	return v.spans[start:v.ends[i]:v.ends[i]]
}

// Patch writes the true bytes of every span into dst, a copy of the payload of
// a KindPatch frame (or the payload itself, if nobody else reads it). Then dst
// is what a client gets. value is as in [Unmask].
func (v *View) Patch(dst []byte, value func(j int) []byte) error {
	if v.kind != KindPatch {
		return fmt.Errorf("patch a frame of kind %v", v.kind)
	}
	if len(dst) != len(v.payload) {
		return fmt.Errorf("patch %d bytes, payload has %d", len(dst), len(v.payload))
	}
	for j, pos := range v.pos {
		if err := setSpan(dst[pos:pos+v.spans[j].Len], j, value); err != nil {
			return fmt.Errorf("patch: %w", err)
		}
	}
	return nil
}

// appendPrefixChunk appends one chunk's part of a prefix. pos holds the
// positions of the spans in the payload, and is nil in KindDecode.
func appendPrefixChunk(dst []byte, spans []Span, pos []uint32) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(spans)))
	off, at := 0, 0
	for j, s := range spans {
		x := uint64(int(s.Off)-off) << 1
		if s.Len == SpanBuildID {
			x |= 1
		}
		dst = binary.AppendUvarint(dst, x)
		off = s.end()
		if pos != nil {
			dst = binary.AppendUvarint(dst, uint64(int(pos[j])-at))
			at = int(pos[j]) + int(s.Len)
		}
	}
	return dst
}
