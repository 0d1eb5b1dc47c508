package report

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

func testSeed(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func openStore(t testing.TB) *chunkstore.Store {
	t.Helper()
	dir := t.TempDir()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), chunkstore.Options{State: filepath.Join(dir, "state"), Bucket: b, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func storePath(t testing.TB, rnd *rand.Rand, name string) narinfo.StorePath {
	t.Helper()
	var b [20]byte
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	p, err := narinfo.ParseBaseName(narinfo.EncodeNix32(b[:]) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// put stores a path of files with contents.
func put(t testing.TB, s *chunkstore.Store, path narinfo.StorePath, refs []narinfo.StorePath, files ...[]byte) {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	err := w.WriteHeader(&nar.Header{Type: nar.Directory})
	for i, data := range files {
		if err == nil {
			err = w.WriteHeader(&nar.Header{Path: fmt.Sprintf("f%03d", i), Type: nar.Regular, Size: int64(len(data))})
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	if err == nil {
		err = w.Close()
	}
	hash := sha256.Sum256(b.Bytes())
	name := "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar"
	if err == nil {
		_, err = s.PutNAR(t.Context(), name, bytes.NewReader(b.Bytes()), nil)
	}
	if err == nil {
		err = s.PutNarInfo(t.Context(), &narinfo.NarInfo{
			StorePath: path, URL: name, Compression: "none", NarHash: hash, NarSize: uint64(b.Len()), FileSize: uint64(b.Len()), References: refs,
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fill stores random paths of some packages, made of contents that they share, and
// returns the paths.
func fill(t testing.TB, s *chunkstore.Store, rnd *rand.Rand) (paths []narinfo.StorePath) {
	t.Helper()
	var pool [][]byte
	for range 30 {
		data := make([]byte, 1000+rnd.IntN(150_000))
		noise := 1 + rnd.IntN(255)
		for i := range data {
			data[i] = byte(rnd.IntN(noise))
		}
		pool = append(pool, data)
	}
	for i := range 40 {
		var files [][]byte
		for range 1 + rnd.IntN(5) {
			files = append(files, pool[rnd.IntN(len(pool))])
		}
		var refs []narinfo.StorePath
		for range rnd.IntN(3) {
			if len(paths) > 0 {
				refs = append(refs, paths[rnd.IntN(len(paths))])
			}
		}
		path := storePath(t, rnd, fmt.Sprintf("pkg%c-%d", 'a'+rnd.IntN(8), i))
		refs = append(refs, path)
		put(t, s, path, refs, files...)
		paths = append(paths, path)
		if rnd.IntN(8) == 0 { // another path with the same NAR
			path := storePath(t, rnd, fmt.Sprintf("pkg%c-%d", 'a'+rnd.IntN(8), i))
			put(t, s, path, []narinfo.StorePath{storePath(t, rnd, "not-here")}, files...)
			paths = append(paths, path)
		}
	}
	return paths
}

// exact is what a report should say, by sets of users of each chunk.
type exact struct {
	packages map[string]*Package
	paths    map[string]*Path // by hash part
	used     int64
	chunks   map[packfile.ID]chunkstore.Chunk
	users    map[packfile.ID]map[string]bool // hash parts
}

func countExactly(t *testing.T, s *chunkstore.Store) *exact {
	t.Helper()
	v, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	e := &exact{map[string]*Package{}, map[string]*Path{}, 0, map[packfile.ID]chunkstore.Chunk{}, map[packfile.ID]map[string]bool{}}
	err = v.EachChunk(t.Context(), func(c chunkstore.Chunk) error {
		e.chunks[c.ID], e.users[c.ID] = c, map[string]bool{}
		return nil
	})
	uses := map[string]*chunkstore.Use{}
	if err == nil {
		err = v.EachPath(t.Context(), func(p chunkstore.Path) error {
			h := p.StorePath.HashPart()
			e.paths[h] = &Path{NarInfo: p.NarInfo}
			uses[h], err = v.Use(t.Context(), p.NarHash)
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for h, u := range uses {
		for _, id := range u.Chunks {
			e.users[id][h] = true
		}
	}
	pathOwn, pathShared, own, shared := map[string]float64{}, map[string]float64{}, map[string]float64{}, map[string]float64{}
	for id, users := range e.users {
		packages := map[string]bool{}
		for h := range users {
			packages[e.paths[h].StorePath.Package()] = true
		}
		stored := float64(e.chunks[id].Stored)
		if len(users) > 0 {
			e.used += e.chunks[id].Stored
		}
		for h := range users {
			if len(users) == 1 {
				pathOwn[h] += stored
			} else {
				pathShared[h] += stored / float64(len(users))
			}
		}
		for p := range packages {
			if len(packages) == 1 {
				own[p] += stored
			} else {
				shared[p] += stored / float64(len(packages))
			}
		}
	}
	for h, p := range e.paths {
		p.Own, p.Shared = int64(math.Round(pathOwn[h])), int64(math.Round(pathShared[h]))
		p.Wire = uses[h].Literals
		for _, id := range uses[h].Chunks {
			p.Wire += e.chunks[id].Wire
		}
		name := p.StorePath.Package()
		if e.packages[name] == nil {
			e.packages[name] = &Package{Name: name, Own: int64(math.Round(own[name])), Shared: int64(math.Round(shared[name]))}
		}
		e.packages[name].Paths++
		e.packages[name].NARBytes += int64(p.NarSize)
		e.packages[name].WireBytes += p.Wire
	}
	return e
}

// near allows for sums of parts that were added up in another order.
func near(a, b int64) bool { return a-b <= 1 && b-a <= 1 }

func TestReportIsExact(t *testing.T) {
	rnd, s := testSeed(t), openStore(t)
	paths := fill(t, s, rnd)
	want := countExactly(t, s)
	packages, seen := int64(0), int64(0)
	opts := Options{
		Closures: []string{paths[0].HashPart(), paths[len(paths)-1].HashPart()}, Top: 3, TempDir: t.TempDir(),
		Package: func(p *Package) error {
			packages++
			w := want.packages[p.Name]
			if w == nil {
				t.Errorf("there is no package %q", p.Name)
			} else if p.Paths != w.Paths || p.NARBytes != w.NARBytes || p.WireBytes != w.WireBytes || !near(p.Own, w.Own) || !near(p.Shared, w.Shared) || p.Error != 0 {
				t.Errorf("got %+v, want %+v", p, w)
			}
			return nil
		},
		Path: func(p *Path) error {
			seen++
			w := want.paths[p.StorePath.HashPart()]
			if p.Wire != w.Wire || !near(p.Own, w.Own) || !near(p.Shared, w.Shared) || !reflect.DeepEqual(p.NarInfo, w.NarInfo) {
				t.Errorf("got %+v, want %+v", p, w)
			}
			return nil
		},
	}
	r, err := Make(t.Context(), s, opts)
	if err != nil {
		t.Fatal(err)
	}
	if packages != int64(len(want.packages)) || r.Packages != packages || seen != int64(len(want.paths)) || r.Paths != seen || r.AbsentPaths != 0 {
		t.Errorf("got %d packages and %d paths, the report says %d and %d, want %d and %d", packages, seen, r.Packages, r.Paths, len(want.packages), len(want.paths))
	}
	if r.UsedBytes != want.used || r.UsedBytes+r.UnusedBytes != r.Store.FrameBytes || r.Sample != nil {
		t.Errorf("got %d used and %d unused bytes, want %d of %d; sample %v", r.UsedBytes, r.UnusedBytes, want.used, r.Store.FrameBytes, r.Sample)
	}
	for i := range opts.Closures {
		want.checkClosure(t, opts.Closures[i], &r.Closures[i])
	}
	if len(r.Largest) != 3 || r.Largest[0].Stored() < r.Largest[2].Stored() || r.MostDeduplicated[0].Dedup < r.MostDeduplicated[2].Dedup || r.LeastDeduplicated[0].Dedup > r.LeastDeduplicated[2].Dedup {
		t.Errorf("the lists are not in order: %+v", r.lists())
	}
}

func (e *exact) checkClosure(t *testing.T, root string, got *Closure) {
	t.Helper()
	in, want := map[string]bool{root: true}, Closure{Path: e.paths[root].StorePath.String()}
	for next := []string{root}; len(next) > 0; {
		p := e.paths[next[0]]
		next = next[1:]
		if p == nil {
			want.Missing++
			continue
		}
		want.Paths++
		want.NARBytes += int64(p.NarSize)
		want.WireBytes += p.Wire
		for _, ref := range p.References {
			if h := ref.HashPart(); !in[h] {
				in[h] = true
				next = append(next, h)
			}
		}
	}
	for id, users := range e.users {
		inside := 0
		for h := range users {
			if in[h] {
				inside++
			}
		}
		if inside > 0 {
			want.Alone += e.chunks[id].Stored
		}
		if inside > 0 && inside == len(users) {
			want.Own += e.chunks[id].Stored
		}
	}
	want.Shared = want.Alone - want.Own
	if *got != want {
		t.Errorf("got the closure %+v, want %+v", *got, want)
	}
}

// A sample that is too small to be right still adds up, and says that it is one.
func TestSampledReport(t *testing.T) {
	rnd, s := testSeed(t), openStore(t)
	paths := fill(t, s, rnd)
	want := countExactly(t, s)
	stored, pathsStored := int64(0), int64(0)
	r, err := Make(t.Context(), s, Options{
		Memory: 16 * slotSize, Closures: []string{paths[0].HashPart()}, TempDir: t.TempDir(),
		Package: func(p *Package) error {
			stored += p.Stored()
			return nil
		},
		Path: func(p *Path) error {
			pathsStored += p.Own + p.Shared
			if w := want.paths[p.StorePath.HashPart()]; p.Wire != w.Wire {
				t.Errorf("a download of %s is %d bytes, want %d", p.StorePath, p.Wire, w.Wire)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sample == nil || r.Sample.Chunks > 16 || r.Sample.OneOf < 2 {
		t.Fatalf("%d chunks in a table of 16: got the sample %+v", len(want.chunks), r.Sample)
	}
	if off := stored - r.UsedBytes; off > r.Packages || off < -r.Packages {
		t.Errorf("packages add up to %d bytes, want %d", stored, r.UsedBytes)
	}
	if off := pathsStored - r.UsedBytes; off > r.Paths || off < -r.Paths {
		t.Errorf("paths add up to %d bytes, want %d", pathsStored, r.UsedBytes)
	}
	var text, page bytes.Buffer
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "estimated") {
		t.Errorf("%v: %s", err, text.String())
	}
	if err := r.WriteHTML(&page); err != nil || !strings.Contains(page.String(), "Estimated from") {
		t.Errorf("%v: %s", err, page.String())
	}
}

func TestTables(t *testing.T) {
	s := openStore(t)
	rnd := testSeed(t)
	fill(t, s, rnd)
	var files [2]bytes.Buffer
	tables := []Table{NewParquet(&files[0]), NewCSV(&files[1])}
	var want []row
	_, err := Make(t.Context(), s, Options{TempDir: t.TempDir(), Path: func(p *Path) error {
		want = append(want, newRow(p))
		for _, table := range tables {
			if err := table.Write(p); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := parquet.Read[row](bytes.NewReader(files[0].Bytes()), int64(files[0].Len()))
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %d rows (%v), want %d", len(got), err, len(want))
	}
	lines, err := csv.NewReader(&files[1]).ReadAll()
	if err != nil || len(lines) != len(want)+1 {
		t.Fatalf("got %d lines (%v), want %d", len(lines), err, len(want)+1)
	}
	for i, w := range want {
		got[i].Writer = got[i].Writer.UTC()
		if len(got[i].Sigs) == 0 {
			got[i].Sigs = nil
		}
		if !reflect.DeepEqual(got[i], w) {
			t.Errorf("got %+v, want %+v", got[i], w)
		}
		if line := lines[i+1]; line[0] != w.StorePath || line[2] != w.Package || line[5] != fmt.Sprint(w.NARSize) || line[10] != strings.Join(w.References, " ") || line[16] != fmt.Sprint(w.Shared) {
			t.Errorf("got the line %q, want %+v", line, w)
		}
	}
	schema := parquet.SchemaOf(row{})
	for i, field := range schema.Fields() {
		if lines[0][i] != field.Name() {
			t.Errorf("column %d is %q in CSV, %q in Parquet", i, lines[0][i], field.Name())
		}
	}
}

// What another process makes of a store is what this one makes.
func TestAsk(t *testing.T) {
	rnd, s := testSeed(t), openStore(t)
	paths := fill(t, s, rnd)
	server := httptest.NewServer(Handler(s, Options{TempDir: t.TempDir()}, slog.New(slog.DiscardHandler)))
	defer server.Close()
	collect := func(make func(Options) (*Report, error)) (text string) {
		t.Helper()
		var b strings.Builder
		lines := json.NewEncoder(&b)
		r, err := make(Options{
			Closures: []string{paths[0].HashPart()}, Top: 5, TempDir: t.TempDir(),
			Package: func(p *Package) error { return lines.Encode(p) },
			Path:    func(p *Path) error { return lines.Encode(newRow(p)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		r.Time, r.Store = time.Time{}, nil
		lines.Encode(r)
		return b.String()
	}
	want := collect(func(o Options) (*Report, error) { return Make(t.Context(), s, o) })
	got := collect(func(o Options) (*Report, error) { return Ask(t.Context(), server.Client(), server.URL, o) })
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := Ask(t.Context(), server.Client(), server.URL, Options{Closures: []string{strings.Repeat("0", 32)}}); err == nil {
		t.Error("the closure of a path that is not here was found")
	}
	stop := io.ErrClosedPipe
	if _, err := Ask(t.Context(), server.Client(), server.URL, Options{Path: func(*Path) error { return stop }}); err != stop {
		t.Errorf("got %v, want %v", err, stop)
	}
}

func TestSorter(t *testing.T) {
	rnd := testSeed(t)
	for _, size := range []int{1, 1000, 1 << 20} {
		s := sorter{dir: t.TempDir(), max: size}
		var want []string
		for range 1 + rnd.IntN(200) {
			line := fmt.Sprintf("%d\x00%d", rnd.IntN(50), rnd.Uint64())
			want = append(want, line)
			if err := s.add(line); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(want)
		for range 2 {
			var got []string
			err := s.each(func(line string) error {
				got = append(got, line)
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("runs of %d bytes: got %q (%v), want %q", size, got, err, want)
			}
		}
		if left, err := filepath.Glob(filepath.Join(s.dir, "*")); err != nil || len(left) > 0 {
			t.Errorf("%q is left (%v)", left, err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}

// Estimates of random tables are as near as they say, and slots are found.
func TestChunks(t *testing.T) {
	rnd := testSeed(t)
	n := 5000 + rnd.IntN(60_000)
	keys := make([]uint64, n)
	for i := range keys {
		if keys[i] = rnd.Uint64(); rnd.IntN(20) == 0 {
			keys[i] >>= rnd.IntN(60) // the guess where one is need not be good
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	table := chunks{max: 1 + rnd.IntN(8000)}
	exact := 0.0
	for _, key := range keys {
		c := chunkstore.Chunk{Size: 1, Stored: 1 + rnd.Int64N(1000), Wire: 1}
		for i := range 8 {
			c.ID[i] = byte(key >> (56 - 8*i))
		}
		exact += float64(c.Stored)
		table.add(c)
	}
	if len(table.slots) > table.max {
		t.Errorf("the table has %d slots, want %d at most", len(table.slots), table.max)
	}
	for i, key := range keys {
		if at := table.find(key); table.sampled(key) != (at >= 0) || at >= 0 && table.slots[at].key != key {
			t.Fatalf("key %d of %d is at %d", i, len(keys), at)
		}
		if next := key + 1; i+1 < len(keys) && next != keys[i+1] && table.find(next) >= 0 {
			t.Fatalf("a key that was not added is at %d", table.find(next))
		}
	}
	var e estimate
	for _, s := range table.slots {
		e.add(float64(s.stored))
	}
	// Three margins are almost six standard deviations; few chunks are no sample.
	if off := math.Abs(float64(table.total(e)) - exact); len(table.slots) > 300 && off > 3*float64(table.margin(e)) {
		t.Errorf("estimated %d of %d chunks to be %d ± %d bytes, want %.0f", len(table.slots), len(keys), table.total(e), table.margin(e), exact)
	}
	if (&chunks{}).find(1) >= 0 {
		t.Error("an empty table has something")
	}
}

func TestTop(t *testing.T) {
	rnd := testSeed(t)
	list := top{max: 4, less: func(a, b *Package) bool { return a.Own > b.Own }}
	var all []Package
	for i := range rnd.IntN(30) {
		p := Package{Name: fmt.Sprintf("%02d", i), Own: rnd.Int64N(10)}
		all = append(all, p)
		list.add(&p)
	}
	slices.SortStableFunc(all, func(a, b Package) int { return int(b.Own - a.Own) })
	if want := all[:min(4, len(all))]; !slices.Equal(list.list, want) {
		t.Errorf("got %+v, want %+v", list.list, want)
	}
}
