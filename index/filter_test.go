package index

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// keys returns a source of keys that depends on seed alone.
func keys(seed uint64) func() Key {
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	rnd := rand.NewChaCha8(s)
	return func() (k Key) {
		rnd.Read(k[:])
		return k
	}
}

func TestFilter(t *testing.T) {
	for _, c := range []struct {
		name     string
		capacity int64
		keys     int
		layers   int
		maxRate  float64 // of false positives
	}{
		{"empty", 1000, 0, 1, 0},
		{"one full layer", 200_000, 200_000, 1, 0.006},
		{"four full layers", 10_000, 150_000, 4, 0.024},
		{"five full layers", 10_000, 310_000, 5, 0.03},
		{"tiny", 1, 1, 1, 0.1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFilter(c.capacity)
			next := keys(1)
			for range c.keys {
				k := next()
				f.add(&k)
			}
			// A few keys count as there already, so the last layer may not be needed.
			if got := len(*f.layers.Load()); got != c.layers {
				t.Errorf("layers: got %d, want %d", got, c.layers)
			}
			next = keys(1)
			for range c.keys {
				if k := next(); !f.mayHave(&k) {
					t.Fatalf("key %x was added, and is denied", k)
				}
			}
			const tries = 200_000
			hits := 0
			other := keys(2)
			for range tries {
				if k := other(); f.mayHave(&k) {
					hits++
				}
			}
			rate := float64(hits) / tries
			t.Logf("%d keys, %d bytes: %.2f %% false positives", c.keys, f.size(), 100*rate)
			if rate > c.maxRate {
				t.Errorf("false positives: got %.4f, want at most %.4f", rate, c.maxRate)
			}
		})
	}
}

// Several writers and readers at once, while layers are added: what is added is never denied.
func TestFilterConcurrently(t *testing.T) {
	f := newFilter(500)
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			next := keys(seed)
			for i := range 5000 {
				k := next()
				if f.add(&k); !f.mayHave(&k) {
					t.Errorf("seed %d: key %d is denied", seed, i)
				}
			}
		})
	}
	wg.Wait()
	for seed := range uint64(4) {
		next := keys(seed)
		for i := range 5000 {
			if k := next(); !f.mayHave(&k) {
				t.Errorf("seed %d: key %d is denied afterwards", seed, i)
			}
		}
	}
}
