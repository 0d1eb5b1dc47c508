package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

const testHash = "0c0a8r4k6fz9v1n2m3x5y7w8q0d4b6h1"

var testPath = testStoreDir + "/" + testHash + "-"

// testNote is a build-id note with a descriptor of 20 times c.
func testNote(c string) string { return string(buildIDNote) + strings.Repeat(c, 20) }

// findSlowly is what find must do, said simply: at every place that no match has taken,
// try both patterns.
func findSlowly(storeDir string, b []byte) (matches []match) {
	prefix := storeDir + "/"
	for i := 0; i < len(b); {
		rest := string(b[i:min(len(b), i+400)])
		if hash, ok := strings.CutPrefix(rest, prefix); ok && len(hash) > 32 && hash[32] == '-' && strings.Trim(hash[:32], nix32Alphabet) == "" {
			n := len(prefix) + 33
			matches = append(matches, match{i, i + n, i + len(prefix), 32})
			i += n
		} else if strings.HasPrefix(rest, "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00") && len(rest) >= 36 {
			matches = append(matches, match{i, i + 36, i + 16, 20})
			i += 36
		} else {
			i++
		}
	}
	return matches
}

func findAll(storeDir string, b []byte) (matches []match) {
	f := newMasker(storeDir).find(b)
	for m, ok := f.next(); ok; m, ok = f.next() {
		matches = append(matches, m)
	}
	return matches
}

// maskOffsets returns where spans are in s.
func maskOffsets(s string) (offs []int) {
	for _, m := range findAll(testStoreDir, []byte(s)) {
		offs = append(offs, m.off)
	}
	return offs
}

func TestFind(t *testing.T) {
	prefix := testStoreDir + "/"
	note := testNote("x")
	for name, tt := range map[string]struct {
		text string
		want []int
	}{
		"empty":                    {"", nil},
		"a path":                   {testPath, []int{11}},
		"in text":                  {"exec " + testPath + "bash/bin/sh", []int{16}},
		"no dash":                  {prefix + testHash, nil},
		"another byte for a dash":  {prefix + testHash + "/", nil},
		"31 characters":            {prefix + testHash[1:] + "-", nil},
		"33 characters":            {prefix + "0" + testHash + "-", nil},
		"e is no digit":            {prefix + strings.Replace(testHash, "a", "e", 1) + "-", nil},
		"o is no digit":            {prefix + strings.Replace(testHash, "a", "o", 1) + "-", nil},
		"t is no digit":            {prefix + strings.Replace(testHash, "a", "t", 1) + "-", nil},
		"u is no digit":            {prefix + strings.Replace(testHash, "a", "u", 1) + "-", nil},
		"upper case":               {prefix + strings.ToUpper(testHash) + "-", nil},
		"zero bytes":               {prefix + strings.Repeat("\x00", 32) + "-", nil},
		"zero digits":              {prefix + strings.Repeat("0", 32) + "-", []int{11}},
		"a hash alone":             {testHash + "-", nil},
		"another store":            {"/gnu/store/" + testHash + "-", nil},
		"a longer directory":       {"/usr" + testPath, []int{15}},
		"no first slash":           {testPath[1:], nil},
		"two slashes":              {"/nix/store//" + testHash + "-", nil},
		"adjacent":                 {testPath + testPath, []int{11, 55}},
		"prefix twice":             {prefix + testPath, []int{22}},
		"prefix cut, then a path":  {"/nix/sto" + testPath, []int{19}},
		"hash cut, then a path":    {prefix + testHash[:20] + testPath, []int{42}},
		"a note":                   {note, []int{16}},
		"a note of zeros":          {testNote("\x00"), []int{16}},
		"a note in zeros":          {strings.Repeat("\x00", 50) + note + strings.Repeat("\x00", 50), []int{66}},
		"a truncated note":         {note[:35], nil},
		"a note's header":          {string(buildIDNote), nil},
		"only the tail of a note":  {note[12:], nil},
		"a note of another type":   {strings.Replace(note, "\x03", "\x01", 1), nil},
		"a note of another length": {strings.Replace(note, "\x14", "\x10", 1), nil},
		"a note of another vendor": {strings.Replace(note, "GNU", "GNV", 1), nil},
		"notes adjacent":           {note + note, []int{16, 52}},
		// What is taken by one match cannot begin another.
		"a note's descriptor begins a path":   {string(buildIDNote) + testPath[:20] + testPath[20:], []int{16}},
		"a path in a descriptor, then a note": {string(buildIDNote) + testPath[:20] + note, []int{16, 52}},
		"a note that begins in a note":        {string(buildIDNote) + string(buildIDNote) + strings.Repeat("y", 20), []int{16}},
		"a path behind a note cut by it":      {string(buildIDNote) + "0123456789" + testPath, []int{16}},
		"a note behind a path":                {testPath + note, []int{11, 60}},
		"a note before a path":                {note + testPath, []int{16, 47}},
		"the tail of a note behind a path":    {testPath + note[12:], []int{11}},
	} {
		if got := maskOffsets(tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got spans at %v, want %v", name, got, tt.want)
		}
		if got, want := findAll(testStoreDir, []byte(tt.text)), findSlowly(testStoreDir, []byte(tt.text)); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, the reference finds %v", name, got, want)
		}
	}
}

// fragments are what hostile contents are made of.
var fragments = []string{
	testStoreDir, testStoreDir + "/", testPath, testPath[:20], testPath[20:], testPath[:43], testHash, testHash[:16], "-", "/", "0", "e",
	string(buildIDNote), string(buildIDNote[:12]), string(buildIDNote[12:]), testNote("d"), testNote("\x00")[:30], "\x04\x00\x00\x00", "GNU\x00", "\x00", "\x00\x00\x00\x00\x00\x00\x00\x00",
}

func TestFindIsTheReference(t *testing.T) {
	rnd := testSeed(t)
	for range 20000 {
		var b []byte
		for range rnd.IntN(12) {
			b = append(b, fragments[rnd.IntN(len(fragments))]...)
		}
		if len(b) > 0 && rnd.IntN(3) == 0 {
			b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		}
		if got, want := findAll(testStoreDir, b), findSlowly(testStoreDir, b); !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", b, got, want)
		}
	}
	for range 20 {
		b := randomData(rnd, 100<<10)
		if got, want := findAll(testStoreDir, b), findSlowly(testStoreDir, b); !slices.Equal(got, want) {
			t.Fatalf("got %d matches, want %d", len(got), len(want))
		}
	}
}

// FuzzFind compares find with the reference, for any store directory.
func FuzzFind(f *testing.F) {
	for _, s := range fragments {
		f.Add(testStoreDir, []byte(s+testPath+s))
	}
	f.Add("/a/a", []byte("/a/a/a/a/a/"+testHash+"-/a/a/"+testHash+"-"))
	f.Add("/", []byte("//"+testHash+"-"))
	f.Fuzz(func(t *testing.T, storeDir string, b []byte) {
		if len(storeDir) > 255 {
			return
		}
		got := findAll(storeDir, b)
		if want := findSlowly(storeDir, b); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for _, m := range got {
			span := b[m.off : m.off+m.len]
			v := valueOf(span)
			if again := v.appendSpan(nil, m.len); !bytes.Equal(again, span) {
				t.Fatalf("span %q comes back as %q", span, again)
			}
		}
	})
}

func TestValue(t *testing.T) {
	rnd := testSeed(t)
	for i := range 5000 {
		var want value
		for k := range want {
			want[k] = byte(rnd.Uint32())
		}
		switch i {
		case 0:
			want = value{}
		case 1:
			for k := range want {
				want[k] = 0xff
			}
		}
		text := want.appendSpan([]byte("x"), packfile.SpanHash)[1:]
		if other := narinfo.EncodeNix32(want[:]); string(text) != other {
			t.Fatalf("%x is %s, narinfo says %s", want, text, other)
		}
		if got := valueOf(text); got != want {
			t.Fatalf("%s is %x, want %x", text, got, want)
		}
		if other, err := narinfo.DecodeNix32(string(text)); err != nil || !bytes.Equal(other, want[:]) {
			t.Fatalf("%s is %x, narinfo says %x, %v", text, want, other, err)
		}
		raw := want.appendSpan(nil, packfile.SpanBuildID)
		if !bytes.Equal(raw, want[:]) || valueOf(raw) != want {
			t.Fatalf("build-id %x comes back as %x", want, raw)
		}
	}
}

// randomSpans is text of nothing but matches.
func randomSpans(rnd *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		if rnd.IntN(4) == 0 {
			b.WriteString(testNote(fmt.Sprint(rnd.IntN(10))))
		} else {
			b.WriteString(testStoreDir + "/" + randomHash(rnd) + "-")
		}
	}
	return b.String()
}

// TestMaskedObjects puts NARs whose files are all about masking through a store.
func TestMaskedObjects(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir())
	zeros := strings.Repeat("\x00", 32)
	for name, text := range map[string]string{
		"only spans, one chunk":  randomSpans(rnd, 1000),
		"only spans, many":       randomSpans(rnd, 80_000),
		"one value":              strings.Repeat(testPath, 40_000),
		"the mask":               testStoreDir + "/" + zeros + "-x " + testPath + zeros,
		"a chunk of the mask":    strings.Repeat("\x00", 200<<10) + testPath + strings.Repeat("\x00", 200<<10),
		"fragments":              strings.Join(fragments, ""),
		"fragments, many times":  strings.Repeat(strings.Join(fragments, ""), 500),
		"a span at each end":     testPath + strings.Repeat("text ", 50<<10) + testNote("a"),
		"short":                  testPath,
		"short and nothing else": testNote("b"),
	} {
		half := len(text) / 2
		b := makeNAR(t,
			testFile{name: "a", data: []byte(text)},
			// Patterns do not reach from one file into the next.
			testFile{name: "b", data: []byte(text[:half])}, testFile{name: "c", data: []byte(text[half:])},
			testFile{name: "d", target: strings.ReplaceAll(text[:min(len(text), 200)], "\x00", "0")})
		t.Run(name, func(t *testing.T) {
			putNAR(t, s, b)
			checkNAR(t, s, rnd, b)
		})
	}
}
