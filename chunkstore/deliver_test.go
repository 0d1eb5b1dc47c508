package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// A lossyBucket fails Puts at random: some do not arrive, some do all the same, and all
// take their time.
type lossyBucket struct{ bucket.Bucket }

func (b *lossyBucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	time.Sleep(rand.N(3 * time.Millisecond))
	lost := rand.N(4)
	if lost == 0 {
		return errors.New("this Put did not arrive")
	}
	err := b.Bucket.Put(ctx, key, r, size)
	if lost == 1 && err == nil {
		err = errors.New("this Put did arrive")
	}
	return err
}

// What WaitForBucket has waited for is in the bucket, whatever else is on its way there:
// a store that has nothing but a copy of the bucket, made at any moment, serves it.
func TestWaitForBucket(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	var b lossyBucket
	s := testStore(t, dir, func(o *Options) {
		if _, err := openRepository(t.Context(), o.Bucket, o.Repository, true); err != nil {
			t.Fatal(err)
		}
		b.Bucket, o.Bucket = o.Bucket, &b
		o.PackSize, o.FlushInterval, o.RetryInterval = 300<<10, 20*time.Millisecond, 2*time.Millisecond
	})
	shared := randomData(rnd, 600<<10)
	var mu sync.Mutex
	var acknowledged [][]byte
	var uploads sync.WaitGroup
	for n := range 4 {
		var nars [][]byte
		for i := range 5 {
			off := rnd.IntN(len(shared) / 2)
			nars = append(nars, makeNAR(t, testFile{name: fmt.Sprint(n, i), data: shared[off:]}, testFile{name: "z", data: randomData(rnd, 100<<10)}))
		}
		uploads.Go(func() {
			for _, nar := range nars {
				putNAR(t, s, nar)
				if err := s.WaitForBucket(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				acknowledged = append(acknowledged, nar)
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		uploads.Wait()
	}()
	for copied, n := false, 0; !copied; n++ {
		select {
		case <-done:
			copied = true
		case <-time.After(30 * time.Millisecond):
		}
		mu.Lock()
		want := acknowledged
		mu.Unlock()
		at := filepath.Join(dir, fmt.Sprint("copy", n))
		if err := os.CopyFS(filepath.Join(at, "bucket"), os.DirFS(filepath.Join(dir, "bucket"))); err != nil {
			t.Fatal(err)
		}
		c := testStore(t, at)
		for _, nar := range want {
			checkNAR(t, c, rnd, nar)
		}
		// Packs may be missing here that others rely on; a check would say so.
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		os.RemoveAll(at)
	}
}

// Who waits for a bucket that takes nothing gives up when its context ends, and finds all
// committed; who waits when the store is closed is told so.
func TestWaitForBucketInVain(t *testing.T) {
	rnd := testSeed(t)
	var b stuckBucket
	s := testStore(t, t.TempDir(), shut(&b))
	if err := s.WaitForBucket(t.Context()); err != nil {
		t.Fatalf("nothing to wait for: %v", err)
	}
	nar := narOf(t, rnd, 50<<10)
	putNAR(t, s, nar)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := s.WaitForBucket(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	checkNAR(t, s, rnd, nar)
	const waiters = 5
	errs := make(chan error, waiters)
	for range waiters {
		go func() { errs <- s.WaitForBucket(context.Background()) }()
	}
	for b.puts.Load() == 0 { // the pack was sealed, long before it would have been
		time.Sleep(time.Millisecond)
	}
	ctx, cancel = context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for range waiters {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	if err := s.WaitForBucket(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("of a closed store: got %v, want ErrClosed", err)
	}
}

// Those who wait at the same time share a pack, and one that is small goes up soon.
func TestWaitersShare(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir(), func(o *Options) { o.FlushInterval = time.Hour })
	var uploads sync.WaitGroup
	for range 20 {
		nar := narOf(t, rnd, 10<<10)
		uploads.Go(func() {
			putNAR(t, s, nar)
			if err := s.WaitForBucket(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	uploads.Wait()
	packs := 0
	err := s.opts.Bucket.List(t.Context(), packPrefix, "", func(bucket.Info) error {
		packs++
		return nil
	})
	if err != nil || packs == 0 || packs > 5 {
		t.Errorf("got %d packs (%v), want a few for 20 who wait", packs, err)
	}
}
