package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A ScrubRound is one reading of all frames that are in use, of the packs in the bucket.
type ScrubRound struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	Pack     string    `json:"pack"`      // the last one that was read
	Packs    int64     `json:"packs"`     // that were read
	Frames   int64     `json:"frames"`    // that were read
	Bytes    int64     `json:"bytes"`     // of these
	Damaged  int64     `json:"damaged"`   // chunks found damaged, and marked
	BadPacks int64     `json:"bad_packs"` // gone, or without a directory that can be read
}

// ScrubStatus says how far scrubbing is, and what it found last.
type ScrubStatus struct {
	Current *ScrubRound `json:"current,omitempty"` // not finished
	Last    *ScrubRound `json:"last,omitempty"`    // finished
}

// writeRows writes the status as rows of a table.
func (st *ScrubStatus) writeRows(row func(name, format string, args ...any)) {
	if r := st.Current; r != nil {
		row("scrubbing", "since %s: %s, at pack %s", r.Started.Format(time.DateTime), r, r.Pack)
	}
	if r := st.Last; r != nil {
		row("scrubbed", "%s to %s: %s", r.Started.Format(time.DateTime), r.Finished.Format(time.DateTime), r)
	}
}

// String says what was read and found.
func (r *ScrubRound) String() string {
	return fmt.Sprintf("%d packs, %d frames, %s, %d damaged chunks, %d bad packs", r.Packs, r.Frames, size(r.Bytes), r.Damaged, r.BadPacks)
}

// scrubKey is the row of Meta that holds the ScrubStatus, so that a restart goes on where
// scrubbing was.
var scrubKey = []byte("scrub")

// scrubEvery is the time from the start of one round to that of the next, if the one is
// finished by then.
const scrubEvery = 24 * time.Hour

// Scrub reads every frame that is in use of every pack in the bucket, at most rate bytes
// per second, once a day, and marks what is damaged: so that damage is known while what is
// lost can still be uploaded again. It returns when ctx ends, with nil, or
// with an error of the store itself. A bucket that cannot be reached is waited for.
//
// It is to have returned before Close is called. What it does is in Stats.
func (s *Store) Scrub(ctx context.Context, rate int64) error {
	frames, err := newFrameReaders(s.packs)
	for _, r := range frames {
		r.quick = true // it looks for what has changed
	}
	if err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	sc := &scrubber{store: s, frames: frames, pace: pacer{rate: rate}}
	for err == nil {
		err = sc.round(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("scrub: %w", err)
}

// A scrubber is a running Scrub.
type scrubber struct {
	store  *Store
	frames frameReaders
	pace   pacer
}

// round does what is left of a round, or waits until one is due and does that.
func (sc *scrubber) round(ctx context.Context) error {
	status, err := sc.store.scrubStatus(ctx, sc.store.ix)
	if err != nil {
		return err
	}
	if status.Current == nil {
		if status.Last != nil {
			if err := sleep(ctx, time.Until(status.Last.Started.Add(scrubEvery))); err != nil {
				return err
			}
		}
		status.Current = &ScrubRound{Started: time.Now()}
	}
	marks, err := sc.store.ix.Marks(ctx)
	if err != nil {
		return err
	}
	r := status.Current
	for _, text := range slices.Sorted(maps.Keys(marks)) {
		if text <= r.Pack {
			continue
		}
		if err := sc.patiently(ctx, text, r); err != nil {
			return err
		}
		r.Pack = text
		if err := sc.save(ctx, status); err != nil {
			return err
		}
	}
	r.Finished = time.Now()
	status.Current, status.Last = nil, r
	sc.store.log.Info("scrubbed", "packs", r.Packs, "frames", r.Frames, "bytes", r.Bytes, "damaged", r.Damaged, "bad packs", r.BadPacks)
	return sc.save(ctx, status)
}

// patiently scrubs a pack, and begins it again until nothing but damage goes wrong.
func (sc *scrubber) patiently(ctx context.Context, text string, r *ScrubRound) error {
	name, err := packfile.ParseName(text)
	if err != nil {
		return fmt.Errorf("mark of the index: %w", err)
	}
	for wait := sc.store.opts.RetryInterval; ; wait = min(2*wait, maxRetry*sc.store.opts.RetryInterval) {
		before := *r
		err := sc.pack(ctx, name, r)
		if err == nil || ctx.Err() != nil || endsScrubbing(err) {
			return err
		}
		*r = before
		sc.store.log.Warn("scrubbing waits", "pack", name, "retry in", wait, "err", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// endsScrubbing tells errors that only a restart may help against.
func endsScrubbing(err error) bool {
	for _, e := range []error{index.ErrClosed, index.ErrDamaged, index.ErrBroken, ErrClosed, ErrBroken} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (sc *scrubber) pack(ctx context.Context, name packfile.Name, r *ScrubRound) error {
	number, err := sc.store.packs.number(ctx, name)
	if err != nil {
		return err
	}
	if local := sc.store.packs.acquire(number); local != nil {
		sc.store.packs.release(local)
		return nil // it may not even be complete; the next round finds it in the bucket
	}
	if _, err := sc.store.ix.Get(ctx, index.Packs, wholePack(name).key()); !errors.Is(err, index.ErrNotFound) {
		return err // nil: it is known to be lost
	}
	pack, _, err := sc.store.readPack(ctx, name, number)
	if isDamage(err) {
		pack, _, err = sc.store.readPack(ctx, name, number)
	}
	if isDamage(err) {
		r.BadPacks++
		sc.store.log.Error("a pack is gone or has no directory: run dedupd check --repair", "pack", name, "err", err)
		return nil
	} else if err != nil {
		return err
	}
	var live []placedFrame
	for i, f := range pack.Frames {
		placed := placedFrame{FrameInfo: f, at: pack.Offsets[i]}
		used, err := usedChunks(ctx, sc.store.ix, name, number, placed)
		if err != nil {
			return err
		}
		if len(used) > 0 {
			live = append(live, placed)
		}
	}
	if err := sc.frames.verifyAll(ctx, number, live, &sc.pace); err != nil {
		return err
	}
	r.Packs++
	for _, f := range live {
		r.Frames++
		r.Bytes += f.Size()
		if f.err == nil {
			continue
		}
		if err := sc.damaged(ctx, name, number, f, r); err != nil {
			return err
		}
	}
	return nil
}

// damaged marks the chunks of a bad frame that are used.
func (sc *scrubber) damaged(ctx context.Context, pack packfile.Name, number uint32, f placedFrame, r *ScrubRound) error {
	used, err := usedChunks(ctx, sc.store.ix, pack, number, f)
	if err != nil {
		return err
	}
	r.Damaged += int64(len(used))
	sc.store.log.Error("scrubbing found damage; what needs it is absent until it is uploaded again",
		"pack", pack, "offset", f.at, "chunks", len(used), "err", f.err)
	return sc.store.markDamaged(ctx, used)
}

// usedChunks returns the chunks of a frame that the index has there, as damages.
func usedChunks(ctx context.Context, ix index.Reader, pack packfile.Name, number uint32, f placedFrame) (used []*damage, err error) {
	ids := make([]index.Key, len(f.Chunks))
	locs := make([]index.Location, len(f.Chunks))
	for i, c := range f.Chunks {
		ids[i] = index.Key(c.ID)
	}
	err = ix.Chunks(ctx, ids, locs)
	for i, c := range f.Chunks {
		if locs[i].Pack == number && int64(locs[i].Offset) == f.at {
			used = append(used, &damage{pack, uint64(f.at), c.ID})
		}
	}
	return used, err
}

func (sc *scrubber) save(ctx context.Context, status *ScrubStatus) error {
	row, err := json.Marshal(status)
	if err != nil {
		return err
	}
	b := &index.Batch{}
	b.Put(index.Meta, scrubKey, row)
	return sc.store.ix.Apply(ctx, b)
}

// scrubStatus returns what the index says of scrubbing. A row that makes no sense is none.
func (s *Store) scrubStatus(ctx context.Context, ix index.Reader) (*ScrubStatus, error) {
	status := &ScrubStatus{}
	row, err := ix.Get(ctx, index.Meta, scrubKey)
	if errors.Is(err, index.ErrNotFound) {
		return status, nil
	} else if err != nil {
		return nil, fmt.Errorf("read where scrubbing is: %w", err)
	}
	if err := json.Unmarshal(row, status); err != nil {
		s.log.Warn("scrubbing begins anew", "err", err)
		*status = ScrubStatus{}
	}
	return status, nil
}

// A pacer keeps a rate in bytes per second. What was not used is not made up for.
type pacer struct {
	rate int64
	free time.Time // when the next bytes may be read
}

// wait waits until n bytes may be read.
func (p *pacer) wait(ctx context.Context, n int64) error {
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	err := sleep(ctx, p.free.Sub(now))
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return err
}

// sleep waits for d, or until ctx ends, which is its error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
