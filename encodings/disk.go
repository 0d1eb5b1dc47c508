package encodings

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A key is the SHA-256 of a name.
type key [sha256.Size]byte

// A dir is the directory of a cache. For a name it has a file that is called as the key in
// hexadecimal, and an empty one beside it that says that the name is in the state fresh or
// leaving.
type dir string

const (
	freshMark   = ".fresh"
	leavingMark = ".leaving"
	unfinished  = "unfinished-" // what files begin with that are being made
)

func (d dir) path(k key) string { return filepath.Join(string(d), hex.EncodeToString(k[:])) }

// publish gives a finished file its name.
func (d dir) publish(unfinished string, k key) error {
	if err := d.mark(k, freshMark); err != nil {
		return err
	}
	return os.Rename(unfinished, d.path(k))
}

// settle ends the state fresh.
func (d dir) settle(k key) error {
	if err := remove(d.path(k) + freshMark); err != nil {
		return err
	}
	return d.sync()
}

// leave removes the file of a name.
func (d dir) leave(k key) error {
	if err := d.mark(k, leavingMark); err != nil {
		return err
	}
	return errors.Join(remove(d.path(k)), remove(d.path(k)+freshMark))
}

// forget ends the state leaving.
func (d dir) forget(k key) error { return remove(d.path(k) + leavingMark) }

func (d dir) mark(k key, mark string) error {
	if err := os.WriteFile(d.path(k)+mark, nil, 0o600); err != nil {
		return err
	}
	return d.sync()
}

func (d dir) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load calls fn for every name that the directory knows, with its file if that can be
// used. What cannot is removed.
func (d dir) load(fn func(key, state, *file)) error {
	names, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	states := map[key]state{}
	for _, n := range names {
		stem, mark, _ := strings.Cut(n.Name(), ".")
		k, err := hex.DecodeString(stem)
		if err != nil || len(k) != len(key{}) {
			if strings.HasPrefix(n.Name(), unfinished) {
				os.Remove(filepath.Join(string(d), n.Name()))
			}
			continue
		}
		s := settled
		switch "." + mark {
		case leavingMark:
			s = leaving
		case freshMark:
			s = fresh
		}
		if old, ok := states[key(k)]; !ok || s == leaving || s == fresh && old == settled {
			states[key(k)] = s
		}
	}
	for k, s := range states {
		var f *file
		err := errors.New("it goes")
		if s != leaving {
			f, err = openFile(d.path(k), k)
		}
		if err != nil {
			if err := d.leave(k); err != nil {
				return err
			}
			s = leaving
		}
		fn(k, s, f)
	}
	return nil
}

// The bytes of a file, in blocks of blockSize (the last one may be shorter), are followed
// by the CRC-32C of each block, and by a footer, all integers little-endian:
//
//	offset  size
//	     0    12  "dedupd oldna"
//	    12     4  version, 1
//	    16     8  length of the bytes
//	    24    32  SHA-256 of the bytes
//	    56    32  SHA-256 of the name
//	    88     4  CRC-32C of the checksums of the blocks, and of the footer until here
const (
	blockSize  = 128 << 10
	magic      = "dedupd oldna"
	version    = 1
	footerSize = 92
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A file is what is known of one.
type file struct {
	size int64
	sum  [sha256.Size]byte
	crcs []byte // of the blocks
}

// errDamaged says that a file is not as it was written.
var errDamaged = errors.New("damaged")

func blocks(size int64) int64 { return (size + blockSize - 1) / blockSize }

// openFile reads what is known of a file.
func openFile(path string, k key) (*file, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	var footer [footerSize]byte
	at := info.Size() - footerSize
	if at < 0 {
		return nil, errDamaged
	}
	if _, err := in.ReadAt(footer[:], at); err != nil {
		return nil, err
	}
	f := &file{size: int64(binary.LittleEndian.Uint64(footer[16:])), sum: [sha256.Size]byte(footer[24:])}
	if f.size < 0 || f.size > at || f.size+4*blocks(f.size) != at {
		return nil, errDamaged
	}
	f.crcs = make([]byte, 4*blocks(f.size))
	if _, err := in.ReadAt(f.crcs, f.size); err != nil {
		return nil, err
	}
	if string(footer[:]) != string(f.footer(k)) {
		return nil, errDamaged
	}
	return f, nil
}

func (f *file) footer(k key) []byte {
	b := append(make([]byte, 0, footerSize), magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.size))
	b = append(append(b, f.sum[:]...), k[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Update(crc32.Checksum(f.crcs, castagnoli), castagnoli, b))
}

var buffers = sync.Pool{New: func() any { return new([blockSize]byte) }}

// copy writes the bytes [off, off+n) of in, which is the file, to w. No byte is written of
// a block that is not as it was.
func (f *file) copy(ctx context.Context, in io.ReaderAt, w io.Writer, off, n int64) error {
	buf := buffers.Get().(*[blockSize]byte)
	defer buffers.Put(buf)
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i := off / blockSize
		start := i * blockSize
		b := buf[:min(blockSize, f.size-start)]
		if _, err := in.ReadAt(b, start); err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(f.crcs[4*i:]) {
			return fmt.Errorf("block %d: %w", i, errDamaged)
		}
		b = b[off-start:]
		b = b[:min(int64(len(b)), n)]
		if _, err := w.Write(b); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// A maker writes a file.
type maker struct {
	file
	out   *os.File
	block []byte // what is not written yet
	hash  hash.Hash
	limit int64 // bytes
	room  func() bool
}

const roomStep = 32 << 20 // bytes that are written between looks at the disk

var (
	errTooLarge = errors.New("the encoding is not worth its room")
	errNoRoom   = errors.New("the disk has no room")
)

// make begins a file of at most limit bytes.
func (d dir) make(limit int64, room func() bool) (*maker, error) {
	out, err := os.CreateTemp(string(d), unfinished)
	if err != nil {
		return nil, err
	}
	return &maker{out: out, block: make([]byte, 0, blockSize), hash: sha256.New(), limit: limit, room: room}, nil
}

func (m *maker) Write(p []byte) (done int, err error) {
	for {
		n := copy(m.block[len(m.block):cap(m.block)], p[done:])
		m.block = m.block[:len(m.block)+n]
		done += n
		if len(m.block) < cap(m.block) {
			return done, nil
		}
		if err := m.flush(); err != nil {
			return done, err
		}
	}
}

func (m *maker) flush() error {
	if m.size%roomStep == 0 && !m.room() {
		return errNoRoom
	}
	if m.size += int64(len(m.block)); m.size > m.limit {
		return errTooLarge
	}
	m.hash.Write(m.block)
	m.crcs = binary.LittleEndian.AppendUint32(m.crcs, crc32.Checksum(m.block, castagnoli))
	_, err := m.out.Write(m.block)
	m.block = m.block[:0]
	return err
}

// finish has the file on the disk.
func (m *maker) finish(k key) error {
	if len(m.block) > 0 {
		if err := m.flush(); err != nil {
			return err
		}
	}
	m.hash.Sum(m.sum[:0])
	if _, err := m.out.Write(append(m.crcs[:len(m.crcs):len(m.crcs)], m.footer(k)...)); err != nil {
		return err
	}
	return m.out.Sync()
}

// close ends the making. What has not been published by then goes.
func (m *maker) close() {
	m.out.Close()
	os.Remove(m.out.Name())
}
