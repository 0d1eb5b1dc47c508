package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// damagedStore returns a store whose bucket has a NAR, and what it is, after spoil was
// called with the one pack's path.
func damagedStore(t *testing.T, dir string, spoil func(path string) error) (*Store, []byte) {
	t.Helper()
	rnd := testSeed(t)
	s := testStore(t, dir)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 900<<10)}, testFile{name: "b", data: randomData(rnd, 900<<10)})
	putNAR(t, s, b)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("%d packs (%v)", len(packs), err)
	}
	if err := spoil(packs[0]); err != nil {
		t.Fatal(err)
	}
	return s, b
}

// flip changes one byte of a file.
func flip(path string, off int64) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0x40
	_, err = f.WriteAt(b[:], off)
	return err
}

// checkDamaged reads a NAR until its damage is known, and sees that it counts as absent.
func checkDamaged(t *testing.T, s *Store, b []byte) {
	t.Helper()
	for i := 0; ; i++ {
		o, err := s.Object(t.Context(), sha256.Sum256(b))
		if errors.Is(err, packfile.ErrCorrupt) {
			break
		}
		if err != nil || i > 50 {
			t.Fatalf("object: %v after %d reads", err, i)
		}
		var got bytes.Buffer
		if err := o.WritePlain(t.Context(), &got, 0, o.Size()); err == nil {
			t.Fatal("damage was not noticed")
		}
		if !bytes.HasPrefix(b, got.Bytes()) {
			t.Fatal("a wrong byte was written before the error")
		}
	}
	if err := s.PutNarInfo(t.Context(), testNarInfo(t, sha256.Sum256(b), len(b))); !errors.Is(err, packfile.ErrCorrupt) {
		t.Errorf("put narinfo of a damaged NAR: got %v", err)
	}
}

// A plain upload heals what was damaged, for good: also after a restart, and when the
// index is made anew.
func TestDamageIsHealed(t *testing.T) {
	dir := t.TempDir()
	s, b := damagedStore(t, dir, func(path string) error { return flip(path, 400<<10) })
	checkDamaged(t, s, b)
	putNAR(t, s, b)
	check := func(s *Store) {
		t.Helper()
		checkNAR(t, s, testSeed(t), b)
		if r := checkStore(t, s); r.Damaged != 1 || r.DeadFrames != 1 {
			t.Errorf("check counts %d damaged chunks and %d unused frames, want one", r.Damaged, r.DeadFrames)
		}
	}
	check(s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir)
	check(s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "state", "index.bolt")); err != nil {
		t.Fatal(err)
	}
	check(testStore(t, dir))
}

// The same where the damage is in the pack that is still open.
func TestDamageInOpenPackIsHealed(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, s, b)
	open, err := filepath.Glob(filepath.Join(dir, "state", "spool", "*", "*.frames"))
	if err != nil || len(open) != 1 {
		t.Fatalf("%d open packs (%v)", len(open), err)
	}
	if err := flip(open[0], 1000); err != nil {
		t.Fatal(err)
	}
	checkDamaged(t, s, b)
	putNAR(t, s, b)
	checkNAR(t, s, rnd, b)
	for _, forget := range []bool{false, true} {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if forget {
			if err := os.Remove(filepath.Join(dir, "state", "index.bolt")); err != nil {
				t.Fatal(err)
			}
		}
		s = testStore(t, dir)
		checkNAR(t, s, rnd, b)
	}
}

// A path whose NAR is damaged takes another NAR, as of a build that is not reproducible.
func TestDamagedPathTakesAnotherNAR(t *testing.T) {
	dir := t.TempDir()
	s, b := damagedStore(t, dir, func(path string) error { return flip(path, 400<<10) })
	first := testNarInfo(t, sha256.Sum256(b), len(b))
	put := func(b []byte) Hash {
		t.Helper()
		hash := putNAR(t, s, b)
		info := testNarInfo(t, hash, len(b))
		info.StorePath = first.StorePath
		if err := s.PutNarInfo(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		return hash
	}
	served := func() Hash {
		t.Helper()
		info, err := s.NarInfo(t.Context(), first.StorePath.HashPart())
		if err != nil {
			t.Fatal(err)
		}
		return info.NarHash
	}
	rnd := testSeed(t)
	put(makeNAR(t, testFile{name: "other", data: randomData(rnd, 5000)}))
	if served() != first.NarHash {
		t.Error("a whole NAR was replaced")
	}
	checkDamaged(t, s, b)
	second := put(makeNAR(t, testFile{name: "another", data: randomData(rnd, 5000)}))
	if served() != second {
		t.Error("a damaged NAR was not replaced")
	}
	putNAR(t, s, b)
	if served() != first.NarHash {
		t.Error("the healed NAR is not the first any more")
	}
}

// What is damaged is not there, also to a process that did not find the damage.
func TestHasPath(t *testing.T) {
	dir := t.TempDir()
	s, b := damagedStore(t, dir, func(path string) error { return flip(path, 400<<10) })
	other := makeNAR(t, testFile{name: "other", data: randomData(testSeed(t), 5000)})
	putNAR(t, s, other)
	want := func(want bool, b []byte) {
		t.Helper()
		got, err := s.HasPath(t.Context(), testNarInfo(t, sha256.Sum256(b), len(b)).StorePath.HashPart())
		if err != nil || got != want {
			t.Errorf("got %v (%v), want %v", got, err, want)
		}
	}
	want(true, b)
	want(true, other)
	want(false, nil)
	checkDamaged(t, s, b)
	want(false, b)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir)
	want(false, b)
	want(true, other)
	putNAR(t, s, b)
	want(true, b)
}

// A pack that is gone from the bucket is damage too.
func TestLostPackIsHealed(t *testing.T) {
	dir := t.TempDir()
	var lost string
	s, b := damagedStore(t, dir, func(path string) error {
		lost = path
		return os.Rename(path, path+".lost")
	})
	checkDamaged(t, s, b)
	putNAR(t, s, b)
	checkNAR(t, s, testSeed(t), b)
	// Nothing can be said of a store that lacks a pack; here it is again.
	if err := os.Rename(lost+".lost", lost); err != nil {
		t.Fatal(err)
	}
}

// failing is a bucket that cannot be reached.
type failing struct {
	bucket.Bucket
	fail bool
}

var errUnreachable = errors.New("unreachable")

func (f *failing) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if f.fail {
		return errUnreachable
	}
	return f.Bucket.ReadAt(ctx, key, p, off)
}

func (f *failing) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	if f.fail {
		return errUnreachable
	}
	return f.Bucket.Read(ctx, key, off, n, w)
}

func TestUnreachableIsNotDamage(t *testing.T) {
	f := &failing{}
	s := testStore(t, t.TempDir(), func(o *Options) {
		f.Bucket = o.Bucket
		o.Bucket = f
	})
	rnd := testSeed(t)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, s, b)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.fail = true
	o, err := s.Object(t.Context(), sha256.Sum256(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.WritePlain(t.Context(), io.Discard, 0, o.Size()); !errors.Is(err, errUnreachable) || isDamage(err) {
		t.Errorf("got %v", err)
	}
	f.fail = false
	checkNAR(t, s, rnd, b)
	if r := checkStore(t, s); r.Damaged != 0 {
		t.Errorf("%d chunks were marked as damaged", r.Damaged)
	}
}

// An index that describes a chunk wrongly does not make the pack a damaged one.
func TestWrongLocationIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	rnd := testSeed(t)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	hash := putNAR(t, s, b)
	p, err := s.plan(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	change := func(by uint32) {
		t.Helper()
		batch := &index.Batch{}
		for _, pp := range p.pieces {
			if !pp.literal() {
				pp.loc.CRC ^= by
				batch.PutChunk(index.Key(pp.id), pp.loc)
			}
		}
		if err := s.ix.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		s.plans.cache.InvalidateAll()
	}
	for _, sealed := range []bool{false, true} {
		change(1)
		o, err := s.Object(t.Context(), hash)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.WritePlain(t.Context(), io.Discard, 0, o.Size()); !isDamage(err) {
			t.Errorf("sealed %v: got %v", sealed, err)
		}
		if r := mustCheck(t, s, CheckOptions{}); r.OK() || r.Damaged != 0 {
			t.Errorf("sealed %v: check found %q, and %d damaged chunks are known", sealed, r.Problems, r.Damaged)
		}
		change(0)
		checkNAR(t, s, rnd, b)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamageRecord(t *testing.T) {
	d := damage{packfile.Name{Writer: [10]byte{1, 2}, Seq: 3, Rand: 4}, 1 << 33, packfile.ID{5}}
	got, err := decodeDamage(d.encode())
	if err != nil || *got != d {
		t.Errorf("got %+v, %v; want %+v", got, err, d)
	}
	for n := range len(d.encode()) {
		if _, err := decodeDamage(d.encode()[:n]); !errors.Is(err, packfile.ErrCorrupt) && !errors.Is(err, packfile.ErrName) {
			t.Errorf("%d bytes: got %v", n, err)
		}
	}
}
