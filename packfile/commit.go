package packfile

import (
	"encoding/binary"
)

// FrameInfo describes one frame of a pack: its entry in the directory.
type FrameInfo struct {
	Kind    Kind
	Prefix  int    // bytes of the span table before the payload
	Payload int    // bytes of zstd data
	CRC     uint32 // CRC-32C of prefix and payload
	Chunks  []Chunk
}

// Size is the number of bytes that the frame takes in the pack.
func (f FrameInfo) Size() int64 { return int64(f.Prefix) + int64(f.Payload) }

// Limits on what a directory may claim, far above what the writer makes; they keep a
// damaged length from being believed.
const (
	maxFrameBytes  = 2 * MaxFrame
	minFrameEntry  = 1 + 1 + 1 + 4 + 1 + idSize + 1
	minRecordEntry = 2
	idSize         = len(ID{})

	// maxRecords bounds the records of one commit: two bytes of input would otherwise
	// cost sixteen times as much memory.
	maxRecords = 1 << 20
)

// MaxCommit is the length in bytes up to which an encoded commit can be written. Check
// it before the journal: a longer one cannot be sealed.
const MaxCommit = 128 << 20

func (f FrameInfo) append(b []byte) []byte {
	b = append(b, byte(f.Kind))
	b = binary.AppendUvarint(b, uint64(f.Prefix))
	b = binary.AppendUvarint(b, uint64(f.Payload))
	b = binary.LittleEndian.AppendUint32(b, f.CRC)
	b = binary.AppendUvarint(b, uint64(len(f.Chunks)))
	for _, c := range f.Chunks {
		b = append(b, c.ID[:]...)
		b = binary.AppendUvarint(b, uint64(c.Len))
	}
	return b
}

func (c *cursor) frame() FrameInfo {
	f := FrameInfo{
		Kind:    Kind(c.byte("frame kind")),
		Prefix:  int(c.limited(maxFrameBytes, "frame prefix")),
		Payload: int(c.limited(maxFrameBytes, "frame payload")),
		CRC:     c.u32("frame checksum"),
	}
	n := c.count(idSize+1, "chunks of a frame")
	if c.err == nil && (n == 0 || f.Kind != KindPatch && f.Kind != KindDecode || f.Kind == KindPatch && n != 1) {
		c.reject("a frame of kind %d holds %d chunks", f.Kind, n)
	}
	if c.err != nil {
		return f
	}
	f.Chunks = make([]Chunk, n)
	total := uint64(0)
	for i := range f.Chunks {
		copy(f.Chunks[i].ID[:], c.bytes(uint64(idSize), "chunk ID"))
		length := c.limited(MaxChunk, "chunk length")
		total += length
		f.Chunks[i].Len = uint32(length)
		if length == 0 || total > MaxFrame {
			c.reject("chunk %d of a frame has %d bytes, those so far %d", i, length, total)
			return f
		}
	}
	return f
}

func appendFrames(b []byte, frames []FrameInfo) []byte {
	b = binary.AppendUvarint(b, uint64(len(frames)))
	for _, f := range frames {
		b = f.append(b)
	}
	return b
}

func (c *cursor) frames() []FrameInfo {
	frames := make([]FrameInfo, 0, c.count(minFrameEntry, "frames"))
	for range cap(frames) {
		frames = append(frames, c.frame())
		if c.err != nil {
			return nil
		}
	}
	return frames
}

// RecordType says what a [Record] tells. The numbers are part of the format.
type RecordType uint8

const (
	RecordRecipe  RecordType = 1 // a list of chunks
	RecordContent RecordType = 2 // a NAR or other object: its hash, recipe and span values
	RecordNarInfo RecordType = 3 // the narinfo of one store path
	RecordName    RecordType = 4 // the name of an uploaded file
	RecordDamage  RecordType = 5 // a chunk that is not where it should be
)

// Record is one piece of metadata. Its body belongs to whoever wrote it; this package
// carries it.
type Record struct {
	Type RecordType
	Body []byte
}

// Commit is a set of records that become visible together, and the packs that they
// rely on beside the one that the commit is in. A reader applies it only when all of
// those are there, so packs may arrive in any order.
type Commit struct {
	Time    int64  // seconds since 1970, not negative, for people; nothing is decided by it
	Packs   []Name // without the pack that holds the commit
	Records []Record
}

// Append appends the encoded commit to b.
func (c *Commit) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(max(c.Time, 0)))
	b = binary.AppendUvarint(b, uint64(len(c.Packs)))
	for _, n := range c.Packs {
		b = n.Append(b)
	}
	b = binary.AppendUvarint(b, uint64(len(c.Records)))
	for _, r := range c.Records {
		b = append(b, byte(r.Type))
		b = binary.AppendUvarint(b, uint64(len(r.Body)))
		b = append(b, r.Body...)
	}
	return b
}

// ParseCommit is the inverse of [Commit.Append]. The records alias b. Record types
// that this version does not know are kept: whoever applies them decides.
func ParseCommit(b []byte) (*Commit, error) {
	c := cursor{b: b}
	commit := &Commit{Time: int64(c.limited(1<<62, "commit time"))}
	commit.Packs = make([]Name, c.count(NameSize, "packs of a commit"))
	for i := range commit.Packs {
		commit.Packs[i] = c.name("pack name")
	}
	records := min(maxRecords, uint64(len(c.b)/minRecordEntry))
	commit.Records = make([]Record, c.limited(records, "number of records"))
	for i := range commit.Records {
		commit.Records[i].Type = RecordType(c.byte("record type"))
		commit.Records[i].Body = c.bytes(c.uvarint("record length"), "record")
	}
	if err := c.end("commit"); err != nil {
		return nil, err
	}
	return commit, nil
}

func (c *cursor) name(what string) Name {
	p := c.bytes(NameSize, what)
	if p == nil {
		return Name{}
	}
	name, err := NameFromBytes(p)
	if err != nil {
		c.reject("%s: %v", what, err)
	}
	return name
}

// Entry is what one step of a writer adds to a pack: frames, and at most one commit.
// Frames without a commit belong to a NAR that goes on in the next pack.
type Entry struct {
	Frames []FrameInfo
	Commit []byte // encoded, nil for none
}

func (e *Entry) append(b []byte) []byte {
	b = appendFrames(b, e.Frames)
	return append(b, e.Commit...)
}

func parseEntry(b []byte) (Entry, error) {
	c := cursor{b: b}
	e := Entry{Frames: c.frames()}
	if c.err == nil && len(c.b) > 0 {
		e.Commit = c.b
	}
	return e, c.err
}
