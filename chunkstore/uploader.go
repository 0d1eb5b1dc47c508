package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// The uploader takes sealed packs from the spool to the bucket, one after another in
// the order in which they were sealed. A pack leaves the spool when the bucket has it
// and the index on disk has all of it.
type uploader struct {
	bucket bucket.Bucket
	ix     index.Index
	spool  *spool
	packs  *packTable
	retry  time.Duration // see Options.RetryInterval
	log    *slog.Logger

	mu       sync.Mutex
	waiting  []*sealedPack // not in the bucket yet
	uploaded []*sealedPack // in the bucket, and maybe not in the index on disk
	since    time.Time     // when the first of uploaded came
	change   chan struct{} // closed and replaced when a pack was uploaded
	wake     chan struct{} // capacity 1
}

func newUploader(b bucket.Bucket, ix index.Index, spool *spool, packs *packTable, retry time.Duration, log *slog.Logger) *uploader {
	return &uploader{
		bucket: b, ix: ix, spool: spool, packs: packs, retry: retry, log: log,
		change: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

const (
	// Packs that the bucket has stay in the spool until the index was written. It is
	// written when they have come to so much, or are so old.
	maxUploaded    = 8 // packs
	maxUploadedAge = time.Minute

	maxRetry = 60 // times Options.RetryInterval
)

func (u *uploader) add(p *sealedPack) {
	u.mu.Lock()
	u.waiting = append(u.waiting, p)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *uploader) next() *sealedPack {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.waiting) == 0 {
		return nil
	}
	return u.waiting[0]
}

// run uploads until ctx ends.
func (u *uploader) run(ctx context.Context) {
	tick := time.NewTicker(maxUploadedAge / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.wake:
			u.uploadAll(ctx)
		case <-tick.C:
		}
		if err := u.reap(ctx, false); err != nil && ctx.Err() == nil {
			u.log.Error("could not take packs out of the spool", "err", err)
		}
	}
}

func (u *uploader) uploadAll(ctx context.Context) {
	for delay := u.retry; ; {
		p := u.next()
		if p == nil {
			return
		}
		err := u.upload(ctx, p)
		if err == nil {
			delay = u.retry
			if err := u.reap(ctx, false); err != nil && ctx.Err() == nil {
				u.log.Error("could not take packs out of the spool", "err", err)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		u.log.Warn("upload of a pack failed, will try again", "pack", p.name, "bucket", u.bucket, "after", delay, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, maxRetry*u.retry)
	}
}

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
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting = u.waiting[1:]
	if len(u.uploaded) == 0 {
		u.since = time.Now()
	}
	u.uploaded = append(u.uploaded, p)
	close(u.change)
	u.change = make(chan struct{})
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

// drain uploads what waits, each pack once. It is called when run has returned.
func (u *uploader) drain(ctx context.Context) {
	for p := u.next(); p != nil && ctx.Err() == nil; p = u.next() {
		if err := u.upload(ctx, p); err != nil {
			u.log.Warn("packs stay in the spool until the next start", "packs", len(u.waiting), "bucket", u.bucket, "err", err)
			break
		}
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
