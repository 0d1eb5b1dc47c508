package chunkstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// An applier turns what packs say into rows of the index. The committer, recovery and
// rebuilding all use it. Its look-ups see what it has collected and not applied yet.
// Applying the same entries again, or in another order, gives the same index.
type applier struct {
	ix       index.Index
	storeDir string
	batch    *index.Batch
	rows     map[rowKey][]byte
	chunks   map[packfile.ID]index.Location
	spoiled  map[packfile.Name]bool // packs with damage, nil if not known; see findSpoiled
	damages  int                    // records of damage that were applied
}

type rowKey struct {
	table index.Table
	key   string
}

func newApplier(ix index.Index, storeDir string) *applier {
	a := &applier{ix: ix, storeDir: storeDir}
	a.reset()
	return a
}

func (a *applier) reset() {
	a.batch = &index.Batch{}
	a.rows = map[rowKey][]byte{}
	a.chunks = map[packfile.ID]index.Location{}
}

// flush applies what was collected: it is visible to everybody on return.
func (a *applier) flush(ctx context.Context) error {
	defer a.reset()
	return a.ix.Apply(ctx, a.batch)
}

func (a *applier) get(ctx context.Context, t index.Table, key []byte) ([]byte, error) {
	if v, ok := a.rows[rowKey{t, string(key)}]; ok && v == nil {
		return nil, index.ErrNotFound
	} else if ok {
		return v, nil
	}
	return a.ix.Get(ctx, t, key)
}

func (a *applier) delete(t index.Table, key []byte) {
	a.rows[rowKey{t, string(key)}] = nil
	a.batch.Delete(t, key)
}

func (a *applier) put(t index.Table, key, v []byte) {
	a.rows[rowKey{t, string(key)}] = v
	a.batch.Put(t, key, v)
}

// chunk returns where a chunk is, the zero Location if it is nowhere.
func (a *applier) chunk(ctx context.Context, id packfile.ID) (index.Location, error) {
	if l, ok := a.chunks[id]; ok {
		return l, nil
	}
	var l [1]index.Location
	err := a.ix.Chunks(ctx, []index.Key{index.Key(id)}, l[:])
	return l[0], err
}

// frames adds the frames that lie one after another from offset on in the pack. A chunk
// that is in several packs is the one in the pack with the highest name, and the others
// are its copies.
func (a *applier) frames(ctx context.Context, number uint32, pack packfile.Name, offset int64, frames []packfile.FrameInfo) error {
	known, err := a.knownChunks(ctx, frames)
	if err != nil {
		return err
	}
	for _, f := range frames {
		start := uint32(0)
		for i, c := range f.Chunks {
			l := frameLocation(number, offset, f, i, start)
			start += c.Len
			old, ok := a.chunks[c.ID]
			if !ok {
				old = known[0]
			}
			known = known[1:]
			if err := a.place(ctx, pack, c.ID, old, l); err != nil {
				return err
			}
		}
		offset += f.Size()
	}
	return nil
}

// knownChunks returns where the index has the chunks of frames, one after another, in
// one look-up: one by one they cost more than all the rest of applying a pack.
func (a *applier) knownChunks(ctx context.Context, frames []packfile.FrameInfo) ([]index.Location, error) {
	var keys []index.Key
	for _, f := range frames {
		for _, c := range f.Chunks {
			keys = append(keys, index.Key(c.ID))
		}
	}
	known := make([]index.Location, len(keys))
	return known, a.ix.Chunks(ctx, keys, known)
}

// place says that a chunk that is known at old, if anywhere, is also at l, which is in pack.
func (a *applier) place(ctx context.Context, pack packfile.Name, id packfile.ID, old, l index.Location) error {
	if old == l {
		return nil
	}
	if damaged, err := a.damaged(ctx, &damage{pack, l.Offset, id}); err != nil || damaged {
		return err
	}
	if old.Pack != 0 {
		text, err := a.ix.PackName(ctx, old.Pack)
		if err != nil {
			return err
		}
		other, err := packfile.ParseName(text)
		if err != nil {
			return err
		}
		if comparePacks(other, pack) >= 0 {
			return a.addCopy(ctx, id, pack, l)
		}
		if err := a.addCopy(ctx, id, other, old); err != nil {
			return err
		}
	}
	a.chunks[id] = l
	a.batch.PutChunk(index.Key(id), l)
	return nil
}

// frameLocation is where the i-th chunk of a frame is, start bytes into what it decodes to.
func frameLocation(pack uint32, offset int64, f packfile.FrameInfo, i int, start uint32) index.Location {
	return index.Location{
		Pack: pack, Offset: uint64(offset), Prefix: uint32(f.Prefix), Payload: uint32(f.Payload),
		Kind: uint8(f.Kind), CRC: f.CRC, Chunks: uint32(len(f.Chunks)), Index: uint32(i), Start: start, Len: f.Chunks[i].Len,
	}
}

// commit applies the records of a commit.
func (a *applier) commit(ctx context.Context, id commitID, c *packfile.Commit) error {
	for _, r := range c.Records {
		if err := a.record(ctx, id, r); err != nil {
			return fmt.Errorf("apply record of type %d: %w", r.Type, err)
		}
	}
	return nil
}

func (a *applier) record(ctx context.Context, id commitID, r packfile.Record) error {
	switch r.Type {
	case packfile.RecordRecipe:
		key := recipeID(r.Body)
		return a.claim(ctx, index.Recipes, key[:], id, r.Body)
	case packfile.RecordContent:
		c, err := decodeContent(r.Body)
		if err != nil {
			return err
		}
		return a.claim(ctx, index.Contents, c.hash[:], id, r.Body)
	case packfile.RecordName:
		f, err := decodeFile(r.Body)
		if err != nil {
			return err
		}
		return a.claim(ctx, index.Names, []byte(f.Name), id, r.Body)
	case packfile.RecordNarInfo:
		return a.narInfo(ctx, id, r.Body)
	case packfile.RecordDamage:
		return a.damage(ctx, id, r.Body)
	}
	return fmt.Errorf("unknown: %w", packfile.ErrVersion)
}

// claim puts a row, unless a lower commit has put it already.
func (a *applier) claim(ctx context.Context, t index.Table, key []byte, id commitID, body []byte) error {
	have, err := a.get(ctx, t, key)
	if err != nil && !errors.Is(err, index.ErrNotFound) {
		return err
	}
	if old, _ := splitRow(have); err == nil && !id.less(old) {
		return nil
	}
	a.put(t, key, makeRow(id, body))
	return nil
}

func (a *applier) narInfo(ctx context.Context, id commitID, text []byte) error {
	info, err := narinfo.Parse(text, a.storeDir)
	if err != nil {
		return err
	}
	key := []byte(info.StorePath.HashPart())
	have, err := a.get(ctx, index.Paths, key)
	if err != nil && !errors.Is(err, index.ErrNotFound) {
		return err
	}
	vs, err := decodeVariants(have, a.storeDir)
	if err != nil {
		return err
	}
	a.put(index.Paths, key, encodeVariants(addVariant(vs, variant{id, info}, a.storeDir), a.storeDir))
	return nil
}
