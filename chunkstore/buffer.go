package chunkstore

import (
	"math/bits"
	"sync"
)

// A bufferPool keeps byte slices of a few sizes for reuse, so that ingest and serving
// make little garbage whatever flows through them.
type bufferPool struct {
	classes [27]sync.Pool // of *[]byte with a capacity of at least 1<<i
}

// minClass is the smallest class; smaller requests share it.
const minClass = 12

// get returns a slice of n bytes with any contents.
func (p *bufferPool) get(n int) []byte {
	class := max(minClass, bits.Len(uint(n-1)))
	if class >= len(p.classes) {
		return make([]byte, n)
	}
	if b, ok := p.classes[class].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<class)
}

// put gives b back, which must not be used afterwards.
func (p *bufferPool) put(b []byte) {
	class := bits.Len(uint(cap(b))) - 1
	if class < minClass || class >= len(p.classes) {
		return
	}
	b = b[:0]
	p.classes[class].Put(&b)
}
