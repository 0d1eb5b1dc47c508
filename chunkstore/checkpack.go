package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

func (c *checker) checkPacks(ctx context.Context) (err error) {
	if c.known, err = readDamages(ctx, c.snap); err != nil {
		return err
	}
	c.Damaged, c.LostPacks = int64(len(c.known.places)), int64(len(c.known.packs))
	marks := c.snap.Marks()
	var names []packfile.Name
	for text := range marks {
		name, err := packfile.ParseName(text)
		if err != nil {
			c.problem("mark %q of the index: %v", text, err)
			continue
		}
		names = append(names, name)
		c.packs[name] = true
	}
	missed, partial := c.store.leftOut.get()
	c.partial = partial
	for _, unmarked := range []map[packfile.Name]bool{missed, partial} {
		for name := range unmarked {
			if !c.packs[name] {
				names = append(names, name)
				c.packs[name] = true
			}
		}
	}
	sortNames(names)
	for i, name := range names {
		err := c.checkPack(ctx, name, marks[name.String()])
		if err := c.found("pack "+name.String(), err); err != nil {
			return err
		}
		if c.opts.Progress != nil {
			c.opts.Progress(i+1, len(names))
		}
	}
	return nil
}

// errPartial is of a pack whose commits are not all in the index.
var errPartial = errors.New("commits were left out: packs that they rely on are missing or damaged; restore or repair those, and start again")

func (c *checker) checkPack(ctx context.Context, name packfile.Name, mark uint64) error {
	if c.known.packs[name] {
		return nil
	}
	number, err := c.store.packs.number(ctx, name)
	if err != nil {
		return err
	}
	c.Packs++
	if c.open != nil && c.open.name == name {
		return c.checkOpen(ctx, number)
	}
	pack, size, err := c.store.readPack(ctx, name, number)
	if isDamage(err) {
		pack, size, err = c.store.readPack(ctx, name, number)
	}
	if isDamage(err) {
		c.damageFound("pack "+name.String(), err)
		c.gone[number] = &gonePack{name: name, missing: errors.Is(err, bucket.ErrNotFound)}
		return nil
	} else if err != nil {
		return err
	}
	c.PackBytes += size
	partial := c.partial[name]
	if uint64(pack.Entries) != mark && !partial {
		c.problem("pack %s: the index applied %d of %d entries", name, mark, pack.Entries)
	}
	var live []placedFrame
	for i, f := range pack.Frames {
		if err := c.checkFrame(ctx, name, number, placedFrame{FrameInfo: f, at: pack.Offsets[i]}, &live); err != nil {
			return err
		}
	}
	if err := c.readFrames(ctx, name, number, live); err != nil {
		return err
	}
	if partial {
		c.damageFound("pack "+name.String(), errPartial)
		return nil
	}
	return pack.ForEachCommit(func(n int, commit *packfile.Commit) error {
		return c.checkCommit(ctx, newCommitID(name, n), commit)
	})
}

func (c *checker) checkOpen(ctx context.Context, number uint32) error {
	at, n := int64(packfile.HeaderSize), 0
	var live []placedFrame
	for _, e := range c.open.entries {
		for _, f := range e.Frames {
			if err := c.checkFrame(ctx, c.open.name, number, placedFrame{FrameInfo: f, at: at}, &live); err != nil {
				return err
			}
			at += f.Size()
		}
		if e.Commit == nil {
			continue
		}
		commit, err := packfile.ParseCommit(e.Commit)
		if err != nil {
			return err
		}
		if err := c.checkCommit(ctx, newCommitID(c.open.name, n), commit); err != nil {
			return err
		}
		n++
	}
	c.PackBytes += at
	return c.readFrames(ctx, c.open.name, number, live)
}

// checkFrame compares one frame of a pack with the index, and adds it to live if the
// index uses it.
func (c *checker) checkFrame(ctx context.Context, pack packfile.Name, number uint32, f placedFrame, live *[]placedFrame) error {
	at := f.at
	c.Frames++
	ids := make([]index.Key, len(f.Chunks))
	locs := make([]index.Location, len(f.Chunks))
	for i, chunk := range f.Chunks {
		ids[i] = index.Key(chunk.ID)
	}
	if err := c.snap.Chunks(ctx, ids, locs); err != nil {
		return err
	}
	used, start := false, uint32(0)
	for i, chunk := range f.Chunks {
		want := frameLocation(number, at, f.FrameInfo, i, start)
		start += chunk.Len
		damaged := c.known.places[damage{pack, uint64(at), chunk.ID}]
		switch l := locs[i]; {
		case l == want && damaged:
			c.problem("pack %s: the index uses chunk %s at %d, which is damaged", pack, chunk.ID, at)
		case l == want:
			used = true
			c.used[number]++
		case damaged:
		case l.Pack == 0:
			c.problem("pack %s: chunk %s at %d is not in the index", pack, chunk.ID, at)
		case l.Pack == number && int64(l.Offset) == at:
			c.problem("pack %s: the index describes chunk %s at %d as %+v, the directory as %+v", pack, chunk.ID, at, l, want)
		}
	}
	if used {
		*live = append(*live, f)
	} else {
		c.DeadFrames++
	}
	return nil
}

// readFrames compares frames of a pack that the index uses with their own bytes. Nobody
// will read others.
func (c *checker) readFrames(ctx context.Context, pack packfile.Name, number uint32, live []placedFrame) error {
	if !c.opts.ReadData {
		return nil
	}
	if err := c.frames.verifyAll(ctx, number, live, nil); err != nil {
		return err
	}
	for _, f := range live {
		if f.err == nil {
			c.BytesRead += f.Size()
			continue
		}
		c.damageFound(fmt.Sprintf("pack %s, frame at %d", pack, f.at), f.err)
		used, err := usedChunks(ctx, c.snap, pack, number, f)
		if err != nil {
			return err
		}
		for _, d := range used {
			c.bad[d.id] = d
		}
	}
	return nil
}

// checkCommit compares what a commit says with the index.
func (c *checker) checkCommit(ctx context.Context, id commitID, commit *packfile.Commit) error {
	for _, p := range commit.Packs {
		if !c.packs[p] && !c.known.packs[p] {
			c.problem("pack %s: a commit relies on pack %s, which the index does not know", id.pack(), p)
		}
	}
	for _, r := range commit.Records {
		c.Records++
		err := c.checkRecord(ctx, id, r)
		if err := c.found(fmt.Sprintf("pack %s: a record of type %d", id.pack(), r.Type), err); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) checkRecord(ctx context.Context, id commitID, r packfile.Record) error {
	switch r.Type {
	case packfile.RecordRecipe:
		key := recipeID(r.Body)
		return c.checkRow(ctx, index.Recipes, key[:], id, r.Body)
	case packfile.RecordContent:
		o, err := decodeContent(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Contents, o.hash[:], id, r.Body)
	case packfile.RecordName:
		f, err := decodeFile(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Names, []byte(f.Name), id, r.Body)
	case packfile.RecordNarInfo:
		return c.checkNarInfo(ctx, r.Body)
	case packfile.RecordDamage:
		d, err := decodeDamage(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Packs, d.key(), id, nil)
	}
	return fmt.Errorf("unknown type: %w", packfile.ErrCorrupt)
}

// checkRow checks that a record's row is there, from this commit or a lower one.
func (c *checker) checkRow(ctx context.Context, t index.Table, key []byte, id commitID, body []byte) error {
	row, err := c.snap.Get(ctx, t, key)
	if err != nil {
		return fmt.Errorf("row %q of %s: %w", key, t, err)
	}
	have, haveBody := splitRow(row)
	if id.less(have) || have == id && !bytes.Equal(body, haveBody) {
		return fmt.Errorf("row %q of %s is not what the pack says: %w", key, t, packfile.ErrCorrupt)
	}
	return nil
}

func (c *checker) checkNarInfo(ctx context.Context, text []byte) error {
	info, err := narinfo.Parse(text, c.store.repo.StoreDir)
	if err != nil {
		return err
	}
	row, err := c.snap.Get(ctx, index.Paths, []byte(info.StorePath.HashPart()))
	if err != nil {
		return fmt.Errorf("path %s: %w", info.StorePath, err)
	}
	vs, err := decodeVariants(row, c.store.repo.StoreDir)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if v.info.Fingerprint(c.store.repo.StoreDir) == info.Fingerprint(c.store.repo.StoreDir) && hasSigs(v.info, info.Sigs) {
			return nil
		}
	}
	return fmt.Errorf("the index has another narinfo for %s: %w", info.StorePath, packfile.ErrCorrupt)
}
