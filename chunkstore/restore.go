package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// restoringSuffix is of an index that a snapshot is read into. It gets its place when it
// is whole and on disk; a crash before that leaves nothing that counts.
const restoringSuffix = ".restoring"

// partsMemory bounds the bytes of parts of a snapshot that are read ahead, as they are
// stored and unpacked.
const partsMemory = 64 << 20

// restoreIndex makes the index at path, where there is none, from the newest snapshot in the
// bucket that is whole. Without one, and if anything goes wrong, there is none as before,
// and the packs are read. The error is that of the context, or of a disk that cannot be
// cleaned.
func (s *Store) restoreIndex(ctx context.Context, path string) error {
	if err := index.Remove(path + restoringSuffix); err != nil {
		return err
	}
	repo, err := readRepository(ctx, s.opts.Bucket)
	if errors.Is(err, bucket.ErrNotFound) {
		return nil
	}
	owner, ownerErr := stateOwner(s.opts.State)
	found := []snapshotObjects{}
	if err = errors.Join(err, ownerErr); err == nil && (owner.ID == "" || owner.ID == repo.ID) {
		found, err = listSnapshots(ctx, s.opts.Bucket)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("whether there are snapshots of the index is not known", "err", err)
	}
	for _, o := range slices.Backward(found) {
		if !o.complete {
			continue
		}
		err := s.restoreFrom(ctx, o.id, repo.ID, path)
		if err == nil {
			s.restored = string(o.id)
			return nil
		}
		if ctx.Err() == nil {
			s.log.Warn("a snapshot of the index cannot be used", "id", o.id, "err", err)
		}
		if err := index.Remove(path + restoringSuffix); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *Store) restoreFrom(ctx context.Context, id snapshotID, repository, path string) error {
	begun := time.Now()
	m, err := readManifest(ctx, s.opts.Bucket, id, repository)
	if err != nil {
		return err
	}
	s.log.Info("restoring the index from a snapshot", "id", id, "created", m.Created, "packs", m.Packs, "chunks", m.Chunks)
	ix, err := index.OpenBolt(path+restoringSuffix, index.Options{Memtable: s.opts.IndexMemory, RoomWait: s.opts.RetryInterval / 10, Bulk: true})
	if err != nil {
		return err
	}
	err = s.readSnapshot(ctx, id, m, ix)
	if err == nil {
		err = ix.Flush(ctx)
	}
	if err = errors.Join(err, ix.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+restoringSuffix, path); err != nil {
		return err
	}
	s.log.Info("the index is restored from a snapshot", "id", id, "elapsed", time.Since(begun))
	return syncDir(filepath.Dir(path))
}

// readSnapshot reads all rows of a snapshot into an index.
func (s *Store) readSnapshot(ctx context.Context, id snapshotID, m *manifest, ix index.Index) error {
	type object struct {
		part
		number int
		plain  []byte
	}
	objects := make([]*object, len(m.Parts))
	for n, p := range m.Parts {
		objects[n] = &object{part: p, number: n}
	}
	rows := rowReader{ix: ix, numbers: map[uint32]uint32{}}
	progress := time.Now()
	memory := func(o *object) int64 { return min(o.Size+o.Plain, partsMemory) }
	err := inOrder(ctx, semaphore.NewWeighted(partsMemory), objects, memory, func(o *object) error {
		data := make([]byte, o.Size)
		err := s.opts.Bucket.ReadAt(ctx, id.partKey(o.number), data, 0)
		if err == nil {
			o.plain, err = o.unpack(data)
		}
		return wrapPart(o.number, err)
	}, func(o *object) error {
		err := rows.apply(ctx, o.plain, o.Rows)
		o.plain = nil
		if time.Since(progress) >= logInterval {
			progress = time.Now()
			s.log.Info("restoring the index from a snapshot", "done", o.number+1, "of", len(m.Parts))
		}
		return wrapPart(o.number, err)
	})
	if err == nil && (rows.chunks != m.Chunks || rows.marks != m.Packs) {
		err = fmt.Errorf("it has %d chunks and %d packs, not %d and %d: %w", rows.chunks, rows.marks, m.Chunks, m.Packs, packfile.ErrCorrupt)
	}
	return err
}

func wrapPart(n int, err error) error {
	if err != nil {
		return fmt.Errorf("part %d: %w", n, err)
	}
	return nil
}
