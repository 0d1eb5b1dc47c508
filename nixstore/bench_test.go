package nixstore

import (
	"io"
	"os"
	"testing"
)

// sink hides the methods of io.Discard.
type sink struct{ n int64 }

func (s *sink) Write(p []byte) (int, error) { s.n += int64(len(p)); return len(p), nil }

// BenchmarkDump dumps the tree that DEDUPD_BENCH_TREE names.
func BenchmarkDump(b *testing.B) {
	tree := os.Getenv("DEDUPD_BENCH_TREE")
	if tree == "" {
		b.Skip("DEDUPD_BENCH_TREE is not set")
	}
	for b.Loop() {
		s := new(sink)
		if _, err := dump(b.Context(), s, tree, 0); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(s.n)
	}
}

var _ io.Writer = new(sink)
