package chunkstore

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// hurry is how soon the open pack is sealed when somebody waits for it to be in the
// bucket: late enough for others to share it, since each pack costs a PUT.
const hurry = time.Second

// WaitForBucket returns when the bucket has all that was committed before the call: every
// pack that was open or sealed then, hence all that these commits rely on. From then on
// they survive the loss of the state directory.
//
// If ctx ends first, or the store is closed, what was committed stays committed, and goes
// to the bucket later.
func (s *Store) WaitForBucket(ctx context.Context) error {
	var last uint64
	err := s.commit(ctx, &request{inspect: func(*openPack) error {
		last = s.commits.hurry()
		return nil
	}})
	if err != nil {
		return err
	}
	for {
		ok, change := s.uploader.has(last)
		if ok {
			return nil
		}
		select {
		case <-change:
		case <-s.commits.stuck:
			// What is sealed may still arrive, but the open pack is not sealed any more.
			return *s.commits.refusal.Load()
		case <-s.uploader.stopped:
			if ok, _ := s.uploader.has(last); ok {
				return nil
			}
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for the bucket: %w", context.Cause(ctx))
		}
	}
}

// hurry has the open pack sealed soon, if anything was committed to it, and returns the
// sequence of the last pack with a commit.
func (c *committer) hurry() uint64 {
	if c.open == nil || len(c.open.entries) == 0 {
		return c.store.uploader.lastAdded()
	}
	if c.sealBy.IsZero() {
		c.sealBy = time.Now().Add(hurry)
	}
	return c.open.name.Seq
}

// lastAdded returns the sequence of the last pack of this process that was added.
func (u *uploader) lastAdded() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last
}

// has says whether the bucket has every pack up to the one of this process with a
// sequence; if not, it may after change.
func (u *uploader) has(sequence uint64) (ok bool, change <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	missing := slices.ContainsFunc(u.waiting, func(p *sealedPack) bool { return u.spool.sequence(p.name) <= sequence })
	return u.last >= sequence && !missing, u.change
}
