package packfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"runtime"
	"testing"
)

// testCommits are commits of every shape.
func testCommits() []*Commit {
	other := Name{Writer: [10]byte{0: 0xfe}, Seq: 7, Rand: 8}
	return []*Commit{
		{Packs: []Name{}, Records: []Record{}},
		{Time: 1_800_000_000, Packs: []Name{}, Records: []Record{
			{RecordRecipe, []byte("recipe")}, {RecordContent, bytes.Repeat([]byte("content "), 40)},
			{RecordNarInfo, []byte("StorePath: …\n")}, {RecordName, []byte{}},
		}},
		{Time: 1_800_000_001, Packs: []Name{testName, other}, Records: []Record{{RecordName, []byte("nar/x.nar")}}},
		{Time: 1<<62 - 1, Packs: []Name{other}, Records: []Record{{200, []byte("of the future")}}},
	}
}

func TestCommit(t *testing.T) {
	for i, want := range testCommits() {
		b := want.Append([]byte("before"))
		got, err := ParseCommit(b[len("before"):])
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("commit %d: got %+v, %v, want %+v", i, got, err, want)
		}
		for n := range len(b) - len("before") {
			if c, err := ParseCommit(b[len("before"):][:n]); !errors.Is(err, ErrCorrupt) || c != nil {
				t.Errorf("commit %d cut to %d bytes: got %v, %v", i, n, c, err)
			}
		}
		if c, err := ParseCommit(append(b[len("before"):], 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("commit %d and a byte: got %v, %v", i, c, err)
		}
	}
	// A clock before 1970 does not make a commit that cannot be read.
	if c, err := ParseCommit((&Commit{Time: -5}).Append(nil)); err != nil || c.Time != 0 {
		t.Errorf("negative time: got %+v, %v", c, err)
	}
}

// varint returns v as a uvarint, for hand-made bytes.
func varint(v uint64) string { return string(binary.AppendUvarint(nil, v)) }

// TestCommitHostile parses lengths that lie. Nothing may be allocated by them.
func TestCommitHostile(t *testing.T) {
	for name, b := range map[string]string{
		"time":              varint(math.MaxUint64) + "\x00\x00",
		"time too long":     "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00",
		"time not shortest": "\x80\x00\x00\x00",
		"packs":             "\x00" + varint(1<<60),
		"packs, some there": "\x00" + varint(3) + string(testName.Append(nil)) + string(testName.Append(nil)),
		"pack name":         "\x00\x01" + string(Name{Seq: math.MaxUint64}.Append(nil)) + "\x00",
		"records":           "\x00\x00" + varint(math.MaxUint64),
		"records, one more": "\x00\x00" + varint(2) + "\x01\x00\x01",
		"record":            "\x00\x00\x01\x01" + varint(math.MaxUint64) + "x",
		"record, negative":  "\x00\x00\x01\x01" + varint(1<<63) + "x",
	} {
		checkSmall(t, name, func() {
			if c, err := ParseCommit([]byte(b)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: got %+v, %v", name, c, err)
			}
		})
	}
	many := append([]byte("\x00\x00"+varint(maxRecords+1)), make([]byte, 2*(maxRecords+1))...)
	checkSmall(t, "many records", func() {
		if _, err := ParseCommit(many); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d records: got %v", maxRecords+1, err)
		}
	})
}

// checkSmall checks that f allocates little.
func checkSmall(t *testing.T, name string, f func()) {
	t.Helper()
	if n := allocated(f); n > 1<<20 {
		t.Errorf("%s: allocates %d bytes", name, n)
	}
}

// allocated returns how many bytes f, and whatever runs beside it, allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestFrameInfoRejects(t *testing.T) {
	good := FrameInfo{Kind: KindPatch, Prefix: 1, Payload: 100, CRC: 5, Chunks: []Chunk{{ID{1}, 50}}}
	many := func(n int, length uint32) FrameInfo {
		f := FrameInfo{Kind: KindDecode, Prefix: n, Payload: 100}
		for range n {
			f.Chunks = append(f.Chunks, Chunk{ID{2}, length})
		}
		return f
	}
	change := func(f func(*FrameInfo)) FrameInfo {
		g := good
		f(&g)
		return g
	}
	for name, tt := range map[string]struct {
		f  FrameInfo
		ok bool
	}{
		"good":           {good, true},
		"largest":        {many(16, MaxChunk), true},
		"kind 0":         {change(func(f *FrameInfo) { f.Kind = 0 }), false},
		"kind 3":         {change(func(f *FrameInfo) { f.Kind = 3 }), false},
		"no chunks":      {change(func(f *FrameInfo) { f.Chunks = nil }), false},
		"two to patch":   {change(func(f *FrameInfo) { f.Chunks = []Chunk{{ID{1}, 5}, {ID{2}, 5}} }), false},
		"empty chunk":    {change(func(f *FrameInfo) { f.Chunks = []Chunk{{ID{1}, 0}} }), false},
		"large chunk":    {change(func(f *FrameInfo) { f.Chunks = []Chunk{{ID{1}, MaxChunk + 1}} }), false},
		"large prefix":   {change(func(f *FrameInfo) { f.Prefix = maxFrameBytes + 1 }), false},
		"large payload":  {change(func(f *FrameInfo) { f.Payload = maxFrameBytes + 1 }), false},
		"negative":       {change(func(f *FrameInfo) { f.Payload = -1 }), false},
		"above MaxFrame": {many(17, MaxChunk), false},
		// 32 bits would overflow.
		"far above MaxFrame": {many(4097, MaxChunk), false},
	} {
		c := cursor{b: appendFrames(nil, []FrameInfo{tt.f})}
		got := c.frames()
		switch err := c.end("frames"); {
		case tt.ok && (err != nil || !reflect.DeepEqual(got, []FrameInfo{tt.f})):
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, tt.f)
		case !tt.ok && !errors.Is(err, ErrCorrupt):
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

// FuzzCommit parses any bytes. What is a commit has one encoding.
func FuzzCommit(f *testing.F) {
	for _, c := range testCommits() {
		f.Add(c.Append(nil))
	}
	f.Add([]byte("\x80\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCommit(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || c != nil {
				t.Fatalf("got %v, %v", c, err)
			}
			return
		}
		if again := c.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("commit % x is written as % x", b, again)
		}
	})
}
