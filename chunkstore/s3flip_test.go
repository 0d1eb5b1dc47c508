package chunkstore

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// A flipped bit in a pack on S3 is found, the paths that it hurts are named, and uploading them
// again heals them, also for who has the bucket alone. TestFlips does more of this, with files.
func TestFlipsOnS3(t *testing.T) {
	rnd := testSeed(t)
	server := s3test.Start(t, "versitygw")
	server.NewBucket(t, "bucket")
	l := &s3Life{server: server, name: "bucket", prefix: "flips", state: filepath.Join(t.TempDir(), "state")}
	for range 6 {
		l.nars = append(l.nars, makeNAR(t, testFile{name: "own", data: randomData(rnd, 50<<10)}))
	}
	if err := l.run(t.Context(), t, server.Endpoint); err != nil {
		t.Fatal(err)
	}
	flips, hurt := 4, 0
	if testing.Short() {
		flips = 1
	}
	for range flips {
		s, err := l.open(t.Context(), server.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		what := flipPack(t, rnd, s.opts.Bucket)
		report, err := s.Check(t.Context(), CheckOptions{ReadData: true})
		// What the earlier flips made useless hurts nobody; that the paths are whole is seen below.
		if err != nil || report.OK() && report.DeadFrames == 0 {
			t.Fatalf("%s: check: %v, %+v", what, err, report)
		}
		for _, b := range l.nars {
			if err := readPath(t.Context(), t, s, b); err == nil {
				continue
			}
			hurt++
			if path := testNarInfo(t, sha256.Sum256(b), len(b)).StorePath; !slices.ContainsFunc(report.AffectedPaths, func(p string) bool {
				return filepath.Base(p) == path.String()
			}) {
				t.Errorf("%s: %s cannot be read, and the check names only %q", what, path, report.AffectedPaths)
			}
		}
		if report, err = s.Check(t.Context(), CheckOptions{Repair: true}); err != nil || !report.OK() {
			t.Fatalf("%s: repair: %v, %+v", what, err, report)
		}
		for _, b := range l.nars {
			if err := uploadPath(t.Context(), t, s, b); err != nil {
				t.Fatalf("%s: upload again: %v", what, err)
			}
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.check(t); err != nil {
			t.Fatalf("%s: after healing, %v", what, err)
		}
	}
	t.Logf("%d flips hurt %d paths", flips, hurt)
}

// flipPack flips a bit in a pack, and says where.
func flipPack(t *testing.T, rnd *rand.Rand, b bucket.Bucket) string {
	t.Helper()
	var packs []bucket.Info
	if err := b.List(t.Context(), packPrefix, "", func(i bucket.Info) error { packs = append(packs, i); return nil }); err != nil {
		t.Fatal(err)
	}
	p := packs[rnd.IntN(len(packs))]
	data := make([]byte, p.Size)
	if err := b.ReadAt(t.Context(), p.Key, data, 0); err != nil {
		t.Fatal(err)
	}
	at := rnd.IntN(len(data))
	data[at] ^= 1 << rnd.IntN(8)
	if err := b.Delete(t.Context(), p.Key); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), p.Key, bytes.NewReader(data), p.Size); err != nil {
		t.Fatal(err)
	}
	return p.Key + " flipped"
}
