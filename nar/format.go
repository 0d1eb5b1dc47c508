// Package nar reads and writes Nix archives (NARs), the serialisation of one
// store path.
//
// A NAR is a sequence of strings. Each is its length as a little-endian
// 64-bit number, its bytes, and zero bytes up to a multiple of eight:
//
//	nar  = "nix-archive-1" node
//	node = "(" "type" body ")"
//	body = "regular" [ "executable" "" ] "contents" <bytes>
//	     | "symlink" "target" <target>
//	     | "directory" { "entry" "(" "name" <name> "node" node ")" }
//
// Only this canonical form is accepted, so that parsing a NAR and writing what
// was parsed gives the same bytes again. Nix up to 2.24 read laxer forms, but
// never wrote them. (Nix: src/libutil/archive.cc, src/libutil/serialise.cc.)
package nar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Limits of the format, and of this package.
const (
	// MaxDepth is the number of levels that every Nix accepts; the root is
	// level 0. Nix 2.35, and the last releases of older branches, refuse a NAR
	// whose [Reader.Depth] is MaxDepth or more. Older ones made and read such
	// NARs, so this package does both: callers should warn.
	MaxDepth = 64

	// MaxNameLen and MaxTargetLen are the longest names and symlink targets,
	// in bytes.
	MaxNameLen   = 255
	MaxTargetLen = 4095

	// maxLevels and maxPathLen bound memory, and the work for each entry, on
	// hostile input. No file system that Nix runs on can hold more.
	maxLevels  = 4096
	maxPathLen = 64 << 10

	// maxSize leaves room for the structure around the contents, so that no
	// offset overflows.
	maxSize = math.MaxInt64 - 1<<20
)

// Errors are wrapped in [Error], which says where.
var (
	// ErrFormat says that the input is not a canonical NAR. An input that
	// merely ends too early is [io.ErrUnexpectedEOF] instead, and an error of
	// the source stays what it is.
	ErrFormat = errors.New("malformed NAR")

	// ErrTooLarge says that a listing would take more memory than it may.
	ErrTooLarge = errors.New("too many files")

	// ErrNotUTF8 says that a name or target has no JSON representation.
	ErrNotUTF8 = errors.New("not UTF-8")
)

// Error is a failure to read or write a NAR, and where it happened.
type Error struct {
	Path   string // the last file whose header was read or written; "" is the root
	Offset int64  // from the start of the NAR
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("nar: at offset %d, path %q: %v", e.Offset, e.Path, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// malformed returns an error that is ErrFormat.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Type is the type of a file. The zero Type is not valid.
type Type byte

// The types that the format has.
const (
	Regular Type = iota + 1
	Directory
	Symlink
)

// String returns the format's own word for t.
func (t Type) String() string {
	switch t {
	case Regular:
		return "regular"
	case Directory:
		return "directory"
	case Symlink:
		return "symlink"
	}
	return fmt.Sprintf("Type(%d)", byte(t))
}

// Header describes one file of a NAR. Fields that the type has no use for are
// zero when read and ignored when written.
type Header struct {
	// Path is relative to the root, whose own path is "". Its elements are
	// separated by slashes. It is bytes: maybe not UTF-8.
	Path string
	Type Type

	Executable bool   // of a Regular file
	Size       int64  // length of a Regular file's contents in bytes
	Target     string // of a Symlink; bytes, maybe not UTF-8

	// Offset counts bytes from the start of the NAR to a Regular file's first
	// content byte (the narOffset of listings), or to the first byte of a
	// Symlink's target. It is 0 for a Directory, and ignored when written.
	Offset int64
}

// Runs of strings that can only come together, encoded. Reader compares and
// Writer copies them whole.
var (
	tokMagic      = encode("nix-archive-1")
	tokNode       = encode("(", "type")
	tokRegular    = encode("regular")
	tokExecutable = encode("executable", "")
	tokContents   = encode("contents")
	tokSymlink    = encode("symlink", "target")
	tokDirectory  = encode("directory")
	tokEntry      = encode("entry", "(", "name")
	tokEntryNode  = encode("node")
	tokClose      = encode(")")
)

const (
	lenSize = 8 // of the length that precedes each string

	// wordSize is the size of a short encoded string. Wherever there is a choice of
	// strings, their first wordSize bytes differ, and at least as many follow.
	wordSize = 16
)

// padding returns how many zero bytes follow a string of n bytes.
func padding(n int64) int { return int(-n & 7) }

// encode returns the encoding of words, one after the other.
func encode(words ...string) string {
	var b []byte
	for _, s := range words {
		b = appendString(b, s)
	}
	return string(b)
}

// appendString appends the encoding of s.
func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, zeros[:padding(int64(len(s)))]...)
}

var zeros [8]byte

// checkPadding refuses padding that is not zero.
func checkPadding(b []byte) error {
	if !bytes.Equal(b, zeros[:len(b)]) {
		return malformed("padding is not zero")
	}
	return nil
}

// checkName says whether name can stand in a directory.
func checkName(name []byte) error {
	switch {
	case len(name) == 0:
		return malformed("empty name")
	case len(name) > MaxNameLen:
		return malformed("name of %d bytes", len(name))
	case string(name) == ".", string(name) == "..",
		bytes.IndexByte(name, '/') >= 0, bytes.IndexByte(name, 0) >= 0:
		return malformed("name %q", name)
	}
	return nil
}

// checkTarget says whether target can be a symlink's.
func checkTarget(target string) error {
	if len(target) == 0 || len(target) > MaxTargetLen {
		return malformed("symlink target of %d bytes", len(target))
	}
	if strings.IndexByte(target, 0) >= 0 {
		return malformed("NUL in symlink target %q", target)
	}
	return nil
}

// position is a place in a tree that is walked in NAR order. Reader and Writer
// share it, and so the rules about names.
type position struct {
	path []byte // of the last file
	dirs []dir  // the open directories, root first
}

// dir is an open directory. Both its path and the name of its last entry are
// parts of position.path, so that nothing is allocated for it.
type dir struct {
	path int // length of its path
	name int // length of the name of its last entry; 0 before the first
}

// names returns where the names of d's entries start in position.path.
func (d *dir) names() int {
	if d.path == 0 {
		return 0
	}
	return d.path + 1
}

// enter moves to the entry called name of the innermost open directory.
func (p *position) enter(name []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	d := &p.dirs[len(p.dirs)-1]
	start := d.names()
	if d.name > 0 {
		if last := p.path[start : start+d.name]; bytes.Compare(last, name) >= 0 {
			return malformed("name %q after %q", name, last)
		}
	}
	if start+len(name) > maxPathLen {
		return malformed("path longer than %d bytes", maxPathLen)
	}
	p.path = p.path[:d.path]
	if start > d.path {
		p.path = append(p.path, '/')
	}
	p.path = append(p.path, name...)
	d.name = len(name)
	return nil
}

// open makes the last file a directory whose entries come next.
func (p *position) open() error {
	if len(p.dirs) == maxLevels {
		return malformed("more than %d levels", maxLevels)
	}
	p.dirs = append(p.dirs, dir{path: len(p.path)})
	return nil
}

// close leaves the innermost open directory.
func (p *position) close() { p.dirs = p.dirs[:len(p.dirs)-1] }
