package access

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(0, 100_000)
		began := time.Now()
		n, err := io.Copy(io.Discard, l.Reader(t.Context(), bytes.NewReader(make([]byte, 1_000_000))))
		// What can be sent at once is sent at once.
		if took, want := time.Since(began), 9344*time.Millisecond; n != 1_000_000 || err != nil || took.Round(10*time.Millisecond) != want.Round(10*time.Millisecond) {
			t.Errorf("got %d bytes in %v (%v), want them in %v", n, took, err, want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := io.Copy(io.Discard, l.Reader(ctx, bytes.NewReader(make([]byte, 1_000_000)))); err == nil {
			t.Error("reading goes on after the end of its context")
		}
	})
}

func TestUploads(t *testing.T) {
	l := newLimits(1, 0)
	done, err := l.Upload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Upload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a second upload: got %v, want %v", err, context.Canceled)
	}
	done()
	if _, err := l.Upload(t.Context()); err != nil {
		t.Errorf("after the first: %v", err)
	}
	if _, err := (*Limits)(nil).Upload(ctx); err != nil {
		t.Errorf("without limits: %v", err)
	}
}
