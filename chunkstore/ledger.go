package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// RequestStats say what was sent to the bucket.
type RequestStats struct {
	Process bucket.Requests `json:"process"` // since it was started
	Total   bucket.Requests `json:"total"`   // of all processes that had the state directory
	Since   time.Time       `json:"since"`   // when Total began
}

// A ledger keeps the requests of all processes that had the state directory, in a file of
// it. What was sent in the last minute before a crash is not in there: these are numbers
// for people, and not worth a sync at every request.
type ledger struct {
	bucket bucket.Bucket
	path   string
	log    *slog.Logger
	since  time.Time
	before bucket.Requests // of earlier processes

	mu    sync.Mutex
	saved bucket.Requests // total in the file
}

const (
	ledgerFile     = "requests.json"
	ledgerInterval = time.Minute
)

// openLedger reads the ledger of a state directory. It is nil, and does nothing, for a
// bucket that counts no requests.
func openLedger(b bucket.Bucket, state string, log *slog.Logger) *ledger {
	if _, ok := bucket.RequestsOf(b); !ok {
		return nil
	}
	l := &ledger{bucket: b, path: filepath.Join(state, ledgerFile), log: log, since: time.Now().Truncate(time.Second)}
	var last RequestStats
	data, err := os.ReadFile(l.path)
	if err == nil {
		err = json.Unmarshal(data, &last)
	}
	switch {
	case err == nil:
		l.since, l.before, l.saved = last.Since, last.Total, last.Total
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("the counts of earlier requests are lost", "path", l.path, "err", err)
	}
	return l
}

func (l *ledger) stats() RequestStats {
	now, _ := bucket.RequestsOf(l.bucket)
	return RequestStats{now, l.before.Plus(now), l.since}
}

// save writes the file, if there is anything new.
func (l *ledger) save() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats()
	if st.Total == l.saved {
		return
	}
	data, _ := json.MarshalIndent(st, "", "  ") // never fails
	if err := replaceFile(l.path, append(data, '\n')); err != nil {
		l.log.Warn("the counts of requests are not saved", "err", err)
		return
	}
	l.saved = st.Total
}

// run saves now and then until ctx ends.
func (l *ledger) run(ctx context.Context) {
	if l == nil {
		return
	}
	tick := time.NewTicker(ledgerInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.save()
		}
	}
}

// Requests says what was sent to the bucket; nil if that counts no requests.
func (s *Store) Requests() *RequestStats {
	if s.ledger == nil {
		return nil
	}
	st := s.ledger.stats()
	return &st
}

func (r *RequestStats) writeRows(row func(name, format string, args ...any), st *Stats) {
	t := r.Total
	row("requests to the bucket", "%d PUT, %d LIST, %d GET, %d HEAD, %d DELETE since %s; %d of them failed",
		t.Put, t.List, t.Get, t.Head, t.Delete, r.Since.Format(time.DateOnly), t.Failed)
	row("for each store path", "%.4f PUT and LIST, %.4f GET and HEAD",
		ratio(int64(t.Put+t.List), st.StorePaths), ratio(int64(t.Get+t.Head), st.StorePaths))
	row("sent to the bucket", "%s, received %s", size(int64(t.Sent)), size(int64(t.Received)))
}
