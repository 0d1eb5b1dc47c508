package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// testFollower opens a follower in dir of what testStore has in of.
func testFollower(t testing.TB, dir, of string, change ...func(*Options)) *Store {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(of, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	follow := func(o *Options) {
		o.Follow, o.FollowInterval, o.Repository = true, time.Hour, Repository{} // who misses a path has it look
		o.Bucket = b
	}
	makeDir(t, dir)
	return testStore(t, dir, append([]func(*Options){follow}, change...)...)
}

// lookNow has a follower look, and returns when it has.
func lookNow(t testing.TB, s *Store) {
	t.Helper()
	for want := s.Following().Looks + 1; s.Following().Looks < want; {
		s.follower.mu.Lock()
		looked := s.follower.looked
		s.follower.mu.Unlock()
		select {
		case s.follower.wake <- struct{}{}:
		default:
		}
		<-looked
	}
}

// sees says whether a store has the path of a NAR; if it has, all of the NAR must be there.
func sees(t testing.TB, s *Store, rnd *rand.Rand, nar []byte) bool {
	t.Helper()
	hash := Hash(sha256.Sum256(nar))
	_, err := s.NarInfo(t.Context(), narinfo.EncodeNix32(hash[:20]))
	if errors.Is(err, ErrNotFound) {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	checkNAR(t, s, rnd, nar)
	return true
}

func TestFollower(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	w := testStore(t, dir)
	old := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, w, old)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	here := filepath.Join(dir, "follower")
	f := testFollower(t, here, dir)
	if !sees(t, f, rnd, old) {
		t.Error("a follower does not see what was there when it was opened")
	}
	fresh := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, w, fresh)
	lookNow(t, f)
	if sees(t, f, rnd, fresh) {
		t.Error("a follower sees what is not in the bucket")
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lookNow(t, f)
	if !sees(t, f, rnd, fresh) {
		t.Error("a follower does not see what is in the bucket")
	}

	hash := Hash(sha256.Sum256(old))
	_, err := f.PutNAR(t.Context(), narName(hash), failingReader{t}, nil)
	if !errors.Is(err, ErrReadOnly) {
		t.Errorf("PutNAR: got error %v, want ErrReadOnly", err)
	}
	if _, err := f.PutFile(t.Context(), "log/x", failingReader{t}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("PutFile: got error %v, want ErrReadOnly", err)
	}
	if err := f.PutNarInfo(t.Context(), testNarInfo(t, hash, len(old))); !errors.Is(err, ErrReadOnly) {
		t.Errorf("PutNarInfo: got error %v, want ErrReadOnly", err)
	}
	h := f.Health(t.Context())
	if len(h.Read) != 0 || len(h.Write) != 1 || !errors.Is(h.Write[0], ErrReadOnly) {
		t.Errorf("health: got %v", h)
	}
	// It goes on where it was, and its state directory will do for a writer.
	for _, open := range []func() *Store{
		func() *Store { return testFollower(t, here, dir) },
		func() *Store {
			return testStore(t, here, func(o *Options) { o.Bucket = w.opts.Bucket })
		},
	} {
		checkStore(t, f)
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		f = open()
		if n := f.recovered.Applied; n != 0 || !sees(t, f, rnd, fresh) {
			t.Errorf("opened again, it has applied %d packs", n)
		}
	}
}

// A failingReader is not to be read.
type failingReader struct{ t testing.TB }

func (r failingReader) Read([]byte) (int, error) {
	r.t.Error("an upload that is refused was read")
	return 0, io.ErrUnexpectedEOF
}

func TestFollowerRefuses(t *testing.T) {
	dir := t.TempDir()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{State: filepath.Join(dir, "state"), Bucket: b, Follow: true}
	if _, err := Open(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "no repository") {
		t.Errorf("following nothing: got error %v", err)
	}
	down := &gate{Bucket: b, closed: true}
	s, err := Open(t.Context(), Options{State: opts.State, Bucket: down, Repository: DefaultRepository(testStoreDir, Rabin), RetryInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	putNAR(t, s, makeNAR(t, testFile{name: "a", data: []byte("small")}))
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "in the spool and not in the bucket") {
		t.Errorf("with a pack in the spool: got error %v", err)
	}
}

// A gate is a bucket that takes no packs while it is closed, and counts lists.
type gate struct {
	bucket.Bucket
	closed bool

	mu    sync.Mutex
	lists int
	err   error // of lists
}

func (g *gate) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if g.closed && strings.HasPrefix(key, packPrefix) {
		return errors.New("closed")
	}
	return g.Bucket.Put(ctx, key, r, size)
}

func (g *gate) List(ctx context.Context, prefix, after string, fn func(bucket.Info) error) error {
	g.mu.Lock()
	g.lists++
	err := g.err
	g.mu.Unlock()
	if err != nil {
		return err
	}
	return g.Bucket.List(ctx, prefix, after, fn)
}

func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lists
}

// Packs come in any order, and one much later than the others: no path is visible before
// all that it relies on.
func TestFollowerAnyOrder(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	var nars [][]byte
	for range 2 { // writers, one after the other
		w := testStore(t, dir, func(o *Options) { o.PackSize = 1 << 20 })
		for i := range 12 {
			files := []testFile{{name: "own", data: randomData(rnd, 100<<10)}}
			for j := range min(len(nars), 3) { // a file of each of three earlier ones
				old := nars[rnd.IntN(len(nars))]
				files = append(files, testFile{name: fmt.Sprintf("shared%d", j), data: old[200 : 200+100<<10]})
			}
			nar := makeNAR(t, files...)
			putNAR(t, w, nar)
			nars = append(nars, nar)
			if i%2 == 0 {
				if err := w.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	packs := bucketPacks(t, dir)
	orders := map[string]func() []string{
		"reverse": func() []string { slices.Reverse(packs); return packs },
		"random": func() []string {
			rnd.Shuffle(len(packs), func(i, j int) { packs[i], packs[j] = packs[j], packs[i] })
			return packs
		},
		"one late": func() []string {
			slices.Sort(packs)
			late := rnd.IntN(len(packs) - 1)
			return append(slices.Delete(slices.Clone(packs), late, late+1), packs[late])
		},
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "of")
			b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
			if err != nil {
				t.Fatal(err)
			}
			to, err := bucket.Open(t.Context(), "file://"+makeDir(t, copied, "bucket"))
			if err != nil {
				t.Fatal(err)
			}
			copyObject(t, b, to, repositoryKey)
			f := testFollower(t, t.TempDir(), copied)
			seen := 0
			for _, key := range order() {
				copyObject(t, b, to, key)
				lookNow(t, f)
				lookNow(t, f) // the first look may have begun before
				seen = 0
				for _, nar := range nars {
					if sees(t, f, rnd, nar) {
						seen++
					}
				}
			}
			if seen != len(nars) || f.Following().Waiting != 0 {
				t.Errorf("with all packs there, %d of %d paths are visible: %+v", seen, len(nars), f.Following())
			}
		})
	}
}

func makeDir(t testing.TB, elem ...string) string {
	t.Helper()
	path := filepath.Join(elem...)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// bucketPacks returns the keys of the packs of a store in dir.
func bucketPacks(t testing.TB, dir string) (keys []string) {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	err = b.List(t.Context(), packPrefix, "", func(info bucket.Info) error {
		keys = append(keys, info.Key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func copyObject(t testing.TB, from, to bucket.Bucket, key string) {
	t.Helper()
	info, err := from.Stat(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, info.Size)
	if err := from.ReadAt(t.Context(), key, data, 0); err != nil {
		t.Fatal(err)
	}
	if err := to.Put(t.Context(), key, bytes.NewReader(data), info.Size); err != nil {
		t.Fatal(err)
	}
}

// A look costs one list, and misses do not add to that without limit.
func TestFollowerLists(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	w := testStore(t, dir)
	var g *gate
	f := testFollower(t, filepath.Join(dir, "follower"), dir, func(o *Options) {
		g = &gate{Bucket: o.Bucket}
		o.Bucket = g
	})
	nar := makeNAR(t, testFile{name: "a", data: randomData(rnd, 10<<10)})
	putNAR(t, w, nar)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lookNow(t, f)
	before, looks := g.count(), f.Following().Looks
	for range 20 {
		lookNow(t, f)
	}
	if lists, looks := g.count()-before, f.Following().Looks-looks; int64(lists) != looks {
		t.Errorf("%d looks made %d lists, want one each", looks, lists)
	}
	var wg sync.WaitGroup
	before = g.count()
	for range 50 {
		wg.Go(func() {
			if _, err := f.NarInfo(t.Context(), strings.Repeat("0", 32)); !errors.Is(err, ErrNotFound) {
				t.Errorf("got error %v, want ErrNotFound", err)
			}
		})
	}
	wg.Wait()
	if n := g.count() - before; n > 2 {
		t.Errorf("50 misses within a tenth of the interval made %d lists", n)
	}

	// Without the bucket, what is known is served, and what is not is missed at once.
	g.fail(errors.New("unreachable"))
	lookNow(t, f)
	if st := f.Following(); st.Err == "" || st.Failed == 0 || !sees(t, f, rnd, nar) {
		t.Errorf("without a bucket: %+v", st)
	}
	if h := f.Health(t.Context()); len(h.Read) != 1 || !strings.Contains(h.Read[0].Error(), "unreachable") {
		t.Errorf("health without a bucket: got %v", h.Read)
	}
	g.fail(nil)
	lookNow(t, f)
	if st := f.Following(); st.Err != "" {
		t.Errorf("with the bucket back: %+v", st)
	}
}

// Damage that the writer has written down is known to a follower; what it finds itself
// ends the response, and stays.
func TestFollowerDamage(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	w := testStore(t, dir)
	nar := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	hash := putNAR(t, w, nar)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := testFollower(t, filepath.Join(dir, "follower"), dir)
	if !sees(t, f, rnd, nar) {
		t.Fatal("the follower does not see the path")
	}
	key := bucketPacks(t, dir)[0]
	if err := os.Remove(filepath.Join(dir, "bucket", key)); err != nil {
		t.Fatal(err)
	}
	read := func(s *Store) error {
		o, err := s.Object(t.Context(), hash)
		if err != nil {
			return err
		}
		return o.WritePlain(t.Context(), io.Discard, 0, int64(len(nar)))
	}
	for range 2 {
		if err := read(f); !isDamage(err) {
			t.Errorf("follower, pack gone: got error %v", err)
		}
	}
	if f.Counters().DamagedChunks == 0 {
		t.Error("a follower has counted no damage")
	}
	before := f.DamageCount()
	if err := read(w); !isDamage(err) {
		t.Errorf("writer, pack gone: got error %v", err)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lookNow(t, f)
	lookNow(t, f)
	if f.DamageCount() == before {
		t.Error("the follower does not know of the damage")
	}
	if has, err := f.HasPath(t.Context(), narinfo.EncodeNix32(hash[:20])); has || err != nil {
		t.Errorf("HasPath: got %v, %v, want false", has, err)
	}
	putNAR(t, w, nar)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lookNow(t, f)
	lookNow(t, f)
	if !sees(t, f, rnd, nar) {
		t.Error("what was uploaded again is not visible")
	}
	for _, s := range []*Store{f, w} { // the pack stays away, which check says
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCursor(t *testing.T) {
	start := time.Now()
	for _, c := range []struct {
		name string
		saw  []uint64
		wait time.Duration // before the last advance
		low  uint64
	}{
		{"nothing", nil, time.Hour, 0},
		{"in order", []uint64{1, 2, 3}, 0, 3},
		{"backwards", []uint64{3, 2, 1}, 0, 3},
		{"again", []uint64{1, 1, 2, 1}, 0, 2},
		{"gap", []uint64{1, 3, 4}, time.Minute, 1},
		{"gap for long", []uint64{1, 3, 4}, time.Hour, 4},
		{"two gaps, one for long", []uint64{1, 3, 5}, time.Hour, 3},
		{"late", []uint64{2, 3, 1}, time.Hour, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			cur := &cursor{ahead: map[uint64]bool{}}
			for _, seq := range c.saw {
				cur.saw(seq)
			}
			cur.advance(start, 10*time.Minute)
			cur.advance(start.Add(c.wait), 10*time.Minute)
			if cur.low != c.low {
				t.Errorf("got cursor at %d, want %d", cur.low, c.low)
			}
		})
	}
	cur := &cursor{ahead: map[uint64]bool{}}
	for seq := range uint64(maxOvertaking + 1) {
		cur.saw(seq + 10)
	}
	if cur.low != maxOvertaking+10 || len(cur.ahead) != 0 {
		t.Errorf("far ahead: got cursor at %d with %d ahead", cur.low, len(cur.ahead))
	}
	// The keys of a writer that come behind its cursor.
	w := writerID{1, 2, 3}
	for seq, behind := range map[uint64]bool{cur.low: false, cur.low + 1: true, 1: false, maxOvertaking * 100: true} {
		key := packKey(packfile.Name{Writer: w, Seq: seq, Rand: 0xffffffff})
		if got := key > cur.after(w); got != behind {
			t.Errorf("pack %d is behind the cursor: got %v, want %v", seq, got, behind)
		}
	}
}
