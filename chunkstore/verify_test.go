package chunkstore

import (
	"os"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

func TestNextRun(t *testing.T) {
	frames := func(at int64, sizes ...int) (fs []placedFrame) {
		for _, n := range sizes {
			fs = append(fs, placedFrame{FrameInfo: packfile.FrameInfo{Payload: n}, at: at})
			at += int64(n)
		}
		return fs
	}
	gap := append(frames(48, 10, 10), frames(70, 10)...)
	for _, test := range []struct {
		name   string
		frames []placedFrame
		atOnce int64
		n      int
		size   int64
	}{
		{"all", frames(48, 10, 20, 30), 60, 3, 60},
		{"as many as fit", frames(48, 10, 20, 30), 59, 2, 30},
		{"one is too large", frames(48, 100, 20), 50, 1, 100},
		{"nothing may be read", frames(48, 10, 20), 0, 1, 10},
		{"up to a gap", gap, 1000, 2, 20},
		{"behind the gap", gap[2:], 1000, 1, 10},
	} {
		if n, size := nextRun(test.frames, test.atOnce); n != test.n || size != test.size {
			t.Errorf("%s: got %d frames of %d bytes, want %d of %d", test.name, n, size, test.n, test.size)
		}
	}
}

// What is wrong with one frame is not said of those that are read with it, and of a pack
// that was cut short the frames that are left are whole.
func TestVerifyAll(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	putNAR(t, s, makeNAR(t, testFile{name: "a", data: randomData(testSeed(t), 2<<20)}))
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	path, pack, b := onePack(t, dir)
	n := len(pack.Frames)
	if n < 6 {
		t.Fatalf("only %d frames", n)
	}
	number, err := s.packs.number(t.Context(), pack.Name)
	if err != nil {
		t.Fatal(err)
	}
	readers, err := newFrameReaders(s.packs)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	defer os.WriteFile(path, b, 0o600) // the store is checked at the end
	for _, test := range []struct {
		name   string
		damage func() error
		bad    func(i int) bool
	}{
		{"nothing", func() error { return nil }, func(int) bool { return false }},
		{"one frame", func() error { return flip(path, pack.Offsets[3]+9) }, func(i int) bool { return i == 3 }},
		{"the end is gone", func() error { return os.Truncate(path, pack.Offsets[n-2]+1) }, func(i int) bool { return i >= n-2 }},
		{"all is gone", func() error { return os.Remove(path) }, func(int) bool { return true }},
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := test.damage(); err != nil {
			t.Fatal(err)
		}
		frames := make([]placedFrame, n)
		for i, f := range pack.Frames {
			frames[i] = placedFrame{FrameInfo: f, at: pack.Offsets[i]}
		}
		if err := readers.verifyAll(t.Context(), number, frames, nil); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		for i, f := range frames {
			if isDamage(f.err) != test.bad(i) || f.err != nil && !test.bad(i) {
				t.Errorf("%s: frame %d of %d: got %v, want damage: %v", test.name, i, n, f.err, test.bad(i))
			}
		}
	}
}
