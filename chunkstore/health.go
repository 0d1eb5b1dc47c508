package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// Health says what a store cannot do just now. Both lists are empty where all is well.
type Health struct {
	Read  []error // why what is stored cannot be read, or not all of it
	Write []error // why uploads fail, or wait
}

// Health looks at the store: at what its parts have met so far, at the disk, and at the
// bucket, which is asked for one object, as long as ctx allows. Uploads go to the spool,
// so that a bucket that is away is, for a while, only a matter of reading.
func (s *Store) Health(ctx context.Context) Health {
	var h Health
	s.open.RLock()
	closed := s.closed
	s.open.RUnlock()
	if closed {
		return Health{Read: []error{ErrClosed}, Write: []error{ErrClosed}}
	}
	ix := s.ix.Stats()
	if ix.Damage != nil {
		h.Read = append(h.Read, fmt.Errorf("restart the server, which makes a new index: %w", ix.Damage))
	}
	if _, err := s.opts.Bucket.Stat(ctx, repositoryKey); errors.Is(err, bucket.ErrNotFound) {
		h.Read = append(h.Read, fmt.Errorf("there is no repository in the bucket: %w", err))
	} else if err != nil {
		h.Read = append(h.Read, fmt.Errorf("the bucket cannot be reached: %w", err))
	}
	if f := s.Following(); f != nil && f.Err != "" {
		h.Read = append(h.Read, fmt.Errorf("the bucket was last seen %v ago: %s", time.Since(f.Looked).Round(time.Second), f.Err))
	}
	for _, err := range []error{s.Writable(), ix.Err, ix.WriteErr, s.commits.refused(), s.uploads.obstacle()} {
		if err != nil {
			h.Write = append(h.Write, err)
		}
	}
	return h
}

// refused says why nothing is committed any more, nil if that is not so.
func (c *committer) refused() error {
	if err := c.refusal.Load(); err != nil {
		return *err
	}
	return nil
}
