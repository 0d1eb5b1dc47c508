package chunkstore

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/dedupd/dedupd/packfile"
)

// A recipe is the list of pieces that make up one object. It names the values of its
// spans by their numbers in the table of the object's content record, in the order of
// their first occurrence, so that a rebuild that changed nothing but hashes has the
// same recipe. Recipes are content-addressed and shared.
//
//	uvarint number of items, then for each:
//	uvarint 0  chunk:   32 ID, uvarint length, uvarint number of spans, their values' numbers (uvarint)
//	uvarint 1  literal: uvarint length, uvarint number of spans, for each span uvarint
//	                    (bytes since the end of the one before)<<1 | 1 for a build-id,
//	                    their values' numbers, and the masked bytes
type recipe struct {
	items []item
}

// An item is one piece of an object: a chunk, or a literal with its own bytes.
type item struct {
	id    packfile.ID // of a chunk
	len   uint32      // bytes
	refs  []uint32    // numbers of the spans' values
	plain []byte      // masked bytes of a literal
	spans []packfile.Span
}

func (it *item) literal() bool { return it.plain != nil }

const (
	itemChunk   = 0
	itemLiteral = 1

	// maxSpans is the number of spans that are masked in one object; what comes after
	// is stored as it is. It bounds the memory that an object of nothing but store
	// paths takes.
	maxSpans = 1 << 20
)

func (r *recipe) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(len(r.items)))
	for i := range r.items {
		it := &r.items[i]
		if it.literal() {
			b = append(b, itemLiteral)
		} else {
			b = append(b, itemChunk)
			b = append(b, it.id[:]...)
		}
		b = binary.AppendUvarint(b, uint64(it.len))
		b = binary.AppendUvarint(b, uint64(len(it.refs)))
		end := uint32(0)
		for _, s := range it.spans {
			gap := uint64(s.Off-end) << 1
			if s.Len == packfile.SpanBuildID {
				gap |= 1
			}
			b = binary.AppendUvarint(b, gap)
			end = s.Off + s.Len
		}
		for _, ref := range it.refs {
			b = binary.AppendUvarint(b, uint64(ref))
		}
		b = append(b, it.plain...)
	}
	return b
}

// decodeRecipe is the inverse of encode. The literals alias b.
func decodeRecipe(b []byte) (*recipe, error) {
	d := decoder{b: b}
	r := &recipe{items: make([]item, d.count(3))}
	for i := range r.items {
		it := &r.items[i]
		switch d.uvarint() {
		case itemChunk:
			copy(it.id[:], d.bytes(len(it.id)))
			it.len = d.u32()
			it.refs = d.refs(d.count(1))
		case itemLiteral:
			it.len = d.u32()
			n := d.count(2)
			it.spans = d.spans(n, it.len)
			it.refs = d.refs(n)
			it.plain = d.bytes(int(it.len))
			if d.err == nil && len(it.plain) == 0 {
				d.err = errRecord // an empty literal would read as a chunk
			}
		default:
			d.err = errRecord
		}
		if d.err == nil && it.len > packfile.MaxChunk {
			d.err = errRecord // and serving relies on it
		}
		if d.err != nil {
			return nil, d.err
		}
	}
	return r, d.end()
}

func (d *decoder) refs(n int) []uint32 {
	refs := make([]uint32, n)
	for i := range refs {
		refs[i] = d.u32()
	}
	return refs
}

// spans reads the spans of a literal of size bytes.
func (d *decoder) spans(n int, size uint32) []packfile.Span {
	spans := make([]packfile.Span, n)
	end := uint64(0)
	for i := range spans {
		gap := d.uvarint()
		length := uint32(packfile.SpanHash)
		if gap&1 != 0 {
			length = packfile.SpanBuildID
		}
		off := end + gap>>1
		end = off + uint64(length)
		if gap > 1<<32 || end > uint64(size) {
			d.err = errRecord
			return nil
		}
		spans[i] = packfile.Span{Off: uint32(off), Len: length}
	}
	return spans
}

var recipeHashers = sync.Pool{New: func() any { return blake3.NewDeriveKey("dedupd 2026 recipe id v1") }}

// recipeID is the BLAKE3-256 hash of an encoded recipe.
func recipeID(encoded []byte) (id packfile.ID) {
	h := recipeHashers.Get().(*blake3.Hasher)
	defer recipeHashers.Put(h)
	h.Reset()
	h.Write(encoded)
	h.Sum(id[:0])
	return id
}

// Hash is a SHA-256.
type Hash [32]byte

// content is the record of one stored object: a NAR, or a log or listing that is too
// large to stand beside its name.
//
//	32 SHA-256, uvarint size, 1 (1 for a NAR, else 0), 32 recipe ID,
//	uvarint number of values, 20 bytes for each
type content struct {
	hash   Hash
	size   int64
	nar    bool
	recipe packfile.ID
	table  []value
}

func (c *content) encode() []byte {
	b := make([]byte, 0, 32+10+1+32+5+20*len(c.table))
	b = append(b, c.hash[:]...)
	b = binary.AppendUvarint(b, uint64(c.size))
	kind := byte(0)
	if c.nar {
		kind = 1
	}
	b = append(b, kind)
	b = append(b, c.recipe[:]...)
	b = binary.AppendUvarint(b, uint64(len(c.table)))
	for i := range c.table {
		b = append(b, c.table[i][:]...)
	}
	return b
}

func decodeContent(b []byte) (*content, error) {
	d := decoder{b: b}
	c := &content{}
	copy(c.hash[:], d.bytes(32))
	c.size = int64(d.uvarint() & (1<<63 - 1))
	kind := d.bytes(1)
	c.nar = d.err == nil && kind[0] == 1
	copy(c.recipe[:], d.bytes(32))
	c.table = make([]value, d.count(len(value{})))
	for i := range c.table {
		copy(c.table[i][:], d.bytes(len(value{})))
	}
	return c, d.end()
}

// A decoder reads the fields of a record. The first one that is not there sets err and
// makes all later ones zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b, d.err = nil, errRecord
}

var errRecord = fmt.Errorf("record is malformed: %w", packfile.ErrCorrupt)

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail()
		return 0
	}
	return uint32(v)
}

// count reads a number of items that take at least size bytes each.
func (d *decoder) count(size int) int {
	v := d.uvarint()
	if v > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(v)
}

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail()
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail()
	}
	return d.err
}
