package chunkstore

import (
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
