package pull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/dedupd/dedupd/upstream"
)

// A source is an upstream, and what is remembered of its answers.
type source struct {
	Upstream
	absent  *otter.Cache[string, struct{}] // names of what it does not have
	breaker breaker
}

const (
	maxAbsent  = 100_000 // names
	absentAge  = 10 * time.Minute
	brokenTime = 5 * time.Second
	maxErrors  = 5
)

func newSource(u Upstream, log *slog.Logger) *source {
	if u.NegativeCache == 0 {
		u.NegativeCache = absentAge
	}
	return &source{
		Upstream: u, breaker: breaker{name: u.Name(), log: log},
		absent: otter.Must(&otter.Options[string, struct{}]{
			MaximumSize: maxAbsent, ExpiryCalculator: otter.ExpiryWriting[string, struct{}](u.NegativeCache),
		}),
	}
}

// ask puts a question about name, unless the answer is known.
func (s *source) ask(name string, question func() error) error {
	if _, ok := s.absent.GetIfPresent(name); ok {
		return upstream.ErrNotFound
	}
	if err := s.breaker.allow(time.Now()); err != nil {
		return err
	}
	err := question()
	s.breaker.report(time.Now(), err)
	if errors.Is(err, upstream.ErrNotFound) && !s.Local {
		s.absent.Set(name, struct{}{})
	}
	return err
}

// A breaker keeps questions from an upstream that does not answer, so that not every
// client waits for its timeout. After a while one question is let through to find out.
type breaker struct {
	name string
	log  *slog.Logger

	mu     sync.Mutex
	errors int       // in a row; maxErrors while it is broken
	until  time.Time // when the next question is let through
	last   error
}

// allow returns an error instead of a question.
func (b *breaker) allow(now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.errors < maxErrors {
		return nil
	}
	if now.Before(b.until) {
		return fmt.Errorf("was tried a moment ago: %w", b.last)
	}
	b.until = now.Add(brokenTime)
	return nil
}

// report takes what became of a question. Upstreams that give no answer break at once;
// those that answer with errors after some of them, since it may be this one file.
func (b *breaker) report(now time.Time, err error) {
	var status *upstream.StatusError
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.errors
	switch {
	case errors.Is(err, context.Canceled):
		return
	case errors.Is(err, upstream.ErrUnreachable):
		b.errors = maxErrors
	case errors.As(err, &status):
		b.errors = min(b.errors+1, maxErrors)
	default:
		b.errors = 0
	}
	if b.errors == maxErrors {
		b.until, b.last = now.Add(brokenTime), err
	}
	if was < maxErrors && b.errors == maxErrors {
		b.log.Warn("upstream does not answer", "upstream", b.name, "err", err)
	} else if was == maxErrors && b.errors == 0 {
		b.log.Info("upstream answers again", "upstream", b.name)
	}
}
