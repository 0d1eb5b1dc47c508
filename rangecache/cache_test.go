package rangecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const testBlock = 4 << 10

// A testSource has objects whose bytes depend on their keys.
type testSource struct {
	size    int64
	reads   atomic.Int64
	bytes   atomic.Int64
	read    func(n int64) error // called for each request, if it is not nil, with its number
	barrier func(off int64)     // called before each byte at a multiple of testBlock is written
	objects sync.Map
}

func (s *testSource) object(key string) []byte {
	if b, ok := s.objects.Load(key); ok {
		return b.([]byte)
	}
	var seed [32]byte
	copy(seed[:], key)
	b := make([]byte, s.size)
	rand.NewChaCha8(seed).Read(b)
	s.objects.Store(key, b)
	return b
}

func (s *testSource) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	number := s.reads.Add(1)
	if s.read != nil {
		if err := s.read(number); err != nil {
			return err
		}
	}
	if off+n > s.size {
		return io.ErrUnexpectedEOF
	}
	object := s.object(key)
	for end := off + n; off < end; {
		if s.barrier != nil {
			s.barrier(off)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		step := min(end-off, testBlock-off%testBlock)
		s.bytes.Add(step)
		if _, err := w.Write(object[off : off+step]); err != nil {
			return err
		}
		off += step
	}
	return nil
}

func openTest(t *testing.T, s Source, dir string, change ...func(*Options)) *Cache {
	t.Helper()
	o := Options{Dir: dir, Size: 256 * testBlock, BlockSize: testBlock, Fetch: 16 * testBlock, Memory: 4 * testBlock, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, c := range change {
		c(&o)
	}
	c, err := Open(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantRange reads a range and compares it.
func wantRange(t *testing.T, r *Reader, s *testSource, key string, off, n, until int64) {
	t.Helper()
	got := make([]byte, n)
	if err := r.ReadAt(t.Context(), key, got, off, until); err != nil {
		t.Errorf("%s at %d: %v", key, off, err)
	} else if !bytes.Equal(got, s.object(key)[off:off+n]) {
		t.Errorf("%s at %d: other bytes", key, off)
	}
}

// checkSlots fails unless every slot is free, or in the cache, and nothing is in flight.
func checkSlots(t *testing.T, c *Cache) {
	t.Helper()
	c.running.Wait()
	c.blocks.CleanUp()
	used := map[uint32]bool{}
	for _, p := range c.blocks.All() {
		if used[p.slot] {
			t.Errorf("slot %d is used twice", p.slot)
		}
		used[p.slot] = true
	}
	for _, slot := range c.disk.unused {
		if used[slot] {
			t.Errorf("slot %d is free and used, or free twice", slot)
		}
		used[slot] = true
	}
	if len(used) != int(c.disk.next) || len(c.flights) != 0 {
		t.Errorf("%d slots are used or free, want %d; %d flights", len(used), c.disk.next, len(c.flights))
	}
}

// Readers go through objects as downloads do: forward, with pauses, jumps and ends in the
// middle, more of them than the cache has room for.
func TestRead(t *testing.T) {
	s := &testSource{size: 100*testBlock + 321}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := openTest(t, s, t.TempDir())
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 8 {
				r := c.NewReader()
				key := fmt.Sprint(rnd.IntN(8))
				until := rnd.Int64N(s.size) + 1
				for off := rnd.Int64N(until); off < until; {
					n := min(until-off, 1+rnd.Int64N(5*testBlock))
					wantRange(t, r, s, key, off, n, until)
					if off += n + rnd.Int64N(100); rnd.IntN(10) == 0 {
						r.Prefetch(fmt.Sprint(rnd.IntN(8)), rnd.Int64N(s.size/2), s.size/2)
					}
					if rnd.IntN(40) == 0 {
						break
					}
				}
				r.Close()
			}
		})
	}
	wg.Wait()
	checkSlots(t, c)
	if got := c.Stats(); got.Evictions == 0 || got.Hits == 0 || got.Misses == 0 || got.Dropped != 0 || got.FetchedBytes == 0 {
		t.Errorf("got %+v", got)
	}
}

// What is read on takes one request for as much as one is for, however many read it.
func TestFewRequests(t *testing.T) {
	s := &testSource{size: 64 * testBlock}
	c := openTest(t, s, t.TempDir())
	for range 2 { // the second time nothing is missing
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				r := c.NewReader()
				defer r.Close()
				for off := int64(0); off < s.size; off += 3000 {
					wantRange(t, r, s, "a", off, min(3000, s.size-off), s.size)
				}
			})
		}
		wg.Wait()
		if got := s.reads.Load(); got != 4 {
			t.Errorf("got %d requests, want 4", got)
		}
		if got := s.bytes.Load(); got != s.size {
			t.Errorf("got %d bytes, want %d", got, s.size)
		}
	}
	checkSlots(t, c)
}

// The first block can be read before the second has come.
func TestFirstByteEarly(t *testing.T) {
	read := make(chan struct{})
	s := &testSource{size: 16 * testBlock, barrier: func(off int64) {
		if off == testBlock {
			<-read
		}
	}}
	c := openTest(t, s, t.TempDir())
	r := c.NewReader()
	defer r.Close()
	wantRange(t, r, s, "a", 10, 100, s.size)
	close(read)
	wantRange(t, r, s, "a", 0, s.size, s.size)
	if got := s.reads.Load(); got != 1 {
		t.Errorf("got %d requests, want 1", got)
	}
}

// A request ends when its last reader has gone, and not before.
func TestAbandoned(t *testing.T) {
	more := make(chan struct{})
	s := &testSource{size: 16 * testBlock, barrier: func(off int64) {
		if off >= testBlock {
			<-more
		}
	}}
	c := openTest(t, s, t.TempDir())
	first, second := c.NewReader(), c.NewReader()
	wantRange(t, first, s, "a", 0, 100, s.size)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.ReadAt(ctx, "a", make([]byte, 9), 2*testBlock, s.size); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { wantRange(t, second, s, "a", testBlock, 100, s.size) })
	more <- struct{}{}
	wg.Wait()
	first.Close()
	wg.Go(func() { wantRange(t, second, s, "a", 2*testBlock, 100, s.size) })
	more <- struct{}{}
	wg.Wait()
	second.Close()
	close(more)
	c.running.Wait()
	if got := s.bytes.Load(); got > 4*testBlock {
		t.Errorf("%d bytes were fetched, though nobody was there", got)
	}
	checkSlots(t, c)
	third := c.NewReader()
	defer third.Close()
	wantRange(t, third, s, "a", 0, s.size, s.size)
}

// A request that fails is repeated for what is wanted now, once.
func TestFailingSource(t *testing.T) {
	broken := errors.New("broken")
	fail := int64(1)
	s := &testSource{size: 16 * testBlock, read: func(n int64) error {
		if n <= fail {
			return broken
		}
		return nil
	}}
	c := openTest(t, s, t.TempDir())
	r := c.NewReader()
	defer r.Close()
	wantRange(t, r, s, "a", 0, 100, s.size)
	fail = 1000
	if err := r.ReadAt(t.Context(), "b", make([]byte, 3*testBlock), 5, s.size); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	fail = 0
	if err := r.ReadAt(t.Context(), "b", make([]byte, 100), s.size-99, s.size+1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want io.ErrUnexpectedEOF", err)
	}
	wantRange(t, r, s, "b", s.size-99, 99, s.size+100) // who wants too much gets what there is
	wantRange(t, r, s, "b", 0, s.size, s.size)
	r.Close()
	checkSlots(t, c)
}

func TestRestart(t *testing.T) {
	s := &testSource{size: 32 * testBlock}
	for _, test := range []struct {
		name    string
		change  func(t *testing.T, dir string)
		size    int64 // blocks of the cache afterwards
		fetched int64 // blocks that are missing
	}{
		{"as it was", func(*testing.T, string) {}, 256, 0},
		{"smaller", func(*testing.T, string) {}, 64, 0},
		{"larger", func(*testing.T, string) {}, 1024, 0},
		{"a flipped byte", func(t *testing.T, dir string) { flip(t, dir, "blocks", 5*testBlock+7) }, 256, 1},
		{"a flipped byte of a record", func(t *testing.T, dir string) { flip(t, dir, "slots", 5*recordSize+7) }, 256, 1},
		{"cut off", func(t *testing.T, dir string) { cut(t, dir, "blocks", 30*testBlock+1) }, 256, 2},
		{"records cut off", func(t *testing.T, dir string) { cut(t, dir, "slots", 30*recordSize+1) }, 256, 3},
		{"no blocks", func(t *testing.T, dir string) { cut(t, dir, "blocks", 0) }, 256, 32},
		{"no records", func(t *testing.T, dir string) { cut(t, dir, "slots", 0) }, 256, 32},
		{"half a header", func(t *testing.T, dir string) { cut(t, dir, "slots", 20) }, 256, 32},
		{"another version", func(t *testing.T, dir string) { flip(t, dir, "slots", 12) }, 256, 32},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			c := openTest(t, s, dir)
			read := func() {
				r := c.NewReader()
				defer r.Close()
				wantRange(t, r, s, "a", 0, s.size, s.size)
			}
			read()
			c.Close()
			test.change(t, dir)
			for i, want := range []int64{test.fetched * testBlock, 0} {
				c = openTest(t, s, dir, func(o *Options) { o.Size = test.size * testBlock })
				s.bytes.Store(0)
				read()
				if got := s.bytes.Load(); got != want {
					t.Errorf("start %d: %d bytes were fetched, want %d", i, got, want)
				}
				checkSlots(t, c)
				c.Close()
			}
		})
	}
}

func flip(t *testing.T, dir, name string, off int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, dir, name string, size int64) {
	t.Helper()
	if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
		t.Fatal(err)
	}
}

// A disk that takes nothing, or has no room, costs requests and nothing else.
func TestFailingDisk(t *testing.T) {
	s := &testSource{size: 32 * testBlock}
	for _, test := range []struct {
		name   string
		change func(*Options)
		fail   func(*Cache)
	}{
		{"writes fail", func(*Options) {}, func(c *Cache) { c.disk.blocks.Close() }},
		{"no room", func(o *Options) { o.Room = func() bool { return false } }, func(*Cache) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := openTest(t, s, t.TempDir(), test.change)
			test.fail(c)
			s.bytes.Store(0)
			r := c.NewReader()
			for off := int64(0); off < s.size; off += 3 * testBlock {
				wantRange(t, r, s, "a", off, min(3*testBlock, s.size-off), s.size)
			}
			r.Close()
			if got := s.bytes.Load(); got > 2*s.size {
				t.Errorf("%d bytes were fetched for %d", got, s.size)
			}
			checkSlots(t, c)
		})
	}
}

func TestForget(t *testing.T) {
	s := &testSource{size: 8 * testBlock}
	c := openTest(t, s, t.TempDir())
	r := c.NewReader()
	defer r.Close()
	wantRange(t, r, s, "a", 0, s.size, s.size)
	c.Forget("a", testBlock+1, testBlock)
	s.bytes.Store(0)
	wantRange(t, r, s, "a", 0, s.size, s.size)
	if got, want := s.bytes.Load(), int64(2*testBlock); got != want {
		t.Errorf("%d bytes were fetched, want %d", got, want)
	}
}

func TestClosed(t *testing.T) {
	s := &testSource{size: 8 * testBlock}
	c := openTest(t, s, t.TempDir())
	c.Close()
	r := c.NewReader()
	defer r.Close()
	if err := r.ReadAt(t.Context(), "a", make([]byte, 1), 0, 1); !errors.Is(err, errClosed) {
		t.Errorf("got %v, want %v", err, errClosed)
	}
	if r.Prefetch("a", 0, 1) {
		t.Error("a closed cache prefetches")
	}
	if _, err := Open(s, Options{Dir: t.TempDir(), Size: 1}); err == nil || !strings.Contains(err.Error(), "at least") {
		t.Errorf("a cache of one byte: got %v", err)
	}
}
