package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// A crash is the state and the bucket of a store that was killed: copies of them, to be
// damaged and opened again.
type crash struct {
	dir     string
	nars    [][]byte // acknowledged, in their order
	journal string   // relative to dir
	frames  string
	ends    []int64 // of the journal's entries: two for each NAR, its own and its narinfo's
}

// neverSeal keeps everything in one open pack.
func neverSeal(o *Options) { o.PackSize, o.FlushInterval = 1<<30, time.Hour }

// newCrash puts NARs into a store and takes a copy of it that is not closed. If indexed,
// the index on disk has all of them.
func newCrash(t *testing.T, n int, indexed bool) *crash {
	t.Helper()
	rnd := testSeed(t)
	dir := t.TempDir()
	s := testStore(t, dir, neverSeal)
	c := &crash{}
	for i := range n {
		b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 3000)}, testFile{name: "b", data: fmt.Append(nil, i)})
		putNAR(t, s, b)
		c.nars = append(c.nars, b)
	}
	if indexed {
		if err := s.ix.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.dir = copyDir(t, dir)
	c.journal, c.frames = c.find(t, journalSuffix), c.find(t, framesSuffix)
	c.ends = journalEnds(t, filepath.Join(c.dir, c.journal))
	if len(c.ends) != 2*n {
		t.Fatalf("journal has %d entries for %d NARs", len(c.ends), n)
	}
	return c
}

// find returns the one file in the spool with a suffix.
func (c *crash) find(t *testing.T, suffix string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "state", "spool", "*", "*"+suffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("got %v, %v for %s", files, err, suffix)
	}
	rel, err := filepath.Rel(c.dir, files[0])
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// journalEnds returns where the entries of a journal end.
func journalEnds(t *testing.T, path string) (ends []int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(b)
	j, err := packfile.NewJournalReader(r)
	for err == nil {
		if _, err = j.Next(); err == nil {
			ends = append(ends, int64(len(b)-r.Len()))
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	return ends
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// reopen opens a copy of the crash after it was damaged.
func (c *crash) reopen(t *testing.T, damage func(dir string)) (*Store, string, error) {
	t.Helper()
	dir := copyDir(t, c.dir)
	damage(dir)
	s, err := openStore(t, dir)
	return s, dir, err
}

// openStore is testStore for stores that may not open.
func openStore(t *testing.T, dir string, change ...func(*Options)) (*Store, error) {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		State: filepath.Join(dir, "state"), Bucket: b, Repository: DefaultRepository(testStoreDir, Rabin),
		Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&opts)
	}
	s, err := Open(t.Context(), opts)
	if err == nil {
		t.Cleanup(func() { s.Close(context.WithoutCancel(t.Context())) })
	}
	return s, err
}

// checkRecovered checks that the first commits are there, whole, and no others: each NAR
// is two, its own and its narinfo's.
func (c *crash) checkRecovered(t *testing.T, s *Store, commits int) {
	t.Helper()
	ctx := t.Context()
	for i, b := range c.nars {
		hash := Hash(sha256.Sum256(b))
		_, errFile := s.File(ctx, narName(hash))
		_, errObject := s.Object(ctx, hash)
		_, errInfo := s.NarInfo(ctx, testNarInfo(t, hash, len(b)).StorePath.HashPart())
		if want := 2*i < commits; want != (errFile == nil) || want != (errObject == nil) {
			t.Fatalf("%d commits: NAR %d: got %v, %v", commits, i, errFile, errObject)
		}
		if want := 2*i+1 < commits; want != (errInfo == nil) {
			t.Fatalf("%d commits: narinfo %d: got %v", commits, i, errInfo)
		}
		for _, err := range []error{errFile, errObject, errInfo} {
			if err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatalf("%d commits: NAR %d: got %v", commits, i, err)
			}
		}
	}
	checkStore(t, s)
}

// checkWorks checks that the store takes in everything again and gives it back.
func (c *crash) checkWorks(t *testing.T, s *Store) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, b := range c.nars {
		putNAR(t, s, b)
		checkNAR(t, s, rnd, b)
	}
	checkStore(t, s)
}

func truncateFile(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// TestTornJournal cuts the journal at every byte of its last entry, around the ends of
// all, and here and there: every commit before is there, and nothing of what was cut.
func TestTornJournal(t *testing.T) {
	c := newCrash(t, 3, false)
	last := c.ends[len(c.ends)-1]
	step := int64(1)
	if testing.Short() {
		step = 37
	}
	var sizes []int64
	for size := c.ends[len(c.ends)-2]; size <= last; size += step {
		sizes = append(sizes, size)
	}
	for size := int64(0); size < last; size += 101 {
		sizes = append(sizes, size)
	}
	for _, end := range c.ends {
		sizes = append(sizes, end-1, end, min(end+1, last))
	}
	slices.Sort(sizes)
	for i, size := range slices.Compact(sizes) {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			s, dir, err := c.reopen(t, func(dir string) { truncateFile(t, filepath.Join(dir, c.journal), size) })
			if err != nil {
				t.Fatal(err)
			}
			commits := 0
			for commits < len(c.ends) && c.ends[commits] <= size {
				commits++
			}
			c.checkRecovered(t, s, commits)
			if i%20 == 0 {
				c.checkWorks(t, s)
			}
			checkSpool(t, s, dir)
		})
	}
}

// listSpool returns the files in the spool with their sizes.
func listSpool(t *testing.T, dir string) (files []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "state", "spool", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, fmt.Sprintf("%s, %d bytes", info.Name(), info.Size()))
	}
	return files
}

// checkSpool checks that once everything is in the bucket nothing is left in the spool.
func checkSpool(t *testing.T, s *Store, dir string) {
	t.Helper()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if files := listSpool(t, dir); len(files) > 0 {
		t.Errorf("left in the spool: %v", files)
	}
}

// TestDamagedSpool changes the files of the spool in other ways than a crash in the
// middle of a write does.
func TestDamagedSpool(t *testing.T) {
	loose := newCrash(t, 2, false)
	indexed := newCrash(t, 2, true)
	all := len(loose.ends)
	appendTo := func(path string, b []byte) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		crash   *crash
		damage  func(c *crash, dir string)
		commits int // recovered, -1 for a store that does not open
	}{
		{"nothing", loose, func(*crash, string) {}, all},
		{"nothing, index ahead", indexed, func(*crash, string) {}, all},
		{"zeros behind the journal", loose, func(c *crash, dir string) { appendTo(filepath.Join(dir, c.journal), make([]byte, 4096)) }, all},
		{"garbage behind the journal", loose, func(c *crash, dir string) { appendTo(filepath.Join(dir, c.journal), noise(100, 1)) }, all},
		{"frames of an unfinished commit", loose, func(c *crash, dir string) { appendTo(filepath.Join(dir, c.frames), noise(100, 1)) }, all},
		{"frames, and a tail half written", loose, func(c *crash, dir string) {
			appendTo(filepath.Join(dir, c.frames), noise(100, 1))
			appendTo(filepath.Join(dir, c.journal), make([]byte, 3))
		}, all},
		{"frames too short", loose, func(c *crash, dir string) {
			info, err := os.Stat(filepath.Join(dir, c.frames))
			if err != nil {
				t.Fatal(err)
			}
			truncateFile(t, filepath.Join(dir, c.frames), info.Size()-1)
		}, -1},
		{"frames are gone", loose, func(c *crash, dir string) { remove(filepath.Join(dir, c.frames)) }, -1},
		{"journal shorter than the index", indexed, func(c *crash, dir string) { truncateFile(t, filepath.Join(dir, c.journal), c.ends[2]) }, -1},
		{"journal gone that the index has", indexed, func(c *crash, dir string) { remove(filepath.Join(dir, c.journal)) }, -1},
		{"spool gone that the index has", indexed, func(c *crash, dir string) { remove(filepath.Join(dir, "state", "spool")) }, -1},
		{"index is gone", indexed, func(c *crash, dir string) { remove(filepath.Join(dir, "state", "index.bolt")) }, all},
		{"journal was never written", loose, func(c *crash, dir string) { remove(filepath.Join(dir, c.journal)) }, 0},
		{"journal of a newer version", loose, func(c *crash, dir string) {
			path := filepath.Join(dir, c.journal)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[8] = 2
			if err := os.WriteFile(path, append(b[:34:34], crc32c(b[:34])...), 0o600); err != nil {
				t.Fatal(err)
			}
		}, -1},
		{"only an empty frames file", loose, func(c *crash, dir string) {
			remove(filepath.Join(dir, c.journal))
			truncateFile(t, filepath.Join(dir, c.frames), 0)
		}, 0},
		{"only an empty journal", loose, func(c *crash, dir string) {
			remove(filepath.Join(dir, c.frames))
			truncateFile(t, filepath.Join(dir, c.journal), 0)
		}, 0},
		{"both empty", loose, func(c *crash, dir string) {
			truncateFile(t, filepath.Join(dir, c.frames), 0)
			truncateFile(t, filepath.Join(dir, c.journal), 0)
		}, 0},
		{"an upload in the staging directory", loose, func(c *crash, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "state", "staging", "upload-1"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var before []string
			s, dir, err := tt.crash.reopen(t, func(dir string) {
				tt.damage(tt.crash, dir)
				before = listSpool(t, dir)
			})
			if tt.commits < 0 {
				if err == nil {
					t.Error("the store opens")
				}
				t.Logf("refused: %v", err)
				// Somebody may know better what to do with what is there.
				if after := listSpool(t, dir); !slices.Equal(after, before) {
					t.Errorf("the spool had %v, and has %v", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.crash.checkRecovered(t, s, tt.commits)
			tt.crash.checkWorks(t, s)
			checkSpool(t, s, dir)
			if staged, err := os.ReadDir(filepath.Join(dir, "state", "staging")); err != nil || len(staged) > 0 {
				t.Errorf("staging directory: %v, %v", staged, err)
			}
		})
	}
}

// crc32c returns a checksum as it stands in files.
func crc32c(b []byte) []byte {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return binary.LittleEndian.AppendUint32(nil, sum)
}

// TestSealedLeftovers opens a spool with a sealed pack in it, whose journal the crash
// left too, and a bucket that has it already or not.
func TestSealedLeftovers(t *testing.T) {
	c := newCrash(t, 2, false)
	journal, err := os.ReadFile(filepath.Join(c.dir, c.journal))
	if err != nil {
		t.Fatal(err)
	}
	// Opening seals and uploads; then the sealed pack is put back.
	s, dir, err := c.reopen(t, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rel := strings.TrimSuffix(c.journal, journalSuffix)
	inBucket := filepath.Join("bucket", "packs", strings.TrimPrefix(filepath.ToSlash(rel), "state/spool/")+packSuffix)
	pack, err := os.ReadFile(filepath.Join(dir, inBucket))
	if err != nil {
		t.Fatal(err)
	}
	put := func(t *testing.T, path string, b []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name                     string
		journal, uploaded, index bool
		damage                   bool
	}{
		{"sealed", false, false, false, false},
		{"sealed, journal left", true, false, false, false},
		{"sealed and uploaded", false, true, false, false},
		{"sealed and uploaded, journal left", true, true, false, false},
		{"sealed, uploaded and indexed", false, true, true, false},
		{"sealed and indexed", false, false, true, false},
		{"sealed and damaged", false, false, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyDir(t, dir)
			b := slices.Clone(pack)
			if tt.damage {
				b[len(b)-100]++
			}
			put(t, filepath.Join(dir, rel+packSuffix), b)
			if tt.journal {
				put(t, filepath.Join(dir, c.journal), journal)
			}
			if !tt.uploaded {
				if err := os.Remove(filepath.Join(dir, inBucket)); err != nil {
					t.Fatal(err)
				}
			}
			if !tt.index {
				if err := os.Remove(filepath.Join(dir, "state", "index.bolt")); err != nil {
					t.Fatal(err)
				}
			}
			s, err := openStore(t, dir)
			if err != nil {
				t.Fatal(err)
			}
			if tt.damage {
				// What the index has is saved, see TestSalvage: here there is none.
				checkAside(t, s, 1)
				c.checkRecovered(t, s, 0)
				c.checkWorks(t, s)
				return
			}
			c.checkRecovered(t, s, len(c.ends))
			c.checkWorks(t, s)
			checkSpool(t, s, dir)
		})
	}
}

func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	if _, err := openStore(t, dir); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, dir); err != nil {
		t.Errorf("after it was closed: %v", err)
	}
}

func TestOpenOtherSettings(t *testing.T) {
	dir := t.TempDir()
	if err := testStore(t, dir).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"splitter":   func(o *Options) { o.Repository = DefaultRepository(testStoreDir, FastCDC) },
		"store":      func(o *Options) { o.Repository.StoreDir = "/gnu/store" },
		"sizes":      func(o *Options) { o.Repository.MinSize /= 2 },
		"polynomial": func(o *Options) { o.Repository.Polynomial = "3da3358b4dc173" },
		"literal":    func(o *Options) { o.Repository.Literal = 0 },
	} {
		_, err := openStore(t, dir, change)
		if err == nil || !strings.Contains(err.Error(), "other settings") {
			t.Errorf("another %s: got %v", name, err)
		}
	}
	if _, err := openStore(t, dir); err != nil {
		t.Errorf("the same: %v", err)
	}
}

// TestIndexRebuilt deletes the index of a store with packs in the bucket and the spool.
func TestIndexRebuilt(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	s := testStore(t, dir, func(o *Options) { o.PackSize = 256 << 10 })
	var nars [][]byte
	for range 6 {
		b := randomNAR(t, rnd)
		putNAR(t, s, b)
		nars = append(nars, b)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := makeNAR(t, testFile{name: "late", data: randomData(rnd, 100<<10)})
	putNAR(t, s, late)
	crashed := copyDir(t, dir)
	want := indexRows(t, s.ix)

	if err := os.Remove(filepath.Join(crashed, "state", "index.bolt")); err != nil {
		t.Fatal(err)
	}
	r, err := openStore(t, crashed)
	if err != nil {
		t.Fatal(err)
	}
	if got := indexRows(t, r.ix); !slices.Equal(got, want) {
		t.Errorf("the index has %d rows, had %d before", len(got), len(want))
	}
	for _, b := range append(nars, late) {
		checkNAR(t, r, rnd, b)
	}
	checkStore(t, r)
}

// TestOtherBucket opens a state directory with a bucket that is not its own.
func TestOtherBucket(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	s := testStore(t, dir)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 100<<10)})
	putNAR(t, s, b)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	right := filepath.Join(dir, "bucket")
	if err := os.Rename(right, right+".away"); err != nil {
		t.Fatal(err)
	}
	_, err := openStore(t, dir)
	if err == nil || !strings.Contains(err.Error(), "right bucket") {
		t.Errorf("empty bucket: got %v", err)
	}
	if err := errors.Join(os.RemoveAll(right), os.Rename(right+".away", right)); err != nil {
		t.Fatal(err)
	}
	r, err := openStore(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	checkNAR(t, r, rnd, b)
}

// The name of the state directory means nothing: not to the code that looks for packs.
func TestOddStateDirectory(t *testing.T) {
	rnd := testSeed(t)
	dir := filepath.Join(t.TempDir(), "a [b] *")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 5000)})
	s := testStore(t, dir)
	putNAR(t, s, b)
	copied := filepath.Join(t.TempDir(), "c [d] *")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, copied)
	checkNAR(t, s, rnd, b)
}
