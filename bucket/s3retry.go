package bucket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// Retries. An operation is tried a few times, with pauses that double and that are
// random, so that clients who failed together do not come back together. When a server
// fails most of what it is asked, retrying only adds to its load: each retry takes from
// a budget that only requests that succeed fill up again. (Marc Brooker, "Exponential
// Backoff And Jitter", and the retry quota of AWS's SDKs.)
const (
	maxAttempts   = 6
	firstPause    = 200 * time.Millisecond
	longestPause  = 10 * time.Second
	budgetSize    = 500
	budgetRetry   = 5
	budgetSuccess = 1
)

// A permanentError is one that trying again does not help against.
type permanentError struct{ err error }

func (e permanentError) Error() string { return e.err.Error() }

func (e permanentError) Unwrap() error { return e.err }

func permanent(err error) error { return permanentError{err} }

// retry calls attempt until it succeeds, fails for good, or has failed too often. The
// context of an attempt ends if it does not call alive for the timeout of the bucket.
func (s *S3) retry(ctx context.Context, attempt func(ctx context.Context, alive func()) error) error {
	for n := 1; ; n++ {
		err := s.attempt(ctx, attempt)
		if err == nil {
			s.budget.add(budgetSuccess)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p, ok := errors.AsType[permanentError](err); ok {
			return p.err
		}
		if !transient(err) || n == maxAttempts || !s.budget.take(budgetRetry) {
			return err
		}
		pause := min(firstPause<<(n-1), longestPause)
		select {
		case <-time.After(rand.N(pause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errStalled = errors.New("the server has stalled")

func (s *S3) attempt(ctx context.Context, attempt func(ctx context.Context, alive func()) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := s.cfg.timeout
	stalled := time.AfterFunc(timeout, func() { cancel(errStalled) })
	defer stalled.Stop()
	err := attempt(ctx, func() { stalled.Reset(timeout) })
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return fmt.Errorf("%w: nothing has moved for %v", errStalled, timeout)
	}
	return err
}

// transient says whether an error may be gone at the next attempt: one of the network, or
// an answer that blames the server, or the moment.
func transient(err error) bool {
	resp := minio.ToErrorResponse(err)
	switch resp.Code {
	case "RequestTimeTooSkewed", "ExpiredToken", "ExpiredTokenException", "RequestTimeout":
		return true
	case "XAmzContentSHA256Mismatch", "BadDigest", "SignatureDoesNotMatch": // if the body was not what was sent
		return true
	}
	switch resp.StatusCode {
	case 0: // no answer
		return !errors.As(err, new(*tls.CertificateVerificationError))
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	case http.StatusForbidden:
		// So MinIO answers a PUT whose directory a DELETE of the last object in it removes.
		return resp.Server == "MinIO"
	case http.StatusNotImplemented:
		return false
	}
	return resp.StatusCode >= 500
}

// A retryBudget limits how much of what is sent are retries.
type retryBudget struct {
	mu    sync.Mutex
	spent int
}

func (b *retryBudget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent+n > budgetSize {
		return false
	}
	b.spent += n
	return true
}

func (b *retryBudget) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent = max(0, b.spent-n)
}

// An activeReader says that it is alive whenever something was read, and keeps the
// reader's error.
type activeReader struct {
	r     io.Reader
	alive func()
	err   error
}

func (a *activeReader) Read(p []byte) (n int, err error) {
	n, a.err = a.r.Read(p)
	a.alive()
	return n, a.err
}
