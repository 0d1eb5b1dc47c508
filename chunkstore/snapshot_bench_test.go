package chunkstore

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/packfile"
)

// putBenchPacks puts DEDUPD_BENCH_PACKS packs, 1,000 by default, into a bucket on MinIO. They
// have the directory and the records of packs of 32 MiB, but frames of 370 KB.
func putBenchPacks(b *testing.B) (*bucket.S3, int) {
	b.Helper()
	packs := 1000
	if n, err := strconv.Atoi(os.Getenv("DEDUPD_BENCH_PACKS")); err == nil {
		packs = n
	}
	at, err := bucket.OpenS3(b.Context(), s3test.Start(b, "minio").NewBucket(b, "bucket"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := openRepository(b.Context(), at, DefaultRepository(testStoreDir, Rabin), true); err != nil {
		b.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(8)
	for n := range packs {
		group.Go(func() error {
			name, entries, frames := benchPack(b, n, 0.01)
			pack := append(packfile.Header(name), make([]byte, frames-packfile.HeaderSize)...)
			pack, err := packfile.AppendTail(pack, name, entries)
			if err != nil {
				return err
			}
			return at.Put(b.Context(), packKey(name), bytes.NewReader(pack), int64(len(pack)))
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return at, packs
}

// BenchmarkNewMachine makes the index of packs on MinIO: from their tails, and from a
// snapshot. What is reported is for one such start.
func BenchmarkNewMachine(b *testing.B) {
	at, packs := putBenchPacks(b)
	ctx := context.WithoutCancel(b.Context())
	options := func() Options {
		return Options{State: filepath.Join(b.TempDir(), "state"), Bucket: at, Log: slog.New(slog.DiscardHandler)}
	}
	start := func(b *testing.B, r RebuildOptions, packs int) {
		gets := uint64(0)
		for b.Loop() {
			before := at.Requests()
			report, err := RebuildIndex(ctx, options(), r)
			if err != nil || report.Packs+report.Restored != packs {
				b.Fatalf("got %+v, %v", report, err)
			}
			after := at.Requests()
			gets += after.Get - before.Get + after.Head - before.Head
		}
		b.ReportMetric(float64(gets)/float64(b.N)/float64(packs), "gets/pack")
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "seconds")
	}
	b.Run("packs", func(b *testing.B) { start(b, RebuildOptions{}, packs) })

	s, err := Open(ctx, options())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		var report *SnapshotReport
		for b.Loop() {
			if report, err = s.WriteSnapshot(ctx); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(report.Bytes)/float64(report.Chunks), "bytes/chunk")
		b.ReportMetric(float64(report.Objects), "objects")
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "seconds")
	})
	if err := s.Close(ctx); err != nil {
		b.Fatal(err)
	}
	b.Run("snapshot", func(b *testing.B) { start(b, RebuildOptions{FromSnapshot: true}, packs) })
}
