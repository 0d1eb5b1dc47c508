package packfile

import (
	"encoding/binary"
	"fmt"
)

// RawProfile names the serving profile that [AppendRaw] writes. A NAR's URL
// stands for its bytes for ever, so a profile is never changed: a better one
// gets another name.
const RawProfile = "raw-1"

// maxBlock is the most bytes that a zstd block regenerates (RFC 8878 §3.1.1.2.4).
const maxBlock = 128 << 10

// Types of zstd blocks (RFC 8878 §3.1.1.2.2).
const (
	blockRaw = iota
	blockRLE
	blockCompressed
)

const blockHeaderLen = 3

// RawLen returns the length of what [AppendRaw] writes for n bytes.
func RawLen(n int) int {
	blocks := max(1, (n+maxBlock-1)/maxBlock)
	return zstdHeaderLen(n) + blocks*blockHeaderLen + n
}

// AppendRaw appends plain, at most MaxChunk bytes, to dst as one zstd frame
// of the serving profile raw-1: what is served for bytes that are not stored as a
// frame that a client could read. Its bytes follow from plain alone:
//
//	size    | what
//	4       | magic 28 b5 2f fd
//	1       | descriptor: single segment, content size set, no checksum: 20, 60 or a0
//	1, 2, 4 | content size: n if n < 256, n-256 if n < 65792, or n; little endian
//	        | then blocks of 131072 bytes, the last one shorter; one of 0 bytes if n is 0
//	3       | size<<3 | 1 if it is the last; little endian
//	size    | plain bytes
func AppendRaw(dst, plain []byte) []byte {
	dst = appendZstdHeader(dst, len(plain))
	for {
		n := min(len(plain), maxBlock)
		last := n == len(plain)
		dst = append(appendBlockHeader(dst, blockRaw, n, last), plain[:n]...)
		if last {
			return dst
		}
		plain = plain[n:]
	}
}

// zstdHeaderLen returns the length of what appendZstdHeader writes.
func zstdHeaderLen(n int) int {
	switch {
	case n < 256:
		return 6
	case n < 65536+256:
		return 7
	default:
		return 9
	}
}

// appendZstdHeader appends the header of a zstd frame of n content bytes: single
// segment (so the window is the content), no checksum, no dictionary
// (RFC 8878 §3.1.1.1). Larger content would need larger windows in clients.
func appendZstdHeader(dst []byte, n int) []byte {
	if n > MaxChunk {
		panic(fmt.Sprintf("packfile: zstd frame of %d bytes", n))
	}
	const singleSegment = 1 << 5
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd)
	switch {
	case n < 256:
		return append(dst, singleSegment, byte(n))
	case n < 65536+256:
		dst = append(dst, singleSegment|1<<6)
		return binary.LittleEndian.AppendUint16(dst, uint16(n-256))
	default:
		dst = append(dst, singleSegment|2<<6)
		return binary.LittleEndian.AppendUint32(dst, uint32(n))
	}
}

// appendBlockHeader appends the header of a zstd block.
func appendBlockHeader(dst []byte, kind, size int, last bool) []byte {
	h := size<<3 | kind<<1
	if last {
		h |= 1
	}
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// A zstdBlock is what the header of a block says.
type zstdBlock struct {
	kind int
	last bool
	size int // of the block in the frame, without its header
}

// parseBlock reads the header of the block at the start of p. It reports false
// if p does not start with a whole block of a known type.
func parseBlock(p []byte) (zstdBlock, bool) {
	if len(p) < blockHeaderLen {
		return zstdBlock{}, false
	}
	h := int(p[0]) | int(p[1])<<8 | int(p[2])<<16
	b := zstdBlock{kind: h >> 1 & 3, last: h&1 == 1, size: h >> 3}
	if b.kind == blockRLE {
		b.size = 1 // the size field counts repetitions
	}
	return b, b.kind <= blockCompressed && b.size <= len(p)-blockHeaderLen
}
