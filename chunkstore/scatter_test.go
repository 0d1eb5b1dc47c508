package chunkstore

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// scattered stores files of 100 KiB, each in a pack of its own, and returns a NAR with
// all of them.
func scattered(t *testing.T, s *Store, rnd *rand.Rand, files int) (parts [][]byte, all []byte) {
	t.Helper()
	var together []testFile
	for i := range files {
		f := testFile{name: fmt.Sprintf("f%02d", i), data: randomData(rnd, 100<<10)}
		parts = append(parts, makeNAR(t, f))
		putNAR(t, s, parts[i])
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		together = append(together, f)
	}
	return parts, makeNAR(t, together...)
}

// packsOf returns how many packs a NAR is in.
func packsOf(t *testing.T, s *Store, nar []byte) int {
	t.Helper()
	p, err := s.newPlan(t.Context(), sha256.Sum256(nar))
	if err != nil {
		t.Fatal(err)
	}
	packs := map[uint32]bool{}
	for i := range p.pieces {
		if n := p.pieces[i].loc.Pack; n != 0 {
			packs[n] = true
		}
	}
	return len(packs)
}

// A NAR of chunks that are in many packs has some of them stored again. What has them, too,
// uses the new copies, and damage of these leaves the old ones.
func TestScatter(t *testing.T) {
	const files = 10
	rnd := testSeed(t)
	for max, want := range map[int]int{-1: files, 1: 2, 4: 5, 100: files} {
		t.Run(fmt.Sprint(max), func(t *testing.T) {
			dir := t.TempDir()
			small := func(o *Options) { o.MaxFragments = max }
			s := testStore(t, dir, small)
			parts, all := scattered(t, s, rnd, files)
			check := func() {
				t.Helper()
				for _, nar := range append(slices.Clone(parts), all) {
					checkNAR(t, s, rnd, nar)
				}
			}
			putNAR(t, s, all)
			if got := packsOf(t, s, all); got != want {
				t.Errorf("the NAR is in %d packs, want %d", got, want)
			}
			again := int64(files - min(files, max))
			if max < 0 {
				again = 0
			}
			c := s.Counters()
			literals := again*100<<10 - c.AgainChunkBytes // what is left of a file may be too small for a chunk
			if literals < 0 || literals > again*int64(s.repo.Literal) || (c.AgainChunks == 0) != (again == 0) || c.NewChunkBytes != c.KnownChunkBytes {
				t.Errorf("want %d files stored again: %+v", again, c)
			}
			if r := checkStore(t, s); r.DeadFrames != c.AgainChunks {
				t.Errorf("%d dead frames, want %d", r.DeadFrames, c.AgainChunks)
			}
			check()
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			rows := indexRows(t, s.ix)
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := RebuildIndex(t.Context(), s.opts, RebuildOptions{}); err != nil {
				t.Fatal(err)
			}
			s = testStore(t, dir, small)
			if got := indexRows(t, s.ix); !slices.Equal(got, rows) {
				t.Errorf("rebuilding the index gives\n%q\nwant\n%q", got, rows)
			}
			if again == 0 {
				return
			}
			// Damage of a new copy costs a download, and then the old one is there.
			damageLast(t, s, dir, all)
			o, err := s.Object(t.Context(), sha256.Sum256(all))
			if err != nil {
				t.Fatal(err)
			}
			if err := o.WriteFrames(t.Context(), io.Discard, 0, o.FrameSize()); err == nil {
				t.Fatal("a damaged frame was written")
			}
			check()
			checkStore(t, s)
		})
	}
}

// damageLast flips a byte of the last chunk of a NAR, in the bucket.
func damageLast(t *testing.T, s *Store, dir string, nar []byte) {
	t.Helper()
	p, err := s.newPlan(t.Context(), sha256.Sum256(nar))
	if err != nil {
		t.Fatal(err)
	}
	for _, pp := range slices.Backward(p.pieces) {
		if pp.loc.Pack == 0 {
			continue
		}
		name, err := s.packs.name(t.Context(), pp.loc.Pack)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "bucket", filepath.FromSlash(packKey(name)))
		if err := flip(path, int64(pp.loc.Offset)+int64(pp.loc.Prefix)+50); err != nil {
			t.Fatal(err)
		}
		return
	}
}

// Any window of a NAR needs as many old packs as are allowed, and no more while there are
// others: those that are not needed for a while make room.
func TestScatterWindow(t *testing.T) {
	rnd := testSeed(t)
	for max := 1; max < 6; max++ {
		s := scatter{max: max, packs: newPackTable(nil, nil)}
		type use struct {
			at   int64
			pack uint32
		}
		var kept []use
		for range 5000 {
			u := use{s.at, 1 + rnd.Uint32N(8)}
			before := map[uint32]bool{}
			for _, k := range kept {
				if k.at > s.at-scatterWindow {
					before[k.pack] = true
				}
			}
			keep := s.keep(u.pack)
			if want := before[u.pack] || len(before) < max; keep != want {
				t.Fatalf("at %d: pack %d kept: %v, want %v: the window has %v, %d are allowed", s.at, u.pack, keep, want, before, max)
			}
			if keep {
				kept = append(kept, u)
			}
			s.at += rnd.Int64N(2 << 20)
		}
	}
}
