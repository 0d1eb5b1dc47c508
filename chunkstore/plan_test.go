package chunkstore

import (
	"testing"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// TestLayout checks that a layout changes with everything that changes what is served,
// and with nothing else. The first is pinned: URLs outlive versions of dedupd.
func TestLayout(t *testing.T) {
	patch := index.Location{Pack: 1, Offset: 48, Prefix: 3, Payload: 500, Kind: uint8(packfile.KindPatch), CRC: 7, Chunks: 1, Len: 2000}
	decode := patch
	decode.Kind = uint8(packfile.KindDecode)
	pieces := func(locs ...index.Location) *plan {
		p := &plan{}
		for _, l := range locs {
			p.pieces = append(p.pieces, planPiece{loc: l, len: int64(max(l.Len, 100))})
		}
		return p
	}
	change := func(l index.Location, f func(*index.Location)) index.Location {
		f(&l)
		return l
	}
	literal := index.Location{}
	const want = "408b630dyyb3wz3a"
	if got := pieces(patch, decode, literal).makeLayout(); got != want {
		t.Errorf("layout is %s, want %s", got, want)
	}
	seen := map[string]string{}
	for name, p := range map[string]*plan{
		"nothing":         pieces(),
		"patch":           pieces(patch),
		"decode":          pieces(decode),
		"literal":         pieces(literal),
		"two":             pieces(patch, decode),
		"the other order": pieces(decode, patch),
		"another frame":   pieces(change(patch, func(l *index.Location) { l.CRC++ })),
		"another size":    pieces(change(patch, func(l *index.Location) { l.Payload++ })),
		"another length":  pieces(change(decode, func(l *index.Location) { l.Len++ })),
	} {
		layout := p.makeLayout()
		if len(layout) != layoutSize || !isNix32([]byte(layout)) {
			t.Errorf("%s: layout is %q", name, layout)
		}
		if other, ok := seen[layout]; ok {
			t.Errorf("%s and %s have the same layout %s", name, other, layout)
		}
		seen[layout] = name
	}
	moved := pieces(change(patch, func(l *index.Location) { l.Pack, l.Offset = 2, 99 }))
	if got, want := moved.makeLayout(), pieces(patch).makeLayout(); got != want {
		t.Errorf("a frame that moved to another pack: %s, was %s", got, want)
	}
	// A masked chunk is served the same from whichever frame it is decoded.
	again := pieces(change(decode, func(l *index.Location) { l.CRC, l.Payload, l.Index, l.Chunks = 1, 2, 3, 4 }))
	if got, want := again.makeLayout(), pieces(decode).makeLayout(); got != want {
		t.Errorf("a chunk from another frame: %s, was %s", got, want)
	}
}
