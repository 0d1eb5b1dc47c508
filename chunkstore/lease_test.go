package chunkstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// A leaseTest has leases on one bucket, with clocks that do not wait.
type leaseTest struct {
	*testing.T
	bucket *faultyLeases
}

// inLeaseTest runs fn with a clock of its own.
func inLeaseTest(t *testing.T, fn func(lt *leaseTest)) {
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { fn(&leaseTest{t, &faultyLeases{Bucket: b}}) })
}

// lease returns a lease of a process with a state directory.
func (t *leaseTest) lease(state string, change ...func(*LeaseOptions)) *lease {
	opts := LeaseOptions{TTL: 3 * time.Minute}
	for _, c := range change {
		c(&opts)
	}
	return newLease(t.bucket, state, opts, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
}

// acquire checks how long it takes until a lease is there, or refused.
func (t *leaseTest) acquire(l *lease, atLeast, atMost time.Duration, want error) {
	t.Helper()
	start := time.Now()
	if err := l.acquire(t.Context()); !errors.Is(err, want) {
		t.Fatalf("acquire: got error %v, want %v", err, want)
	}
	if took := time.Since(start); took < atLeast || took > atMost {
		t.Errorf("acquire: took %v, want %v to %v", took, atLeast, atMost)
	}
}

// hold renews a lease until end is called, which returns why it ended.
func (t *leaseTest) hold(l *lease) (end func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.renew(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// faultyLeases is a bucket that fails as it is told.
type faultyLeases struct {
	bucket.Bucket
	mu      sync.Mutex
	down    bool
	lostPut bool // what is put arrives, and the answer does not
}

var errLeaseTest = errors.New("the bucket fails")

func (b *faultyLeases) set(down, lostPut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down, b.lostPut = down, lostPut
}

func (b *faultyLeases) List(ctx context.Context, prefix, after string, fn func(bucket.Info) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return errLeaseTest
	}
	return b.Bucket.List(ctx, prefix, after, fn)
}

func (b *faultyLeases) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return errLeaseTest
	}
	err := b.Bucket.Put(ctx, key, r, size)
	if err == nil && b.lostPut {
		err = errLeaseTest
	}
	return err
}

func (t *leaseTest) objects() (n int) {
	t.Helper()
	if err := t.bucket.List(t.Context(), leasePrefix, "", func(bucket.Info) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLease(t *testing.T) {
	for name, test := range map[string]func(t *leaseTest){
		"free": func(t *leaseTest) {
			t.acquire(t.lease("a"), 0, 0, nil)
		},
		"the same state directory": func(t *leaseTest) {
			for range 5 {
				t.acquire(t.lease("a"), 0, 0, nil)
			}
			if n := t.objects(); n != 2 {
				t.Errorf("%d objects are left, want 2", n)
			}
		},
		"given back": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			if err := a.release(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.acquire(t.lease("b"), 0, 0, nil)
		},
		"given back while somebody waits": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			go func() {
				time.Sleep(30 * time.Second)
				a.release(t.Context())
			}()
			t.acquire(t.lease("b"), 30*time.Second, time.Minute, nil)
		},
		"alive": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			end := t.hold(a)
			t.acquire(t.lease("b"), 0, 2*time.Minute, ErrLeased)
			time.Sleep(time.Hour)
			t.acquire(t.lease("b"), 0, 2*time.Minute, ErrLeased)
			if n := t.objects(); n != 2 {
				t.Errorf("%d objects are left, want 2", n)
			}
			if err := end(); err != nil {
				t.Errorf("the holder has lost its lease: %v", err)
			}
		},
		"gone": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			b := t.lease("b")
			t.acquire(b, 3*time.Minute, 4*time.Minute, nil)
			if err := a.renewOnce(t.Context()); !errors.Is(err, ErrLeased) {
				t.Errorf("the old holder comes back: got error %v, want ErrLeased", err)
			}
			defer t.hold(b)()
			time.Sleep(time.Hour) // the next epochs of the old holder are no more
			if err := a.renewOnce(t.Context()); !errors.Is(err, ErrLeased) {
				t.Errorf("the old holder comes back later: got error %v, want ErrLeased", err)
			}
		},
		"a holder who is slower": func(t *leaseTest) {
			a := t.lease("a", func(o *LeaseOptions) { o.TTL = 20 * time.Minute })
			t.acquire(a, 0, 0, nil)
			t.acquire(t.lease("b"), 20*time.Minute, 25*time.Minute, nil)
		},
		"taken over": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			end := t.hold(a)
			t.acquire(t.lease("b", func(o *LeaseOptions) { o.TakeOver = true }), 0, 0, nil)
			time.Sleep(2 * time.Minute)
			if err := end(); !errors.Is(err, ErrLeased) {
				t.Errorf("the old holder: got error %v, want ErrLeased", err)
			}
		},
		"two that wait": func(t *leaseTest) {
			t.acquire(t.lease("a"), 0, 0, nil)
			errs := make(chan error, 2)
			for _, id := range []string{"b", "c"} {
				go func() { errs <- t.lease(id).acquire(t.Context()) }()
			}
			x, y := <-errs, <-errs
			if x == nil {
				x, y = y, x
			}
			if !errors.Is(x, ErrLeased) || y != nil {
				t.Errorf("got errors %v and %v, want one ErrLeased", x, y)
			}
		},
		"bucket away": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			end := t.hold(a)
			t.bucket.set(true, false)
			time.Sleep(time.Hour)
			t.bucket.set(false, false)
			time.Sleep(2 * time.Minute)
			if err := end(); err != nil {
				t.Errorf("the holder has lost its lease: %v", err)
			}
		},
		"bucket away while somebody waits": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			end := t.hold(a)
			go func() {
				time.Sleep(time.Second)
				t.bucket.set(true, false)
				time.Sleep(time.Hour)
				t.bucket.set(false, false)
			}()
			t.acquire(t.lease("b"), time.Hour, time.Hour+5*time.Minute, ErrLeased)
			if err := end(); err != nil {
				t.Errorf("the holder has lost its lease: %v", err)
			}
		},
		"answers lost": func(t *leaseTest) {
			a := t.lease("a")
			t.acquire(a, 0, 0, nil)
			end := t.hold(a)
			t.bucket.set(false, true)
			time.Sleep(10 * time.Minute)
			t.bucket.set(false, false)
			time.Sleep(10 * time.Minute)
			if err := end(); err != nil {
				t.Errorf("the holder has lost its lease: %v", err)
			}
		},
		"damaged": func(t *leaseTest) {
			if err := t.bucket.Put(t.Context(), leaseKey(7), strings.NewReader("{"), 1); err != nil {
				t.Fatal(err)
			}
			b := t.lease("b")
			t.acquire(b, 3*time.Minute, 4*time.Minute, nil)
			if b.mine.epoch != 8 {
				t.Errorf("got epoch %d, want 8", b.mine.epoch)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { inLeaseTest(t, test) })
	}
}

// A store whose lease is lost takes nothing more, and what it has taken arrives.
func TestLeaseLost(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	if err := s.AcquireLease(t.Context(), LeaseOptions{TTL: 30 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	nar := makeNAR(t, testFile{name: "a", data: []byte("taken before")})
	putNAR(t, s, nar)
	other := newLease(s.opts.Bucket, "other", LeaseOptions{TakeOver: true}, s.log)
	for s.Writable() == nil {
		if err := other.acquire(t.Context()); err != nil && !errors.Is(err, ErrLeased) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.Writable(); !errors.Is(err, ErrReadOnly) || !errors.Is(err, ErrLeased) {
		t.Errorf("got error %v, want ErrReadOnly and ErrLeased", err)
	}
	if h := s.Health(t.Context()); len(h.Read) != 0 || len(h.Write) != 1 {
		t.Errorf("health: got %v", h)
	}
	if _, err := s.PutFile(t.Context(), "log/x", strings.NewReader("log")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("PutFile: got error %v, want ErrReadOnly", err)
	}
	checkStore(t, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(bucketPacks(t, dir)); n != 1 {
		t.Errorf("%d packs are in the bucket, want 1", n)
	}
}
