package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// CheckOptions say how deep a check goes.
type CheckOptions struct {
	// ReadData reads and decodes every frame and computes every chunk's ID, instead of
	// the metadata alone.
	ReadData bool
	// Repair writes down, durably, which chunks were found damaged, so that the next
	// upload brings them back, and moves what a pack without a directory still has to
	// another. It takes ReadData with it.
	Repair bool
	// Progress, if it is not nil, is called now and then with the packs that are done.
	Progress func(done, total int)
}

// A checker compares packs and index, as they are at one moment between two commits.
type checker struct {
	store   *Store
	opts    CheckOptions
	snap    index.Snapshot
	packs   map[packfile.Name]bool // that the index has applied
	partial map[packfile.Name]bool // that it has not applied all of; see leftOut
	open    *openPack              // as it was at that moment, nil for none
	used    map[uint32]int64       // chunks that the index has in each pack, as counted from the packs

	frames     frameReaders
	known      *knownDamages
	bad        map[packfile.ID]*damage // what this check found, of what the index uses
	gone       map[uint32]*gonePack    // by their numbers, but for those that are known to be
	absent     map[Hash]bool           // objects that cannot be served: true if that is known
	repairable int64                   // problems
	badIndex   bool                    // which is to be rebuilt; nothing can be repaired by it
	CheckReport
}

// Check compares everything: that each reference leads to something, that every byte of
// every pack is accounted for, and that index and packs agree. Uploads go on meanwhile;
// what they add is not looked at. The error is about the check itself; what it finds is
// in the report.
func (s *Store) Check(ctx context.Context, opts CheckOptions) (*CheckReport, error) {
	opts.ReadData = opts.ReadData || opts.Repair
	c := &checker{
		store: s, opts: opts, packs: map[packfile.Name]bool{}, used: map[uint32]int64{},
		bad: map[packfile.ID]*damage{}, gone: map[uint32]*gonePack{}, absent: map[Hash]bool{},
	}
	c.ReadData, c.Problems, c.AffectedPaths, c.AffectedFiles = opts.ReadData, []string{}, []string{}, []string{}
	var err error
	if c.frames, err = newFrameReaders(s.packs); err != nil {
		return nil, err
	}
	err = s.commit(ctx, &request{inspect: func(open *openPack) (err error) {
		if open != nil {
			o := *open
			o.entries = slices.Clone(open.entries)
			c.open = &o
		}
		c.snap, err = s.ix.Snapshot(ctx)
		return err
	}})
	if err := c.found("index", err); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	if c.badIndex {
		return &c.CheckReport, nil
	}
	defer c.snap.Close()
	steps := []func(context.Context) error{
		c.snap.Verify, c.checkPacks, c.checkChunks, c.checkGone, c.checkContents, c.checkPaths, c.checkNames, c.checkBucket,
	}
	if opts.Repair {
		steps = append(steps, c.repair)
	}
	for _, step := range steps {
		if err := c.found("index", step(ctx)); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	return &c.CheckReport, nil
}

func (c *checker) problem(format string, args ...any) {
	c.ProblemCount++
	if len(c.Problems) < maxProblems {
		c.Problems = append(c.Problems, fmt.Sprintf(format, args...))
	}
}

// found reports err as a problem if it is about the data, and returns it if it is not.
func (c *checker) found(what string, err error) error {
	if errors.Is(err, packfile.ErrCorrupt) || errors.Is(err, bucket.ErrNotFound) || errors.Is(err, index.ErrNotFound) ||
		errors.Is(err, ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, narinfo.ErrCorrupt) || errors.Is(err, index.ErrDamaged) {
		c.problem("%s: %v", what, err)
		c.badIndex = c.badIndex || errors.Is(err, index.ErrDamaged)
		return nil
	}
	return err
}

// damageFound is found for a problem that repairing deals with.
func (c *checker) damageFound(what string, err error) {
	c.problem("%s: %v", what, err)
	c.repairable++
}

// checkChunks finds chunks that the index has where no pack has them.
func (c *checker) checkChunks(ctx context.Context) error {
	have := map[uint32]int64{}
	err := c.snap.ForEachChunk(ctx, func(id index.Key, l index.Location) error {
		c.Chunks++
		if g := c.gone[l.Pack]; g != nil {
			g.chunks = append(g.chunks, placedChunk{packfile.ID(id), l})
			return nil
		}
		have[l.Pack]++
		return nil
	})
	for number, n := range have {
		if n != c.used[number] {
			c.problem("the index has %d chunks in pack number %d, of which the pack has %d", n, number, c.used[number])
		}
	}
	return err
}

func (c *checker) checkPaths(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Paths, nil, func(key, row []byte) error {
		c.StorePaths++
		vs, err := decodeVariants(row, c.store.repo.StoreDir)
		if err == nil && len(vs) == 0 {
			err = errRecord
		}
		for _, v := range vs {
			if err == nil {
				err = c.checkContent(ctx, v.info.NarHash, int64(v.info.NarSize), true)
			}
		}
		if err == nil {
			c.countAffected(vs)
		}
		return c.found(fmt.Sprintf("path %s", key), err)
	})
}

// countAffected looks whether a path has a NAR that can be served.
func (c *checker) countAffected(vs []variant) {
	absent := true
	for _, v := range vs {
		known, ok := c.absent[v.info.NarHash]
		if !ok {
			return
		}
		absent = absent && known
	}
	affected(&c.AffectedPaths, &c.AffectedPathCount, vs[0].info.StorePath.Path(c.store.repo.StoreDir))
	if absent {
		c.AbsentPaths++
	}
}

func (c *checker) checkNames(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Names, nil, func(key, row []byte) error {
		c.Files++
		_, body := splitRow(row)
		f, err := decodeFile(body)
		if err == nil && f.inline == nil {
			err = c.checkContent(ctx, f.Content, f.Size, f.NAR)
			if known, ok := c.absent[f.Content]; ok && !f.NAR {
				affected(&c.AffectedFiles, &c.AffectedFileCount, f.Name)
				if known {
					c.AbsentFiles++
				}
			}
		}
		return c.found(fmt.Sprintf("file %s", key), err)
	})
}

func (c *checker) checkContent(ctx context.Context, hash Hash, size int64, isNAR bool) error {
	row, err := c.snap.Get(ctx, index.Contents, hash[:])
	if errors.Is(err, index.ErrNotFound) && len(c.known.packs) > 0 {
		c.absent[hash] = true // it was in a pack that is known to be lost
		return nil
	} else if err != nil {
		return fmt.Errorf("object %x: %w", hash, err)
	}
	_, body := splitRow(row)
	o, err := decodeContent(body)
	if err == nil && (o.size != size || isNAR && !o.nar) {
		err = fmt.Errorf("object %x has %d bytes, not %d, or is no NAR: %w", hash, o.size, size, packfile.ErrCorrupt)
	}
	return err
}

// checkContents checks that every object's recipe and chunks are there and make it up.
func (c *checker) checkContents(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Contents, nil, func(key, row []byte) error {
		c.Objects++
		_, body := splitRow(row)
		o, err := decodeContent(body)
		if err == nil {
			err = c.checkObject(ctx, o)
		}
		return c.found(fmt.Sprintf("object %x", key), err)
	})
}

func (c *checker) checkObject(ctx context.Context, o *content) error {
	known, found, err := c.unreadable(ctx, o)
	if err != nil {
		return err
	}
	if known || found {
		c.absent[o.hash] = known
	}
	if !known {
		_, err = makePlan(ctx, c.snap, o)
	}
	return err
}

// checkBucket finds packs that the index does not know, and what is no pack.
func (c *checker) checkBucket(ctx context.Context) error {
	return c.store.opts.Bucket.List(ctx, "", "", func(info bucket.Info) error {
		text, isPack := strings.CutPrefix(info.Key, packPrefix)
		name, err := packfile.ParseName(strings.TrimSuffix(text, packSuffix))
		switch {
		case info.Key == repositoryKey, strings.HasPrefix(info.Key, leasePrefix):
		case isSnapshotKey(info.Key): // of which there may be one that is not complete
		case !isPack || err != nil:
			c.problem("the bucket holds %s, which is not dedupd's", info.Key)
		case c.store.follower != nil: // it may have come just now
		case !c.packs[name] && !c.known.packs[name] && name.Writer != c.store.spool.writer:
			c.problem("the bucket holds pack %s, which the index does not know", name)
		}
		return nil
	})
}
