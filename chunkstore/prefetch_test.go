package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// A countedBucket counts what is read of packs.
type countedBucket struct {
	bucket.Bucket
	streams, reads atomic.Int64
	spoil          atomic.Int64 // streams whose first byte is to be wrong
}

func (b *countedBucket) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	b.reads.Add(1)
	return b.Bucket.ReadAt(ctx, key, p, off)
}

func (b *countedBucket) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	b.streams.Add(1)
	if b.spoil.Add(-1) >= 0 {
		w = &spoiler{w: w}
	}
	return b.Bucket.Read(ctx, key, off, n, w)
}

// A spoiler flips a bit of every write.
type spoiler struct{ w io.Writer }

func (s *spoiler) Write(p []byte) (int, error) {
	wrong := append([]byte(nil), p...)
	wrong[len(wrong)/2] ^= 1
	return s.w.Write(wrong)
}

// cachedStore opens a store whose bucket is counted and cached.
func cachedStore(t *testing.T, dir string, change ...func(*Options)) (*Store, *countedBucket) {
	b := &countedBucket{}
	s := testStore(t, dir, append(change, func(o *Options) {
		b.Bucket, o.Bucket, o.CacheSize = o.Bucket, b, 128<<20
	})...)
	return s, b
}

// A NAR that was stored in one go is few requests, for as many readers as there are at a
// time, and none when it is cached, also after a restart.
func TestColdReadIsFewRequests(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s, b := cachedStore(t, dir, func(o *Options) { o.PackSize = 4 << 20 })
	data := makeNAR(t, testFile{name: "a", data: noise(12<<20, 1)})
	putNAR(t, s, data)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.reads.Store(0)
	read := func() {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				o, err := s.Object(t.Context(), sha256.Sum256(data))
				if err != nil {
					t.Error(err)
					return
				}
				h := sha256.New()
				if err := o.WritePlain(t.Context(), h, 0, o.Size()); err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
					t.Errorf("read: %v, or other bytes", err)
				}
			})
		}
		wg.Wait()
	}
	read()
	if got := b.streams.Load(); got < 1 || got > 4 || b.reads.Load() != 0 {
		t.Errorf("got %d streams and %d other reads, want few and none", got, b.reads.Load())
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, b = cachedStore(t, dir)
	b.reads.Store(0)
	read()
	if b.streams.Load() != 0 || b.reads.Load() != 0 {
		t.Errorf("got %d streams and %d other reads of what is cached", b.streams.Load(), b.reads.Load())
	}
	checkNAR(t, s, rnd, data)
}

// What came wrong, or went wrong in the cache, is read from the bucket, and is no damage.
func TestWrongBytesInTheCache(t *testing.T) {
	rnd := testSeed(t)
	s, b := cachedStore(t, t.TempDir())
	data := makeNAR(t, testFile{name: "a", data: noise(3<<20, 1)})
	putNAR(t, s, data)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.spoil.Store(2)
	for range 3 {
		checkNAR(t, s, rnd, data)
	}
	if s.DamageCount() != 0 {
		t.Error("what the cache has wrong was taken for damage")
	}
	before := b.streams.Load() + b.reads.Load()
	checkNAR(t, s, rnd, data)
	if got := b.streams.Load() + b.reads.Load() - before; got != 0 {
		t.Errorf("%d requests for what must be cached by now", got)
	}
}

// NARs that share chunks are spread over packs.
func TestFragmentedReads(t *testing.T) {
	rnd := testSeed(t)
	s, b := cachedStore(t, t.TempDir())
	var parts [][]byte
	var nars [][]byte
	for i := range 12 {
		parts = append(parts, noise(300<<10, byte(i)))
		var files []testFile
		for j := range parts {
			if j == i || rnd.IntN(2) == 0 {
				files = append(files, testFile{name: string(rune('a' + j)), data: parts[j]})
			}
		}
		nars = append(nars, makeNAR(t, files...))
		putNAR(t, s, nars[i])
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for _, n := range nars {
			checkNAR(t, s, rnd, n)
		}
	}
	if got := b.streams.Load(); got > 100 {
		t.Errorf("%d requests for 12 packs", got)
	}
}

// A download whose bucket fails for good in the middle ends with an error after right bytes,
// and that is no damage. TestFaultRequests has what goes by.
func TestDownloadIsCut(t *testing.T) {
	rnd := testSeed(t)
	server := s3test.Start(t, "versitygw")
	server.NewBucket(t, "bucket")
	proxy := s3test.NewProxy(t, server.Endpoint)
	b, err := bucket.OpenS3(t.Context(), server.URL("bucket", proxy.URL))
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t, t.TempDir(), func(o *Options) { o.Bucket, o.CacheSize = b, 64<<20 })
	data := makeNAR(t, testFile{name: "a", data: noise(9<<20, 1)})
	putNAR(t, s, data)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Half of the first answer comes, and then nothing any more.
	proxy.Set(func(n int64, _ *http.Request) *s3test.Fault {
		if n == 1 {
			return s3test.Truncated
		}
		return s3test.Revoked
	})
	o, err := s.Object(t.Context(), sha256.Sum256(data))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = o.WritePlain(t.Context(), &got, 0, o.Size())
	if err == nil || isDamage(err) || got.Len() == 0 || !bytes.HasPrefix(data, got.Bytes()) {
		t.Errorf("%d bytes, of %d, and the error %v", got.Len(), len(data), err)
	}
	if s.DamageCount() != 0 {
		t.Error("a bucket that fails was taken for damage")
	}
	proxy.Set(nil)
	checkNAR(t, s, rnd, data)
}
