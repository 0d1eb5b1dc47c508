package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"

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

// Apply implements Index.
func (b *Bolt) Apply(ctx context.Context, batch *Batch) error {
	if err := batch.err; err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if err := b.takeTurn(ctx); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	defer b.endTurn()
	if err := b.apply(ctx, batch); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	return nil
}

// apply adds the batch to the active memtable, if need be after freezing a full one. The
// caller has the turn.
func (b *Bolt) apply(ctx context.Context, batch *Batch) error {
	if b.active.size >= b.limit {
		if err := b.freeze(ctx); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active.add(batch)
	return nil
}

// takeTurn waits until it is the caller's turn to change what is applied. Without
// an error endTurn must follow.
func (b *Bolt) takeTurn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-b.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := b.failure(); err != nil {
		b.endTurn()
		return err
	}
	return nil
}

func (b *Bolt) endTurn() { b.turn <- struct{}{} }

func (b *Bolt) failure() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.err
}

// freeze waits for the previous memtable, and hands the active one to writeLoop. The
// caller has the turn.
func (b *Bolt) freeze(ctx context.Context) error {
	if err := b.settled(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	m := b.active
	b.frozen, b.active = m, newMemtable()
	b.mu.Unlock()
	b.work <- m // does not wait: none was frozen, so the channel is empty
	return nil
}

// settled returns when the memtable that is frozen now, if any, is durable.
func (b *Bolt) settled(ctx context.Context) error {
	b.mu.RLock()
	m := b.frozen
	b.mu.RUnlock()
	if m == nil {
		return b.failure()
	}
	select {
	case <-m.written:
		return b.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flushed returns when everything applied is durable, and nothing is being written.
// The caller has the turn, so this stays so until it ends.
func (b *Bolt) flushed(ctx context.Context) error {
	if !b.active.empty() {
		if err := b.freeze(ctx); err != nil {
			return err
		}
	}
	return b.settled(ctx)
}

// Flush implements Index.
func (b *Bolt) Flush(ctx context.Context) error {
	if err := b.flush(ctx); err != nil {
		return fmt.Errorf("flush index: %w", err)
	}
	return nil
}

func (b *Bolt) flush(ctx context.Context) error {
	if err := b.takeTurn(ctx); err != nil {
		return err
	}
	var err error
	if !b.active.empty() {
		err = b.freeze(ctx)
	}
	b.endTurn() // batches may be applied while this one is written
	if err != nil {
		return err
	}
	return b.settled(ctx)
}

// PackNumber implements Index.
func (b *Bolt) PackNumber(ctx context.Context, name string) (uint32, error) {
	n, err := b.packNumber(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("number of pack %q: %w", name, err)
	}
	return n, nil
}

func (b *Bolt) packNumber(ctx context.Context, name string) (uint32, error) {
	if name == "" || len(name) > MaxKey {
		return 0, errors.New("bad length of name")
	}
	if err := b.takeTurn(ctx); err != nil {
		return 0, err
	}
	defer b.endTurn()
	number, err := b.get(packNumbers, []byte(name))
	switch {
	case err == nil && len(number) == 4:
		return binary.BigEndian.Uint32(number), nil
	case err == nil:
		return 0, errors.New("row is damaged")
	case !errors.Is(err, ErrNotFound):
		return 0, err
	case b.lastPack == math.MaxUint32:
		return 0, errors.New("no numbers are left; rebuild the index")
	}
	number = binary.BigEndian.AppendUint32(nil, b.lastPack+1)
	err = b.apply(ctx, &Batch{rows: []rowChange{
		{packNumbers, name, number},
		{packNames, string(number), []byte(name)},
	}})
	if err != nil {
		return 0, err
	}
	b.lastPack++
	return b.lastPack, nil
}

// PackName implements Index.
func (b *Bolt) PackName(ctx context.Context, number uint32) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("name of pack %d: %w", number, err)
	}
	name, err := b.get(packNames, binary.BigEndian.AppendUint32(nil, number))
	if err != nil {
		return "", fmt.Errorf("name of pack %d: %w", number, err)
	}
	return string(name), nil
}

// writeLoop writes frozen memtables until Close. One that could not be written stays
// where it is, and keeps answering reads.
func (b *Bolt) writeLoop() {
	defer close(b.writeDone)
	for m := range b.work {
		err := b.write(m)
		b.mu.Lock()
		if err != nil {
			b.err = fmt.Errorf("%w: %w", ErrBroken, err)
		} else {
			b.frozen = nil
			raiseMarks(b.marks, m.marks)
		}
		b.mu.Unlock()
		close(m.written)
	}
}

func raiseMarks(marks, by map[string]uint64) {
	for name, position := range by {
		marks[name] = max(marks[name], position)
	}
}

// write makes a frozen memtable durable. Its marks are in the last transaction: a
// crash leaves them out while there are rows missing.
func (b *Bolt) write(m *memtable) (err error) {
	defer catchFault(debug.SetPanicOnFault(true), nil, &err)
	w := writer{b: b}
	defer w.rollback()
	for r := range m.sorted() {
		if err := w.put(r); err != nil {
			return fmt.Errorf("write to %v: %w", r.table, err)
		}
	}
	if err := w.putMarks(m.marks); err != nil {
		return fmt.Errorf("write marks: %w", err)
	}
	return w.commit()
}

// writer splits a sequence of rows into transactions.
type writer struct {
	b    *Bolt
	tx   *bbolt.Tx // nil between two
	size int       // bytes of values in it
	n    int       // rows in it
	// What it changes about the number of rows.
	added [numTables]int64
	// bucket is that of table, which the last row was for.
	bucket *bbolt.Bucket
	table  Table
}

func (w *writer) begin() error {
	if w.tx != nil {
		return nil
	}
	tx, err := w.b.db.Begin(true)
	if err != nil {
		return err
	}
	*w = writer{b: w.b, tx: tx}
	return nil
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
	if w.bucket == nil || w.table != r.table {
		w.bucket, w.table = w.tx.Bucket([]byte(r.table.String())), r.table
	}
	w.n++
	w.size += len(r.value)
	had := w.has(r)
	switch {
	case r.value != nil:
		if !had {
			w.added[r.table]++
		}
		return w.bucket.Put(r.key, r.value)
	case had:
		w.added[r.table]--
		return w.bucket.Delete(r.key)
	}
	return nil
}

// has says whether the row is on disk, and adds a chunk that is put to the filter: before
// the memtable is dropped, and after the filter has answered for the past.
func (w *writer) has(r row) bool {
	if r.table == Chunks {
		id := (*Key)(r.key)
		unknown := w.b.filterReady.Load() && !w.b.filter.mayHave(id)
		if r.value != nil {
			w.b.filter.add(id)
		}
		if unknown {
			return false
		}
	}
	return w.bucket.Get(r.key) != nil
}

func (w *writer) putMarks(marks map[string]uint64) error {
	if err := w.begin(); err != nil {
		return err
	}
	bucket := w.tx.Bucket(marksBucket)
	for name, position := range marks {
		if old := bucket.Get([]byte(name)); len(old) == 8 && binary.BigEndian.Uint64(old) >= position {
			continue // never back
		}
		if err := bucket.Put([]byte(name), binary.BigEndian.AppendUint64(nil, position)); err != nil {
			return err
		}
	}
	return nil
}

// commit ends the transaction. The number of rows of a table is kept as its bucket's
// sequence number, which bbolt stores with the bucket and does not use itself.
func (w *writer) commit() error {
	for t, added := range w.added {
		if added == 0 {
			continue
		}
		bucket := w.tx.Bucket([]byte(tableNames[t]))
		if err := bucket.SetSequence(bucket.Sequence() + uint64(added)); err != nil {
			return fmt.Errorf("count rows: %w", err)
		}
	}
	if err := w.tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	w.tx = nil
	for t, added := range w.added {
		w.b.rows[t].Add(uint64(added))
	}
	return nil
}

// rollback drops a transaction that an error, or a fault, left open.
func (w *writer) rollback() {
	if w.tx != nil {
		w.tx.Rollback()
	}
}
