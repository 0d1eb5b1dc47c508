package compression

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// narMagic is how every NAR begins: the string "nix-archive-1" in Nix's serialisation.
const narMagic = "\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1"

// skippable stands for a frame that both the Zstandard and the LZ4 frame format tell decoders to
// skip, when the frame after it is out of sight.
const skippable Type = "skippable"

// magics are the first bytes that identify a type.
var magics = []struct {
	magic string
	t     Type
}{
	{narMagic, None},
	{"\xfd7zXZ\x00", XZ},
	{"\x28\xb5\x2f\xfd", Zstd},
	{"\x1f\x8b\x08", Gzip},
	{"\x04\x22\x4d\x18", LZ4},
	{"\x02\x21\x4c\x18", LZ4}, // the legacy frame
	{"BZh", Bzip2},
	{"LZIP", Lzip},
	{"\x89LZO\x00\x0d\x0a\x1a\x0a", LZOP},
	{"LRZI", LRZip},
	{"GRZipII\x00", GRZip},
	{"\x1f\x9d", Compress},
}

// Detect tells the compression of an uploaded NAR from its file name (a path will do, a query will
// not) and its first bytes: up to HeaderSize of them, fewer only if the file is shorter.
//
// The bytes decide. The extension is used for brotli, which has no magic number, and is otherwise
// only compared: Nix gives gzip and rarer types no extension at all. If the two contradict each
// other, the error wraps ErrMismatch; if neither says anything, ErrUnknown.
//
// A type that is recognised but has no stored mode is returned together with an *UnsupportedError:
// an upload of it must be refused, since its name could not be kept alive. NewReader may be able to
// decode it all the same (bzip2).
func Detect(fileName string, prefix []byte) (Type, error) {
	t := byMagic(prefix)
	claim, claims := claimed(fileName)
	switch {
	case t == skippable && claim == LZ4:
		t = LZ4
	case t == skippable:
		t = Zstd
	case t == "" && claim == Brotli:
		t = Brotli
	case t == "" && (claim == LZMA || !claims) && isLZMA(prefix):
		t = LZMA
	}
	switch {
	case t == "" && claims:
		return "", fmt.Errorf("%w: %q does not begin like %s", ErrMismatch, fileName, claim)
	case t == "":
		return "", fmt.Errorf("%w: %q begins with %x", ErrUnknown, fileName, prefix[:min(len(prefix), 8)])
	case claims && claim != t:
		return "", fmt.Errorf("%w: %q begins like %s", ErrMismatch, fileName, t)
	case !t.Reproducible():
		return t, &UnsupportedError{t}
	}
	return t, nil
}

// byMagic returns the type whose magic number prefix begins with, skippable, or "".
func byMagic(prefix []byte) Type {
	rest, skipped := skipFrames(prefix)
	for _, m := range magics {
		if !bytes.HasPrefix(rest, []byte(m.magic)) {
			continue
		}
		if skipped && m.t != Zstd && m.t != LZ4 {
			return "" // only these two have skippable frames
		}
		return m.t
	}
	if skipped && len(rest) < 4 {
		return skippable
	}
	return ""
}

// skipFrames returns what follows the skippable frames at the start of prefix, empty if that is
// out of sight, and whether there were any. (RFC 8878, section 3.1.2; LZ4 took it over.)
func skipFrames(prefix []byte) (rest []byte, skipped bool) {
	for len(prefix) >= 4 && binary.LittleEndian.Uint32(prefix)&^0xf == 0x184d2a50 {
		skipped = true
		if len(prefix) < 8 {
			return nil, true
		}
		size := 8 + uint64(binary.LittleEndian.Uint32(prefix[4:]))
		if size > uint64(len(prefix)) {
			return nil, true
		}
		prefix = prefix[size:]
	}
	return prefix, skipped
}

// isLZMA applies the sanity checks of xz's lzma_alone decoder to a format that has no magic
// number: properties below 225, a dictionary of 2^n or 2^n+2^(n-1) bytes, and a size that is
// unknown or below 256 GiB.
func isLZMA(prefix []byte) bool {
	if len(prefix) < 13 || prefix[0] >= 225 {
		return false
	}
	dict := binary.LittleEndian.Uint32(prefix[1:])
	size := binary.LittleEndian.Uint64(prefix[5:])
	high := dict & -dict // the lowest set bit, then the one above it if the size is 3·2^n
	if dict&(high<<1) != 0 {
		high |= high << 1
	}
	return dict != 0 && (dict == high || dict == 1<<32-1) && (size == 1<<64-1 || size < 1<<38)
}
