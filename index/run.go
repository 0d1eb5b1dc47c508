package index

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// A run is a memtable in a file of its own, in order; see bulk.go. Integers are little endian.
//
//	header   magic "dedupdRN", version 4, id of the index 16, sum 4 of what is before
//	blocks   length 4, sum 4 of the rows, rows
//	row      table 1, uvarint length of key, key, uvarint length of value + 1 or 0 if
//	         the row is deleted, value
//
// Tables come in writeOrder, then the marks, then one row of headTable, whose key is empty
// and whose value is the number of rows before it, 8 bytes.
const (
	runMagic    = "dedupdRN"
	runVersion  = 1
	runHeadSize = 8 + 4 + 16 + 4
	runSuffix   = ".run-"

	// blockSize is when a block ends: what is read for one row.
	blockSize = 8 << 10
)

// rank is the place of a table in a run.
var rank = func() (r [256]uint8) {
	for i, t := range append(slices.Clone(writeOrder), marksTable, headTable) {
		r[t] = uint8(i)
	}
	return r
}()

// compareRows orders rows as runs have them.
func compareRows(t Table, key []byte, u Table, other []byte) int {
	if t != u {
		return cmp.Compare(rank[t], rank[u])
	}
	return bytes.Compare(key, other)
}

type run struct {
	path   string
	file   *os.File
	blocks []block
	rows   int // marks and the last one included
}

// block is where a block is, and its first row.
type block struct {
	at, size int64 // of the rows, bytes
	table    Table
	key      []byte
}

// runPath names the runs of an index in their order.
func runPath(path string, number int) string { return fmt.Sprintf("%s%s%08d", path, runSuffix, number) }

// findRuns returns the runs of the index at path, in their order, also unfinished ones.
func findRuns(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+runSuffix) {
			found = append(found, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return found, nil // ReadDir sorts
}

// writeRun makes a memtable a run, durably. It calls note with every row of it.
func writeRun(path string, id [16]byte, m *memtable, note func(row)) (_ *run, err error) {
	tmp := path + newSuffix
	f, err := os.Create(tmp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(tmp)
		}
	}()
	w := runWriter{run: run{path: path, file: f}, to: bufio.NewWriterSize(f, 1<<20), at: runHeadSize}
	head := append(binary.LittleEndian.AppendUint32([]byte(runMagic), runVersion), id[:]...)
	w.to.Write(binary.LittleEndian.AppendUint32(head, crc32.Checksum(head, castagnoli)))
	for r := range m.sorted() {
		w.add(r)
		note(r)
	}
	for _, name := range slices.Sorted(maps.Keys(m.marks)) {
		w.add(row{marksTable, []byte(name), binary.BigEndian.AppendUint64(nil, m.marks[name])})
	}
	w.add(row{headTable, nil, binary.LittleEndian.AppendUint64(nil, uint64(w.rows))})
	w.endBlock()
	// bufio keeps the first error.
	if err := errors.Join(w.to.Flush(), f.Sync()); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Rename(tmp, path), syncDir(filepath.Dir(path))); err != nil {
		return nil, err
	}
	return &w.run, nil
}

type runWriter struct {
	run
	to  *bufio.Writer
	at  int64  // where the block begins
	buf []byte // its rows
}

func (w *runWriter) add(r row) {
	if len(w.buf) == 0 {
		w.blocks = append(w.blocks, block{at: w.at + 8, table: r.table, key: slices.Clone(r.key)})
	}
	w.rows++
	w.buf = append(w.buf, byte(r.table))
	w.buf = append(binary.AppendUvarint(w.buf, uint64(len(r.key))), r.key...)
	if r.value == nil {
		w.buf = append(w.buf, 0)
	} else {
		w.buf = append(binary.AppendUvarint(w.buf, uint64(len(r.value))+1), r.value...)
	}
	if len(w.buf) >= blockSize {
		w.endBlock()
	}
}

func (w *runWriter) endBlock() {
	if len(w.buf) == 0 {
		return
	}
	w.blocks[len(w.blocks)-1].size = int64(len(w.buf))
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(w.buf)))
	binary.LittleEndian.PutUint32(head[4:], crc32.Checksum(w.buf, castagnoli))
	w.to.Write(head[:])
	w.to.Write(w.buf)
	w.at += 8 + int64(len(w.buf))
	w.buf = w.buf[:0]
}

// errOtherIndex says that a run is of another index than the one beside it.
var errOtherIndex = errors.New("run of another index")

// openRun opens a run, and calls fn with all its rows, which it checks: marks are of
// marksTable. The slices are valid during the call.
func openRun(path string, id [16]byte, fn func(row)) (_ *run, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	head := make([]byte, runHeadSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: header of a run: %w", ErrDamaged, err)
	}
	if string(head[:8]) != runMagic || binary.LittleEndian.Uint32(head[8:]) != runVersion ||
		binary.LittleEndian.Uint32(head[28:]) != crc32.Checksum(head[:28], castagnoli) {
		return nil, damagef("header of a run")
	}
	if [16]byte(head[12:]) != id {
		return nil, errOtherIndex
	}
	u := &run{path: path, file: f}
	c, err := u.cursor()
	if err != nil {
		return nil, err
	}
	for c.next() {
		if c.first {
			u.blocks = append(u.blocks, block{c.at, c.size, c.row.table, slices.Clone(c.row.key)})
		}
		u.rows++
		fn(c.row)
	}
	return u, c.err
}

// get returns the value of a row; ok says whether the run knows about it, deleted ones
// included.
func (u *run) get(t Table, key []byte) (value []byte, ok bool, err error) {
	i := sort.Search(len(u.blocks), func(i int) bool {
		return compareRows(u.blocks[i].table, u.blocks[i].key, t, key) > 0
	}) - 1
	if i < 0 {
		return nil, false, nil
	}
	p := make([]byte, 8+u.blocks[i].size)
	if _, err := u.file.ReadAt(p, u.blocks[i].at-8); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if binary.LittleEndian.Uint32(p[4:]) != crc32.Checksum(p[8:], castagnoli) {
		return nil, false, damagef("a block of a run")
	}
	for p = p[8:]; len(p) > 0; {
		var r row
		if r, p, err = parseRow(p); err != nil {
			return nil, false, err
		}
		if c := compareRows(r.table, r.key, t, key); c >= 0 {
			return r.value, c == 0, nil
		}
	}
	return nil, false, nil
}

func parseRow(p []byte) (row, []byte, error) {
	r := row{table: Table(p[0])}
	p = p[1:]
	n, size := binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)-size) {
		return row{}, nil, damagef("a key in a run")
	}
	r.key, p = p[size:size+int(n):size+int(n)], p[size+int(n):]
	n, size = binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)-size)+1 {
		return row{}, nil, damagef("a value in a run")
	}
	p = p[size:]
	if n > 0 {
		r.value, p = p[:n-1:n-1], p[n-1:]
		if r.value == nil {
			r.value = []byte{}
		}
	}
	return r, p, nil
}

// A runCursor goes over the rows of a run in their order, but for the last one.
type runCursor struct {
	row      row
	first    bool  // it begins a block
	at, size int64 // of the block's rows
	err      error

	from *bufio.Reader
	pos  int64  // in the file
	end  int64  // of the file
	rest []byte // rows of the block
	rows uint64
}

func (u *run) cursor() (*runCursor, error) {
	info, err := u.file.Stat()
	if err != nil {
		return nil, err
	}
	body := io.NewSectionReader(u.file, runHeadSize, info.Size()-runHeadSize)
	return &runCursor{from: bufio.NewReaderSize(body, 256<<10), pos: runHeadSize, end: info.Size()}, nil
}

// next goes to the next row. Without one, err says whether all were there.
func (c *runCursor) next() bool {
	if c.first = len(c.rest) == 0; c.first {
		if c.err = c.nextBlock(); c.err != nil {
			return false
		}
	}
	last := c.row
	if c.row, c.rest, c.err = parseRow(c.rest); c.err != nil {
		return false
	}
	if c.row.table == headTable {
		if len(c.row.value) != 8 || binary.LittleEndian.Uint64(c.row.value) != c.rows || len(c.rest) > 0 {
			c.err = damagef("end of a run")
		} else if c.pos != c.end {
			c.err = damagef("%d bytes behind the end of a run", c.end-c.pos)
		}
		return false
	}
	if c.rows++; c.rows > 1 && compareRows(last.table, last.key, c.row.table, c.row.key) >= 0 || len(c.row.key) == 0 {
		c.err = damagef("rows of a run are not in order")
		return false
	}
	return true
}

func (c *runCursor) nextBlock() error {
	var head [8]byte
	if _, err := io.ReadFull(c.from, head[:]); err != nil {
		return fmt.Errorf("%w: a run: %w", ErrDamaged, err)
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size == 0 || int64(size) > c.end-c.pos-8 {
		return damagef("a block of %d bytes in a run", size)
	}
	p := make([]byte, size) // rows of the block before may be in use
	if _, err := io.ReadFull(c.from, p); err != nil {
		return fmt.Errorf("%w: a block of a run: %w", ErrDamaged, err)
	}
	if crc32.Checksum(p, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		return damagef("a block of a run")
	}
	c.at, c.size, c.rest = c.pos+8, int64(size), p
	c.pos += 8 + int64(size)
	return nil
}
