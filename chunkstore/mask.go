package chunkstore

import (
	"bytes"

	"github.com/dedupd/dedupd/packfile"
)

// A masker finds the places in file contents that differ between rebuilds of equal
// code: the hashes of store paths, <storeDir>/<32 nix32 characters>-, and the
// descriptors of GNU build-id notes. Both hold 20 bytes of information.
type masker struct {
	prefix []byte // the store directory and a slash
}

// buildIDNote is the fixed part of an ELF note with a 20-byte build-id: length of the
// name, length of the descriptor, type NT_GNU_BUILD_ID, name (gABI "Note Section").
var buildIDNote = []byte("\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00")

// noteTail is the part of buildIDNote that is searched for: it is rare, and zero bytes
// are not. noteHead bytes stand before it.
var noteTail = buildIDNote[noteHead:]

const noteHead = 12

// A match is a place to be masked.
type match struct {
	start, end int // of what the pattern takes, in the searched bytes
	off, len   int // of what is masked
}

func newMasker(storeDir string) *masker {
	return &masker{prefix: []byte(storeDir + "/")}
}

// maxMatch is the length of the longest match. A match that starts that far before the
// end of the bytes at hand is complete.
func (m *masker) maxMatch() int {
	return max(len(m.prefix)+packfile.SpanHash+1, len(buildIDNote)+packfile.SpanBuildID)
}

// finder yields the matches in b, leftmost first and never overlapping.
type finder struct {
	m          *masker
	b          []byte
	pos        int
	path, note int // next candidates at or after pos, len(b) for none, -1 for not searched
}

func (m *masker) find(b []byte) finder { return finder{m: m, b: b, path: -1, note: -1} }

func (f *finder) next() (match, bool) {
	if f.path < f.pos {
		f.path = f.nextPath()
	}
	if f.note < f.pos {
		f.note = f.nextNote()
	}
	if f.path == len(f.b) && f.note == len(f.b) {
		return match{}, false
	}
	var mt match
	if f.path < f.note {
		at := f.path + len(f.m.prefix)
		mt = match{f.path, at + packfile.SpanHash + 1, at, packfile.SpanHash}
	} else {
		at := f.note + len(buildIDNote)
		mt = match{f.note, at + packfile.SpanBuildID, at, packfile.SpanBuildID}
	}
	f.pos = mt.end
	return mt, true
}

// nextPath returns where the next whole store path hash with its prefix starts.
func (f *finder) nextPath() int {
	for from := f.pos; ; {
		i := bytes.Index(f.b[from:], f.m.prefix)
		if i < 0 {
			return len(f.b)
		}
		i += from
		h := i + len(f.m.prefix)
		if h+packfile.SpanHash < len(f.b) && f.b[h+packfile.SpanHash] == '-' && isNix32(f.b[h:h+packfile.SpanHash]) {
			return i
		}
		from = i + 1
	}
}

// nextNote returns where the next build-id note with a whole descriptor starts.
func (f *finder) nextNote() int {
	for from := f.pos; ; {
		i := bytes.Index(f.b[from:], noteTail)
		if i < 0 {
			return len(f.b)
		}
		i += from
		start := i - noteHead
		if start >= f.pos && i+len(noteTail)+packfile.SpanBuildID <= len(f.b) && bytes.Equal(f.b[start:i], buildIDNote[:noteHead]) {
			return start
		}
		from = i + 1
	}
}

const nix32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// nix32Value maps a character to its five bits, 0xff if it has none.
var nix32Value = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(nix32Alphabet) {
		t[nix32Alphabet[i]] = byte(i)
	}
	return t
}()

func isNix32(b []byte) bool {
	bad := byte(0)
	for _, c := range b {
		bad |= nix32Value[c]
	}
	return bad < 32
}

// value is what stood in a span: 20 bytes, which are the 160 bits of a store path hash
// or a build-id.
type value [20]byte

// valueOf returns what the bytes of a span hold. The 32 characters of a store path
// hash and its 160 bits correspond one to one.
func valueOf(span []byte) (v value) {
	if len(span) == packfile.SpanBuildID {
		copy(v[:], span)
		return v
	}
	// Eight characters are five bytes. Character k holds the bits from 5·(31-k).
	for g := range 4 {
		var bits uint64
		for _, c := range span[8*g : 8*g+8] {
			bits = bits<<5 | uint64(nix32Value[c])
		}
		at := 20 - 5*(g+1)
		for i := range 5 {
			v[at+i] = byte(bits >> (8 * i))
		}
	}
	return v
}

// appendSpan appends the bytes of a span of n bytes that holds v.
func (v *value) appendSpan(b []byte, n int) []byte {
	if n == packfile.SpanBuildID {
		return append(b, v[:]...)
	}
	for g := range 4 {
		at := 20 - 5*(g+1)
		var bits uint64
		for i := range 5 {
			bits |= uint64(v[at+i]) << (8 * i)
		}
		for k := 35; k >= 0; k -= 5 {
			b = append(b, nix32Alphabet[bits>>k&31])
		}
	}
	return b
}
