package packfile

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestEncode encodes every content with every layout in many sizes, and looks at
// what clients get with two decoders.
func TestEncode(t *testing.T) {
	e, d := newTestEncoder(t), newTestDecoder(t)
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var allServed, allPlain []byte
	kinds := map[Kind]int{}
	sizes := []int{1, 20, 32, 33, 100, 255, 256, 1000, 1024, 4000, 65791, 65792, 131072, 131073, 200000, MaxChunk}
	for i, n := range sizes {
		for _, kind := range []string{"random", "zeros", "text", "binary", "drv"} {
			for _, layout := range []string{"none", "start", "end", "both ends", "whole", "adjacent", "dense", "sparse"} {
				if n > 200000 && kind != "text" && layout != "whole" { // time
					continue
				}
				seed := uint64(i)
				spans := testSpans(layout, n, seed)
				masked := maskChunk(testBytes(kind, n, seed), spans)
				f, err := e.Encode(ChunkID(masked, spans), masked, spans)
				if err != nil {
					t.Fatalf("%s, %s, %d: %v", kind, layout, n, err)
				}
				kinds[f.Kind]++
				if len(spans) == 0 && (f.Kind != KindPatch || f.PrefixLen != 1) {
					t.Errorf("%s, %d: no spans, but %v with a prefix of %d", kind, n, f.Kind, f.PrefixLen)
				}
				values := spanValues(spans, seed)
				served := serve(t, d, f, values)
				checkPayload(t, served, n)
				plain := slices.Clone(masked)
				if err := Unmask(plain, spans, values); err != nil {
					t.Fatal(err)
				}
				got, err := z.DecodeAll(served, nil)
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%s, %s, %d: served frame is wrong: %v", kind, layout, n, err)
				}
				allServed, allPlain = append(allServed, served...), append(allPlain, plain...)
			}
		}
	}
	if kinds[KindPatch] == 0 || kinds[KindDecode] == 0 {
		t.Errorf("kinds %v, want some of each", kinds)
	}
	if !bytes.Equal(zstdCLI(t, allServed), allPlain) {
		t.Error("zstd decodes the frames to other bytes")
	}
}

// TestEncodePatch makes patchable frames of what Encode would rather store as kind
// decode, too, in one zstd frame and in several.
func TestEncodePatch(t *testing.T) {
	d := newTestDecoder(t)
	whole, split := newTestEncoder(t), newTestEncoder(t)
	split.attempts = 0
	var allServed, allPlain []byte
	for _, n := range []int{32, 100, 256, 1000, 20000, 65792, 150000} {
		for _, kind := range []string{"random", "zeros", "text", "binary", "drv"} {
			for _, layout := range []string{"start", "end", "both ends", "whole", "adjacent", "dense", "sparse"} {
				spans := testSpans(layout, n, 1)
				if len(spans) == 0 {
					continue
				}
				masked := maskChunk(testBytes(kind, n, 1), spans)
				plain, values := slices.Clone(masked), spanValues(spans, 1)
				if err := Unmask(plain, spans, values); err != nil {
					t.Fatal(err)
				}
				id := ChunkID(masked, spans)
				for name, e := range map[string]*Encoder{"whole": whole, "split": split} {
					e.chunks = []Chunk{{id, uint32(n)}}
					e.pieces = appendPieces(nil, spans)
					if err := e.encodePatch(id, masked, spans); err != nil {
						t.Fatalf("%s, %s, %d, %s: %v", kind, layout, n, name, err)
					}
					f := e.frame(KindPatch, appendPrefixChunk(nil, spans, e.pos), e.patched)
					served := serve(t, d, f, values)
					checkPayload(t, served, n)
					if got, err := d.decode(nil, served, n); err != nil || !bytes.Equal(got, plain) {
						t.Fatalf("%s, %s, %d, %s: served frame is wrong: %v", kind, layout, n, name, err)
					}
					allServed, allPlain = append(allServed, served...), append(allPlain, plain...)
				}
			}
		}
	}
	if !bytes.Equal(zstdCLI(t, allServed), allPlain) {
		t.Error("zstd decodes the frames to other bytes")
	}
}

// TestEncodeLongRegion has a region of several raw blocks in a chunk that does not
// compress, so that it is worth patching.
func TestEncodeLongRegion(t *testing.T) {
	var spans []Span
	for at := 500 << 10; at < 660<<10; at += 33 + at%31 {
		spans = append(spans, Span{uint32(at), SpanHash})
	}
	masked := maskChunk(testBytes("random", MaxChunk, 3), spans)
	e, d := newTestEncoder(t), newTestDecoder(t)
	f, err := e.Encode(ChunkID(masked, spans), masked, spans)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.pieces) != 2 || f.Kind != KindPatch {
		t.Errorf("%d pieces, kind %v, want 2 in kind patch", len(e.pieces), f.Kind)
	}
	values := spanValues(spans, 1)
	served := serve(t, d, f, values)
	if frames := checkPayload(t, served, len(masked)); frames != 1 {
		t.Errorf("%d zstd frames, want 1", frames)
	}
	if err := Unmask(masked, spans, values); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(zstdCLI(t, served), masked) {
		t.Error("zstd decodes the frame to other bytes")
	}
}

func TestAppendPieces(t *testing.T) {
	full := make([]Span, maxBlock/SpanHash+2)
	for i := range full {
		full[i] = Span{uint32(i * SpanHash), SpanHash}
	}
	shifted := []Span{{1, SpanBuildID}} // so that a block's end is inside a span
	for at := 1 + SpanBuildID; len(shifted) <= maxBlock/SpanHash; at += SpanHash {
		shifted = append(shifted, Span{uint32(at), SpanHash})
	}
	lastEnd := 1 + SpanBuildID + (maxBlock-SpanBuildID)/SpanHash*SpanHash
	for _, tt := range []struct {
		name  string
		spans []Span
		want  []place // off, pos, n
	}{
		{"one", []Span{{7, 32}}, []place{{7, 0, 32}}},
		{"adjacent", []Span{{7, 32}, {39, 20}}, []place{{7, 0, 52}}},
		{"close", []Span{{0, 32}, {95, 32}}, []place{{0, 0, 127}}},
		{"far enough", []Span{{0, 32}, {96, 32}}, []place{{0, 0, 32}, {96, 0, 32}}},
		{"more than a block", full, []place{{0, 0, maxBlock}, {maxBlock, 0, 64}}},
		{"not cut in a span", shifted, []place{{1, 0, lastEnd - 1}, {lastEnd, 0, SpanHash}}},
	} {
		if got := appendPieces(nil, tt.spans); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestEncodeKind(t *testing.T) {
	e := newTestEncoder(t)
	drvSpans := func(b []byte) (spans []Span) {
		for at := 0; ; at += SpanHash {
			i := bytes.Index(b[at:], make([]byte, SpanHash))
			if i < 0 {
				return spans
			}
			at += i
			spans = append(spans, Span{uint32(at), SpanHash})
		}
	}
	drv := testBytes("drv", 300<<10, 1)
	drv = drv[:bytes.LastIndexByte(drv, ')')]
	for _, tt := range []struct {
		name   string
		masked []byte
		spans  []Span
		want   Kind
	}{
		{"derivation", drv, drvSpans(drv), KindDecode},
		{"zeros", make([]byte, 1<<20), []Span{{1000, SpanHash}}, KindDecode},
		{"only spans", make([]byte, 52), []Span{{0, SpanHash}, {32, SpanBuildID}}, KindDecode},
		{"text", nil, testSpans("sparse", 300<<10, 1), KindPatch},
		{"random", maskChunk(testBytes("random", 600, 1), []Span{{4, 32}}), []Span{{4, 32}}, KindPatch},
	} {
		if tt.masked == nil {
			tt.masked = maskChunk(testBytes("text", 300<<10, 1), tt.spans)
		}
		f, err := e.Encode(ChunkID(tt.masked, tt.spans), tt.masked, tt.spans)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if f.Kind != tt.want {
			t.Errorf("%s: kind %v, want %v", tt.name, f.Kind, tt.want)
		}
	}
}

// TestEncodeLooksLikeFiller puts the filler of the first attempts into the chunk, so
// that it matches: attempts fail, the last resort is used, and the frame is right.
func TestEncodeLooksLikeFiller(t *testing.T) {
	e, d := newTestEncoder(t), newTestDecoder(t)
	spans := []Span{{5000, SpanHash}, {9000, SpanBuildID}, {30000, SpanHash}, {30032, SpanHash}}
	base := maskChunk(testBytes("random", 40<<10, 7), spans)
	id := ID{1, 2, 3} // believed, and so the filler is known
	for planted := range e.attempts + 1 {
		masked := slices.Clone(base)
		e.pieces = appendPieces(nil, spans)
		for attempt := range planted {
			e.fill(id, attempt, masked)
			for i, p := range e.pieces {
				copy(masked[12000+attempt*1000+i*100:], e.input[p.off:p.off+p.n]) // behind two regions
				copy(masked[100+attempt*1000+i*100:], e.input[p.off:p.off+p.n])   // before all
			}
		}
		f, err := e.Encode(id, masked, spans)
		if err != nil {
			t.Fatal(err)
		}
		wantFrames := 1
		if planted == e.attempts {
			wantFrames = 7 // four pieces of chunk, three regions
		}
		v, err := ParseFrame(f.Kind, 1, f.Stored, f.PrefixLen, f.CRC)
		if err != nil {
			t.Fatal(err)
		}
		if frames := checkPayload(t, v.Payload(), len(masked)); frames != wantFrames {
			t.Errorf("%d attempts sabotaged: %d zstd frames, want %d", planted, frames, wantFrames)
		}
		if err := d.Verify(&v, []Chunk{{ChunkID(masked, spans), uint32(len(masked))}}); err != nil {
			t.Errorf("%d attempts sabotaged: %v", planted, err)
		}
	}
}

func TestEncodeRejects(t *testing.T) {
	e := newTestEncoder(t)
	for name, c := range map[string]ManyChunk{
		"empty":        {},
		"too large":    {Masked: make([]byte, MaxChunk+1)},
		"not masked":   {Masked: bytes.Repeat([]byte{1}, 100), Spans: []Span{{0, 32}}},
		"out of order": {Masked: make([]byte, 100), Spans: []Span{{40, 32}, {0, 32}}},
	} {
		if _, err := e.Encode(c.ID, c.Masked, c.Spans); err == nil {
			t.Errorf("Encode accepts a chunk that is %s", name)
		}
		if _, err := e.EncodeMany([]ManyChunk{c}); err == nil {
			t.Errorf("EncodeMany accepts a chunk that is %s", name)
		}
	}
	big := ManyChunk{Masked: make([]byte, MaxChunk)}
	if _, err := e.EncodeMany(slices.Repeat([]ManyChunk{big}, MaxFrame/MaxChunk)); err != nil {
		t.Errorf("largest frame: %v", err)
	}
	if _, err := e.EncodeMany(slices.Repeat([]ManyChunk{big}, MaxFrame/MaxChunk+1)); err == nil {
		t.Error("EncodeMany accepts more than MaxFrame")
	}
	if _, err := e.EncodeMany(nil); err == nil {
		t.Error("EncodeMany accepts no chunks")
	}
	if _, err := NewEncoder(Level(9)); err == nil {
		t.Error("NewEncoder accepts an unknown level")
	}
}

// manyChunks returns chunks that resemble each other.
func manyChunks(n int) (chunks []ManyChunk) {
	for i := range n {
		spans := testSpans([]string{"none", "sparse", "adjacent"}[i%3], 70000+i, uint64(i))
		masked := maskChunk(testBytes("text", 70000+i, 5), spans)
		chunks = append(chunks, ManyChunk{ChunkID(masked, spans), masked, spans})
	}
	return chunks
}

func TestEncodeMany(t *testing.T) {
	chunks := manyChunks(20)
	for level := LevelDefault; level <= LevelBest; level++ {
		e, err := NewEncoder(level)
		if err != nil {
			t.Fatal(err)
		}
		f, err := e.EncodeMany(chunks)
		if err != nil {
			t.Fatal(err)
		}
		v, err := ParseFrame(f.Kind, len(f.Chunks), f.Stored, f.PrefixLen, f.CRC)
		if err != nil {
			t.Fatal(err)
		}
		if err := newTestDecoder(t).Verify(&v, f.Chunks); err != nil {
			t.Fatal(err)
		}
		total, alone := 0, 0
		for i, c := range chunks {
			if !slices.Equal(v.Spans(i), c.Spans) {
				t.Errorf("chunk %d: spans %v, want %v", i, v.Spans(i), c.Spans)
			}
			total += len(c.Masked)
			one, err := e.Encode(c.ID, c.Masked, c.Spans)
			if err != nil {
				t.Fatal(err)
			}
			alone += len(one.Stored)
		}
		if total < 1<<20 || len(f.Stored)*5 > alone {
			t.Errorf("level %d: %d bytes as one frame, %d apart: the window is too small", level, len(f.Stored), alone)
		}
	}
}

// TestEncodeIsDeterministic encodes in another order, with an encoder that did
// other things before, and in another process.
func TestEncodeIsDeterministic(t *testing.T) {
	encodeAll := func(e *Encoder, seeds []uint64) string {
		sums := map[uint64]uint32{}
		for _, seed := range seeds {
			spans := testSpans([]string{"sparse", "none", "dense"}[seed%3], 150000, seed)
			masked := maskChunk(testBytes("text", 150000, seed), spans)
			f, err := e.Encode(ChunkID(masked, spans), masked, spans)
			if err != nil {
				t.Fatal(err)
			}
			sums[seed] = f.CRC
		}
		return fmt.Sprint(sums)
	}
	const env = "DEDUPD_TEST_DETERMINISM"
	want := encodeAll(newTestEncoder(t), []uint64{0, 1, 2, 3, 4, 5})
	if os.Getenv(env) != "" {
		fmt.Println(env, want)
		return
	}
	if got := encodeAll(newTestEncoder(t), []uint64{5, 3, 1, 1, 4, 2, 0}); got != want {
		t.Errorf("in another order: %s, want %s", got, want)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestEncodeIsDeterministic$", "-test.count=1")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("in another process: %v\n%s, want %s", err, out, want)
	}
}

// FuzzEncode encodes any bytes with any spans, and reads them back.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("hello"), []byte(nil))
	f.Add(testBytes("text", 5000, 1), []byte{0, 1, 2, 40, 3, 128, 200, 200, 200})
	f.Add(testBytes("zeros", 3000, 1), []byte{4, 4, 4, 4, 4, 4, 4})
	f.Add(testBytes("random", 700, 1), []byte{255, 129})
	e, d := newTestEncoder(f), newTestDecoder(f)
	z, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, masked, gaps []byte) {
		if len(masked) == 0 || len(masked) > MaxChunk {
			return
		}
		var spans []Span
		end := 0
		for _, g := range gaps {
			s := Span{Off: uint32(end + int(g>>1)), Len: SpanHash}
			if g&1 == 1 {
				s.Len = SpanBuildID
			}
			if end = s.end(); end > len(masked) {
				break
			}
			spans = append(spans, s)
		}
		plain := maskChunk(slices.Clone(masked), spans)
		frame, err := e.Encode(ChunkID(plain, spans), plain, spans)
		if err != nil {
			t.Fatal(err)
		}
		values := spanValues(spans, uint64(len(masked)))
		served := serve(t, d, frame, values)
		if err := Unmask(plain, spans, values); err != nil {
			t.Fatal(err)
		}
		got, err := z.DecodeAll(served, nil)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("served %s, want %s: %v", hex.EncodeToString(got), hex.EncodeToString(plain), err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	e := newTestEncoder(b)
	for _, layout := range []string{"none", "sparse", "dense"} {
		b.Run(layout, func(b *testing.B) {
			spans := testSpans(layout, 256<<10, 1)
			masked := maskChunk(testBytes("binary", 256<<10, 1), spans)
			id := ChunkID(masked, spans)
			b.SetBytes(int64(len(masked)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Encode(id, masked, spans); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
