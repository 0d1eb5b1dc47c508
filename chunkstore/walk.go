package chunkstore

import (
	"context"
	"fmt"
	"iter"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// EachPath calls fn with every store path, in order of the hash parts, and the size of its
// NAR in bytes, as they were at one moment; what is damaged is among them. It reads the
// whole table: about a second for 200,000. An error of fn ends it and is returned.
func (s *Store) EachPath(ctx context.Context, fn func(path narinfo.StorePath, narSize int64) error) error {
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	return snap.ForEach(ctx, index.Paths, nil, func(_, row []byte) error {
		vs, err := decodeVariants(row, s.repo.StoreDir)
		if err != nil {
			return fmt.Errorf("read a path: %w", err)
		}
		if len(vs) == 0 {
			return nil
		}
		return fn(vs[0].info.StorePath, int64(vs[0].info.NarSize))
	})
}

// Stored says what the object's distinct chunks take in the packs: how many there are,
// and the bytes of their frames. Other objects may have the same ones, and none of them is
// this one's own.
func (o *Object) Stored() (chunks int, bytes int64) {
	for _, n := range o.Chunks() {
		chunks++
		bytes += n
	}
	return chunks, bytes
}

// Chunks are the object's distinct chunks, and the bytes of their frames. A frame of several
// chunks is counted with its first.
func (o *Object) Chunks() iter.Seq2[packfile.ID, int64] {
	return func(yield func(packfile.ID, int64) bool) {
		seen := map[packfile.ID]bool{}
		for i := range o.plan.pieces {
			pp := &o.plan.pieces[i]
			if pp.literal() || seen[pp.id] {
				continue
			}
			seen[pp.id] = true
			n := int64(0)
			if pp.loc.Index == 0 {
				n = int64(pp.loc.Prefix) + int64(pp.loc.Payload)
			}
			if !yield(pp.id, n) {
				return
			}
		}
	}
}
