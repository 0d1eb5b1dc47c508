package chunkstore

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// recovery brings spool, index and bucket together when a store is opened.
type recovery struct {
	*Store
	applier *applier
	marks   map[string]uint64
	bucket  map[packfile.Name]int64 // packs in the bucket, with their sizes
	spooled map[packfile.Name]bool
	lost    map[packfile.Name]bool  // packs that are known to be, once somebody has missed one
	missed  map[packfile.Name]bool  // packs that are missing or bad, for want of which
	partial map[packfile.Name]bool  // commits of these packs were left out
	sealed  []*sealedPack           // those in the spool
	aside   map[packfile.Name]bool  // packs of which damaged files are aside in the spool
	bad     map[packfile.Name]error // packs in the bucket that cannot be read, and why
	whole   map[packfile.Name]bool  // packs that are applied with all their commits

	progress RebuildProgress // of applying packs to the index
	omitted  int             // commits that rely on packs that are missing
	report   RecoveryReport
}

func (s *Store) recover(ctx context.Context) error {
	begun := time.Now()
	r := &recovery{
		Store: s, applier: newApplier(s.ix, s.repo.StoreDir),
		bucket: map[packfile.Name]int64{}, spooled: map[packfile.Name]bool{}, bad: map[packfile.Name]error{},
		aside: map[packfile.Name]bool{}, missed: map[packfile.Name]bool{}, partial: map[packfile.Name]bool{},
		whole:  map[packfile.Name]bool{},
		report: RecoveryReport{Aside: []string{}, BadPacks: []string{}},
	}
	readSpool := r.readSpool
	if s.opts.Follow {
		readSpool = r.refuseSpool
	}
	for _, step := range []func(context.Context) error{r.readIndex, r.listBucket, readSpool, r.applyAll, r.applyRest, r.checkPacks, r.reportBad} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	rebuilt, err := s.indexRebuilt(ctx, r)
	if err != nil {
		return err
	}
	for _, p := range r.sealed {
		if _, uploaded := r.bucket[p.name]; !uploaded {
			r.report.Uploads++
			r.report.UploadBytes += p.size
		}
		s.uploader.add(p)
	}
	r.report.Applied, r.report.Omitted, r.report.IndexAnew = r.progress.Packs, r.omitted, rebuilt
	r.report.Snapshot = s.restored
	r.report.Elapsed = time.Since(begun)
	r.report.log(s.log)
	if s.opts.Follow {
		s.follower = newFollower(r)
	}
	s.recovered, s.leftOut = r.report, leftOut{missed: r.missed, partial: r.partial}
	return nil
}

func (r *recovery) readIndex(ctx context.Context) (err error) {
	r.marks, err = r.ix.Marks(ctx)
	for text := range r.marks {
		name, err := packfile.ParseName(text)
		if err != nil {
			return fmt.Errorf("mark of the index: %w", err)
		}
		r.whole[name] = true
	}
	return err
}

func (r *recovery) listBucket(ctx context.Context) error {
	return r.opts.Bucket.List(ctx, packPrefix, "", func(info bucket.Info) error {
		name, ok := packOfKey(info.Key)
		if !ok {
			r.log.Warn("bucket holds an object that is no pack", "key", info.Key)
			return nil
		}
		r.bucket[name] = info.Size
		r.spool.follow(name.Writer)
		return nil
	})
}

// applyAll applies what the index on disk does not have: packs of the spool that it was
// behind with, and packs of the bucket that it never saw, or may have seen a part of when they
// were in the spool.
func (r *recovery) applyAll(ctx context.Context) error {
	behind := map[packfile.Name]*tail{}
	for name, size := range r.bucket {
		if (r.marks[name.String()] == 0 || r.aside[name]) && r.bad[name] == nil {
			behind[name] = &tail{name: name, size: size, from: bucketReader{ctx, r.opts.Bucket, packKey(name)}}
		}
	}
	for _, p := range r.sealed {
		if r.marks[p.name.String()] < uint64(p.entries) {
			behind[p.name] = &tail{name: p.name, size: p.size, from: packReader{ctx, r.packs, p.number}}
		}
	}
	if len(behind) == 0 {
		return nil
	}
	if err := r.applier.findSpoiled(ctx); err != nil {
		return err
	}
	names := slices.Collect(maps.Keys(behind))
	sortNames(names)
	tails := make([]*tail, len(names))
	for i, name := range names {
		tails[i] = behind[name]
	}
	progress := newProgress(len(tails), r.opts.progress, r.log)
	err := readTails(ctx, tails, func(t *tail) error {
		if t.pack == nil {
			r.bad[t.name] = t.err
			return nil
		}
		if err := r.apply(ctx, t.pack, r.have); err != nil {
			return fmt.Errorf("apply pack %s: %w", t.name, err)
		}
		progress.applied(t.pack)
		return nil
	})
	r.progress = progress.RebuildProgress
	return err
}

// apply applies a pack. Commits that rely on a pack that the store does not have are left
// out, and the pack gets no mark: the next start, or repairing, tries again.
func (r *recovery) apply(ctx context.Context, pack *packfile.Pack, have func(packfile.Name) bool) error {
	number, err := r.packs.number(ctx, pack.Name)
	if err != nil {
		return err
	}
	if err := r.applier.frames(ctx, number, pack.Name, packfile.HeaderSize, pack.Frames); err != nil {
		return err
	}
	complete := true
	err = pack.ForEachCommit(func(n int, c *packfile.Commit) error {
		for _, other := range c.Packs {
			if !have(other) {
				complete = false
				r.missed[other], r.partial[pack.Name] = true, true
				r.omitted++
				level := slog.LevelError
				if r.opts.Follow {
					level = slog.LevelDebug // it is on its way
				}
				r.log.Log(ctx, level, "a commit relies on a pack that is missing; it is left out", "pack", pack.Name, "commit", n, "missing", other)
				return nil
			}
		}
		return r.applier.commit(ctx, newCommitID(pack.Name, n), c)
	})
	if err != nil {
		return err
	}
	if complete {
		r.applier.batch.Mark(pack.Name.String(), uint64(pack.Entries))
	}
	if err := r.applier.flush(ctx); err != nil {
		return err
	}
	r.whole[pack.Name] = complete
	return nil
}

// have says whether a pack is there for commits that rely on it. A follower shows what it
// applies at once: to it a pack is there when it is applied.
func (r *recovery) have(name packfile.Name) bool {
	if r.opts.Follow {
		return r.whole[name] || r.lost[name]
	}
	return r.inStore(name)
}

func (r *recovery) inStore(name packfile.Name) bool {
	_, inBucket := r.bucket[name]
	return inBucket && r.bad[name] == nil || r.spooled[name] || r.lost[name]
}

// applyRest applies the commits that were left out for want of packs that are known to
// be lost: what they need of these was uploaded again, or is known to be damaged.
func (r *recovery) applyRest(ctx context.Context) error {
	if len(r.missed) == 0 {
		return nil
	}
	if err := r.readLost(ctx); err != nil || len(r.lost) == 0 {
		return err
	}
	if err := r.readIndex(ctx); err != nil {
		return err
	}
	r.log.Info("trying again, without the packs that are known to be lost", "packs", len(r.lost))
	progress := r.progress
	r.omitted = 0
	clear(r.missed)
	clear(r.partial)
	err := r.applyAll(ctx)
	r.progress = progress
	return err
}

func (r *recovery) readLost(ctx context.Context) error {
	snap, err := r.ix.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	known, err := readDamages(ctx, snap)
	r.lost = known.packs
	return err
}

// checkPacks makes sure that every pack that the index names is there.
func (r *recovery) checkPacks(ctx context.Context) error {
	missing, err := r.missing()
	if err == nil && len(missing) > 0 && r.lost == nil {
		if err = r.readLost(ctx); err == nil {
			missing, err = r.missing()
		}
	}
	if err != nil || len(missing) == 0 {
		return err
	}
	r.log.Error("packs are missing", "packs", missing)
	if r.opts.AllowMissingPacks || r.opts.Follow {
		return nil
	}
	return fmt.Errorf("%d packs that the index names are neither in the spool nor in %s, the first is %s: is this the right bucket for this state directory? If they are lost, check --repair does without them",
		len(missing), r.opts.Bucket, missing[0])
}

// missing returns the packs that the index names, that are not there, and not known to
// be lost.
func (r *recovery) missing() (missing []string, err error) {
	for text := range r.marks {
		name, err := packfile.ParseName(text)
		if err != nil {
			return nil, fmt.Errorf("mark of the index: %w", err)
		}
		if !r.inStore(name) {
			missing = append(missing, text)
		}
	}
	slices.Sort(missing)
	return missing, nil
}

// reportBad notes the packs that cannot be read and are not known to be lost.
func (r *recovery) reportBad(ctx context.Context) error {
	if len(r.bad) > 0 && r.lost == nil {
		if err := r.readLost(ctx); err != nil {
			return err
		}
	}
	for name, err := range r.bad {
		if r.lost[name] {
			continue
		}
		r.missed[name] = true
		r.report.BadPacks = append(r.report.BadPacks, name.String())
		r.log.Error("a pack cannot be read; the store goes on without it, and without what relies on it: restore it, or run dedupd check --repair",
			"pack", name, "bucket", r.opts.Bucket, "err", err)
	}
	slices.Sort(r.report.BadPacks)
	return nil
}
