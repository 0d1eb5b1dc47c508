package chunkstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// The whole life of a store whose bucket is a real S3 server, of which everything is left
// when the state directory is gone.
func TestStoreOnS3(t *testing.T) {
	for _, kind := range s3test.Servers {
		t.Run(kind, func(t *testing.T) {
			url := s3test.Start(t, kind).NewBucket(t, "bucket")
			b, err := bucket.OpenS3(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			onS3 := func(o *Options) { o.Bucket, o.PackSize = b, 256<<10 }
			rnd := testSeed(t)
			s := testStore(t, dir, onS3)
			var nars [][]byte
			for range 6 {
				nar := makeNAR(t, testFile{name: "a", data: randomData(rnd, 200<<10)})
				putNAR(t, s, nar)
				nars = append(nars, nar)
			}
			before := b.Requests()
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for _, nar := range nars {
					checkNAR(t, s, rnd, nar)
				}
				if err := s.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
					t.Fatal(err)
				}
				s = testStore(t, dir, onS3)
			}
			if got := b.Requests(); got.Put < before.Put || got.Get == 0 || got.Failed > 0 {
				t.Errorf("requests: got %+v, before flushing %+v", got, before)
			}
		})
	}
}

// TestSnapshotOnS3 has a writer and a follower start from a snapshot on a real server, and
// counts what they ask of it.
func TestSnapshotOnS3(t *testing.T) {
	for _, kind := range s3test.Servers {
		t.Run(kind, func(t *testing.T) {
			b, err := bucket.OpenS3(t.Context(), s3test.Start(t, kind).NewBucket(t, "bucket"))
			if err != nil {
				t.Fatal(err)
			}
			onS3 := func(o *Options) { o.Bucket = b }
			s := testStore(t, t.TempDir(), onS3)
			const packs = 8
			for i := range packs {
				putLog(t, s, fmt.Sprint("log/", i))
				if err := s.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			writeSnapshot(t, s)
			id := writeSnapshot(t, s).ID
			putLog(t, s, "log/after")
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := allRows(t, s)
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, follow := range []bool{false, true} {
				before := b.Requests()
				s := testStore(t, t.TempDir(), onS3, func(o *Options) { o.Follow, o.Repository = follow, Repository{} })
				after := b.Requests()
				compareRows(t, allRows(t, s), want)
				if r := s.recovered; r.Snapshot != id || r.Applied != 1 {
					t.Errorf("following %v: got %+v, want snapshot %s and one pack", follow, r, id)
				}
				// dedupd.json twice, the manifest, a part, and the tail of a pack.
				if got := after.Get - before.Get; got != 5 {
					t.Errorf("following %v: %d GETs for %d packs, want 5", follow, got, packs+1)
				}
				if err := s.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
