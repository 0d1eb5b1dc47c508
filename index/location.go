package index

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Location is where one chunk lies. The zero Location (Pack is 0) means nowhere.
type Location struct {
	Pack    uint32 // number of the pack, see Index.PackNumber
	Offset  uint64 // of the stored frame (prefix and payload) in the pack, bytes
	Prefix  uint32 // length of the frame's prefix, bytes
	Payload uint32 // length of what follows it, bytes
	Kind    uint8  // kind of frame, as packfile numbers them
	CRC     uint32 // CRC-32C of prefix and payload
	Chunks  uint32 // number of chunks in the frame: 1 for fresh ones
	Index   uint32 // which of them this one is, from 0
	Start   uint32 // where it starts in the decoded frame, bytes
	Len     uint32 // its decoded length, bytes
}

// A Location is stored, by any engine and in snapshots of indexes, as
//
//	uvarint  kind × 2, + 1 if the last three fields follow
//	uvarint  pack
//	uvarint  offset
//	uvarint  prefix
//	uvarint  payload
//	uint32   CRC, little-endian
//	uvarint  length
//	uvarint  chunks   \
//	uvarint  index     > if they are not 1, 0, 0
//	uvarint  start    /
//
// which is 17 to 20 bytes for a fresh chunk. The number of bytes is known from
// the row, and nothing may follow.

// maxLocation is the length of the longest encoding.
const maxLocation = 2 + binary.MaxVarintLen64 + 4 + 7*binary.MaxVarintLen32

// Append appends the encoding of l to p.
func (l *Location) Append(p []byte) []byte {
	many := l.Chunks != 1 || l.Index != 0 || l.Start != 0
	tag := uint64(l.Kind) << 1
	if many {
		tag |= 1
	}
	p = binary.AppendUvarint(p, tag)
	p = binary.AppendUvarint(p, uint64(l.Pack))
	p = binary.AppendUvarint(p, l.Offset)
	p = binary.AppendUvarint(p, uint64(l.Prefix))
	p = binary.AppendUvarint(p, uint64(l.Payload))
	p = binary.LittleEndian.AppendUint32(p, l.CRC)
	p = binary.AppendUvarint(p, uint64(l.Len))
	if many {
		p = binary.AppendUvarint(p, uint64(l.Chunks))
		p = binary.AppendUvarint(p, uint64(l.Index))
		p = binary.AppendUvarint(p, uint64(l.Start))
	}
	return p
}

var errBadLocation = fmt.Errorf("%w: row of a chunk", ErrDamaged)

// ParseLocation decodes what Append has encoded. It accepts nothing else.
func ParseLocation(p []byte) (Location, error) {
	d := decoder{p: p}
	tag := d.uvarint(math.MaxUint8<<1 | 1)
	l := Location{
		Kind:    uint8(tag >> 1),
		Pack:    d.uint32(),
		Offset:  d.uvarint(math.MaxUint64),
		Prefix:  d.uint32(),
		Payload: d.uint32(),
		CRC:     d.fixed32(),
		Len:     d.uint32(),
		Chunks:  1,
	}
	if tag&1 != 0 {
		l.Chunks, l.Index, l.Start = d.uint32(), d.uint32(), d.uint32()
	}
	if d.bad || len(d.p) != 0 || l.Pack == 0 {
		return Location{}, errBadLocation
	}
	return l, nil
}

// decoder takes numbers off the front of p. After the first that is not there, or
// too large, bad is set and all that follow are 0.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) uvarint(max uint64) uint64 {
	v, n := binary.Uvarint(d.p)
	if d.bad || n <= 0 || v > max {
		d.bad = true
		return 0
	}
	d.p = d.p[n:]
	return v
}

func (d *decoder) uint32() uint32 { return uint32(d.uvarint(math.MaxUint32)) }

func (d *decoder) fixed32() uint32 {
	if d.bad || len(d.p) < 4 {
		d.bad = true
		return 0
	}
	v := binary.LittleEndian.Uint32(d.p)
	d.p = d.p[4:]
	return v
}
