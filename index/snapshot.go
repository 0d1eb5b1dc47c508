package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"go.etcd.io/bbolt"
)

// boltSnapshot is a read transaction, begun when no memtable was on its way to disk.
type boltSnapshot struct {
	index   *Bolt
	tx      *bbolt.Tx
	head    head
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
	if err := b.flushed(ctx, true); err != nil {
		return nil, err
	}
	s := &boltSnapshot{index: b, marks: make(map[string]uint64)}
	if err := s.read(s.begin); err != nil {
		if s.tx != nil {
			s.tx.Rollback()
		}
		return nil, err
	}
	return s, nil
}

func (s *boltSnapshot) begin() (err error) {
	if s.tx, err = s.index.beginTx(false); err != nil {
		return err
	}
	if s.head, _, err = readHeads(imageOf(s.tx)); err != nil { // nothing is being written
		return err
	}
	t, err := openTree(s.tx, string(marksBucket), marksTable, false)
	if err != nil {
		return err
	}
	return loadMarks(t, s.marks)
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
		c, err := tableCursor(s.tx, Chunks)
		if err != nil {
			return err
		}
		for i := range ids {
			if i%1024 == 0 && ctx.Err() != nil {
				return fmt.Errorf("look up chunks: %w", ctx.Err())
			}
			if err := getChunk(c, &ids[i], &out[i]); err != nil {
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
		if value, err = getRow(s.tx, t, key); err == nil && value == nil {
			err = ErrNotFound
		}
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, fmt.Errorf("get from %v: %w", t, err)
	}
	return value, nil
}

// ForEachPack implements Snapshot.
func (s *boltSnapshot) ForEachPack(ctx context.Context, fn func(uint32, string) error) error {
	return s.forEach(ctx, packNames, nil, func(key, value []byte) error {
		if len(key) != 4 {
			return damagef("row %x of %v", key, packNames)
		}
		return fn(binary.BigEndian.Uint32(key), string(value))
	})
}

// ForEachChunk implements Snapshot.
func (s *boltSnapshot) ForEachChunk(ctx context.Context, fn func(Key, Location) error) error {
	return s.forEach(ctx, Chunks, nil, func(key, value []byte) error {
		if len(key) != len(Key{}) {
			return fmt.Errorf("read %v: %x: %w", Chunks, key, errBadLocation)
		}
		l, err := ParseLocation(value)
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
	failed := error(nil) // fn's, or ctx's: it is returned as it is
	err := s.read(func() error {
		tree, err := openTree(s.tx, t.String(), t, false)
		if err != nil {
			return err
		}
		return tree.each(from, func(k, v []byte) error {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("read %v: %w", t, err)
			}
			s.calling = true
			failed = fn(k, v)
			s.calling = false
			return failed
		})
	})
	if failed != nil {
		return failed
	}
	return err
}

// read runs fn, and turns damaged pages into errors.
func (s *boltSnapshot) read(fn func() error) (err error) {
	return s.index.watch(guard(&s.calling, fn))
}
