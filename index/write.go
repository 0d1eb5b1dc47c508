package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
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
		if err := b.freeze(ctx, !b.bulk); err != nil {
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

// freeze waits for the previous memtable, and hands the active one to writeLoop, to
// be written to bbolt or as a run. The caller has the turn.
func (b *Bolt) freeze(ctx context.Context, merge bool) error {
	if err := b.settled(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	m := b.active
	m.merge = merge
	b.frozen, b.active = m, newMemtable()
	b.mu.Unlock()
	b.spilled = !merge
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

// flushed returns when everything applied is durable, with merge in bbolt, and nothing is
// being written. The caller has the turn, so this stays so until it ends.
func (b *Bolt) flushed(ctx context.Context, merge bool) error {
	if !b.active.empty() || merge && b.spilled {
		if err := b.freeze(ctx, merge); err != nil {
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
	b.bulk = false
	var err error
	if !b.active.empty() || b.spilled {
		err = b.freeze(ctx, true)
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
		err := b.writeWhenRoom(m)
		b.mu.Lock()
		b.writeErr = nil
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

// writeWhenRoom writes a memtable as often as it takes until the disk has room for it, or
// once more after Close has begun. The file of an index that is left broken by what
// nobody knows the result of is not used again.
func (b *Bolt) writeWhenRoom(m *memtable) error {
	closing := false
	for wait := b.roomWait; ; wait = min(2*wait, maxRoomWait*b.roomWait) {
		err := b.write(m)
		if err == nil {
			return nil
		}
		if errors.Is(err, errUnsynced) || errors.Is(err, ErrDamaged) {
			if failed := b.distrust(err); failed != nil {
				err = fmt.Errorf("%w; %w", err, failed)
			}
			return err
		}
		if !isFull(err) || closing {
			return err
		}
		b.mu.Lock()
		b.writeErr = err
		b.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-b.closing:
			closing = true
		}
	}
}

func raiseMarks(marks, by map[string]uint64) {
	for name, position := range by {
		marks[name] = max(marks[name], position)
	}
}

// write makes a frozen memtable durable. Its marks are in the last transaction: a
// crash leaves them out while there are rows missing.
func (b *Bolt) write(m *memtable) error {
	if !m.merge {
		return b.spill(m)
	}
	w := writer{b: b, bulk: len(b.runs.list) > 0, empty: b.empty.Swap(false)}
	err := guard(nil, func() error { return w.all(m) })
	w.end()
	if err == nil && w.bulk {
		err = b.dropRuns()
	}
	return err
}
