// Package packfile knows the bytes of dedupd's packs: the frames that chunks are
// stored in, the records and the directory that say what they are, and the journal of
// a pack that is still open. It does no I/O beyond the readers and writers that it is
// given, and it believes nothing that it reads: every part has a checksum, and every
// length is checked before it is used.
//
// docs/format.md shows the same as tables.
package packfile

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
)

// A pack, all integers little endian but for those inside a name:
//
//	header      48 bytes
//	frames      one after another, each prefix ++ payload
//	records     commits in groups, see appendGroups
//	directory   the frames in their order, see FrameInfo.append
//	trailer     64 bytes
//
//	header: offset size field
//	             0    8 magic "dedupdPK"
//	             8    4 version, 1
//	            12   22 name
//	            34   10 zero
//	            44    4 CRC-32C of bytes 0 to 43
//
//	trailer: offset size field
//	              0    8 magic "dedupdPT"
//	              8    4 version, 1
//	             12    8 length of the pack, trailer included
//	             20    8 offset of the records, which is the end of the frames
//	             28    8 offset of the directory, which is the end of the records
//	             36    4 CRC-32C of bytes 0 to 43 of the header and the records
//	             40    4 CRC-32C of the directory
//	             44    4 number of commits
//	             48    4 number of entries (see Pack.Entries)
//	             52    8 zero
//	             60    4 CRC-32C of bytes 0 to 59
const (
	packMagic    = "dedupdPK"
	trailerMagic = "dedupdPT"
	packVersion  = 1

	// HeaderSize is where the first frame of a pack begins.
	HeaderSize = 48
	// TrailerSize is the length of the fixed-size end of a pack.
	TrailerSize = 64

	// maxTail bounds what is read of a pack beside its frames.
	maxTail = 1 << 30
	// groupSize is how many bytes of commits are compressed together.
	groupSize = 256 << 10
	// maxGroup bounds the memory that one group takes when it is read. It is above
	// groupSize and MaxCommit together.
	maxGroup = 256 << 20
	// maxWindow is above what the encoder of groups uses and below what hurts.
	maxWindow = 8 << 20
)

// Header returns the bytes that the pack name starts with.
func Header(name Name) []byte {
	b := append(make([]byte, 0, HeaderSize), packMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = name.Append(b)
	b = append(b, make([]byte, 10)...)
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

// AppendTail appends what follows the frames of a pack: records, directory and
// trailer. The frames of the entries, in their order, are what the pack holds.
func AppendTail(b []byte, name Name, entries []Entry) ([]byte, error) {
	var frames []FrameInfo
	var commits [][]byte
	for _, e := range entries {
		frames = append(frames, e.Frames...)
		if e.Commit != nil {
			commits = append(commits, e.Commit)
		}
	}
	records, err := appendGroups(nil, commits)
	if err != nil {
		return nil, err
	}
	return appendTail(b, name, frames, records, len(commits), len(entries)), nil
}

func appendTail(b []byte, name Name, frames []FrameInfo, records []byte, commits, entries int) []byte {
	framesEnd := int64(HeaderSize)
	for _, f := range frames {
		framesEnd += f.Size()
	}
	b = append(b, records...)
	dirStart := len(b)
	b = appendFrames(b, frames)
	dir := b[dirStart:]

	t := append(make([]byte, 0, TrailerSize), trailerMagic...)
	t = binary.LittleEndian.AppendUint32(t, packVersion)
	t = binary.LittleEndian.AppendUint64(t, uint64(framesEnd)+uint64(len(records)+len(dir)+TrailerSize))
	t = binary.LittleEndian.AppendUint64(t, uint64(framesEnd))
	t = binary.LittleEndian.AppendUint64(t, uint64(framesEnd)+uint64(len(records)))
	t = binary.LittleEndian.AppendUint32(t, recordsChecksum(Header(name), records))
	t = binary.LittleEndian.AppendUint32(t, checksum(dir))
	t = binary.LittleEndian.AppendUint32(t, uint32(commits))
	t = binary.LittleEndian.AppendUint32(t, uint32(entries))
	t = append(t, make([]byte, 8)...)
	t = binary.LittleEndian.AppendUint32(t, checksum(t))
	return append(b, t...)
}

// recordsChecksum binds the records to the name in the header. The header's own checksum
// is left out: with it behind them, the bytes of every header have the same CRC.
func recordsChecksum(header, records []byte) uint32 {
	return updateChecksum(checksum(header[:HeaderSize-4]), records)
}

// appendGroups appends commits, packed into groups of about groupSize bytes:
//
//	4  length of the compressed bytes
//	4  length of the plain bytes
//	   one zstd frame; plain: for each commit a uvarint length and the commit
func appendGroups(b []byte, commits [][]byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(maxWindow))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	var plain []byte
	flush := func() {
		at := len(b)
		b = append(b, make([]byte, 8)...)
		b = enc.EncodeAll(plain, b)
		binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-8))
		binary.LittleEndian.PutUint32(b[at+4:], uint32(len(plain)))
		plain = plain[:0]
	}
	for _, c := range commits {
		if len(c) > MaxCommit {
			return nil, fmt.Errorf("commit of %d bytes, at most %d can be written", len(c), MaxCommit)
		}
		plain = binary.AppendUvarint(plain, uint64(len(c)))
		plain = append(plain, c...)
		if len(plain) >= groupSize {
			flush()
		}
	}
	if len(plain) > 0 {
		flush()
	}
	return b, nil
}

// Pack is everything of a pack but its frames' bytes.
type Pack struct {
	Name    Name
	Size    int64 // bytes, all of it
	Frames  []FrameInfo
	Offsets []int64 // of the frames
	Commits int
	Entries int // journal entries that the pack was sealed from

	records []byte
}

// Trailer is the fixed-size end of a pack, which says where the rest is.
type Trailer struct {
	Size                  int64
	Records, Directory    int64 // offsets
	recordsSum, directSum uint32
	commits, entries      uint32
}

// ParseTrailer reads the last [TrailerSize] bytes of a pack that is size bytes long.
func ParseTrailer(b []byte, size int64) (Trailer, error) {
	if len(b) != TrailerSize || string(b[:8]) != trailerMagic {
		return Trailer{}, corruptf("pack has no trailer: it is truncated or no pack")
	}
	le := binary.LittleEndian
	if checksum(b[:TrailerSize-4]) != le.Uint32(b[TrailerSize-4:]) {
		return Trailer{}, corruptf("pack trailer: wrong checksum")
	}
	if err := checkVersion("pack", le.Uint32(b[8:]), packVersion); err != nil {
		return Trailer{}, err
	}
	t := Trailer{
		Size:       int64(le.Uint64(b[12:])),
		Records:    int64(le.Uint64(b[20:])),
		Directory:  int64(le.Uint64(b[28:])),
		recordsSum: le.Uint32(b[36:]),
		directSum:  le.Uint32(b[40:]),
		commits:    le.Uint32(b[44:]),
		entries:    le.Uint32(b[48:]),
	}
	switch {
	case t.commits > t.entries || t.entries > math.MaxInt32 || le.Uint64(b[52:]) != 0:
		return Trailer{}, corruptf("pack trailer: %d commits in %d entries", t.commits, t.entries)
	case t.Size != size:
		return Trailer{}, corruptf("pack is %d bytes long, its trailer says %d", size, t.Size)
	case t.Records < HeaderSize || t.Directory < t.Records || t.Directory > size-TrailerSize:
		return Trailer{}, corruptf("pack trailer: parts at %d and %d of %d bytes", t.Records, t.Directory, size)
	case size-t.Records > maxTail:
		return Trailer{}, corruptf("pack trailer: %d bytes of metadata", size-t.Records)
	}
	return t, nil
}

// Of the packs of a real store, 32 MiB each, the tails are 60 to 90 KB long; of small ones
// that hold little but rebuilds up to 50 KB. Packs are larger where their size is set so.
const (
	minGuess  = 128 << 10
	maxGuess  = 8 << 20
	guessPart = 128
)

// TailGuess is how many bytes at the end of a pack, size bytes long, are very likely to
// be all of its tail.
func TailGuess(size int64) int64 {
	return min(size, max(minGuess, size/guessPart), maxGuess)
}

// ParseTail reads the pack name, size bytes long, from the bytes at its end, which are at
// least [TrailerSize]: all but the frames and the header. It checks all that it reads; the
// name is bound to the records. If end does not hold the whole tail there is no pack, and
// need says how many bytes it takes. The pack keeps end.
func ParseTail(name Name, size int64, end []byte) (p *Pack, need int64, err error) {
	if size < HeaderSize+TrailerSize {
		return nil, 0, corruptf("pack of %d bytes is too short", size)
	}
	at := len(end) - TrailerSize
	t, err := ParseTrailer(end[at:], size)
	if err != nil {
		return nil, 0, err
	}
	if need = size - t.Records; need > int64(len(end)) {
		return nil, need, nil
	}
	p, err = parseTail(name, t, end[len(end)-int(need):at])
	return p, need, err
}

// Read reads the pack name, size bytes long, through r: its header and its tail, but no
// frame. It checks all that it reads.
func Read(name Name, r io.ReaderAt, size int64) (*Pack, error) {
	if size < HeaderSize+TrailerSize {
		return nil, corruptf("pack of %d bytes is too short", size)
	}
	var p *Pack
	for need := TailGuess(size); p == nil; {
		end := make([]byte, need)
		err := readFull(r, end, size-need)
		if err != nil {
			return nil, fmt.Errorf("read pack tail: %w", err)
		}
		if p, need, err = ParseTail(name, size, end); err != nil {
			return nil, err
		}
	}
	header := make([]byte, HeaderSize)
	if err := readFull(r, header, 0); err != nil {
		return nil, fmt.Errorf("read pack header: %w", err)
	}
	if string(header) != string(Header(name)) {
		return nil, corruptf("pack header is not that of %s", name)
	}
	return p, nil
}

func parseTail(name Name, t Trailer, tail []byte) (*Pack, error) {
	records, dir := tail[:t.Directory-t.Records], tail[t.Directory-t.Records:]
	if recordsChecksum(Header(name), records) != t.recordsSum {
		return nil, corruptf("pack records: wrong checksum")
	}
	if checksum(dir) != t.directSum {
		return nil, corruptf("pack directory: wrong checksum")
	}
	c := cursor{b: dir}
	p := &Pack{Name: name, Size: t.Size, Frames: c.frames(), Commits: int(t.commits), Entries: int(t.entries), records: records}
	if err := c.end("pack directory"); err != nil {
		return nil, err
	}
	at := int64(HeaderSize)
	p.Offsets = make([]int64, len(p.Frames))
	for i, f := range p.Frames {
		p.Offsets[i] = at
		at += f.Size()
	}
	if at != t.Records {
		return nil, corruptf("pack directory: frames end at %d, records begin at %d", at, t.Records)
	}
	return p, nil
}

// ForEachCommit decodes the commits in their order and calls fn with the number and
// the bytes of each, which fn may keep. One group at a time is in memory.
func (p *Pack) ForEachCommit(fn func(n int, commit *Commit) error) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return err
	}
	defer dec.Close()
	c := cursor{b: p.records}
	n := 0
	for len(c.b) > 0 {
		size, plainSize := c.u32("group length"), c.u32("group length")
		group := c.bytes(uint64(size), "group")
		if c.err != nil {
			return c.err
		}
		// A zstd block of at least four bytes makes at most maxBlock of them, so a
		// claim that a few bytes are many is known to be false before memory is taken.
		if plainSize == 0 || plainSize > maxGroup || uint64(plainSize) > uint64(size)/4*maxBlock {
			return corruptf("group of %d bytes in %d", plainSize, size)
		}
		plain, err := dec.DecodeAll(group, make([]byte, 0, plainSize))
		if err != nil {
			return corruptf("group of records: %v", err)
		}
		if len(plain) != int(plainSize) {
			return corruptf("group of records: %d bytes, expected %d", len(plain), plainSize)
		}
		g := cursor{b: plain}
		for len(g.b) > 0 {
			b := g.bytes(g.uvarint("commit length"), "commit")
			if g.err != nil {
				return g.err
			}
			commit, err := ParseCommit(b)
			if err != nil {
				return err
			}
			if err := fn(n, commit); err != nil {
				return err
			}
			n++
		}
	}
	if n != p.Commits {
		return corruptf("pack holds %d commits, its trailer says %d", n, p.Commits)
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
