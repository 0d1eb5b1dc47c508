package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedupd/packfile"
)

// ErrBroken is wrapped by every commit after one whose outcome on disk is not known,
// such as a failed fsync. Reading goes on; a restart recovers.
var ErrBroken = errors.New("the store stopped accepting writes after a disk error; restart it")

// errUnknown is wrapped when it is not known what is on disk.
var errUnknown = errors.New("outcome unknown")

// A request asks the committer for one commit.
type request struct {
	// records checks the request against what is committed so far and returns what is
	// to be committed, nil for nothing. It may add to relies.
	records func(ctx context.Context, a *applier) ([]packfile.Record, error)
	relies  map[packfile.Name]struct{} // packs of the chunks that were known at ingest
	stage   *stage                     // new frames, nil for none
	seal    bool                       // seal the open pack afterwards, and nothing else
	inspect func(open *openPack) error // called between commits, and nothing else
	done    chan error                 // capacity 1
}

// The committer is the one goroutine that writes to the open pack. It takes all requests
// that wait, appends their frames, syncs them, appends their journal entries, and syncs
// the journal: that is the one commit point, shared by all of them. Only then are they
// visible, and acknowledged.
//
//	crash before the journal's sync: recovery drops what the journal does not name;
//	  nobody was told anything.
//	crash after it: recovery replays the journal; whether a client was told or not.
type committer struct {
	store    *Store
	requests chan *request
	applier  *applier
	open     *openPack
	oldest   time.Time  // of the first commit in the open pack
	sealBy   time.Time  // when somebody waits for the open pack; see hurry
	spoiled  bool       // the open pack has damage; it takes nothing more, since one pack has a chunk once
	pending  []*request // in the open pack's unwritten entries
	sealing  []*request // to be answered once the open pack is sealed
	broken   error
	stuck    chan struct{} // closed when broken

	// For everybody to see: broken, and what the open pack holds.
	refusal atomic.Pointer[error]
	status  atomic.Pointer[openStatus]
}

// An openStatus describes an open pack with commits.
type openStatus struct {
	size   int64
	oldest time.Time
}

// maxGroup is the number of requests that share one sync.
const maxGroup = 256

// submit hands r to the committer and waits until it is durable, visible and done. When
// ctx ends first, the commit may still happen.
func (c *committer) submit(ctx context.Context, r *request) error {
	r.done = make(chan error, 1)
	select {
	case c.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Once handed over, the stage belongs to the committer until it answers.
	return <-r.done
}

// run commits until requests is closed, then seals the open pack.
func (c *committer) run(ctx context.Context, log *slog.Logger) error {
	timer := time.NewTimer(0)
	<-timer.C
	for {
		var sealAt <-chan time.Time
		if c.open != nil && !c.oldest.IsZero() {
			at := c.oldest.Add(c.store.opts.FlushInterval)
			if !c.sealBy.IsZero() && c.sealBy.Before(at) {
				at = c.sealBy
			}
			timer.Reset(time.Until(at))
			sealAt = timer.C
		}
		select {
		case r, ok := <-c.requests:
			if !ok {
				return c.finish(ctx)
			}
			c.group(ctx, r)
		case <-sealAt:
			if err := c.seal(ctx); err != nil {
				c.fail(err)
			}
		}
		timer.Stop()
		if c.broken != nil {
			log.Error("store stopped accepting writes", "err", c.broken)
			for r := range c.requests {
				r.done <- c.broken
			}
			return c.broken
		}
	}
}

// group commits first and whatever else waits.
func (c *committer) group(ctx context.Context, first *request) {
	for r := first; r != nil; {
		if err := c.add(ctx, r); err != nil {
			c.fail(err)
			return
		}
		r = nil
		if len(c.pending) < maxGroup {
			select {
			case r = <-c.requests: // nil when closed
			default:
			}
		}
	}
	if err := c.write(ctx); err != nil {
		c.fail(err)
		return
	}
	if len(c.sealing) == 0 && !c.spoiled && (c.open == nil || c.open.size() < c.store.opts.PackSize) {
		return
	}
	if err := c.seal(ctx); err != nil {
		c.fail(err)
		return
	}
	for _, r := range c.sealing {
		r.done <- nil
	}
	c.sealing = nil
}

// fail answers everything that waits with err. A full disk, or another error before
// anything was synced, is undone, and the store goes on; when it is not known what is on
// disk nothing may be written any more.
func (c *committer) fail(err error) {
	c.applier.reset()
	if c.open != nil && !errors.Is(err, errUnknown) {
		err = errors.Join(err, c.open.rollback())
		if c.oldest = (time.Time{}); len(c.open.entries) > 0 {
			c.oldest = time.Now() // seal it later
		}
		if !c.sealBy.IsZero() {
			c.sealBy = time.Now().Add(hurry)
		}
	}
	if errors.Is(err, errUnknown) {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
		c.broken = err
		c.refusal.Store(&err)
		close(c.stuck)
	}
	for _, r := range append(c.pending, c.sealing...) {
		r.done <- err
	}
	c.pending, c.sealing = nil, nil
}

// add appends a request to the open pack, or answers it at once if it is refused. An
// error of its own means that the pack cannot go on.
func (c *committer) add(ctx context.Context, r *request) error {
	if r.inspect != nil {
		// What was added before must be in the index.
		if err := c.write(ctx); err != nil {
			c.pending = append(c.pending, r)
			return err
		}
		r.done <- r.inspect(c.open)
		return nil
	}
	if r.seal {
		c.sealing = append(c.sealing, r)
		return nil
	}
	records, err := r.records(ctx, c.applier)
	if err != nil {
		r.done <- err
		return nil
	}
	if len(records) == 0 && r.stage.empty() {
		// What makes the request needless may itself be waiting to be written.
		c.pending = append(c.pending, r)
		return nil
	}
	size := 0
	for _, rec := range records {
		size += len(rec.Body)
	}
	if size > packfile.MaxCommit/2 {
		r.done <- fmt.Errorf("%w: %d bytes of metadata are more than a commit can hold", ErrBadUpload, size)
		return nil
	}
	c.pending = append(c.pending, r)
	if c.open == nil {
		if err := c.begin(ctx); err != nil {
			return err
		}
	}
	frames, err := c.place(ctx, r)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		// An object that is known, with chunks that were damaged: these are new.
		if frames != nil {
			c.added(packfile.Entry{Frames: frames})
		}
		return nil
	}
	delete(r.relies, c.open.name)
	commit := packfile.Commit{Time: time.Now().Unix(), Records: records}
	for name := range r.relies {
		commit.Packs = append(commit.Packs, name)
		c.open.relies[name] = true
	}
	sortNames(commit.Packs)
	if err := c.applier.commit(ctx, newCommitID(c.open.name, c.open.commits), &commit); err != nil {
		return err
	}
	c.added(packfile.Entry{Frames: frames, Commit: commit.Append(nil)})
	c.spoiled = c.spoiled || spoils(records, c.open.name)
	return nil
}

// spoils says whether records tell of damage in a pack.
func spoils(records []packfile.Record, pack packfile.Name) bool {
	return slices.ContainsFunc(records, func(r packfile.Record) bool {
		if r.Type != packfile.RecordDamage {
			return false
		}
		d, err := decodeDamage(r.Body)
		return err == nil && d.pack == pack
	})
}

func (c *committer) added(e packfile.Entry) {
	if c.oldest.IsZero() {
		c.oldest = time.Now()
	}
	c.open.add(e)
}

// place appends the frames of r that nobody has committed meanwhile. Those that are to be
// stored again are appended unless somebody else has done that just now. Where the pack is
// full it is sealed, with the frames so far in an entry of their own, and the rest goes
// into the next. It returns the frames that are in no entry yet.
func (c *committer) place(ctx context.Context, r *request) ([]packfile.FrameInfo, error) {
	if r.stage == nil {
		return nil, nil
	}
	var frames []packfile.FrameInfo
	run := stageRun{stage: r.stage}
	for _, f := range r.stage.frames {
		known, err := c.applier.chunk(ctx, f.Chunks[0].ID)
		if err != nil {
			return nil, err
		}
		if known.Pack != 0 && (!f.again || c.store.packs.spooled(known.Pack)) {
			name, err := c.store.packs.name(ctx, known.Pack)
			if err != nil {
				return nil, err
			}
			r.relies[name] = struct{}{}
			continue
		}
		if (c.spoiled || c.open.size()+run.n+f.Size() > c.store.opts.PackSize) && !c.open.empty() {
			if err := run.flush(c.open); err != nil {
				return nil, err
			}
			if frames != nil {
				c.open.add(packfile.Entry{Frames: frames})
				r.relies[c.open.name] = struct{}{}
				frames = nil
			}
			if err := c.rotate(ctx, r); err != nil {
				return nil, err
			}
		}
		if err := c.applier.frames(ctx, c.open.number, c.open.name, c.open.frames+run.n, []packfile.FrameInfo{f.FrameInfo}); err != nil {
			return nil, err
		}
		if err := run.add(c.open, f); err != nil {
			return nil, err
		}
		frames = append(frames, f.FrameInfo)
	}
	return frames, run.flush(c.open)
}

// rotate writes and seals the open pack while r is not finished, and begins another.
func (c *committer) rotate(ctx context.Context, r *request) error {
	c.pending = c.pending[:len(c.pending)-1]
	err := c.write(ctx)
	if err == nil {
		err = c.seal(ctx)
	}
	if err == nil {
		err = c.begin(ctx)
	}
	c.pending = append(c.pending, r)
	return err
}

// write makes everything that was added durable, then visible, then answers.
func (c *committer) write(ctx context.Context) error {
	if c.open != nil && c.open.written < len(c.open.entries) {
		if err := c.open.write(); err != nil {
			return err
		}
		c.applier.batch.Mark(c.open.name.String(), uint64(len(c.open.entries)))
		if err := c.applier.flush(ctx); err != nil {
			return fmt.Errorf("%w: apply to the index: %w", errUnknown, err)
		}
		c.status.Store(&openStatus{c.open.size(), c.oldest})
	}
	for _, r := range c.pending {
		r.done <- nil
	}
	c.pending = c.pending[:0]
	return nil
}

// begin opens a new pack.
func (c *committer) begin(ctx context.Context) error {
	p, err := c.store.spool.create()
	if err != nil {
		return err
	}
	if p.number, err = c.store.packs.number(ctx, p.name); err != nil {
		p.reader.Close()
		p.discard()
		return err
	}
	c.open, c.oldest, c.sealBy = p, time.Time{}, time.Time{}
	c.store.packs.addLocal(p.number, p.reader)
	return nil
}

// seal completes the open pack and hands it to the uploader.
func (c *committer) seal(ctx context.Context) error {
	if c.open == nil || len(c.open.entries) == 0 {
		return nil
	}
	sealed, err := c.open.seal()
	if err != nil {
		return err
	}
	sealed.since = c.oldest
	c.open, c.spoiled = nil, false
	c.status.Store(nil)
	c.store.uploader.add(sealed)
	return nil
}

func (c *committer) finish(ctx context.Context) error {
	if err := c.seal(ctx); err != nil {
		return fmt.Errorf("seal the open pack: %w", err)
	}
	return nil
}

// A stageRun collects frames that lie one after another in a stage, so that they are
// copied in one piece.
type stageRun struct {
	stage  *stage
	off, n int64
}

func (s *stageRun) add(p *openPack, f stagedFrame) error {
	if s.off+s.n != f.off {
		if err := s.flush(p); err != nil {
			return err
		}
		s.off = f.off
	}
	s.n += f.Size()
	return nil
}

func (s *stageRun) flush(p *openPack) error {
	if s.n == 0 {
		return nil
	}
	if err := s.stage.copyTo(p.file, s.off, s.n); err != nil {
		return fmt.Errorf("append frames to pack %s: %w", p.name, err)
	}
	p.frames += s.n
	s.off, s.n = s.off+s.n, 0
	return nil
}
