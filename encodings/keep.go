package encodings

import (
	"cmp"
	"context"
	"math"
	"time"
)

// pause is how often the cache looks what is to be done.
const pause = 10 * time.Second

// keep does what is to be done at times, until ctx ends.
func (c *Cache) keep(ctx context.Context) {
	tick := time.NewTicker(min(pause, c.opts.Grace/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.tidy()
		}
	}
}

// tidy has names change their state where it is time, and files go for which there is no
// room.
func (c *Cache) tidy() {
	c.disk.Lock()
	defer c.disk.Unlock()
	for _, e := range c.due() {
		c.step(e)
	}
	for !c.fits(0) || !c.opts.Room() {
		if !c.evict(math.MaxUint32) {
			return
		}
	}
}

// due returns the entries whose state is to change, on the disk or at all.
func (c *Cache) due() (due []*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.aged) >= day {
		c.age()
	}
	for _, e := range c.entries {
		if e.state == fresh && c.over(e, Stored) || e.state == leaving && (!e.removed || c.over(e, Encoded)) {
			due = append(due, e)
		}
	}
	return due
}

// over says whether nobody can come back for the rest of a form that nobody begins with
// any more. c.mu is held.
func (c *Cache) over(e *entry, f Form) bool {
	return e.running[f] == 0 && time.Since(e.ended[f]) >= c.opts.Grace && time.Since(e.since) >= c.opts.Grace
}

// step has an entry that is due change its state. It says whether the disk has taken it;
// if not, it is tried again. c.disk is held, so that nobody else does this.
func (c *Cache) step(e *entry) bool {
	c.mu.Lock()
	name, was, removed := e.name, e.state, e.removed
	c.mu.Unlock()
	var err error
	switch {
	case was == fresh:
		err = c.dir.settle(e.key)
	case !removed:
		err = c.dir.leave(e.key)
	default:
		err = c.dir.forget(e.key)
	}
	if err != nil {
		c.opts.Log.Warn("a file of an old name cannot be renamed or removed", "name", name, "err", err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.state != was: // it was damaged meanwhile
	case was == fresh:
		e.enter(settled)
	case !removed:
		e.removed = true
	default:
		e.enter(absent)
	}
	return true
}

// fits says whether there is room for size bytes more.
func (c *Cache) fits(size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats.Bytes+size <= c.opts.Size
}

// makeRoom has files go that are asked for less often than downloads, until size bytes
// fit in. It says whether they do. c.disk is held.
func (c *Cache) makeRoom(size int64, downloads uint32) bool {
	for !c.fits(size) {
		if !c.evict(downloads) {
			return false
		}
	}
	return true
}

// evict has the file go that is asked for least often, if that is less often than
// downloads. c.disk is held.
func (c *Cache) evict(downloads uint32) bool {
	c.mu.Lock()
	var least *entry
	for _, e := range c.entries {
		if e.file != nil && (least == nil || cmp.Or(cmp.Compare(e.downloads, least.downloads), e.used.Compare(least.used)) < 0) {
			least = e
		}
	}
	if least == nil || least.downloads >= downloads {
		c.mu.Unlock()
		return false
	}
	c.drop(least)
	c.stats.Evictions++
	c.mu.Unlock()
	return c.step(least)
}

// drop has nobody begin with an entry's file any more. c.mu is held.
func (c *Cache) drop(e *entry) {
	c.stats.Files--
	c.stats.Bytes -= e.file.size
	e.file, e.removed = nil, false
	e.enter(leaving)
}

func (e *entry) enter(s state) { e.state, e.since = s, time.Now() }
