package faultfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
)

// An Image is the disk of a machine whose power can be cut. Like a disk with a volatile
// cache it has two states: what was flushed, which stays, and the writes since, of
// which a cut leaves any part. It is in memory, sparse, and safe for concurrent use.
type Image struct {
	size int64

	mu      sync.Mutex // guards what follows
	flushed content
	current content
	writes  []write // since the last flush, in order
	off     bool
	left    int           // writes until the power goes off by itself; 0 for never
	gone    chan struct{} // closed when it does
	stats   ImageStats
}

// ImageStats says what a disk was asked to do.
type ImageStats struct {
	Writes, Flushes int // flushes with nothing to do are counted, too
}

// errOff is the error of a disk without power.
var errOff = fmt.Errorf("the power was cut: %w", syscall.EIO)

// NewImage returns a disk of size bytes that holds zeros.
func NewImage(size int64) *Image {
	return &Image{size: size, flushed: content{size: size}, current: content{size: size}}
}

// Size returns the size in bytes.
func (m *Image) Size() int64 { return m.size }

// Stats returns what was counted so far.
func (m *Image) Stats() ImageStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// ReadAt reads what was written last, whether flushed or not; also when the power is
// off, so that nobody hangs.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if err := m.inside(off, len(p)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current.read(p, off), nil
}

// WriteAt writes to the cache of the disk.
func (m *Image) WriteAt(p []byte, off int64) (int, error) {
	if err := m.inside(off, len(p)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return 0, errOff
	}
	w := write{off, slices.Clone(p)}
	m.writes = append(m.writes, w)
	w.apply(&m.current)
	m.stats.Writes++
	if m.left == 0 {
		return len(p), nil
	}
	if m.left--; m.left > 0 {
		return len(p), nil
	}
	m.off = true
	close(m.gone)
	return 0, errOff // though some of it may be on the disk
}

// Flush makes all writes so far durable.
func (m *Image) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return errOff
	}
	for _, w := range m.writes {
		w.apply(&m.flushed)
	}
	m.writes = nil
	m.stats.Flushes++
	return nil
}

func (m *Image) inside(off int64, n int) error {
	if off < 0 || off > m.size-int64(n) {
		return fmt.Errorf("%d bytes at %d of a disk of %d: %w", n, off, m.size, syscall.EINVAL)
	}
	return nil
}

// PowerOffAfter cuts the power with the n-th write from now on, n being at least 1, and
// then closes the channel that it returns. A disk is idle most of the time: so the cut
// comes while it works. To be called once.
func (m *Image) PowerOffAfter(n int) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.gone = n, make(chan struct{})
	return m.gone
}

// Off says whether the power is off.
func (m *Image) Off() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off
}

// Cut cuts the power, if it is not off yet, and returns the disk as it is found when the
// power is back: with all that was flushed, and with any part of the writes since, some
// of them torn between sectors. Seed and writes decide which. From here on m fails every
// write and flush with EIO.
//
// Writes to the first page are never torn: the superblock of ext4, there, has two sectors
// and one checksum, and ext4 itself relies on the disk to write it in one piece.
func (m *Image) Cut(seed uint64) (*Image, CutReport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	disk := m.flushed.clone()
	c := newCutter(seed, len(m.writes))
	for _, w := range m.writes {
		if w.off >= pageSize {
			c.write(&disk, w)
		} else if c.keeps() {
			w.apply(&disk)
		}
	}
	return &Image{size: m.size, flushed: disk, current: disk.clone()}, c.CutReport
}

// Clone returns another disk with the same contents, all of it flushed.
func (m *Image) Clone() *Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Image{size: m.size, flushed: m.current.clone(), current: m.current.clone()}
}

// Save writes the contents to a file, sparse, for losetup to attach.
func (m *Image) Save(path string) error {
	c := m.Clone()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(m.size)
	for i, page := range c.current.pages {
		if page != nil && err == nil {
			_, err = f.WriteAt(page[:], int64(i)*pageSize)
		}
	}
	return errors.Join(err, f.Close())
}
