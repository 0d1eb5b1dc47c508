package packfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
)

// A Level trades the CPU time of encoding for stored bytes. Frames of any level
// are decoded alike.
type Level int

// The levels, measured on 190 MB of NARs in chunks of 173 KB on average (one noisy
// core; zstd -3 of the same bytes as one stream takes 5.6 ms/MB):
//
//	           stored  CPU, ms/MB
//	fastest    42.9 %   4.9
//	default    40.1 %   7.3
//	better     39.6 %   8.7
//	best       37.3 %  42.9
//
// Fresh chunks are encoded while a client waits, and compaction encodes them again:
// hence LevelDefault for them, whose next step costs a fifth more CPU for a
// hundredth of the bytes. Compressing literals that have no matches
// (WithAllLitEntropyCompression) gains 0.06 %, and would try the filler of
// patchable frames, too; a window beyond the chunk gains nothing.
const (
	LevelDefault Level = iota
	LevelFastest
	LevelBetter
	LevelBest
)

func (l Level) zstd() (zstd.EncoderLevel, error) {
	switch l {
	case LevelDefault:
		return zstd.SpeedDefault, nil
	case LevelFastest:
		return zstd.SpeedFastest, nil
	case LevelBetter:
		return zstd.SpeedBetterCompression, nil
	case LevelBest:
		return zstd.SpeedBestCompression, nil
	}
	return 0, fmt.Errorf("unknown compression level %d", int(l))
}

// An Encoder encodes chunks into frames. It is for one goroutine at a time and
// holds some MB (with [Encoder.EncodeMany] some tens), so callers keep a few. What
// it makes follows from its level and its input alone, whatever it did before; a
// new version of the library may make something else.
type Encoder struct {
	level    Level
	one      *zstd.Encoder // for a chunk: EncodeAll, and the stream of encodePatch
	many     *zstd.Encoder // for many chunks; nil until needed
	dec      *Decoder
	filler   *rand.ChaCha8
	attempts int // of encodeAround, before encodeSplit

	pieces  []place  // raw blocks of the chunk at hand
	pos     []uint32 // of its spans in the payload
	input   []byte   // with filler, or many chunks
	stream  sink     // zstd frame around filler
	plain   []byte   // payload of kind decode
	patched []byte   // payload of kind patch
	decoded []byte   // for comparison
	chunks  []Chunk  // of the frame returned last
	stored  []byte   // of the frame returned last
}

// NewEncoder returns an Encoder. It starts no goroutines, and needs no closing.
func NewEncoder(level Level) (*Encoder, error) {
	one, err := newZstd(level, MaxChunk)
	if err != nil {
		return nil, err
	}
	dec, err := NewDecoder()
	if err != nil {
		return nil, err
	}
	return &Encoder{level: level, one: one, dec: dec, filler: rand.NewChaCha8([32]byte{}), attempts: 4}, nil
}

// newZstd returns an encoder of zstd frames with content size, without checksum,
// and with a window as large as the content, which is at most window bytes.
func newZstd(level Level, window int) (*zstd.Encoder, error) {
	l, err := level.zstd()
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(l),
		zstd.WithEncoderConcurrency(1), // streams run in the caller
		zstd.WithWindowSize(window),
		zstd.WithSingleSegment(true),
		zstd.WithEncoderCRC(false),
		zstd.WithAllLitEntropyCompression(false))
	if err != nil {
		return nil, fmt.Errorf("new frame encoder: %w", err)
	}
	return z, nil
}

// Encode encodes one chunk, which must have zeros in its spans, and whose ID it
// believes. The frame is of [KindPatch] unless that would be, by a close estimate,
// more than a quarter larger than [KindDecode]. Before it is returned it has been decoded and compared, and
// patching it has been proved to work. Its slices are valid until the next call.
func (e *Encoder) Encode(id ID, masked []byte, spans []Span) (Frame, error) {
	if err := checkChunk(masked, spans); err != nil {
		return Frame{}, fmt.Errorf("encode chunk: %w", err)
	}
	f, err := e.encode(id, masked, spans)
	if err != nil {
		return Frame{}, fmt.Errorf("encode chunk %v: %w", id, err)
	}
	return f, nil
}

func (e *Encoder) encode(id ID, masked []byte, spans []Span) (Frame, error) {
	e.chunks = append(e.chunks[:0], Chunk{ID: id, Len: uint32(len(masked))})
	if len(spans) == 0 {
		if err := e.encodePlain(masked); err != nil {
			return Frame{}, err
		}
		return e.frame(KindPatch, appendPrefixChunk(e.stored[:0], nil, nil), e.plain), nil
	}

	e.pieces = appendPieces(e.pieces[:0], spans)
	patch, err := e.worthPatching(id, masked, spans)
	if err != nil {
		return Frame{}, err
	}
	if patch {
		return e.frame(KindPatch, appendPrefixChunk(e.stored[:0], spans, e.pos), e.patched), nil
	}
	return e.frame(KindDecode, appendPrefixChunk(e.stored[:0], spans, nil), e.plain), nil
}

// worthPatching encodes a chunk as kind patch (into e.patched and e.pos), as kind
// decode (into e.plain), or both, and says which of them to store. It encodes once
// where that decides the matter:
//
//   - The regions of a patchable frame cost what they are long, and a piece of chunk
//     between two of them a few more bytes: where that alone is too much compared with
//     the plain frame, as in derivations, there is no need to try.
//   - The rest of a patchable frame is larger than the plain frame by what its
//     additional blocks cost (headers, tables, matches that end at a region): 14 bytes a
//     region in the median of 7,790 real chunks, less than flushCost in 99 %. Where regions
//     and blocks are a small part of a frame there is no need to compare. That spared five
//     of six comparisons, and let pass 4 frames that were a little above the limit.
func (e *Encoder) worthPatching(id ID, masked []byte, spans []Span) (bool, error) {
	const flushCost = 128
	raw := 0
	for _, p := range e.pieces {
		raw += p.n + blockHeaderLen
	}
	overhead := raw + flushCost*len(e.pieces)

	compare := raw*8 > len(masked)
	if compare {
		if err := e.encodePlain(masked); err != nil {
			return false, err
		}
		if tooLarge(raw, len(e.plain)) {
			return false, nil
		}
	}
	if err := e.encodePatch(id, masked, spans); err != nil {
		return false, err
	}
	if !compare && tooLarge(len(e.patched), len(e.patched)-overhead) {
		compare = true
		if err := e.encodePlain(masked); err != nil {
			return false, err
		}
	}
	return !compare || !tooLarge(len(e.patched), len(e.plain)), nil
}

// tooLarge says whether a patchable payload is so much larger than a plain one
// that decoding at every read is the better deal.
func tooLarge(patched, plain int) bool { return patched*4 > plain*5 }

// A ManyChunk is one chunk for [Encoder.EncodeMany].
type ManyChunk struct {
	ID     ID
	Masked []byte
	Spans  []Span
}

// EncodeMany encodes chunks of at most MaxFrame bytes together into one frame of
// [KindDecode], in their order: like ones side by side make it small. In all else it
// is like [Encoder.Encode].
func (e *Encoder) EncodeMany(chunks []ManyChunk) (Frame, error) {
	f, err := e.encodeMany(chunks)
	if err != nil {
		return Frame{}, fmt.Errorf("encode %d chunks: %w", len(chunks), err)
	}
	return f, nil
}

func (e *Encoder) encodeMany(chunks []ManyChunk) (Frame, error) {
	if len(chunks) == 0 {
		return Frame{}, errors.New("no chunks")
	}
	e.chunks, e.input = e.chunks[:0], e.input[:0]
	prefix := e.stored[:0]
	for i, c := range chunks {
		if err := checkChunk(c.Masked, c.Spans); err != nil {
			return Frame{}, fmt.Errorf("chunk %d: %w", i, err)
		}
		if len(e.input)+len(c.Masked) > MaxFrame {
			return Frame{}, fmt.Errorf("more than %d bytes", MaxFrame)
		}
		e.chunks = append(e.chunks, Chunk{ID: c.ID, Len: uint32(len(c.Masked))})
		e.input = append(e.input, c.Masked...)
		prefix = appendPrefixChunk(prefix, c.Spans, nil)
	}
	if e.many == nil {
		var err error
		if e.many, err = newZstd(e.level, MaxFrame); err != nil {
			return Frame{}, err
		}
	}
	e.plain = e.many.EncodeAll(e.input, e.plain[:0])
	if err := e.compare(e.plain, e.input); err != nil {
		return Frame{}, err
	}
	return e.frame(KindDecode, prefix, e.plain), nil
}

// encodePlain encodes a chunk as a zstd frame into e.plain.
func (e *Encoder) encodePlain(masked []byte) error {
	e.plain = e.one.EncodeAll(masked, e.plain[:0])
	return e.compare(e.plain, masked)
}

// compare decodes a payload and compares it with what was encoded.
func (e *Encoder) compare(payload, want []byte) error {
	var err error
	if e.decoded, err = e.dec.decode(e.decoded[:0], payload, len(want)); err != nil {
		return fmt.Errorf("frame does not decode: %w", err)
	}
	if !bytes.Equal(e.decoded, want) {
		return errors.New("frame decodes to other bytes than were encoded")
	}
	return nil
}

// frame joins a prefix, which is built in e.stored, and a payload.
func (e *Encoder) frame(kind Kind, prefix, payload []byte) Frame {
	e.stored = append(prefix, payload...)
	return Frame{
		Kind:      kind,
		Chunks:    e.chunks,
		PrefixLen: len(prefix),
		Stored:    e.stored,
		CRC:       checksum(e.stored),
	}
}
