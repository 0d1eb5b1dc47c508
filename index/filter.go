package index

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// filter says of most unknown chunks that they are unknown, from memory. It is a
// blocked Bloom filter: a key's bits lie in one cache line, one in each of its eight
// words, and are taken from the key itself, which is a hash. Keys are only added.
//
// When it is full another layer is added, twice as large, so that nothing is ever
// computed anew; each layer costs its own false positives, 0.4 % when full. All
// methods may be called concurrently.
type filter struct {
	layers atomic.Pointer[[]*layer] // replaced, never changed
	grow   sync.Mutex               // held to replace it
}

type layer struct {
	words    []uint64 // atomic; blockWords to a block
	capacity int64
	keys     atomic.Int64
}

const (
	blockWords = 8
	// bitsPerKey at capacity. Ten would do for one layer (1 %), but they add up.
	bitsPerKey = 12
	// minFilter is the first layer's least capacity, in keys: 6 MiB of memory. Four
	// layers from there are enough for 60 M chunks.
	minFilter = 4 << 20
)

func newFilter(capacity int64) *filter {
	f := new(filter)
	f.layers.Store(&[]*layer{newLayer(capacity)})
	return f
}

func newLayer(capacity int64) *layer {
	blocks := max(1, (capacity*bitsPerKey+blockWords*64-1)/(blockWords*64))
	return &layer{words: make([]uint64, blocks*blockWords), capacity: capacity}
}

// block returns the words of the key's block. It is chosen by the first eight bytes
// as a big-endian number: keys in order then go through memory in order.
func (l *layer) block(id *Key) []uint64 {
	n := uint64(len(l.words) / blockWords)
	i, _ := bits.Mul64(binary.BigEndian.Uint64(id[:]), n)
	return l.words[i*blockWords:][:blockWords]
}

// spread is 48 bits of the key that the block does not depend on: six per word.
func spread(id *Key) uint64 { return binary.BigEndian.Uint64(id[8:]) }

// mayHave says whether the key may have been added; false is certain.
func (f *filter) mayHave(id *Key) bool {
	h := spread(id)
	for _, l := range *f.layers.Load() {
		if l.has(id, h) {
			return true
		}
	}
	return false
}

func (l *layer) has(id *Key, h uint64) bool {
	words := l.block(id)
	for i := range words {
		if atomic.LoadUint64(&words[i])>>(h&63)&1 == 0 {
			return false
		}
		h >>= 6
	}
	return true
}

// add makes mayHave true for the key.
func (f *filter) add(id *Key) {
	if f.mayHave(id) {
		return // bits are never cleared
	}
	l := f.newest()
	words, h := l.block(id), spread(id)
	for i := range words {
		atomic.OrUint64(&words[i], 1<<(h&63))
		h >>= 6
	}
	l.keys.Add(1)
}

// newest returns the layer to add to, with room.
func (f *filter) newest() *layer {
	layers := *f.layers.Load()
	if l := layers[len(layers)-1]; l.keys.Load() < l.capacity {
		return l
	}
	f.grow.Lock()
	defer f.grow.Unlock()
	layers = *f.layers.Load()
	l := layers[len(layers)-1]
	if l.keys.Load() >= l.capacity { // nobody was faster
		l = newLayer(2 * l.capacity)
		// The old slice may be in use: it must not be appended to in place.
		grown := append(layers[:len(layers):len(layers)], l)
		f.layers.Store(&grown)
	}
	return l
}

// size returns the filter's memory in bytes.
func (f *filter) size() int64 {
	var n int64
	for _, l := range *f.layers.Load() {
		n += int64(len(l.words)) * 8
	}
	return n
}
