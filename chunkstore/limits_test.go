package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/bucket"
)

// soon is how long a test watches that something does not happen.
const soon = 50 * time.Millisecond

// A stuckBucket is one that takes no packs while it is shut. Then every Put blocks, until
// its context ends or the bucket opens.
type stuckBucket struct {
	bucket.Bucket
	open chan struct{} // closed when it is
	puts atomic.Int64
}

func (b *stuckBucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	select {
	case <-b.open:
	default:
		b.puts.Add(1)
		select {
		case <-b.open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return b.Bucket.Put(ctx, key, r, size)
}

// shut has a store's bucket replaced with one that takes no packs.
func shut(b *stuckBucket) func(*Options) {
	return func(o *Options) {
		b.Bucket, b.open = o.Bucket, make(chan struct{})
		// The repository's own object is made before the bucket is stuck.
		if _, err := openRepository(context.Background(), o.Bucket, o.Repository, true); err != nil {
			panic(err)
		}
		o.Bucket = b
	}
}

// A countingReader says whether anything of it was read.
type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// putting uploads b, in a goroutine that the test waits for.
func putting(t *testing.T, s *Store, b []byte) (*countingReader, <-chan error) {
	r, done := &countingReader{r: bytes.NewReader(b)}, make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := s.PutNAR(context.Background(), fmt.Sprintf("nar/%p.nar", b), r, nil)
		done <- err
	}()
	t.Cleanup(func() { <-ended })
	return r, done
}

func wantWaiting(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("upload returned %v, want it to wait", err)
	case <-time.After(soon):
	}
}

func wantDone(t *testing.T, done <-chan error, want error) {
	t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, want) {
			t.Fatalf("upload returned %v, want %v", err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("upload still waits")
	}
}

func narOf(t *testing.T, rnd *rand.Rand, size int) []byte {
	return makeNAR(t, testFile{name: "a", data: randomData(rnd, size)})
}

func TestMaxNAR(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	fits := narOf(t, rnd, 700<<10)
	s := testStore(t, dir, func(o *Options) { o.Limits.MaxNAR = int64(len(fits)) })
	large := narOf(t, rnd, 900<<10)
	zeros := makeNAR(t, testFile{name: "a", data: make([]byte, 5<<20)})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 16, 0}, make([]byte, 1<<20)...)
	for name, b := range map[string][]byte{
		"nar/large.nar": large, "nar/large.nar.zst": enc.EncodeAll(large, nil), "nar/bomb.nar.zst": enc.EncodeAll(zeros, nil),
		"nar/padded.nar.zst": append(enc.EncodeAll(makeNAR(t, testFile{name: "b"}), nil), skippable...),
	} {
		if _, err := s.PutNAR(t.Context(), name, bytes.NewReader(b), nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s of %d bytes: got %v, want ErrTooLarge", name, len(b), err)
		}
		if _, err := s.File(t.Context(), name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "state", "staging")); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v (%v), want nothing", left, err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Chunks != 0 || st.Files != 0 {
		t.Errorf("got %+v (%v), want an empty store", st, err)
	}
	putNAR(t, s, fits)
	checkNAR(t, s, rnd, fits)
}

func TestSizeLimit(t *testing.T) {
	for size := range 5 {
		for _, step := range []int{1, 2, 3, 100} {
			r := newSizeLimit(bytes.NewReader(make([]byte, size)), 3)
			got, err := 0, error(nil)
			for err == nil {
				var n int
				n, err = r.Read(make([]byte, step))
				got += n
			}
			if want := min(size, 3); got != want || errors.Is(err, ErrTooLarge) != (size > 3) {
				t.Errorf("%d bytes in steps of %d: got %d bytes, %v", size, step, got, err)
			}
		}
	}
}

func TestMaxUploads(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir(), func(o *Options) { o.Limits.MaxUploads = 1 })
	b := narOf(t, rnd, 100<<10)
	pr, pw := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := s.PutNAR(context.Background(), "nar/first.nar", pr, nil)
		first <- err
	}()
	if _, err := pw.Write(b[:5000]); err != nil {
		t.Fatal(err)
	}
	r, done := putting(t, s, b)
	wantWaiting(t, done)
	if n := r.n.Load(); n != 0 {
		t.Errorf("%d bytes of an upload that waits were read", n)
	}
	// One that is given up leaves no trace.
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := s.PutNAR(ctx, "nar/x.nar", bytes.NewReader(b), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	pw.CloseWithError(io.ErrUnexpectedEOF) // the first one fails, and its slot is free
	wantDone(t, first, ErrBadUpload)
	wantDone(t, done, nil)
	checkNAR(t, s, rnd, b)
}

// TestSpoolFull uploads to a bucket that takes nothing: uploads wait, reads and what
// brings no chunks go on, and when the bucket is back, so do the uploads.
func TestSpoolFull(t *testing.T) {
	rnd := testSeed(t)
	var b stuckBucket
	s := testStore(t, t.TempDir(), shut(&b), func(o *Options) { o.PackSize, o.Limits.SpoolSize, o.Limits.MaxUploads = 1<<20, 2<<20, 2 })
	var mu sync.Mutex
	var kept [][]byte
	var running sync.WaitGroup
	var finished atomic.Int64
	const uploads = 24
	for range uploads {
		nar := narOf(t, rnd, 500<<10)
		running.Go(func() {
			if _, err := s.PutNAR(context.Background(), fmt.Sprintf("nar/%p.nar", nar), bytes.NewReader(nar), nil); err != nil {
				t.Errorf("put: %v", err)
			}
			finished.Add(1)
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, nar)
		})
	}
	for !s.uploads.spoolFull.on.Load() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(soon)
	before := finished.Load()
	mu.Lock()
	known := kept[0]
	mu.Unlock()
	if before == uploads {
		t.Error("no upload waits")
	}
	checkNAR(t, s, rnd, known)
	if _, err := s.PutFile(t.Context(), "log/x", bytes.NewReader([]byte("small"))); err != nil {
		t.Errorf("put file: %v", err)
	}
	bytes, _ := s.uploads.spool.backlog()
	t.Logf("%d of %d uploads went into a spool of %d bytes", before, uploads, bytes)
	close(b.open)
	running.Wait()
	for _, nar := range kept {
		checkNAR(t, s, rnd, nar)
	}
	if s.uploads.spoolFull.on.Load() {
		if err := s.uploads.waitForSpool(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestCommitWaits fills the spool when an upload is running already, which then waits
// with its commit.
func TestCommitWaits(t *testing.T) {
	rnd := testSeed(t)
	var b stuckBucket
	s := testStore(t, t.TempDir(), shut(&b), func(o *Options) { o.PackSize, o.Limits.SpoolSize = 1<<20, 1<<20 })
	nar := narOf(t, rnd, 300<<10)
	pr, pw := io.Pipe()
	running := make(chan error, 1)
	go func() {
		_, err := s.PutNAR(context.Background(), "nar/running.nar", pr, nil)
		running <- err
	}()
	if _, err := pw.Write(nar[:5000]); err != nil {
		t.Fatal(err)
	}
	putNAR(t, s, narOf(t, rnd, 3<<20)) // was let in when the spool was empty
	if _, err := pw.Write(nar[5000:]); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	wantWaiting(t, running)
	if _, err := s.File(t.Context(), "nar/running.nar"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	close(b.open)
	wantDone(t, running, nil)
	checkNAR(t, s, rnd, nar)
}

// TestCloseWithDeadBucket closes a store whose uploads wait for a bucket that never
// answers, and opens it again with one that does.
func TestCloseWithDeadBucket(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	var b stuckBucket
	s := testStore(t, dir, shut(&b), func(o *Options) { o.PackSize, o.Limits.SpoolSize = 1<<20, 1 })
	kept := narOf(t, rnd, 2<<20)
	putNAR(t, s, kept)
	r, waits := putting(t, s, narOf(t, rnd, 100<<10))
	wantWaiting(t, waits)
	ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
	defer cancel()
	start := time.Now()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("close took %v", d)
	}
	wantDone(t, waits, ErrClosed)
	if n := r.n.Load(); n != 0 || b.puts.Load() == 0 {
		t.Errorf("%d bytes were read, %d times a pack was put", n, b.puts.Load())
	}
	checkNAR(t, testStore(t, dir), rnd, kept)
}

// TestDiskLow has the disk fall below the mark and rise above it again.
func TestDiskLow(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir(), func(o *Options) { o.Limits.MinFree, o.Limits.SpaceTimeout = 1000, 2*soon })
	var free atomic.Int64
	s.uploads.free = func() (int64, error) { return free.Load(), nil }
	free.Store(1000)
	kept := narOf(t, rnd, 100<<10)
	putNAR(t, s, kept)
	free.Store(999)
	r, done := putting(t, s, narOf(t, rnd, 100<<10))
	wantDone(t, done, ErrNoSpace)
	if n := r.n.Load(); n != 0 {
		t.Errorf("%d bytes of a refused upload were read", n)
	}
	checkNAR(t, s, rnd, kept)
	if _, err := s.PutFile(t.Context(), "log/x", bytes.NewReader([]byte("small"))); err != nil {
		t.Errorf("put file: %v", err)
	}
	s.uploads.limits.SpaceTimeout = time.Hour
	nar := narOf(t, rnd, 100<<10)
	_, done = putting(t, s, nar)
	wantWaiting(t, done)
	free.Store(1000)
	wantDone(t, done, nil)
	checkNAR(t, s, rnd, nar)
}

func TestFreeSpace(t *testing.T) {
	if n, err := FreeSpace(t.TempDir()); err != nil || n <= 0 {
		t.Errorf("got %d (%v)", n, err)
	}
	if _, err := FreeSpace(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing directory has free space")
	}
}

// A gateWriter is a client that takes nothing until its gate opens.
type gateWriter struct {
	started chan struct{} // closed at the first write
	open    chan struct{}
	buf     bytes.Buffer
	once    sync.Once
}

func (w *gateWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.started) })
	<-w.open
	return w.buf.Write(p)
}

// TestReadMemory has downloads of which the memory is enough for one. The second waits
// while the first is stuck, and then both have all of it.
func TestReadMemory(t *testing.T) {
	s := testStore(t, t.TempDir(), func(o *Options) { o.ReadMemory = 1 << 20 })
	b := narOf(t, testSeed(t), 3<<20)
	o, err := s.Object(t.Context(), putNAR(t, s, b))
	if err != nil {
		t.Fatal(err)
	}
	stuck := &gateWriter{started: make(chan struct{}), open: make(chan struct{})}
	var downloads sync.WaitGroup
	download := func(w io.Writer) {
		downloads.Go(func() {
			if err := o.WritePlain(context.Background(), w, 0, o.Size()); err != nil {
				t.Error(err)
			}
		})
	}
	download(stuck)
	<-stuck.started
	var second bytes.Buffer
	download(&second)
	for !s.ReadersWait() {
		time.Sleep(time.Millisecond)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.WritePlain(gone, io.Discard, 0, o.Size()); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left: got %v, want Canceled", err)
	}
	close(stuck.open)
	downloads.Wait()
	if !bytes.Equal(stuck.buf.Bytes(), b) || !bytes.Equal(second.Bytes(), b) {
		t.Error("the bytes are not those of the upload")
	}
	if s.ReadersWait() {
		t.Error("somebody waits for nobody")
	}
}
