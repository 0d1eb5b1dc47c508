package access

import (
	"context"
	"io"

	"golang.org/x/time/rate"
)

// Limits are what all uploads of a token share. A nil *Limits has none.
type Limits struct {
	uploads chan struct{} // slots; nil for any number
	rate    *rate.Limiter // of bytes; nil for any
}

// newLimits returns limits to uploads at a time and bytes per second, of which 0 is none.
func newLimits(uploads int, bytes int64) *Limits {
	if uploads == 0 && bytes == 0 {
		return nil
	}
	l := new(Limits)
	if uploads > 0 {
		l.uploads = make(chan struct{}, uploads)
	}
	if bytes > 0 {
		l.rate = rate.NewLimiter(rate.Limit(bytes), int(max(bytes/4, rateStep)))
	}
	return l
}

// Upload waits until one more upload may run. The caller calls done when it is over.
func (l *Limits) Upload(ctx context.Context) (done func(), err error) {
	if l == nil || l.uploads == nil {
		return func() {}, nil
	}
	select {
	case l.uploads <- struct{}{}:
		return func() { <-l.uploads }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// rateStep is how many bytes at most are waited for at a time.
const rateStep = 64 << 10

// Reader returns r, read no faster than the limit.
func (l *Limits) Reader(ctx context.Context, r io.Reader) io.Reader {
	if l == nil || l.rate == nil {
		return r
	}
	return &rateReader{ctx, r, l.rate}
}

type rateReader struct {
	ctx  context.Context
	r    io.Reader
	rate *rate.Limiter
}

func (r *rateReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), rateStep)])
	if n > 0 {
		if err := r.rate.WaitN(r.ctx, n); err != nil {
			return n, err
		}
	}
	return n, err
}
