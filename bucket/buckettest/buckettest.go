// Package buckettest is the contract of bucket.Bucket as tests, for every implementation.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedupd/bucket"
)

// Run tests the buckets that open returns. Each must be empty; open may use
// t.Cleanup to remove it.
func Run(t *testing.T, open func(t *testing.T) bucket.Bucket) {
	for _, c := range []struct {
		name string
		test func(*testing.T, bucket.Bucket)
	}{
		{"PutAndRead", testPutAndRead},
		{"Ranges", testRanges},
		{"FailingWriter", testFailingWriter},
		{"Absent", testAbsent},
		{"CreateOnly", testCreateOnly},
		{"RacingPuts", testRacingPuts},
		{"ShortReader", testShortReader},
		{"List", testList},
		{"ListStops", testListStops},
		{"Delete", testDelete},
		{"DeleteAmidPuts", testDeleteAmidPuts},
		{"DeleteAmidPutsOfOneKey", testDeleteAmidPutsOfOneKey},
		{"Cancelled", testCancelled},
		{"ConcurrentReaders", testConcurrentReaders},
		{"BadKeys", testBadKeys},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Bytes returns n bytes that depend on seed and cannot be compressed.
func Bytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(p)
	return p
}

func put(t *testing.T, b bucket.Bucket, key string, data []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatalf("Put(%s) of %d bytes: %v", key, len(data), err)
	}
}

// wantObject fails unless key holds exactly want.
func wantObject(t *testing.T, b bucket.Bucket, key string, want []byte) {
	t.Helper()
	info, err := b.Stat(t.Context(), key)
	if wantInfo := (bucket.Info{Key: key, Size: int64(len(want))}); err != nil || info != wantInfo {
		t.Fatalf("Stat(%s): got %v, %v, want %v", key, info, err, wantInfo)
	}
	got := make([]byte, len(want))
	if err := b.ReadAt(t.Context(), key, got, 0); err != nil {
		t.Fatalf("ReadAt(%s): %v", key, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("ReadAt(%s): other bytes than were put", key)
	}
	var stream bytes.Buffer
	if err := b.Read(t.Context(), key, 0, int64(len(want)), &stream); err != nil || !bytes.Equal(stream.Bytes(), want) {
		t.Fatalf("Read(%s): %v, or other bytes than were put", key, err)
	}
}

func wantAbsent(t *testing.T, b bucket.Bucket, key string) {
	t.Helper()
	if _, err := b.Stat(t.Context(), key); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("Stat(%s): got error %v, want ErrNotFound", key, err)
	}
	for _, n := range []int{0, 1} {
		if err := b.ReadAt(t.Context(), key, make([]byte, n), 0); !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("ReadAt(%s) of %d bytes: got error %v, want ErrNotFound", key, n, err)
		}
		if err := b.Read(t.Context(), key, 0, int64(n), io.Discard); !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("Read(%s) of %d bytes: got error %v, want ErrNotFound", key, n, err)
		}
	}
}

func testPutAndRead(t *testing.T, b bucket.Bucket) {
	for i, n := range []int{0, 1, 4096, 1<<20 + 1, 5 << 20, 17<<20 + 3} {
		key := fmt.Sprintf("w%d/%d.pack", i, n)
		data := Bytes(uint64(i), n)
		put(t, b, key, data)
		wantObject(t, b, key, data)
	}
	put(t, b, "top-level_object.1", []byte("x"))
	wantObject(t, b, "top-level_object.1", []byte("x"))
	put(t, b, "a/b/c/d", []byte("deep"))
	wantObject(t, b, "a/b/c/d", []byte("deep"))

	// Put takes size bytes of a longer reader.
	put5 := bytes.NewReader([]byte("0123456789"))
	if err := b.Put(t.Context(), "half", put5, 5); err != nil {
		t.Fatal(err)
	}
	wantObject(t, b, "half", []byte("01234"))
}

func testRanges(t *testing.T, b bucket.Bucket) {
	const size = 100_000
	data := Bytes(1, size)
	put(t, b, "w/p", data)
	for _, c := range []struct {
		off int64
		n   int
		err error
	}{
		{0, 1, nil}, {0, size, nil}, {1, size - 1, nil}, {size - 1, 1, nil},
		{4095, 4098, nil}, {50_000, 50_000, nil}, {0, 0, nil}, {size, 0, nil},
		{0, size + 1, io.ErrUnexpectedEOF}, {size - 1, 2, io.ErrUnexpectedEOF},
		{size, 1, io.ErrUnexpectedEOF}, {size + 1000, 10, io.ErrUnexpectedEOF},
		{1 << 40, 10, io.ErrUnexpectedEOF},
	} {
		got := make([]byte, c.n)
		err := b.ReadAt(t.Context(), "w/p", got, c.off)
		if !errors.Is(err, c.err) {
			t.Errorf("ReadAt %d+%d: got error %v, want %v", c.off, c.n, err, c.err)
		}
		if c.err == nil && !bytes.Equal(got, data[c.off:c.off+int64(c.n)]) {
			t.Errorf("ReadAt %d+%d: wrong bytes", c.off, c.n)
		}
		var stream bytes.Buffer
		if err := b.Read(t.Context(), "w/p", c.off, int64(c.n), &stream); !errors.Is(err, c.err) {
			t.Errorf("Read %d+%d: got error %v, want %v", c.off, c.n, err, c.err)
		}
		if c.err == nil && !bytes.Equal(stream.Bytes(), data[c.off:c.off+int64(c.n)]) {
			t.Errorf("Read %d+%d: wrong bytes", c.off, c.n)
		}
	}
}

// testFailingWriter: the error of who is written to is his, whatever it looks like.
func testFailingWriter(t *testing.T, b bucket.Bucket) {
	data := Bytes(1, 1<<20)
	put(t, b, "w/p", data)
	w := &failingWriter{room: 100_000}
	err := b.Read(t.Context(), "w/p", 0, 1<<20, w)
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("got error %v, want the writer's", err)
	}
	if w.after || !bytes.Equal(w.got, data[:len(w.got)]) {
		t.Error("written to after it failed, or other bytes")
	}
}

type failingWriter struct {
	room  int
	got   []byte
	after bool // written to after it failed
}

func (w *failingWriter) Write(p []byte) (int, error) {
	w.after = w.after || w.room == 0
	n := min(w.room, len(p))
	w.got, w.room = append(w.got, p[:n]...), w.room-n
	if n < len(p) {
		return n, fs.ErrNotExist
	}
	return n, nil
}

func testAbsent(t *testing.T, b bucket.Bucket) {
	wantAbsent(t, b, "nothing")
	wantAbsent(t, b, "no/thing")
	put(t, b, "w/p", []byte("x"))
	wantAbsent(t, b, "w/q")
	wantAbsent(t, b, "w")     // the "directory" of an object
	wantAbsent(t, b, "w/p/x") // as if an object were a directory
}

func testCreateOnly(t *testing.T, b bucket.Bucket) {
	first := []byte("the first")
	put(t, b, "w/p", first)
	for _, data := range []string{"the first", "another, and longer", ""} {
		err := b.Put(t.Context(), "w/p", bytes.NewReader([]byte(data)), int64(len(data)))
		if !errors.Is(err, bucket.ErrExists) {
			t.Errorf("second Put: got error %v, want ErrExists", err)
		}
		wantObject(t, b, "w/p", first)
	}
}

func testRacingPuts(t *testing.T, b bucket.Bucket) {
	const writers, rounds, size = 16, 5, 64 << 10
	for round := range rounds {
		key := fmt.Sprintf("r%d/p", round) // a fresh directory each time
		var errs [writers]error
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				errs[i] = b.Put(t.Context(), key, bytes.NewReader(Bytes(uint64(i), size)), size)
			})
		}
		wg.Wait()
		winner := slices.Index(errs[:], nil)
		if winner < 0 {
			t.Fatalf("nobody won: %v", errs)
		}
		for i, err := range errs {
			if i != winner && !errors.Is(err, bucket.ErrExists) {
				t.Errorf("writer %d: got error %v, want ErrExists (winner is %d)", i, err, winner)
			}
		}
		wantObject(t, b, key, Bytes(uint64(winner), size))
	}
}

func testShortReader(t *testing.T, b bucket.Bucket) {
	for _, n := range []int{0, 10} {
		err := b.Put(t.Context(), "w/p", bytes.NewReader(make([]byte, n)), 11)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Put of %d bytes as 11: got error %v, want io.ErrUnexpectedEOF", n, err)
		}
		wantAbsent(t, b, "w/p")
	}
	broken := errors.New("broken")
	if err := b.Put(t.Context(), "w/p", failingReader{broken}, 11); !errors.Is(err, broken) {
		t.Errorf("Put: got error %v, want the reader's", err)
	}
	wantAbsent(t, b, "w/p")
	put(t, b, "w/p", []byte("all is well"))
	wantObject(t, b, "w/p", []byte("all is well"))
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func list(t *testing.T, b bucket.Bucket, prefix, after string) []bucket.Info {
	t.Helper()
	var infos []bucket.Info
	err := b.List(t.Context(), prefix, after, func(i bucket.Info) error {
		infos = append(infos, i)
		return nil
	})
	if err != nil {
		t.Fatalf("List(%q, %q): %v", prefix, after, err)
	}
	return infos
}

func testList(t *testing.T, b bucket.Bucket) {
	if got := list(t, b, "", ""); len(got) != 0 {
		t.Fatalf("List of an empty bucket: got %v", got)
	}
	keys := []string{"a-b", "a.b/x", "a/b", "a/b-c", "a0", "a/c/1", "a/c-1", "a/c.1", "B", "ab/c", "a/c/2", "z/y/x/w", "_", "-"}
	for i, key := range keys {
		put(t, b, key, make([]byte, i))
	}
	for _, prefix := range []string{"", "a", "a/", "a/c", "a/c/", "a/b", "a/b-c", "z/y", "z/y/x/w", "none", "a/none", "z/y/x/w/v", "/", "B/"} {
		for _, after := range []string{"", "A", "a", "a-", "a-b", "a.b/", "a/", "a/b", "a/b-", "a/c", "a/c/1", "a/c/1/x", "a/c0", "a0", "z/y/x/w", "zz"} {
			var want []bucket.Info
			for i, key := range keys {
				if strings.HasPrefix(key, prefix) && key > after {
					want = append(want, bucket.Info{Key: key, Size: int64(i)})
				}
			}
			slices.SortFunc(want, func(x, y bucket.Info) int { return strings.Compare(x.Key, y.Key) })
			if got := list(t, b, prefix, after); !slices.Equal(got, want) {
				t.Errorf("List(%q, %q):\n got %v\nwant %v", prefix, after, got, want)
			}
		}
	}
}

func testListStops(t *testing.T, b bucket.Bucket) {
	for i := range 5 {
		put(t, b, fmt.Sprintf("w/%d", i), nil)
	}
	enough := errors.New("enough")
	calls := 0
	err := b.List(t.Context(), "w/", "", func(bucket.Info) error {
		if calls++; calls == 3 {
			return enough
		}
		return nil
	})
	if err != enough || calls != 3 {
		t.Errorf("List: got error %v after %d calls, want %v after 3", err, calls, enough)
	}
	// An object may be deleted by the very list that shows it.
	err = b.List(t.Context(), "", "", func(i bucket.Info) error { return b.Delete(t.Context(), i.Key) })
	if err != nil {
		t.Errorf("List with Delete: %v", err)
	}
	if got := list(t, b, "", ""); len(got) != 0 {
		t.Errorf("after deleting all: got %v", got)
	}
}

func testDelete(t *testing.T, b bucket.Bucket) {
	put(t, b, "w/p", []byte("first"))
	put(t, b, "w/q", []byte("stays"))
	wantObject(t, b, "w/p", []byte("first"))
	for range 2 { // the second time it is absent
		if err := b.Delete(t.Context(), "w/p"); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantAbsent(t, b, "w/p")
	}
	if err := b.Delete(t.Context(), "w"); err != nil {
		t.Errorf("Delete of a directory's name: %v", err)
	}
	wantObject(t, b, "w/q", []byte("stays"))
	put(t, b, "w/p", []byte("second"))
	wantObject(t, b, "w/p", []byte("second"))
	for _, key := range []string{"w/p", "w/q", "no/thing"} {
		if err := b.Delete(t.Context(), key); err != nil {
			t.Fatalf("Delete(%s): %v", key, err)
		}
	}
	put(t, b, "w", []byte("no directory now"))
	wantObject(t, b, "w", []byte("no directory now"))
}

// testDeleteAmidPuts has directories come and go under the Puts.
func testDeleteAmidPuts(t *testing.T, b bucket.Bucket) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			key := fmt.Sprintf("w/x/%d", i)
			for range 30 {
				if err := b.Put(t.Context(), key, bytes.NewReader([]byte(key)), int64(len(key))); err != nil {
					t.Errorf("Put(%s): %v", key, err)
					return
				}
				got := make([]byte, len(key))
				if err := b.ReadAt(t.Context(), key, got, 0); err != nil || string(got) != key {
					t.Errorf("ReadAt(%s): got %q, %v", key, got, err)
				}
				if err := b.Delete(t.Context(), key); err != nil {
					t.Errorf("Delete(%s): %v", key, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// testDeleteAmidPutsOfOneKey: a Put that meets a Delete has come before or after it.
func testDeleteAmidPutsOfOneKey(t *testing.T, b bucket.Bucket) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 30 {
				err := b.Put(t.Context(), "w/x/y", bytes.NewReader([]byte("data")), 4)
				if err != nil && !errors.Is(err, bucket.ErrExists) {
					t.Errorf("Put: got error %v, want none or ErrExists", err)
				}
				if err := b.Delete(t.Context(), "w/x/y"); err != nil {
					t.Errorf("Delete: %v", err)
				}
			}
		})
	}
	wg.Wait()
	wantAbsent(t, b, "w/x/y")
}

func testCancelled(t *testing.T, b bucket.Bucket) {
	put(t, b, "w/p", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"Put":    func() error { return b.Put(ctx, "w/q", bytes.NewReader([]byte("x")), 1) },
		"ReadAt": func() error { return b.ReadAt(ctx, "w/p", make([]byte, 1), 0) },
		"Read":   func() error { return b.Read(ctx, "w/p", 0, 1, io.Discard) },
		"Stat":   func() error { _, err := b.Stat(ctx, "w/p"); return err },
		"List":   func() error { return b.List(ctx, "", "", func(bucket.Info) error { return nil }) },
		"Delete": func() error { return b.Delete(ctx, "w/p") },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got error %v, want context.Canceled", name, err)
		}
	}
	wantObject(t, b, "w/p", []byte("x"))
}

func testConcurrentReaders(t *testing.T, b bucket.Bucket) {
	const objects, size = 4, 1 << 20
	var data [objects][]byte
	for i := range data {
		data[i] = Bytes(uint64(i), size)
		put(t, b, fmt.Sprintf("w/%d", i), data[i])
	}
	var wg sync.WaitGroup
	for reader := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(reader)))
			for range 50 {
				i, off := rnd.IntN(objects), rnd.IntN(size)
				got := make([]byte, rnd.IntN(min(size-off, 64<<10)+1))
				if err := b.ReadAt(t.Context(), fmt.Sprintf("w/%d", i), got, int64(off)); err != nil {
					t.Errorf("ReadAt: %v", err)
				} else if !bytes.Equal(got, data[i][off:off+len(got)]) {
					t.Errorf("ReadAt of object %d at %d: wrong bytes", i, off)
				}
			}
		})
	}
	wg.Wait()
}

func testBadKeys(t *testing.T, b bucket.Bucket) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a b", "ä", "a\x00"} {
		for name, call := range map[string]func() error{
			"Put":    func() error { return b.Put(t.Context(), key, bytes.NewReader(nil), 0) },
			"ReadAt": func() error { return b.ReadAt(t.Context(), key, make([]byte, 1), 0) },
			"Read":   func() error { return b.Read(t.Context(), key, 0, 1, io.Discard) },
			"Stat":   func() error { _, err := b.Stat(t.Context(), key); return err },
			"Delete": func() error { return b.Delete(t.Context(), key) },
		} {
			if err := call(); err == nil || errors.Is(err, bucket.ErrNotFound) {
				t.Errorf("%s(%q): got error %v, want one about the key", name, key, err)
			}
		}
	}
}
