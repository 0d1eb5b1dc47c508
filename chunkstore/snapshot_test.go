package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// hookedPuts is a bucket that calls before with the key of each object that is put.
type hookedPuts struct {
	bucket.Bucket
	before func(ctx context.Context, key string) error
}

func (b *hookedPuts) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if err := b.before(ctx, key); err != nil {
		return err
	}
	return b.Bucket.Put(ctx, key, r, size)
}

func putLog(t testing.TB, s *Store, name string) {
	t.Helper()
	if _, err := s.PutFile(t.Context(), name, strings.NewReader(strings.Repeat(name, 10_000))); err != nil {
		t.Error(err)
	}
}

func writeSnapshot(t testing.TB, s *Store) *SnapshotReport {
	t.Helper()
	r, err := s.WriteSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// snapshotStore makes a store in dir with a snapshot, with packs before it and after it, and
// commits while it was written. It returns its rows.
func snapshotStore(t *testing.T, dir string) []string {
	t.Helper()
	_, _ = variedStore(t, dir)
	hook := &hookedPuts{}
	s := testStore(t, dir, func(o *Options) { hook.Bucket, o.Bucket = o.Bucket, hook })
	hook.before = func(_ context.Context, key string) error {
		if strings.HasSuffix(key, ".part") {
			putLog(t, s, "log/while-it-was-written-"+filepath.Base(key))
		}
		return nil
	}
	putLog(t, s, "log/open") // in the pack that is open
	if r := writeSnapshot(t, s); r.Packs < 10 || r.Chunks == 0 || r.Rows == 0 || r.Objects < 2 || r.Bytes == 0 {
		t.Errorf("got %+v", r)
	}
	putLog(t, s, "log/after")
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := allRows(t, s)
	checkStore(t, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return rows
}

// openRestored opens the store in dir without its state directory.
func openRestored(t *testing.T, dir string) *Store {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSnapshot compares the rows of a store, of one that was opened from its snapshot and
// the packs since, and of one that was rebuilt from the packs.
func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	want := snapshotStore(t, dir)
	t.Run("restored", func(t *testing.T) {
		dir := copyDir(t, dir)
		s := openRestored(t, dir)
		if s.recovered.Snapshot == "" || s.recovered.Applied != 2 {
			t.Errorf("snapshot %q, %d packs applied, want the one that was open and the one after it", s.recovered.Snapshot, s.recovered.Applied)
		}
		compareRows(t, allRows(t, s), want)
		checkStore(t, s)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkRows(t, dir, want)
	})
	for _, fromSnapshot := range []bool{false, true} {
		for _, spoil := range []string{"nothing", indexFile, ""} {
			t.Run(fmt.Sprintf("rebuilt, %q gone, from snapshot %v", spoil, fromSnapshot), func(t *testing.T) {
				dir := copyDir(t, dir)
				if err := os.RemoveAll(filepath.Join(dir, "state", spoil)); err != nil {
					t.Fatal(err)
				}
				r, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{FromSnapshot: fromSnapshot})
				if err != nil {
					t.Fatal(err)
				}
				packs := len(readPacks(t, dir))
				if fromSnapshot && (r.Packs != 2 || r.Restored != packs-2 || r.Snapshot == "") || !fromSnapshot && (r.Packs != packs || r.Restored != 0) {
					t.Errorf("got %+v of %d packs", r, packs)
				}
				checkRows(t, dir, want)
			})
		}
	}
}

// TestSnapshotWaits writes a snapshot while no pack gets into the bucket: there is none
// until it has all packs that the snapshot names.
func TestSnapshotWaits(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	refused := 0
	manifest, open := make(chan struct{}), make(chan struct{})
	hook := &hookedPuts{before: func(_ context.Context, key string) error {
		select {
		case <-open:
		default:
			if strings.HasPrefix(key, packPrefix) {
				mu.Lock()
				refused++
				mu.Unlock()
				return errUnreachable
			}
			if strings.HasSuffix(key, manifestName) {
				close(manifest)
			}
		}
		return nil
	}}
	s := testStore(t, dir, func(o *Options) { hook.Bucket, o.Bucket, o.RetryInterval = o.Bucket, hook, time.Millisecond })
	sealed := &request{seal: true}
	putLog(t, s, "log/sealed")
	if err := s.commit(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	putLog(t, s, "log/open")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.WriteSnapshot(ctx)
		done <- err
	}()
	for n := 0; n < 20; time.Sleep(time.Millisecond) { // until it has been tried often
		mu.Lock()
		n = refused
		mu.Unlock()
	}
	if _, err := s.WriteSnapshot(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("a second one: got %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	select {
	case <-manifest:
		t.Error("there is a snapshot of packs that the bucket does not have")
	default:
	}

	close(open)
	if r := writeSnapshot(t, s); r.Packs == 0 || r.Removed != 1 {
		t.Errorf("got %+v, want packs, and one removed that was not complete", r)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestBadSnapshot opens stores whose newest snapshot is not what was written.
func TestBadSnapshot(t *testing.T) {
	dir := t.TempDir()
	want := snapshotStore(t, dir)
	b := rebuildOptions(t, dir).Bucket
	found, err := listSnapshots(t.Context(), b)
	if err != nil || len(found) != 1 || !found[0].complete {
		t.Fatalf("got %+v, %v", found, err)
	}
	id := found[0].id
	edit := func(change func(m *manifest)) func(path string) error {
		return func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			m := new(manifest)
			if err := json.Unmarshal(data, m); err != nil {
				return err
			}
			change(m)
			m.Sum = noSum
			return os.WriteFile(path, sealJSON(m), 0o600)
		}
	}
	cut := func(path string) error { return os.Truncate(path, 100) }
	inMiddle := func(path string) error { return flip(path, 90) }
	for _, tt := range []struct {
		name, file string
		spoil      func(path string) error
	}{
		{"part flipped", "00000000.part", inMiddle},
		{"part cut", "00000000.part", cut},
		{"part empty", "00000000.part", func(path string) error { return os.Truncate(path, 0) }},
		{"part gone", "00000000.part", os.Remove},
		{"manifest flipped", manifestName, inMiddle},
		{"manifest cut", manifestName, cut},
		{"manifest gone", manifestName, os.Remove},
		{"newer", manifestName, edit(func(m *manifest) { m.Version++ })},
		{"other repository", manifestName, edit(func(m *manifest) { m.Repository = strings.Repeat("0", 32) })},
		{"another chunk", manifestName, edit(func(m *manifest) { m.Chunks++ })},
		{"another pack", manifestName, edit(func(m *manifest) { m.Packs++ })},
		{"another row", manifestName, edit(func(m *manifest) { m.Parts[0].Rows++ })},
		{"another byte", manifestName, edit(func(m *manifest) { m.Parts[0].Plain++ })},
		{"huge part", manifestName, edit(func(m *manifest) { m.Parts[0].Plain = 1 << 60 })},
		{"negative part", manifestName, edit(func(m *manifest) { m.Parts[0].Size = -1 })},
		{"no part", manifestName, edit(func(m *manifest) { m.Parts = nil })},
		{"part twice", manifestName, edit(func(m *manifest) { m.Parts = append(m.Parts, m.Parts[0]) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyDir(t, dir)
			path := filepath.Join(dir, "bucket", filepath.FromSlash(id.key(tt.file)))
			if err := tt.spoil(path); err != nil {
				t.Fatal(err)
			}
			s := openRestored(t, dir)
			if s.recovered.Snapshot != "" || s.recovered.Applied != len(readPacks(t, dir)) {
				t.Errorf("got %+v", s.recovered)
			}
			compareRows(t, allRows(t, s), want)

			// With one before it, that is used.
			older := writeSnapshot(t, s)
			bad := newSnapshotID(time.Now(), snapshotID(older.ID))
			for _, name := range []string{manifestName, "00000000.part"} {
				data, err := os.ReadFile(filepath.Join(dir, "bucket", filepath.FromSlash(snapshotID(older.ID).key(name))))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.putObject(t.Context(), bad.key(name), data); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(filepath.Join(dir, "bucket", filepath.FromSlash(bad.key(tt.file)))); err != nil {
				t.Fatal(err)
			}
			s = openRestored(t, dir)
			if s.recovered.Snapshot != older.ID || s.recovered.Applied != 0 {
				t.Errorf("got %+v, want snapshot %s", s.recovered, older.ID)
			}
			compareRows(t, allRows(t, s), want)
			checkStore(t, s)
		})
	}
}

// TestSnapshotsAreRemoved keeps the last two, and nothing of one that was not completed.
func TestSnapshotsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	var ids []string
	for i := range 4 {
		putLog(t, s, fmt.Sprint("log/", i))
		half := newSnapshotID(time.Now(), "")
		if err := s.putObject(t.Context(), half.partKey(0), []byte("x")); err != nil {
			t.Fatal(err)
		}
		r := writeSnapshot(t, s)
		if want := 1 + min(i/2, 1); r.Removed != want || r.ID <= string(half) {
			t.Errorf("snapshot %d: got %+v, want %d removed, and a greater ID than %s", i, r, want, half)
		}
		ids = append(ids, r.ID)
	}
	found, err := listSnapshots(t.Context(), s.opts.Bucket)
	if err != nil || len(found) != 2 || string(found[0].id) != ids[2] || string(found[1].id) != ids[3] || !found[0].complete || !found[1].complete {
		t.Errorf("got %+v, %v, want the last of %v", found, err, ids)
	}
	checkStore(t, s)
}

// TestRestoreIsInterrupted ends a start while it reads a snapshot; the next one begins
// anew, also from what a crash left.
func TestRestoreIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	want := snapshotStore(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	opts := rebuildOptions(t, dir)
	opts.Bucket = &cancelling{opts.Bucket, cancel}
	if _, err := Open(ctx, opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "state", indexFile+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state", indexFile+restoringSuffix), noise(5000, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	checkRows(t, dir, want)
}

// cancelling ends a context when a part of a snapshot is read.
type cancelling struct {
	bucket.Bucket
	cancel func()
}

func (b *cancelling) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if strings.HasSuffix(key, ".part") {
		b.cancel()
	}
	return b.Bucket.ReadAt(ctx, key, p, off)
}

// TestSnapshotNamesMissingPack: a pack that a snapshot has applied, and that is gone, is
// missed as one that an index has applied.
func TestSnapshotNamesMissingPack(t *testing.T) {
	dir := t.TempDir()
	_ = snapshotStore(t, dir)
	lost := readPacks(t, dir)[1].Name
	if err := os.Remove(filepath.Join(dir, "bucket", filepath.FromSlash(packKey(lost)))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, dir); err == nil || !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("got %v", err)
	}
}

// TestSnapshots writes them by the clock.
func TestSnapshots(t *testing.T) {
	s := testStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Snapshots(ctx, time.Millisecond)
	}()
	var ids []snapshotID
	for i := range 3 {
		putLog(t, s, fmt.Sprint("log/", i))
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for {
			found, err := listSnapshots(t.Context(), s.opts.Bucket)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(found); n > 0 && found[n-1].complete && !slices.Contains(ids, found[n-1].id) {
				ids = append(ids, found[n-1].id)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	<-done
	if m, err := s.lastSnapshot(t.Context()); err != nil || m.Packs == 0 {
		t.Errorf("got %+v, %v", m, err)
	}
}

// TestRowReader reads rows that no writer writes.
func TestRowReader(t *testing.T) {
	pack := packfile.Name{Writer: [10]byte{1}, Seq: 1}.String()
	row := func(table byte, key, value string) string {
		return string([]byte{table, byte(len(key))}) + key + string([]byte{byte(len(value))}) + value
	}
	named := row(packRows, "\x00\x00\x00\x05", pack)
	at5 := "\x02\x05\x30\x01\x40\x00\x00\x00\x00\x50" // a location in pack 5
	id := strings.Repeat("i", 32)
	for name, tt := range map[string]struct {
		rows string
		n    int64
		ok   bool
	}{
		"all tables":       {named + row(1, id, at5) + row(2, "r", "x") + row(6, "p", "") + row(8, pack, "\x00\x00\x00\x00\x00\x00\x00\x03"), 5, true},
		"nothing":          {"", 0, true},
		"one row less":     {named, 2, false},
		"one row more":     {named, 0, false},
		"cut":              {named[:len(named)-1], 1, false},
		"length is a lie":  {"\x00\xff\xff\xff\xff\x0f", 1, false},
		"table 9":          {row(9, "k", "v"), 1, false},
		"no key":           {row(2, "", "v"), 1, false},
		"same key twice":   {row(2, "k", "v") + row(2, "k", "v"), 2, false},
		"keys backward":    {row(2, "l", "v") + row(2, "k", "v"), 2, false},
		"tables backward":  {row(3, "k", "v") + row(2, "k", "v"), 2, false},
		"number is short":  {row(0, "\x05", pack), 1, false},
		"pack has no name": {row(0, "\x00\x00\x00\x05", "x"), 1, false},
		"unknown pack":     {row(1, id, at5), 1, false},
		"short ID":         {named + row(1, id[1:], at5), 2, false},
		"no location":      {named + row(1, id, "x"), 2, false},
		"mark of nothing":  {row(8, "x", "\x00\x00\x00\x00\x00\x00\x00\x03"), 1, false},
		"own row":          {row(7, "scrub", "v"), 1, false},
		"short mark":       {row(8, pack, "\x03"), 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			ix, err := index.OpenBolt(filepath.Join(t.TempDir(), indexFile), index.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer ix.Close()
			r := rowReader{ix: ix, numbers: map[uint32]uint32{}}
			if err := r.apply(t.Context(), []byte(tt.rows), tt.n); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
