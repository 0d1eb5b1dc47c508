package chunkstore

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// splitAll cuts b to its end.
func splitAll(s splitter, b []byte) (sizes []int) {
	for len(b) > 0 {
		n := s.cut(b)
		sizes = append(sizes, n)
		b = b[n:]
	}
	return sizes
}

func newTestSplitter(t testing.TB, repo Repository) splitter {
	t.Helper()
	s, err := newSplitter(repo)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noise returns n pseudo-random bytes, the same ones for ever.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestSplitGolden pins cut points: chunks that are cut in another way are never shared
// with those that are stored already.
func TestSplitGolden(t *testing.T) {
	random := noise(4<<20, 1)
	zeros := make([]byte, 3<<20)
	for _, tt := range []struct {
		splitter string
		input    []byte
		name     string
		want     []int
	}{
		{Rabin, random, "random", []int{
			132440, 259772, 107080, 477788, 523376, 273454, 297159, 250663, 119724, 468419, 484731, 470013, 203963, 123329, 2393,
		}},
		{Rabin, zeros, "zeros", slices.Repeat([]int{64 << 10}, 48)},
		{FastCDC, random, "random", []int{
			501309, 253852, 616995, 254421, 372804, 113524, 89819, 454503, 136419, 82942, 97323, 175678, 221027, 663874, 159814,
		}},
		{FastCDC, zeros, "zeros", slices.Repeat([]int{1 << 20}, 3)},
	} {
		repo := DefaultRepository(testStoreDir, tt.splitter)
		if got := splitAll(newTestSplitter(t, repo), tt.input); !slices.Equal(got, tt.want) {
			t.Errorf("%s, %s: got %#v, want %#v", tt.splitter, tt.name, got, tt.want)
		}
	}
}

func TestSplitBounds(t *testing.T) {
	for _, splitter := range []string{Rabin, FastCDC} {
		for _, repo := range []Repository{DefaultRepository(testStoreDir, splitter), smallRepository(splitter)} {
			s := newTestSplitter(t, repo)
			for _, b := range [][]byte{noise(3<<20, 2), make([]byte, 3<<20)} {
				sizes := splitAll(s, b)
				for i, n := range sizes {
					if n > repo.MaxSize || n < repo.MinSize && i < len(sizes)-1 {
						t.Errorf("%s: piece %d of %d has %d bytes", splitter, i, len(sizes), n)
					}
				}
			}
			for _, n := range []int{1, 2, 63, 64, repo.MinSize - 1, repo.MinSize} {
				if got := s.cut(noise(n, 3)); got != n {
					t.Errorf("%s: %d bytes are cut at %d", splitter, n, got)
				}
			}
		}
	}
}

// TestSplitIsStateless checks that a cut depends on nothing but the bytes that are cut,
// and on none of them beyond the maximum.
func TestSplitIsStateless(t *testing.T) {
	rnd := testSeed(t)
	for _, splitter := range []string{Rabin, FastCDC} {
		repo := smallRepository(splitter)
		used := newTestSplitter(t, repo)
		b := noise(1<<20, 4)
		for range 200 {
			from := rnd.IntN(len(b))
			n := 1 + rnd.IntN(min(len(b)-from, 3*repo.MaxSize))
			if rnd.IntN(3) == 0 {
				n = min(n, repo.MinSize*2)
			}
			part := b[from : from+n]
			want := newTestSplitter(t, repo).cut(part)
			if got := used.cut(part); got != want {
				t.Fatalf("%s: %d bytes at %d: got %d, a new splitter cuts at %d", splitter, n, from, got, want)
			}
			if got := used.cut(part[:min(n, repo.MaxSize)]); got != want {
				t.Fatalf("%s: %d bytes at %d: got %d without the bytes beyond the maximum, want %d", splitter, n, from, got, want)
			}
		}
	}
}

// TestSplitHeals checks what content-defined chunking is for: after a change the cuts
// come together again.
func TestSplitHeals(t *testing.T) {
	for _, splitter := range []string{Rabin, FastCDC} {
		repo := smallRepository(splitter)
		s := newTestSplitter(t, repo)
		b := noise(1<<20, 5)
		ends := func(sizes []int, shift int) map[int]bool {
			m, at := map[int]bool{}, shift
			for _, n := range sizes {
				at += n
				m[at] = true
			}
			return m
		}
		before := ends(splitAll(s, b), 0)
		after := ends(splitAll(s, append([]byte("inserted"), b...)), -len("inserted"))
		shared := 0
		for end := range after {
			if before[end] {
				shared++
			}
		}
		if shared < len(after)*9/10 {
			t.Errorf("%s: only %d of %d cuts are where they were", splitter, shared, len(after))
		}
	}
}

func TestBadSplitterSettings(t *testing.T) {
	for name, change := range map[string]func(*Repository){
		"splitter":         func(r *Repository) { r.Splitter = "fixed" },
		"no polynomial":    func(r *Repository) { r.Polynomial = "" },
		"no number":        func(r *Repository) { r.Polynomial = "zz" },
		"reducible":        func(r *Repository) { r.Polynomial = "35544b1aeed8c0" },
		"of a low degree":  func(r *Repository) { r.Polynomial = "b" },
		"of a high degree": func(r *Repository) { r.Polynomial = "ffffffffffffffff" },
	} {
		r := DefaultRepository(testStoreDir, Rabin)
		change(&r)
		if err := r.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	data := noise(16<<20, 6)
	for _, splitter := range []string{Rabin, FastCDC} {
		b.Run(splitter, func(b *testing.B) {
			s := newTestSplitter(b, DefaultRepository(testStoreDir, splitter))
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				splitAll(s, data)
			}
		})
	}
}
