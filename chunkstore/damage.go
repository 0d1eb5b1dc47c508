package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A damage is a place where a chunk should be and is not: its frame is not what was
// written, or is gone. It is written to the log as a record of its own, so that it is known
// to whoever rebuilds the index: the chunk in this place does not count, and is new to
// the next upload that has it. Paths that need it are absent meanwhile, and so a plain
// "nix copy" heals them. A bucket that cannot be reached is no damage.
//
//	22 pack, uvarint offset of the frame, 32 chunk ID
type damage struct {
	pack   packfile.Name
	offset uint64
	id     packfile.ID
}

func (d *damage) encode() []byte {
	b := d.pack.Append(nil)
	b = binary.AppendUvarint(b, d.offset)
	return append(b, d.id[:]...)
}

func decodeDamage(b []byte) (*damage, error) {
	r := decoder{b: b}
	d := &damage{}
	name, err := packfile.NameFromBytes(r.bytes(packfile.NameSize))
	d.pack, d.offset = name, r.uvarint()
	copy(d.id[:], r.bytes(len(d.id)))
	return d, errors.Join(r.end(), err)
}

// key is the damage's row in the index.
func (d *damage) key() []byte {
	b := d.pack.Append(nil)
	b = binary.BigEndian.AppendUint64(b, d.offset)
	return append(b, d.id[:]...)
}

// damage applies a record: if the index has the chunk in that place, it has it in the
// next copy, or no more.
func (a *applier) damage(ctx context.Context, id commitID, body []byte) error {
	d, err := decodeDamage(body)
	if err != nil {
		return err
	}
	if err := a.claim(ctx, index.Packs, d.key(), id, nil); err != nil {
		return err
	}
	if a.spoiled != nil {
		a.spoiled[d.pack] = true
	}
	a.damages++
	number, err := a.ix.PackNumber(ctx, d.pack.String())
	if err != nil {
		return err
	}
	l, err := a.chunk(ctx, d.id)
	if err != nil {
		return err
	}
	if l.Pack != number || l.Offset != d.offset {
		return a.dropCopy(ctx, d)
	}
	next, err := a.takeCopy(ctx, d.id)
	if err != nil {
		return err
	}
	if a.chunks[d.id] = next; next.Pack == 0 {
		a.batch.DeleteChunk(index.Key(d.id))
	} else {
		a.batch.PutChunk(index.Key(d.id), next)
	}
	return nil
}

// damaged says whether a chunk of a pack is known to be damaged.
func (a *applier) damaged(ctx context.Context, d *damage) (bool, error) {
	if a.spoiled != nil && !a.spoiled[d.pack] {
		return false, nil
	}
	_, err := a.get(ctx, index.Packs, d.key())
	if errors.Is(err, index.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// findSpoiled notes which packs have damage, so that the others need no look-up for each
// of their chunks. From then on nobody else may apply records.
func (a *applier) findSpoiled(ctx context.Context) error {
	snap, err := a.ix.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	a.spoiled = map[packfile.Name]bool{}
	return snap.ForEach(ctx, index.Packs, nil, func(key, _ []byte) error {
		pack, err := packfile.NameFromBytes(key[:min(len(key), packfile.NameSize)])
		a.spoiled[pack] = true
		return err
	})
}

// DamageCount changes whenever chunks have been marked as damaged: what was served before
// may be absent from then on.
func (s *Store) DamageCount() uint64 { return s.marked.Load() }

// intact says whether no chunk of the repository was ever damaged, so that what the index
// has of objects is all there. It looks once: later damage is found by this process.
func (s *Store) intact(ctx context.Context) (bool, error) {
	if s.damages.Load() > 0 {
		return false, nil
	}
	if known := s.wasIntact.Load(); known != nil {
		return *known, nil
	}
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		return false, err
	}
	defer snap.Close()
	intact := true
	err = snap.ForEach(ctx, index.Packs, nil, func(_, _ []byte) error {
		intact = false
		return errStop
	})
	if err != nil && err != errStop {
		return false, fmt.Errorf("look for damage: %w", err)
	}
	s.wasIntact.Store(&intact)
	return intact, nil
}

// errStop ends a walk over the index that has seen enough.
var errStop = errors.New("seen enough")

// isDamage says whether an error of reading a frame means that it is not there as it
// was written, and not that it cannot be had just now.
func isDamage(err error) bool {
	return errors.Is(err, packfile.ErrCorrupt) || errors.Is(err, bucket.ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF)
}

// noteDamage looks at all chunks of an object of which one could not be read, and marks
// those that are damaged, durably: so one upload heals the object. Plans are forgotten,
// and whatever needs such a chunk is absent from now on.
func (s *Store) noteDamage(ctx context.Context, p *plan, cause error) {
	ctx = context.WithoutCancel(ctx) // the client is about to be cut off
	found, err := s.findDamage(ctx, p)
	if err == nil && len(found) == 0 {
		s.log.Warn("a chunk could not be read, and the second time it could", "object", hashText(p.hash), "err", cause)
		return
	}
	if err == nil && s.follower != nil {
		s.counts.damaged.Add(int64(len(found)))
		s.log.Error("chunks are damaged; what needs them is cut short until the writer has found that, too, and it is uploaded again",
			"object", hashText(p.hash), "chunks", len(found), "pack", found[0].pack, "offset", found[0].offset, "err", cause)
		return
	}
	if err == nil {
		err = s.markDamaged(ctx, found)
	}
	if err != nil {
		s.log.Error("could not note damage", "object", hashText(p.hash), "cause", cause, "err", err)
		return
	}
	s.log.Error("chunks are damaged; what needs them is absent until it is uploaded again",
		"object", hashText(p.hash), "chunks", len(found), "pack", found[0].pack, "offset", found[0].offset, "err", cause)
}

// findDamage reads all chunks of an object. The error is one that is no damage.
func (s *Store) findDamage(ctx context.Context, p *plan) (found []*damage, err error) {
	seen := map[packfile.ID]bool{}
	directories := map[uint32]directory{}
	for i := range p.pieces {
		pp := &p.pieces[i]
		if pp.literal() || seen[pp.id] {
			continue
		}
		seen[pp.id] = true
		if err := s.readAgain(ctx, pp); err == nil {
			continue
		} else if !isDamage(err) {
			return nil, err
		}
		name, err := s.packs.name(ctx, pp.loc.Pack)
		if err != nil {
			return nil, err
		}
		dir, ok := directories[pp.loc.Pack]
		if !ok {
			if dir, err = s.directory(ctx, name, pp.loc.Pack); err != nil {
				return nil, err
			}
			directories[pp.loc.Pack] = dir
		}
		d := &damage{name, pp.loc.Offset, pp.id}
		if dir != nil && dir[*d] != pp.loc {
			return nil, fmt.Errorf("%w: pack %s does not have chunk %s as the index says; rebuild the index", index.ErrDamaged, name, pp.id)
		}
		found = append(found, d)
	}
	return found, nil
}

// A directory says what a pack itself knows of where its chunks are. It is nil for a pack
// that is gone, or whose directory is damaged.
type directory map[damage]index.Location // by what their damage would be

// directory reads the directory of a pack, which may be open.
func (s *Store) directory(ctx context.Context, name packfile.Name, number uint32) (directory, error) {
	var frames []packfile.FrameInfo
	err := s.commit(ctx, &request{inspect: func(open *openPack) error {
		if open != nil && open.name == name {
			for _, e := range open.entries {
				frames = append(frames, e.Frames...)
			}
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	if frames == nil {
		pack, _, err := s.readPack(ctx, name, number)
		if isDamage(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		frames = pack.Frames
	}
	dir, at := directory{}, int64(packfile.HeaderSize)
	for _, f := range frames {
		start := uint32(0)
		for i, c := range f.Chunks {
			dir[damage{name, uint64(at), c.ID}] = frameLocation(number, at, f, i, start)
			start += c.Len
		}
		at += f.Size()
	}
	return dir, nil
}

// damageRecords returns records for what is not known to be damaged yet.
func (a *applier) damageRecords(ctx context.Context, s *Store, found []*damage) (records []packfile.Record, err error) {
	for _, d := range found {
		known, err := a.damaged(ctx, d)
		if err != nil {
			return nil, err
		}
		if !known {
			records = append(records, packfile.Record{Type: packfile.RecordDamage, Body: d.encode()})
		}
	}
	if records != nil {
		s.damages.Add(1)
		s.counts.damaged.Add(int64(len(records)))
	}
	return records, nil
}

// readAgain reads a chunk's frame by itself, and checks it.
func (s *Store) readAgain(ctx context.Context, pp *planPiece) error {
	buf := s.buffers.get(int(pp.loc.Prefix + pp.loc.Payload))
	defer s.buffers.put(buf)
	if err := s.packs.readAt(ctx, pp.loc.Pack, buf, int64(pp.loc.Offset)); err != nil {
		return err
	}
	r := &objectReader{store: s, plan: &plan{}}
	defer r.close()
	if err := r.view.Parse(packfile.Kind(pp.loc.Kind), int(pp.loc.Chunks), buf, int(pp.loc.Prefix), pp.loc.CRC); err != nil {
		return err
	}
	if _, err := r.decode(pp); err != nil {
		return err
	}
	return r.checkSpans(pp, r.view.Spans(int(pp.loc.Index)))
}

// stillThere checks that nothing of a recipe was found damaged since damages was read,
// when its chunks were looked up: those that are staged are about to be there.
func (a *applier) stillThere(ctx context.Context, s *Store, damages uint64, o *object) error {
	if s.damages.Load() == damages {
		return nil
	}
	staged := map[packfile.ID]bool{}
	for _, f := range o.stage.frames {
		staged[f.Chunks[0].ID] = true
	}
	r, err := decodeRecipe(o.recipe)
	if err != nil {
		return err
	}
	for i := range r.items {
		it := &r.items[i]
		if it.literal() || staged[it.id] {
			continue
		}
		if l, err := a.chunk(ctx, it.id); err != nil {
			return err
		} else if l.Pack == 0 {
			return fmt.Errorf("chunk %s was found damaged during the upload; upload again", it.id)
		}
	}
	return nil
}
