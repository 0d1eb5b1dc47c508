package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// A follower brings into the index what others put into the bucket. Packs may be seen in
// any order: a commit is applied when every pack that it relies on is applied with all of
// its own commits, and so no path is visible before what it is made of.
//
// Looking is a list of what comes behind a cursor. One list, behind the cursor of the
// newest writer, finds that writer's packs and all newer writers. Each other writer that may
// still have packs on the way costs one more; see cursor. A list of everything, now and
// then, finds the rest: packs that came very late, and writers whose clocks were behind,
// since it is by its start that a writer counts as newer.
type follower struct {
	store *Store
	wake  chan struct{} // capacity 1: somebody misses a path

	// Of the goroutine that runs it, or of Open before that.
	whole   map[packfile.Name]bool     // applied with all their commits
	waiting map[packfile.Name]*arrival // seen, and not whole
	cursors map[writerID]*cursor
	listed  time.Time // when everything was listed
	flushed time.Time // when the index was last put on disk

	mu     sync.Mutex
	status FollowStatus
	looked chan struct{} // closed and replaced when a look has ended
}

type writerID = [10]byte

// An arrival is a pack that was seen in the bucket, and is not applied with all of its
// commits.
type arrival struct {
	size   int64
	since  time.Time
	tried  bool
	bad    bool                   // it could not be read: it is tried again when all are listed
	missed map[packfile.Name]bool // the packs for want of which commits were left out
}

// FollowStatus says how far behind a follower is.
type FollowStatus struct {
	// Looked is when the last look began that succeeded: what was in the bucket then is
	// visible, but for what is waiting. Opening the store counts as one.
	Looked time.Time `json:"looked"`
	// Err says why the looks since then have failed, "" if there was none or it succeeded.
	Err string `json:"err,omitempty"`
	// Waiting is the number of packs of which commits rely on packs that were not there,
	// or that cannot be read, and OldestWaiting when the first of these was seen.
	Waiting       int       `json:"waiting"`
	OldestWaiting time.Time `json:"oldest_waiting,omitzero"`

	Looks   int64 `json:"looks"`   // since the start
	Failed  int64 `json:"failed"`  // of these
	Applied int64 `json:"applied"` // packs, since the start

	began   time.Time // the last look, whatever became of it
	looking bool      // it has not ended
}

func (st *FollowStatus) writeRows(row func(name, format string, args ...any)) {
	row("following", "as of %v ago, %d packs applied in %d looks", time.Since(st.Looked).Round(time.Millisecond), st.Applied, st.Looks)
	if st.Err != "" {
		row("cannot follow", "%s", st.Err)
	}
	if st.Waiting > 0 {
		row("packs that wait", "%d, the first since %v", st.Waiting, st.OldestWaiting.Format(time.DateTime))
	}
}

const (
	followListAll = time.Hour       // from one list of everything to the next
	followFlush   = time.Minute     // for which what was applied may have to be applied again after a crash
	followWait    = 5 * time.Second // at most, for a look that somebody waits for
)

// newFollower goes on from where opening the store is.
func newFollower(r *recovery) *follower {
	now := time.Now()
	f := &follower{
		store: r.Store, wake: make(chan struct{}, 1), looked: make(chan struct{}), whole: r.whole,
		waiting: map[packfile.Name]*arrival{}, cursors: map[writerID]*cursor{}, listed: now, flushed: now,
		status: FollowStatus{Looked: now, began: now},
	}
	for _, name := range slices.SortedFunc(maps.Keys(r.bucket), comparePacks) {
		f.saw(name, r.bucket[name], now)
	}
	return f
}

// saw notes a pack that is in the bucket.
func (f *follower) saw(name packfile.Name, size int64, now time.Time) {
	if c := f.cursor(name.Writer); c.saw(name.Seq) {
		c.active = now
	}
	if !f.whole[name] && f.waiting[name] == nil {
		f.waiting[name] = &arrival{size: size, since: now}
	}
}

func (f *follower) cursor(w writerID) *cursor {
	c := f.cursors[w]
	if c == nil {
		c = &cursor{ahead: map[uint64]bool{}}
		f.cursors[w] = c
	}
	return c
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	timer := time.NewTimer(0) // what opening has left out may be there by now
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-f.wake:
		}
		f.look(ctx)
		timer.Reset(f.store.opts.FollowInterval)
	}
}

// look looks once, and tells everybody.
func (f *follower) look(ctx context.Context) {
	now := time.Now()
	f.mu.Lock()
	f.status.began, f.status.looking = now, true
	f.mu.Unlock()
	applied, err := f.step(ctx, now)
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	st := &f.status
	st.Looks++
	st.looking = false
	st.Applied += int64(applied)
	st.Waiting, st.OldestWaiting = len(f.waiting), f.oldest()
	switch {
	case err == nil:
		if st.Err != "" {
			f.store.log.Info("the bucket is followed again", "bucket", f.store.opts.Bucket)
		}
		st.Looked, st.Err = now, ""
	default:
		if st.Err == "" {
			f.store.log.Error("the bucket cannot be followed; what is known is served", "bucket", f.store.opts.Bucket, "err", err)
		}
		st.Failed++
		st.Err = err.Error()
	}
	close(f.looked)
	f.looked = make(chan struct{})
	f.mu.Unlock()
	f.tellLeftOut()
}

func (f *follower) oldest() (oldest time.Time) {
	for _, a := range f.waiting {
		if oldest.IsZero() || a.since.Before(oldest) {
			oldest = a.since
		}
	}
	return oldest
}

// tellLeftOut has Check know what is not applied.
func (f *follower) tellLeftOut() {
	partial := map[packfile.Name]bool{}
	for name, a := range f.waiting {
		partial[name] = a.tried && !a.bad
	}
	maps.DeleteFunc(partial, func(_ packfile.Name, tried bool) bool { return !tried })
	l := &f.store.leftOut
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missed, l.partial = nil, partial
}

// step lists what is new, and applies it. It returns the number of packs that are whole now.
func (f *follower) step(ctx context.Context, now time.Time) (applied int, err error) {
	everything := now.Sub(f.listed) >= followListAll
	if everything {
		if err := f.list(ctx, packPrefix, "", now); err != nil {
			return 0, err
		}
		f.listed = now
		for _, a := range f.waiting {
			a.bad = false
		}
	} else if err := f.listNew(ctx, now); err != nil {
		return 0, err
	}
	for {
		n, err := f.applyReady(ctx)
		applied += n
		if err != nil || n == 0 {
			return applied, err
		}
		if time.Since(f.flushed) > followFlush {
			if err := f.store.ix.Flush(ctx); err != nil {
				return applied, fmt.Errorf("write index: %w", err)
			}
			f.flushed = time.Now()
		}
	}
}

// listNew lists what comes behind the cursors of writers that may have more.
func (f *follower) listNew(ctx context.Context, now time.Time) error {
	awaited := map[writerID]bool{}
	for _, a := range f.waiting {
		for name := range a.missed {
			awaited[name.Writer] = true
			f.cursor(name.Writer)
		}
	}
	writers := slices.SortedFunc(maps.Keys(f.cursors), func(a, b writerID) int { return slices.Compare(b[:], a[:]) })
	for i, w := range writers {
		c := f.cursors[w]
		c.advance(now, f.store.opts.FollowGap)
		dir := fmt.Sprintf("%s%x/", packPrefix, w)
		switch {
		case i == 0: // and the writers behind it
			c.active = now
			dir = packPrefix
		case !awaited[w] && now.Sub(c.active) > f.store.opts.FollowGap:
			continue
		}
		if err := f.list(ctx, dir, c.after(w), now); err != nil {
			return err
		}
	}
	if len(writers) == 0 {
		return f.list(ctx, packPrefix, "", now)
	}
	return nil
}

func (f *follower) list(ctx context.Context, prefix, after string, now time.Time) error {
	return f.store.opts.Bucket.List(ctx, prefix, after, func(info bucket.Info) error {
		if name, ok := packOfKey(info.Key); ok {
			f.saw(name, info.Size, now)
		}
		return nil
	})
}

// packOfKey is the inverse of packKey.
func packOfKey(key string) (packfile.Name, bool) {
	text, ok := strings.CutSuffix(strings.TrimPrefix(key, packPrefix), packSuffix)
	name, err := packfile.ParseName(text)
	return name, ok && err == nil
}

// applyReady applies the packs that were not tried yet, and those for which everything is
// there by now. It returns how many of them are whole.
func (f *follower) applyReady(ctx context.Context) (applied int, err error) {
	var names []packfile.Name
	for name, a := range f.waiting {
		ready, err := f.ready(ctx, a)
		if err != nil {
			return 0, err
		}
		if ready {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, comparePacks)
	tails := make([]*tail, len(names))
	for i, name := range names {
		tails[i] = &tail{name: name, size: f.waiting[name].size, from: bucketReader{ctx, f.store.opts.Bucket, packKey(name)}}
	}
	err = readTails(ctx, tails, func(t *tail) error {
		a := f.waiting[t.name]
		a.tried = true
		if t.pack == nil {
			return f.unreadable(ctx, t)
		}
		if err := f.apply(ctx, t.pack, a); err != nil {
			return fmt.Errorf("apply pack %s: %w", t.name, err)
		}
		if f.whole[t.name] {
			delete(f.waiting, t.name)
			applied++
		}
		return nil
	})
	return applied, err
}

// unreadable notes a pack that is damaged, or was deleted after it was listed.
func (f *follower) unreadable(ctx context.Context, t *tail) error {
	lost, err := f.have(ctx, t.name)
	if lost || errors.Is(t.err, bucket.ErrNotFound) {
		delete(f.waiting, t.name)
	} else {
		f.waiting[t.name].bad = true
		f.store.log.Error("a pack cannot be read; what relies on it waits", "pack", t.name, "bucket", f.store.opts.Bucket, "err", t.err)
	}
	return err
}

// ready says whether it is worth while to apply a pack, or to do so again.
func (f *follower) ready(ctx context.Context, a *arrival) (bool, error) {
	if a.bad {
		return false, nil
	}
	for name := range a.missed {
		if have, err := f.have(ctx, name); !have || err != nil {
			return false, err
		}
	}
	return true, nil
}

// have says whether commits that rely on a pack can be applied: it is whole, or known to be
// lost, and then what it had counts as damaged.
func (f *follower) have(ctx context.Context, name packfile.Name) (bool, error) {
	if f.whole[name] {
		return true, nil
	}
	return newApplier(f.store.ix, f.store.repo.StoreDir).damaged(ctx, wholePack(name))
}

// apply applies a pack by recovery's code, between two looks of others at the index.
func (f *follower) apply(ctx context.Context, pack *packfile.Pack, a *arrival) error {
	s := f.store
	r := &recovery{
		Store: s, applier: newApplier(s.ix, s.repo.StoreDir), whole: f.whole,
		missed: map[packfile.Name]bool{}, partial: map[packfile.Name]bool{},
	}
	var failed error
	have := func(name packfile.Name) bool {
		ok, err := f.have(ctx, name)
		if err != nil {
			failed = err
		}
		return ok
	}
	err := s.commit(ctx, &request{inspect: func(*openPack) error { return r.apply(ctx, pack, have) }})
	if r.applier.damages > 0 {
		s.damages.Add(1)
		s.plans.cache.InvalidateAll()
		s.marked.Add(1)
	}
	a.missed = r.missed
	if err == nil {
		err = failed
	}
	return err
}

// refresh has the follower look if it has not done so for a while, and waits for that. Where
// the bucket fails it does not: then what is known has to do.
func (f *follower) refresh(ctx context.Context) {
	f.mu.Lock()
	done, st, age := f.looked, f.status, time.Since(f.status.began)
	f.mu.Unlock()
	wait := followWait
	switch {
	case st.Err != "" || !st.looking && age < f.store.opts.FollowInterval/10:
		return
	case st.looking:
		wait -= age
	default:
		select {
		case f.wake <- struct{}{}:
		default: // somebody else has
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Following says how far behind a follower is; nil for a writer.
func (s *Store) Following() *FollowStatus {
	if s.follower == nil {
		return nil
	}
	s.follower.mu.Lock()
	defer s.follower.mu.Unlock()
	st := s.follower.status
	return &st
}

// refuseSpool makes sure that nothing is in the spool that only a writer could bring to the
// bucket.
func (r *recovery) refuseSpool(context.Context) error {
	found, err := r.listSpool()
	for name := range found {
		if _, uploaded := r.bucket[name]; err == nil && !uploaded {
			err = fmt.Errorf("pack %s is in the spool and not in the bucket: open the state directory for writing first", name)
		}
	}
	return err
}

// Writable says why nothing can be uploaded, nil if that is not so. The error wraps
// ErrReadOnly, and nothing of an upload is read.
func (s *Store) Writable() error {
	if s.follower != nil {
		return ErrReadOnly
	}
	if err := s.leaseLost.Load(); err != nil {
		return *err
	}
	return nil
}

// A cursor says up to where the packs of a writer need not be listed any more. Packs may
// arrive in another order than that of their numbers, and some numbers never do.
type cursor struct {
	low    uint64          // all up to here were seen, or given up
	ahead  map[uint64]bool // seen above low
	gap    time.Time       // since when the next one has been missing, while there are others ahead
	active time.Time       // when the writer was last the newest, or something of it was new
}

// maxOvertaking is how many packs may have overtaken another one before it is given up: with the
// cursor that far behind, a list is still one request.
const maxOvertaking = 500

// saw notes a pack, and says whether it is new.
func (c *cursor) saw(seq uint64) bool {
	if seq <= c.low || c.ahead[seq] {
		return false
	}
	c.ahead[seq] = true
	if len(c.ahead) > maxOvertaking {
		c.skip()
	}
	c.fill()
	return true
}

// fill moves up to the next gap.
func (c *cursor) fill() {
	for c.ahead[c.low+1] {
		c.low++
		delete(c.ahead, c.low)
		c.gap = time.Time{}
	}
}

// skip gives up what is missing before the first pack ahead.
func (c *cursor) skip() {
	c.low = slices.Min(slices.Collect(maps.Keys(c.ahead))) - 1
}

// advance gives up what has been missing for too long.
func (c *cursor) advance(now time.Time, wait time.Duration) {
	switch {
	case len(c.ahead) == 0:
	case c.gap.IsZero():
		c.gap = now
	case now.Sub(c.gap) > wait:
		c.skip()
		c.fill()
	}
}

// after is the key behind which to list.
func (c *cursor) after(w writerID) string {
	// What follows a number is a '-', which comes before the '.'.
	return fmt.Sprintf("%s%x/%010x.", packPrefix, w, c.low)
}
