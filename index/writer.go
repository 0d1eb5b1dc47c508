package index

import (
	"encoding/binary"
	"fmt"
	"maps"

	"go.etcd.io/bbolt"
)

// A memtable is written in transactions of at most so many rows and bytes of values,
// in order of the keys. bbolt keeps a transaction's pages in memory, and cannot reuse
// the ones that it replaces before the next: in a large file every row may change a
// page of its own, and one transaction for all would double memory and file.
const (
	txRows  = 32 << 10
	txBytes = 32 << 20
)

// bulkFill is how full pages become that runs are merged into.
const bulkFill = 0.9

// writer splits a sequence of rows into transactions. bbolt trusts the pages that it
// changes: they are checked before it gets to them.
type writer struct {
	b         *Bolt
	bulk      bool // runs are merged
	empty     bool // there was no row before: what comes in order is not there yet
	beginning bool
	tx        *bbolt.Tx // nil between two
	size      int       // bytes of values in it
	n         int       // rows in it
	targets   [256]*target
	buf       []byte
}

// target is one bucket in a transaction.
type target struct {
	bucket *bbolt.Bucket
	cursor cursor // in the bucket as it was before the transaction
	added  int64  // rows
}

func (w *writer) begin() error {
	if w.tx != nil {
		return nil
	}
	*w = writer{b: w.b, bulk: w.bulk, empty: w.empty, buf: w.buf, beginning: true}
	tx, err := w.b.beginTx(true)
	w.beginning = false
	if err != nil {
		return err
	}
	w.tx = tx
	return w.b.checkFreeList(tx)
}

// target returns the target for a table.
func (w *writer) target(t Table, name string) (*target, error) {
	if to := w.targets[t]; to != nil {
		return to, nil
	}
	tree, err := openTree(w.tx, name, t, true)
	if err != nil {
		return nil, err
	}
	to := &target{bucket: w.tx.Bucket([]byte(name)), cursor: cursor{tree: tree}}
	if w.bulk {
		to.bucket.FillPercent = bulkFill
	}
	w.targets[t] = to
	return to, nil
}

// all writes a memtable, and the runs before it.
func (w *writer) all(m *memtable) error {
	marks := m.marks
	if w.bulk {
		marks = maps.Clone(w.b.marks) // those of the runs are among them
		raiseMarks(marks, m.marks)
	}
	for r, err := range ahead(w.b.merged(m)) {
		if err == nil {
			err = w.put(r)
		}
		if err != nil {
			return fmt.Errorf("write to %v: %w", r.table, err)
		}
	}
	if err := w.putMarks(marks); err != nil {
		return fmt.Errorf("write marks: %w", err)
	}
	if !w.bulk {
		return w.commit()
	}
	id := newID()
	if err := w.putID(id); err != nil {
		return fmt.Errorf("write id: %w", err)
	}
	if err := w.commit(); err != nil {
		return err
	}
	w.b.id = id
	return nil
}

// putID gives the index a new id: the runs that are merged are another's from now on. They
// may still be there after a crash, and what is in bbolt is newer than what they say.
func (w *writer) putID(id [16]byte) error {
	to, err := w.target(headTable, string(headBucket))
	if err != nil {
		return err
	}
	old, err := to.cursor.get(idKey)
	if err != nil {
		return err
	}
	return w.store(to, old != nil, row{headTable, idKey, id[:]})
}

func (w *writer) put(r row) error {
	if w.n >= txRows || w.size >= txBytes {
		if err := w.commit(); err != nil {
			return err
		}
	}
	if err := w.begin(); err != nil {
		return err
	}
	to, err := w.target(r.table, r.table.String())
	if err != nil {
		return err
	}
	if r.table == Chunks && r.value != nil {
		w.b.filter.add((*Key)(r.key)) // before the memtable is dropped
	}
	had, err := to.cursor.meet(r.key, w.empty)
	if err != nil {
		return err
	}
	w.n++
	w.size += len(r.value)
	switch {
	case r.value != nil:
		return w.store(to, had, r)
	case had:
		to.added--
		if err := to.cursor.checkSiblings(); err != nil {
			return err
		}
		return to.bucket.Delete(r.key)
	}
	return nil
}

func (w *writer) store(to *target, had bool, r row) error {
	if !had {
		to.added++
	}
	// bbolt keeps the slice until the transaction ends.
	start := len(w.buf)
	if cap(w.buf)-start < len(r.value)+sumSize {
		w.buf, start = make([]byte, 0, max(1<<20, len(r.value)+sumSize)), 0
	}
	w.buf = appendSummed(w.buf, r.table, r.key, r.value)
	return to.bucket.Put(r.key, w.buf[start:])
}

func (w *writer) putMarks(marks map[string]uint64) error {
	if err := w.begin(); err != nil {
		return err
	}
	to, err := w.target(marksTable, string(marksBucket))
	if err != nil {
		return err
	}
	for name, position := range marks {
		old, err := to.cursor.get([]byte(name))
		if err != nil {
			return err
		}
		if len(old) == 8 && binary.BigEndian.Uint64(old) >= position {
			continue // never back
		}
		r := row{marksTable, []byte(name), binary.BigEndian.AppendUint64(nil, position)}
		if err := w.store(to, old != nil, r); err != nil {
			return err
		}
	}
	return nil
}

// commit ends the transaction. The number of rows of a table is kept as its bucket's
// sequence number, which bbolt stores with the bucket and does not use itself.
func (w *writer) commit() error {
	for _, to := range w.targets {
		if to == nil || to.added == 0 {
			continue
		}
		if err := to.bucket.SetSequence(to.rows()); err != nil {
			return fmt.Errorf("count rows: %w", err)
		}
	}
	id, size := uint64(w.tx.ID()), w.tx.Size()
	if err := w.tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", commitFailure(err))
	}
	w.tx = nil
	w.b.txid.Store(id)
	for t, to := range w.targets[:numTables] {
		if to != nil {
			w.b.rows[t].Store(to.rows())
		}
	}
	return w.b.committed(size)
}

// rows is the number of rows after the transaction.
func (to *target) rows() uint64 { return to.cursor.tree.sequence + uint64(to.added) }

// end drops a transaction that an error, or a fault, left open.
func (w *writer) end() {
	lost := w.beginning
	if w.tx != nil {
		tx := w.tx
		lost = guard(nil, func() error { tx.Rollback(); return nil }) != nil
	}
	w.b.stuck = w.b.stuck || lost
}

// committed notes where the list of free pages is now. size is the file's when the
// transaction began.
func (b *Bolt) committed(size int64) error {
	if size > mmapSize/2 { // long before bbolt maps the file anew
		b.begin.Lock()
		b.heads = nil
		b.begin.Unlock()
	}
	return b.view(b.noteFreeList)
}

// freeListAt is where the list of free pages is, and how many pages it has.
type freeListAt struct{ id, pages uint64 }

func findFreeList(tx *bbolt.Tx) (freeListAt, error) {
	m := imageOf(tx)
	h, _, err := readHeads(m)
	if err != nil {
		return freeListAt{}, err
	}
	b, err := m.raw(h.freeList)
	return freeListAt{h.freeList, uint64(len(b)) / pageSize}, err
}

func (b *Bolt) noteFreeList(tx *bbolt.Tx) (err error) {
	b.freeList, err = findFreeList(tx)
	return err
}

// checkFreeList checks what bbolt will free when it writes a new list.
func (b *Bolt) checkFreeList(tx *bbolt.Tx) error {
	at, err := findFreeList(tx)
	if err == nil && at != b.freeList {
		err = damagef("the list of free pages is not where it was")
	}
	return err
}
