package gateway

import (
	"math/bits"
	"sync/atomic"
)

// Served counts what was sent of NARs, since the start of the gateway.
type Served struct {
	// Bytes were sent, in whatever form and compression, for NARBytes of NARs.
	Bytes    int64 `json:"bytes"`
	NARBytes int64 `json:"nar_bytes"`
}

// Served returns the counts so far.
func (g *Gateway) Served() Served {
	return Served{g.served.bytes.Load(), g.served.narBytes.Load()}
}

// counters hold a Served for concurrent use.
type counters struct {
	bytes, narBytes atomic.Int64
}

// add counts n bytes of the total that a NAR of size bytes comes to.
func (c *counters) add(n, total, size int64) {
	if n <= 0 || n > total {
		return
	}
	c.bytes.Add(n)
	hi, lo := bits.Mul64(uint64(n), uint64(size))
	part, _ := bits.Div64(hi, lo, uint64(total)) // at most size, since n is at most total
	c.narBytes.Add(int64(part))
}
