package packfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrCorrupt is wrapped by every error about bytes that are not what this package
// wrote: wrong magic, checksum, length or order. A newer format is [ErrVersion].
var ErrCorrupt = errors.New("corrupt")

// ErrVersion is wrapped when a pack or a journal was written by a newer dedupd.
var ErrVersion = errors.New("written by a newer version of dedupd; upgrade to read it")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func updateChecksum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// checkVersion checks the version that a what says it has.
func checkVersion(what string, version, known uint32) error {
	switch {
	case version > known:
		return fmt.Errorf("%s version %d: %w", what, version, ErrVersion)
	case version == 0:
		return corruptf("%s has no version", what)
	}
	return nil
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// A cursor reads the fields of a byte slice from front to back. The first field that
// is not there makes every later one zero and sets err, so that callers check once.
// It never allocates by a length that it read: slices alias the input.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(what string) { c.reject("%s runs past the end", what) }

// reject makes the cursor fail, if it has not yet.
func (c *cursor) reject(format string, args ...any) {
	if c.err == nil {
		c.err = corruptf(format, args...)
	}
	c.b = nil
}

// uvarint reads an unsigned varint in its shortest form: any other would be a second
// encoding of the same thing.
func (c *cursor) uvarint(what string) uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail(what)
		return 0
	}
	if n > 1 && c.b[n-1] == 0 {
		c.reject("%s is not in its shortest form", what)
		return 0
	}
	c.b = c.b[n:]
	return v
}

// limited reads a uvarint that may not be above max.
func (c *cursor) limited(max uint64, what string) uint64 {
	v := c.uvarint(what)
	if v > max {
		c.reject("%s is %d, above its limit %d", what, v, max)
		return 0
	}
	return v
}

// count reads the number of items that follow, each at least size bytes long, so
// that a caller may allocate for them.
func (c *cursor) count(size int, what string) int {
	return int(c.limited(uint64(len(c.b)/size), what))
}

func (c *cursor) bytes(n uint64, what string) []byte {
	if n > uint64(len(c.b)) {
		c.fail(what)
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) byte(what string) byte {
	if p := c.bytes(1, what); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u32(what string) uint32 {
	if p := c.bytes(4, what); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// end reports what went wrong, bytes left over included.
func (c *cursor) end(what string) error {
	if len(c.b) != 0 {
		c.reject("%d bytes follow the end of the %s", len(c.b), what)
	}
	return c.err
}
