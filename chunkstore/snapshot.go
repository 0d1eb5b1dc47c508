package chunkstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A snapshot is the index in the bucket, as it was at one moment between two commits: so
// that another machine need not read the tails of all packs. It is objects with rows, and
// a manifest, which is written last: without it there is no snapshot.
//
// A complete snapshot names only packs that the bucket has. Rows of the pack that was open,
// and of those that were on their way, are in it; so the manifest waits until the bucket
// has these, too. The pack that was open has no mark, since it has got more entries since:
// whoever restores the index applies it, as all packs that have no mark.
//
//	crash before the manifest: objects that the next complete snapshot removes.
const (
	snapshotPrefix  = "snapshots/"
	manifestName    = "manifest.json"
	snapshotVersion = 1
	snapshotsKept   = 2
	maxManifest     = 64 << 20
)

// A manifest says what a snapshot consists of.
type manifest struct {
	Version    int       `json:"version"`
	Repository string    `json:"repository"` // ID
	Created    time.Time `json:"created"`
	Packs      int       `json:"packs"` // that are applied, all their entries
	Chunks     int64     `json:"chunks"`
	Parts      []part    `json:"parts"`
	Sum        string    `json:"sum"` // as in Repository
}

// A snapshotID is the time in milliseconds and random bytes, in hexadecimal: newer ones
// are greater.
type snapshotID string

func (id snapshotID) key(name string) string { return snapshotPrefix + string(id) + "/" + name }

func (id snapshotID) partKey(n int) string { return id.key(fmt.Sprintf("%08d.part", n)) }

// newSnapshotID returns an ID that is greater than others, whatever the clock says.
func newSnapshotID(now time.Time, newest snapshotID) snapshotID {
	var b [10]byte
	ms := uint64(now.UnixMilli())
	if last, err := hex.DecodeString(string(newest)); err == nil && len(last) == len(b) {
		ms = max(ms, binary.BigEndian.Uint64(last)>>16+1)
	}
	binary.BigEndian.PutUint64(b[:], ms<<16)
	rand.Read(b[6:]) // never fails
	return snapshotID(hex.EncodeToString(b[:]))
}

// snapshotObjects are the keys of one snapshot in the bucket.
type snapshotObjects struct {
	id       snapshotID
	keys     []string // the manifest is the last
	complete bool
}

// listSnapshots returns the snapshots in a bucket, the oldest first.
func listSnapshots(ctx context.Context, b bucket.Bucket) (found []snapshotObjects, err error) {
	err = b.List(ctx, snapshotPrefix, "", func(info bucket.Info) error {
		id, name, ok := parseSnapshotKey(info.Key)
		if !ok {
			return nil
		}
		if n := len(found); n == 0 || found[n-1].id != id {
			found = append(found, snapshotObjects{id: id})
		}
		last := &found[len(found)-1]
		last.keys = append(last.keys, info.Key)
		last.complete = last.complete || name == manifestName
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return found, nil
}

func parseSnapshotKey(key string) (id snapshotID, name string, ok bool) {
	text, isSnapshot := strings.CutPrefix(key, snapshotPrefix)
	dir, name, isBelow := strings.Cut(text, "/")
	b, err := hex.DecodeString(dir)
	return snapshotID(dir), name, isSnapshot && isBelow && err == nil && len(b) == 10 && strings.ToLower(dir) == dir
}

func isSnapshotKey(key string) bool {
	_, _, ok := parseSnapshotKey(key)
	return ok
}

// readManifest reads and checks the manifest of a snapshot of a repository.
func readManifest(ctx context.Context, b bucket.Bucket, id snapshotID, repository string) (*manifest, error) {
	info, err := b.Stat(ctx, id.key(manifestName))
	if err != nil {
		return nil, err
	}
	if info.Size > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes: %w", info.Size, packfile.ErrCorrupt)
	}
	data := make([]byte, info.Size)
	if err := b.ReadAt(ctx, info.Key, data, 0); err != nil {
		return nil, err
	}
	m := new(manifest)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", packfile.ErrCorrupt, err)
	}
	switch {
	case !sealedJSON(data, m.Sum):
		return nil, fmt.Errorf("manifest: wrong checksum: %w", packfile.ErrCorrupt)
	case m.Version > snapshotVersion:
		return nil, fmt.Errorf("snapshot version %d: %w", m.Version, packfile.ErrVersion)
	case m.Repository != repository:
		return nil, fmt.Errorf("snapshot is of repository %s, not of %s", m.Repository, repository)
	}
	for n, p := range m.Parts {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("part %d: %w", n, err)
		}
	}
	return m, nil
}

// A SnapshotReport says what was written.
type SnapshotReport struct {
	ID      string        `json:"id"`
	Packs   int           `json:"packs"` // that need not be read by whoever restores it
	Chunks  int64         `json:"chunks"`
	Rows    int64         `json:"rows"`
	Objects int           `json:"objects"`
	Bytes   int64         `json:"bytes"` // of these
	Removed int           `json:"removed"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// WriteText writes the report for people.
func (r *SnapshotReport) WriteText(w io.Writer) error {
	_, err := fmt.Fprintf(w, "snapshot %s of %d packs with %d chunks: %d rows in %d objects, %s (%.1f bytes a chunk), in %v\n",
		r.ID, r.Packs, r.Chunks, r.Rows, r.Objects, size(r.Bytes), float64(r.Bytes)/float64(max(r.Chunks, 1)), r.Elapsed.Round(time.Millisecond))
	return err
}

// ErrBusy is returned when something is going on already.
var ErrBusy = errors.New("it is being done already")

// WriteSnapshot writes the index into the bucket, and removes older snapshots but for the
// last. It waits until the bucket has all that was committed before; commits go on.
func (s *Store) WriteSnapshot(ctx context.Context) (*SnapshotReport, error) {
	if s.follower != nil {
		return nil, fmt.Errorf("write snapshot: %w", ErrReadOnly)
	}
	if !s.snapshotting.TryLock() {
		return nil, fmt.Errorf("write snapshot: %w", ErrBusy)
	}
	defer s.snapshotting.Unlock()
	report, err := s.writeSnapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("write snapshot: %w", err)
	}
	s.log.Info("wrote a snapshot of the index", "id", report.ID, "packs", report.Packs, "chunks", report.Chunks,
		"bytes", report.Bytes, "objects", report.Objects, "elapsed", report.Elapsed)
	return report, nil
}

func (s *Store) writeSnapshot(ctx context.Context) (*SnapshotReport, error) {
	begun := time.Now()
	old, err := listSnapshots(ctx, s.opts.Bucket)
	if err != nil {
		return nil, err
	}
	newest := snapshotID("")
	if n := len(old); n > 0 {
		newest = old[n-1].id
	}
	id := newSnapshotID(begun, newest)
	w, err := newPartWriter(func(n int, data []byte) error { return s.putObject(ctx, id.partKey(n), data) })
	if err != nil {
		return nil, err
	}
	if err := s.writeRows(ctx, w); err != nil {
		return nil, err
	}
	if err := s.WaitForBucket(ctx); err != nil {
		return nil, err
	}
	m := manifest{
		Version: snapshotVersion, Repository: s.repo.ID, Created: begun.UTC().Truncate(time.Second),
		Packs: w.marks, Chunks: w.chunks, Parts: w.parts, Sum: noSum,
	}
	data := sealJSON(m)
	if err := s.putObject(ctx, id.key(manifestName), data); err != nil {
		return nil, err
	}
	r := &SnapshotReport{ID: string(id), Packs: m.Packs, Chunks: m.Chunks, Objects: len(m.Parts) + 1, Bytes: int64(len(data))}
	for _, p := range m.Parts {
		r.Rows, r.Bytes = r.Rows+p.Rows, r.Bytes+p.Size
	}
	r.Removed = s.removeSnapshots(ctx, old)
	r.Elapsed = time.Since(begun)
	return r, nil
}

// writeRows writes the index as it is between two commits.
func (s *Store) writeRows(ctx context.Context, w *partWriter) error {
	// What waits in memory is written while commits go on, so that they wait but shortly
	// for the snapshot.
	if err := s.ix.Flush(ctx); err != nil {
		return err
	}
	var snap index.Snapshot
	open := ""
	err := s.commit(ctx, &request{inspect: func(p *openPack) (err error) {
		if p != nil {
			open = p.name.String()
		}
		snap, err = s.ix.Snapshot(ctx)
		return err
	}})
	if err != nil {
		return err
	}
	return errors.Join(w.index(ctx, snap, open), snap.Close())
}

// putObject puts an object that nobody else has the key of. One that is there already is
// from an attempt that seemed to have failed.
func (s *Store) putObject(ctx context.Context, key string, data []byte) error {
	err := s.opts.Bucket.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
	if !errors.Is(err, bucket.ErrExists) {
		return err
	}
	have := make([]byte, len(data))
	if err := s.opts.Bucket.ReadAt(ctx, key, have, 0); err != nil {
		return err
	}
	if !bytes.Equal(have, data) {
		return err
	}
	return nil
}

// removeSnapshots removes all snapshots but for the newest that are complete, and returns
// how many. What cannot be removed now stays until the next time.
func (s *Store) removeSnapshots(ctx context.Context, old []snapshotObjects) (removed int) {
	kept := 1 // the new one
	for _, o := range slices.Backward(old) {
		if o.complete && kept < snapshotsKept {
			kept++
			continue
		}
		for _, key := range slices.Backward(o.keys) { // the manifest first
			if err := s.opts.Bucket.Delete(ctx, key); err != nil {
				s.log.Warn("could not remove an old snapshot", "id", o.id, "err", err)
				return removed
			}
		}
		removed++
	}
	return removed
}

// Snapshots writes a snapshot whenever the last one in the bucket is so old, if there are
// new packs, and returns when ctx ends. It is to have returned before Close is called.
func (s *Store) Snapshots(ctx context.Context, every time.Duration) {
	// Without any there is no hurry: who has just been started may be stopped again.
	if sleep(ctx, min(every, firstSnapshot)) != nil {
		return
	}
	last, err := s.lastSnapshot(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("which snapshots of the index there are is not known", "err", err)
	}
	wait := time.Until(last.Created.Add(every))
	for sleep(ctx, wait) == nil {
		wait = every
		if marks, err := s.ix.Marks(ctx); err == nil && len(marks) == last.Packs {
			continue
		}
		report, err := s.WriteSnapshot(ctx)
		if err == nil {
			last.Packs = report.Packs
			continue
		}
		wait = min(every, snapshotRetry)
		if ctx.Err() == nil {
			s.log.Error("could not write a snapshot of the index", "try again in", wait, "err", err)
		}
	}
}

const (
	firstSnapshot = 10 * time.Minute
	snapshotRetry = time.Hour
)

// lastSnapshot returns the newest manifest that can be read, the zero one if there is none.
func (s *Store) lastSnapshot(ctx context.Context) (manifest, error) {
	found, err := listSnapshots(ctx, s.opts.Bucket)
	for _, o := range slices.Backward(found) {
		if m, readErr := readManifest(ctx, s.opts.Bucket, o.id, s.repo.ID); readErr == nil {
			return *m, nil
		} else if o.complete {
			err = cmp.Or(err, readErr)
		}
	}
	return manifest{}, err
}
