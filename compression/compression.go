// Package compression knows the compressions of Nix NAR files: how narinfos and file names call
// them, how to recognise one, how to decode one in bounded memory, and how to encode plain bytes
// in a format's stored mode, which costs no compression and whose length and bytes are known
// beforehand.
//
// A caller that decodes something it was sent does four things:
//
//	prefix, err := br.Peek(compression.HeaderSize)      // less only at the end of the file
//	t, err := compression.Detect(name, prefix)          // what is it
//	need, err := compression.Memory(t, prefix)          // how much will it take: reserve that
//	rd, err := compression.NewReader(t, br, compression.Limits{MaxMemory: need})
//
// The other way round, [Stored] lets a name under which a compressed file was once uploaded live
// on after the file itself has been dissolved into chunks.
package compression

import (
	"errors"
	"fmt"
	"path"
)

// Type is a compression as the Compression field of a narinfo names it.
type Type string

// All values that Nix knows (src/libstore/nar-info.cc, src/libutil/compression.cc).
const (
	None     Type = "none"
	XZ       Type = "xz"
	Bzip2    Type = "bzip2"
	Gzip     Type = "gzip"
	Zstd     Type = "zstd"
	Brotli   Type = "br"
	LZ4      Type = "lz4"
	Lzip     Type = "lzip"
	LZMA     Type = "lzma"
	LZOP     Type = "lzop"
	LRZip    Type = "lrzip"
	GRZip    Type = "grzip"
	Compress Type = "compress"
)

var (
	// ErrUnsupported is wrapped by every UnsupportedError.
	ErrUnsupported = errors.New("unsupported compression")
	// ErrUnknown says that a name or a file's first bytes fit no compression known to Nix.
	ErrUnknown = errors.New("unknown compression")
	// ErrMismatch says that a file's name claims another compression than its first bytes show.
	ErrMismatch = errors.New("file name and contents disagree on the compression")
	// ErrCorrupt says that the whole input was read and is not what its Type requires. Input
	// that ends too early wraps io.ErrUnexpectedEOF as well.
	ErrCorrupt = errors.New("corrupt compressed data")
	// ErrTooMuchMemory says that decoding needs more memory than the limit allows.
	ErrTooMuchMemory = errors.New("decoding needs too much memory")
)

// UnsupportedError names a compression that exists but that this package cannot decode, detect as
// usable, or encode. errors.Is(err, ErrUnsupported) holds for it.
type UnsupportedError struct{ Type Type }

func (e *UnsupportedError) Error() string { return fmt.Sprintf("%v: %s", ErrUnsupported, e.Type) }

func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

// types is the one table of what is known about each Type.
var types = map[Type]struct {
	extension    string   // that Nix appends to a NAR's file name; it has none for the rarer ones
	aliases      []string // other extensions that claim this type
	reproducible bool
}{
	None:     {reproducible: true},
	XZ:       {extension: ".xz", reproducible: true},
	Bzip2:    {extension: ".bz2"},
	Gzip:     {aliases: []string{".gz"}, reproducible: true},
	Zstd:     {extension: ".zst", aliases: []string{".zstd"}, reproducible: true},
	Brotli:   {extension: ".br", reproducible: true},
	LZ4:      {extension: ".lz4", reproducible: true},
	Lzip:     {extension: ".lzip", aliases: []string{".lz"}},
	LZMA:     {aliases: []string{".lzma"}},
	LZOP:     {aliases: []string{".lzo"}},
	LRZip:    {aliases: []string{".lrz"}},
	GRZip:    {aliases: []string{".grz"}},
	Compress: {aliases: []string{".Z"}},
}

// byExtension maps an extension to the type that it claims.
var byExtension = func() map[string]Type {
	m := make(map[string]Type)
	for t, info := range types {
		if info.extension != "" {
			m[info.extension] = t
		}
		for _, a := range info.aliases {
			m[a] = t
		}
	}
	return m
}()

// Parse returns the type that the value of a narinfo's Compression field names. As in Nix, an
// absent or empty value means bzip2. The error wraps ErrUnknown.
func Parse(field string) (Type, error) {
	if field == "" {
		return Bzip2, nil
	}
	t := Type(field)
	if _, ok := types[t]; !ok {
		return "", fmt.Errorf("%w: %q", ErrUnknown, field)
	}
	return t, nil
}

// Reproducible reports whether NewStored knows a deterministic encoding for t.
func (t Type) Reproducible() bool { return types[t].reproducible }

// Extension returns what Nix appends to "<hash>.nar" when it uploads a NAR of type t, dot
// included. It is empty for None and also for gzip and all types Nix has no extension for.
func (t Type) Extension() string { return types[t].extension }

// claimed returns the type that a file name claims; ok is false if it claims none. A plain ".nar"
// claims nothing: Nix uses it for gzip and others, and some caches use it for everything.
func claimed(fileName string) (t Type, ok bool) {
	t, ok = byExtension[path.Ext(fileName)]
	return t, ok
}
