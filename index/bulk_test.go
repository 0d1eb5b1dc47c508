package index

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Random batches, flushes, snapshots and restarts in bulk, against Go maps.
func TestBulkModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "index")
			o := Options{Memtable: 1 << (11 + seed), Bulk: true}
			b := open(t, path, o)
			m := newModel()
			runs := 0
			seen := map[string][]byte{} // the last of each name
			for range 150 {
				copyRuns(t, path, seen)
				switch rnd.IntN(40) {
				case 0:
					must(t, b.Flush(t.Context()))
					m.checkStats(t, b.Stats())
				case 1, 2:
					must(t, b.Close())
					now := map[string][]byte{}
					copyRuns(t, path, now)
					for name, p := range seen { // as a power cut brings back what was removed
						if now[name] == nil && rnd.IntN(2) == 0 {
							must(t, os.WriteFile(name, p, 0o600))
						}
					}
					o.Bulk = rnd.IntN(3) > 0
					b = open(t, path, o)
					m.check(t, b)
				case 3:
					s, err := b.Snapshot(t.Context())
					must(t, err)
					m.checkSnapshot(t, s)
					must(t, s.Verify(t.Context()))
					must(t, s.Close())
				case 4:
					m.check(t, b)
				default:
					apply(t, b, func(batch *Batch) { m.change(rnd, batch) })
				}
				runs = max(runs, len(listRuns(t, path)))
			}
			m.check(t, b)
			must(t, b.Flush(t.Context()))
			m.check(t, b)
			m.checkStats(t, b.Stats())
			must(t, verify(t.Context(), b))
			if marks, err := b.Marks(t.Context()); err != nil || !maps.Equal(marks, m.marks) {
				t.Errorf("marks: got %v, %v, want %v", marks, err, m.marks)
			}
			if left := listRuns(t, path); len(left) > 0 || runs < 2 {
				t.Errorf("runs: %d at most, left are %v", runs, left)
			}
		})
	}
}

func listRuns(t *testing.T, path string) []string {
	t.Helper()
	names, err := findRuns(path)
	must(t, err)
	return names
}

// copyRuns adds the runs that are there to copies.
func copyRuns(t *testing.T, path string, copies map[string][]byte) {
	t.Helper()
	for _, name := range listRuns(t, path) {
		p, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // merged meanwhile
		}
		must(t, err)
		if !strings.HasSuffix(name, newSuffix) {
			copies[name] = p
		}
	}
}

// bulkIndex closes an index with some runs, and returns how many batches they have.
func bulkIndex(t *testing.T, path string) (batches int) {
	t.Helper()
	b := open(t, path, Options{Memtable: 32 << 10, Bulk: true})
	for batches = range 20 {
		applyBulk(t, b, batches)
	}
	must(t, b.Close())
	if n := len(listRuns(t, path)); n < 4 {
		t.Fatalf("got %d runs", n)
	}
	return batches + 1
}

func applyBulk(t *testing.T, b *Bolt, n int) {
	t.Helper()
	pack, err := b.PackNumber(t.Context(), fmt.Sprint("pack ", n))
	must(t, err)
	apply(t, b, func(batch *Batch) {
		for i := range 100 {
			l := loc(100*n + i)
			l.Pack = pack
			batch.PutChunk(key(100*n+i), l)
		}
		batch.Put(Names, fmt.Append(nil, n), fmt.Append(nil, "value of ", n))
		batch.Mark(fmt.Sprint("pack ", n), 1)
	})
}

// checkBulk checks that all batches that have marks are there as a whole, and returns
// how many have.
func checkBulk(t *testing.T, b *Bolt) int {
	t.Helper()
	marks, err := b.Marks(t.Context())
	must(t, err)
	for n := range 100 {
		if marks[fmt.Sprint("pack ", n)] == 0 {
			continue
		}
		if v, err := b.Get(t.Context(), Names, fmt.Append(nil, n)); err != nil || string(v) != fmt.Sprint("value of ", n) {
			t.Fatalf("row of batch %d: got %q, %v", n, v, err)
		}
		for i := range 100 {
			l := chunk(t, b, key(100*n+i))
			name, err := b.PackName(t.Context(), l.Pack)
			if err != nil || name != fmt.Sprint("pack ", n) || l.Offset != uint64(100*n+i) {
				t.Fatalf("chunk %d of batch %d: got %+v, %q, %v", i, n, l, name, err)
			}
		}
	}
	return len(marks)
}

// Runs are found again, whatever else lies beside them, but not by another index.
func TestBulkReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	batches := bulkIndex(t, path)
	must(t, os.WriteFile(runPath(path, 99)+newSuffix, []byte("unfinished"), 0o600))
	for _, bulk := range []bool{true, false} {
		b := open(t, path, Options{Bulk: bulk})
		if got := checkBulk(t, b); got != batches {
			t.Errorf("got %d batches, want %d", got, batches)
		}
		applyBulk(t, b, batches) // a number of a pack that no run has
		batches++
		if got := checkBulk(t, b); got != batches-1 {
			t.Errorf("got %d batches, want %d", got, batches-1)
		}
		must(t, b.Close())
	}
	b := open(t, path, Options{})
	if got := checkBulk(t, b); got != batches {
		t.Errorf("got %d batches, want %d", got, batches)
	}
	must(t, verify(t.Context(), b))
	must(t, b.Close())

	path = filepath.Join(t.TempDir(), "index")
	bulkIndex(t, path)
	must(t, os.Remove(path))
	b = open(t, path, Options{})
	if got := checkBulk(t, b); got != 0 || len(listRuns(t, path)) > 0 {
		t.Errorf("another index has %d batches, and the runs %v", got, listRuns(t, path))
	}
}

// A crash while runs are merged, at any time: what is in bbolt is put again.
func TestBulkMergeAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	batches := bulkIndex(t, path)
	runs := map[string][]byte{}
	for _, name := range listRuns(t, path) {
		p, err := os.ReadFile(name)
		must(t, err)
		runs[name] = p
	}
	b := open(t, path, Options{})
	must(t, b.Flush(t.Context()))
	must(t, b.Close())
	for name, p := range runs {
		must(t, os.WriteFile(name, p, 0o600))
	}
	b = open(t, path, Options{})
	must(t, b.Flush(t.Context()))
	if got := checkBulk(t, b); got != batches {
		t.Errorf("got %d batches, want %d", got, batches)
	}
	if got := b.Stats().Rows[Chunks]; got != uint64(100*batches) {
		t.Errorf("got %d chunks, want %d", got, 100*batches)
	}
	must(t, verify(t.Context(), b))
}

// A run that is not what was written goes, and all that follow it.
func TestBulkDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index")
	batches := bulkIndex(t, path)
	second := listRuns(t, path)[1]
	whole, err := os.ReadFile(second)
	must(t, err)
	rnd := rand.New(rand.NewPCG(5, 5))
	for n := range 60 {
		b := slices.Clone(whole)
		switch n % 3 {
		case 0:
			b = b[:rnd.IntN(len(b))]
		case 1:
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		case 2:
			b = append(b, byte(n))
		}
		dir := t.TempDir()
		must(t, os.CopyFS(dir, os.DirFS(filepath.Dir(path))))
		path := filepath.Join(dir, "index")
		must(t, os.WriteFile(runPath(path, 2), b, 0o600))
		ix := open(t, path, Options{})
		if got := checkBulk(t, ix); got == 0 || got >= batches {
			t.Errorf("got %d of %d batches", got, batches)
		}
		if left := listRuns(t, path); len(left) != 1 {
			t.Errorf("left are %v", left)
		}
		must(t, ix.Flush(t.Context()))
		must(t, verify(t.Context(), ix))
		must(t, ix.Close())
	}

	// While it is open.
	b := open(t, path, Options{Bulk: true})
	damaged := slices.Clone(whole)
	for i := runHeadSize + 50; i < len(damaged); i += 100 {
		damaged[i] ^= 1
	}
	must(t, os.WriteFile(second, damaged, 0o600))
	failed := 0
	for n := range 100 * batches {
		var out [1]Location
		if err := b.Chunks(t.Context(), []Key{key(n)}, out[:]); errors.Is(err, ErrDamaged) {
			failed++
		} else if err != nil || out[0].Offset != uint64(n) {
			t.Fatalf("chunk %d: got %+v, %v", n, out[0], err)
		}
	}
	if err := b.Flush(t.Context()); failed == 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("flush: got %v, after %d look-ups that failed", err, failed)
	}
	if err := b.Close(); !errors.Is(err, ErrBroken) {
		t.Errorf("close: got %v", err)
	}
	if _, err := OpenBolt(path, Options{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open: got %v", err)
	}
	must(t, Remove(path))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A run that there is no room for is written when there is.
func TestBulkDiskFull(t *testing.T) {
	b := openNew(t, Options{Memtable: 1, Bulk: true})
	in := runPath(b.path, 1) + newSuffix
	must(t, os.Symlink("/dev/full", in))
	apply(t, b, func(batch *Batch) { batch.Put(Names, []byte("a"), []byte(strings.Repeat("x", 100))) })
	apply(t, b, func(batch *Batch) { batch.Mark("log", 1) }) // freezes the first
	until(t, "it is written, after a failure", func() bool { return len(listRuns(t, b.path)) == 1 || b.Stats().WriteErr != nil })
	if err := b.Stats().WriteErr; err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteErr: got %v", err)
	}
	must(t, b.Flush(t.Context()))
	if v, err := b.Get(t.Context(), Names, []byte("a")); err != nil || len(v) != 100 {
		t.Errorf("got %q, %v", v, err)
	}
}
