package site

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// A survey is what was found by reading all of the index. It does not change.
type survey struct {
	at       time.Time // when it was begun
	took     time.Duration
	stats    *chunkstore.Stats
	names    *names
	packages []pkg // the largest
	lossy    bool  // of packages
	history  []Sample
}

const (
	// surveyAge is the age at which a survey is made anew when somebody looks.
	surveyAge = 5 * time.Minute
	// surveyShare is the part of the time that surveys may take, as a divisor.
	surveyShare = 20
	// surveyLimit is how long one may take.
	surveyLimit = 15 * time.Minute

	maxPackages  = 20_000 // that are counted apart
	showPackages = 12
)

// Run makes surveys until ctx ends: once an hour for the history, and when somebody looks
// and the last one is old. It is to have returned before the store is closed.
func (s *Site) Run(ctx context.Context) error {
	path := filepath.Join(s.cfg.State, historyFile)
	history, err := readHistory(path)
	if err != nil {
		s.cfg.Log.Warn("the history of the cache's size begins anew", "err", err)
	}
	hourly := time.NewTimer(0)
	defer hourly.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wanted:
		case <-hourly.C:
		}
		hourly.Reset(sampleEvery)
		v, err := s.survey(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Warn("could not count what the cache holds", "err", err)
			}
			// It may not be for long, but nobody need try at every look.
			if sleep(ctx, time.Minute) != nil {
				return nil
			}
			continue
		}
		now := time.Now()
		if n := len(history); n == 0 || !history[n-1].Time.Add(sampleEvery).After(now) {
			history = thin(append(history, newSample(now, v.stats)), now)
			if err := writeHistory(path, history); err != nil {
				s.cfg.Log.Warn("could not write the history of the cache's size", "err", err)
			}
		}
		v.history = history
		s.last.Store(v)
		s.firstOnce.Do(func() { close(s.first) })
		if sleep(ctx, surveyShare*v.took) != nil {
			return nil
		}
	}
}

func (s *Site) survey(ctx context.Context) (*survey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, surveyLimit, errors.New("it takes too long"))
	defer cancel()
	v := &survey{at: time.Now(), names: &names{max: int(s.cfg.Memory)}}
	packages := newPackages(maxPackages)
	err := s.cfg.Store.EachPath(ctx, func(path narinfo.StorePath, size int64) error {
		v.names.add(path)
		packages.add(path, size)
		return nil
	})
	if err == nil {
		v.stats, err = s.cfg.Store.Stats(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("survey: %w", errors.Join(err, context.Cause(ctx)))
	}
	v.packages, v.lossy = packages.largest(showPackages), packages.lossy
	v.took = time.Since(v.at)
	return v, nil
}

// look returns the last survey, and has another one made if it is old. It waits a moment
// for the first; nil is none.
func (s *Site) look(ctx context.Context) *survey {
	v := s.last.Load()
	if v == nil || time.Since(v.at) > surveyAge {
		select {
		case s.wanted <- struct{}{}:
		default:
		}
	}
	if v == nil {
		select {
		case <-s.first:
		case <-ctx.Done():
		case <-time.After(firstWait):
		}
		v = s.last.Load()
	}
	return v
}

// firstWait is how long a page waits for the first survey.
const firstWait = 500 * time.Millisecond

// sleep waits for d, or until ctx ends, which is its error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
