package rangecache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The two files of a cache, "blocks" and "slots". Slot i of blocks has the bytes from i
// times the block size on. slots begins with a header of recordSize bytes:
//
//	offset  size
//	     0    12  "dedupd cache"
//	    12     4  version, 1
//	    16     4  block size in bytes
//	    20    28  zero
//
// and goes on with a record of recordSize bytes for each slot, all integers little-endian:
//
//	offset  size
//	     0    32  SHA-256 of the object's key
//	    32     4  number of the block in the object
//	    36     4  bytes of it that the slot has
//	    40     4  CRC-32C of the first 36 bytes of the record, and of the slot's bytes
//	    44     4  CRC-32C of the first 44 bytes of the record
//
// A record whose own sum does not fit is no record. Nothing is synced: a block whose sum
// does not fit, since it or its record did not reach the disk, is not there.
const (
	magic      = "dedupd cache"
	version    = 1
	recordSize = 48
)

// minSlots is how many slots a cache has at least.
const minSlots = 64

// A disk is the files of a cache. Its methods may be called concurrently.
type disk struct {
	opts          *Options
	blocks, slots *os.File
	max           uint32 // slots

	mu     sync.Mutex
	unused []uint32  // slots that were used before
	next   uint32    // the first slot that never was
	failed time.Time // when writing failed last
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openDisk(opts *Options) (_ *disk, err error) {
	d := &disk{opts: opts, max: uint32(opts.Size / int64(opts.BlockSize))}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, err
	}
	if d.blocks, err = os.OpenFile(filepath.Join(opts.Dir, "blocks"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if d.slots, err = os.OpenFile(filepath.Join(opts.Dir, "slots"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	return d, d.checkHeader()
}

// checkHeader discards what was written by another version.
func (d *disk) checkHeader() error {
	want := make([]byte, recordSize)
	copy(want, magic)
	binary.LittleEndian.PutUint32(want[12:], version)
	binary.LittleEndian.PutUint32(want[16:], uint32(d.opts.BlockSize))
	got := make([]byte, recordSize)
	n, err := d.slots.ReadAt(got, 0)
	switch {
	case err != nil && err != io.EOF:
		return err
	case bytes.Equal(got, want):
		return nil
	case n > 0:
		d.opts.Log.Warn("the cache is of another version of dedupd, and is discarded", "dir", d.opts.Dir)
	}
	if err := errors.Join(d.blocks.Truncate(0), d.slots.Truncate(0)); err != nil {
		return err
	}
	_, err = d.slots.WriteAt(want, 0)
	return err
}

func (d *disk) close() error {
	var errs []error
	for _, f := range []*os.File{d.blocks, d.slots} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// load calls fn for every block that is on the disk, and makes the other slots free. It
// is called before anything else is.
func (d *disk) load(fn func(blockID, place)) error {
	info, err := d.slots.Stat()
	if err != nil {
		return err
	}
	have := uint32(info.Size()/recordSize) - 1
	d.next = min(have, d.max)
	if have > d.max { // the cache has become smaller
		if err := errors.Join(d.blocks.Truncate(int64(d.max)*int64(d.opts.BlockSize)), d.slots.Truncate(int64(d.max+1)*recordSize)); err != nil {
			return err
		}
	}
	records := make([]byte, 1024*recordSize)
	for slot := uint32(0); slot < d.next; {
		n := min(len(records), int(d.next-slot)*recordSize)
		if _, err := d.slots.ReadAt(records[:n], int64(slot+1)*recordSize); err != nil {
			return err
		}
		for r := records[:n]; len(r) > 0; r = r[recordSize:] {
			if id, p, ok := parseRecord(r[:recordSize]); ok && p.length <= uint32(d.opts.BlockSize) {
				p.slot = slot
				fn(id, p)
			} else {
				d.free(slot)
			}
			slot++
		}
	}
	return nil
}

func parseRecord(r []byte) (id blockID, p place, ok bool) {
	copy(id.object[:], r)
	id.number = binary.LittleEndian.Uint32(r[32:])
	p.length = binary.LittleEndian.Uint32(r[36:])
	p.sum = binary.LittleEndian.Uint32(r[40:])
	return id, p, crc32.Checksum(r[:44], castagnoli) == binary.LittleEndian.Uint32(r[44:])
}

// start is the checksum of a block before its bytes: of which block it is.
func (id blockID) start() uint32 {
	var b [36]byte
	copy(b[:], id.object[:])
	binary.LittleEndian.PutUint32(b[32:], id.number)
	return crc32.Checksum(b[:], castagnoli)
}

// failurePause is how long nothing is written after that has failed.
const failurePause = 10 * time.Second

// take returns a free slot, if there is one.
func (d *disk) take() (slot uint32, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.failed.IsZero() && time.Since(d.failed) < failurePause {
		return 0, false
	}
	if n := len(d.unused); n > 0 {
		slot = d.unused[n-1]
		d.unused = d.unused[:n-1]
		return slot, true
	}
	if d.next == d.max || d.opts.Room != nil && !d.opts.Room() {
		return 0, false
	}
	d.next++
	return d.next - 1, true
}

// left returns how many slots can be taken.
func (d *disk) left() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.unused) + int(d.max-d.next)
}

// used returns how many slots were ever used.
func (d *disk) used() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next
}

// free says that nothing is in a slot that is wanted.
func (d *disk) free(slot uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unused = append(d.unused, slot)
}

// write puts the first bytes of a block into a slot.
func (d *disk) write(id blockID, slot uint32, data []byte) (place, error) {
	p := place{slot, uint32(len(data)), crc32.Update(id.start(), castagnoli, data)}
	var r [recordSize]byte
	copy(r[:], id.object[:])
	binary.LittleEndian.PutUint32(r[32:], id.number)
	binary.LittleEndian.PutUint32(r[36:], p.length)
	binary.LittleEndian.PutUint32(r[40:], p.sum)
	binary.LittleEndian.PutUint32(r[44:], crc32.Checksum(r[:44], castagnoli))
	_, err := d.blocks.WriteAt(data, int64(slot)*int64(d.opts.BlockSize))
	if err == nil {
		_, err = d.slots.WriteAt(r[:], int64(slot+1)*recordSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		d.failed = time.Time{}
	case d.failed.IsZero():
		d.opts.Log.Warn("the cache cannot be written, and what it lacks is fetched each time", "err", err)
		fallthrough
	default:
		d.failed = time.Now()
	}
	return p, err
}

// scratches are for what a reader does not want of a block, but its checksum needs.
var scratches = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// read fills p with the bytes at off of a block, and checks all of it.
func (d *disk) read(id blockID, at place, p []byte, off int) error {
	sum, length := id.start(), int(at.length)
	start := int64(at.slot) * int64(d.opts.BlockSize)
	scratch := scratches.Get().(*[32 << 10]byte)
	defer scratches.Put(scratch)
	for pos := 0; pos < length; {
		part := scratch[:]
		switch {
		case pos < off:
			part = part[:min(len(part), off-pos)]
		case pos == off && len(p) > 0:
			part = p
		default:
			part = part[:min(len(part), length-pos)]
		}
		if _, err := d.blocks.ReadAt(part, start+int64(pos)); err != nil {
			return fmt.Errorf("read slot %d: %w", at.slot, err)
		}
		sum = crc32.Update(sum, castagnoli, part)
		pos += len(part)
	}
	if sum != at.sum {
		return fmt.Errorf("slot %d: the checksum of the block does not fit", at.slot)
	}
	return nil
}
