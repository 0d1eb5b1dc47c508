package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// The rows of a snapshot come in order of their tables, and then of their keys:
//
//	0      number of a pack, 4 bytes, big endian   its name
//	1      chunk ID                                index.Location, with that number
//	2 … 6  keys and values of index.Recipes, Contents, Paths, Names, Packs
//	7      keys and values of index.Meta           of copies of chunks; see placedCopy
//	8      name of a pack                          its mark, 8 bytes, big endian
//
// Each is a byte for the table, and key and value, each behind its length as a uvarint.
// The rest of Meta is not in it: that is the machine's own.
const (
	packRows  = 0
	tableRows = 1 // and the table's number in package index
	markRows  = tableRows + byte(index.Meta) + 1
)

// A part is an object with some rows of a snapshot, in one zstd frame.
type part struct {
	Rows  int64  `json:"rows"`
	Plain int64  `json:"plain"` // bytes of the rows
	Size  int64  `json:"size"`  // bytes of the object
	Sum   string `json:"sum"`   // of the object: CRC-32C, 8 hexadecimal digits
}

const (
	// partSize is how many bytes of rows a part has, unless it is one row that is larger.
	partSize = 8 << 20
	// maxPart bounds the memory that one part takes when it is read. A row is smaller than
	// a commit.
	maxPart = 2 * packfile.MaxCommit
)

func (p *part) check() error {
	if p.Size < 0 || p.Size > maxPart || p.Plain < 0 || p.Plain > maxPart || p.Rows < 0 || p.Rows > p.Plain {
		return fmt.Errorf("%d rows in %d bytes, %d stored: %w", p.Rows, p.Plain, p.Size, packfile.ErrCorrupt)
	}
	return nil
}

// A partWriter writes rows as parts. It has up to one part in memory.
type partWriter struct {
	put    func(n int, data []byte) error
	enc    *zstd.Encoder
	parts  []part
	chunks int64
	marks  int

	rows          int64
	plain, packed []byte
}

func newPartWriter(put func(n int, data []byte) error) (*partWriter, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(partSize))
	if err != nil {
		return nil, err
	}
	return &partWriter{put: put, enc: enc}, nil
}

// index writes what packs have told an index. The pack that was open then gets no mark.
func (w *partWriter) index(ctx context.Context, snap index.Snapshot, open string) error {
	err := snap.ForEachPack(ctx, func(number uint32, name string) error {
		return w.row(packRows, binary.BigEndian.AppendUint32(nil, number), []byte(name))
	})
	if err != nil {
		return err
	}
	var buf []byte
	err = snap.ForEachChunk(ctx, func(id index.Key, l index.Location) error {
		w.chunks++
		buf = l.Append(buf[:0])
		return w.row(tableRows+byte(index.Chunks), id[:], buf)
	})
	if err != nil {
		return err
	}
	for t := index.Recipes; t <= index.Meta; t++ {
		err := snap.ForEach(ctx, t, nil, func(key, value []byte) error {
			if t == index.Meta && !bytes.HasPrefix(key, []byte(copiesPrefix)) {
				return nil
			}
			return w.row(tableRows+byte(t), key, value)
		})
		if err != nil {
			return err
		}
	}
	marks := snap.Marks()
	delete(marks, open)
	w.marks = len(marks)
	for _, name := range slices.Sorted(maps.Keys(marks)) {
		if err := w.row(markRows, []byte(name), binary.BigEndian.AppendUint64(nil, marks[name])); err != nil {
			return err
		}
	}
	return w.flush()
}

func (w *partWriter) row(table byte, key, value []byte) error {
	if len(w.plain)+len(key)+len(value) > partSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.rows++
	w.plain = append(w.plain, table)
	w.plain = binary.AppendUvarint(w.plain, uint64(len(key)))
	w.plain = append(w.plain, key...)
	w.plain = binary.AppendUvarint(w.plain, uint64(len(value)))
	w.plain = append(w.plain, value...)
	return nil
}

func (w *partWriter) flush() error {
	if w.rows == 0 {
		return nil
	}
	w.packed = w.enc.EncodeAll(w.plain, w.packed[:0])
	if err := w.put(len(w.parts), w.packed); err != nil {
		return err
	}
	w.parts = append(w.parts, part{w.rows, int64(len(w.plain)), int64(len(w.packed)), hexSum(w.packed)})
	w.rows, w.plain = 0, w.plain[:0]
	return nil
}

// unpack returns the rows of a part.
func (p *part) unpack(data []byte) ([]byte, error) {
	if hexSum(data) != p.Sum {
		return nil, fmt.Errorf("wrong checksum: %w", packfile.ErrCorrupt)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(partSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	plain, err := dec.DecodeAll(data, make([]byte, 0, p.Plain))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", packfile.ErrCorrupt, err)
	}
	if int64(len(plain)) != p.Plain {
		return nil, fmt.Errorf("%d bytes of rows, not %d: %w", len(plain), p.Plain, packfile.ErrCorrupt)
	}
	return plain, nil
}

// A rowReader applies the rows of a snapshot to an index that is empty. Packs get numbers
// of that index's own.
type rowReader struct {
	ix      index.Index
	numbers map[uint32]uint32 // of packs: in the snapshot, in the index
	chunks  int64
	marks   int

	table byte // of the last row
	key   []byte
}

// apply applies the rows of one part.
func (r *rowReader) apply(ctx context.Context, plain []byte, rows int64) error {
	batch := new(index.Batch)
	d := decoder{b: plain}
	n := int64(0)
	for ; len(d.b) > 0; n++ {
		table := d.bytes(1)
		key := d.bytes(d.count(1))
		value := d.bytes(d.count(1))
		if d.err != nil {
			return d.err
		}
		if err := r.inOrder(table[0], key); err != nil {
			return err
		}
		if err := r.row(ctx, batch, table[0], key, value); err != nil {
			return fmt.Errorf("row %x of table %d: %w", key, table[0], err)
		}
	}
	if n != rows {
		return fmt.Errorf("%d rows, not %d: %w", n, rows, packfile.ErrCorrupt)
	}
	return r.ix.Apply(ctx, batch)
}

func (r *rowReader) inOrder(table byte, key []byte) error {
	if len(key) == 0 || table < r.table || table == r.table && bytes.Compare(key, r.key) <= 0 {
		return fmt.Errorf("row %x of table %d is out of order: %w", key, table, packfile.ErrCorrupt)
	}
	r.table, r.key = table, key
	return nil
}

func (r *rowReader) row(ctx context.Context, batch *index.Batch, table byte, key, value []byte) (err error) {
	switch {
	case table == packRows:
		return r.pack(ctx, key, value)
	case table == tableRows+byte(index.Chunks):
		return r.chunk(batch, key, value)
	case table < markRows && (table != tableRows+byte(index.Meta) || bytes.HasPrefix(key, []byte(copiesPrefix))):
		batch.Put(index.Table(table-tableRows), key, value)
		return nil
	case table == markRows && len(value) == 8:
		r.marks++
		batch.Mark(string(key), binary.BigEndian.Uint64(value))
		_, err = packfile.ParseName(string(key))
		return err
	}
	return packfile.ErrCorrupt
}

func (r *rowReader) pack(ctx context.Context, key, value []byte) (err error) {
	if len(key) != 4 {
		return packfile.ErrCorrupt
	}
	if _, err := packfile.ParseName(string(value)); err != nil {
		return err
	}
	r.numbers[binary.BigEndian.Uint32(key)], err = r.ix.PackNumber(ctx, string(value))
	return err
}

func (r *rowReader) chunk(batch *index.Batch, key, value []byte) error {
	l, err := index.ParseLocation(value)
	number, ok := r.numbers[l.Pack]
	if err != nil || !ok || len(key) != len(index.Key{}) {
		return packfile.ErrCorrupt
	}
	r.chunks++
	l.Pack = number
	batch.PutChunk(index.Key(key), l)
	return nil
}
