package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// ErrTooLarge is wrapped when a NAR is larger than Limits.MaxNAR.
var ErrTooLarge = errors.New("too large")

// ErrNoSpace is wrapped when an upload was not begun, because the disk has less room
// than Limits.MinFree. Nothing of it was read.
var ErrNoSpace = errors.New("the server's disk is full")

// Limits say how much is taken in at a time. Uploads wait rather than fail, since some
// versions of Nix cannot repeat one. Zero values mean the defaults.
type Limits struct {
	// MaxNAR is the size in bytes of the largest NAR that is taken in, and of the largest
	// file that holds one; default 64 GiB.
	MaxNAR int64
	// MaxUploads is the number of NARs that are taken in at a time; default 32. Others
	// wait before they are read, the first come first.
	MaxUploads int
	// SpoolSize is how many bytes of packs may wait for the bucket; default 8 GiB. While
	// there are more, NARs are not read, and what brings new chunks is not committed. It
	// is exceeded by what was let in at once: no more than what runs.
	SpoolSize int64
	// MinFree is how many bytes the file system of the state directory must have free
	// for a NAR to be taken in; default 512 MiB. It is for what runs already, and for
	// narinfos and other small files, which are taken in below it.
	MinFree int64
	// SpaceTimeout is how long an upload waits for MinFree; default 30 s.
	SpaceTimeout time.Duration
}

func (l *Limits) setDefaults() {
	if l.MaxNAR == 0 {
		l.MaxNAR = 64 << 30
	}
	if l.MaxUploads == 0 {
		l.MaxUploads = 32
	}
	if l.SpoolSize == 0 {
		l.SpoolSize = 8 << 30
	}
	if l.MinFree == 0 {
		l.MinFree = 512 << 20
	}
	if l.SpaceTimeout == 0 {
		l.SpaceTimeout = 30 * time.Second
	}
}

// spacePoll is how often an upload that waits looks how much room the disk has.
const spacePoll = 100 * time.Millisecond

// An admission is where uploads wait.
type admission struct {
	limits  Limits
	log     *slog.Logger
	spool   *uploader
	free    func() (int64, error) // bytes that the disk has left
	slots   *semaphore.Weighted   // of Limits.MaxUploads
	closing chan struct{}         // closed when nobody may wait any more

	spoolFull, diskFull episode
	running, waiting    atomic.Int64 // for Counters
}

func newAdmission(l Limits, state string, spool *uploader, log *slog.Logger) *admission {
	return &admission{
		limits: l, log: log, spool: spool,
		free:  func() (int64, error) { return FreeSpace(state) },
		slots: semaphore.NewWeighted(int64(l.MaxUploads)), closing: make(chan struct{}),
	}
}

// begin waits until a NAR may be read, and returns what must be called when it is
// committed, or refused. Who waits for room has no slot, so that slots are for uploads
// that run.
func (a *admission) begin(ctx context.Context) (end func(), err error) {
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	for {
		if err := a.waitForSpool(ctx); err != nil {
			return nil, err
		}
		if err := a.waitForDisk(ctx); err != nil {
			return nil, err
		}
		if err := a.slots.Acquire(ctx, 1); err != nil {
			return nil, fmt.Errorf("wait for other uploads: %w", err)
		}
		// It may have taken long.
		if a.obstacle() == nil {
			a.running.Add(1)
			return a.end, nil
		}
		a.slots.Release(1)
	}
}

func (a *admission) end() {
	a.running.Add(-1)
	a.slots.Release(1)
}

// Obstacle says why a NAR would have to wait now before it is taken in, nil if it would
// not, or why none is. The error wraps ErrNoSpace if the disk is full.
func (s *Store) Obstacle() error {
	if err := s.Writable(); err != nil {
		return err
	}
	return s.uploads.obstacle()
}

// obstacle says what waitForSpool or waitForDisk would wait for, nil for nothing.
func (a *admission) obstacle() error {
	free, err := a.free()
	if err == nil && free < a.limits.MinFree {
		err = fmt.Errorf("%w: %d bytes are free, uploads need %d", ErrNoSpace, free, a.limits.MinFree)
	}
	if bytes, _ := a.spool.backlog(); err == nil && bytes > a.limits.SpoolSize {
		err = fmt.Errorf("uploads wait for the bucket: the spool has %d bytes, its limit is %d", bytes, a.limits.SpoolSize)
	}
	return err
}

// waitForSpool waits until enough packs of the spool are in the bucket.
func (a *admission) waitForSpool(ctx context.Context) error {
	for {
		bytes, change := a.spool.backlog()
		if bytes <= a.limits.SpoolSize {
			if a.spoolFull.end() {
				a.log.Info("the spool has room, uploads go on", "bytes", bytes)
			}
			return nil
		}
		if a.spoolFull.begin() {
			a.log.Warn("the spool is full, uploads wait for the bucket", "bytes", bytes, "limit", a.limits.SpoolSize)
		}
		select {
		case <-change:
		case <-a.closing:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for room in the spool: %w", ctx.Err())
		}
	}
}

// waitForDisk waits until the disk has room, for a while.
func (a *admission) waitForDisk(ctx context.Context) error {
	giveUp := time.Now().Add(a.limits.SpaceTimeout)
	for {
		free, err := a.free()
		if err != nil {
			return fmt.Errorf("look how much room the disk has: %w", err)
		}
		if free >= a.limits.MinFree {
			if a.diskFull.end() {
				a.log.Info("the disk has room, uploads go on", "free", free)
			}
			return nil
		}
		if a.diskFull.begin() {
			a.log.Error("the disk is full, uploads wait and are then refused", "free", free, "needed", a.limits.MinFree)
		}
		left := time.Until(giveUp)
		if left <= 0 {
			return fmt.Errorf("%w: %d bytes are free, uploads need %d", ErrNoSpace, free, a.limits.MinFree)
		}
		select {
		case <-time.After(min(left, spacePoll)):
		case <-a.closing:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for room on the disk: %w", ctx.Err())
		}
	}
}

// close ends every wait for room with ErrClosed.
func (a *admission) close() { close(a.closing) }

// backlog returns how many bytes of packs wait for the bucket, and a channel that is
// closed when that becomes less.
func (u *uploader) backlog() (bytes int64, change <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.waiting {
		bytes += p.size
	}
	return bytes, u.change
}

// An episode is a time in which uploads wait: many see it, one logs it.
type episode struct{ on atomic.Bool }

// begin says whether the caller is the one who begins it.
func (e *episode) begin() bool { return e.on.CompareAndSwap(false, true) }

// end says whether the caller is the one who ends it.
func (e *episode) end() bool { return e.on.CompareAndSwap(true, false) }

// MaxNAR returns the size in bytes of the largest file with a NAR that is taken in.
func (s *Store) MaxNAR() int64 { return s.opts.Limits.MaxNAR }

// A sizeLimit is a reader that fails when there are more than max bytes.
type sizeLimit struct {
	r         io.Reader
	max, left int64
}

func newSizeLimit(r io.Reader, max int64) *sizeLimit { return &sizeLimit{r, max, max} }

func (l *sizeLimit) Read(p []byte) (int, error) {
	// One byte more than is left, to tell the end from too much.
	if int64(len(p))-1 > l.left {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.left {
		n, l.left = int(l.left), 0
		return n, fmt.Errorf("NAR is %w: %d bytes are allowed", ErrTooLarge, l.max)
	}
	l.left -= int64(n)
	return n, err
}

// A readBudget is the memory that downloads share. They take it for as long as they read
// and write one group, the first come first, so that slow clients make others wait, but
// do not shut them out.
type readBudget struct {
	bytes   int64
	free    *semaphore.Weighted
	waiting atomic.Int64
}

func newReadBudget(bytes int64) *readBudget {
	return &readBudget{bytes: bytes, free: semaphore.NewWeighted(bytes)}
}

// need is what a group takes.
func (b *readBudget) need(g *group) int64 { return min(max(1, g.n+g.copies), b.bytes) }

func (b *readBudget) acquire(ctx context.Context, g *group) error {
	if b.tryAcquire(g) {
		return nil
	}
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	n := b.need(g)
	if err := b.free.Acquire(ctx, n); err != nil {
		return fmt.Errorf("wait for other downloads: %w", err)
	}
	g.memory = n
	return nil
}

func (b *readBudget) tryAcquire(g *group) bool {
	n := b.need(g)
	if !b.free.TryAcquire(n) {
		return false
	}
	g.memory = n
	return true
}

func (b *readBudget) release(g *group) {
	b.free.Release(g.memory)
	g.memory = 0
}

// ReadersWait says whether downloads wait for memory that others have.
func (s *Store) ReadersWait() bool { return s.reading.waiting.Load() > 0 }
