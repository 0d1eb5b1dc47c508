package packfile

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A journal is the commit log of a pack that is still open: what was appended to its
// frames, entry by entry. The fsync of the journal is the one commit point.
//
//	offset size field
//	     0    8 magic "dedupdJL"
//	     8    4 version, 1
//	    12   22 name of the pack
//	    34    4 CRC-32C of bytes 0 to 33
//	    38      entries, each:
//	          4 length of the payload
//	          4 CRC-32C of the sequence number and the payload
//	          8 sequence number: 0, 1, 2, …; the highest bit is journalSynced
//	            payload: frames as in the directory of a pack, then a commit or nothing
//
// All integers are little endian, but for those inside a name.
const (
	journalMagic      = "dedupdJL"
	journalVersion    = 1
	journalHeaderSize = 8 + 4 + NameSize + 4
	journalEntrySize  = 16

	// maxJournalEntry bounds the memory that replaying takes.
	maxJournalEntry = 1 << 30

	// journalSynced marks an entry that was written when all before it were on disk. So
	// if one of these is not whole, it is no write that was cut short.
	journalSynced = 1 << 63
)

// JournalHeader returns the bytes that a journal of the pack name starts with.
func JournalHeader(name Name) []byte {
	b := append(make([]byte, 0, journalHeaderSize), journalMagic...)
	b = binary.LittleEndian.AppendUint32(b, journalVersion)
	b = name.Append(b)
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

// AppendJournalEntry appends e, the entry number seq, as it is written to the journal.
func AppendJournalEntry(b []byte, seq uint64, e *Entry) []byte {
	start := len(b)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = e.append(b)
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start-journalEntrySize))
	binary.LittleEndian.PutUint32(b[start+4:], checksum(b[start+8:]))
	return b
}

// AppendJournalGroup appends entries that are written and synced together, of which the
// first is number seq. All entries before that must be on disk.
func AppendJournalGroup(b []byte, seq uint64, entries []Entry) []byte {
	mark := uint64(journalSynced)
	for i := range entries {
		b = AppendJournalEntry(b, seq|mark, &entries[i])
		seq, mark = seq+1, 0
	}
	return b
}

// JournalReader reads the entries of a journal.
type JournalReader struct {
	r    io.Reader
	seq  uint64
	off  int64
	err  error // of the last Next; there is none after it
	Name Name  // of the pack
}

// NewJournalReader reads the header of a journal. A journal that ends inside its
// header was never committed to; the error is then [io.ErrUnexpectedEOF].
func NewJournalReader(r io.Reader) (*JournalReader, error) {
	var h [journalHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read journal header: %w", err)
	}
	switch {
	case string(h[:8]) != journalMagic:
		return nil, corruptf("not a journal: magic is %q", h[:8])
	case checksum(h[:journalHeaderSize-4]) != binary.LittleEndian.Uint32(h[journalHeaderSize-4:]):
		return nil, corruptf("journal header: wrong checksum")
	}
	if err := checkVersion("journal", binary.LittleEndian.Uint32(h[8:]), journalVersion); err != nil {
		return nil, err
	}
	c := cursor{b: h[12 : 12+NameSize]}
	j := &JournalReader{r: r, off: journalHeaderSize, Name: c.name("journal header")}
	if c.err != nil {
		return nil, c.err
	}
	return j, nil
}

// Next returns the next entry, which is the caller's. It returns [io.EOF] at the end
// of the journal and [io.ErrUnexpectedEOF] where the last write was cut short; all
// that was returned before is then complete. Damage is an error that wraps
// [ErrCorrupt]. After an error every call returns the same.
func (j *JournalReader) Next() (Entry, error) {
	if j.err != nil {
		return Entry{}, j.err
	}
	e, err := j.next()
	if err != nil {
		j.err = err
		return Entry{}, err
	}
	j.seq++
	return e, nil
}

// Offset returns where the entries end that Next has returned.
func (j *JournalReader) Offset() int64 { return j.off }

func (j *JournalReader) next() (Entry, error) {
	var h [journalEntrySize]byte
	if _, err := io.ReadFull(j.r, h[:]); err == io.EOF || err == io.ErrUnexpectedEOF {
		return Entry{}, err
	} else if err != nil {
		return Entry{}, fmt.Errorf("read journal: %w", err)
	}
	size := binary.LittleEndian.Uint32(h[:])
	if size > maxJournalEntry {
		return Entry{}, corruptf("journal entry %d is %d bytes long", j.seq, size)
	}
	// Grown as bytes arrive, so that a damaged length costs no more than the file holds.
	buf, err := io.ReadAll(io.LimitReader(j.r, int64(size)))
	if err != nil {
		return Entry{}, fmt.Errorf("read journal: %w", err)
	}
	if len(buf) < int(size) {
		return Entry{}, io.ErrUnexpectedEOF
	}
	if sum := updateChecksum(checksum(h[8:]), buf); sum != binary.LittleEndian.Uint32(h[4:]) {
		return Entry{}, corruptf("journal entry %d: wrong checksum", j.seq)
	}
	if seq := binary.LittleEndian.Uint64(h[8:]) &^ journalSynced; seq != j.seq {
		return Entry{}, corruptf("journal entry %d has the number %d", j.seq, seq)
	}
	e, err := parseEntry(buf)
	if err == nil {
		j.off += int64(len(h) + len(buf))
	}
	return e, err
}

// A FoundEntry is one that was found behind damage in a journal.
type FoundEntry struct {
	Entry
	Seq uint64
	// Synced says that all entries before this one were on disk when it was written.
	Synced bool
}

// FindEntries looks for whole entries in what follows the place where reading a journal
// failed, or in a journal without a header. seq is the number of the entry that failed; a
// journal that was cut short by a crash has no entry above it that is Synced. Numbers rise
// but may have gaps. The entries alias b.
func FindEntries(b []byte, seq uint64) (found []FoundEntry) {
	le := binary.LittleEndian
	for end := seq + uint64(len(b)/journalEntrySize); len(b) >= journalEntrySize; {
		n := le.Uint64(b[8:])
		number, size := n&^journalSynced, uint64(le.Uint32(b))
		if number >= seq && number <= end && size <= uint64(len(b)-journalEntrySize) && size <= maxJournalEntry {
			whole := b[:journalEntrySize+size]
			if checksum(whole[8:]) == le.Uint32(whole[4:]) {
				if e, err := parseEntry(whole[journalEntrySize:]); err == nil {
					found = append(found, FoundEntry{e, number, n&journalSynced != 0})
					b, seq = b[len(whole):], number+1
					continue
				}
			}
		}
		b = b[1:]
	}
	return found
}
