// Package rangecache keeps ranges of immutable objects on a disk, so that what many ask
// for is fetched once, and what is read on from somewhere comes in few requests.
//
// Objects are cut into blocks of a fixed size. A reader says what it wants now and how
// far it will go on; what is missing of that is fetched as one stream, whose blocks can
// be read as they arrive. Blocks that are read ahead wait in slots of the disk until the
// reader has passed them; only then does the cache decide, by otter's W-TinyLFU, whether
// they are worth the place of others. So a reader is not robbed of what was fetched for
// it, however little the cache thinks of it.
//
// A cache is never the reason for an error: what its disk cannot take, or gives back
// damaged, is fetched.
package rangecache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/semaphore"
)

// A Source is where objects come from. A bucket.Bucket is one.
type Source interface {
	// Read writes n bytes of the object from off to w as they come, as Bucket does.
	Read(ctx context.Context, key string, off, n int64, w io.Writer) error
}

// Options are the settings of a cache. Zero values mean the defaults, where there are any.
type Options struct {
	// Dir is the directory of the cache, which is made. It belongs to one process.
	Dir string
	// Size is how many bytes of blocks are kept at most.
	Size int64
	// BlockSize is the length of a block in bytes; default 256 KiB.
	BlockSize int
	// Fetch is how many bytes one request is for, about; default 16 MiB.
	Fetch int64
	// Memory bounds, in bytes, what requests under way have read; default 32 MiB. A
	// request takes one block of it.
	Memory int64
	// Room says whether the disk has room for blocks that it has not had before; nil for
	// always.
	Room func() bool
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.BlockSize == 0 {
		o.BlockSize = 256 << 10
	}
	if o.Fetch == 0 {
		o.Fetch = 16 << 20
	}
	if o.Memory == 0 {
		o.Memory = 32 << 20
	}
	o.Memory = max(o.Memory, int64(o.BlockSize))
	if o.Log == nil {
		o.Log = slog.Default()
	}
}

// Stats say what a cache has done since it was opened, and how large it is.
type Stats struct {
	Hits, Misses uint64 // blocks that readers had at once, and that they waited for
	HitBytes     uint64 // bytes that were read of the former
	Fetches      uint64 // requests to the source
	FetchedBytes uint64
	Evictions    uint64 // blocks that went for others
	Dropped      uint64 // blocks that were damaged on the disk
	Blocks       uint64 // in the cache now
	Bytes        uint64 // of the disk that it takes, about
}

// A Cache holds blocks. Its methods may be called concurrently.
type Cache struct {
	opts   Options
	source Source
	disk   *disk
	memory *semaphore.Weighted
	blocks *otter.Cache[blockID, place]
	pool   sync.Pool // of *[]byte with the length of a block

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flights map[blockID]*flight // blocks on their way, and those that are read ahead

	hits, misses, hitBytes, fetches, fetched, evictions, dropped atomic.Uint64
}

// A blockID names a block: which object, by the SHA-256 of its key, and which block of it.
type blockID struct {
	object [sha256.Size]byte
	number uint32
}

// A place is where a block is on the disk. It may have only the first bytes of a block:
// as much as was wanted, or as the object has.
type place struct {
	slot, length, sum uint32
}

// errClosed is returned after Close.
var errClosed = errors.New("cache is closed")

// Open opens the cache in opts.Dir, or makes one. What it cannot use of what is there,
// it discards.
func Open(source Source, opts Options) (*Cache, error) {
	opts.setDefaults()
	if opts.Size < minSlots*int64(opts.BlockSize) {
		return nil, fmt.Errorf("cache of %d bytes: must be %d at least", opts.Size, minSlots*int64(opts.BlockSize))
	}
	d, err := openDisk(&opts)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c := &Cache{opts: opts, source: source, disk: d, memory: semaphore.NewWeighted(opts.Memory), flights: map[blockID]*flight{}}
	c.pool.New = func() any { b := make([]byte, opts.BlockSize); return &b }
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.blocks = otter.Must(&otter.Options[blockID, place]{
		// The other slots are for what is read ahead.
		MaximumSize: int(d.max - d.max/8),
		// Evicted at once, so that the slot is free for the next.
		Executor: func(run func()) { run() },
		OnAtomicDeletion: func(e otter.DeletionEvent[blockID, place]) {
			d.free(e.Value.slot)
			if e.WasEvicted() {
				c.evictions.Add(1)
			}
		},
	})
	if err := d.load(func(id blockID, p place) { c.blocks.Set(id, p) }); err != nil {
		d.close()
		return nil, fmt.Errorf("cache: %w", err)
	}
	return c, nil
}

// Close ends all requests, whose readers get an error, and waits for them.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
	return c.disk.close()
}

// Stats returns what the cache has done.
func (c *Cache) Stats() Stats {
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), HitBytes: c.hitBytes.Load(), Fetches: c.fetches.Load(), FetchedBytes: c.fetched.Load(),
		Evictions: c.evictions.Load(), Dropped: c.dropped.Load(),
		Blocks: uint64(c.blocks.EstimatedSize()), Bytes: uint64(c.disk.used()) * uint64(c.opts.BlockSize),
	}
}

// Forget drops the blocks with the bytes [off, off+n) of an object, so that they are
// fetched again. It is for whoever finds that they are not what was written.
func (c *Cache) Forget(key string, off, n int64) {
	object := sha256.Sum256([]byte(key))
	for b := c.number(off); b <= c.number(off+n-1); b++ {
		c.blocks.Invalidate(blockID{object, b})
	}
}

func (c *Cache) number(off int64) uint32 { return uint32(off / int64(c.opts.BlockSize)) }

// load fills p with the bytes at an offset of a block that is on the disk, and says
// whether they were there, whole.
func (c *Cache) load(id blockID, at place, p []byte, off int) bool {
	err := c.disk.read(id, at, p, off)
	if err == nil {
		return true
	}
	// If another block has the slot by now, this one has gone from the cache.
	if e, ok := c.blocks.GetEntryQuietly(id); ok && e.Value == at {
		c.blocks.Invalidate(id)
		c.dropped.Add(1)
		c.opts.Log.Warn("a block of the cache is damaged, and is fetched again", "err", err)
	}
	return false
}
