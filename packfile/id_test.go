package packfile

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
)

// TestChunkID computes the ID the long way, from the table in its doc comment.
func TestChunkID(t *testing.T) {
	many := make([]Span, 500) // more than the hasher's buffer holds
	for i := range many {
		many[i] = Span{Off: uint32(i * 40), Len: SpanHash}
	}
	for _, tt := range []struct {
		name   string
		masked []byte
		spans  []Span
		want   string // pinned: IDs are in every repository
	}{
		{"empty", nil, nil, "c6ba0188"},
		{"plain", []byte("hello"), nil, "3247fc9a"},
		{"span", make([]byte, 32), []Span{{0, SpanHash}}, "5d2f570f"},
		{"build-id", make([]byte, 32), []Span{{3, SpanBuildID}}, "f0f172bd"},
		{"many", make([]byte, 20000), many, "1a935d1f"},
	} {
		var b []byte
		b = binary.LittleEndian.AppendUint32(b, uint32(len(tt.spans)))
		for _, s := range tt.spans {
			b = binary.LittleEndian.AppendUint32(b, s.Off)
			b = binary.LittleEndian.AppendUint32(b, s.Len)
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(len(tt.masked)))
		b = append(b, tt.masked...)
		var want ID
		blake3.DeriveKey("dedupd 2026 chunk id v1", b, want[:])
		got := ChunkID(tt.masked, tt.spans)
		if got != want {
			t.Errorf("%s: ID %v, want %v", tt.name, got, want)
		}
		if !strings.HasPrefix(got.String(), tt.want) {
			t.Errorf("%s: ID %v, pinned %s…", tt.name, got, tt.want)
		}
	}
}

func TestChunkIDDoesNotAllocate(t *testing.T) {
	masked, spans := make([]byte, 100<<10), []Span{{0, 32}, {500, 20}}
	if n := testing.AllocsPerRun(100, func() { ChunkID(masked, spans) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestCheckChunk(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		spans []Span
		ok    bool
	}{
		{"empty", 0, nil, false},
		{"one byte", 1, nil, true},
		{"largest", MaxChunk, nil, true},
		{"too large", MaxChunk + 1, nil, false},
		{"adjacent", 52, []Span{{0, 32}, {32, 20}}, true},
		{"overlap", 100, []Span{{0, 32}, {31, 20}}, false},
		{"order", 100, []Span{{32, 32}, {0, 32}}, false},
		{"length", 100, []Span{{0, 31}}, false},
		{"beyond", 51, []Span{{0, 32}, {32, 20}}, false},
		{"far beyond", 51, []Span{{1<<32 - 1, 32}}, false},
	} {
		if err := checkChunk(make([]byte, tt.n), tt.spans); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", tt.name, err, tt.ok)
		}
	}
	masked := make([]byte, 64)
	masked[40] = 1
	if checkChunk(masked, []Span{{0, 32}, {32, 32}}) == nil {
		t.Error("a span that is not masked was accepted")
	}
}

func TestUnmask(t *testing.T) {
	value := func(j int) []byte { return bytes.Repeat([]byte{byte('a' + j)}, []int{32, 20}[j]) }
	chunk := make([]byte, 60)
	if err := Unmask(chunk, []Span{{1, 32}, {40, 20}}, value); err != nil {
		t.Fatal(err)
	}
	want := "\x00" + strings.Repeat("a", 32) + strings.Repeat("\x00", 7) + strings.Repeat("b", 20)
	if string(chunk) != want {
		t.Errorf("got %q, want %q", chunk, want)
	}
	if Unmask(chunk, []Span{{1, 20}}, value) == nil {
		t.Error("a value of the wrong length was accepted")
	}
	if Unmask(chunk, []Span{{29, 32}}, value) == nil {
		t.Error("a span beyond the end was accepted")
	}
}

func BenchmarkChunkID(b *testing.B) {
	for _, n := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(sizeName(n), func(b *testing.B) {
			masked := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				ChunkID(masked, nil)
			}
		})
	}
}
