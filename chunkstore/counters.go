package chunkstore

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2/stats"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/rangecache"
)

// Counters say what a store has done since it was opened, and how it is now. All sizes
// are bytes. Reading them costs next to nothing.
type Counters struct {
	// What was committed, of which the store may have had all before.
	NARs, NARBytes   int64
	UploadedNARBytes int64 // the files with these NARs, as they came
	OtherFiles       int64 // logs, listings and the like
	Paths            int64 // narinfos

	// Of these NARs and files: chunks that were new, what they came to as frames, and
	// those that were known, or that one of them had several times.
	NewChunks, NewChunkBytes, NewFrameBytes int64
	KnownChunks, KnownChunkBytes            int64
	// Known ones that were stored again, since they were scattered over too many packs:
	// before compression. As frames they are among the new ones.
	AgainChunks, AgainChunkBytes int64

	DamagedChunks int64 // found and marked

	UploadsRunning, UploadsWaiting int64     // NARs that are read, and that wait to be
	SpoolPacks, SpoolBytes         int64     // not in the bucket yet
	SpoolOldest                    time.Time // the first commit of these; zero for none

	Index index.Stats
	Cache rangecache.Stats // of what is read from the bucket; zero without one
}

// counts are the part of Counters that only grows.
type counts struct {
	nars, narBytes, uploaded, files, paths             atomic.Int64
	newChunks, newBytes, newFrames, knownChunks, known atomic.Int64
	againChunks, again                                 atomic.Int64
	damaged                                            atomic.Int64
}

// committed counts a file, and the object behind it, if any.
func (c *counts) committed(f *File, o *object) {
	if f.NAR {
		c.nars.Add(1)
		c.narBytes.Add(f.Size)
		c.uploaded.Add(f.FileSize)
	} else {
		c.files.Add(1)
	}
	if o == nil {
		return
	}
	fresh := int64(len(o.stage.frames)) - o.again
	c.newChunks.Add(fresh)
	c.newBytes.Add(o.newBytes)
	c.newFrames.Add(o.stage.size)
	c.knownChunks.Add(o.chunks - fresh)
	c.known.Add(o.chunkBytes - o.newBytes)
	c.againChunks.Add(o.again)
	c.again.Add(o.againBytes)
}

// Counters returns how things are.
func (s *Store) Counters() Counters {
	n := &s.counts
	c := Counters{
		NARs: n.nars.Load(), NARBytes: n.narBytes.Load(), UploadedNARBytes: n.uploaded.Load(), OtherFiles: n.files.Load(), Paths: n.paths.Load(),
		NewChunks: n.newChunks.Load(), NewChunkBytes: n.newBytes.Load(), NewFrameBytes: n.newFrames.Load(),
		KnownChunks: n.knownChunks.Load(), KnownChunkBytes: n.known.Load(),
		AgainChunks: n.againChunks.Load(), AgainChunkBytes: n.again.Load(), DamagedChunks: n.damaged.Load(),
		UploadsRunning: s.uploads.running.Load(), UploadsWaiting: s.uploads.waiting.Load(),
		Index: s.ix.Stats(),
	}
	if s.packs.cache != nil {
		c.Cache = s.packs.cache.Stats()
	}
	c.SpoolPacks, c.SpoolBytes, c.SpoolOldest = s.uploader.depth()
	if open := s.commits.status.Load(); open != nil {
		c.SpoolPacks++
		c.SpoolBytes += open.size
		if c.SpoolOldest.IsZero() {
			c.SpoolOldest = open.oldest
		}
	}
	return c
}

// depth says how much waits for the bucket, and since when. Packs wait in order.
func (u *uploader) depth() (packs, bytes int64, oldest time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.waiting {
		bytes += p.size
	}
	if len(u.waiting) > 0 {
		oldest = u.waiting[0].since
	}
	return int64(len(u.waiting)), bytes, oldest
}

// PlanCache returns what the cache of plans counts, and the bytes that it takes.
func (s *Store) PlanCache() (stats.Stats, uint64) {
	return s.plans.cache.Stats(), s.plans.cache.WeightedSize()
}

// ScrubStatus says how far scrubbing is.
func (s *Store) ScrubStatus(ctx context.Context) (*ScrubStatus, error) {
	return s.scrubStatus(ctx, s.ix)
}

// A timedIndex tells how long look-ups of rows take.
type timedIndex struct {
	index.Index
	report func(time.Duration)
}

func (t *timedIndex) Get(ctx context.Context, table index.Table, key []byte) ([]byte, error) {
	start := time.Now()
	defer func() { t.report(time.Since(start)) }()
	return t.Index.Get(ctx, table, key)
}

func (t *timedIndex) Chunks(ctx context.Context, ids []index.Key, out []index.Location) error {
	start := time.Now()
	defer func() { t.report(time.Since(start)) }()
	return t.Index.Chunks(ctx, ids, out)
}
