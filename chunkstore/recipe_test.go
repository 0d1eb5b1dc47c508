package chunkstore

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

// testRecipe has items of every kind.
func testRecipe() *recipe {
	return &recipe{items: []item{
		{id: packfile.ID{1, 2, 3}, len: 300_000, refs: []uint32{}},
		{len: 3, refs: []uint32{}, spans: []packfile.Span{}, plain: []byte("abc")},
		{id: packfile.ID{31: 9}, len: 1024, refs: []uint32{0, 1, 0, 300}},
		{len: 100, refs: []uint32{2, 2}, spans: []packfile.Span{{Off: 5, Len: 32}, {Off: 80, Len: 20}}, plain: make([]byte, 100)},
		{len: 52, refs: []uint32{0, 3}, spans: []packfile.Span{{Off: 0, Len: 20}, {Off: 20, Len: 32}}, plain: make([]byte, 52)},
	}}
}

func testContents() []*content {
	return []*content{
		{hash: Hash{1}, recipe: packfile.ID{2}, table: []value{}},
		{hash: Hash{31: 1}, size: 1<<63 - 1, nar: true, recipe: packfile.ID{31: 2}, table: []value{{1}, {2}, {19: 3}}},
	}
}

func uvarint(v uint64) string { return string(binary.AppendUvarint(nil, v)) }

func TestRecipe(t *testing.T) {
	for _, want := range []*recipe{testRecipe(), {items: []item{}}} {
		b := want.encode()
		got, err := decodeRecipe(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		for n := range b {
			if _, err := decodeRecipe(b[:n]); !errors.Is(err, packfile.ErrCorrupt) {
				t.Errorf("cut to %d of %d bytes: got %v", n, len(b), err)
			}
		}
		if _, err := decodeRecipe(append(b, 0)); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("a byte more: got %v", err)
		}
	}
}

// TestRecipeGolden pins the bytes of a recipe, and what they are called.
func TestRecipeGolden(t *testing.T) {
	const want = "05" +
		"00" + "0102030000000000000000000000000000000000000000000000000000000000" + "e0a712" + "00" +
		"01" + "03" + "00" + "616263" +
		"00" + "0000000000000000000000000000000000000000000000000000000000000009" + "8008" + "04" + "000100ac02" +
		"01" + "64" + "02" + "0a57" + "0202"
	b := testRecipe().encode()
	if got := hex.EncodeToString(b); len(got) < len(want) || got[:len(want)] != want {
		t.Errorf("got %s, want %s…", got, want)
	}
	if got, want := recipeID(b).String(), "16e4cf7c7bd3df58c00ff6fec82f764646c176077c4b06346c90d00908837246"; got != want {
		t.Errorf("recipe is called %s, want %s", got, want)
	}
}

func TestRecipeHostile(t *testing.T) {
	id := string(make([]byte, 32))
	for name, b := range map[string]string{
		"items":                    uvarint(math.MaxUint64),
		"items, 2^32":              uvarint(1<<32) + "\x00\x00\x00",
		"kind":                     "\x01\x02" + id + "\x01\x00",
		"length":                   "\x01\x00" + id + uvarint(1<<32) + "\x00",
		"refs":                     "\x01\x00" + id + "\x01" + uvarint(math.MaxUint64) + "\x00",
		"ref":                      "\x01\x00" + id + "\x01\x01" + uvarint(1<<32),
		"a chunk too large":        "\x01\x00" + id + uvarint(packfile.MaxChunk+1) + "\x00",
		"a literal too large":      "\x01\x01" + uvarint(packfile.MaxChunk+1) + "\x00" + string(make([]byte, packfile.MaxChunk+1)),
		"an empty literal":         "\x01\x01\x00\x00",
		"literal":                  "\x01\x01" + uvarint(math.MaxUint32) + "\x00x",
		"spans":                    "\x01\x01\x10" + uvarint(1<<40) + "x",
		"a span beyond the end":    "\x01\x01\x21\x01" + uvarint(2<<1) + "\x00" + string(make([]byte, 33)),
		"a span far away":          "\x01\x01\x21\x01" + uvarint(math.MaxUint64) + "\x00" + string(make([]byte, 33)),
		"a span that wraps around": "\x01\x01\x21\x02\x00" + uvarint(math.MaxUint64-63) + "\x00\x00" + string(make([]byte, 33)),
	} {
		if r, err := decodeRecipe([]byte(b)); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
}

func TestContent(t *testing.T) {
	for _, want := range testContents() {
		b := want.encode()
		got, err := decodeContent(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		for n := range b {
			if _, err := decodeContent(b[:n]); !errors.Is(err, packfile.ErrCorrupt) {
				t.Errorf("cut to %d of %d bytes: got %v", n, len(b), err)
			}
		}
		if _, err := decodeContent(append(b, 0)); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("a byte more: got %v", err)
		}
	}
	fixed := string(make([]byte, 32)) + "\x00\x00" + string(make([]byte, 32))
	for _, n := range []uint64{1, 1 << 32, math.MaxUint64} {
		if _, err := decodeContent([]byte(fixed + uvarint(n))); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("%d values that are not there: got %v", n, err)
		}
	}
}

// TestContentGolden pins the bytes of a content.
func TestContentGolden(t *testing.T) {
	const want = "0000000000000000000000000000000000000000000000000000000000000001" + "ffffffffffffffff7f" + "01" +
		"0000000000000000000000000000000000000000000000000000000000000002" + "03" +
		"0100000000000000000000000000000000000000" + "0200000000000000000000000000000000000000" + "0000000000000000000000000000000000000003"
	if got := hex.EncodeToString(testContents()[1].encode()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestRecipeRandom writes and reads recipes of any shape.
func TestRecipeRandom(t *testing.T) {
	rnd := testSeed(t)
	for range 500 {
		want := &recipe{items: []item{}}
		for range rnd.IntN(20) {
			want.items = append(want.items, randomItem(rnd))
		}
		if got, err := decodeRecipe(want.encode()); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func randomItem(rnd *rand.Rand) item {
	it := item{len: 1 + rnd.Uint32N(2000), refs: []uint32{}}
	if rnd.IntN(2) == 0 {
		for i := range it.id {
			it.id[i] = byte(rnd.Uint32())
		}
		for range rnd.IntN(5) {
			it.refs = append(it.refs, rnd.Uint32())
		}
		return it
	}
	it.plain, it.spans = make([]byte, it.len), []packfile.Span{}
	for at := uint32(0); ; {
		s := packfile.Span{Off: at + rnd.Uint32N(200), Len: []uint32{20, 32}[rnd.IntN(2)]}
		if at = s.Off + s.Len; at > it.len {
			return it
		}
		it.spans = append(it.spans, s)
		it.refs = append(it.refs, rnd.Uint32N(1000))
	}
}

// FuzzRecipe decodes any bytes. What is a recipe comes back the same.
func FuzzRecipe(f *testing.F) {
	f.Add(testRecipe().encode())
	f.Add([]byte{0})
	f.Add([]byte("\x01\x01\x21\x01\x00\x05" + string(make([]byte, 33))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecipe(b)
		if err != nil {
			if !errors.Is(err, packfile.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for i, it := range r.items {
			if it.literal() && len(it.plain) != int(it.len) || len(it.refs) != len(it.spans) && it.literal() {
				t.Fatalf("item %d: %+v", i, it)
			}
			for j, s := range it.spans {
				if int(s.Off)+int(s.Len) > len(it.plain) || j > 0 && s.Off < it.spans[j-1].Off+it.spans[j-1].Len {
					t.Fatalf("item %d: spans %v", i, it.spans)
				}
			}
		}
		if again, err := decodeRecipe(r.encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v comes back as %+v, %v", r, again, err)
		}
	})
}

// FuzzContent decodes any bytes. What is a content comes back the same.
func FuzzContent(f *testing.F) {
	for _, c := range testContents() {
		f.Add(c.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeContent(b)
		if err != nil {
			if !errors.Is(err, packfile.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, err := decodeContent(c.encode()); err != nil || !reflect.DeepEqual(again, c) || c.size < 0 {
			t.Fatalf("%+v comes back as %+v, %v", c, again, err)
		}
	})
}
