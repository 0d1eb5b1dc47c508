package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

func open(t testing.TB, path string, o Options) *Bolt {
	t.Helper()
	b, err := OpenBolt(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func openNew(t testing.TB, o Options) *Bolt {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "index"), o)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func apply(t testing.TB, b *Bolt, change func(*Batch)) {
	t.Helper()
	var batch Batch
	change(&batch)
	must(t, b.Apply(t.Context(), &batch))
}

// key and loc are the n-th of a fixed series.
func key(n int) Key { return benchKeys(uint64(n) + 1000)() }

func loc(n int) Location {
	return Location{Pack: uint32(n + 1), Offset: uint64(n), Payload: 7, Kind: 2, CRC: uint32(n), Chunks: 1, Len: uint32(n)}
}

func chunk(t testing.TB, r Reader, id Key) Location {
	t.Helper()
	var out [1]Location
	must(t, r.Chunks(t.Context(), []Key{id}, out[:]))
	return out[0]
}

// model is what an index must contain.
type model struct {
	chunks map[Key]Location
	rows   map[Table]map[string]string
	marks  map[string]uint64
}

func newModel() *model {
	m := &model{chunks: map[Key]Location{}, rows: map[Table]map[string]string{}, marks: map[string]uint64{}}
	for t := Recipes; t <= Meta; t++ {
		m.rows[t] = map[string]string{}
	}
	return m
}

// change makes a few random changes to the model, and puts the same into batch.
func (m *model) change(rnd *rand.Rand, batch *Batch) {
	for range rnd.IntN(60) {
		id := key(rnd.IntN(3000))
		if rnd.IntN(5) == 0 {
			batch.DeleteChunk(id)
			delete(m.chunks, id)
			continue
		}
		l := loc(rnd.IntN(1000))
		batch.PutChunk(id, l)
		m.chunks[id] = l
	}
	for range rnd.IntN(20) {
		table := Recipes + Table(rnd.IntN(int(Meta)))
		k := fmt.Sprintf("row %d", rnd.IntN(200))
		if rnd.IntN(5) == 0 {
			batch.Delete(table, []byte(k))
			delete(m.rows[table], k)
			continue
		}
		v := strings.Repeat("v", rnd.IntN(300))
		batch.Put(table, []byte(k), []byte(v))
		m.rows[table][k] = v
	}
	if rnd.IntN(2) == 0 {
		name := fmt.Sprintf("log %d", rnd.IntN(3))
		position := uint64(rnd.IntN(1 << 30))
		batch.Mark(name, position)
		m.marks[name] = max(m.marks[name], position)
	}
}

// check compares every row that may exist.
func (m *model) check(t *testing.T, r Reader) {
	t.Helper()
	var ids []Key
	for n := range 3000 {
		ids = append(ids, key(n))
	}
	out := make([]Location, len(ids))
	must(t, r.Chunks(t.Context(), ids, out))
	for i, id := range ids {
		if out[i] != m.chunks[id] {
			t.Fatalf("chunk %d: got %+v, want %+v", i, out[i], m.chunks[id])
		}
	}
	for table, rows := range m.rows {
		for n := range 200 {
			k := fmt.Sprintf("row %d", n)
			want, ok := rows[k]
			got, err := r.Get(t.Context(), table, []byte(k))
			if ok && (err != nil || string(got) != want || got == nil) {
				t.Fatalf("%v %q: got %q, %v, want %q", table, k, got, err, want)
			}
			if !ok && !errors.Is(err, ErrNotFound) {
				t.Fatalf("%v %q: got %q, %v, want ErrNotFound", table, k, got, err)
			}
		}
	}
}

// checkSnapshot compares the snapshot, by iteration as well.
func (m *model) checkSnapshot(t *testing.T, s Snapshot) {
	t.Helper()
	m.check(t, s)
	if got := s.Marks(); !maps.Equal(got, m.marks) {
		t.Fatalf("marks: got %v, want %v", got, m.marks)
	}
	chunks := map[Key]Location{}
	var last Key
	must(t, s.ForEachChunk(t.Context(), func(k Key, l Location) error {
		if len(chunks) > 0 && bytes.Compare(last[:], k[:]) >= 0 {
			t.Errorf("%x comes after %x", k, last)
		}
		last, chunks[k] = k, l
		return nil
	}))
	if !maps.Equal(chunks, m.chunks) {
		t.Fatalf("got %d chunks, or others, want %d", len(chunks), len(m.chunks))
	}
	for table, want := range m.rows {
		var got []string
		must(t, s.ForEach(t.Context(), table, nil, func(k, v []byte) error {
			if string(v) != want[string(k)] {
				t.Errorf("%v %q: got %q, want %q", table, k, v, want[string(k)])
			}
			got = append(got, string(k))
			return nil
		}))
		if want := slices.Sorted(maps.Keys(want)); !slices.Equal(got, want) {
			t.Fatalf("keys of %v: got %q, want %q", table, got, want)
		}
	}
}

// checkStats compares the numbers of rows. All must be flushed.
func (m *model) checkStats(t *testing.T, s Stats) {
	t.Helper()
	if got, want := s.Rows[Chunks], uint64(len(m.chunks)); got != want || s.Pending != 0 {
		t.Fatalf("chunks: got %d and %d pending, want %d and none", got, s.Pending, want)
	}
	for table, rows := range m.rows {
		if got, want := s.Rows[table], uint64(len(rows)); got != want {
			t.Fatalf("rows of %v: got %d, want %d", table, got, want)
		}
	}
}

// Random batches, flushes, snapshots and restarts, against Go maps.
func TestBoltModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			path := filepath.Join(t.TempDir(), "index")
			o := Options{Memtable: 1 << (9 + 2*seed)}
			b := open(t, path, o)
			m := newModel()
			for range 150 {
				switch rnd.IntN(30) {
				case 0:
					must(t, b.Flush(t.Context()))
					m.checkStats(t, b.Stats())
				case 1:
					must(t, b.Close())
					b = open(t, path, o)
					m.checkStats(t, b.Stats())
					m.check(t, b)
				case 2:
					s, err := b.Snapshot(t.Context())
					must(t, err)
					m.checkSnapshot(t, s)
					must(t, s.Close())
				case 3:
					m.check(t, b)
				default:
					apply(t, b, func(batch *Batch) { m.change(rnd, batch) })
				}
			}
			must(t, b.Flush(t.Context()))
			<-b.fillDone
			m.check(t, b)
			m.checkStats(t, b.Stats())
			if marks, err := b.Marks(t.Context()); err != nil || !maps.Equal(marks, m.marks) {
				t.Errorf("marks: got %v, %v, want %v", marks, err, m.marks)
			}
		})
	}
}

// Readers never miss what was applied before, whatever is frozen or written meanwhile.
func TestBoltConcurrentReaders(t *testing.T) {
	b := openNew(t, Options{Memtable: 8 << 10})
	const batches, perBatch = 150, 40
	var applied atomic.Int64 // batches
	var wg sync.WaitGroup
	for reader := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(reader), 0))
			for n := 0; n < batches; {
				n = int(applied.Load())
				if n == 0 {
					continue
				}
				first := rnd.IntN(n) * perBatch
				var ids [perBatch]Key
				var out [perBatch]Location
				for i := range ids {
					ids[i] = key(first + i)
				}
				if err := b.Chunks(t.Context(), ids[:], out[:]); err != nil {
					t.Error(err)
					return
				}
				for i, got := range out {
					if got != loc(first+i) {
						t.Errorf("chunk %d of %d: got %+v, want %+v", first+i, n*perBatch, got, loc(first+i))
						return
					}
				}
				if _, err := b.Get(t.Context(), Names, ids[0][:]); err != nil {
					t.Errorf("row of batch %d of %d: %v", first/perBatch, n, err)
					return
				}
				b.Stats()
			}
		})
	}
	wg.Go(func() { // a snapshot holds whole batches, and at least those known
		for applied.Load() < batches {
			least := applied.Load()
			s, err := b.Snapshot(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			rows := 0
			s.ForEachChunk(t.Context(), func(Key, Location) error { rows++; return nil })
			if n := int(s.Marks()["n"]); rows != n*perBatch || n < int(least) {
				t.Errorf("snapshot: got %d rows with mark %d, at least %d", rows, n, least)
			}
			s.Close()
		}
	})
	for n := range batches {
		apply(t, b, func(batch *Batch) {
			for i := range perBatch {
				batch.PutChunk(key(n*perBatch+i), loc(n*perBatch+i))
			}
			first := key(n * perBatch)
			batch.Put(Names, first[:], nil)
			batch.Mark("n", uint64(n+1))
		})
		applied.Add(1)
	}
	wg.Wait()
}

func TestBoltSnapshotIsolation(t *testing.T) {
	b := openNew(t, Options{Memtable: 4 << 10})
	rnd := rand.New(rand.NewPCG(1, 1))
	m := newModel()
	for range 20 {
		apply(t, b, func(batch *Batch) { m.change(rnd, batch) })
	}
	s, err := b.Snapshot(t.Context())
	must(t, err)
	defer s.Close()
	later := newModel()
	for range 50 {
		apply(t, b, func(batch *Batch) { later.change(rnd, batch) })
	}
	must(t, b.Flush(t.Context())) // a snapshot does not hold it up
	m.checkSnapshot(t, s)

	// The index can be changed from a callback.
	n := 0
	must(t, s.ForEachChunk(t.Context(), func(id Key, _ Location) error {
		n++
		return b.Apply(t.Context(), &Batch{chunks: []chunkChange{{id: id}}})
	}))
	if n != len(m.chunks) {
		t.Errorf("chunks seen: got %d, want %d", n, len(m.chunks))
	}
}

func TestSnapshotForEach(t *testing.T) {
	b := openNew(t, Options{})
	apply(t, b, func(batch *Batch) {
		for _, k := range []string{"a", "b", "bb", "c"} {
			batch.Put(Names, []byte(k), nil)
			batch.PutChunk(key(int(k[0])), fresh)
		}
	})
	s, err := b.Snapshot(t.Context())
	must(t, err)
	defer s.Close()
	var got []string
	stop := errors.New("stop")
	err = s.ForEach(t.Context(), Names, []byte("b"), func(k, _ []byte) error {
		if got = append(got, string(k)); string(k) == "bb" {
			return stop
		}
		return nil
	})
	if want := []string{"b", "bb"}; err != stop || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v, %v", got, err, want, stop)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = s.ForEachChunk(ctx, func(Key, Location) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got error %v", err)
	}
	if err := s.ForEach(t.Context(), Chunks, nil, nil); err == nil {
		t.Error("ForEach of chunks: got no error")
	}
}

func TestBatchRejects(t *testing.T) {
	b := openNew(t, Options{})
	good := key(1)
	for name, change := range map[string]func(*Batch){
		"no pack":       func(b *Batch) { b.PutChunk(key(2), Location{Chunks: 1}) },
		"plain chunk":   func(b *Batch) { b.Put(Chunks, good[:], nil) },
		"unknown table": func(b *Batch) { b.Put(Meta+1, good[:], nil) },
		"empty key":     func(b *Batch) { b.Put(Names, nil, nil) },
		"long key":      func(b *Batch) { b.Delete(Names, make([]byte, MaxKey+1)) },
		"no mark":       func(b *Batch) { b.Mark("", 1) },
	} {
		var batch Batch
		batch.PutChunk(good, fresh)
		change(&batch)
		if err := b.Apply(t.Context(), &batch); err == nil {
			t.Errorf("%s: got no error", name)
		}
		if got := chunk(t, b, good); got != (Location{}) {
			t.Errorf("%s: part of the batch was applied", name)
		}
	}
	if _, err := b.Get(t.Context(), Chunks, good[:]); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get of a chunk: got error %v", err)
	}
	if err := b.Chunks(t.Context(), make([]Key, 2), make([]Location, 1)); err == nil {
		t.Error("slices of different lengths: got no error")
	}
}

// Values do not share memory with those of the caller.
func TestBoltCopies(t *testing.T) {
	b := openNew(t, Options{})
	k, v := []byte("key"), []byte("value")
	apply(t, b, func(batch *Batch) { batch.Put(Names, k, v) })
	k[0], v[0] = 'X', 'X'
	for range 2 {
		got, err := b.Get(t.Context(), Names, []byte("key"))
		if err != nil || string(got) != "value" {
			t.Fatalf("got %q, %v, want %q", got, err, "value")
		}
		got[0] = 'X'
		again, err := b.Get(t.Context(), Names, []byte("key"))
		if err != nil || string(again) != "value" {
			t.Fatalf("after a change of the result: got %q, %v", again, err)
		}
		must(t, b.Flush(t.Context())) // the second time from disk
	}
}

func TestPackNumbers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{})
	number := func(name string, want uint32) {
		t.Helper()
		if got, err := b.PackNumber(t.Context(), name); err != nil || got != want {
			t.Fatalf("PackNumber(%s): got %d, %v, want %d", name, got, err, want)
		}
		if got, err := b.PackName(t.Context(), want); err != nil || got != name {
			t.Fatalf("PackName(%d): got %q, %v, want %q", want, got, err, name)
		}
	}
	number("w/1", 1)
	number("w/2", 2)
	number("w/1", 1)
	must(t, b.Close())
	b = open(t, path, Options{})
	number("w/2", 2)
	number("w/3", 3)
	for _, n := range []uint32{0, 4} {
		if _, err := b.PackName(t.Context(), n); !errors.Is(err, ErrNotFound) {
			t.Errorf("PackName(%d): got error %v, want ErrNotFound", n, err)
		}
	}
	if _, err := b.PackNumber(t.Context(), ""); err == nil {
		t.Error("PackNumber of no name: got no error")
	}

	// Many goroutines, one number.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := b.PackNumber(t.Context(), "w/4"); err != nil || got != 4 {
				t.Errorf("PackNumber: got %d, %v, want 4", got, err)
			}
		})
	}
	wg.Wait()
}

func TestBoltClosed(t *testing.T) {
	b := openNew(t, Options{})
	must(t, b.Close())
	must(t, b.Close())
	ctx := t.Context()
	_, getErr := b.Get(ctx, Names, []byte("x"))
	_, marksErr := b.Marks(ctx)
	_, snapErr := b.Snapshot(ctx)
	_, numErr := b.PackNumber(ctx, "x")
	_, nameErr := b.PackName(ctx, 1)
	for name, err := range map[string]error{
		"Chunks": b.Chunks(ctx, make([]Key, 1), make([]Location, 1)), "Get": getErr, "Apply": b.Apply(ctx, &Batch{}),
		"Flush": b.Flush(ctx), "Marks": marksErr, "Snapshot": snapErr, "PackNumber": numErr, "PackName": nameErr,
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: got error %v, want ErrClosed", name, err)
		}
	}
}

func TestBoltCancelled(t *testing.T) {
	b := openNew(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := b.Get(ctx, Names, []byte("x"))
	_, snapErr := b.Snapshot(ctx)
	for name, err := range map[string]error{
		"Chunks": b.Chunks(ctx, make([]Key, 1), make([]Location, 1)), "Get": getErr,
		"Apply": b.Apply(ctx, &Batch{}), "Flush": b.Flush(ctx), "Snapshot": snapErr,
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got error %v, want context.Canceled", name, err)
		}
	}
}

// While one memtable is being written and the next is full, Apply waits, but not
// longer than its context, and then it has applied nothing.
func TestBoltApplyWaits(t *testing.T) {
	b := openNew(t, Options{Memtable: 1})
	tx, err := b.db.Begin(true) // keeps writeLoop from writing
	must(t, err)
	apply(t, b, func(batch *Batch) { batch.PutChunk(key(0), loc(0)) })
	apply(t, b, func(batch *Batch) { batch.PutChunk(key(1), loc(1)) }) // freezes the first
	var batch Batch
	batch.PutChunk(key(2), loc(2))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := b.Apply(ctx, &batch); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply: got error %v, want context.DeadlineExceeded", err)
	}
	for n, want := range []Location{loc(0), loc(1), {}} {
		if got := chunk(t, b, key(n)); got != want {
			t.Errorf("chunk %d: got %+v, want %+v", n, got, want)
		}
	}
	must(t, tx.Rollback())
	must(t, b.Apply(t.Context(), &batch))
	must(t, b.Flush(t.Context()))
	if got := chunk(t, b, key(2)); got != loc(2) {
		t.Errorf("chunk 2: got %+v, want %+v", got, loc(2))
	}
}

// After a failed write everything is still read, and nothing more is accepted.
func TestBoltBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{})
	apply(t, b, func(batch *Batch) {
		batch.PutChunk(key(0), loc(0))
		batch.Mark("log", 1)
	})
	must(t, b.Flush(t.Context()))
	b.db.MaxSize = 1 // the file may not grow
	apply(t, b, func(batch *Batch) {
		batch.PutChunk(key(1), loc(1))
		batch.Put(Recipes, []byte("r"), make([]byte, 1<<20))
		batch.Mark("log", 2)
	})
	for _, err := range []error{b.Flush(t.Context()), b.Flush(t.Context()), b.Apply(t.Context(), &Batch{}), b.Close()} {
		if !errors.Is(err, ErrBroken) {
			t.Errorf("got error %v, want ErrBroken", err)
		}
		if errors.Is(err, berrors.ErrMaxSizeReached) {
			continue
		}
		t.Errorf("got error %v, want it to say why", err)
	}
	b = open(t, path, Options{})
	if marks, _ := b.Marks(t.Context()); marks["log"] != 1 {
		t.Errorf("marks: got %v, want 1", marks)
	}
	if got := chunk(t, b, key(0)); got != loc(0) {
		t.Errorf("chunk 0: got %+v", got)
	}
}

func TestBoltBrokenStillReads(t *testing.T) {
	b := openNew(t, Options{})
	b.db.MaxSize = 1
	apply(t, b, func(batch *Batch) {
		batch.PutChunk(key(1), loc(1))
		batch.Put(Recipes, []byte("r"), make([]byte, 1<<20))
	})
	if err := b.Flush(t.Context()); !errors.Is(err, ErrBroken) {
		t.Fatalf("Flush: got error %v, want ErrBroken", err)
	}
	if got := chunk(t, b, key(1)); got != loc(1) {
		t.Errorf("chunk: got %+v, want %+v", got, loc(1))
	}
	if v, err := b.Get(t.Context(), Recipes, []byte("r")); err != nil || len(v) != 1<<20 {
		t.Errorf("row: got %d bytes, %v", len(v), err)
	}
}

// A page that cannot be read is an error: neither "not found" nor the end of the process.
func TestBoltUnreadablePage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{})
	apply(t, b, func(batch *Batch) {
		for n := range 5000 {
			batch.PutChunk(key(n), loc(n))
		}
		batch.Put(Recipes, []byte("r"), []byte("value"))
	})
	must(t, b.Flush(t.Context()))
	<-b.fillDone
	s, err := b.Snapshot(t.Context())
	must(t, err)
	must(t, os.Truncate(path, 8192)) // only the meta pages are left
	var out [1]Location
	_, getErr := b.Get(t.Context(), Recipes, []byte("r"))
	for name, err := range map[string]error{
		"Chunks":       b.Chunks(t.Context(), []Key{key(1)}, out[:]),
		"Get":          getErr,
		"ForEachChunk": s.ForEachChunk(t.Context(), func(Key, Location) error { return nil }),
	} {
		if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "page") {
			t.Errorf("%s: got error %v, want one about a page", name, err)
		}
	}
	s.Close()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	edit := func(name string, fn func(tx *bbolt.Tx) error) string {
		path := filepath.Join(dir, name)
		b := open(t, path, Options{})
		must(t, b.db.Update(fn))
		must(t, b.Close())
		return path
	}
	newer := edit("newer", func(tx *bbolt.Tx) error {
		return tx.Bucket(headBucket).Put(formatKey, binary.BigEndian.AppendUint64(nil, format+1))
	})
	foreign := edit("foreign", func(tx *bbolt.Tx) error { return tx.DeleteBucket(headBucket) })
	missing := edit("missing", func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("names")) })
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, bytes.Repeat([]byte("no index "), 10_000), 0o644))
	busy := filepath.Join(dir, "busy")
	open(t, busy, Options{})
	for _, c := range []struct {
		path, message string
		is            error
	}{
		{newer, "use a newer dedupd", ErrNewer},
		{foreign, "not an index", nil},
		{missing, "table names is missing", nil},
		{text, "invalid database", nil},
		{busy, "another process", nil},
		{filepath.Join(dir, "no", "dir"), "no such file", nil},
	} {
		b, err := OpenBolt(c.path, Options{LockTimeout: time.Millisecond})
		if err == nil {
			b.Close()
			t.Errorf("%s: got no error", c.path)
		} else if !strings.Contains(err.Error(), c.message) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: got error %v, want one with %q", c.path, err, c.message)
		}
	}
	if _, err := OpenBolt(filepath.Join(dir, "x"), Options{Memtable: maxMemtable + 1}); err == nil {
		t.Error("huge memtable: got no error")
	}
}

// A memtable that takes several transactions, and a filter that takes several steps to
// fill while more chunks are written.
func TestBoltLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{})
	const rows = 2*max(txRows, fillStep) + 100
	put := func(from, to int) {
		apply(t, b, func(batch *Batch) {
			for n := from; n < to; n++ {
				batch.PutChunk(key(n), loc(n))
			}
			batch.Put(Contents, []byte("large"), make([]byte, txBytes+1))
			batch.Mark("log", uint64(to))
		})
	}
	check := func(want int) {
		t.Helper()
		ids, out := make([]Key, want+1000), make([]Location, want+1000)
		for n := range ids {
			ids[n] = key(n)
		}
		must(t, b.Chunks(t.Context(), ids, out))
		for n, got := range out {
			if n < want && got != loc(n) || n >= want && got != (Location{}) {
				t.Fatalf("chunk %d of %d: got %+v", n, want, got)
			}
		}
		if s := b.Stats(); s.Rows[Chunks]+s.Pending < uint64(want) || s.Rows[Contents] > 1 {
			t.Errorf("stats: got %+v", s)
		}
	}
	put(0, rows)
	check(rows)
	must(t, b.Close())

	b = open(t, path, Options{Memtable: 64 << 10})
	for from := rows; from < rows+5000; from += 1000 {
		put(from, from+1000)
		check(from + 1000)
	}
	must(t, b.Flush(t.Context()))
	<-b.fillDone
	check(rows + 5000)
	s := b.Stats()
	if got := s.Rows[Chunks]; got != rows+5000 || !s.FilterReady || s.Pending != 0 {
		t.Errorf("stats: got %+v, want %d chunks", s, rows+5000)
	}
	must(t, b.db.View(checkPages))
}
