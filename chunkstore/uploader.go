package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// The uploader takes sealed packs from the spool to the bucket, a few at a time, each when
// the bucket has those that it relies on: so that whenever the spool is lost the bucket has
// whole commits. One that fails is tried again later, and holds up no others but these. A pack leaves the spool when the bucket has it and the index on disk
// has all of it.
type uploader struct {
	bucket   bucket.Bucket
	ix       index.Index
	spool    *spool
	packs    *packTable
	parallel int           // see Options.ParallelPuts
	retry    time.Duration // see Options.RetryInterval
	log      *slog.Logger

	mu       sync.Mutex
	waiting  []*sealedPack // not in the bucket yet, in the order in which they were sealed
	uploaded []*sealedPack // in the bucket, and maybe not in the index on disk
	since    time.Time     // when the first of uploaded came
	last     uint64        // sequence of the last pack of this process that was added
	change   chan struct{} // closed and replaced when a pack was added, or uploaded
	stopped  chan struct{} // closed when nothing will be uploaded any more
}

func newUploader(opts *Options, ix index.Index, spool *spool, packs *packTable) *uploader {
	return &uploader{
		bucket: opts.Bucket, ix: ix, spool: spool, packs: packs,
		parallel: opts.ParallelPuts, retry: opts.RetryInterval, log: opts.Log,
		change: make(chan struct{}), stopped: make(chan struct{}),
	}
}

const (
	// Packs that the bucket has stay in the spool until the index was written. It is
	// written when they have come to so much, or are so old.
	maxUploaded    = 8 // packs
	maxUploadedAge = time.Minute

	maxRetry = 60 // times Options.RetryInterval
)

// An attempt is what the uploader knows of a pack that waits.
type attempt struct {
	running  bool
	failures int
	next     time.Time // not before this
}

// add takes over a pack. Those of this process come in the order of their names.
func (u *uploader) add(p *sealedPack) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting = append(u.waiting, p)
	u.last = max(u.last, u.spool.sequence(p.name))
	u.changed()
}

// changed wakes everybody who waits for a change. u.mu is held.
func (u *uploader) changed() {
	close(u.change)
	u.change = make(chan struct{})
}

// take returns the first pack that is due, for finish to be called with, or nil. Then
// another may be due at next, if that is not zero, and after change.
func (u *uploader) take() (p *sealedPack, next time.Time, change <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	absent := make(map[packfile.Name]bool, len(u.waiting)) // from the bucket
	for _, p := range u.waiting {
		absent[p.name] = true
	}
	for _, p := range u.waiting {
		switch a := &p.attempt; {
		case a.running:
		case a.next.After(now):
			if next.IsZero() || a.next.Before(next) {
				next = a.next
			}
		case !anyOf(absent, p.relies):
			a.running = true
			return p, next, nil
		}
	}
	return nil, next, u.change
}

// anyOf says whether set has one of names.
func anyOf(set, names map[packfile.Name]bool) bool {
	for name := range names {
		if set[name] {
			return true
		}
	}
	return false
}

// finish notes how uploading p ended. After an error it returns how long p waits.
func (u *uploader) finish(p *sealedPack, err error) (delay time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p.attempt.running = false
	if err != nil {
		delay = min(u.retry<<min(p.attempt.failures, 10), maxRetry*u.retry)
		delay = delay/2 + rand.N(delay/2)
		p.attempt.failures++
		p.attempt.next = time.Now().Add(delay)
		return delay
	}
	u.waiting = slices.DeleteFunc(u.waiting, func(other *sealedPack) bool { return other == p })
	if len(u.uploaded) == 0 {
		u.since = time.Now()
	}
	u.uploaded = append(u.uploaded, p)
	u.changed()
	return 0
}

// run uploads until ctx ends.
func (u *uploader) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for range u.parallel {
		workers.Go(func() { u.work(ctx) })
	}
	tick := time.NewTicker(maxUploadedAge / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			u.tryReap(ctx)
		}
	}
}

// work uploads one pack after another until ctx ends.
func (u *uploader) work(ctx context.Context) {
	for ctx.Err() == nil {
		p, next, change := u.take()
		if p == nil {
			u.waitFor(ctx, next, change)
			continue
		}
		err := u.upload(ctx, p)
		delay := u.finish(p, err)
		if err == nil {
			u.tryReap(ctx)
		} else if ctx.Err() == nil {
			u.log.Warn("upload of a pack failed, will try again", "pack", p.name, "bucket", u.bucket, "after", delay, "err", err)
		}
	}
}

// waitFor returns when something may be due; see take.
func (u *uploader) waitFor(ctx context.Context, next time.Time, change <-chan struct{}) {
	var due <-chan time.Time
	if !next.IsZero() {
		due = time.After(time.Until(next))
	}
	select {
	case <-ctx.Done():
	case <-change:
	case <-due:
	}
}

func (u *uploader) tryReap(ctx context.Context) {
	if err := u.reap(ctx, false); err != nil && ctx.Err() == nil {
		u.log.Error("could not take packs out of the spool", "err", err)
	}
}

// upload puts a pack into the bucket.
func (u *uploader) upload(ctx context.Context, p *sealedPack) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	key := packKey(p.name)
	if err := u.bucket.Put(ctx, key, f, p.size); errors.Is(err, bucket.ErrExists) {
		// Either an earlier attempt arrived although it seemed to fail, or the name was
		// used twice.
		if err := u.compare(ctx, key, f, p.size); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	u.log.Debug("pack uploaded", "pack", p.name, "bytes", p.size)
	return nil
}

// compare checks that the pack in the bucket is the one in f, by its length and its
// trailer: the trailer's checksums cover the directory, whose checksums cover the rest.
func (u *uploader) compare(ctx context.Context, key string, f *os.File, size int64) error {
	info, err := u.bucket.Stat(ctx, key)
	if err != nil {
		return err
	}
	if info.Size != size {
		return fmt.Errorf("the bucket has another object of %d bytes as %s: %w", info.Size, key, bucket.ErrExists)
	}
	var mine, theirs [packfile.TrailerSize]byte
	if _, err := f.ReadAt(mine[:], size-packfile.TrailerSize); err != nil {
		return err
	}
	if err := u.bucket.ReadAt(ctx, key, theirs[:], size-packfile.TrailerSize); err != nil {
		return err
	}
	if mine != theirs {
		return fmt.Errorf("the bucket has another object as %s: %w", key, bucket.ErrExists)
	}
	return nil
}

// reap takes out of the spool what may leave it, and has the index written when that
// has waited long enough, or now.
func (u *uploader) reap(ctx context.Context, now bool) error {
	u.mu.Lock()
	due := len(u.uploaded) > 0 && (now || len(u.uploaded) >= maxUploaded || time.Since(u.since) > maxUploadedAge)
	u.mu.Unlock()
	if due {
		if err := u.ix.Flush(ctx); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	marks, err := u.ix.Marks(ctx)
	if err != nil {
		return fmt.Errorf("read marks of the index: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	kept := u.uploaded[:0]
	for _, p := range u.uploaded {
		if marks[p.name.String()] < uint64(p.entries) {
			kept = append(kept, p)
			continue
		}
		u.packs.dropLocal(p.number)
		if err := u.spool.remove(p); err != nil {
			u.log.Warn("could not remove an uploaded pack from the spool", "path", p.path, "err", err)
		}
	}
	u.uploaded = kept
	return nil
}

// wait returns when the bucket has every pack that was added so far and the index is on
// disk.
func (u *uploader) wait(ctx context.Context) error {
	for {
		u.mu.Lock()
		left, change := len(u.waiting), u.change
		u.mu.Unlock()
		if left == 0 {
			return u.reap(ctx, true)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// drain uploads what waits, until one pack fails. It is called when run has returned.
func (u *uploader) drain(ctx context.Context) {
	defer close(u.stopped)
	u.mu.Lock()
	for _, p := range u.waiting {
		p.attempt.next = time.Time{}
	}
	u.mu.Unlock()
	g, uploading := errgroup.WithContext(ctx)
	for range u.parallel {
		g.Go(func() error {
			for p, _, _ := u.take(); p != nil; p, _, _ = u.take() {
				err := u.upload(uploading, p)
				u.finish(p, err)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		u.log.Warn("packs stay in the spool until the next start", "packs", len(u.waiting), "bucket", u.bucket, "err", err)
	}
	if err := u.reap(ctx, true); err != nil {
		u.log.Warn("could not take packs out of the spool", "err", err)
	}
}

// waitingSizes returns the sizes of the packs that are not in the bucket yet.
func (u *uploader) waitingSizes() []int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	sizes := make([]int64, len(u.waiting))
	for i, p := range u.waiting {
		sizes[i] = p.size
	}
	return sizes
}
