package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/time/rate"
)

// S3Objects reads objects that others have put into an object store, whatever their keys.
// Its methods may be called concurrently.
type S3Objects struct {
	s     *S3
	limit *rate.Limiter
}

// OpenS3Objects returns the objects at an s3 URL, which OpenS3 describes. It sends nothing.
func OpenS3Objects(rawURL string) (*S3Objects, error) {
	s, err := newS3(rawURL)
	if err != nil {
		return nil, err
	}
	return &S3Objects{s, rate.NewLimiter(rate.Inf, 0)}, nil
}

// String is the URL without secrets.
func (o *S3Objects) String() string { return o.s.String() }

// Requests returns what was sent so far.
func (o *S3Objects) Requests() Requests { return o.s.Requests() }

// Limit has requests wait for limit. It is called before anything is asked for.
func (o *S3Objects) Limit(limit *rate.Limiter) { o.limit = limit }

// listPage is how many keys come by one request.
const listPage = 1000

// List calls fn with the keys that begin with prefix, in order, unless deep only with those
// that go on without a slash, and when each was put. An error of fn ends the list and is
// returned as it is.
func (o *S3Objects) List(ctx context.Context, prefix string, deep bool, fn func(key string, modified time.Time) error) error {
	if err := o.limit.Wait(ctx); err != nil {
		return err
	}
	n := 0
	return o.s.list(ctx, minio.ListObjectsOptions{Prefix: o.s.cfg.prefix + prefix, Recursive: deep}, func(key string, info *minio.ObjectInfo) error {
		if n++; n%listPage == 0 {
			if err := o.limit.Wait(ctx); err != nil {
				return err
			}
		}
		if strings.HasSuffix(key, "/") {
			return nil // what is below it
		}
		return fn(key, info.LastModified)
	})
}

// An S3Object is an object that is read from some byte on. Where the connection breaks it
// goes on by itself; it ends with an error where it is cut short.
type S3Object struct {
	Size     int64  // bytes of the whole object
	Encoding string // its Content-Encoding

	s      *S3
	limit  *rate.Limiter
	ctx    context.Context
	key    string
	off    int64 // of the next byte
	etag   string
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer // cancels a request that has stalled
	fails  int         // one after another, without a byte
}

// Open opens an object from byte off on. The error wraps ErrNotFound if there is none. The
// caller closes it.
func (o *S3Objects) Open(ctx context.Context, key string, off int64) (*S3Object, error) {
	obj := &S3Object{s: o.s, limit: o.limit, ctx: ctx, key: key, off: off}
	for {
		err := obj.open()
		if err == nil {
			return obj, nil
		}
		if err = obj.pause(err); err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
	}
}

// open asks for what is left.
func (o *S3Object) open() (err error) {
	if err := o.limit.Wait(o.ctx); err != nil {
		return permanent(err)
	}
	ctx, cancel := context.WithCancelCause(o.ctx)
	timer := time.AfterFunc(o.s.cfg.timeout, func() { cancel(errStalled) })
	defer func() {
		timer.Stop()
		if err != nil {
			cancel(nil)
		}
	}()
	var opts minio.GetObjectOptions
	if o.off > 0 {
		if err := opts.SetRange(o.off, 0); err != nil {
			return permanent(err)
		}
	}
	if o.etag != "" {
		if err := opts.SetMatchETag(o.etag); err != nil {
			return permanent(err)
		}
	}
	o.s.cfg.payer(opts.Set)
	body, info, header, err := o.s.core.GetObject(ctx, o.s.cfg.bucket, o.s.cfg.prefix+o.key, opts)
	if err != nil {
		return o.s.readError(ctx, o.key, err)
	}
	size, err := checkRange(header, o.off)
	if err != nil || o.etag != "" && size != o.Size {
		body.Close()
		return permanent(errors.Join(err, errors.New("the object has changed in the middle of the download")))
	}
	o.Size, o.Encoding, o.etag = size, contentEncoding(header.Get("Content-Encoding")), info.ETag
	o.body, o.cancel, o.timer = body, cancel, timer
	return nil
}

// contentEncoding returns a header without aws-chunked, which is about how an upload was
// sent, and which some servers keep.
func contentEncoding(header string) string {
	codings := strings.Split(header, ",")
	codings = slices.DeleteFunc(codings, func(c string) bool { return strings.TrimSpace(c) == "aws-chunked" })
	return strings.TrimSpace(strings.Join(codings, ","))
}

// pause waits after an error, before the next attempt. It returns the error if there is to
// be none.
func (o *S3Object) pause(err error) error {
	if o.ctx.Err() != nil {
		return context.Cause(o.ctx)
	}
	if p, ok := errors.AsType[permanentError](err); ok {
		return p.err
	}
	if o.fails++; !transient(err) || o.fails == maxAttempts {
		return err
	}
	select {
	case <-time.After(rand.N(min(firstPause<<o.fails, longestPause))):
		return nil
	case <-o.ctx.Done():
		return context.Cause(o.ctx)
	}
}

func (o *S3Object) Read(p []byte) (int, error) {
	for {
		o.timer.Reset(o.s.cfg.timeout)
		n, err := o.body.Read(p[:min(int64(len(p)), o.Size-o.off)])
		o.timer.Stop()
		o.off += int64(n)
		switch {
		case o.off == o.Size:
			return n, io.EOF
		case n > 0 || err == nil:
			o.fails = 0
			return n, nil
		}
		for err != nil {
			if err = o.pause(fmt.Errorf("read %s: after %d bytes of %d: %w", o.key, o.off, o.Size, err)); err != nil {
				return 0, err
			}
			o.Close()
			err = o.open()
		}
	}
}

// Close ends the request.
func (o *S3Object) Close() error {
	o.cancel(nil)
	return o.body.Close()
}
