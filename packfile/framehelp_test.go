package packfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// testBytes returns n bytes of a kind of content, the same ones for ever.
func testBytes(kind string, n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		switch kind {
		case "random":
			b = append(b, byte(r.Uint32()))
		case "zeros":
			b = append(b, 0)
		case "text":
			b = append(b, "the of and store path lib share python return import nix self None def class"[r.IntN(60):][:3+r.IntN(9)]...)
			b = append(b, " \n/-"[r.IntN(4)])
		case "binary":
			b = append(b, 0x48, byte(0x80|r.IntN(32)), byte(r.IntN(4)), 0, byte(r.Uint32()), 0, 0, 0)
		case "drv":
			b = append(b, `("/nix/store/`...)
			b = append(b, make([]byte, 32)...)
			b = append(b, fmt.Sprintf(`-package-%d.drv",["out"]),`, r.IntN(300))...)
		default:
			panic(kind)
		}
	}
	return b[:n]
}

// testSpans returns the spans of a chunk of n bytes in a named layout.
func testSpans(layout string, n int, seed uint64) (spans []Span) {
	r := rand.New(rand.NewPCG(seed, 2))
	length := func() int {
		if r.IntN(4) == 0 {
			return SpanBuildID
		}
		return SpanHash
	}
	add := func(off, l int) int {
		if off+l <= n {
			spans = append(spans, Span{uint32(off), uint32(l)})
		}
		return off + l
	}
	switch layout {
	case "none":
	case "start":
		add(0, length())
	case "end":
		add(max(0, n-SpanHash), SpanHash)
	case "both ends":
		if at := add(0, length()); at+SpanBuildID <= n {
			add(n-SpanBuildID, SpanBuildID)
		}
	case "whole":
		for at := 0; at < n; {
			at = add(at, SpanHash)
		}
	case "adjacent":
		at := add(n/3, SpanHash)
		at = add(at, SpanBuildID)
		at = add(at+1, SpanHash)
		at = add(at+63, SpanHash)
		add(at+64, SpanBuildID)
	case "dense":
		for at := 0; at < n; {
			at = add(at+r.IntN(80), length())
		}
	case "sparse":
		for at := 0; at < n; {
			at = add(at+r.IntN(1+n/3), length())
		}
	default:
		panic(layout)
	}
	return spans
}

// maskChunk puts zeros into the spans of a chunk.
func maskChunk(b []byte, spans []Span) []byte {
	for _, s := range spans {
		clear(b[s.Off:s.end()])
	}
	return b
}

// spanValues returns true bytes for spans, as Unmask wants them.
func spanValues(spans []Span, seed uint64) func(int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	values := make([][]byte, len(spans))
	for j, s := range spans {
		for range s.Len {
			values[j] = append(values[j], byte(r.Uint32()))
		}
	}
	return func(j int) []byte { return values[j] }
}

func sizeName(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

func newTestEncoder(t testing.TB) *Encoder {
	t.Helper()
	e, err := NewEncoder(LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newTestDecoder(t testing.TB) *Decoder {
	t.Helper()
	d, err := NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// zstdCLI decodes by the reference implementation.
func zstdCLI(t *testing.T, frames []byte) []byte {
	t.Helper()
	path, err := exec.LookPath("zstd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no zstd here")
		}
		t.Skip("no zstd here to compare with")
	}
	cmd := exec.Command(path, "-dc", "--memory=1MB")
	cmd.Stdin = bytes.NewReader(frames)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zstd -dc: %v", err)
	}
	return out
}

// checkPayload checks what DESIGN promises of every zstd frame that is served:
// content size, no checksum, no dictionary, a window of at most 1 MiB; and that the
// sizes add up to total. It returns the number of frames.
func checkPayload(t *testing.T, p []byte, total int) (frames int) {
	t.Helper()
	size := 0
	for ; len(p) > 0; frames++ {
		var h zstd.Header
		if err := h.Decode(p); err != nil {
			t.Fatalf("frame header: %v", err)
		}
		if !h.HasFCS || !h.SingleSegment || h.HasCheckSum || h.DictionaryID != 0 || h.Skippable || h.FrameContentSize > MaxChunk {
			t.Fatalf("frame header %+v", h)
		}
		size += int(h.FrameContentSize)
		p = p[h.HeaderSize:]
		for last := false; !last; {
			b, ok := parseBlock(p)
			if !ok {
				t.Fatal("bad block")
			}
			p, last = p[blockHeaderLen+b.size:], b.last
		}
	}
	if size != total {
		t.Fatalf("content sizes add up to %d, want %d", size, total)
	}
	return frames
}

// serve returns what a client gets of a frame with one chunk, the long way.
func serve(t testing.TB, d *Decoder, f Frame, values func(int) []byte) []byte {
	t.Helper()
	v, err := ParseFrame(f.Kind, len(f.Chunks), f.Stored, f.PrefixLen, f.CRC)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(&v, f.Chunks); err != nil {
		t.Fatal(err)
	}
	if v.Kind() == KindPatch {
		out := slices.Clone(v.Payload())
		if err := v.Patch(out, values); err != nil {
			t.Fatal(err)
		}
		return out
	}
	b, err := d.Decode(nil, &v, int(f.Chunks[0].Len))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmask(b, v.Spans(0), values); err != nil {
		t.Fatal(err)
	}
	return AppendRaw(nil, b)
}
