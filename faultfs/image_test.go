package faultfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestImageCut writes numbers into sectors, flushes now and then, and compares what is
// there after a cut with all that may be.
func TestImageCut(t *testing.T) {
	const sectors = 64
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var total CutReport
	for range 300 {
		m := NewImage(sectors * sectorSize)
		var flushed [sectors]byte
		var since [sectors][]byte
		for i := range 40 {
			at := random.IntN(sectors)
			n := 1 + random.IntN(min(12, sectors-at))
			if _, err := m.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, n*sectorSize), int64(at)*sectorSize); err != nil {
				t.Fatal(err)
			}
			for s := at; s < at+n; s++ {
				since[s] = append(since[s], byte(i+1))
			}
			if random.IntN(10) == 0 {
				if err := m.Flush(); err != nil {
					t.Fatal(err)
				}
				for s, numbers := range since {
					if len(numbers) > 0 {
						flushed[s], since[s] = numbers[len(numbers)-1], nil
					}
				}
			}
			for s, numbers := range since {
				want := flushed[s]
				if len(numbers) > 0 {
					want = numbers[len(numbers)-1]
				}
				if got := sector(t, m, s); got != want {
					t.Fatalf("sector %d before the cut: got %d, want %d", s, got, want)
				}
			}
		}
		after, stats := m.Cut(random.Uint64())
		total.Kept, total.Dropped, total.Torn = total.Kept+stats.Kept, total.Dropped+stats.Dropped, total.Torn+stats.Torn
		for s := range sectors {
			if got := sector(t, after, s); got != flushed[s] && !bytes.Contains(since[s], []byte{got}) {
				t.Fatalf("sector %d after the cut: got %d, want the flushed %d or one of %d", s, got, flushed[s], since[s])
			}
		}
	}
	if total.Kept == 0 || total.Dropped == 0 || total.Torn == 0 {
		t.Errorf("got %+v, want some of each", total)
	}
}

// sector returns the byte of which all of sector s is made.
func sector(t *testing.T, m *Image, s int) byte {
	t.Helper()
	b := make([]byte, sectorSize)
	if _, err := m.ReadAt(b, int64(s)*sectorSize); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, bytes.Repeat(b[:1], sectorSize)) {
		t.Fatalf("sector %d is torn", s)
	}
	return b[0]
}

func TestImagePowerOffAfter(t *testing.T) {
	m := NewImage(1 << 20)
	gone := m.PowerOffAfter(3)
	for i := range 5 {
		_, err := m.WriteAt([]byte{1}, int64(i))
		if want := i >= 2; errors.Is(err, syscall.EIO) != want {
			t.Errorf("write %d: got %v, want an error: %t", i, err, want)
		}
		select {
		case <-gone:
			if i < 2 {
				t.Errorf("the power was cut with write %d", i)
			}
		default:
			if i >= 2 {
				t.Errorf("nobody was told after write %d", i)
			}
		}
	}
	if _, stats := m.Cut(1); stats.Kept+stats.Dropped != 3 {
		t.Errorf("got %+v, want 3 writes", stats)
	}
}

func TestImageOff(t *testing.T) {
	m := NewImage(1 << 20)
	after, _ := m.Cut(1)
	if _, err := m.WriteAt(make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write after the cut: got %v, want EIO", err)
	}
	if err := m.Flush(); !errors.Is(err, syscall.EIO) {
		t.Errorf("flush after the cut: got %v, want EIO", err)
	}
	if _, err := after.WriteAt([]byte("new"), 1<<20-3); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{-1, 1<<20 - 2} {
		if _, err := after.WriteAt([]byte("new"), off); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("write at %d: got %v, want EINVAL", off, err)
		}
	}
	name := filepath.Join(t.TempDir(), "saved")
	if err := after.Save(name); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || len(b) != 1<<20 || string(b[1<<20-3:]) != "new" {
		t.Errorf("saved %d bytes (%v)", len(b), err)
	}
}
