// Package nixexport reads and writes what nix-store --export writes and nix-store --import
// reads: store paths, one after another, as a stream.
//
// A number is 64 bits, little-endian; a string is as in a NAR: its length, its bytes, and zero
// bytes up to a multiple of eight. For each path, behind all that it refers to, there is
//
//	number    1
//	          the NAR
//	number    0x4558494e ("NIXE")
//	string    the store path
//	number    how many references follow
//	strings   the references, in order, as whole paths; the path itself may be one
//	string    the deriver, or nothing
//	number    0; or 1, and then
//	string    a signature of before Nix 2.0, at which nobody looks any more
//
// and a number 0 behind the last. Hashes, signatures and content addresses are not in it.
// (Nix: src/libstore/export-import.cc.)
package nixexport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/dedupd/dedupd/narinfo"
)

// ErrFormat is wrapped when the input is not such a stream. One that merely ends too early
// is io.ErrUnexpectedEOF instead, and an error of the source stays what it is.
var ErrFormat = errors.New("malformed export stream")

// A Path is what a stream says of a store path, beside its NAR.
type Path struct {
	StorePath  narinfo.StorePath
	References []narinfo.StorePath // in order; may include StorePath
	Deriver    narinfo.StorePath   // zero when unknown
}

const (
	magic = 0x4558494e

	bufferSize = 64 << 10
	lenSize    = 8

	// What is longer, or more, is taken for damage. No narinfo that anybody reads has so
	// many references.
	maxPath       = 4 << 10
	maxReferences = 1 << 16
	maxSignature  = 64 << 10
)

// padding returns how many zero bytes follow a string of n bytes.
func padding(n uint64) uint64 { return -n & 7 }

// malformed returns an error that is ErrFormat.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// cutShort returns err, or what it means that the input ends where it does.
func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, padding(uint64(len(s))))...)
}
