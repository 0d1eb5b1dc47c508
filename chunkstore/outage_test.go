package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// An object store that is down for long: uploads go on until the spool is full, and then
// wait. After a restart, and when it is back, everything gets there, and the state
// directory is not needed any more.
func TestOutageOnS3(t *testing.T) {
	rnd := testSeed(t)
	server := s3test.Start(t, "versitygw")
	b, err := bucket.OpenS3(t.Context(), server.NewBucket(t, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	small := func(o *Options) {
		o.Bucket, o.PackSize, o.Limits.SpoolSize = b, 256<<10, 1<<20
		o.FlushInterval, o.RetryInterval = 20*time.Millisecond, 10*time.Millisecond
	}
	s := testStore(t, dir, small)
	var kept [][]byte
	upload := func(patience time.Duration) error {
		nar := narOf(t, rnd, 200<<10)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		hash := Hash(sha256.Sum256(nar))
		_, err := s.PutNAR(ctx, narName(hash), bytes.NewReader(nar), nil)
		if err == nil {
			err = s.PutNarInfo(t.Context(), testNarInfo(t, hash, len(nar)))
		}
		if err == nil {
			kept = append(kept, nar)
		}
		return err
	}
	mustUpload := func() {
		t.Helper()
		if err := upload(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	mustUpload()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	for err = nil; err == nil; {
		if err = upload(time.Second); len(kept) > 50 {
			t.Fatal("uploads never wait")
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if obstacle := s.Obstacle(); obstacle == nil || len(kept) < 4 {
		t.Errorf("after %d uploads: obstacle %v", len(kept), obstacle)
	}
	short, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := s.Close(short); err != nil {
		t.Fatal(err)
	}
	server.Run(t)
	s = testStore(t, dir, small)
	mustUpload()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, small)
	for _, nar := range kept {
		checkNAR(t, s, rnd, nar)
	}
}
