package pull

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/upstream"
)

// start returns the fetch of a path's file, which the caller uses, and begins it if need be.
func (p *Puller) start(ctx context.Context, t *path) (*fetch, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, chunkstore.ErrClosed
	}
	f := p.fetches[t.file]
	if f == nil {
		f = &fetch{p: p, path: t, name: "nar/" + t.file, etag: t.etag(), size: -1, opened: make(chan struct{}), done: make(chan struct{})}
		p.fetches[t.file] = f
		p.running.Add(1)
		go f.run(upstream.WithVia(p.ctx, upstream.Via(ctx)))
	}
	f.users++
	return f, nil
}

// leave ends the use of f.
func (p *Puller) leave(f *fetch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.users--
	f.used = time.Now()
	if p.fetches[f.path.file] != f {
		f.close()
	}
	p.sweep()
}

// fileAge is how long a file is there after it was last read: longer than a client waits
// before it tries again.
const fileAge = 10 * time.Minute

// ended takes note that f is done. Its file stays for a while, and so does what an
// upstream has sent wrongly; what failed otherwise is tried again by whoever asks next.
func (p *Puller) ended(f *fetch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.ended, f.used = true, time.Now()
	if f.err != nil && !f.bad || p.closed {
		p.remove(f)
		return
	}
	p.sweep()
	time.AfterFunc(f.age()+time.Second, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sweep()
	})
}

// age is how long f stays when nobody uses it.
func (f *fetch) age() time.Duration {
	if f.bad {
		return badTime
	}
	return fileAge
}

// maxIdle is how many files are kept that nobody reads. Each is an open file.
const maxIdle = 1000

// sweep removes files that nobody reads: those that are old, and the oldest of those that
// are too many or too large together. p.mu is held.
func (p *Puller) sweep() { p.sweepTo(p.cfg.Cache) }

// sweepTo is sweep for another limit, in bytes.
func (p *Puller) sweepTo(limit int64) {
	for {
		var oldest *fetch
		var bytes int64
		var count int
		for _, f := range p.fetches {
			if !f.ended || f.users > 0 {
				continue
			}
			if time.Since(f.used) >= f.age() {
				p.remove(f)
				continue
			}
			bytes += f.written
			count++
			if oldest == nil || f.used.Before(oldest.used) {
				oldest = f
			}
		}
		if bytes <= limit && count <= maxIdle {
			return
		}
		p.remove(oldest)
	}
}

// remove forgets f. Who uses it can go on. p.mu is held.
func (p *Puller) remove(f *fetch) {
	delete(p.fetches, f.path.file)
	if f.written > 0 && !f.path.plain() {
		p.gone.Set(f.path.file, struct{}{})
	}
	f.close()
}

// close closes the file when nobody uses it any more. Puller.mu is held.
func (f *fetch) close() {
	if f.users == 0 && f.file != nil {
		f.file.Close()
	}
}

// makeRoom removes files that nobody reads if the disk has too little room. If it still
// has, the error wraps chunkstore.ErrNoSpace.
func (p *Puller) makeRoom() error {
	full := func() error {
		if err := p.store.Obstacle(); errors.Is(err, chunkstore.ErrNoSpace) {
			return fmt.Errorf("pulled NAR: %w", err)
		}
		return nil
	}
	if full() == nil {
		return nil
	}
	p.mu.Lock()
	p.sweepTo(0)
	p.mu.Unlock()
	return full()
}
