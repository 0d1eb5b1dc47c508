package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	lost    map[packfile.Name]bool // packs that are known to be, once somebody has missed one
	missed  bool                   // a commit was left out for want of a pack
	sealed  []*sealedPack          // those in the spool
	dropped int64                  // bytes of journals and frames that nobody was told of

	progress RebuildProgress // of applying packs to the index
	omitted  int             // commits that rely on packs that are missing
}

func (s *Store) recover(ctx context.Context) error {
	r := &recovery{
		Store: s, applier: newApplier(s.ix, s.repo.StoreDir),
		bucket: map[packfile.Name]int64{}, spooled: map[packfile.Name]bool{},
	}
	for _, step := range []func(context.Context) error{r.readIndex, r.listBucket, r.readSpool, r.applyAll, r.applyRest, r.checkPacks} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := s.indexRebuilt(ctx, r); err != nil {
		return err
	}
	if r.progress.Packs > 0 || r.dropped > 0 || len(r.sealed) > 0 {
		s.log.Info("recovered", "packs applied", r.progress.Packs, "packs in spool", len(r.sealed), "unfinished bytes dropped", r.dropped)
	}
	for _, p := range r.sealed {
		s.uploader.add(p)
	}
	return nil
}

func (r *recovery) readIndex(ctx context.Context) (err error) {
	r.marks, err = r.ix.Marks(ctx)
	return err
}

func (r *recovery) listBucket(ctx context.Context) error {
	return r.opts.Bucket.List(ctx, packPrefix, func(info bucket.Info) error {
		text, ok := strings.CutSuffix(strings.TrimPrefix(info.Key, packPrefix), ".pack")
		name, err := packfile.ParseName(text)
		if err != nil || !ok {
			r.log.Warn("bucket holds an object that is no pack", "key", info.Key)
			return nil
		}
		r.bucket[name] = info.Size
		return nil
	})
}

// readSpool finds the packs in the spool and seals those that were open.
func (r *recovery) readSpool(ctx context.Context) error {
	if err := os.RemoveAll(r.staging); err != nil {
		return err
	}
	if err := os.MkdirAll(r.staging, 0o700); err != nil {
		return err
	}
	found := map[packfile.Name][]string{} // suffixes
	err := fs.WalkDir(os.DirFS(r.spool.dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		ext := filepath.Ext(path)
		name, err := packfile.ParseName(strings.TrimSuffix(path, ext))
		if err != nil {
			r.log.Warn("spool holds a file that is not dedupd's", "path", path)
			return nil
		}
		found[name] = append(found[name], ext)
		return nil
	})
	if err != nil {
		return err
	}
	names := slices.Collect(maps.Keys(found))
	sortNames(names)
	for _, name := range names {
		if err := r.readSpooled(ctx, name, found[name]); err != nil {
			return fmt.Errorf("pack %s in the spool: %w", name, err)
		}
	}
	return nil
}

func (r *recovery) readSpooled(ctx context.Context, name packfile.Name, suffixes []string) error {
	if slices.Contains(suffixes, packSuffix) {
		if slices.Contains(suffixes, journalSuffix) {
			if err := os.Remove(r.spool.path(name, journalSuffix)); err != nil {
				return err
			}
		}
		return r.addSealed(ctx, name)
	}
	if _, ok := r.bucket[name]; ok {
		// It was complete once. What removed it from here was not on disk when the power
		// went, or failed.
		return errors.Join(removeIfThere(r.spool.path(name, journalSuffix)), removeIfThere(r.spool.path(name, framesSuffix)))
	}
	p, err := r.reopen(name)
	if err != nil {
		return err
	}
	if len(p.entries) == 0 {
		p.close()
		return errors.Join(removeIfThere(r.spool.path(name, journalSuffix)), removeIfThere(r.spool.path(name, framesSuffix)))
	}
	if _, err := p.seal(); err != nil {
		return err
	}
	return r.addSealed(ctx, name)
}

// reopen reads the journal of a pack that was open, and cuts its frames off where the
// journal ends. What lies behind was never acknowledged.
func (r *recovery) reopen(name packfile.Name) (*openPack, error) {
	p := &openPack{spool: r.spool, name: name, frames: packfile.HeaderSize}
	var err error
	p.journal, err = os.Open(r.spool.path(name, journalSuffix))
	gone := errors.Is(err, os.ErrNotExist)
	if err == nil {
		err = p.replay(r.log)
	}
	if err != nil && !gone {
		return nil, err
	}
	if mark := r.marks[name.String()]; uint64(len(p.entries)) < mark {
		return nil, fmt.Errorf("journal has %d entries and the index applied %d: %w", len(p.entries), mark, packfile.ErrCorrupt)
	}
	if gone {
		return p, nil // the crash was before the journal was created
	}
	if p.file, err = os.OpenFile(r.spool.path(name, framesSuffix), os.O_RDWR, 0); err != nil {
		if errors.Is(err, os.ErrNotExist) && len(p.entries) == 0 {
			return p, nil
		}
		return nil, err
	}
	info, err := p.file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < p.frames && len(p.entries) > 0 {
		return nil, fmt.Errorf("frames end at %d, the journal names them up to %d: %w", info.Size(), p.frames, packfile.ErrCorrupt)
	}
	r.dropped += max(0, info.Size()-p.frames)
	if err := p.file.Truncate(p.frames); err != nil {
		return nil, err
	}
	_, err = p.file.Seek(p.frames, io.SeekStart)
	return p, err
}

// replay reads the entries of the journal up to the first that is not whole: a write
// that a crash cut short, which nobody was told of.
func (p *openPack) replay(log *slog.Logger) error {
	j, err := packfile.NewJournalReader(p.journal)
	for err == nil {
		var e packfile.Entry
		if e, err = j.Next(); err == nil {
			for _, f := range e.Frames {
				p.frames += f.Size()
			}
			p.add(e)
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, packfile.ErrCorrupt) {
		log.Warn("journal ends in a write that is not whole; what follows is dropped", "pack", p.name, "entries", len(p.entries), "err", err)
		err = io.EOF
	}
	if err == io.EOF {
		p.written = len(p.entries)
		return nil
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (r *recovery) addSealed(ctx context.Context, name packfile.Name) error {
	number, err := r.packs.number(ctx, name)
	if err != nil {
		return err
	}
	path := r.spool.path(name, packSuffix)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pack, err := packfile.Read(name, f, info.Size())
	if err != nil {
		f.Close()
		return err
	}
	r.packs.addLocal(number, f)
	r.spooled[name] = true
	r.sealed = append(r.sealed, &sealedPack{name: name, number: number, path: path, size: info.Size(), entries: pack.Entries})
	return nil
}

// applyAll applies what the index on disk does not have: packs of the spool that it was
// behind with, and packs of the bucket that it never saw.
func (r *recovery) applyAll(ctx context.Context) error {
	behind := map[packfile.Name]*tail{}
	for name, size := range r.bucket {
		if r.marks[name.String()] == 0 {
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
	err := readTails(ctx, tails, func(p *packfile.Pack) error {
		if err := r.apply(ctx, p); err != nil {
			return fmt.Errorf("apply pack %s: %w", p.Name, err)
		}
		progress.applied(p)
		return nil
	})
	r.progress = progress.RebuildProgress
	return err
}

// apply applies a pack. Commits that rely on a pack that is missing are left out, and
// the pack gets no mark: the next start tries again.
func (r *recovery) apply(ctx context.Context, pack *packfile.Pack) error {
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
			if !r.have(other) {
				complete, r.missed = false, true
				r.omitted++
				r.log.Error("a commit relies on a pack that is missing; it is left out", "pack", pack.Name, "commit", n, "missing", other)
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
	return r.applier.flush(ctx)
}

func (r *recovery) have(name packfile.Name) bool {
	_, inBucket := r.bucket[name]
	return inBucket || r.spooled[name] || r.lost[name]
}

// applyRest applies the commits that were left out for want of packs that are known to
// be lost: what they need of these was uploaded again, or is known to be damaged.
func (r *recovery) applyRest(ctx context.Context) error {
	if !r.missed {
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
	if r.opts.AllowMissingPacks {
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
		if !r.have(name) {
			missing = append(missing, text)
		}
	}
	slices.Sort(missing)
	return missing, nil
}
