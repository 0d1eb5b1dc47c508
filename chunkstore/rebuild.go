package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// The index is made from the packs. An old one that is not wanted any more, or is
// damaged, is put aside until the new one is on disk as a whole:
//
//	crash before it is aside: it is still in its place.
//	crash after that: the packs that the new one has marks of are not read again. That
//	  another index is aside says that the new one is not complete; every start goes
//	  on with it.
const (
	indexFile = "index.bolt"
	oldSuffix = ".old"
)

// RebuildOptions are the settings of RebuildIndex. Zero values mean the defaults.
type RebuildOptions struct {
	// Memory is what changes of the index may take, in bytes, before they are written;
	// default 128 MiB. The more, the fewer pages are written for a given number of chunks.
	Memory int64
	// FromSnapshot begins with the newest snapshot in the bucket, if there is one that can be
	// used, and reads the packs since. What the packs say is believed otherwise.
	FromSnapshot bool
	// Progress, if it is not nil, is called after every pack.
	Progress func(RebuildProgress)
}

// RebuildProgress says how far packs have been applied to the index.
type RebuildProgress struct {
	Packs   int           `json:"packs"` // applied
	Total   int           `json:"total"` // packs to apply
	Chunks  int64         `json:"chunks"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// Rate is chunks a second.
func (p *RebuildProgress) Rate() float64 {
	return float64(p.Chunks) / max(p.Elapsed, time.Millisecond).Seconds()
}

// Left is about how long it will take.
func (p *RebuildProgress) Left() time.Duration {
	return time.Duration(float64(p.Elapsed) / float64(max(p.Packs, 1)) * float64(p.Total-p.Packs))
}

// RebuildReport says what rebuilding the index has found.
type RebuildReport struct {
	RebuildProgress
	Resumed int `json:"resumed"` // packs that an earlier attempt had applied
	// Snapshot is the one that the index begins with, and Restored the packs that it had
	// applied.
	Snapshot string `json:"snapshot,omitempty"`
	Restored int    `json:"restored,omitempty"`
	Omitted  int    `json:"omitted"` // commits that rely on packs that are missing
	// Missing are packs that the old index had, and that are gone. It is empty when the
	// old index could not be read, too.
	Missing []string `json:"missing"`
}

// WriteText writes the report for people.
func (r *RebuildReport) WriteText(w io.Writer) error {
	b := new(strings.Builder)
	fmt.Fprintf(b, "%d packs with %d chunks in %v, %.0f chunks a second\n", r.Packs, r.Chunks, r.Elapsed.Round(time.Millisecond), r.Rate())
	if r.Restored > 0 {
		fmt.Fprintf(b, "%d packs came from snapshot %s\n", r.Restored, r.Snapshot)
	}
	if r.Resumed > 0 {
		fmt.Fprintf(b, "%d packs had been applied before\n", r.Resumed)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(b, "%d commits were left out: they rely on packs that are missing\n", r.Omitted)
	}
	for _, name := range r.Missing {
		fmt.Fprintf(b, "missing: pack %s, which the old index had\n", name)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// RebuildIndex makes the index of a repository anew from the packs in opts.Bucket and in
// the spool, if there is one, and takes the state directory for as long. An attempt that
// was interrupted goes on where it was. Other errors than ErrLocked leave a state
// directory that opens, or that RebuildIndex can be called with again.
func RebuildIndex(ctx context.Context, opts Options, r RebuildOptions) (*RebuildReport, error) {
	if r.Memory == 0 {
		r.Memory = 128 << 20
	}
	opts.rebuild, opts.fromSnapshot, opts.progress = true, r.FromSnapshot, r.Progress
	opts.IndexMemory = int(min(r.Memory/2, 1<<30)) // while one is written another fills
	s, err := Open(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	report := s.rebuilt
	if err := s.Close(ctx); err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	return &report, nil
}

// openIndex opens the index. If it is damaged, or is to be rebuilt, that is an empty one.
// fresh says that nothing is known of any repository.
func (s *Store) openIndex(ctx context.Context) (fresh bool, err error) {
	path := filepath.Join(s.opts.State, indexFile)
	aside, err := exists(path + oldSuffix)
	if err != nil {
		return false, err
	}
	if s.opts.rebuild && !aside {
		if aside, err = putAside(path); err != nil {
			return false, err
		}
	}
	if aside {
		s.log.Info("the index is being rebuilt from the packs", "path", path)
	}
	there, err := exists(path)
	if err == nil && !there && (s.opts.fromSnapshot || !aside && !s.opts.rebuild) {
		if err = s.restoreIndex(ctx, path); err == nil {
			there, err = exists(path)
		}
	}
	if err != nil {
		return false, err
	}
	opts := index.Options{Memtable: s.opts.IndexMemory, RoomWait: s.opts.RetryInterval / 10, Bulk: aside || !there}
	ix, err := index.OpenBolt(path, opts)
	if errors.Is(err, index.ErrDamaged) {
		s.log.Error("the index is damaged; it is put aside and rebuilt from the packs", "err", err)
		if aside, err = putAside(path); err == nil {
			opts.Bulk = true
			ix, err = index.OpenBolt(path, opts)
		}
	}
	if err != nil {
		return false, err
	}
	s.ix = ix
	if s.opts.OnLookup != nil {
		s.ix = &timedIndex{ix, s.opts.OnLookup}
	}
	marks, err := ix.Marks(ctx)
	s.rebuilt = RebuildReport{Missing: []string{}}
	if s.restored != "" {
		s.rebuilt.Snapshot, s.rebuilt.Restored = s.restored, len(marks)
	} else if aside {
		s.rebuilt.Resumed = len(marks)
	}
	return len(marks) == 0 && !aside && !s.opts.rebuild, err
}

// putAside renames the index at path, durably. It says whether there was one.
func putAside(path string) (bool, error) {
	if err := os.Rename(path, path+oldSuffix); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("put aside: %w", err)
	}
	return true, syncDir(filepath.Dir(path))
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// indexRebuilt completes the report when everything is applied. If there is an old
// index aside, it ends the rebuilding: the new one is made durable, then the old one goes.
// It says whether there was.
func (s *Store) indexRebuilt(ctx context.Context, r *recovery) (bool, error) {
	begun := time.Now()
	s.rebuilt.RebuildProgress, s.rebuilt.Omitted = r.progress, r.omitted
	old := filepath.Join(s.opts.State, indexFile+oldSuffix)
	aside, err := exists(old)
	if err != nil {
		return false, err
	}
	if !aside && !s.opts.rebuild {
		if stats := s.ix.Stats(); stats.Rows[index.Chunks] == 0 && stats.Pending > 0 {
			return false, s.ix.Flush(ctx) // it was gone, and is made in bulk
		}
		return false, nil
	}
	if aside {
		if err := s.compareOld(ctx, r, old); err != nil {
			return false, err
		}
	}
	if err := s.ix.Flush(ctx); err != nil {
		return false, err
	}
	s.rebuilt.Elapsed += time.Since(begun)
	s.log.Info("the index is rebuilt", "packs", s.rebuilt.Packs, "chunks", s.rebuilt.Chunks, "elapsed", s.rebuilt.Elapsed)
	return true, index.Remove(old)
}

// compareOld notes which packs the index aside had that are gone.
func (s *Store) compareOld(ctx context.Context, r *recovery, old string) error {
	for name := range oldMarks(ctx, old, s.log) {
		if n, err := packfile.ParseName(name); err == nil && !r.have(n) {
			s.rebuilt.Missing = append(s.rebuilt.Missing, name)
		}
	}
	if len(s.rebuilt.Missing) == 0 {
		return nil
	}
	slices.Sort(s.rebuilt.Missing)
	s.log.Error("packs that the old index had are missing", "packs", s.rebuilt.Missing)
	if len(r.bucket)+len(r.spooled) > 0 {
		return nil
	}
	return fmt.Errorf("the old index had %d packs, and there are none in %s: is this the right bucket for this state directory?",
		len(s.rebuilt.Missing), s.opts.Bucket)
}

// oldMarks returns the packs that an index has, none if it cannot be read any more.
func oldMarks(ctx context.Context, path string, log *slog.Logger) map[string]uint64 {
	ix, err := index.OpenBolt(path, index.Options{LockTimeout: time.Millisecond}) // see openDB in index
	if err != nil {
		log.Warn("which packs the old index had is not known", "err", err)
		return nil
	}
	marks, err := ix.Marks(ctx)
	if err = errors.Join(err, ix.Close()); err != nil {
		log.Warn("the old index", "err", err)
	}
	return marks
}

// A progressLog counts what is applied, and says so now and then.
type progressLog struct {
	RebuildProgress
	begun, logged time.Time
	report        func(RebuildProgress) // nil for none
	log           *slog.Logger
}

const logInterval = 10 * time.Second

func newProgress(total int, report func(RebuildProgress), log *slog.Logger) *progressLog {
	now := time.Now()
	return &progressLog{RebuildProgress: RebuildProgress{Total: total}, begun: now, logged: now, report: report, log: log}
}

func (p *progressLog) applied(pack *packfile.Pack) {
	now := time.Now()
	p.Packs++
	for _, f := range pack.Frames {
		p.Chunks += int64(len(f.Chunks))
	}
	p.Elapsed = now.Sub(p.begun)
	if p.report != nil {
		p.report(p.RebuildProgress)
	}
	if now.Sub(p.logged) >= logInterval {
		p.logged = now
		p.log.Info("applying packs to the index", "done", p.Packs, "of", p.Total, "chunks a second", int(p.Rate()), "left", p.Left().Round(time.Second))
	}
}
