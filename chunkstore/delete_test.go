package chunkstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// A watched bucket calls put before and after every Put of a pack.
type watched struct {
	bucket.Bucket
	put func(when string)
}

func (b *watched) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if !strings.HasPrefix(key, packPrefix) {
		return b.Bucket.Put(ctx, key, r, size)
	}
	b.put("before")
	err := b.Bucket.Put(ctx, key, r, size)
	b.put("after")
	return err
}

// A history is a store that is filled, and copies of it from many moments of that.
type history struct {
	s    *Store
	dir  string
	part string // of the directory that is copied

	mu     sync.Mutex
	acked  [][]byte
	copies []moment
}

// A moment is a copy, and what was acknowledged before it was taken.
type moment struct {
	name, dir string
	acked     [][]byte
}

// newHistory uploads NARs that share some of their chunks, in small packs, from several
// clients. half is called once, in the middle.
func newHistory(t *testing.T, part string, half func(h *history)) *history {
	t.Helper()
	rnd := testSeed(t)
	h := &history{dir: t.TempDir(), part: part}
	// A copy is taken at every third moment: in turn before and after an upload.
	moments := 0
	put := func(when string) {
		if moments++; moments%3 == 1 {
			h.snapshot(t, fmt.Sprint(when, " upload ", (moments+1)/2))
		}
	}
	h.s = testStore(t, h.dir, func(o *Options) {
		// One after another: while a moment is copied nothing may move.
		o.PackSize, o.ParallelPuts, o.Bucket = 256<<10, 1, &watched{o.Bucket, put}
	})
	shared := randomData(rnd, 200<<10)
	const clients, each = 3, 8
	nars := make([][]byte, clients*each)
	for i := range nars {
		nars[i] = makeNAR(t, testFile{name: "a", data: shared[:len(shared)/(1+i%3)]}, testFile{name: "b", data: randomData(rnd, 50<<10+rnd.IntN(150<<10))}, testFile{name: "c", data: fmt.Append(nil, i)})
	}
	for _, part := range [][][]byte{nars[:len(nars)/2], nars[len(nars)/2:]} {
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				for i := c; i < len(part); i += clients {
					putNAR(t, h.s, part[i])
					h.mu.Lock()
					h.acked = append(h.acked, part[i])
					h.mu.Unlock()
				}
			})
		}
		wg.Wait()
		if half != nil {
			half(h)
			half = nil
		}
	}
	if err := h.s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.snapshot(t, "closed")
	if len(h.copies) < 6 {
		t.Fatalf("only %d moments", len(h.copies))
	}
	return h
}

// snapshot takes a copy between two commits. The uploader must wait for it.
func (h *history) snapshot(t *testing.T, name string) {
	h.mu.Lock()
	m := moment{name: name, dir: filepath.Join(t.TempDir(), "copy"), acked: slices.Clone(h.acked)}
	h.mu.Unlock()
	take := func(*openPack) error {
		return os.CopyFS(filepath.Join(m.dir, h.part), os.DirFS(filepath.Join(h.dir, h.part)))
	}
	err := h.s.commit(context.Background(), &request{inspect: take})
	if errors.Is(err, ErrClosed) {
		err = take(nil) // nobody commits any more
	}
	if err != nil {
		t.Errorf("copy %s: %v", name, err)
	}
	h.copies = append(h.copies, m)
}

// completePaths returns the hash parts of the paths whose narinfos are in a bucket with all
// packs that their commits rely on: what a store without state must serve.
func completePaths(t *testing.T, dir string) map[string]bool {
	t.Helper()
	packs := readPacks(t, dir)
	have := map[packfile.Name]bool{}
	for _, p := range packs {
		have[p.Name] = true
	}
	paths := map[string]bool{}
	for _, p := range packs {
		err := p.ForEachCommit(func(_ int, c *packfile.Commit) error {
			for _, r := range c.Records {
				if r.Type != packfile.RecordNarInfo || slices.ContainsFunc(c.Packs, func(n packfile.Name) bool { return !have[n] }) {
					continue
				}
				info, err := narinfo.Parse(r.Body, testStoreDir)
				if err != nil {
					return err
				}
				paths[info.StorePath.HashPart()] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// TestDeleteState deletes the state directory before and after uploads of packs: what was
// in the bucket is served, and nothing else in part.
func TestDeleteState(t *testing.T) {
	h := newHistory(t, "bucket", nil)
	last := 0
	for _, m := range h.copies {
		// What a Put leaves that was interrupted.
		if err := os.WriteFile(filepath.Join(m.dir, "bucket", ".tmp", "half"), noise(1000, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		want := completePaths(t, m.dir)
		s, err := openStore(t, m.dir)
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		served := 0
		for i, b := range h.acked {
			hash := sha256.Sum256(b)
			part := testNarInfo(t, hash, len(b)).StorePath.HashPart()
			is := servedOrAbsent(t, s, b)
			if is != want[part] {
				t.Errorf("%s: NAR %d: served %v", m.name, i, is)
			}
			if _, err := s.NarInfo(t.Context(), part); !is && !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: narinfo %d: %v", m.name, i, err)
			}
			if is {
				served++
			}
		}
		if served < last || served != len(want) {
			t.Errorf("%s: %d paths are served, %d before", m.name, served, last)
		}
		last = served
		if checkStore(t, s); !s.recovered.OK() {
			t.Errorf("%s: %+v", m.name, s.recovered)
		}
		putNAR(t, s, h.acked[len(h.acked)-1])
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if last != len(h.acked) {
		t.Errorf("%d of %d paths at the end", last, len(h.acked))
	}
}

// TestDeleteIndex deletes the index of a store that was killed, or is stopped: nothing is
// lost. In half of the moments it was deleted while the store was running.
func TestDeleteIndex(t *testing.T) {
	gone := false
	h := newHistory(t, ".", func(h *history) {
		gone = true
		if err := os.Remove(filepath.Join(h.dir, "state", indexFile)); err != nil {
			t.Fatal(err)
		}
	})
	if !gone {
		t.Fatal("it was not deleted")
	}
	for _, m := range h.copies {
		if err := os.RemoveAll(filepath.Join(m.dir, "state", indexFile)); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(t, m.dir)
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		for i, b := range m.acked {
			if !servedOrAbsent(t, s, b) {
				t.Errorf("%s: NAR %d of %d is lost", m.name, i, len(m.acked))
			}
		}
		for _, b := range h.acked {
			servedOrAbsent(t, s, b) // never other bytes
		}
		if checkStore(t, s); !s.recovered.OK() {
			t.Errorf("%s: %+v", m.name, s.recovered)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStartReadsTails counts the bytes that opening reads of a spool full of packs: of the
// sealed ones their ends only, and the one that was open.
func TestStartReadsTails(t *testing.T) {
	readBytes(t)
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir, func(o *Options) { o.PackSize, o.Bucket = 1<<20, &noPacks{o.Bucket} })
	for range 16 {
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		putNAR(t, s, makeNAR(t, testFile{name: "a", data: data}))
	}
	if err := s.ix.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed := copyDir(t, dir)

	var all, want int64
	sealed := 0
	err := filepath.WalkDir(filepath.Join(killed, "state", "spool"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n := int64(len(b))
		all += n
		if filepath.Ext(path) != packSuffix {
			want += 2 * n // copied, and then its tail is read
			return nil
		}
		sealed++
		want += packfile.TailGuess(n) + packfile.HeaderSize // the index has it
		return nil
	})
	if err != nil || sealed < 10 {
		t.Fatalf("%d sealed packs: %v", sealed, err)
	}
	want += 256 << 10 // for all else
	if all < 3*want {
		t.Fatalf("the spool has %d bytes, of which %d may be read: that says nothing", all, want)
	}
	before := readBytes(t)
	if _, err := openStore(t, killed, func(o *Options) { o.Bucket = &noPacks{o.Bucket} }); err != nil {
		t.Fatal(err)
	}
	if got := readBytes(t) - before; got > want {
		t.Errorf("opening read %d bytes of a spool of %d, want at most %d", got, all, want)
	}
}

// readBytes returns how many bytes this process has read.
func readBytes(t *testing.T) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err == nil {
		_, err = fmt.Sscanf(string(b), "rchar: %d", &n)
	}
	if err == nil {
		return n
	}
	if os.Getenv("CI") == "true" && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	t.Skipf("what this process reads is not known: %v", err)
	return 0
}
