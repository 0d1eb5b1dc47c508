package chunkstore

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// A tail is a pack whose directory and records are to be read: by one read of what is
// very likely all of them, and a second one if that was not enough.
type tail struct {
	name packfile.Name
	size int64 // of the whole pack, bytes
	from io.ReaderAt

	pack *packfile.Pack // once it is read; nil if it is damaged
	err  error          // the damage
	end  []byte         // what was read of a tail that is longer
	need int64          // bytes that are to be read, at the end of the pack
	held int64          // of tailsMemory
}

// bucketReader is an object as an io.ReaderAt.
type bucketReader struct {
	ctx    context.Context
	bucket bucket.Bucket
	key    string
}

func (r bucketReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.bucket.ReadAt(r.ctx, r.key, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// tailsMemory bounds the bytes of tails that are read ahead.
const tailsMemory = 64 << 20

// readTails calls fn with the tails in their order, while it reads the next ones. One that
// is damaged has no pack; other errors end it.
func readTails(ctx context.Context, tails []*tail, fn func(*tail) error) error {
	for _, t := range tails {
		t.need = packfile.TailGuess(t.size)
		t.held = t.need
	}
	room := semaphore.NewWeighted(tailsMemory)
	return inOrder(ctx, room, tails, func(t *tail) int64 { return t.held }, func(t *tail) error {
		return t.read(func(n int64) bool {
			ok := room.TryAcquire(n)
			if ok {
				t.held += n
			}
			return ok
		})
	}, func(t *tail) error {
		if t.pack == nil && t.err == nil { // too long to be read ahead
			if err := t.read(func(int64) bool { return true }); err != nil {
				return err
			}
		}
		err := fn(t)
		t.pack = nil
		return err
	})
}

// read reads the pack, or sets err if it is damaged; other errors it returns. If a tail is
// longer than was expected, and may not take so many bytes more, it is left as it is.
func (t *tail) read(more func(n int64) bool) error {
	for range 2 { // what is written down as damaged is looked at twice
		if t.err = t.readOnce(more); !isDamage(t.err) {
			break
		}
		t.end = nil
	}
	if t.err == nil || isDamage(t.err) {
		return nil
	}
	return fmt.Errorf("read pack %s: %w", t.name, t.err)
}

func (t *tail) readOnce(more func(n int64) bool) error {
	for {
		end := make([]byte, t.need)
		missing := t.need - int64(len(t.end))
		copy(end[missing:], t.end)
		if _, err := t.from.ReadAt(end[:missing], t.size-t.need); err != nil {
			return err
		}
		pack, need, err := packfile.ParseTail(t.name, t.size, end)
		if pack != nil || err != nil {
			t.pack, t.end = pack, nil
			return err
		}
		t.end, t.need = end, need
		if !more(need - int64(len(end))) {
			return nil
		}
	}
}

// maxAhead is how many things are read at the same time from a bucket, where it is not
// bandwidth but the time to the first byte that counts.
const maxAhead = 32

// inOrder calls use with the items in their order, while it calls read with the next
// ones, each in a goroutine of its own, at most maxAhead, and as many as there is room for:
// an item takes its size before it is read, and gives back what its size is after it was
// used. Errors end it.
func inOrder[T any](ctx context.Context, room *semaphore.Weighted, items []T, size func(T) int64, read, use func(T) error) error {
	type ahead struct {
		item T
		done chan struct{} // closed when read has succeeded
	}
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan ahead, maxAhead-2) // one is used, one waits to be queued
	group.Go(func() error {
		defer close(queue)
		for _, item := range items {
			if err := room.Acquire(ctx, size(item)); err != nil {
				return err
			}
			a := ahead{item, make(chan struct{})}
			group.Go(func() error {
				if err := read(item); err != nil {
					return err
				}
				close(a.done)
				return nil
			})
			select {
			case queue <- a:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	group.Go(func() error {
		for a := range queue {
			select {
			case <-a.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := use(a.item); err != nil {
				return err
			}
			room.Release(size(a.item))
		}
		return nil
	})
	return group.Wait()
}
