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

	"github.com/klauspost/compress/zstd"
)

// makePack returns a pack with the entries, and frames of no meaning.
func makePack(t testing.TB, name Name, entries []Entry) []byte {
	t.Helper()
	b := Header(name)
	for _, e := range entries {
		for _, f := range e.Frames {
			b = append(b, bytes.Repeat([]byte("f"), int(f.Size()))...)
		}
	}
	b, err := AppendTail(b, name, entries)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readPack(b []byte) (*Pack, error) {
	return Read(testName, bytes.NewReader(b), int64(len(b)))
}

// readAll reads a pack and its commits.
func readAll(b []byte) (p *Pack, commits []*Commit, err error) {
	if p, err = readPack(b); err != nil {
		return nil, nil, err
	}
	err = p.ForEachCommit(func(n int, c *Commit) error {
		if n != len(commits) {
			return errors.New("commits are not in their order")
		}
		commits = append(commits, c)
		return nil
	})
	return p, commits, err
}

// framesAndCommits returns what a pack with the entries holds.
func framesAndCommits(t testing.TB, entries []Entry) (frames []FrameInfo, commits []*Commit) {
	frames = []FrameInfo{}
	for _, e := range entries {
		frames = append(frames, e.Frames...)
		if e.Commit != nil {
			c, err := ParseCommit(e.Commit)
			if err != nil {
				t.Fatal(err)
			}
			commits = append(commits, c)
		}
	}
	return frames, commits
}

func checkPack(t *testing.T, b []byte, entries []Entry) {
	t.Helper()
	frames, commits := framesAndCommits(t, entries)
	p, got, err := readAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != testName || p.Size != int64(len(b)) || p.Commits != len(commits) || p.Entries != len(entries) {
		t.Errorf("got pack %v, %d bytes, %d commits, %d entries", p.Name, p.Size, p.Commits, p.Entries)
	}
	if !reflect.DeepEqual(p.Frames, frames) {
		t.Errorf("got frames %+v, want %+v", p.Frames, frames)
	}
	if !reflect.DeepEqual(got, commits) {
		t.Errorf("got %d commits, want %d", len(got), len(commits))
	}
	at := int64(HeaderSize)
	for i, f := range frames {
		if p.Offsets[i] != at {
			t.Errorf("frame %d is at %d, want %d", i, p.Offsets[i], at)
		}
		at += f.Size()
	}
}

func TestPack(t *testing.T) {
	for _, entries := range [][]Entry{testEntries(), nil, testEntries()[1:2], testEntries()[2:]} {
		checkPack(t, makePack(t, testName, entries), entries)
	}
}

// TestPackManyGroups has more commits than fit into a group, small and large.
func TestPackManyGroups(t *testing.T) {
	var entries []Entry
	for i := range 300 {
		body := bytes.Repeat([]byte{byte(i)}, 5000)
		if i == 150 {
			body = make([]byte, 3*groupSize)
		}
		c := Commit{Time: int64(i), Packs: []Name{}, Records: []Record{{RecordName, body}}}
		entries = append(entries, Entry{Commit: c.Append(nil)})
	}
	b := makePack(t, testName, entries)
	checkPack(t, b, entries)

	p, err := readPack(b)
	if err != nil {
		t.Fatal(err)
	}
	groups := 0
	for c := (cursor{b: p.records}); len(c.b) > 0; groups++ {
		size := c.u32("length")
		c.u32("length")
		c.bytes(uint64(size), "group")
	}
	if groups < 6 || groups > 8 {
		t.Errorf("%d groups for %d bytes", groups, 300*5000+3*groupSize)
	}
	stop := errors.New("stop")
	calls := 0
	err = p.ForEachCommit(func(int, *Commit) error {
		if calls++; calls == 100 {
			return stop
		}
		return nil
	})
	if err != stop || calls != 100 {
		t.Errorf("got error %v after %d commits", err, calls)
	}
}

func TestPackTruncated(t *testing.T) {
	b := makePack(t, testName, testEntries())
	for n := range b {
		if _, _, err := readAll(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d of %d bytes: got %v", n, len(b), err)
		}
		// An object store that serves less than it said.
		if _, err := Read(testName, bytes.NewReader(b[:n]), int64(len(b))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("served only %d of %d bytes: got %v", n, len(b), err)
		}
	}
	for _, more := range []string{"\x00", "x", string(b)} {
		if _, _, err := readAll(append(b[:len(b):len(b)], more...)); !errors.Is(err, ErrCorrupt) && len(more) < len(b) {
			t.Errorf("%d bytes more: got %v", len(more), err)
		}
	}
	broken := errors.New("bucket is gone")
	if _, err := Read(testName, errReaderAt{broken}, 1000); !errors.Is(err, broken) {
		t.Errorf("broken bucket: got %v", err)
	}
}

type errReaderAt struct{ err error }

func (r errReaderAt) ReadAt(p []byte, _ int64) (int, error) { return iotest.ErrReader(r.err).Read(p) }

// TestPackFlipped flips every bit of all but the frames, which have checksums of their own.
func TestPackFlipped(t *testing.T) {
	entries := testEntries()
	frames, _ := framesAndCommits(t, entries)
	framesEnd := HeaderSize
	for _, f := range frames {
		framesEnd += int(f.Size())
	}
	b := makePack(t, testName, entries)
	for bit := range len(b) * 8 {
		bad := slices.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		_, _, err := readAll(bad)
		if inFrames := bit/8 >= HeaderSize && bit/8 < framesEnd; inFrames && err != nil {
			t.Fatalf("bit %d of a frame flipped: got %v", bit, err)
		} else if !inFrames && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: got %v", bit, err)
		}
	}
}

func TestPackWrongName(t *testing.T) {
	b := makePack(t, testName, testEntries())
	other := testName
	other.Rand++
	if _, err := Read(other, bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	// Nor is it enough to have the other's header: the records are bound to it.
	copy(b, Header(other))
	if _, err := Read(other, bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with the other's header: got %v", err)
	}
}

// sealTrailer puts the checksum of a trailer right.
func sealTrailer(b []byte) {
	binary.LittleEndian.PutUint32(b[len(b)-4:], checksum(b[len(b)-TrailerSize:len(b)-4]))
}

func TestTrailer(t *testing.T) {
	good := makePack(t, testName, testEntries())
	size := uint64(len(good))
	put32 := func(at int, v uint32) func([]byte) {
		return func(t []byte) { binary.LittleEndian.PutUint32(t[at:], v) }
	}
	put64 := func(at int, v uint64) func([]byte) {
		return func(t []byte) { binary.LittleEndian.PutUint64(t[at:], v) }
	}
	both := func(v, w uint64) func([]byte) {
		return func(t []byte) { put64(20, v)(t); put64(28, w)(t) }
	}
	for name, tt := range map[string]struct {
		change func(trailer []byte)
		want   error
	}{
		"nothing":                   {func([]byte) {}, nil},
		"magic":                     {put32(0, 0), ErrCorrupt},
		"version 0":                 {put32(8, 0), ErrCorrupt},
		"version 2":                 {put32(8, 2), ErrVersion},
		"version max":               {put32(8, math.MaxUint32), ErrVersion},
		"size":                      {put64(12, size+1), ErrCorrupt},
		"negative size":             {put64(12, 1<<63|size), ErrCorrupt},
		"records in the header":     {put64(20, HeaderSize-1), ErrCorrupt},
		"records at 0":              {put64(20, 0), ErrCorrupt},
		"negative records":          {put64(20, math.MaxUint64), ErrCorrupt},
		"records after directory":   {both(200, 199), ErrCorrupt},
		"directory in the trailer":  {put64(28, size-TrailerSize+1), ErrCorrupt},
		"directory at the end":      {both(size, size), ErrCorrupt},
		"far directory":             {put64(28, math.MaxInt64), ErrCorrupt},
		"far parts":                 {both(math.MaxInt64, math.MaxInt64), ErrCorrupt},
		"negative directory":        {put64(28, 1<<63), ErrCorrupt},
		"records sum":               {put32(36, 0), ErrCorrupt},
		"directory sum":             {put32(40, 0), ErrCorrupt},
		"fewer commits":             {put32(44, 1), ErrCorrupt},
		"more commits":              {put32(44, 3), ErrCorrupt},
		"more commits than entries": {put32(44, 4), ErrCorrupt},
		"fewer entries":             {put32(48, 1), ErrCorrupt},
		"negative entries":          {put32(48, math.MaxUint32), ErrCorrupt},
		"reserved":                  {put64(52, 1), ErrCorrupt},
	} {
		b := slices.Clone(good)
		tt.change(b[len(b)-TrailerSize:])
		if _, _, err := readAll(b); !errors.Is(err, tt.want) && name != "nothing" {
			// Without its own checksum every change is found.
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, checksum wrong: got %v", name, err)
			}
		}
		sealTrailer(b)
		checkSmall(t, name, func() {
			if _, _, err := readAll(b); !errors.Is(err, tt.want) {
				t.Errorf("%s: got %v, want %v", name, err, tt.want)
			}
		})
	}
	if _, err := ParseTrailer(nil, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no trailer: got %v", err)
	}
}

// TestTrailerOfHugePack reads trailers of packs that nobody has.
func TestTrailerOfHugePack(t *testing.T) {
	for _, tt := range []struct {
		size, records, directory int64
		ok                       bool
	}{
		{math.MaxInt64, HeaderSize, math.MaxInt64 - TrailerSize, false},
		{math.MaxInt64, math.MaxInt64 - maxTail - 1, math.MaxInt64 - 100, false},
		{math.MaxInt64, math.MaxInt64 - maxTail, math.MaxInt64 - 100, true},
		{1 << 40, 1<<40 - 1000, 1<<40 - 500, true},
	} {
		b := append(make([]byte, 0, TrailerSize), trailerMagic...)
		b = binary.LittleEndian.AppendUint32(b, packVersion)
		for _, v := range []int64{tt.size, tt.records, tt.directory} {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
		b = b[:TrailerSize]
		sealTrailer(b)
		if got, err := ParseTrailer(b, tt.size); (err == nil) != tt.ok || tt.ok && got.Records != tt.records {
			t.Errorf("%+v: got %+v, %v", tt, got, err)
		}
	}
}

// forgePack returns a pack whose records and directory are any bytes, all checksums right.
func forgePack(framesSize int, records, dir []byte, commits int) []byte {
	b := append(Header(testName), make([]byte, framesSize)...)
	recordsAt := len(b)
	b = append(append(b, records...), dir...)
	le := binary.LittleEndian
	t := append(make([]byte, 0, TrailerSize), trailerMagic...)
	t = le.AppendUint32(t, packVersion)
	t = le.AppendUint64(t, uint64(len(b)+TrailerSize))
	t = le.AppendUint64(t, uint64(recordsAt))
	t = le.AppendUint64(t, uint64(recordsAt+len(records)))
	t = le.AppendUint32(t, recordsChecksum(Header(testName), records))
	t = le.AppendUint32(t, checksum(dir))
	t = le.AppendUint32(t, uint32(commits))
	t = le.AppendUint32(t, uint32(commits))
	b = append(b, t[:TrailerSize]...)
	sealTrailer(b)
	return b
}

// group returns a group of records with any lengths.
func group(compressed []byte, size, plainSize uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, size)
	b = binary.LittleEndian.AppendUint32(b, plainSize)
	return append(b, compressed...)
}

func TestPackHostile(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true))
	if err != nil {
		t.Fatal(err)
	}
	compress := func(plain string) []byte { return enc.EncodeAll([]byte(plain), nil) }
	whole := func(plain string) []byte {
		z := compress(plain)
		return group(z, uint32(len(z)), uint32(len(plain)))
	}
	commit := string((&Commit{}).Append(nil))
	bomb := compress(string(make([]byte, 64<<20)))
	// A frame that says it holds 255 MiB, in a few bytes.
	liar := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, binary.LittleEndian.AppendUint32(nil, 255<<20)...)
	liar = append(liar, 0x01, 0, 0)

	oneFrame := func(f FrameInfo) []byte { return appendFrames(nil, []FrameInfo{f}) }
	frame := FrameInfo{Kind: KindPatch, Prefix: 1, Payload: 9, Chunks: []Chunk{{ID{}, 10}}}
	noFrames := appendFrames(nil, nil)
	for name, tt := range map[string]struct {
		frames       int
		records, dir []byte
		ok           bool
	}{
		"one commit":              {0, whole("\x03" + commit), noFrames, true},
		"one frame and commit":    {10, whole("\x03" + commit), oneFrame(frame), true},
		"frames end early":        {9, whole("\x03" + commit), oneFrame(frame), false},
		"frames end late":         {11, whole("\x03" + commit), oneFrame(frame), false},
		"directory is empty":      {0, whole("\x03" + commit), nil, false},
		"directory goes on":       {0, whole("\x03" + commit), []byte{0, 0}, false},
		"directory ends early":    {10, whole("\x03" + commit), oneFrame(frame)[:40], false},
		"frames without end":      {0, whole("\x03" + commit), []byte(varint(1 << 40)), false},
		"length cut":              {0, []byte{1, 2, 3}, noFrames, false},
		"group cut":               {0, whole("\x03" + commit)[:12], noFrames, false},
		"group beyond the end":    {0, group(compress("\x03"+commit), math.MaxUint32, 4), noFrames, false},
		"group is shorter":        {0, group(compress("\x03"+commit), uint32(len(compress("\x03"+commit))), 5), noFrames, false},
		"group is longer":         {0, group(compress("\x03"+commit), uint32(len(compress("\x03"+commit))), 3), noFrames, false},
		"group of no zstd":        {0, group([]byte("garbage!"), 8, 4), noFrames, false},
		"group of nothing":        {0, append(whole("\x03"+commit), whole("")...), noFrames, false},
		"group says 4 GiB":        {0, group(compress("\x03"+commit), uint32(len(compress("\x03"+commit))), math.MaxUint32), noFrames, false},
		"group says 256 MiB":      {0, group(compress("\x03"+commit), uint32(len(compress("\x03"+commit))), maxGroup), noFrames, false},
		"zstd says 255 MiB":       {0, group(liar, uint32(len(liar)), 1000), noFrames, false},
		"both say 255 MiB":        {0, group(liar, uint32(len(liar)), 255<<20), noFrames, false},
		"bomb":                    {0, group(bomb, uint32(len(bomb)), 1000), noFrames, false},
		"commit beyond the group": {0, whole("\x04" + commit), noFrames, false},
		"commit of 2^64 bytes":    {0, whole(varint(math.MaxUint64) + commit), noFrames, false},
		"commit with more behind": {0, whole("\x04" + commit + "\x00"), noFrames, false},
		"commit of nothing":       {0, whole("\x00"), noFrames, false},
	} {
		b := forgePack(tt.frames, tt.records, tt.dir, 1)
		checkSmallGroups(t, name, func() {
			if _, _, err := readAll(b); (err == nil) != tt.ok || !tt.ok && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
}

// checkSmallGroups is checkSmall for what decodes groups: a decoder takes some MB.
func checkSmallGroups(t *testing.T, name string, f func()) {
	t.Helper()
	if n := allocated(f); n > 12<<20 {
		t.Errorf("%s: allocates %d bytes", name, n)
	}
}

func TestAppendTailRejects(t *testing.T) {
	if testing.Short() {
		t.Skip("takes memory")
	}
	largest := []Entry{{Commit: make([]byte, MaxCommit+1)}}
	if _, err := AppendTail(nil, testName, largest); err == nil {
		t.Error("a commit that cannot be read was written")
	}
}

// FuzzReadPack reads any bytes as a pack, and as the records and directory of one with
// the right checksums. What can be read is written as the same.
func FuzzReadPack(f *testing.F) {
	b := makePack(f, testName, testEntries())
	p, err := readPack(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, []byte{}, uint16(0))
	dir := appendFrames(nil, p.Frames)
	f.Add(p.records, dir, uint16(599))
	f.Add(p.records, []byte{0}, uint16(0))
	f.Fuzz(func(t *testing.T, records, dir []byte, frames uint16) {
		fuzzPack(t, records)
		fuzzPack(t, forgePack(int(frames), records, dir, 2))
	})
}

func fuzzPack(t *testing.T, b []byte) {
	p, commits, err := readAll(b)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("got error %v", err)
		}
		return
	}
	entries := make([]Entry, p.Entries)
	if len(entries) > 0 {
		entries[0].Frames = p.Frames
	}
	for i, c := range commits {
		entries[i].Commit = c.Append(nil)
	}
	if len(entries) == 0 && len(p.Frames) > 0 {
		return // no writer makes frames without an entry, but it does no harm
	}
	again, err := AppendTail(b[:HeaderSize:HeaderSize], testName, entries)
	if err != nil {
		t.Fatal(err)
	}
	if dir := appendFrames(nil, p.Frames); !bytes.Contains(b, dir) || !bytes.Contains(again, dir) {
		t.Fatalf("directory % x is written as % x", b, again)
	}
}

// TestParseTail parses every end of a pack: less than its tail, all of it, more.
func TestParseTail(t *testing.T) {
	b := makePack(t, testName, testEntries())
	want, err := readPack(b)
	if err != nil {
		t.Fatal(err)
	}
	trailer, err := ParseTrailer(b[len(b)-TrailerSize:], want.Size)
	if err != nil {
		t.Fatal(err)
	}
	tail := want.Size - trailer.Records
	for n := int64(TrailerSize); n <= want.Size; n++ {
		p, need, err := ParseTail(testName, want.Size, b[want.Size-n:])
		if err != nil || need != tail || (p == nil) != (n < tail) || p != nil && !reflect.DeepEqual(p, want) {
			t.Fatalf("the last %d of %d bytes: got %+v, %d, %v, want %d", n, len(b), p, need, err, tail)
		}
	}
	if g := TailGuess(10); g != 10 {
		t.Errorf("of 10 bytes, %d may be the tail", g)
	}
}
