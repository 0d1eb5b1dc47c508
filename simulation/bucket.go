package simulation

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// An operation of a bucket, as a set of bits.
type operation uint

const (
	opPut operation = 1 << iota
	opRead
	opStat
	opList
	opDelete
	opAll = opPut | opRead | opStat | opList | opDelete
)

// A bucketFault is a way in which an operation goes wrong. None is against the contract of
// bucket.Bucket, but for those that lie: what they do is damage. Some are what only S3 does:
// a Put that finds its own earlier attempt, or that arrives when everybody has forgotten it.
type bucketFault struct {
	name string
	on   operation
	lies bool
	do   func(c *bucketCall) error
}

// A bucketCall is an operation about to be done.
type bucketCall struct {
	b         *faultyBucket
	op        operation
	do        func() error // does it
	p         []byte       // of a read, where it goes to
	stale     bool         // of a list: leave some out
	late      func()       // of a Put, does it some time after this, if its machine still runs
	muchLater func()       // does it even if not
	rng       *rand.Rand
}

var errBucket = errors.New("the bucket failed, as the simulation wants it")

var bucketFaults = []bucketFault{
	{"error", opAll, false, func(*bucketCall) error { return errBucket }},
	{"put fails", opPut, false, func(*bucketCall) error { return errBucket }},
	{"read fails", opRead | opStat, false, func(*bucketCall) error { return errBucket }},
	{"list fails", opList, false, func(*bucketCall) error { return errBucket }},
	{"error afterwards", opPut | opDelete, false, func(c *bucketCall) error { return errors.Join(c.do(), errBucket) }},
	{"done later", opPut, false, func(c *bucketCall) error { c.late(); return errBucket }},
	{"done much later", opPut, false, func(c *bucketCall) error { c.muchLater(); return errBucket }},
	{"finds itself", opPut, false, func(c *bucketCall) error { return cmp.Or(c.do(), error(bucket.ErrExists)) }},
	{"timeout", opAll, false, func(c *bucketCall) error { c.wait(50); return context.DeadlineExceeded }},
	{"slow", opAll, false, func(c *bucketCall) error { c.wait(30); return c.do() }},
	{"wrong bytes", opRead, true, func(c *bucketCall) error {
		err := c.do()
		if len(c.p) > 0 {
			c.p[c.rng.IntN(len(c.p))] ^= 1 << c.rng.IntN(8)
		}
		return err
	}},
	{"cut short", opRead, true, func(c *bucketCall) error {
		if err := c.do(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}},
	{"stale list", opList, true, func(c *bucketCall) error { c.stale = true; return c.do() }},
}

func (c *bucketCall) wait(ms int) { time.Sleep(time.Duration(1+c.rng.IntN(ms)) * time.Millisecond) }

// A faultyBucket is a bucket that fails as it is told.
type faultyBucket struct {
	bucket.Bucket
	count func(fault string)
	lie   func() // called before a lie is told

	mu      sync.Mutex
	rng     *rand.Rand
	fault   *bucketFault // that happens now, nil for none
	percent int          // of operations
	dead    bool         // the machine is: nothing is done any more
	failed  uint64       // operations that failed
	later   sync.WaitGroup
}

// set has percent of the operations that f is about fail from now on.
func (b *faultyBucket) set(f *bucketFault, percent int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault, b.percent = f, percent
}

// kill ends the machine that uses the bucket, and waits for what is under way.
func (b *faultyBucket) kill() {
	b.mu.Lock()
	b.dead = true
	b.mu.Unlock()
	b.later.Wait()
}

// failures returns how many operations have failed so far.
func (b *faultyBucket) failures() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// run does an operation, well or not.
func (b *faultyBucket) run(ctx context.Context, op operation, c *bucketCall) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	f := b.fault
	if b.dead || f == nil || f.on&op == 0 || b.rng.IntN(100) >= b.percent {
		dead := b.dead
		if dead {
			b.failed++
		}
		b.mu.Unlock()
		if dead {
			return errBucket
		}
		return c.do()
	}
	c.b, c.op, c.rng = b, op, rand.New(rand.NewPCG(b.rng.Uint64(), 0))
	b.mu.Unlock()
	b.count("bucket: " + f.name)
	if f.lies {
		b.lie()
	}
	err := f.do(c)
	if err != nil {
		b.mu.Lock()
		b.failed++
		b.mu.Unlock()
	}
	return err
}

func (b *faultyBucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	return b.run(ctx, opPut, &bucketCall{
		do:        func() error { return b.Bucket.Put(ctx, key, r, size) },
		late:      func() { b.putLater(ctx, key, r, size, 100, false) },
		muchLater: func() { b.putLater(ctx, key, r, size, 500, true) },
	})
}

// putLater puts within so many milliseconds, unless the machine is dead by then, or always.
func (b *faultyBucket) putLater(ctx context.Context, key string, r io.ReaderAt, size int64, ms int, always bool) {
	data := make([]byte, size)
	if _, err := r.ReadAt(data, 0); err != nil && err != io.EOF {
		return
	}
	b.mu.Lock()
	wait := time.Duration(b.rng.IntN(ms)) * time.Millisecond
	b.mu.Unlock()
	b.later.Go(func() {
		time.Sleep(wait)
		b.mu.Lock()
		dead := b.dead
		b.mu.Unlock()
		if always || !dead {
			b.Bucket.Put(context.WithoutCancel(ctx), key, bytes.NewReader(data), size)
		}
	})
}

func (b *faultyBucket) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	return b.run(ctx, opRead, &bucketCall{p: p, do: func() error { return b.Bucket.ReadAt(ctx, key, p, off) }})
}

// Read breaks off in the middle when it fails.
func (b *faultyBucket) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	data := make([]byte, n)
	err := b.run(ctx, opRead, &bucketCall{p: data, do: func() error { return b.Bucket.ReadAt(ctx, key, data, off) }})
	if err != nil && n > 1 {
		return errors.Join(err, b.Bucket.Read(ctx, key, off, n/2, w))
	} else if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func (b *faultyBucket) Stat(ctx context.Context, key string) (info bucket.Info, err error) {
	err = b.run(ctx, opStat, &bucketCall{do: func() (err error) {
		info, err = b.Bucket.Stat(ctx, key)
		return err
	}})
	return info, err
}

func (b *faultyBucket) List(ctx context.Context, prefix, after string, fn func(bucket.Info) error) error {
	var c bucketCall
	c.do = func() error {
		return b.Bucket.List(ctx, prefix, after, func(i bucket.Info) error {
			if c.stale && c.rng.IntN(3) == 0 {
				return nil
			}
			return fn(i)
		})
	}
	return b.run(ctx, opList, &c)
}

func (b *faultyBucket) Delete(ctx context.Context, key string) error {
	return b.run(ctx, opDelete, &bucketCall{do: func() error { return b.Bucket.Delete(ctx, key) }})
}
