package index

import (
	"context"
	"fmt"
	"maps"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// boltSnapshot is a read transaction, begun when no memtable was on its way to disk.
type boltSnapshot struct {
	tx      *bbolt.Tx
	marks   map[string]uint64
	calling bool // a function of the caller
}

// Snapshot implements Index. Batches wait until it is there.
func (b *Bolt) Snapshot(ctx context.Context) (Snapshot, error) {
	s, err := b.snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("take snapshot of index: %w", err)
	}
	return s, nil
}

func (b *Bolt) snapshot(ctx context.Context) (*boltSnapshot, error) {
	if err := b.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer b.endTurn()
	if err := b.flushed(ctx); err != nil {
		return nil, err
	}
	tx, err := b.db.Begin(false)
	if err != nil {
		return nil, err
	}
	s := &boltSnapshot{tx: tx, marks: make(map[string]uint64)}
	err = s.read(func() error { return loadMarks(tx, s.marks) })
	if err != nil {
		tx.Rollback()
		return nil, err
	}
	return s, nil
}

// Close implements Snapshot.
func (s *boltSnapshot) Close() error {
	if err := s.tx.Rollback(); err != nil {
		return fmt.Errorf("close snapshot of index: %w", err)
	}
	return nil
}

// Marks implements Snapshot.
func (s *boltSnapshot) Marks() map[string]uint64 { return maps.Clone(s.marks) }

// Chunks implements Reader.
func (s *boltSnapshot) Chunks(ctx context.Context, ids []Key, out []Location) error {
	if len(ids) != len(out) {
		return fmt.Errorf("look up chunks: %d keys and room for %d locations", len(ids), len(out))
	}
	return s.read(func() error {
		bucket := s.tx.Bucket([]byte(Chunks.String()))
		for i := range ids {
			if i%1024 == 0 && ctx.Err() != nil {
				return fmt.Errorf("look up chunks: %w", ctx.Err())
			}
			if err := getChunk(bucket, &ids[i], &out[i]); err != nil {
				return fmt.Errorf("look up chunks: %w", err)
			}
		}
		return nil
	})
}

// Get implements Reader.
func (s *boltSnapshot) Get(ctx context.Context, t Table, key []byte) (value []byte, err error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	err = s.read(func() error {
		if value = clone(s.tx.Bucket([]byte(t.String())).Get(key)); value == nil {
			return ErrNotFound
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("get from %v: %w", t, err)
	}
	return value, nil
}

// ForEachChunk implements Snapshot.
func (s *boltSnapshot) ForEachChunk(ctx context.Context, fn func(Key, Location) error) error {
	return s.forEach(ctx, Chunks, nil, func(key, value []byte) error {
		if len(key) != len(Key{}) {
			return fmt.Errorf("read %v: %x: %w", Chunks, key, errBadLocation)
		}
		l, err := parseLocation(value)
		if err != nil {
			return fmt.Errorf("read %v: %x: %w", Chunks, key, err)
		}
		return fn(Key(key), l)
	})
}

// ForEach implements Snapshot.
func (s *boltSnapshot) ForEach(ctx context.Context, t Table, from []byte, fn func(key, value []byte) error) error {
	if err := t.check(); err != nil {
		return err
	}
	return s.forEach(ctx, t, from, fn)
}

func (s *boltSnapshot) forEach(ctx context.Context, t Table, from []byte, fn func(key, value []byte) error) error {
	return s.read(func() error {
		c := s.tx.Bucket([]byte(t.String())).Cursor()
		for k, v := c.Seek(from); k != nil; k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("read %v: %w", t, err)
			}
			s.calling = true
			err := fn(k, v)
			s.calling = false
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// read runs fn, and turns damaged pages into errors.
func (s *boltSnapshot) read(fn func() error) (err error) {
	defer catchFault(debug.SetPanicOnFault(true), &s.calling, &err)
	return fn()
}
