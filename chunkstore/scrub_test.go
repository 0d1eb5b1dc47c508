package chunkstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dedupd/dedupd/packfile"
)

// scrubFor scrubs for so long by the clock.
func scrubFor(t *testing.T, s *Store, rate int64, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := s.Scrub(ctx, rate); err != nil {
		t.Fatal(err)
	}
}

func scrubStats(t *testing.T, s *Store) *ScrubStatus {
	t.Helper()
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Scrub
}

// fillPacks puts NARs into packs of their own.
func fillPacks(t *testing.T, s *Store, n int) (nars [][]byte) {
	t.Helper()
	rnd := testSeed(t)
	for range n {
		b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
		putNAR(t, s, b)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		nars = append(nars, b)
	}
	return nars
}

// Scrubbing keeps its rate, goes on where it was after a restart, and begins again after
// a day.
func TestScrub(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := testStore(t, dir)
		fillPacks(t, s, 4)
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total, rate := st.FrameBytes, st.FrameBytes/100
		scrubFor(t, s, rate, 60*time.Second)
		half := scrubStats(t, s)
		if half.Last != nil || half.Current == nil || half.Current.Packs == 0 || half.Current.Packs == 4 || half.Current.Bytes >= total*70/100 {
			t.Fatalf("after 60 of 100 seconds: got %+v", half.Current)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = testStore(t, dir)
		scrubFor(t, s, rate, 90*time.Second)
		full := scrubStats(t, s)
		if full.Current != nil || full.Last == nil {
			t.Fatalf("after 150 seconds: got %+v", full)
		}
		if r := full.Last; r.Packs != 4 || r.Frames != st.Chunks || r.Bytes != total || r.Damaged != 0 || r.BadPacks != 0 ||
			!r.Started.Equal(half.Current.Started) || r.Finished.Sub(r.Started) < 90*time.Second {
			t.Errorf("got %v, want 4 packs, %d frames, %d bytes", r, st.Chunks, total)
		}
		scrubFor(t, s, 1<<40, 23*time.Hour)
		if again := scrubStats(t, s); !again.Last.Started.Equal(full.Last.Started) {
			t.Errorf("a round began early, at %v", again.Last.Started)
		}
		scrubFor(t, s, 1<<40, 2*time.Hour)
		if again := scrubStats(t, s); again.Last.Started.Before(full.Last.Started.Add(scrubEvery)) || again.Last.Frames != st.Chunks {
			t.Errorf("a day later: got %v from %v", again.Last, again.Last.Started)
		}
		var text strings.Builder
		if st, err = s.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := st.WriteText(&text); err != nil || !strings.Contains(text.String(), "scrubbed") {
			t.Errorf("text: %v\n%s", err, text.String())
		}
	})
}

// What scrubbing finds is marked before anybody reads it, and a plain upload heals it.
func TestScrubFindsDamage(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := testStore(t, dir)
		nars := fillPacks(t, s, 1)
		path, pack, _ := onePack(t, dir)
		if err := flip(path, pack.Offsets[0]+100); err != nil {
			t.Fatal(err)
		}
		scrubFor(t, s, 1<<40, time.Hour)
		if r := scrubStats(t, s).Last; r.Damaged != 1 || r.BadPacks != 0 {
			t.Errorf("got %v, want one damaged chunk", r)
		}
		if _, err := s.Object(t.Context(), sha256.Sum256(nars[0])); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("object: got %v", err)
		}
		if r := checkStore(t, s); r.AbsentPaths != 1 || len(r.AffectedPaths) != 1 {
			t.Errorf("check: got %+v", r)
		}
		putNAR(t, s, nars[0])
		checkNAR(t, s, testSeed(t), nars[0])
	})
}

// A pack whose directory is damaged, or that is gone, is left to "check --repair".
func TestScrubFindsBadPack(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := testStore(t, dir)
		nars := fillPacks(t, s, 2)
		packs, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
		if err != nil || len(packs) != 2 {
			t.Fatalf("%d packs (%v)", len(packs), err)
		}
		if err := flip(packs[0], 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(packs[1]); err != nil {
			t.Fatal(err)
		}
		scrubFor(t, s, 1<<40, time.Hour)
		if r := scrubStats(t, s).Last; r.BadPacks != 2 || r.Packs != 0 || r.Damaged != 0 {
			t.Errorf("got %v, want two bad packs", r)
		}
		if r := mustCheck(t, s, CheckOptions{Repair: true}); !r.OK() || r.Repaired != 2 || r.AffectedPathCount != 1 {
			t.Errorf("repair: got %+v", r)
		}
		checkNAR(t, s, testSeed(t), nars[0])
		putNAR(t, s, nars[1])
		checkNAR(t, s, testSeed(t), nars[1])
	})
}

// While the bucket cannot be reached scrubbing waits, and marks nothing.
func TestScrubWaits(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &failing{}
		s := testStore(t, dir, func(o *Options) {
			f.Bucket = o.Bucket
			o.Bucket = f
		})
		fillPacks(t, s, 1)
		f.fail = true
		scrubFor(t, s, 1<<40, time.Hour)
		if st := scrubStats(t, s); st.Last != nil {
			t.Errorf("a round ended: %v", st.Last)
		}
		f.fail = false
		scrubFor(t, s, 1<<40, time.Hour)
		if r := scrubStats(t, s).Last; r == nil || r.Packs != 1 || r.Damaged != 0 || r.BadPacks != 0 {
			t.Errorf("got %v, want one whole pack", r)
		}
	})
}
