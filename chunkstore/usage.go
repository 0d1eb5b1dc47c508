package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// A View is what the index says at one moment, for reading all of it; commits go on. It is
// for one goroutine, and is to be closed soon, since meanwhile the space of changed rows in
// the index's file is not used again.
type View struct {
	snap     index.Snapshot
	storeDir string
}

// View returns the store as it is now.
func (s *Store) View(ctx context.Context) (*View, error) {
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	return &View{snap, s.repo.StoreDir}, nil
}

// Close must be called once, and before the store is closed.
func (v *View) Close() error { return v.snap.Close() }

// A Path is what is recorded of a store path: the first of its narinfos, as it was uploaded.
type Path struct {
	*narinfo.NarInfo
	// Writer is about when the process was started that has recorded it.
	Writer time.Time
}

// EachPath calls fn with every store path, in order of the hash parts; what is damaged is
// among them. An error of fn ends it and is returned.
func (v *View) EachPath(ctx context.Context, fn func(Path) error) error {
	return v.snap.ForEach(ctx, index.Paths, nil, func(_, row []byte) error {
		p, err := v.decodePath(row)
		if err != nil {
			return fmt.Errorf("read a path: %w", err)
		}
		return fn(p)
	})
}

// Path returns the path with a hash part. The error wraps ErrNotFound if there is none.
func (v *View) Path(ctx context.Context, hashPart string) (Path, error) {
	row, err := v.snap.Get(ctx, index.Paths, []byte(hashPart))
	if errors.Is(err, index.ErrNotFound) {
		err = ErrNotFound
	}
	p := Path{}
	if err == nil {
		p, err = v.decodePath(row)
	}
	if err != nil {
		return p, fmt.Errorf("path %s: %w", hashPart, err)
	}
	return p, nil
}

func (v *View) decodePath(row []byte) (Path, error) {
	vs, err := decodeVariants(row, v.storeDir)
	if err != nil {
		return Path{}, err
	}
	if len(vs) == 0 {
		return Path{}, errRecord
	}
	var ms [8]byte
	writer := vs[0].id.pack().Writer
	copy(ms[2:], writer[:6])
	return Path{vs[0].info, time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC()}, nil
}

// A Chunk is one that is stored. Sizes are bytes.
type Chunk struct {
	ID     packfile.ID
	Size   int64 // before compression
	Stored int64 // its frame in a pack; a frame of several chunks is counted with its first
	Wire   int64 // what a client downloads of it, as zstd
}

// EachChunk calls fn with every chunk that is stored, in order of the IDs. An error of fn
// ends it and is returned.
func (v *View) EachChunk(ctx context.Context, fn func(Chunk) error) error {
	return v.snap.ForEachChunk(ctx, func(id index.Key, l index.Location) error {
		c := Chunk{ID: packfile.ID(id), Size: int64(l.Len), Wire: wireLen(l)}
		if l.Index == 0 {
			c.Stored = int64(l.Prefix) + int64(l.Payload)
		}
		return fn(c)
	})
}

// A Use is what an object consists of.
type Use struct {
	Size     int64         // bytes
	Chunks   []packfile.ID // in their order; one that occurs several times is there as often
	Literals int64         // bytes that a client downloads of what is not in chunks
}

// Use says which chunks an object consists of, whether or not they are stored. The error
// wraps ErrNotFound if there is no such object, and packfile.ErrCorrupt if its records
// are damaged.
func (v *View) Use(ctx context.Context, hash Hash) (*Use, error) {
	c, err := getContent(ctx, v.snap, hash)
	if err != nil {
		return nil, err
	}
	r, err := getRecipe(ctx, v.snap, c.recipe)
	if err != nil {
		return nil, fmt.Errorf("object %x: %w", hash, err)
	}
	u := &Use{Size: c.size, Chunks: make([]packfile.ID, 0, len(r.items))}
	for i := range r.items {
		if it := &r.items[i]; it.literal() {
			u.Literals += int64(packfile.RawLen(int(it.len)))
		} else {
			u.Chunks = append(u.Chunks, it.id)
		}
	}
	return u, nil
}

// Wire is how many bytes a client downloads of an object as zstd. Its errors are those of
// Use.
func (v *View) Wire(ctx context.Context, hash Hash) (int64, error) {
	u, err := v.Use(ctx, hash)
	if err != nil {
		return 0, err
	}
	ids, locs := make([]index.Key, len(u.Chunks)), make([]index.Location, len(u.Chunks))
	for i, id := range u.Chunks {
		ids[i] = index.Key(id)
	}
	if err := v.snap.Chunks(ctx, ids, locs); err != nil {
		return 0, fmt.Errorf("look up the chunks of %x: %w", hash, err)
	}
	n := u.Literals
	for _, l := range locs {
		n += wireLen(l)
	}
	return n, nil
}
