package index

import (
	"errors"
	"fmt"
)

// Batch collects changes that are applied together. Of several changes to one row the
// last wins. The zero Batch is empty and ready. It is for one goroutine.
type Batch struct {
	chunks []chunkChange
	rows   []rowChange
	marks  map[string]uint64
	err    error // the first wrong argument; Apply returns it
}

type chunkChange struct {
	id  Key
	loc Location // zero to delete
}

type rowChange struct {
	table Table
	key   string
	value []byte // nil to delete; the memtable takes it over
}

// PutChunk says where a chunk lies from now on. loc.Pack is not 0.
func (b *Batch) PutChunk(id Key, loc Location) {
	if loc.Pack == 0 {
		b.fail(errors.New("location without a pack"))
	}
	b.chunks = append(b.chunks, chunkChange{id, loc})
}

// DeleteChunk makes a chunk unknown.
func (b *Batch) DeleteChunk(id Key) {
	b.chunks = append(b.chunks, chunkChange{id: id})
}

// Put sets a row of a table other than Chunks. Key and value are copied. The key has
// 1 to MaxKey bytes, is not one byte zero, and does not begin with 64 bytes 0xff.
func (b *Batch) Put(t Table, key, value []byte) {
	b.change(t, key, append(make([]byte, 0, len(value)), value...)) // never nil
}

// Delete removes a row of a table other than Chunks, if there is one.
func (b *Batch) Delete(t Table, key []byte) {
	b.change(t, key, nil)
}

func (b *Batch) change(t Table, key, value []byte) {
	if err := t.check(); err != nil {
		b.fail(err)
	}
	if reserved(key) {
		b.fail(fmt.Errorf("key of %d bytes in table %v, %s", len(key), t, showKey(key)))
	}
	b.rows = append(b.rows, rowChange{t, string(key), value})
}

// Mark notes that with this batch all is applied that the caller's log has up to
// position. A mark never goes back: a lower position has no effect.
func (b *Batch) Mark(name string, position uint64) {
	if reserved([]byte(name)) {
		b.fail(fmt.Errorf("mark with a name of %d bytes, %s", len(name), showKey([]byte(name))))
	}
	if b.marks == nil {
		b.marks = make(map[string]uint64)
	}
	b.marks[name] = max(b.marks[name], position)
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}
