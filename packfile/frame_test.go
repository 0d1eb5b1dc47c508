package packfile

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var updateFrames = flag.Bool("update-frames", false, "write the golden frames anew, and print what to pin")

// A goldenFrame is a frame that was stored once and must be readable for ever. The
// chunk IDs pin what it decodes to. (What the encoder makes is not pinned.)
type goldenFrame struct {
	file      string
	kind      Kind
	prefixLen int
	crc       uint32
	chunks    string // IDs, abridged, and lengths
	zstd      int    // frames in the payload, for kind patch
	input     func() []ManyChunk
	encode    func(*Encoder, []ManyChunk) (Frame, error)
}

func encodeFirst(e *Encoder, c []ManyChunk) (Frame, error) {
	return e.Encode(c[0].ID, c[0].Masked, c[0].Spans)
}

func encodeFirstSplit(e *Encoder, c []ManyChunk) (Frame, error) {
	e.attempts = 0
	return encodeFirst(e, c)
}

// oneChunk returns a function that returns a made-up chunk.
func oneChunk(content, layout string, n int) func() []ManyChunk {
	return func() []ManyChunk {
		spans := testSpans(layout, n, 9)
		masked := maskChunk(testBytes(content, n, 9), spans)
		return []ManyChunk{{ChunkID(masked, spans), masked, spans}}
	}
}

var goldenFrames = []goldenFrame{
	{"plain", KindPatch, 1, 0x503d062f, "e75d5f50:3000 ", 1, oneChunk("text", "none", 3000), encodeFirst},
	{"patch", KindPatch, 14, 0xa3435ce7, "12f3b0c4:9000 ", 1, oneChunk("text", "adjacent", 9000), encodeFirst},
	{"split", KindPatch, 14, 0xde0add92, "12f3b0c4:9000 ", 5, oneChunk("text", "adjacent", 9000), encodeFirstSplit},
	{"decode", KindDecode, 57, 0xcc357750, "a486fde6:3000 ", 0, oneChunk("text", "dense", 3000), encodeFirst},
	{"many", KindDecode, 56, 0x3729ee2c, "2b58f43e:1000 265c488d:1100 42caa998:1200 1fd4e705:1300 46bfff6e:1400 ", 0, func() (chunks []ManyChunk) {
		for i, layout := range []string{"none", "sparse", "whole", "adjacent", "none"} {
			chunks = append(chunks, oneChunk("text", layout, 1000+100*i)()...)
		}
		return chunks
	}, (*Encoder).EncodeMany},
}

func chunksString(chunks []Chunk) (s string) {
	for _, c := range chunks {
		s += fmt.Sprintf("%v:%d ", c.ID.String()[:8], c.Len)
	}
	return s
}

// chunksOf returns what the directory would say of the input.
func chunksOf(input []ManyChunk) (chunks []Chunk) {
	for _, c := range input {
		chunks = append(chunks, Chunk{c.ID, uint32(len(c.Masked))})
	}
	return chunks
}

func (g *goldenFrame) path() string { return filepath.Join("testdata", "frames", g.file) }

// load returns the stored bytes of a golden frame.
func (g *goldenFrame) load(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(g.path())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (g *goldenFrame) update(t *testing.T) {
	f, err := g.encode(newTestEncoder(t), g.input())
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParseFrame(f.Kind, len(f.Chunks), f.Stored, f.PrefixLen, f.CRC)
	if err != nil {
		t.Fatal(err)
	}
	frames := 0
	if f.Kind == KindPatch {
		frames = checkPayload(t, v.Payload(), int(f.Chunks[0].Len))
	}
	t.Logf("%q, %v, %d, %#08x, %q, %d", g.file, f.Kind, f.PrefixLen, f.CRC, chunksString(f.Chunks), frames)
	if err := os.WriteFile(g.path(), f.Stored, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestGoldenFrames(t *testing.T) {
	d := newTestDecoder(t)
	for _, g := range goldenFrames {
		if *updateFrames {
			g.update(t)
			continue
		}
		stored, input := g.load(t), g.input()
		chunks := chunksOf(input)
		if got := chunksString(chunks); got != g.chunks {
			t.Errorf("%s: chunks %s, want %s", g.file, got, g.chunks)
		}
		v, err := ParseFrame(g.kind, len(chunks), stored, g.prefixLen, g.crc)
		if err != nil {
			t.Errorf("%s: %v", g.file, err)
			continue
		}
		if err := d.Verify(&v, chunks); err != nil {
			t.Errorf("%s: %v", g.file, err)
		}
		for i, c := range input {
			if !slices.Equal(v.Spans(i), c.Spans) {
				t.Errorf("%s: chunk %d has spans %v, want %v", g.file, i, v.Spans(i), c.Spans)
			}
		}
		if g.kind == KindPatch {
			if got := checkPayload(t, v.Payload(), int(chunks[0].Len)); got != g.zstd {
				t.Errorf("%s: %d zstd frames, want %d", g.file, got, g.zstd)
			}
		}
	}
}

// TestFrameTruncated cuts every golden frame at every length, with the CRC that it
// had and with the one that the rest has.
func TestFrameTruncated(t *testing.T) {
	d := newTestDecoder(t)
	for _, g := range goldenFrames {
		stored, chunks := g.load(t), chunksOf(g.input())
		for n := range stored {
			cut := stored[:n]
			if _, err := ParseFrame(g.kind, len(chunks), cut, g.prefixLen, g.crc); !errors.Is(err, ErrCRC) || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: cut to %d bytes: %v, want ErrCRC", g.file, n, err)
			}
			v, err := ParseFrame(g.kind, len(chunks), cut, g.prefixLen, checksum(cut))
			if err == nil {
				err = d.Verify(&v, chunks)
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: cut to %d bytes, CRC right: %v, want ErrCorrupt", g.file, n, err)
			}
		}
	}
}

// TestFrameFlipped flips bits of every golden frame: all of the first hundred bytes, and
// one of each byte behind. The CRC tells; and if it is made right, what still verifies must give the very same chunks (some bits mean
// nothing to a zstd decoder).
func TestFrameFlipped(t *testing.T) {
	d := newTestDecoder(t)
	for _, g := range goldenFrames {
		stored, input := g.load(t), g.input()
		chunks := chunksOf(input)
		for bit := range len(stored) * 8 {
			if at := bit / 8; at >= 100 && bit%8 != at%8 {
				continue
			}
			bad := slices.Clone(stored)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := ParseFrame(g.kind, len(chunks), bad, g.prefixLen, g.crc); !errors.Is(err, ErrCRC) {
				t.Fatalf("%s: bit %d flipped: %v, want ErrCRC", g.file, bit, err)
			}
			v, err := ParseFrame(g.kind, len(chunks), bad, g.prefixLen, checksum(bad))
			if err == nil {
				err = d.Verify(&v, chunks)
			}
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s: bit %d flipped: %v, want ErrCorrupt", g.file, bit, err)
				}
				continue
			}
			if g.kind == KindPatch {
				checkServed(t, d, &v, input[0])
			}
		}
	}
}

// checkServed patches a verified frame and compares what that decodes to.
func checkServed(t *testing.T, d *Decoder, v *View, c ManyChunk) {
	t.Helper()
	values := spanValues(c.Spans, 1)
	served := slices.Clone(v.Payload())
	if err := v.Patch(served, values); err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(c.Masked)
	if err := Unmask(want, c.Spans, values); err != nil {
		t.Fatal(err)
	}
	if got, err := d.decode(nil, served, len(want)); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("verified, but serves other bytes: %v", err)
	}
}

func TestParseFrameRejects(t *testing.T) {
	payload := AppendRaw(nil, make([]byte, 100))
	at := RawLen(100) - 100 // of the first plain byte
	for _, tt := range []struct {
		name   string
		kind   Kind
		chunks int
		prefix []byte
		ok     bool // parses
	}{
		{"no spans", KindPatch, 1, []byte{0}, true},
		{"a span", KindPatch, 1, []byte{1, 8 << 1, byte(at + 8)}, true},
		{"the last span", KindPatch, 1, []byte{1, 80<<1&0x7f | 0x80 | 1, 80 << 1 >> 7, byte(at + 80)}, true},
		{"kind 0", 0, 1, []byte{0}, false},
		{"kind 3", 3, 1, []byte{0}, false},
		{"no chunks", KindDecode, 0, []byte{}, false},
		{"negative chunks", KindDecode, -1, []byte{}, false},
		{"two patchable chunks", KindPatch, 2, []byte{0, 0}, false},
		{"two chunks", KindDecode, 2, []byte{0, 0}, true},
		{"too many chunks", KindDecode, 1 << 40, []byte{0, 0}, false},
		{"empty prefix", KindPatch, 1, nil, false},
		{"prefix too long", KindPatch, 1, []byte{0, 0}, false},
		{"more spans than bytes", KindDecode, 1, []byte{3, 0, 0}, false},
		{"huge number of spans", KindDecode, 1, []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0}, false},
		{"number too long", KindDecode, 1, bytes.Repeat([]byte{255}, 20), false},
		{"cut number", KindDecode, 1, []byte{1, 0x80}, false},
		{"span beyond any chunk", KindDecode, 1, []byte{1, 0xc2, 0xff, 0x7f}, false},
		{"position missing", KindPatch, 1, []byte{1, 8 << 1}, false},
		{"position beyond the payload", KindPatch, 1, []byte{1, 8 << 1, 100}, false},
		{"position far beyond", KindPatch, 1, []byte{1, 8 << 1, 255, 255, 255, 255, 15}, false},
	} {
		stored := append(slices.Clone(tt.prefix), payload...)
		_, err := ParseFrame(tt.kind, tt.chunks, stored, len(tt.prefix), checksum(stored))
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
	}
	for _, n := range []int{-1, len(payload) + 1} {
		if _, err := ParseFrame(KindPatch, 1, payload, n, checksum(payload)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("prefix of %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
}

// TestVerify shows frames whose parts are right, and whose whole is not.
func TestVerify(t *testing.T) {
	d := newTestDecoder(t)
	masked := maskChunk(testBytes("random", 300, 1), []Span{{10, 32}, {50, 32}})
	spans := []Span{{10, 32}, {50, 32}}
	chunk := Chunk{ChunkID(masked, spans), 300}
	raw := AppendRaw(nil, masked)
	at := uint32(len(raw) - 300)

	// A run, and spans that point into a frame that a decoder skips.
	rle := appendZstdHeader(nil, 64)
	rle = append(appendBlockHeader(rle, blockRLE, 64, true), 0)
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0}, make([]byte, 64)...)

	for _, tt := range []struct {
		name    string
		chunk   Chunk
		spans   []Span
		pos     []uint32
		payload []byte
		ok      bool
	}{
		{"right", chunk, spans, []uint32{at + 10, at + 50}, raw, true},
		{"position", chunk, spans, []uint32{at + 11, at + 50}, raw, false},
		{"positions of zeros elsewhere", Chunk{ChunkID(make([]byte, 100), spans[:1]), 100}, spans[:1], []uint32{9 + 40}, AppendRaw(nil, make([]byte, 100)), false},
		{"fewer spans", chunk, spans[:1], []uint32{at + 10}, raw, false},
		{"other span", chunk, []Span{{10, 32}, {50, 20}}, []uint32{at + 10, at + 50}, raw, false},
		{"span beyond the end", chunk, []Span{{10, 32}, {290, 32}}, []uint32{at + 10, at + 50}, raw, false},
		{"length", Chunk{chunk.ID, 299}, spans, []uint32{at + 10, at + 50}, raw, false},
		{"huge length", Chunk{chunk.ID, 1<<32 - 1}, spans, []uint32{at + 10, at + 50}, raw, false},
		{"not zstd", chunk, spans, []uint32{10, 50}, masked, false},
		{"garbage behind", chunk, spans, []uint32{at + 10, at + 50}, append(slices.Clone(raw), 1), false},
		{"frame behind", chunk, spans, []uint32{at + 10, at + 50}, append(slices.Clone(raw), raw...), false},
		{"bytes that are skipped", Chunk{ChunkID(make([]byte, 64), []Span{{0, 32}, {32, 32}}), 64}, []Span{{0, 32}, {32, 32}}, []uint32{8, 40}, append(skip, rle...), false},
	} {
		stored := appendPrefixChunk(nil, tt.spans, tt.pos)
		n := len(stored)
		stored = append(stored, tt.payload...)
		v, err := ParseFrame(KindPatch, 1, stored, n, checksum(stored))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		err = d.Verify(&v, []Chunk{tt.chunk})
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
	}
	v, err := ParseFrame(KindPatch, 1, append([]byte{0}, raw...), 1, checksum(append([]byte{0}, raw...)))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(&v, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no chunks: %v, want ErrCorrupt", err)
	}
}

// TestDecodeIsBounded decodes what is larger than it should be.
func TestDecodeIsBounded(t *testing.T) {
	e, d := newTestEncoder(t), newTestDecoder(t)
	if err := e.encodePlain(make([]byte, MaxChunk)); err != nil {
		t.Fatal(err)
	}
	bomb := slices.Repeat(e.plain, 100)
	v, err := ParseFrame(KindDecode, 1, append([]byte{0}, bomb...), 1, checksum(append([]byte{0}, bomb...)))
	if err != nil {
		t.Fatal(err)
	}
	for _, total := range []int{-1, 0, 1, 100, MaxChunk, MaxFrame, MaxFrame + 1} {
		out, err := d.Decode(nil, &v, total)
		if !errors.Is(err, ErrCorrupt) || cap(out) > 2*max(total, 1<<10) {
			t.Errorf("total %d: %v, capacity %d", total, err, cap(out))
		}
	}
}

func TestPatchRejects(t *testing.T) {
	g := goldenFrames[1]
	stored, spans := g.load(t), g.input()[0].Spans
	v, err := ParseFrame(g.kind, 1, stored, g.prefixLen, g.crc)
	if err != nil {
		t.Fatal(err)
	}
	dst := slices.Clone(v.Payload())
	if v.Patch(dst[1:], spanValues(spans, 1)) == nil {
		t.Error("a slice of the wrong length was patched")
	}
	if v.Patch(dst, func(int) []byte { return make([]byte, 33) }) == nil {
		t.Error("a value of the wrong length was accepted")
	}
	g = goldenFrames[3]
	if v, err = ParseFrame(g.kind, 1, g.load(t), g.prefixLen, g.crc); err != nil {
		t.Fatal(err)
	}
	if v.Patch(slices.Clone(v.Payload()), spanValues(v.Spans(0), 1)) == nil {
		t.Error("a frame of kind decode was patched")
	}
}

// TestViewReuse parses every frame into one View, without allocating.
func TestViewReuse(t *testing.T) {
	var v View
	for _, g := range append(slices.Clone(goldenFrames), goldenFrames...) {
		stored, input := g.load(t), g.input()
		parse := func() {
			if err := v.Parse(g.kind, len(input), stored, g.prefixLen, g.crc); err != nil {
				t.Fatal(err)
			}
		}
		parse()
		if v.Kind() != g.kind || v.Chunks() != len(input) {
			t.Errorf("%s: %v of %d chunks", g.file, v.Kind(), v.Chunks())
		}
		for i, c := range input {
			if !slices.Equal(v.Spans(i), c.Spans) {
				t.Errorf("%s: chunk %d has spans %v, want %v", g.file, i, v.Spans(i), c.Spans)
			}
		}
		if n := testing.AllocsPerRun(10, parse); n != 0 {
			t.Errorf("%s: %v allocations, want 0", g.file, n)
		}
	}
	g := goldenFrames[0]
	stored := g.load(t)
	if n := testing.AllocsPerRun(10, func() { ParseFrame(g.kind, 1, stored, g.prefixLen, g.crc) }); n != 0 {
		t.Errorf("frame without spans: %v allocations, want 0", n)
	}
}

func TestFrameInfo(t *testing.T) {
	e := newTestEncoder(t)
	f, err := e.Encode(ID{1}, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	info := f.Info()
	if _, err := e.Encode(ID{2}, []byte("world!"), nil); err != nil {
		t.Fatal(err)
	}
	if want := (Chunk{ID{1}, 5}); info.Chunks[0] != want || info.Prefix != 1 || info.Size() != int64(len(f.Stored)) {
		t.Errorf("info is %+v after the next call", info)
	}
}

// FuzzParseFrame reads any bytes as a frame. What parses must be in bounds; what
// verifies must be servable.
func FuzzParseFrame(f *testing.F) {
	for _, g := range goldenFrames {
		if b, err := os.ReadFile(g.path()); err == nil && len(b) < 4<<10 {
			f.Add(uint8(g.kind), len(g.input()), b, g.prefixLen)
		}
	}
	f.Add(uint8(1), 1, []byte{1, 2, 3, 4}, 3)
	d := newTestDecoder(f)
	f.Fuzz(func(t *testing.T, kind uint8, chunks int, stored []byte, prefixLen int) {
		v, err := ParseFrame(Kind(kind), chunks, stored, prefixLen, checksum(stored))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for i := range v.Chunks() {
			for _, s := range v.Spans(i) {
				if s.end() > MaxChunk {
					t.Fatalf("span %v", s)
				}
			}
		}
		if v.Kind() != KindPatch {
			return
		}
		values := spanValues(v.Spans(0), 1)
		if err := v.Patch(slices.Clone(v.Payload()), values); err != nil {
			t.Fatal(err)
		}
		// Declare the chunk to be what it decodes to.
		out, err := d.z.DecodeAll(v.Payload(), make([]byte, 0, 64<<10))
		if err != nil || checkChunk(out, v.Spans(0)) != nil {
			return
		}
		c := ManyChunk{ChunkID(out, v.Spans(0)), out, v.Spans(0)}
		if d.Verify(&v, chunksOf([]ManyChunk{c})) == nil {
			checkServed(t, d, &v, c)
		}
	})
}

func BenchmarkParsePatch(b *testing.B) {
	e := newTestEncoder(b)
	spans := testSpans("sparse", 256<<10, 1)
	masked := maskChunk(testBytes("binary", 256<<10, 1), spans)
	f, err := e.Encode(ChunkID(masked, spans), masked, spans)
	if err != nil {
		b.Fatal(err)
	}
	values := spanValues(spans, 1)
	var v View
	var dst []byte
	b.SetBytes(int64(len(f.Stored)))
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Parse(f.Kind, 1, f.Stored, f.PrefixLen, f.CRC); err != nil {
			b.Fatal(err)
		}
		dst = append(dst[:0], v.Payload()...)
		if err := v.Patch(dst, values); err != nil {
			b.Fatal(err)
		}
	}
}
