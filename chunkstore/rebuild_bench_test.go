package chunkstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// Of the packs in BenchmarkRebuild: 300 chunks of about 110 KB make 32 MiB, in NARs of 30
// chunks.
const (
	benchPackChunks = 300
	benchNARChunks  = 30
)

// benchPack returns what a pack holds, with frames that take so many bytes for each byte of
// a chunk, and where they end.
func benchPack(tb testing.TB, n int, ratio float64) (name packfile.Name, entries []packfile.Entry, frames int64) {
	rnd := rand.New(rand.NewPCG(uint64(n), 0))
	name = packfile.Name{Writer: [10]byte{1}, Seq: uint64(n + 1)}
	frames = packfile.HeaderSize
	for range benchPackChunks / benchNARChunks {
		var e packfile.Entry
		r := recipe{}
		size := int64(0)
		for range benchNARChunks {
			c := packfile.Chunk{Len: uint32(64<<10 + rnd.IntN(100<<10))}
			for i := 0; i < len(c.ID); i += 8 {
				binary.LittleEndian.PutUint64(c.ID[i:], rnd.Uint64())
			}
			f := packfile.FrameInfo{Kind: packfile.KindPatch, Prefix: 1, Payload: int(float64(c.Len) * ratio), CRC: rnd.Uint32(), Chunks: []packfile.Chunk{c}}
			e.Frames = append(e.Frames, f)
			frames += f.Size()
			r.items = append(r.items, item{id: c.ID, len: c.Len})
			size += int64(c.Len)
		}
		body := r.encode()
		hash := Hash(sha256.Sum256(body))
		c := content{hash: hash, size: size, nar: true, recipe: recipeID(body)}
		f := File{Name: narName(hash), Content: hash, Size: c.size, NAR: true, Compression: "none", FileSize: c.size, FileHash: hash}
		e.Commit = (&packfile.Commit{Records: []packfile.Record{
			{Type: packfile.RecordRecipe, Body: body},
			{Type: packfile.RecordContent, Body: c.encode()},
			{Type: packfile.RecordName, Body: f.encode()},
			{Type: packfile.RecordNarInfo, Body: []byte(testNarInfo(tb, hash, int(c.size)).Text(testStoreDir))},
		}}).Append(nil)
		entries = append(entries, e)
	}
	return name, entries, frames
}

// writeBenchPack writes a pack as it is in a bucket, but with a hole for its frames.
func writeBenchPack(tb testing.TB, dir string, n int) error {
	name, entries, frames := benchPack(tb, n, 2./3)
	tail, err := packfile.AppendTail(nil, name, entries)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, filepath.FromSlash(packKey(name)))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(packfile.Header(name)); err != nil {
		return err
	}
	_, err = f.WriteAt(tail, frames)
	return err
}

// writeBenchPacks writes packs with DEDUPD_BENCH_CHUNKS chunks, or the number that is given,
// into a bucket in a directory.
func writeBenchPacks(b *testing.B, chunks int) bucket.Bucket {
	if n, err := strconv.Atoi(os.Getenv("DEDUPD_BENCH_CHUNKS")); err == nil {
		chunks = n
	}
	b.Helper()
	ctx := b.Context()
	dir := b.TempDir()
	at, err := bucket.Open(ctx, "file://"+dir)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := openRepository(ctx, at, DefaultRepository(testStoreDir, Rabin), true); err != nil {
		b.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(4)
	for n := range chunks / benchPackChunks {
		group.Go(func() error { return writeBenchPack(b, dir, n) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return at
}

// BenchmarkRebuild makes the index of 300,000 chunks in packs of a bucket in a directory,
// with the records of their NARs; nothing is known before.
func BenchmarkRebuild(b *testing.B) {
	at := writeBenchPacks(b, 300_000)
	for _, memory := range []int64{128, 1024} {
		b.Run(fmt.Sprintf("memory=%dMiB", memory), func(b *testing.B) { benchRebuild(b, at, memory<<20) })
	}
}

func benchRebuild(b *testing.B, packs bucket.Bucket, memory int64) {
	ctx := context.WithoutCancel(b.Context())
	chunks := int64(0)
	cpu := cpuTime(b)
	for b.Loop() {
		opts := Options{State: b.TempDir(), Bucket: packs, Log: slog.New(slog.DiscardHandler)}
		report, err := RebuildIndex(ctx, opts, RebuildOptions{Memory: memory})
		if err != nil {
			b.Fatal(err)
		}
		chunks += report.Chunks
	}
	b.ReportMetric(float64(chunks)/b.Elapsed().Seconds(), "chunks/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(chunks), "cpu-ns/chunk")
}

// BenchmarkHasPath asks for the paths of 600,000 chunks, in random order.
func BenchmarkHasPath(b *testing.B) {
	ctx := context.WithoutCancel(b.Context())
	opts := Options{State: b.TempDir(), Bucket: writeBenchPacks(b, 600_000), Log: slog.New(slog.DiscardHandler)}
	if _, err := RebuildIndex(ctx, opts, RebuildOptions{}); err != nil {
		b.Fatal(err)
	}
	s, err := Open(ctx, opts)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(ctx)
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		b.Fatal(err)
	}
	var paths []string
	if err := snap.ForEach(ctx, index.Paths, nil, func(key, _ []byte) error {
		paths = append(paths, string(key))
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	snap.Close()
	rand.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	for i := 0; b.Loop(); i++ {
		if has, err := s.HasPath(ctx, paths[i%len(paths)]); err != nil || !has {
			b.Fatal(has, err)
		}
	}
}

// cpuTime is what the process has used. On a machine that others use, too, it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
