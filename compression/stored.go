package compression

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Stored is an encoding of plain bytes that a format allows without compressing them: its length
// follows from theirs, its bytes are a fixed function of theirs, and any range of it can be
// written from the same range, roughly, of the plain bytes.
//
// Clients may have seen part of it and ask for the rest, at any time, from another version of this
// program: the bytes that a Type gives must never change. Golden hashes in the tests hold them.
//
// Every format is laid out alike:
//
//	prefix  { full  <block plain bytes> }  [ last  <fewer> ]  suffix
//
// where full and last are block headers. Blocks never say that they are the final one; that is the
// suffix's part, so that empty input is no special case.
//
//	type   prefix                     header                       block     suffix
//	none   -                          -                            all       -
//	xz     stream and block header    LZMA2 uncompressed chunk     65,536    LZMA2 end, index, footer
//	gzip   header                     deflate stored block         65,535    empty final block, CRC-32, size
//	zstd   frame header               raw block                    131,072   empty last block
//	br     window, empty metadata     uncompressed meta-block      65,536    empty last meta-block
//	lz4    frame header               uncompressed block           65,536    end mark
//
// Checksums of the contents would need all plain bytes before the suffix: only gzip's, which is
// mandatory, is there. Every client checks the NAR's hash.
//
// Nix 2.8, 2.26 and 2.34 accept all of them, where their narinfo names the type.
//
// A Stored never changes and can be used concurrently.
type Stored struct {
	prefix, full, last, suffix []byte
	size, block                int64 // plain bytes, all and per block
}

// MaxStored is the largest number of plain bytes that NewStored takes: 1 EiB, so that no encoded
// length overflows.
const MaxStored = 1 << 60

// NewStored returns the stored encoding of type t for size plain bytes, whose IEEE CRC-32 is crc;
// only gzip uses that. A type that has no stored mode gives an *UnsupportedError.
func NewStored(t Type, size int64, crc uint32) (*Stored, error) {
	if size < 0 || size > MaxStored {
		return nil, fmt.Errorf("stored %s: bad size %d", t, size)
	}
	s := &Stored{size: size}
	var header func(n int64) []byte
	switch t {
	case None:
		s.block = MaxStored
		header = func(int64) []byte { return nil }
	case XZ:
		s.block = 64 << 10
		s.prefix, header = xzPrefix, xzChunk
	case Gzip:
		s.block = 1<<16 - 1
		s.prefix, header = gzipPrefix, gzipBlock
		s.suffix = gzipSuffix(size, crc)
	case Zstd:
		s.block = 128 << 10
		s.prefix, header = zstdPrefix(size), zstdBlock
		s.suffix = []byte{1, 0, 0}
	case Brotli:
		s.block = 64 << 10
		s.prefix, header = brotliPrefix, brotliBlock
		s.suffix = []byte{3}
	case LZ4:
		s.block = 64 << 10
		s.prefix, header = lz4Prefix, lz4Block
		s.suffix = []byte{0, 0, 0, 0}
	default:
		return nil, fmt.Errorf("stored: %w", &UnsupportedError{t})
	}
	s.full = header(s.block)
	if n := size % s.block; n > 0 {
		s.last = header(n)
	}
	if t == XZ {
		s.suffix = xzSuffix(size, s.Size()-int64(len(s.prefix)))
	}
	return s, nil
}

// Size returns the exact length of the encoding in bytes.
func (s *Stored) Size() int64 {
	blocks := s.size / s.block
	return int64(len(s.prefix)) + blocks*int64(len(s.full)) + s.size + int64(len(s.last)+len(s.suffix))
}

// WriteRange writes the encoded bytes [off, off+n) to w. It calls src at most once, for the plain
// bytes [off, off+n) among them, wherever they fall into blocks; src must write exactly those to
// the writer that it is given, before it returns. It is not called if there are none.
//
// Errors of w and src are returned wrapped, and leave an unknown part of the range written.
func (s *Stored) WriteRange(w io.Writer, off, n int64, src func(w io.Writer, off, n int64) error) error {
	if off < 0 || n < 0 || off > s.Size()-n {
		return fmt.Errorf("write stored range %d+%d: out of bounds, size is %d", off, n, s.Size())
	}
	sp := &splitter{s: s, w: w, pos: off, end: off + n}
	if err := sp.framing(); err != nil {
		return fmt.Errorf("write stored range: %w", err)
	}
	from, to := s.plainBefore(off), s.plainBefore(off+n)
	if from == to {
		return nil
	}
	if err := src(sp, from, to-from); err != nil {
		return fmt.Errorf("write stored range: %w", err)
	}
	if sp.pos != sp.end {
		return fmt.Errorf("write stored range: plain bytes %d+%d: %w", from, to-from, io.ErrUnexpectedEOF)
	}
	return nil
}

// at tells what is at encoded offset pos: framing, of which it returns the rest, or plain bytes,
// of which it returns how many follow before the next framing.
func (s *Stored) at(pos int64) (framing []byte, plain int64) {
	if pos < int64(len(s.prefix)) {
		return s.prefix[pos:], 0
	}
	pos -= int64(len(s.prefix))
	blocks, stride := s.size/s.block, int64(len(s.full))+s.block
	header, payload := s.full, s.block
	if pos < blocks*stride {
		pos %= stride
	} else {
		pos -= blocks * stride
		header, payload = s.last, s.size%s.block
	}
	switch h := int64(len(header)); {
	case pos < h:
		return header[pos:], 0
	case pos < h+payload:
		return nil, h + payload - pos
	default:
		return s.suffix[pos-h-payload:], 0
	}
}

// plainBefore returns how many plain bytes are in the first pos encoded ones.
func (s *Stored) plainBefore(pos int64) int64 {
	pos = max(pos-int64(len(s.prefix)), 0)
	blocks, stride := s.size/s.block, int64(len(s.full))+s.block
	if pos < blocks*stride {
		return pos/stride*s.block + max(pos%stride-int64(len(s.full)), 0)
	}
	tail := max(pos-blocks*stride-int64(len(s.last)), 0)
	return blocks*s.block + min(tail, s.size%s.block)
}

// splitter is given the plain bytes of a range, and writes the range. Between calls pos is never
// at framing.
type splitter struct {
	s        *Stored
	w        io.Writer
	pos, end int64 // encoded offsets
}

var errTooMuchPlain = errors.New("more plain bytes than were asked for")

// Write implements io.Writer.
func (sp *splitter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		_, plain := sp.s.at(sp.pos)
		part := min(plain, sp.end-sp.pos, int64(len(p)-written))
		if part == 0 {
			return written, errTooMuchPlain
		}
		n, err := sp.w.Write(p[written : written+int(part)])
		written += n
		sp.pos += int64(n)
		if err == nil && n < int(part) {
			err = io.ErrShortWrite
		}
		if err == nil {
			err = sp.framing()
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// framing writes what is not plain bytes from pos on.
func (sp *splitter) framing() error {
	for sp.pos < sp.end {
		b, _ := sp.s.at(sp.pos)
		b = b[:min(int64(len(b)), sp.end-sp.pos)]
		if len(b) == 0 {
			return nil
		}
		if _, err := sp.w.Write(b); err != nil {
			return err
		}
		sp.pos += int64(len(b))
	}
	return nil
}

// xz (The .xz File Format 1.2.1). The integrity check is None, which no reader comments on; one
// block without sizes in its header; LZMA2 with a dictionary of 64 KiB, reset in every chunk.
var (
	xzStreamFlags = []byte{0, 0}
	xzBlockHeader = withCRC32([]byte{2, 0, 0x21, 1, 8, 0, 0, 0})
	xzPrefix      = append(withCRC32Of([]byte("\xfd7zXZ\x00"), xzStreamFlags), xzBlockHeader...)
)

func xzChunk(n int64) []byte {
	return binary.BigEndian.AppendUint16([]byte{1}, uint16(n-1))
}

// xzSuffix ends the block, which has size plain bytes in chunks bytes of LZMA2, and the stream.
func xzSuffix(size, chunks int64) []byte {
	chunks++
	b := []byte{0} // end of LZMA2
	b = append(b, make([]byte, -chunks&3)...)

	index := []byte{0, 1} // one record: the block's size without padding, its plain size
	index = binary.AppendUvarint(index, uint64(len(xzBlockHeader))+uint64(chunks))
	index = binary.AppendUvarint(index, uint64(size))
	index = append(index, make([]byte, -len(index)&3)...)
	index = withCRC32(index)

	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, xzStreamFlags...)

	b = append(b, index...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(footer))
	b = append(b, footer...)
	return append(b, "YZ"...)
}

func withCRC32(b []byte) []byte { return withCRC32Of(nil, b) }

// withCRC32Of appends b and its CRC-32 to dst.
func withCRC32Of(dst, b []byte) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, b...), crc32.ChecksumIEEE(b))
}

// gzip (RFC 1952, RFC 1951). No time, no name, unknown operating system.
var gzipPrefix = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}

func gzipBlock(n int64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{0}, uint16(n))
	return binary.LittleEndian.AppendUint16(b, ^uint16(n))
}

func gzipSuffix(size int64, crc uint32) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0xff, 0xff}, crc)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

// zstd (RFC 8878). The descriptor says: eight bytes of content size, a window, no checksum, no
// dictionary. The window is 128 KiB, the least that allows blocks of that size.
func zstdPrefix(size int64) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, (17 - 10) << 3}
	return binary.LittleEndian.AppendUint64(b, uint64(size))
}

func zstdBlock(n int64) []byte { return littleEndian24(n << 3) }

// brotli (RFC 7932). One byte holds, from the lowest bit: a window of 2^16 (0), and a metadata
// block of no bytes (0 11 0 00), which pads to the byte boundary where every block then starts.
// Blocks may be larger than the window.
var brotliPrefix = []byte{0b00_0_11_0_0}

// brotliBlock has, from the lowest bit: not last (0), 4 nibbles of length (00), the length less
// one, uncompressed (1), padding.
func brotliBlock(n int64) []byte { return littleEndian24((n-1)<<3 | 1<<19) }

// lz4 (LZ4 Frame Format 1.6.1). Version 1, independent blocks, no checksums, no content size;
// blocks of at most 64 KiB; the header's own checksum.
var lz4Prefix = []byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82}

func lz4Block(n int64) []byte {
	return binary.LittleEndian.AppendUint32(nil, uint32(n)|1<<31)
}

func littleEndian24(v int64) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16)} }
