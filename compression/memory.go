package compression

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// HeaderSize is how many bytes of a file Detect and Memory want to see, if it has that many. The
// largest header is xz's: 12 bytes of stream header and up to 1,024 of block header.
const HeaderSize = 12 + 1024

// DefaultMaxMemory is the limit that Limits.MaxMemory defaults to: room for windows up to the
// 128 MiB that Nix accepts (libarchive's limit for zstd).
const DefaultMaxMemory = 128<<20 + overhead

const (
	// commonWindow is the window or dictionary that a reservation for xz or zstd always has room
	// for, though a file's first header may ask for less: its later frames, often larger than the
	// first, must still fit. It is what xz -6 and zstd -19 use, what every zstd decoder should
	// support (RFC 8878), and the size up to which decoders are pooled.
	commonWindow = 8 << 20

	// overhead bounds what a decoder needs besides its window: tables, block and input buffers.
	overhead = 1 << 20

	// brotliOverhead is that for brotli, whose tables can be far larger: up to 256 Huffman trees
	// each for literals, commands and distances, 4.4 KB to 5.6 KB a tree.
	brotliOverhead = 5 << 20

	// lz4Memory is for legacy frames, which may follow any other and have blocks of 8 MiB (otherwise
	// 4 MiB at most): a block as read, as decoded, and as the history that the library keeps where
	// blocks depend on each other, old and grown copy of it.
	lz4Memory = 36<<20 + overhead

	// bzip2Memory is a block of 900,000 four-byte entries, and tables.
	bzip2Memory = 4*900_000 + overhead
)

// Memory returns how many bytes a decoder of type t will need for a file that begins with prefix,
// so that a caller can reserve them before calling NewReader with that number as its limit. prefix
// must be the first HeaderSize bytes of the file, or all of it if it is shorter.
//
// The result is an upper bound with room for later streams or frames up to the common 8 MiB
// window, not an exact figure. Where the first frame's header cannot be seen because a skippable
// frame is in the way, it is DefaultMaxMemory. Nothing is allocated however large the result is.
// A bad header is an error that wraps ErrCorrupt (and io.ErrUnexpectedEOF where it is cut short);
// a type that cannot be decoded gives an *UnsupportedError.
func Memory(t Type, prefix []byte) (int64, error) {
	need, err := memory(t, prefix)
	if err != nil && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrUnknown) {
		err = fmt.Errorf("%w: %s header: %w", ErrCorrupt, t, err)
	}
	return need, err
}

func memory(t Type, prefix []byte) (int64, error) {
	if len(prefix) == 0 && t != None {
		return 0, io.ErrUnexpectedEOF // no compressed file is empty
	}
	switch t {
	case None:
		return 0, nil
	case XZ:
		dict, err := xzDictionary(prefix)
		return int64(max(dict, commonWindow)) + overhead, err
	case Zstd:
		return zstdMemory(prefix)
	case Brotli:
		window, err := brotliWindow(prefix[0])
		// The ring buffer grows by doubling, so that half of it may linger as garbage.
		return int64(window+window/2) + brotliOverhead, err
	case Gzip:
		return overhead, nil
	case LZ4:
		return lz4Memory, nil
	case Bzip2:
		return bzip2Memory, nil
	}
	if _, err := Parse(string(t)); err != nil {
		return 0, err
	}
	return 0, &UnsupportedError{t}
}

// zstdMemory finds the first frame's window.
func zstdMemory(prefix []byte) (int64, error) {
	rest, skipped := skipFrames(prefix)
	if skipped && len(rest) < zstd.HeaderMaxSize {
		return DefaultMaxMemory, nil
	}
	var h zstd.Header
	if err := h.Decode(rest); err != nil {
		return 0, err
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	// A content size can be anything up to 2^64-1: saturate, no limit will admit it anyway.
	return int64(min(max(window, commonWindow), 1<<62)) + overhead, nil
}

// brotliWindow returns the window size that the first byte of a brotli stream encodes (RFC 7932,
// section 9.1). Large-window brotli is an error, as it is to Nix.
func brotliWindow(b byte) (int, error) {
	wbits := 0
	switch low, high := b>>1&7, b>>4&7; {
	case b&1 == 0:
		wbits = 16
	case low != 0:
		wbits = 17 + int(low)
	case high == 0:
		wbits = 17
	case high == 1:
		return 0, errors.New("invalid window size")
	default:
		wbits = 8 + int(high)
	}
	return 1 << wbits, nil
}

// xzDictionary returns the dictionary size of the first block of an xz file, 0 if it has no block
// (The .xz File Format 1.2.1, sections 2.1.1, 3.1 and 5.3.1). The decoder checks what is not
// needed here, checksums among it.
func xzDictionary(prefix []byte) (uint64, error) {
	const streamHeader = 12
	if len(prefix) <= streamHeader {
		return 0, io.ErrUnexpectedEOF
	}
	if byMagic(prefix) != XZ {
		return 0, errors.New("no magic number")
	}
	b := prefix[streamHeader:]
	if b[0] == 0 {
		return 0, nil // the index: there are no blocks
	}
	size := (int(b[0]) + 1) * 4
	if len(b) < size {
		return 0, io.ErrUnexpectedEOF
	}
	flags := b[1]
	f := fields{b[2 : size-4]}
	if flags&0x40 != 0 {
		f.varint() // compressed size
	}
	if flags&0x80 != 0 {
		f.varint() // uncompressed size
	}
	for range flags&3 + 1 {
		id, props := f.varint(), f.bytes()
		if id != 0x21 { // LZMA2
			continue
		}
		if len(props) != 1 || props[0] > 40 {
			return 0, errors.New("bad LZMA2 properties")
		}
		if props[0] == 40 {
			return 1<<32 - 1, nil
		}
		return uint64(2|props[0]&1) << (props[0]/2 + 11), nil
	}
	return 0, errors.New("no LZMA2 filter in the first block")
}

// fields takes xz's variable-length fields off a header. What is cut short or malformed reads as
// zero or empty, and so does everything after it.
type fields struct{ b []byte }

func (f *fields) varint() uint64 {
	v, n := binary.Uvarint(f.b) // xz's integers are the same, limited to 9 bytes
	f.b = f.b[max(n, 0):]
	if n <= 0 {
		f.b = nil
		return 0
	}
	return v
}

func (f *fields) bytes() []byte {
	n := f.varint()
	if n > uint64(len(f.b)) {
		f.b = nil
		return nil
	}
	b := f.b[:n]
	f.b = f.b[n:]
	return b
}
