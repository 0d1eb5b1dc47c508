package packfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"
)

// testEntries are entries of every shape: with frames and a commit, and with one of them.
func testEntries() []Entry {
	commits := testCommits()
	return []Entry{
		{Frames: []FrameInfo{
			{KindPatch, 1, 300, 0x01020304, []Chunk{{ID{1}, 4000}}},
			{KindDecode, 7, 90, 0xfffefdfc, []Chunk{{ID{2}, 1}, {ID{3}, MaxChunk}}},
		}, Commit: commits[1].Append(nil)},
		{Frames: []FrameInfo{{KindDecode, 1, 200, 5, []Chunk{{ID{4}, 500}}}}},
		{Frames: []FrameInfo{}, Commit: commits[2].Append(nil)},
	}
}

// testJournal returns a journal with the entries, and where each of them ends.
func testJournal(name Name, entries []Entry) (b []byte, ends []int) {
	b = JournalHeader(name)
	for i := range entries {
		b = AppendJournalEntry(b, uint64(i), &entries[i])
		ends = append(ends, len(b))
	}
	return b, ends
}

// readJournal returns all that can be read of a journal, and the error at its end.
func readJournal(r io.Reader) (Name, []Entry, error) {
	j, err := NewJournalReader(r)
	if err != nil {
		return Name{}, nil, err
	}
	var entries []Entry
	for {
		e, err := j.Next()
		if err != nil {
			if _, again := j.Next(); again != err {
				return Name{}, nil, errors.New("the error did not stay")
			}
			return j.Name, entries, err
		}
		entries = append(entries, e)
	}
}

func TestJournal(t *testing.T) {
	want := testEntries()
	b, _ := testJournal(testName, want)
	name, got, err := readJournal(iotest.OneByteReader(bytes.NewReader(b)))
	if err != io.EOF || name != testName || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %+v, %v, want %+v", name, got, err, want)
	}
	if name, got, err := readJournal(bytes.NewReader(JournalHeader(testName))); err != io.EOF || name != testName || got != nil {
		t.Errorf("empty journal: got %v, %v, %v", name, got, err)
	}
}

// checkPrefix checks that entries are the first n of want.
func checkPrefix(t *testing.T, what string, at int, got, want []Entry, n int) {
	t.Helper()
	if len(got) != n || n > 0 && !reflect.DeepEqual(got, want[:n]) {
		t.Errorf("%s at %d: got %d entries %+v, want the first %d", what, at, len(got), got, n)
	}
}

func TestJournalTruncated(t *testing.T) {
	want := testEntries()
	b, ends := testJournal(testName, want)
	for n := range b {
		_, got, err := readJournal(bytes.NewReader(b[:n]))
		whole, clean := 0, n == journalHeaderSize
		for _, end := range ends {
			if end <= n {
				whole++
				clean = end == n
			}
		}
		checkPrefix(t, "cut", n, got, want, whole)
		wantErr := io.ErrUnexpectedEOF
		if clean {
			wantErr = io.EOF
		}
		if !errors.Is(err, wantErr) {
			t.Errorf("cut at %d: got error %v, want %v", n, err, wantErr)
		}
	}
}

// TestJournalFlipped flips every bit: the entries before are there, none after.
func TestJournalFlipped(t *testing.T) {
	want := testEntries()
	b, ends := testJournal(testName, want)
	for bit := range len(b) * 8 {
		bad := slices.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		_, got, err := readJournal(bytes.NewReader(bad))
		whole := 0
		for whole < len(ends) && ends[whole] <= bit/8 {
			whole++
		}
		if bit/8 < journalHeaderSize {
			whole = 0
		}
		checkPrefix(t, "flipped", bit/8, got, want, whole)
		// A longer length runs into the end, which is how a cut write looks.
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("bit %d flipped: got error %v", bit, err)
		}
	}
}

// TestJournalZeros reads a journal whose end is zeros, as some file systems leave it.
func TestJournalZeros(t *testing.T) {
	want := testEntries()
	b, _ := testJournal(testName, want)
	for _, n := range []int{1, 8, 16, 4096} {
		_, got, err := readJournal(bytes.NewReader(append(b[:len(b):len(b)], make([]byte, n)...)))
		checkPrefix(t, "zeros", n, got, want, len(want))
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d zeros: got error %v", n, err)
		}
	}
}

// sealHeader puts the checksum right after a change to a journal's header.
func sealHeader(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[journalHeaderSize-4:], checksum(b[:journalHeaderSize-4]))
	return b
}

func TestJournalHeader(t *testing.T) {
	le := binary.LittleEndian
	for name, tt := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"magic":       {func(b []byte) { copy(b, packMagic) }, ErrCorrupt},
		"version 0":   {func(b []byte) { le.PutUint32(b[8:], 0) }, ErrCorrupt},
		"version 2":   {func(b []byte) { le.PutUint32(b[8:], 2) }, ErrVersion},
		"version max": {func(b []byte) { le.PutUint32(b[8:], math.MaxUint32) }, ErrVersion},
		"name":        {func(b []byte) { b[22] = 1 }, ErrCorrupt},
	} {
		b := JournalHeader(testName)
		tt.change(b)
		if _, err := NewJournalReader(bytes.NewReader(sealHeader(b))); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	broken := errors.New("disk is gone")
	if _, err := NewJournalReader(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("broken disk: got %v", err)
	}
	if _, _, err := readJournal(io.MultiReader(bytes.NewReader(JournalHeader(testName)), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("disk broken behind the header: got %v", err)
	}
}

// rawEntry returns an entry with any payload, length and number.
func rawEntry(payload string, length uint32, seq uint64) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 8), seq)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b, length)
	binary.LittleEndian.PutUint32(b[4:], checksum(b[8:]))
	return b
}

func TestJournalHostile(t *testing.T) {
	header := JournalHeader(testName)
	for name, tt := range map[string]struct {
		entry []byte
		want  error
	}{
		"fits":            {rawEntry("\x00", 1, 0), io.EOF},
		"out of sequence": {rawEntry("\x00", 1, 1), ErrCorrupt},
		"empty":           {rawEntry("", 0, 0), ErrCorrupt},
		"long":            {rawEntry("\x00", maxJournalEntry, 0), io.ErrUnexpectedEOF},
		"too long":        {rawEntry("\x00", maxJournalEntry+1, 0), ErrCorrupt},
		"longest":         {rawEntry("\x00", math.MaxUint32, 0), ErrCorrupt},
		"frames":          {rawEntry(varint(1<<62), 9, 0), ErrCorrupt},
		"frames, 2^32":    {rawEntry(varint(1<<32), 5, 0), ErrCorrupt},
		"chunks":          {rawEntry("\x01\x02\x01\x01...."+varint(math.MaxUint64), 18, 0), ErrCorrupt},
	} {
		checkSmall(t, name, func() {
			if _, _, err := readJournal(bytes.NewReader(append(header[:len(header):len(header)], tt.entry...))); !errors.Is(err, tt.want) {
				t.Errorf("%s: got %v, want %v", name, err, tt.want)
			}
		})
	}
}

// FuzzJournal reads any bytes as a journal, and as the payload of an entry with the
// right checksum. What can be read has one encoding.
func FuzzJournal(f *testing.F) {
	b, ends := testJournal(testName, testEntries())
	f.Add(b)
	start := journalHeaderSize
	for _, end := range ends {
		f.Add(b[start+journalEntrySize : end])
		start = end
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzJournal(t, b)
		fuzzJournal(t, append(JournalHeader(testName), rawEntry(string(b), uint32(len(b)), 0)...))
	})
}

func fuzzJournal(t *testing.T, b []byte) {
	name, entries, err := readJournal(bytes.NewReader(b))
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
		t.Fatalf("got error %v", err)
	}
	if entries == nil {
		return
	}
	if again, _ := testJournal(name, entries); !bytes.HasPrefix(b, again) || err == io.EOF && len(b) != len(again) {
		t.Fatalf("journal % x is written as % x", b, again)
	}
}

// The highest bit of a number says that what comes before is on disk; it changes nothing
// for a reader.
func TestJournalGroup(t *testing.T) {
	want := testEntries()
	b := AppendJournalGroup(JournalHeader(testName), 0, want[:2])
	b = AppendJournalGroup(b, 2, want[2:])
	_, got, err := readJournal(bytes.NewReader(b))
	if err != io.EOF || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	found := FindEntries(b[journalHeaderSize:], 0)
	for i, f := range found {
		if f.Seq != uint64(i) || f.Synced != (i == 0 || i == 2) || !reflect.DeepEqual(f.Entry, want[i]) {
			t.Errorf("entry %d: found %+v", i, f)
		}
	}
	if len(found) != len(want) {
		t.Errorf("found %d entries", len(found))
	}
}

// TestFindEntries flips every bit of a journal, and cuts it: what is whole is found.
func TestFindEntries(t *testing.T) {
	entries := testEntries()
	b, ends := testJournal(testName, entries)
	for bit := range len(b) * 8 {
		bad := slices.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		hit := slices.IndexFunc(ends, func(end int) bool { return bit/8 < end })
		if bit/8 < journalHeaderSize {
			hit = -1
		}
		checkFound(t, bit, FindEntries(bad, 0), entries, func(i int) bool { return i != hit })
	}
	for n := range b {
		checkFound(t, n, FindEntries(b[:n], 0), entries, func(i int) bool { return ends[i] <= n })
		checkFound(t, n, FindEntries(b[n:], 0), entries, func(i int) bool {
			return n <= journalHeaderSize || i > 0 && n <= ends[i-1]
		})
	}
	if got := FindEntries(b, 3); got != nil {
		t.Errorf("numbers below the one asked for: %+v", got)
	}
}

func checkFound(t *testing.T, at int, got []FoundEntry, all []Entry, want func(i int) bool) {
	t.Helper()
	for i, e := range all {
		if !want(i) {
			continue
		}
		if len(got) == 0 || got[0].Seq != uint64(i) || !reflect.DeepEqual(got[0].Entry, e) {
			t.Fatalf("at %d: entry %d was not found in %+v", at, i, got)
		}
		got = got[1:]
	}
	if len(got) > 0 {
		t.Fatalf("at %d: found %+v too", at, got)
	}
}
