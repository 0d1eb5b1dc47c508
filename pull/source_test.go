package pull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/dedupd/dedupd/upstream"
)

func TestBreaker(t *testing.T) {
	now := time.Now()
	unreachable := fmt.Errorf("%w: connection refused", upstream.ErrUnreachable)
	for _, tt := range []struct {
		name   string
		errs   []error // of one question after another
		broken bool
	}{
		{"answers", []error{nil, upstream.ErrNotFound, nil}, false},
		{"no answer", []error{unreachable}, true},
		{"an error", []error{&upstream.StatusError{Code: 500}}, false},
		{"errors", []error{&upstream.StatusError{Code: 500}, &upstream.StatusError{Code: 502}, &upstream.StatusError{Code: 500}, &upstream.StatusError{Code: 500}, &upstream.StatusError{Code: 500}}, true},
		{"errors and answers", []error{&upstream.StatusError{Code: 500}, &upstream.StatusError{Code: 502}, &upstream.StatusError{Code: 500}, &upstream.StatusError{Code: 500}, nil, &upstream.StatusError{Code: 500}}, false},
		{"clients that leave", []error{context.Canceled}, false},
		{"nonsense", []error{errors.New("not a narinfo")}, false},
	} {
		b := &breaker{log: slog.New(slog.DiscardHandler)}
		for _, err := range tt.errs {
			if err := b.allow(now); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			b.report(now, err)
		}
		err := b.allow(now.Add(brokenTime - 1))
		if (err != nil) != tt.broken {
			t.Errorf("%s: got %v, want broken %v", tt.name, err, tt.broken)
		}
		if !tt.broken {
			continue
		}
		// One question finds out.
		later := now.Add(brokenTime)
		if err := b.allow(later); err != nil {
			t.Errorf("%s: later: %v", tt.name, err)
		}
		if b.allow(later) == nil {
			t.Errorf("%s: a second question is let through", tt.name)
		}
		b.report(later, nil)
		if err := b.allow(later); err != nil {
			t.Errorf("%s: after an answer: %v", tt.name, err)
		}
	}
}
