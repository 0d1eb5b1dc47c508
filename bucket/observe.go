package bucket

import (
	"context"
	"io"
	"time"
)

// An Operation is one call of a Bucket's method that has ended.
type Operation struct {
	Name  string // put, read, stat, list or delete
	Took  time.Duration
	Bytes int64 // of an object, that were written or read; 0 after an error
	Err   error
}

// Observe returns b with every operation reported to fn, which is called concurrently
// and should be quick.
func Observe(b Bucket, fn func(Operation)) Bucket { return &observed{b, fn} }

type observed struct {
	Bucket
	report func(Operation)
}

// Unwrap returns the bucket that is observed.
func (o *observed) Unwrap() Bucket { return o.Bucket }

// find returns the first of b, and what is below wrappers with a method Unwrap, that is a T.
func find[T any](b Bucket) (t T, ok bool) {
	for {
		if t, ok = b.(T); ok {
			return t, true
		}
		wrapper, isWrapper := b.(interface{ Unwrap() Bucket })
		if !isWrapper {
			return t, false
		}
		b = wrapper.Unwrap()
	}
}

// observe runs an operation on bytes of an object.
func (o *observed) observe(name string, bytes int64, run func() error) error {
	start := time.Now()
	err := run()
	if err != nil {
		bytes = 0
	}
	o.report(Operation{name, time.Since(start), bytes, err})
	return err
}

func (o *observed) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	return o.observe("put", size, func() error { return o.Bucket.Put(ctx, key, r, size) })
}

func (o *observed) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	return o.observe("read", int64(len(p)), func() error { return o.Bucket.ReadAt(ctx, key, p, off) })
}

func (o *observed) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	return o.observe("read", n, func() error { return o.Bucket.Read(ctx, key, off, n, w) })
}

func (o *observed) Stat(ctx context.Context, key string) (info Info, err error) {
	err = o.observe("stat", 0, func() error {
		info, err = o.Bucket.Stat(ctx, key)
		return err
	})
	return info, err
}

func (o *observed) List(ctx context.Context, prefix, after string, fn func(Info) error) error {
	return o.observe("list", 0, func() error { return o.Bucket.List(ctx, prefix, after, fn) })
}

func (o *observed) Delete(ctx context.Context, key string) error {
	return o.observe("delete", 0, func() error { return o.Bucket.Delete(ctx, key) })
}
