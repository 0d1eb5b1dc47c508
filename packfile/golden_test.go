package packfile

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

var updatePacks = flag.Bool("update-packs", false, "write the golden pack and journal anew; a pack that was written once must be readable for ever, so do it only for new files")

// The golden pack and journal were written once and must be readable for ever. What
// zstd makes of a chunk may change with the library; everything else may not.
var (
	goldenPack    = filepath.Join("testdata", "packs", "v1.pack")
	goldenJournal = filepath.Join("testdata", "packs", "v1.journal")
	goldenName    = Name{Writer: [10]byte{0x01, 0x9b, 0x76, 0xda, 0x5c, 0x00, 1, 2, 3, 4}, Seq: 3, Rand: 0xc0ffee}
	goldenOther   = Name{Writer: [10]byte{0x01, 0x9b, 0x76, 0xda, 0x5b, 0xff, 9, 8, 7, 6}, Seq: 0x0102030405, Rand: 1}
)

// goldenText is n bytes that compress, a few, the same ones for ever, with zeros in the spans.
func goldenText(n int, spans ...Span) []byte {
	var b []byte
	for x := uint32(n); len(b) < n; x = x*1664525 + 1013904223 {
		b = fmt.Appendf(b, "%d bottles of %x on the wall\n", x>>16, x)
	}
	return maskChunk(b[:n], spans)
}

// goldenFrameInput is what a frame of the golden pack was made from.
func goldenFrameInput() [][]ManyChunk {
	chunk := func(n int, spans ...Span) ManyChunk {
		masked := goldenText(n, spans...)
		return ManyChunk{ChunkID(masked, spans), masked, spans}
	}
	dense := []Span{}
	for at := uint32(5); at+32 < 3000; at += 60 {
		dense = append(dense, Span{at, SpanHash})
	}
	return [][]ManyChunk{
		{chunk(2000)},
		{chunk(8000, Span{0, SpanHash}, Span{4000, SpanBuildID}, Span{4020, SpanHash}, Span{7968, SpanHash})},
		{chunk(3000, dense...)},
		{chunk(1500), chunk(1), chunk(1600, Span{100, SpanHash}, Span{1580, SpanBuildID})},
	}
}

var goldenKinds = []Kind{KindPatch, KindPatch, KindDecode, KindDecode}

// goldenIDs pins the chunks of the frames: their IDs, abridged, and lengths.
var goldenIDs = []string{
	"07a8a398:2000 ",
	"9a4d1826:8000 ",
	"b65ab1de:3000 ",
	"365b295d:1500 ca999281:1 86d23d97:1600 ",
}

func goldenCommits() []*Commit {
	return []*Commit{
		{Time: 1_790_000_000, Packs: []Name{}, Records: []Record{
			{RecordRecipe, []byte("the body of a recipe")},
			{RecordContent, []byte("the body of a content")},
			{RecordNarInfo, []byte("StorePath: /nix/store/0c0a8r4k6fz9v1n2m3x5y7w8q0d4b6h1-golden\n")},
			{RecordName, []byte("the body of a name")},
		}},
		{Time: 1_790_000_030, Packs: []Name{goldenOther}, Records: []Record{{RecordName, bytes.Repeat([]byte("x"), 300)}}},
	}
}

// goldenEntries puts frames and commits together: with both, with frames only, and
// again with both.
func goldenEntries(frames []FrameInfo) []Entry {
	commits := goldenCommits()
	return []Entry{
		{Frames: frames[:2:2], Commit: commits[0].Append(nil)},
		{Frames: frames[2:3:3]},
		{Frames: frames[3:], Commit: commits[1].Append(nil)},
	}
}

// TestUpdateGolden writes the golden files when it is asked to.
func TestUpdateGolden(t *testing.T) {
	if !*updatePacks {
		t.Skip("-update-packs is not set")
	}
	e := newTestEncoder(t)
	pack := Header(goldenName)
	var frames []FrameInfo
	for i, input := range goldenFrameInput() {
		var f Frame
		var err error
		if i == 3 {
			f, err = e.EncodeMany(input)
		} else {
			f, err = e.Encode(input[0].ID, input[0].Masked, input[0].Spans)
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind != goldenKinds[i] {
			t.Fatalf("frame %d is of kind %v, want %v", i, f.Kind, goldenKinds[i])
		}
		t.Logf("%q", chunksString(f.Chunks))
		frames = append(frames, f.Info())
		pack = append(pack, f.Stored...)
	}
	pack, err := AppendTail(pack, goldenName, goldenEntries(frames))
	if err != nil {
		t.Fatal(err)
	}
	journal, _ := testJournal(goldenName, goldenEntries(frames))
	for path, b := range map[string][]byte{goldenPack: pack, goldenJournal: journal} {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

func readGolden(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenPack reads the golden pack with today's reader, down to every chunk.
func TestGoldenPack(t *testing.T) {
	b := readGolden(t, goldenPack)
	p, err := Read(goldenName, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != goldenName || p.Size != int64(len(b)) || p.Entries != 3 || p.Commits != 2 || len(p.Frames) != 4 {
		t.Fatalf("got pack %v of %d bytes, %d entries, %d commits, %d frames", p.Name, p.Size, p.Entries, p.Commits, len(p.Frames))
	}
	var commits []*Commit
	if err := p.ForEachCommit(func(n int, c *Commit) error { commits = append(commits, c); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := goldenCommits(); !reflect.DeepEqual(commits, want) {
		t.Errorf("got commits %+v, want %+v", commits, want)
	}
	d := newTestDecoder(t)
	for i, input := range goldenFrameInput() {
		f := p.Frames[i]
		if f.Kind != goldenKinds[i] || !slices.Equal(f.Chunks, chunksOf(input)) || chunksString(f.Chunks) != goldenIDs[i] {
			t.Errorf("frame %d is of kind %v and holds %s, want %v and %s", i, f.Kind, chunksString(f.Chunks), goldenKinds[i], goldenIDs[i])
		}
		checkGoldenFrame(t, d, f, b[p.Offsets[i]:][:f.Size()], input)
	}
}

// checkGoldenFrame decodes and verifies a stored frame.
func checkGoldenFrame(t *testing.T, d *Decoder, f FrameInfo, stored []byte, input []ManyChunk) {
	t.Helper()
	v, err := ParseFrame(f.Kind, len(f.Chunks), stored, f.Prefix, f.CRC)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(&v, f.Chunks); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i, c := range input {
		want = append(want, c.Masked...)
		if !slices.Equal(v.Spans(i), c.Spans) {
			t.Errorf("spans %v, want %v", v.Spans(i), c.Spans)
		}
	}
	if got, err := d.Decode(nil, &v, len(want)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("decodes to %d bytes (%v), want %d", len(got), err, len(want))
	}
	if f.Kind == KindPatch {
		checkServed(t, d, &v, input[0])
	}
}

// TestGoldenPackWriter writes the golden pack anew from what was read of it. Header,
// directory and trailer must be the same bytes. The groups are compressed, and where
// they end is in the trailer; so the golden ones are put into the new pack.
func TestGoldenPackWriter(t *testing.T) {
	b := readGolden(t, goldenPack)
	p, err := Read(goldenName, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	trailer, err := ParseTrailer(b[len(b)-TrailerSize:], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got := Header(goldenName); !bytes.Equal(got, b[:HeaderSize]) {
		t.Errorf("header\n% x, want\n% x", got, b[:HeaderSize])
	}
	entries := goldenEntries(p.Frames)
	tail, err := AppendTail(nil, goldenName, entries)
	if err != nil {
		t.Fatal(err)
	}
	dir := b[trailer.Directory : len(b)-TrailerSize]
	if got := tail[len(tail)-TrailerSize-len(dir) : len(tail)-TrailerSize]; !bytes.Equal(got, dir) {
		t.Errorf("directory\n% x, want\n% x", got, dir)
	}
	frames, _ := framesAndCommits(t, entries)
	if got := appendTail(nil, goldenName, frames, p.records, 2, 3); !bytes.Equal(got, b[trailer.Records:]) {
		t.Errorf("tail\n% x, want\n% x", got, b[trailer.Records:])
	}
	if got := appendTail(nil, goldenName, frames, tail[:len(tail)-TrailerSize-len(dir)], 2, 3); !bytes.Equal(got, tail) {
		t.Errorf("tail\n% x, want\n% x", tail, got)
	}
}

func TestGoldenJournal(t *testing.T) {
	b := readGolden(t, goldenJournal)
	name, entries, err := readJournal(bytes.NewReader(b))
	if err.Error() != "EOF" || name != goldenName {
		t.Fatalf("got journal of %v, %v", name, err)
	}
	pack := readGolden(t, goldenPack)
	p, err := Read(goldenName, bytes.NewReader(pack), int64(len(pack)))
	if err != nil {
		t.Fatal(err)
	}
	want := goldenEntries(p.Frames)
	if !reflect.DeepEqual(entries, want) {
		t.Errorf("got entries %+v, want %+v", entries, want)
	}
	if again, _ := testJournal(goldenName, want); !bytes.Equal(again, b) {
		t.Errorf("journal\n% x, want\n% x", again, b)
	}
}
