package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Every row in the file ends in a sum over where it belongs and what it says:
//
//	value
//	uint32  CRC-32C, little-endian, of table (1 byte), length of key (2), key, value
//
// Marks and the head's rows have it, too, as of tables of their own.
const (
	marksTable = 0xfe
	headTable  = 0xff
	sumSize    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(t Table, key, value []byte) uint32 {
	head := [3]byte{byte(t), byte(len(key)), byte(len(key) >> 8)}
	c := crc32.Update(0, castagnoli, head[:])
	c = crc32.Update(c, castagnoli, key)
	return crc32.Update(c, castagnoli, value)
}

// appendSummed appends a value as it stands in the file.
func appendSummed(p []byte, t Table, key, value []byte) []byte {
	p = append(p, value...)
	return binary.LittleEndian.AppendUint32(p, sum(t, key, value))
}

// summed returns the value of a row in the file, a part of stored, or ErrDamaged.
func summed(t Table, key, stored []byte) ([]byte, error) {
	n := len(stored) - sumSize
	if n < 0 || binary.LittleEndian.Uint32(stored[n:]) != sum(t, key, stored[:n]) {
		return nil, fmt.Errorf("%w: row %s of %v is not what was written", ErrDamaged, showKey(key), t)
	}
	return stored[:n:n], nil
}

// showKey is a key in messages: hashes in hexadecimal, cut where they are long.
func showKey(key []byte) string {
	if len(key) > 80 {
		return fmt.Sprintf("%q…", key[:80])
	}
	for _, c := range key {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%x", key)
		}
	}
	return fmt.Sprintf("%q", key)
}

// The first and the last row of each table are not of callers: every other key has a
// neighbour on either side, so that what is not found is known to be not there. See tree.
var (
	lowKey  = []byte{0}
	highKey = func() []byte {
		p := make([]byte, 64)
		for i := range p {
			p[i] = 0xff
		}
		return p
	}()
)

// reserved says whether a key is none that callers may use.
func reserved(key []byte) bool {
	return len(key) == 0 || len(key) > MaxKey || bytes.Equal(key, lowKey) || bytes.Compare(key, highKey) >= 0
}
