package index

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Keys of chunks are random: each memtable that is written changes nearly every page of a
// large file. Where there is much to apply, as when the index is rebuilt, memtables are
// written as runs instead, one file each, and all of them are merged into bbolt at once, in
// order of the keys, which meets each page once. Reads ask the runs behind the memtables.
//
// A run is durable when it has its name, and with it the marks in it. Runs have the id of
// their index: those of another are removed. The transaction with the last of what is
// merged, runs and the memtable after them, gives the index a new id. A crash before that
// leaves the runs, and they are merged again; one after it, or one that brings back names
// that were removed, leaves runs that mean nothing.

// runs are the runs of an index. writeLoop alone changes them.
type runs struct {
	mu   sync.RWMutex // held to read, too: a run is closed under it
	list []*run       // the oldest first
	next int          // number of the next one
	rows *filter      // of all keys but those of chunks
	seed [2]maphash.Seed
}

// minRowFilter is the capacity of the first layer of that filter, 1.5 MiB of memory.
const minRowFilter = 1 << 20

func newRuns() *runs {
	return &runs{next: 1, rows: newFilter(minRowFilter), seed: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

// rowKey is what the filter of rows other than chunks has of a key.
func (u *runs) rowKey(t Table, key []byte) (k Key) {
	for i, seed := range u.seed {
		var h maphash.Hash
		h.SetSeed(seed)
		h.WriteByte(byte(t))
		h.Write(key)
		native.PutUint64(k[8*i:], h.Sum64())
	}
	return k
}

// noteRow makes a row of a run known to the filters.
func (b *Bolt) noteRow(r row) {
	if r.table == Chunks {
		b.filter.add((*Key)(r.key))
		return
	}
	k := b.runs.rowKey(r.table, r.key)
	b.runs.rows.add(&k)
}

// openRuns finds the runs that are left from before. What follows a damaged one goes with
// it: its marks rely on what that had.
func (b *Bolt) openRuns() error {
	paths, err := findRuns(b.path)
	if err != nil {
		return err
	}
	whole := true
	for _, path := range paths {
		var u *run
		var marks map[string]uint64
		if whole && !strings.HasSuffix(path, newSuffix) {
			if u, marks, err = b.openRun(path); err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, errOtherIndex) {
				return err
			}
			whole = !errors.Is(err, ErrDamaged)
		}
		if u == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		b.runs.list = append(b.runs.list, u)
		raiseMarks(b.marks, marks)
	}
	if n := len(b.runs.list); n > 0 {
		fmt.Sscanf(b.runs.list[n-1].path[len(b.path)+len(runSuffix):], "%d", &b.runs.next)
		b.runs.next++
		b.spilled = true
	}
	return nil
}

func (b *Bolt) openRun(path string) (*run, map[string]uint64, error) {
	marks := make(map[string]uint64)
	var bad error
	u, err := openRun(path, b.id, func(r row) {
		switch {
		case r.table == marksTable && len(r.value) == 8:
			marks[string(r.key)] = binary.BigEndian.Uint64(r.value)
			return
		case r.table == marksTable, r.table == Chunks && len(r.key) != len(Key{}):
			bad = damagef("a row in a run")
			return
		case r.table == packNames && len(r.key) == 4:
			b.lastPack = max(b.lastPack, binary.BigEndian.Uint32(r.key))
		}
		b.noteRow(r)
	})
	if err == nil && bad != nil {
		u.file.Close()
		err = bad
	}
	if err != nil {
		return nil, nil, err
	}
	return u, marks, nil
}

// spill writes a frozen memtable as a run.
func (b *Bolt) spill(m *memtable) error {
	u, err := writeRun(runPath(b.path, b.runs.next), b.id, m, b.noteRow)
	if err != nil {
		return fmt.Errorf("write run: %w", err)
	}
	b.runs.next++
	b.runs.mu.Lock()
	defer b.runs.mu.Unlock()
	b.runs.list = append(b.runs.list, u)
	return nil
}

// getFromRuns is getFromMemory for the runs.
func (b *Bolt) getFromRuns(t Table, key []byte) (value []byte, known bool, err error) {
	b.runs.mu.RLock()
	defer b.runs.mu.RUnlock()
	if len(b.runs.list) == 0 {
		return nil, false, nil
	}
	if k := b.runs.rowKey(t, key); t != Chunks && !b.runs.rows.mayHave(&k) {
		return nil, false, nil
	}
	for i := len(b.runs.list) - 1; i >= 0; i-- {
		if value, known, err := b.runs.list[i].get(t, key); known || err != nil {
			return value, known, err
		}
	}
	return nil, false, nil
}

// chunksInRuns sets what the runs know, and returns the indices of the rest.
func (b *Bolt) chunksInRuns(ids []Key, out []Location, missed []int) ([]int, error) {
	kept := missed[:0]
	for _, i := range missed {
		value, known, err := b.getFromRuns(Chunks, ids[i][:])
		if err == nil && value != nil {
			out[i], err = ParseLocation(value)
		}
		if err != nil {
			return nil, fmt.Errorf("%x: %w", ids[i], err)
		}
		if !known {
			kept = append(kept, i)
		}
	}
	return kept, nil
}

// merged yields the rows of all runs and of m, the newest of each, in order, and then
// what went wrong with the runs, if anything.
func (b *Bolt) merged(m *memtable) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		next, stop := iter.Pull(m.sorted())
		defer stop()
		var failed error
		all := make(sources, 0, len(b.runs.list)+1)
		all.add(&source{next: next, age: len(b.runs.list)})
		for age, u := range b.runs.list {
			all.add(&source{next: u.next(&failed), age: age})
		}
		heap.Init(&all)
		var last row
		for len(all) > 0 && failed == nil {
			s := all[0]
			if last.key == nil || compareRows(last.table, last.key, s.row.table, s.row.key) != 0 {
				if last = s.row; !yield(last, nil) {
					return
				}
			}
			if s.advance() {
				heap.Fix(&all, 0)
			} else {
				heap.Pop(&all)
			}
		}
		if failed != nil {
			yield(row{}, failed)
		}
	}
}

// ahead is a sequence that is made in another goroutine, somewhat ahead.
func ahead(rows iter.Seq2[row, error]) iter.Seq2[row, error] {
	type item struct {
		row row
		err error
	}
	return func(yield func(row, error) bool) {
		made, enough, done := make(chan []item, 4), make(chan struct{}), make(chan struct{})
		defer func() { close(enough); <-done }()
		go func() {
			defer close(done)
			defer close(made)
			var batch []item
			send := func() bool {
				select {
				case made <- batch:
					batch = make([]item, 0, 1024)
					return true
				case <-enough:
					return false
				}
			}
			for r, err := range rows {
				if batch = append(batch, item{r, err}); len(batch) >= 1024 && !send() {
					return
				}
			}
			send()
		}()
		for batch := range made {
			for _, i := range batch {
				if !yield(i.row, i.err) {
					return
				}
			}
		}
	}
}

// next returns a function that returns the run's next row, marks left out.
func (u *run) next(failed *error) func() (row, bool) {
	c, err := u.cursor()
	if err != nil {
		*failed = err
		return func() (row, bool) { return row{}, false }
	}
	return func() (row, bool) {
		for c.next() {
			if c.row.table != marksTable {
				return c.row, true
			}
		}
		if c.err != nil {
			*failed = c.err
		}
		return row{}, false
	}
}

// source is one of the sequences that are merged.
type source struct {
	row  row
	age  int // the highest is the newest
	next func() (row, bool)
}

func (s *source) advance() (ok bool) {
	s.row, ok = s.next()
	return ok
}

// sources is a heap: the next row is on top, the newest one of equal keys first.
type sources []*source

func (h *sources) add(s *source) {
	if s.advance() {
		*h = append(*h, s)
	}
}

func (h sources) Len() int      { return len(h) }
func (h sources) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h sources) Less(i, j int) bool {
	a, b := h[i], h[j]
	c := compareRows(a.row.table, a.row.key, b.row.table, b.row.key)
	return c < 0 || c == 0 && a.age > b.age
}
func (h *sources) Push(x any) { *h = append(*h, x.(*source)) }
func (h *sources) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// dropRuns removes the runs, after all that is in them is in bbolt.
func (b *Bolt) dropRuns() error {
	list, err := b.runs.close()
	for _, u := range list {
		err = errors.Join(err, os.Remove(u.path))
	}
	return err
}

// close closes the runs, once nobody reads them, and forgets them.
func (u *runs) close() (list []*run, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	list, u.list, u.rows = u.list, nil, newFilter(minRowFilter)
	for _, r := range list {
		err = errors.Join(err, r.file.Close())
	}
	return list, err
}

// count returns the number of rows in runs.
func (u *runs) count() (n uint64) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, r := range u.list {
		n += uint64(r.rows)
	}
	return n
}

// Remove removes the index at path with all that belongs to it. Nobody has it open.
func Remove(path string) error {
	names, err := findRuns(path)
	if err != nil {
		return err
	}
	for _, name := range append(names, path+newSuffix, path+distrustSuffix, path) {
		if err := removeIfThere(name); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}
