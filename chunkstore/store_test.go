package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

const testStoreDir = "/nix/store"

// testStore opens a store in dir, with a bucket beside the state, and closes it when
// the test ends.
func testStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		State: filepath.Join(dir, "state"), Bucket: b, Repository: DefaultRepository(testStoreDir, Rabin),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !s.closed {
			checkStore(t, s)
		}
		if err := s.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// checkStore runs a whole check, which must find nothing.
func checkStore(t testing.TB, s *Store) *CheckReport {
	t.Helper()
	r, err := s.Check(context.WithoutCancel(t.Context()), CheckOptions{ReadData: true})
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	if !r.OK() {
		t.Errorf("check found %d problems: %q", r.ProblemCount, r.Problems)
	}
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// putNAR uploads a NAR uncompressed and its narinfo, and returns the NAR's hash.
func putNAR(t testing.TB, s *Store, b []byte) Hash {
	t.Helper()
	hash := Hash(sha256.Sum256(b))
	f, err := s.PutNAR(t.Context(), narName(hash), bytes.NewReader(b), nil)
	if err != nil {
		t.Fatalf("put NAR: %v", err)
	}
	if f.Content != hash || f.FileHash != hash || f.Size != int64(len(b)) || f.FileSize != f.Size {
		t.Fatalf("put NAR: got %+v", f)
	}
	if err := s.PutNarInfo(t.Context(), testNarInfo(t, hash, len(b))); err != nil {
		t.Fatalf("put narinfo: %v", err)
	}
	return hash
}

func narName(hash Hash) string { return "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar" }

func testNarInfo(t testing.TB, hash Hash, size int) *narinfo.NarInfo {
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-test")
	if err != nil {
		t.Fatal(err)
	}
	return &narinfo.NarInfo{StorePath: path, URL: narName(hash), Compression: "none", NarHash: hash, NarSize: uint64(size)}
}

// checkNAR reads a NAR back as frames, plain, and in ranges of both.
func checkNAR(t testing.TB, s *Store, rnd *rand.Rand, want []byte) {
	t.Helper()
	ctx := t.Context()
	o, err := s.Object(ctx, sha256.Sum256(want))
	if err != nil {
		t.Fatalf("object: %v", err)
	}
	var frames bytes.Buffer
	if err := o.WriteFrames(ctx, &frames, 0, o.FrameSize()); err != nil {
		t.Fatalf("write frames: %v", err)
	}
	if int64(frames.Len()) != o.FrameSize() {
		t.Fatalf("frames are %d bytes, announced %d", frames.Len(), o.FrameSize())
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	if got, err := dec.DecodeAll(frames.Bytes(), nil); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("frames decode to %d bytes (%v), want %d", len(got), err, len(want))
	}
	checkRanges(t, rnd, frames.Bytes(), func(w io.Writer, off, n int64) error { return o.WriteFrames(ctx, w, off, n) })
	checkRanges(t, rnd, want, func(w io.Writer, off, n int64) error { return o.WritePlain(ctx, w, off, n) })
}

func checkRanges(t testing.TB, rnd *rand.Rand, want []byte, write func(w io.Writer, off, n int64) error) {
	t.Helper()
	for i := range 12 {
		off := rnd.Int64N(int64(len(want)) + 1)
		n := rnd.Int64N(int64(len(want)) - off + 1)
		if i == 0 {
			off, n = 0, int64(len(want))
		}
		var got bytes.Buffer
		if err := write(&got, off, n); err != nil {
			t.Fatalf("range %d+%d: %v", off, n, err)
		}
		if !bytes.Equal(got.Bytes(), want[off:off+n]) {
			t.Fatalf("range %d+%d of %d differs", off, n, len(want))
		}
	}
}

// A testFile is a member of a NAR made by makeNAR.
type testFile struct {
	name   string
	data   []byte
	target string // of a symlink if not empty
}

func makeNAR(t testing.TB, files ...testFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(w.WriteHeader(&nar.Header{Type: nar.Directory}))
	for _, f := range files {
		if f.target != "" {
			check(w.WriteHeader(&nar.Header{Path: f.name, Type: nar.Symlink, Target: f.target}))
			continue
		}
		check(w.WriteHeader(&nar.Header{Path: f.name, Type: nar.Regular, Size: int64(len(f.data))}))
		_, err := w.Write(f.data)
		check(err)
	}
	check(w.Close())
	return b.Bytes()
}

// randomData makes contents as they occur, and worse: text and noise with store paths,
// build-ids, zeros and look-alikes in them.
func randomData(rnd *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+200)
	noise := rnd.IntN(2) == 0
	for len(b) < n {
		switch rnd.IntN(40) {
		case 0:
			b = append(b, testStoreDir+"/"+randomHash(rnd)+"-pkg"...)
		case 1:
			b = append(b, buildIDNote...)
			for range 20 {
				b = append(b, byte(rnd.Uint32()))
			}
		case 2:
			b = append(b, testStoreDir+"/"+randomHash(rnd)[:rnd.IntN(32)]...)
		case 3:
			b = append(b, make([]byte, rnd.IntN(300))...)
		case 4:
			b = append(b, buildIDNote[:rnd.IntN(len(buildIDNote))]...)
		default:
			for range rnd.IntN(400) {
				if noise {
					b = append(b, byte(rnd.Uint32()))
				} else {
					b = append(b, "etaoin shrdlu\n"[rnd.IntN(14)])
				}
			}
		}
	}
	return b[:n]
}

func randomHash(rnd *rand.Rand) string {
	var b [20]byte
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return narinfo.EncodeNix32(b[:])
}

func randomNAR(t testing.TB, rnd *rand.Rand) []byte {
	var files []testFile
	for i := range rnd.IntN(12) {
		f := testFile{name: fmt.Sprintf("f%03d", i)}
		switch rnd.IntN(5) {
		case 0:
			f.target = testStoreDir + "/" + randomHash(rnd) + "-x/bin"
		case 1:
			f.data = randomData(rnd, rnd.IntN(2<<20))
		default:
			f.data = randomData(rnd, rnd.IntN(1<<(4+rnd.IntN(14))))
		}
		files = append(files, f)
	}
	return makeNAR(t, files...)
}

func testSeed(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestOutEqualsIn(t *testing.T) {
	for _, splitter := range []string{Rabin, FastCDC} {
		t.Run(splitter, func(t *testing.T) {
			rnd := testSeed(t)
			dir := t.TempDir()
			change := func(o *Options) {
				o.Repository = DefaultRepository(testStoreDir, splitter)
				o.PackSize = 1 << 20 // many packs, and NARs larger than one
			}
			var nars [][]byte
			s := testStore(t, dir, change)
			for range 15 {
				b := randomNAR(t, rnd)
				nars = append(nars, b)
				putNAR(t, s, b)
				checkNAR(t, s, rnd, b)
			}
			checkStore(t, s)
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, b := range nars {
				checkNAR(t, s, rnd, b)
			}
			checkStore(t, s)
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			s = testStore(t, dir, change)
			for _, b := range nars {
				checkNAR(t, s, rnd, b)
			}
		})
	}
}

func TestConcurrentUploads(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir(), func(o *Options) { o.PackSize = 4 << 20 })
	shared := randomData(rnd, 1<<20)
	var nars [][]byte
	for i := range 8 {
		b := makeNAR(t, testFile{name: "own", data: randomData(rnd, 100<<10*(i%3))}, testFile{name: "shared", data: shared})
		nars = append(nars, b, b)
	}
	var wg sync.WaitGroup
	for _, b := range nars {
		wg.Go(func() { putNAR(t, s, b) })
	}
	wg.Wait()
	for _, b := range nars {
		checkNAR(t, s, rnd, b)
	}
	if r := checkStore(t, s); r.DeadFrames != 0 || r.Frames != r.Chunks {
		t.Errorf("%d frames for %d chunks, %d unused: not each once", r.Frames, r.Chunks, r.DeadFrames)
	}
}

func TestBadUploads(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir())
	good := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	refused := errors.New("refused")
	for name, b := range map[string][]byte{
		"empty": {}, "truncated": good[:len(good)-1], "half": good[:len(good)/2], "trailing": append(good[:len(good):len(good)], 0),
		"html": []byte("<html>"), "refused": good,
	} {
		_, err := s.PutNAR(t.Context(), "nar/x.nar", bytes.NewReader(b), func(*File) error { return refused })
		want := ErrBadUpload
		if name == "refused" {
			want = refused
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	if _, err := s.File(t.Context(), "nar/x.nar"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused file stayed: %v", err)
	}
	if _, err := s.Object(t.Context(), sha256.Sum256(good)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused object stayed: %v", err)
	}
	info := testNarInfo(t, sha256.Sum256(good), len(good))
	if err := s.PutNarInfo(t.Context(), info); !errors.Is(err, ErrBadUpload) {
		t.Errorf("narinfo without NAR: got %v", err)
	}
	putNAR(t, s, good)
	info.NarSize++
	if err := s.PutNarInfo(t.Context(), info); !errors.Is(err, ErrBadUpload) {
		t.Errorf("narinfo with another size: got %v", err)
	}
}

// The names of compressed files, and what is known of them.
func TestCompressedUpload(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir())
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 500<<10)})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	file := enc.EncodeAll(b, nil)
	f, err := s.PutNAR(t.Context(), "nar/x.nar.zst", bytes.NewReader(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := File{
		Name: "nar/x.nar.zst", Content: sha256.Sum256(b), Size: int64(len(b)), NAR: true, Compression: "zstd",
		FileSize: int64(len(file)), FileHash: sha256.Sum256(file),
	}
	got, err := s.File(t.Context(), "nar/x.nar.zst")
	if err != nil || !reflect.DeepEqual(*f, want) || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v and %+v (%v), want %+v", f, got, err, want)
	}
}
