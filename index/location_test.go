package index

import (
	"errors"
	"math"
	"testing"
)

var fresh = Location{Pack: 32_000, Offset: 31 << 20, Prefix: 17, Payload: 61_234, Kind: 1, CRC: 0xdeadbeef, Chunks: 1, Len: 123_456}

var largest = Location{
	Pack: math.MaxUint32, Offset: math.MaxUint64, Prefix: math.MaxUint32, Payload: math.MaxUint32, Kind: math.MaxUint8,
	CRC: math.MaxUint32, Chunks: math.MaxUint32, Index: math.MaxUint32, Start: math.MaxUint32, Len: math.MaxUint32,
}

func TestLocation(t *testing.T) {
	for _, c := range []struct {
		name string
		l    Location
		max  int // bytes
	}{
		{"least", Location{Pack: 1, Chunks: 1}, 10},
		{"fresh", fresh, 20},
		{"many", Location{Pack: 7, Offset: 1 << 30, Payload: 4 << 20, Kind: 3, Chunks: 150, Index: 149, Start: 15 << 20, Len: 100_000}, 30},
		{"no chunks", Location{Pack: 1}, 13},
		{"largest", largest, maxLocation},
	} {
		p := c.l.Append(nil)
		if len(p) > c.max {
			t.Errorf("%s: got %d bytes, want at most %d", c.name, len(p), c.max)
		}
		got, err := ParseLocation(p)
		if err != nil || got != c.l {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.l)
		}
	}
}

func TestLocationDamaged(t *testing.T) {
	for _, l := range []Location{fresh, largest} {
		p := l.Append(nil)
		for n := range p {
			if got, err := ParseLocation(p[:n]); !errors.Is(err, errBadLocation) {
				t.Errorf("%d of %d bytes: got %+v, %v, want %v", n, len(p), got, err, errBadLocation)
			}
		}
		if got, err := ParseLocation(append(p, 0)); !errors.Is(err, errBadLocation) {
			t.Errorf("a byte too many: got %+v, %v, want %v", got, err, errBadLocation)
		}
	}
	for name, p := range map[string]string{
		"no pack":        "\x02\x00\x00\x00\x00CRC!\x00",
		"kind too large": "\x80\x04\x01\x00\x00\x00CRC!\x00",
		"pack too large": "\x02\x80\x80\x80\x80\x10\x00\x00\x00CRC!\x00",
	} {
		if got, err := ParseLocation([]byte(p)); !errors.Is(err, errBadLocation) {
			t.Errorf("%s: got %+v, %v, want %v", name, got, err, errBadLocation)
		}
	}
}

func FuzzLocation(f *testing.F) {
	f.Add([]byte{})
	f.Add(fresh.Append(nil))
	f.Add(largest.Append(nil))
	f.Add((&Location{Pack: 1, Chunks: 2, Index: 1, Start: 3}).Append(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := ParseLocation(p)
		if err != nil {
			return
		}
		again, err := ParseLocation(l.Append(nil))
		if err != nil || again != l {
			t.Errorf("got %+v, %v, want %+v", again, err, l)
		}
	})
}
