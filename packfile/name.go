package packfile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// Name is the name of a pack: who wrote it, as which of its packs, and a random
// number, so that a name is never used twice whatever happens to a writer's memory.
// The zero Name means none.
//
// A writer's ID is made anew at every process start. Its first six bytes are the start
// time in milliseconds, or that of the newest writer in the bucket and one more if the
// clock is behind that, so that names mostly sort by age; followers find them sooner so.
type Name struct {
	Writer [10]byte
	Seq    uint64 // below 1<<40, which is what the text has room for
	Rand   uint32
}

// NameSize is the length of a name's binary form: writer, sequence and random
// number, big endian, so that bytes sort as names do.
const NameSize = 22

const maxSeq = 1<<40 - 1

// ErrName is returned for text or bytes that are not a pack's name.
var ErrName = errors.New("not a pack name")

// String returns the name as it stands in the bucket: <writer>/<sequence>-<random>,
// all in lower-case hexadecimal.
func (n Name) String() string {
	return fmt.Sprintf("%x/%010x-%08x", n.Writer, n.Seq, n.Rand)
}

// ParseName is the inverse of [Name.String]. It accepts nothing else.
func ParseName(s string) (Name, error) {
	var n Name
	if len(s) != 40 || s[20] != '/' || s[31] != '-' {
		return Name{}, fmt.Errorf("%w: %q", ErrName, s)
	}
	_, err1 := hex.Decode(n.Writer[:], []byte(s[:20]))
	seq, err2 := strconv.ParseUint(s[21:31], 16, 64)
	rnd, err3 := strconv.ParseUint(s[32:], 16, 32)
	n.Seq, n.Rand = seq, uint32(rnd)
	if err := errors.Join(err1, err2, err3); err != nil || n.String() != s {
		return Name{}, fmt.Errorf("%w: %q", ErrName, s)
	}
	return n, nil
}

// Append appends the binary form of n to b.
func (n Name) Append(b []byte) []byte {
	b = append(b, n.Writer[:]...)
	b = binary.BigEndian.AppendUint64(b, n.Seq)
	return binary.BigEndian.AppendUint32(b, n.Rand)
}

// NameFromBytes is the inverse of [Name.Append].
func NameFromBytes(b []byte) (Name, error) {
	if len(b) != NameSize {
		return Name{}, fmt.Errorf("%w: %d bytes", ErrName, len(b))
	}
	var n Name
	copy(n.Writer[:], b)
	n.Seq = binary.BigEndian.Uint64(b[10:])
	n.Rand = binary.BigEndian.Uint32(b[18:])
	if n.Seq > maxSeq {
		return Name{}, fmt.Errorf("%w: sequence number %d", ErrName, n.Seq)
	}
	return n, nil
}
