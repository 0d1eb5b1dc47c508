package report

import (
	"encoding/binary"
	"math"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/packfile"
)

// A slot is what is known of one chunk.
type slot struct {
	key                uint64 // the first bytes of its ID; two chunks with the same do not occur
	size, stored, wire uint32
	paths, packages    uint32 // that use it
	last               uint32 // package that was seen using it
}

// slotSize is how many bytes a slot takes.
const slotSize = 32

// chunks is a table of all chunks, or of those whose key ends in a number of zero bits.
// Slots are in order of the keys, which are uniformly distributed: where one is can be
// guessed.
type chunks struct {
	slots []slot
	max   int
	zeros int // bits
}

// add adds a chunk whose ID is greater than those before it. When there is no room half
// of the chunks are forgotten.
func (t *chunks) add(c chunkstore.Chunk) {
	for len(t.slots) >= t.max && t.max > 0 {
		t.zeros++
		kept := t.slots[:0]
		for _, s := range t.slots {
			if t.sampled(s.key) {
				kept = append(kept, s)
			}
		}
		t.slots = kept
	}
	if key := keyOf(c.ID); t.sampled(key) {
		t.slots = append(t.slots, slot{key: key, size: uint32(c.Size), stored: uint32(c.Stored), wire: uint32(c.Wire)})
	}
}

func keyOf(id packfile.ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// sampled says whether the table has the chunk with a key, if it is stored.
func (t *chunks) sampled(key uint64) bool { return key&(1<<t.zeros-1) == 0 }

// factor is how many chunks one in the table stands for.
func (t *chunks) factor() float64 { return float64(int64(1) << t.zeros) }

// find returns the slot of a key, or -1.
func (t *chunks) find(key uint64) int {
	n := len(t.slots)
	if n == 0 {
		return -1
	}
	// Slots of n uniform keys are about the square root of n from where they should be.
	at := int(float64(key) / math.MaxUint64 * float64(n-1))
	step := 1
	low, high := at, at+1 // the key is in slots[low:high] if it is anywhere
	for low > 0 && t.slots[low].key > key {
		low, high = max(0, low-step), low
		step *= 2
	}
	for step = 1; high < n && t.slots[high-1].key < key; step *= 2 {
		low, high = high, min(n, high+step)
	}
	for low < high {
		if mid := (low + high) / 2; t.slots[mid].key < key {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < n && t.slots[low].key == key {
		return low
	}
	return -1
}

// An estimate adds up what belongs to sampled chunks.
type estimate struct{ sum, squares float64 }

func (e *estimate) add(v float64) {
	e.sum += v
	e.squares += v * v
}

// total is what all chunks come to.
func (t *chunks) total(e estimate) int64 { return int64(math.Round(e.sum * t.factor())) }

// margin is how far total may be off, at 95 % confidence. Each chunk is in the sample with
// probability p, so that the variance of a sum of x/p is the sum of x²(1-p)/p, of which the
// sample shows p (Horvitz and Thompson 1952).
func (t *chunks) margin(e estimate) int64 {
	p := 1 / t.factor()
	return int64(math.Round(1.96 * math.Sqrt(e.squares*(1-p)) / p))
}
