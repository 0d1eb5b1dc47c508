package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// readPacks reads all packs of the bucket in dir.
func readPacks(t testing.TB, dir string) (packs []*packfile.Pack) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := packfile.ParseName(strings.TrimSuffix(filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path), ".pack"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := packfile.Read(name, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		packs = append(packs, p)
	}
	return packs
}

// applyPacks applies packs in an order to a new index, and returns its rows, each as a
// line. Everything is made visible at once or after every pack.
func applyPacks(t testing.TB, packs []*packfile.Pack, order []int, atOnce bool) []string {
	t.Helper()
	ctx := t.Context()
	ix, err := index.OpenBolt(filepath.Join(t.TempDir(), "index"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	table := newPackTable(nil, ix)
	a := newApplier(ix, testStoreDir)
	for _, i := range order {
		number, err := table.number(ctx, packs[i].Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.frames(ctx, number, packs[i].Name, packfile.HeaderSize, packs[i].Frames); err != nil {
			t.Fatal(err)
		}
		err = packs[i].ForEachCommit(func(n int, c *packfile.Commit) error {
			return a.commit(ctx, newCommitID(packs[i].Name, n), c)
		})
		if err != nil {
			t.Fatal(err)
		}
		if !atOnce {
			if err := a.flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := a.flush(ctx); err != nil {
		t.Fatal(err)
	}
	return indexRows(t, ix)
}

// indexRows returns every row of an index as a line, packs by their names.
func indexRows(t testing.TB, ix index.Index) (rows []string) {
	t.Helper()
	ctx := t.Context()
	s, err := ix.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.ForEachChunk(ctx, func(k index.Key, l index.Location) error {
		name, err := ix.PackName(ctx, l.Pack)
		l.Pack = 0
		rows = append(rows, fmt.Sprintf("chunk %x %s %+v", k, name, l))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []index.Table{index.Recipes, index.Contents, index.Paths, index.Names, index.Packs} {
		err := s.ForEach(ctx, table, nil, func(k, v []byte) error {
			rows = append(rows, fmt.Sprintf("%v %x %x", table, k, v))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err = s.ForEach(ctx, index.Meta, []byte(copiesPrefix), func(k, v []byte) error {
		copies, err := decodeCopies(v)
		rows = append(rows, fmt.Sprintf("%x %+v", k, copies))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// conflictingPacks returns packs of two stores that know nothing of each other, and
// that tell the same things in other words: equal NARs, and other narinfos and files
// for one path and one name. shared is in both.
func conflictingPacks(t testing.TB, rnd *rand.Rand, shared []byte) (packs []*packfile.Pack) {
	t.Helper()
	const path = 1
	for writer := range 2 {
		dir := t.TempDir()
		s := testStore(t, dir)
		both := makeNAR(t, testFile{name: "both", data: shared})
		own := makeNAR(t, testFile{name: "own", data: randomData(rnd, 20<<10)})
		for i, b := range [][]byte{both, own} {
			hash := putNAR(t, s, b)
			v := testVariant(t, path, 0, fmt.Sprintf("key-%d-%d", writer, i), "common")
			v.info.NarHash, v.info.NarSize = hash, uint64(len(b))
			if err := s.PutNarInfo(t.Context(), v.info); err != nil {
				t.Fatal(err)
			}
			if _, err := s.PutFile(t.Context(), fmt.Sprintf("log/%d", i), strings.NewReader(fmt.Sprint("by ", writer))); err != nil {
				t.Fatal(err)
			}
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		packs = append(packs, readPacks(t, dir)...)
	}
	return packs
}

// TestApplyInAnyOrder applies packs in every order, and some of them twice.
func TestApplyInAnyOrder(t *testing.T) {
	rnd := testSeed(t)
	for name, shared := range map[string][]byte{
		"no chunk in two packs": []byte("too short to be a chunk " + testPath),
		"chunks in two packs":   randomData(rnd, 30<<10),
	} {
		t.Run(name, func(t *testing.T) {
			packs := conflictingPacks(t, rnd, shared)
			if len(packs) != 4 {
				t.Fatalf("got %d packs", len(packs))
			}
			var want []string
			n := 0
			permutations(len(packs), func(order []int) {
				again := slices.Concat(order, order[2:], order[:1])
				got := applyPacks(t, packs, again, n%2 == 0)
				n++
				if want == nil {
					want = got
				}
				if !slices.Equal(got, want) {
					t.Errorf("order %v gives %d rows, the first %d:\n%s\nwant\n%s", order, len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
			if len(want) < 10 {
				t.Errorf("only %d rows", len(want))
			}
		})
	}
}

// TestCopiesInAnyOrder applies, in every order, packs that have a chunk in common, and
// others that say that it is damaged in some of them. It is in the one with the highest
// name in which it is not, and nowhere if there is none.
func TestCopiesInAnyOrder(t *testing.T) {
	rnd := testSeed(t)
	enc, err := packfile.NewEncoder(packfile.LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	data := randomData(rnd, 100<<10)
	id := packfile.ChunkID(data, nil)
	f, err := enc.Encode(id, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	name := func(seq int) packfile.Name { return packfile.Name{Writer: [10]byte{1}, Seq: uint64(seq)} }
	for _, test := range []struct {
		packs   int
		damaged []int
	}{{3, nil}, {3, []int{1}}, {3, []int{3}}, {3, []int{2, 3}}, {2, []int{1, 2}}} {
		damaged := test.damaged
		var packs []*packfile.Pack
		add := func(seq int, frames []byte, e packfile.Entry) {
			dir := t.TempDir()
			b, err := bucket.OpenDir(filepath.Join(dir, "bucket"))
			if err != nil {
				t.Fatal(err)
			}
			putPack(t, b, name(seq), append(packfile.Header(name(seq)), frames...), []packfile.Entry{e})
			packs = append(packs, readPacks(t, dir)...)
		}
		for seq := 1; seq <= test.packs; seq++ {
			add(seq, f.Stored, packfile.Entry{Frames: []packfile.FrameInfo{f.Info()}})
		}
		want := "nowhere"
		for seq := 1; seq <= test.packs; seq++ {
			if !slices.Contains(damaged, seq) {
				want = name(seq).String()
			}
		}
		for _, seq := range damaged {
			d := damage{name(seq), packfile.HeaderSize, id}
			c := packfile.Commit{Records: []packfile.Record{{Type: packfile.RecordDamage, Body: d.encode()}}}
			add(10-seq, nil, packfile.Entry{Commit: c.Append(nil)})
		}
		var rows []string
		n := 0
		permutations(len(packs), func(order []int) {
			got := applyPacks(t, packs, slices.Concat(order, order[:2]), n%2 == 0)
			if n++; rows == nil {
				rows = got
			}
			if !slices.Equal(got, rows) {
				t.Errorf("damaged in %v, order %v: got\n%s\nwant\n%s", damaged, order, strings.Join(got, "\n"), strings.Join(rows, "\n"))
			}
		})
		at := "nowhere"
		if strings.HasPrefix(rows[0], "chunk ") {
			at = strings.Fields(rows[0])[2]
		}
		if at != want {
			t.Errorf("damaged in %v: the chunk is in %s, want %s", damaged, at, want)
		}
	}
}

// TestApplyRefusesTheFuture checks that a record of a type that is not known is an
// error: to leave it out would be to lose it.
func TestApplyRefusesTheFuture(t *testing.T) {
	s := testStore(t, t.TempDir())
	a := newApplier(s.ix, testStoreDir)
	for name, r := range map[string]packfile.Record{
		"type 0":      {Type: 0, Body: []byte("x")},
		"type 200":    {Type: 200, Body: []byte("x")},
		"bad content": {Type: packfile.RecordContent, Body: []byte("x")},
		"bad name":    {Type: packfile.RecordName, Body: []byte("x")},
		"bad narinfo": {Type: packfile.RecordNarInfo, Body: []byte("x")},
	} {
		if err := a.commit(t.Context(), commitID{}, &packfile.Commit{Records: []packfile.Record{r}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
