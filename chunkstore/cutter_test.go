package chunkstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

// A region is a part of an object: structure, which is not masked, or contents, which
// may be a segment of their own.
type region struct {
	text     string
	contents bool
	own      bool
}

// cutResult is what a cutter makes of an object.
type cutResult struct {
	pieces []piece
	table  []value
}

// smallRepository has small chunks, so that there are many in small objects.
func smallRepository(splitter string) Repository {
	r := DefaultRepository(testStoreDir, splitter)
	r.MinSize, r.AverageBits, r.MaxSize = 4<<10, 13, 16<<10
	return r
}

var testBuffers bufferPool

// cutObject drives a cutter as ingest does. The object is written up to each of the
// splits, and then to its end.
func cutObject(t testing.TB, repo Repository, regions []region, splits ...int) cutResult {
	t.Helper()
	var data []byte
	for _, r := range regions {
		data = append(data, r.text...)
	}
	var got cutResult
	c, err := newCutter(repo, &testBuffers, func(p piece) error {
		got.pieces = append(got.pieces, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	written := 0
	write := func() {
		to := len(data)
		for len(splits) > 0 && to == len(data) {
			to, splits = max(written, min(splits[0], len(data))), splits[1:]
		}
		c.Write(data[written:to])
		written = to
	}
	off := 0
	for _, r := range regions {
		end := off + len(r.text)
		for !r.contents && written < end {
			write()
		}
		if r.contents {
			check(c.structure(int64(off)))
			if r.own {
				check(c.segment())
			}
			for have := off; have < end; {
				if written <= have {
					write()
				}
				have = max(have, min(written, end))
				check(c.contents(int64(have), int64(end)))
			}
			if r.own {
				check(c.segment())
			}
		}
		off = end
	}
	check(c.structure(int64(len(data))))
	check(c.segment())
	got.table = c.table
	return got
}

// checkCut checks everything that must hold of pieces: they make up the object, their
// spans are those of the reference, and their sizes are in bounds.
func checkCut(t testing.TB, repo Repository, regions []region, got cutResult) {
	t.Helper()
	var data []byte
	var want []match
	edges := map[int]bool{} // where a segment may end
	for _, r := range regions {
		if r.own {
			edges[len(data)] = true
		}
		if r.contents {
			for _, m := range findSlowly(repo.StoreDir, []byte(r.text)) {
				m.off += len(data)
				want = append(want, m)
			}
		}
		data = append(data, r.text...)
		if r.own {
			edges[len(data)] = true
		}
	}
	edges[len(data)] = true

	var spans []match
	firsts := uint32(0)
	at := 0
	for i, p := range got.pieces {
		n := len(p.masked)
		// A boundary that moved to the start of a span may make a piece a little shorter.
		if n == 0 || n > repo.MaxSize || n < repo.MinSize-packfile.SpanHash && !edges[at+n] {
			t.Fatalf("piece %d at %d has %d bytes", i, at, n)
		}
		for edge := range edges {
			if edge > at && edge < at+n {
				t.Fatalf("piece %d from %d to %d holds the end of a segment at %d", i, at, at+n, edge)
			}
		}
		plain := slices.Clone(p.masked)
		for j, s := range p.spans {
			if int(s.Off)+int(s.Len) > n {
				t.Fatalf("piece %d at %d of %d bytes cuts a span %v", i, at, n, s)
			}
			if !bytes.Equal(p.masked[s.Off:s.Off+s.Len], make([]byte, s.Len)) {
				t.Fatalf("piece %d: span %v is not masked", i, s)
			}
			if p.refs[j] > firsts {
				t.Fatalf("value %d occurs before %d", p.refs[j], firsts)
			} else if p.refs[j] == firsts {
				firsts++
			}
			spans = append(spans, match{off: at + int(s.Off), len: int(s.Len)})
		}
		err := packfile.Unmask(plain, p.spans, func(j int) []byte {
			return got.table[p.refs[j]].appendSpan(nil, int(p.spans[j].Len))
		})
		if err != nil || !bytes.Equal(plain, data[at:at+n]) {
			t.Fatalf("piece %d at %d is not what came in: %v", i, at, err)
		}
		at += n
	}
	if at != len(data) || int(firsts) != len(got.table) {
		t.Fatalf("pieces make %d bytes of %d, and use %d values of %d", at, len(data), firsts, len(got.table))
	}
	if !slices.EqualFunc(spans, want, func(a, b match) bool { return a.off == b.off && a.len == b.len }) {
		t.Fatalf("got %d spans, want %d", len(spans), len(want))
	}
}

// checkSplits checks that an object is cut in the same way however it comes in.
func checkSplits(t testing.TB, repo Repository, regions []region, splits [][]int) {
	t.Helper()
	want := cutObject(t, repo, regions)
	checkCut(t, repo, regions, want)
	for _, s := range splits {
		if got := cutObject(t, repo, regions, s...); !reflect.DeepEqual(got, want) {
			t.Fatalf("written up to %v and the end: other pieces than in one write", s)
		}
	}
}

// TestCutAtEveryByte cuts small objects that are written in two parts, the boundary
// everywhere, and byte by byte.
func TestCutAtEveryByte(t *testing.T) {
	note := testNote("n")
	repo := smallRepository(FastCDC)
	for name, regions := range map[string][]region{
		"a path":                      {{"head", false, false}, {"x" + testPath + "y", true, false}, {"tail", false, false}},
		"a path at edges":             {{"", false, false}, {testPath, true, false}, {testPath, true, false}},
		"a note":                      {{"head", false, false}, {"x" + note + "y", true, false}, {"tail", false, false}},
		"both, adjacent":              {{testPath + note + testPath + note, true, false}},
		"overlapping":                 {{string(buildIDNote) + "0123456789" + testPath + testPath, true, false}},
		"nothing but structure":       {{testPath + note, false, false}},
		"path over the end of a file": {{testPath[:30], true, false}, {testPath[30:], true, false}},
		"path from structure":         {{testPath[:15], false, false}, {testPath[15:], true, false}, {testPath[:20], true, false}, {testPath[20:], false, false}},
		"note over the end of a file": {{note[:20], true, false}, {"", true, false}, {note[20:], true, false}},
		"segments":                    {{"head", false, false}, {testPath, true, true}, {"between", false, false}, {note, true, true}, {"", true, true}, {"tail", false, false}},
		"look-alikes":                 {{testPath[:42] + "x" + testPath[:43] + note[:35] + testStoreDir + testPath, true, false}},
	} {
		n := 0
		for _, r := range regions {
			n += len(r.text)
		}
		var splits [][]int
		var all []int
		for i := range n + 1 {
			splits = append(splits, []int{i})
			all = append(all, i)
		}
		splits = append(splits, all)
		t.Run(name, func(t *testing.T) { checkSplits(t, repo, regions, splits) })
	}
}

// TestCutSpanAtBoundary moves a span over a boundary of chunks, one byte at a time.
func TestCutSpanAtBoundary(t *testing.T) {
	for _, splitter := range []string{Rabin, FastCDC} {
		repo := smallRepository(splitter)
		rnd := rand.New(rand.NewPCG(1, 1))
		noise := make([]byte, 18<<10)
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		for _, base := range []string{string(noise), strings.Repeat("\x00", 18<<10)} {
			end := len(cutObject(t, repo, []region{{base, true, true}}).pieces[0].masked)
			for _, span := range []string{testPath, testNote("x") + testNote("y")} {
				for at := end - len(span) - 2; at <= end+2; at++ {
					regions := []region{{base[:at] + span + base[at:], true, true}}
					checkSplits(t, repo, regions, [][]int{{at + len(span)/2, end}})
				}
			}
		}
	}
}

// TestCutRandomObjects cuts objects as they come from NARs, in random parts.
func TestCutRandomObjects(t *testing.T) {
	rnd := testSeed(t)
	for i := range 30 {
		repo := smallRepository([]string{Rabin, FastCDC}[i%2])
		var regions []region
		for range 1 + rnd.IntN(8) {
			regions = append(regions, region{string(randomData(rnd, rnd.IntN(200))), false, false})
			text := string(randomData(rnd, rnd.IntN(1<<(4+rnd.IntN(14)))))
			if rnd.IntN(5) == 0 {
				text = randomSpans(rnd, rnd.IntN(1000))
			}
			regions = append(regions, region{text, true, len(text) >= repo.MinSize})
		}
		n := 0
		for _, r := range regions {
			n += len(r.text)
		}
		var splits [][]int
		for range 5 {
			var s []int
			for range rnd.IntN(20) {
				s = append(s, rnd.IntN(n+1))
			}
			slices.Sort(s)
			splits = append(splits, s)
		}
		checkSplits(t, repo, regions, splits)
	}
}

// TestCutTooManySpans checks that masking ends at maxSpans, and nothing else does.
func TestCutTooManySpans(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	repo := smallRepository(FastCDC)
	repo.StoreDir = "/s"
	path := "/s/" + testHash + "-"
	data := strings.Repeat(path, maxSpans+5)
	got := cutObject(t, repo, []region{{data, true, true}}, 1<<20, 20<<20)
	spans, at := 0, 0
	for _, p := range got.pieces {
		plain := p.masked
		if err := packfile.Unmask(plain, p.spans, func(int) []byte { return []byte(testHash) }); err != nil || string(plain) != data[at:at+len(plain)] {
			t.Fatalf("piece at %d is not what came in: %v", at, err)
		}
		spans += len(p.spans)
		at += len(plain)
	}
	if spans != maxSpans || at != len(data) || len(got.table) != 1 {
		t.Errorf("got %d spans in %d bytes with %d values, want %d, %d, 1", spans, at, len(got.table), maxSpans, len(data))
	}
}

// TestCutEmitFails checks that the cutter stops when a piece is refused.
func TestCutEmitFails(t *testing.T) {
	refused := fmt.Errorf("refused")
	c, err := newCutter(smallRepository(Rabin), &testBuffers, func(piece) error { return refused })
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.Write(make([]byte, 1000))
	if err := c.contents(1000, 1000); err != nil {
		t.Errorf("got %v before a piece was made", err)
	}
	if err := c.segment(); err != refused {
		t.Errorf("got %v, want %v", err, refused)
	}
}
