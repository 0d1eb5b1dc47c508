package packfile

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A patchable payload has the bytes of every span in raw blocks, which nothing else
// refers to. A compressor has no call for that, so it is tricked: the chunk is
// compressed with filler in its regions (spans, and what lies between close ones) that
// nothing matches and that does not compress, and with a flush before and after
// each. The filler then stands in raw blocks, and is replaced by what the chunk has
// there. That it worked is never assumed, but proved for every frame.

// minGap is how far apart spans must be for the bytes between them to be compressed:
// a block of fewer costs more than it saves.
const minGap = 64

// appendPieces appends the regions of a chunk, those of more than maxBlock bytes cut
// behind the last span that fits. Their pos is not set.
func appendPieces(pieces []place, spans []Span) []place {
	for _, s := range spans {
		if last := len(pieces) - 1; last >= 0 {
			p := &pieces[last]
			gap := int(s.Off) - (p.off + p.n)
			if n := s.end() - p.off; gap < minGap && n <= maxBlock {
				p.n = n
				continue
			}
		}
		pieces = append(pieces, place{off: int(s.Off), n: int(s.Len)})
	}
	return pieces
}

// encodePatch encodes a chunk as a patchable payload into e.patched, and the
// positions of its spans there into e.pos. e.pieces are those of the chunk.
func (e *Encoder) encodePatch(id ID, masked []byte, spans []Span) error {
	for attempt := range e.attempts {
		e.fill(id, attempt, masked)
		if err := e.encodeAround(len(masked)); err != nil {
			return err
		}
		if !e.placePieces() {
			continue
		}
		for _, p := range e.pieces {
			copy(e.patched[p.pos:p.pos+p.n], masked[p.off:])
		}
		if e.prove(masked) == nil {
			e.placeSpans(spans)
			return nil
		}
	}
	e.encodeSplit(masked)
	if err := e.prove(masked); err != nil {
		return fmt.Errorf("split frame: %w", err)
	}
	e.placeSpans(spans)
	return nil
}

// prove proves that e.patched decodes to masked and that its pieces are raw.
func (e *Encoder) prove(masked []byte) error {
	if err := e.compare(e.patched, masked); err != nil {
		return err
	}
	return e.dec.proveRaw(e.patched, masked, e.pieces)
}

// fill puts the chunk into e.input, with filler in its regions. The filler follows
// from the chunk's ID and the attempt, so that encoding is deterministic.
func (e *Encoder) fill(id ID, attempt int, masked []byte) {
	e.input = append(e.input[:0], masked...)
	seed := [32]byte(id)
	seed[0] ^= byte(attempt)
	e.filler.Seed(seed)
	for _, p := range e.pieces {
		e.filler.Read(e.input[p.off : p.off+p.n]) // never fails
	}
}

// sink collects what is written to it.
type sink struct{ b []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}

// encodeAround compresses e.input into e.stream with each piece in a block of its
// own. It sets pos of the pieces to where their blocks begin.
func (e *Encoder) encodeAround(size int) error {
	e.stream.b = e.stream.b[:0]
	e.one.ResetContentSize(&e.stream, int64(size))
	at := 0
	for i := range e.pieces {
		p := &e.pieces[i]
		e.one.Write(e.input[at:p.off]) // errors of the encoder stay
		if err := e.one.Flush(); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
		at = p.off + p.n
		p.pos = len(e.stream.b)
		e.one.Write(e.input[p.off:at])
		if at == size {
			break // Close makes it the last block
		}
		if err := e.one.Flush(); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	}
	e.one.Write(e.input[at:size])
	if err := e.one.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return nil
}

// placePieces makes e.patched of e.stream, with our header: the library's tells no
// content size below 256 and a window of its own choice. It looks at every block, and
// moves pos of the pieces to where their bytes are in e.patched. It reports false
// if one is not in a raw block alone.
func (e *Encoder) placePieces() bool {
	var h zstd.Header
	if h.Decode(e.stream.b) != nil || h.HasCheckSum || h.DictionaryID != 0 {
		return false
	}
	body := e.stream.b[h.HeaderSize:]
	e.patched = appendZstdHeader(e.patched[:0], len(e.input))
	start := len(e.patched)
	e.patched = append(e.patched, body...)

	pieces := e.pieces
	for at := 0; ; {
		b, ok := parseBlock(body[at:])
		if !ok {
			return false
		}
		if len(pieces) > 0 {
			// The header is not written before the first block is.
			if p := &pieces[0]; max(p.pos-h.HeaderSize, 0) == at {
				if b.kind != blockRaw || b.size != p.n {
					return false
				}
				p.pos = start + at + blockHeaderLen
				pieces = pieces[1:]
			}
		}
		at += blockHeaderLen + b.size
		if b.last {
			return len(pieces) == 0 && at == len(body)
		}
	}
}

// encodeSplit encodes e.input into e.patched as several zstd frames: one of raw
// blocks for each piece, and one for what lies between two. Nothing can refer to a
// piece from another frame, so this always works. It costs some 10 bytes a frame and
// the matches between them.
func (e *Encoder) encodeSplit(masked []byte) {
	e.patched = e.patched[:0]
	at := 0
	for i := range e.pieces {
		p := &e.pieces[i]
		if at < p.off {
			e.patched = e.one.EncodeAll(masked[at:p.off], e.patched)
		}
		at = p.off + p.n
		p.pos = len(e.patched) + zstdHeaderLen(p.n) + blockHeaderLen
		e.patched = AppendRaw(e.patched, masked[p.off:at])
	}
	if at < len(masked) {
		e.patched = e.one.EncodeAll(masked[at:], e.patched)
	}
}

// placeSpans sets e.pos from where the pieces are in e.patched.
func (e *Encoder) placeSpans(spans []Span) {
	e.pos = e.pos[:0]
	pieces := e.pieces
	for _, s := range spans {
		for int(s.Off) >= pieces[0].off+pieces[0].n {
			pieces = pieces[1:]
		}
		e.pos = append(e.pos, uint32(pieces[0].pos+int(s.Off)-pieces[0].off))
	}
}
