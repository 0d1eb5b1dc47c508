package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// maxMarks is the number of records that repairing puts into one commit.
const maxMarks = 1000

// readPack reads all of a sealed pack but its frames, and returns its length too.
func (s *Store) readPack(ctx context.Context, name packfile.Name, number uint32) (*packfile.Pack, int64, error) {
	size, err := s.packs.size(ctx, number)
	if err != nil {
		return nil, 0, err
	}
	pack, err := packfile.Read(name, packReader{ctx, s.packs, number}, size)
	return pack, size, err
}

// wholePack is the damage of a pack that is gone, or whose directory cannot be read: no
// frame is at offset 0. Each chunk that the index had there has a damage of its own.
func wholePack(name packfile.Name) *damage { return &damage{pack: name} }

// knownDamages is all damage that is known.
type knownDamages struct {
	places map[damage]bool
	chunks map[packfile.ID]bool // that are damaged somewhere
	packs  map[packfile.Name]bool
}

func readDamages(ctx context.Context, snap index.Snapshot) (*knownDamages, error) {
	k := &knownDamages{map[damage]bool{}, map[packfile.ID]bool{}, map[packfile.Name]bool{}}
	return k, snap.ForEach(ctx, index.Packs, nil, func(key, _ []byte) error {
		d, err := damageFromKey(key)
		if err != nil {
			return err
		}
		if *d == *wholePack(d.pack) {
			k.packs[d.pack] = true
			return nil
		}
		k.places[*d], k.chunks[d.id] = true, true
		return nil
	})
}

// damageFromKey is the inverse of damage.key.
func damageFromKey(key []byte) (*damage, error) {
	d := &damage{}
	if len(key) != packfile.NameSize+8+len(d.id) {
		return nil, fmt.Errorf("damage: key of %d bytes: %w", len(key), packfile.ErrCorrupt)
	}
	name, err := packfile.NameFromBytes(key[:packfile.NameSize])
	d.pack, d.offset = name, binary.BigEndian.Uint64(key[packfile.NameSize:])
	copy(d.id[:], key[packfile.NameSize+8:])
	return d, err
}

// markDamaged marks places as damaged, durably. What needs a chunk that was there is
// absent from now on, until it is uploaded again.
func (s *Store) markDamaged(ctx context.Context, found []*damage) error {
	// Also after an error: some may have been marked.
	defer s.marked.Add(1)
	defer s.plans.cache.InvalidateAll()
	for batch := range slices.Chunk(found, maxMarks) {
		err := s.commit(ctx, &request{records: func(ctx context.Context, a *applier) ([]packfile.Record, error) {
			return a.damageRecords(ctx, s, batch)
		}})
		if err != nil {
			return fmt.Errorf("mark damage: %w", err)
		}
	}
	return nil
}

// A gonePack is a pack that is not there, or whose directory and records cannot be read.
type gonePack struct {
	name    packfile.Name
	missing bool
	chunks  []placedChunk // that the index has in it
	whole   []placedChunk // of these, what can be read all the same
}

type placedChunk struct {
	id  packfile.ID
	loc index.Location
}

// frame describes a frame that holds this chunk only.
func (p *placedChunk) frame() packfile.FrameInfo {
	return packfile.FrameInfo{
		Kind: packfile.Kind(p.loc.Kind), Prefix: int(p.loc.Prefix), Payload: int(p.loc.Payload), CRC: p.loc.CRC,
		Chunks: []packfile.Chunk{{ID: p.id, Len: p.loc.Len}},
	}
}

// checkGone finds out which chunks of packs without a directory are lost.
func (c *checker) checkGone(ctx context.Context) error {
	for number, g := range c.gone {
		for _, p := range g.chunks {
			var err error
			switch {
			case g.missing:
				err = bucket.ErrNotFound
			case !c.opts.ReadData:
				continue
			case p.loc.Chunks > 1:
				err = packfile.ErrCorrupt // only the directory knows the others
			default:
				if err = c.frames[0].verify(ctx, number, int64(p.loc.Offset), p.frame()); err == nil {
					c.BytesRead += p.frame().Size()
				}
			}
			if err == nil {
				g.whole = append(g.whole, p)
			} else if isDamage(err) {
				c.bad[p.id] = &damage{g.name, p.loc.Offset, p.id}
			} else {
				return err
			}
		}
	}
	return nil
}

// unreadable says whether an object cannot be served for damage that is known, or for
// damage that this check has found.
func (c *checker) unreadable(ctx context.Context, o *content) (known, found bool, err error) {
	lost := len(c.known.packs) > 0
	if len(c.known.chunks)+len(c.bad) == 0 && !lost {
		return false, false, nil
	}
	if _, err := c.snap.Get(ctx, index.Recipes, o.recipe[:]); lost && errors.Is(err, index.ErrNotFound) {
		return true, false, nil // it was in a pack that is known to be lost
	}
	r, err := getRecipe(ctx, c.snap, o.recipe)
	if err != nil {
		return false, false, err
	}
	ids := make([]index.Key, len(r.items))
	locs := make([]index.Location, len(r.items))
	for i := range r.items {
		ids[i] = index.Key(r.items[i].id)
	}
	if err := c.snap.Chunks(ctx, ids, locs); err != nil {
		return false, false, err
	}
	for i := range r.items {
		it := &r.items[i]
		switch {
		case it.literal():
		case c.bad[it.id] != nil:
			found = true
		case locs[i].Pack != 0:
		case c.known.chunks[it.id] || lost:
			known = true
		default:
			return false, false, fmt.Errorf("object %x: chunk %s is missing: %w", o.hash, it.id, packfile.ErrCorrupt)
		}
	}
	return known, found, nil
}

// affected notes a path or a file that cannot be served.
func affected(names *[]string, count *int64, name string) {
	if *count++; len(*names) < maxProblems {
		*names = append(*names, name)
	}
}

// repair writes down what was found damaged. What a pack without a directory still has
// moves to another one. By an index that is damaged nothing is repaired.
func (c *checker) repair(ctx context.Context) error {
	if c.badIndex {
		return nil
	}
	if err := c.copyRecords(ctx); err != nil {
		return err
	}
	found := make([]*damage, 0, len(c.bad))
	for _, d := range c.bad {
		found = append(found, d)
	}
	slices.SortFunc(found, func(a, b *damage) int { return slices.Compare(a.key(), b.key()) })
	if err := c.store.markDamaged(ctx, found); err != nil {
		return err
	}
	for number, g := range c.gone {
		if err := c.move(ctx, number, g); err != nil {
			return fmt.Errorf("pack %s: %w", g.name, err)
		}
	}
	if err := c.store.applyLeftOut(ctx); err != nil {
		return err
	}
	c.Marked, c.Repaired = int64(len(found)), c.repairable
	c.AbsentPaths, c.AbsentFiles = c.AffectedPathCount, c.AffectedFileCount
	return nil
}

// move stores the chunks of a gone pack again that can be read, and marks the pack as
// lost. A crash half way leaves paths absent that need not be.
func (c *checker) move(ctx context.Context, number uint32, g *gonePack) error {
	st := &stage{dir: c.store.staging}
	defer st.close()
	var marks []*damage
	for _, p := range g.whole {
		if err := c.frames[0].verify(ctx, number, int64(p.loc.Offset), p.frame()); err != nil {
			return err
		}
		if err := st.add(p.frame(), c.frames[0].buf, false); err != nil {
			return err
		}
		marks = append(marks, &damage{g.name, p.loc.Offset, p.id})
	}
	if err := c.store.markDamaged(ctx, append(marks, wholePack(g.name))); err != nil {
		return err
	}
	nothing := func(context.Context, *applier) ([]packfile.Record, error) { return nil, nil }
	return c.store.commit(ctx, &request{stage: st, records: nothing})
}

// copyRecords commits again what only the gone packs say in the log. These are also the
// records that moved there when another pack was lost: the index goes on to say that
// they are that one's.
func (c *checker) copyRecords(ctx context.Context) error {
	if len(c.gone) == 0 {
		return nil
	}
	gone := maps.Clone(c.known.packs)
	for _, g := range c.gone {
		gone[g.name] = true
	}
	var batch []packfile.Record
	size := 0
	flush := func() error {
		records := batch
		batch, size = nil, 0
		return c.store.commit(ctx, &request{records: func(context.Context, *applier) ([]packfile.Record, error) { return records, nil }})
	}
	err := c.forEachRecord(ctx, gone, func(r packfile.Record) error {
		batch, size = append(batch, r), size+len(r.Body)
		if len(batch) < maxMarks && size < 1<<20 {
			return nil
		}
		return flush()
	})
	return errors.Join(err, flush())
}

// forEachRecord calls fn for the records that the index has from some packs.
func (c *checker) forEachRecord(ctx context.Context, packs map[packfile.Name]bool, fn func(packfile.Record) error) error {
	for t, typ := range map[index.Table]packfile.RecordType{
		index.Recipes: packfile.RecordRecipe, index.Contents: packfile.RecordContent,
		index.Names: packfile.RecordName, index.Packs: packfile.RecordDamage,
	} {
		err := c.snap.ForEach(ctx, t, nil, func(key, row []byte) error {
			id, body := splitRow(row)
			if !packs[id.pack()] {
				return nil
			}
			body = slices.Clone(body)
			if t == index.Packs {
				d, err := damageFromKey(key)
				if err != nil {
					return err
				}
				body = d.encode()
			}
			return fn(packfile.Record{Type: typ, Body: body})
		})
		if err != nil {
			return err
		}
	}
	storeDir := c.store.repo.StoreDir
	return c.snap.ForEach(ctx, index.Paths, nil, func(_, row []byte) error {
		vs, err := decodeVariants(row, storeDir)
		if err != nil {
			return err
		}
		for _, v := range vs {
			if !packs[v.id.pack()] {
				continue
			}
			if err := fn(packfile.Record{Type: packfile.RecordNarInfo, Body: v.info.Append(nil, storeDir)}); err != nil {
				return err
			}
		}
		return nil
	})
}
