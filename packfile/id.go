package packfile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// Sizes that bound every chunk and frame. They are part of the format: readers
// refuse what is larger, so they may grow but never shrink.
const (
	MaxChunk = 1 << 20  // bytes in a chunk
	MaxFrame = 16 << 20 // decoded bytes in a frame
)

// An ID names a chunk: see [ChunkID].
type ID [32]byte

// String returns the ID in lower-case hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// A Span is a place in a chunk that was masked: its true bytes are in the
// recipe, and the chunk has zeros there. The spans of a chunk are sorted and do
// not overlap, but may touch. None crosses the end of its chunk.
type Span struct {
	Off uint32 // from the start of the chunk
	Len uint32 // SpanHash or SpanBuildID
}

// The two lengths of a span.
const (
	SpanHash    = 32 // nix32 text of a store-path hash
	SpanBuildID = 20 // raw bytes of a GNU build-id
)

// end returns the offset behind the span.
func (s Span) end() int { return int(s.Off) + int(s.Len) }

// A Chunk says what a frame holds.
type Chunk struct {
	ID  ID
	Len uint32 // bytes, 1 to MaxChunk
}

// idContext separates chunk IDs from every other use of BLAKE3. It is part of
// the format.
const idContext = "dedupd 2026 chunk id v1"

// idHasher is a BLAKE3 state keyed with idContext, and room to lay out
// integers, pooled because it is 13 KB and the key takes two compressions.
type idHasher struct {
	h   *blake3.Hasher
	buf [512]byte
}

var idHashers = sync.Pool{New: func() any {
	return &idHasher{h: blake3.NewDeriveKey(idContext)}
}}

// ChunkID returns the ID of a chunk with the given masked bytes and spans:
// BLAKE3-256 in derive-key mode, with the context string "dedupd 2026 chunk id
// v1", of these bytes, integers little endian:
//
//	size | what
//	   4 | number of spans
//	   8 | for each span: offset (4), length (4)
//	   8 | number of masked bytes
//	   n | the masked bytes
//
// The spans are in it because two chunks may have equal masked bytes and yet be
// patched in different places (the mask is zeros, and files hold zeros too).
// It may be called from any number of goroutines, and does not allocate.
func ChunkID(masked []byte, spans []Span) (id ID) {
	s := idHashers.Get().(*idHasher)
	defer idHashers.Put(s)
	s.h.Reset()

	b := binary.LittleEndian.AppendUint32(s.buf[:0], uint32(len(spans)))
	for _, sp := range spans {
		if len(b)+8 > len(s.buf) {
			s.h.Write(b)
			b = s.buf[:0]
		}
		b = binary.LittleEndian.AppendUint32(b, sp.Off)
		b = binary.LittleEndian.AppendUint32(b, sp.Len)
	}
	s.h.Write(b)
	s.h.Write(binary.LittleEndian.AppendUint64(s.buf[:0], uint64(len(masked))))
	s.h.Write(masked)
	s.h.Sum(id[:0])
	return id
}

// checkChunk says whether masked and spans are what a chunk may be: of a legal
// size, its spans in order and inside it, and zeros in them.
func checkChunk(masked []byte, spans []Span) error {
	if len(masked) == 0 || len(masked) > MaxChunk {
		return fmt.Errorf("chunk of %d bytes", len(masked))
	}
	end := 0
	for _, s := range spans {
		switch {
		case s.Len != SpanHash && s.Len != SpanBuildID:
			return fmt.Errorf("span of %d bytes", s.Len)
		case int(s.Off) < end:
			return errors.New("spans overlap or are out of order")
		case s.end() > len(masked):
			return errors.New("span beyond the end of its chunk")
		}
		end = s.end()
		for _, c := range masked[s.Off:end] {
			if c != 0 {
				return errors.New("span is not masked")
			}
		}
	}
	return nil
}

// Unmask writes the true bytes of every span into a masked chunk. value(j)
// returns those of span j, and must return exactly as many as the span is long;
// its result is not kept. After an error the chunk is half written.
func Unmask(chunk []byte, spans []Span, value func(j int) []byte) error {
	for j, s := range spans {
		if s.end() > len(chunk) {
			return fmt.Errorf("unmask: span %d is beyond the end of its chunk", j)
		}
		if err := setSpan(chunk[s.Off:s.end()], j, value); err != nil {
			return fmt.Errorf("unmask: %w", err)
		}
	}
	return nil
}

// setSpan writes the true bytes of span j to dst, which is as long as the span.
func setSpan(dst []byte, j int, value func(j int) []byte) error {
	b := value(j)
	if len(b) != len(dst) {
		return fmt.Errorf("span %d has %d bytes, its value %d", j, len(dst), len(b))
	}
	copy(dst, b)
	return nil
}
