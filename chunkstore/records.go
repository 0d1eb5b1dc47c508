package chunkstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// A commitID orders commits: the name of the pack, and the commit's number in it, big
// endian. Where two commits claim the same thing the lowest wins, so that packs may be
// applied in any order.
type commitID [packfile.NameSize + 4]byte

func newCommitID(pack packfile.Name, n int) (id commitID) {
	pack.Append(id[:0])
	binary.BigEndian.PutUint32(id[packfile.NameSize:], uint32(n))
	return id
}

func (id commitID) pack() packfile.Name {
	name, _ := packfile.NameFromBytes(id[:packfile.NameSize])
	return name
}

func (id commitID) less(other commitID) bool { return bytes.Compare(id[:], other[:]) < 0 }

// File is what is known of an uploaded file.
type File struct {
	Name string // as in the URL, without a slash at its start
	// Content is the SHA-256 of the object behind the name: of the NAR that the file
	// decodes to, or of the file itself.
	Content Hash
	// Size is the length of that object in bytes.
	Size int64
	// NAR says that the object is a NAR, which the file holds in Compression.
	NAR         bool
	Compression string
	// FileSize and FileHash are the length and SHA-256 of the file as it was uploaded,
	// and CRC32 the IEEE checksum of the object if Compression needs it.
	FileSize int64
	FileHash Hash
	CRC32    uint32

	inline []byte // a small file itself
}

// The record of a name:
//
//	uvarint length, name, 32 content hash, uvarint size,
//	1 (0 file, 1 NAR, 2 small file that stands here), uvarint length, compression,
//	uvarint file size, 32 file hash, 4 CRC-32, and for 2 the file
const (
	fileContent = 0
	fileNAR     = 1
	fileInline  = 2

	// maxInline is the size in bytes up to which a file stands in its record.
	maxInline = 4 << 10
)

func (f *File) encode() []byte {
	kind := byte(fileContent)
	switch {
	case f.NAR:
		kind = fileNAR
	case f.inline != nil:
		kind = fileInline
	}
	b := binary.AppendUvarint(nil, uint64(len(f.Name)))
	b = append(b, f.Name...)
	b = append(b, f.Content[:]...)
	b = binary.AppendUvarint(b, uint64(f.Size))
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(len(f.Compression)))
	b = append(b, f.Compression...)
	b = binary.AppendUvarint(b, uint64(f.FileSize))
	b = append(b, f.FileHash[:]...)
	b = binary.LittleEndian.AppendUint32(b, f.CRC32)
	return append(b, f.inline...)
}

func decodeFile(b []byte) (*File, error) {
	d := decoder{b: b}
	f := &File{Name: string(d.bytes(d.count(1)))}
	copy(f.Content[:], d.bytes(32))
	f.Size = int64(d.uvarint() & (1<<63 - 1))
	kind := d.bytes(1)
	f.Compression = string(d.bytes(d.count(1)))
	f.FileSize = int64(d.uvarint() & (1<<63 - 1))
	copy(f.FileHash[:], d.bytes(32))
	if crc := d.bytes(4); d.err == nil {
		f.CRC32 = binary.LittleEndian.Uint32(crc)
		f.NAR = kind[0] == fileNAR
		if kind[0] == fileInline {
			f.inline = append([]byte{}, d.b...)
			d.b = nil
		}
	}
	return f, d.end()
}

// Inline says whether the file is too small to be an object: it is known with its name.
func (f *File) Inline() bool { return f.inline != nil }

// same says whether two records of one name are about the same object.
func (f *File) same(other *File) bool {
	return f.Content == other.Content && f.NAR == other.NAR && f.Compression == other.Compression
}

// The row of a recipe, a content or a name is the ID of the commit that it comes from
// and the record's body; the lowest ID stands.
func makeRow(id commitID, body []byte) []byte { return append(id[:], body...) }

func splitRow(b []byte) (id commitID, body []byte) {
	if len(b) >= len(id) {
		copy(id[:], b)
		body = b[len(id):]
	}
	return id, body
}

// The row of a store path holds every narinfo that was committed for it, one for each
// fingerprint, the lowest commit first: that one is served. Keeping them all makes the
// outcome the same in whatever order commits are applied.
//
//	for each: uvarint length of the rest, 26 commit ID, narinfo
type variant struct {
	id   commitID
	info *narinfo.NarInfo
}

func decodeVariants(b []byte, storeDir string) ([]variant, error) {
	var vs []variant
	for d := (decoder{b: b}); len(d.b) > 0; {
		id, text := splitRow(d.bytes(d.count(1)))
		if d.err != nil {
			return nil, d.err
		}
		info, err := narinfo.Parse(text, storeDir)
		if err != nil {
			return nil, fmt.Errorf("stored narinfo: %w", err)
		}
		vs = append(vs, variant{id, info})
	}
	return vs, nil
}

func encodeVariants(vs []variant, storeDir string) []byte {
	var b []byte
	for _, v := range vs {
		text := v.info.Text(storeDir)
		b = binary.AppendUvarint(b, uint64(len(v.id)+len(text)))
		b = append(b, v.id[:]...)
		b = append(b, text...)
	}
	return b
}

// addVariant merges v into vs: one entry for each fingerprint, with the lowest commit's
// text and all signatures.
func addVariant(vs []variant, v variant, storeDir string) []variant {
	i := slices.IndexFunc(vs, func(o variant) bool {
		return o.info.Fingerprint(storeDir) == v.info.Fingerprint(storeDir)
	})
	if i < 0 {
		vs = append(vs, v)
	} else {
		if v.id.less(vs[i].id) {
			vs[i], v = v, vs[i]
		}
		if v.id != vs[i].id {
			vs[i].info.MergeSigs(storeDir, v.info) // the fingerprints are equal
		}
	}
	slices.SortFunc(vs, func(a, b variant) int { return bytes.Compare(a.id[:], b.id[:]) })
	return vs
}
