package chunkstore

import (
	"context"
	"path/filepath"

	"github.com/dedupd/dedupd/rangecache"
)

// openCache opens the cache of what is served from the bucket. It leaves uploads the room
// that they need, and as much again.
func (s *Store) openCache() *rangecache.Cache {
	c, err := rangecache.Open(s.opts.Bucket, rangecache.Options{
		Dir: filepath.Join(s.opts.State, "cache"), Size: s.opts.CacheSize, Memory: s.opts.ReadMemory / 2, Log: s.log,
		Room: func() bool {
			free, err := s.uploads.free()
			return err == nil && free > 2*s.opts.Limits.MinFree
		},
	})
	if err != nil {
		s.log.Error("there will be no cache, and downloads read from the bucket", "err", err)
		return nil
	}
	return c
}

// A prefetcher knows what a download from a cached bucket will read next, and has it
// fetched. It is for one goroutine at a time.
type prefetcher struct {
	cache   *rangecache.Reader
	reading runs // those of the groups that are read
	asked   runs // those that were asked for ahead
	next    int  // the first piece that was not
}

// A run is a range of a pack that holds frames wanted one after the other, with gaps of up to
// maxGap between them. Frames of other packs may be wanted in between.
type run struct{ off, end int64 }

// runs are the last run of each pack.
type runs map[uint32]run

const (
	// prefetchWindow is how many bytes of what is served are looked at for requests that can be
	// made already.
	prefetchWindow = 8 << 20
	// runWindow is how far, in bytes of what is served, the end of a run is looked for.
	runWindow = 64 << 20
)

// find returns the run of the bytes [off, end) of a pack, which piece first begins with or
// holds. Runs are found once, unless they are long.
func (rs *runs) find(r *objectReader, first int, pack uint32, off, end int64) run {
	if known, ok := (*rs)[pack]; ok && known.off <= off && end <= known.end {
		return known
	}
	found := run{off, end}
	limit := min(r.end, r.start(first)+runWindow)
	for i := first; i < len(r.plan.pieces) && r.start(i) < limit; i++ {
		pp := &r.plan.pieces[i]
		at, n := pp.stored()
		if pp.literal() || pp.loc.Pack != pack || at < found.off {
			continue
		}
		if at > found.end+maxGap {
			break
		}
		found.end = max(found.end, at+n)
	}
	if *rs == nil {
		*rs = runs{}
	}
	(*rs)[pack] = found
	return found
}

// fetchAhead asks for the run of g, and for those that begin soon after it.
func (r *objectReader) fetchAhead(ctx context.Context, g *group) {
	a := r.prefetch
	limit := min(r.end, r.start(g.last-1)+prefetchWindow)
	for a.next = max(a.next, g.first); a.next < len(r.plan.pieces) && r.start(a.next) < limit; a.next++ {
		pp := &r.plan.pieces[a.next]
		at, n := pp.stored()
		if known, ok := a.asked[pp.loc.Pack]; pp.literal() || ok && known.off <= at && at+n <= known.end {
			continue
		}
		found := a.asked.find(r, a.next, pp.loc.Pack, at, at+n)
		if !r.store.packs.prefetch(ctx, a.cache, pp.loc.Pack, found.off, found.end) {
			delete(a.asked, pp.loc.Pack) // once more with the next group
			return
		}
	}
}
