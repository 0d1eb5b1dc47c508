package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"iter"
	"maps"
	"slices"
)

// memtable holds changes that are not on disk yet. Bolt.mu guards the active one;
// a frozen one does not change any more.
type memtable struct {
	chunks  map[Key]uint32               // where in arena the location is, or chunkDeleted
	arena   []byte                       // encoded locations, each after a byte that is its length
	tables  [numTables]map[string][]byte // nil value: deleted
	marks   map[string]uint64
	size    int           // memory, bytes, estimated
	rows    int           // changed rows
	merge   bool          // to be written to bbolt, with all runs, not as another run
	written chan struct{} // closed when it is on disk, or the attempt has failed
}

const chunkDeleted = ^uint32(0)

// Estimates of what a map entry costs beside its bytes: the tables of Go's maps are
// between 7/16 and 7/8 full.
const (
	chunkCost = (32 + 4 + 1) * 100 / 65
	rowCost   = (16 + 24 + 1) * 100 / 65
)

func newMemtable() *memtable {
	return &memtable{
		chunks:  make(map[Key]uint32),
		marks:   make(map[string]uint64),
		written: make(chan struct{}),
	}
}

func (m *memtable) empty() bool { return m.rows == 0 && len(m.marks) == 0 }

// add takes over the changes of b. Its memory may grow by more than the limit that
// Bolt watches, by one batch.
func (m *memtable) add(b *Batch) {
	for i := range b.chunks {
		m.addChunk(&b.chunks[i])
	}
	for _, r := range b.rows {
		t := m.tables[r.table]
		if t == nil {
			t = make(map[string][]byte)
			m.tables[r.table] = t
		}
		if old, ok := t[r.key]; ok {
			m.size -= len(old)
		} else {
			m.size += rowCost + len(r.key)
			m.rows++
		}
		m.size += len(r.value)
		t[r.key] = r.value
	}
	for name, position := range b.marks {
		m.marks[name] = max(m.marks[name], position)
	}
}

func (m *memtable) addChunk(c *chunkChange) {
	if _, ok := m.chunks[c.id]; !ok {
		m.size += chunkCost
		m.rows++
	}
	if c.loc == (Location{}) {
		m.chunks[c.id] = chunkDeleted
		return
	}
	at := len(m.arena)
	m.arena = append(m.arena, 0)
	m.arena = c.loc.Append(m.arena)
	m.arena[at] = byte(len(m.arena) - at - 1)
	m.size += len(m.arena) - at
	m.chunks[c.id] = uint32(at)
}

// chunk returns the encoded location of a chunk, nil if it is deleted; ok says
// whether the memtable knows about it at all.
func (m *memtable) chunk(id *Key) (location []byte, ok bool) {
	at, ok := m.chunks[*id]
	if !ok {
		return nil, false
	}
	return m.location(at), true
}

// location returns the encoded location that a value of chunks stands for.
func (m *memtable) location(at uint32) []byte {
	if at == chunkDeleted {
		return nil
	}
	n := uint32(m.arena[at])
	return m.arena[at+1 : at+1+n]
}

// row is one changed row. The slices are valid as long as the memtable.
type row struct {
	table Table
	key   []byte
	value []byte // nil: deleted
}

// writeOrder is the order in which a memtable goes to disk. Names of packs come
// first, so that no row on disk ever mentions a number without an owner.
var writeOrder = []Table{packNumbers, packNames, Packs, Chunks, Recipes, Contents, Paths, Names, Meta}

// sorted yields every changed row, table by table, in order of the keys: bbolt then
// meets each of its pages once. The memtable must be frozen.
func (m *memtable) sorted() iter.Seq[row] {
	return func(yield func(row) bool) {
		for _, t := range writeOrder {
			rows := m.sortedRows(t)
			if t == Chunks {
				rows = m.sortedChunks()
			}
			for r := range rows {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (m *memtable) sortedChunks() iter.Seq[row] {
	return func(yield func(row) bool) {
		type chunk struct {
			id Key
			at uint32 // so that the map, far larger than caches, is not searched again
		}
		chunks := make([]chunk, 0, len(m.chunks))
		for id, at := range m.chunks {
			chunks = append(chunks, chunk{id, at})
		}
		slices.SortFunc(chunks, func(a, b chunk) int {
			// Nearly always decided by the first eight bytes.
			if c := cmp.Compare(binary.BigEndian.Uint64(a.id[:]), binary.BigEndian.Uint64(b.id[:])); c != 0 {
				return c
			}
			return bytes.Compare(a.id[8:], b.id[8:])
		})
		for i := range chunks {
			if !yield(row{Chunks, chunks[i].id[:], m.location(chunks[i].at)}) {
				return
			}
		}
	}
}

func (m *memtable) sortedRows(t Table) iter.Seq[row] {
	return func(yield func(row) bool) {
		for _, key := range slices.Sorted(maps.Keys(m.tables[t])) {
			if !yield(row{t, []byte(key), m.tables[t][key]}) {
				return
			}
		}
	}
}
