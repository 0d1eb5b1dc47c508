package chunkstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/report"
)

// BenchmarkReport reports on 600,000 chunks of 20,000 paths, DEDUPD_BENCH_CHUNKS if that is
// set: with room for all, and from a sample.
func BenchmarkReport(b *testing.B) {
	ctx := context.WithoutCancel(b.Context())
	opts := chunkstore.Options{State: b.TempDir(), Bucket: chunkstore.WriteBenchPacks(b, 600_000), Log: slog.New(slog.DiscardHandler)}
	if _, err := chunkstore.RebuildIndex(ctx, opts, chunkstore.RebuildOptions{}); err != nil {
		b.Fatal(err)
	}
	s, err := chunkstore.Open(ctx, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(ctx)
	for _, memory := range []int64{64 << 20, 1 << 20} {
		b.Run(fmt.Sprintf("memory=%dMiB", memory>>20), func(b *testing.B) {
			chunks, cpu := int64(0), chunkstore.CPUTime(b)
			for b.Loop() {
				r, err := report.Make(ctx, s, report.Options{Memory: memory, TempDir: b.TempDir()})
				if err != nil {
					b.Fatal(err)
				}
				chunks += r.Store.Chunks
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(chunks), "s/Mchunk")
			b.ReportMetric((chunkstore.CPUTime(b)-cpu).Seconds()*1e6/float64(chunks), "cpu-s/Mchunk")
		})
	}
	b.Run("stats", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Stats(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
