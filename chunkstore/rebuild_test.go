package chunkstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
)

// allRows is indexRows with the marks.
func allRows(t *testing.T, s *Store) []string {
	t.Helper()
	rows := indexRows(t, s.ix) // makes it durable
	marks, err := s.ix.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, position := range marks {
		rows = append(rows, fmt.Sprintf("mark %s %d", name, position))
	}
	slices.Sort(rows)
	return rows
}

// variedStore fills a store in dir with all that an index can say, in many packs, closes
// it, and returns its rows and a NAR that is in it.
func variedStore(t *testing.T, dir string) (rows []string, nar []byte) {
	t.Helper()
	rnd := testSeed(t)
	s, healed := damagedStore(t, dir, func(path string) error { return flip(path, 400<<10) })
	checkDamaged(t, s, healed)
	putNAR(t, s, healed)
	data := randomData(rnd, 200<<10)
	for i := range 12 {
		// A rebuild: the same but for a hash.
		nar = makeNAR(t, testFile{name: "a", data: append(fmt.Appendf(nil, "/nix/store/%s-x", strings.Repeat(string(rune('a'+i%3)), 32)), data...)},
			testFile{name: "b", data: randomData(rnd, 3000*i)})
		info := testNarInfo(t, putNAR(t, s, nar), len(nar))
		info.StorePath = testNarInfo(t, sha256.Sum256(healed), 0).StorePath
		info.Sigs = testVariant(t, 1, 0, fmt.Sprint("key-", i)).info.Sigs
		if err := s.PutNarInfo(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		for j, size := range []int{100, 20 << 10} {
			if _, err := s.PutFile(t.Context(), fmt.Sprintf("log/%d-%d", i, j), strings.NewReader(string(randomData(rnd, size)))); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rows = allRows(t, s)
	for _, prefix := range []string{"chunk", "recipes", "contents", "paths", "names", "packs", "mark"} {
		if !slices.ContainsFunc(rows, func(row string) bool { return strings.HasPrefix(row, prefix+" ") }) {
			t.Fatalf("no row of %s", prefix)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return rows, nar
}

func rebuildOptions(t *testing.T, dir string) Options {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	return Options{State: filepath.Join(dir, "state"), Bucket: b, Log: slog.New(slog.DiscardHandler)}
}

// checkRows checks that the store in dir opens, has these rows, and nothing is aside.
func checkRows(t *testing.T, dir string, want []string) {
	t.Helper()
	s, err := openStore(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	compareRows(t, allRows(t, s), want)
	checkStore(t, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "state", indexFile+".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func compareRows(t *testing.T, got, want []string) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("row %d: got\n%s\nwant\n%s", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("got %d rows, want %d", len(got), len(want))
	}
}

func TestRebuild(t *testing.T) {
	dir := t.TempDir()
	want, b := variedStore(t, dir)
	for _, tt := range []struct {
		name  string
		spoil string // of the state directory, removed first
	}{{"index there", "nothing"}, {"index gone", indexFile}, {"state gone", ""}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyDir(t, dir)
			if err := os.RemoveAll(filepath.Join(dir, "state", tt.spoil)); err != nil {
				t.Fatal(err)
			}
			var last RebuildProgress
			calls := 0
			report, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{Progress: func(p RebuildProgress) {
				last = p
				calls++
			}})
			if err != nil {
				t.Fatal(err)
			}
			if report.Packs != len(readPacks(t, dir)) || report.Packs != report.Total || report.Chunks == 0 ||
				report.Resumed != 0 || report.Omitted != 0 || len(report.Missing) != 0 {
				t.Errorf("got %+v", report)
			}
			if calls != report.Packs || last.Packs != report.Packs {
				t.Errorf("%d calls, the last with %+v", calls, last)
			}
			checkRows(t, dir, want)
			s, err := openStore(t, dir)
			if err != nil {
				t.Fatal(err)
			}
			checkNAR(t, s, rand.New(rand.NewPCG(1, 1)), b)
		})
	}
}

// TestRebuildIsInterrupted ends rebuilding after every number of packs. The next start
// goes on, and so does rebuilding again.
func TestRebuildIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	want, _ := variedStore(t, dir)
	packs := len(readPacks(t, dir))
	for n := 1; n < packs; n += 4 {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("after %d, again %v", n, again), func(t *testing.T) {
				dir := copyDir(t, dir)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := RebuildIndex(ctx, rebuildOptions(t, dir), RebuildOptions{Progress: func(p RebuildProgress) {
					if p.Packs == n {
						cancel()
					}
				}})
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("got %v", err)
				}
				if again {
					report, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if report.Resumed != n || report.Packs != packs-n {
						t.Errorf("got %+v, want %d packs from before", report, n)
					}
				}
				checkRows(t, dir, want)
			})
		}
	}
	t.Run("before the new index", func(t *testing.T) {
		dir := copyDir(t, dir)
		path := filepath.Join(dir, "state", indexFile)
		if err := os.Rename(path, path+oldSuffix); err != nil {
			t.Fatal(err)
		}
		checkRows(t, dir, want)
	})
}

func TestRebuildRefuses(t *testing.T) {
	dir := t.TempDir()
	_, _ = variedStore(t, dir)
	t.Run("in use", func(t *testing.T) {
		if _, err := openStore(t, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{}); !errors.Is(err, ErrLocked) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("empty bucket", func(t *testing.T) {
		dir := copyDir(t, dir)
		bucket := filepath.Join(dir, "bucket")
		if err := os.RemoveAll(filepath.Join(bucket, "packs")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{}); err == nil || !strings.Contains(err.Error(), "right bucket") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("no repository", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{}); err == nil {
			t.Error("one was created")
		}
	})
}

// TestRebuildTellsWhatIsMissing removes a pack that the index had.
func TestRebuildTellsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	_, _ = variedStore(t, dir)
	lost := readPacks(t, dir)[1].Name
	if err := os.Remove(filepath.Join(dir, "bucket", filepath.FromSlash(packKey(lost)))); err != nil {
		t.Fatal(err)
	}
	report, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(report.Missing, []string{lost.String()}) || report.Omitted == 0 {
		t.Errorf("got %+v", report)
	}
	if _, err := openStore(t, dir); err != nil {
		t.Errorf("open: %v", err)
	}
}

// TestDamagedIndex opens stores whose index is not what was written.
func TestDamagedIndex(t *testing.T) {
	dir := t.TempDir()
	want, _ := variedStore(t, dir)
	whole, err := os.ReadFile(filepath.Join(dir, "state", indexFile))
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	spoiled := map[string][]byte{
		"empty":         {},
		"garbage":       noise(100<<10, 1),
		"zeros":         make([]byte, len(whole)),
		"short garbage": noise(100, 1),
		"no heads":      append(noise(2*page, 2), whole[2*page:]...),
		"only heads":    append(slices.Clone(whole[:2*page]), noise(len(whole)-2*page, 3)...),
		"heads, zeros":  append(slices.Clone(whole[:2*page]), make([]byte, len(whole)-2*page)...),
	}
	for _, size := range []int{1, page, page + 1, 2 * page, 3 * page, 5 * page, len(whole) / 2 / page * page, len(whole) / 3} {
		spoiled[fmt.Sprintf("%d bytes of it", size)] = whole[:size]
	}
	for name, b := range spoiled {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "state", indexFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
			checkRows(t, dir, want)
		})
	}
}

// TestFlippedIndex flips bytes of the index. bbolt has no checksums but in its heads: not
// all that is wrong is noticed, but nothing panics, and rebuilding mends it.
func TestFlippedIndex(t *testing.T) {
	dir := t.TempDir()
	want, _ := variedStore(t, dir)
	path := filepath.Join(dir, "state", indexFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := testSeed(t)
	n := 300
	if testing.Short() {
		n = 30
	}
	failed := 0
	for range n {
		b := slices.Clone(whole)
		at := rnd.IntN(len(b))
		if rnd.IntN(2) == 0 {
			at = at / 4096 * 4096 // heads of pages matter most
			at += rnd.IntN(32)
		}
		b[at] ^= 1 << rnd.IntN(8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ix, err := index.OpenBolt(path, index.Options{})
		if err == nil {
			err = readAll(t.Context(), ix)
			err = errors.Join(err, ix.Close())
		}
		if err != nil {
			failed++
		}
	}
	t.Logf("%d of %d flips were noticed by the index itself", failed, n)
	if _, err := RebuildIndex(t.Context(), rebuildOptions(t, dir), RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	checkRows(t, dir, want)
}

// readAll reads every row.
func readAll(ctx context.Context, ix index.Index) error {
	s, err := ix.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	err = s.ForEachChunk(ctx, func(index.Key, index.Location) error { return nil })
	for t := index.Recipes; t <= index.Meta; t++ {
		err = errors.Join(err, s.ForEach(ctx, t, nil, func(_, _ []byte) error { return nil }))
	}
	return err
}

// A newer index is not damaged: it is left alone.
func TestNewerIndexStays(t *testing.T) {
	dir := t.TempDir()
	_, _ = variedStore(t, dir)
	path := filepath.Join(dir, "state", indexFile)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("index")).Put([]byte("format"), []byte{0, 0, 0, 0, 0, 0, 0, 99})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, dir); !errors.Is(err, index.ErrNewer) {
		t.Errorf("got %v", err)
	}
	if aside, err := exists(path + oldSuffix); aside || err != nil {
		t.Errorf("it was put aside (%v)", err)
	}
}
