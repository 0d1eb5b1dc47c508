package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/chart/charttest"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
	archive "github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/prices"
)

// A maker writes a cache into a directory: packages in versions that have a part of their
// contents in common, and rebuilds of them.
type maker struct {
	t      *testing.T
	dir    string
	random *rand.Rand
	zstd   *zstd.Encoder
	n      int
}

func newMaker(t *testing.T, seed uint64) *maker {
	t.Helper()
	m := &maker{t: t, dir: t.TempDir(), random: rand.New(rand.NewPCG(seed, 1))}
	var err error
	if m.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(m.dir, "nar"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.write("nix-cache-info", []byte("StoreDir: /nix/store\n"))
	return m
}

func (m *maker) write(name string, data []byte) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), data, 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// file makes a file of lines of which a part has been seen before.
func (m *maker) file() []byte {
	size := int(10e3 * math.Exp(2.5*m.random.Float64()))
	words := 50 << m.random.IntN(8)
	var b bytes.Buffer
	for b.Len() < size {
		fmt.Fprintf(&b, "%x\n", uint64(m.random.IntN(words))*0x9e3779b97f4a7c15)
	}
	return b.Bytes()
}

// add adds a path whose NAR has these files, and one that names the path itself.
func (m *maker) add(name string, files [][]byte) *narinfo.NarInfo {
	m.t.Helper()
	m.n++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, m.n))
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(sum[:20]) + "-" + name)
	if err != nil {
		m.t.Fatal(err)
	}
	var plain bytes.Buffer
	w := archive.NewWriter(&plain)
	header := func(h *archive.Header) {
		if err := w.WriteHeader(h); err != nil {
			m.t.Fatal(err)
		}
	}
	header(&archive.Header{Type: archive.Directory})
	for i, file := range append([][]byte{[]byte(path.Path("/nix/store"))}, files...) {
		header(&archive.Header{Path: fmt.Sprintf("%03d", i), Type: archive.Regular, Size: int64(len(file))})
		if _, err := w.Write(file); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	file := m.zstd.EncodeAll(plain.Bytes(), nil)
	fileHash := sha256.Sum256(file)
	info := &narinfo.NarInfo{
		StorePath: path, NarHash: sha256.Sum256(plain.Bytes()), NarSize: uint64(plain.Len()), Compression: "zstd",
		FileHash: narinfo.NewHash(narinfo.SHA256, fileHash[:]), FileSize: uint64(len(file)),
	}
	info.URL = "nar/" + info.FileHash.Nix32() + ".nar.zst"
	m.write(info.URL, file)
	m.write(path.HashPart()+".narinfo", info.Append(nil, "/nix/store"))
	return info
}

// packages adds so many packages, each in some versions and rebuilds.
func (m *maker) packages(n int) {
	for i := range n {
		files := [][]byte{m.file(), m.file(), m.file()}
		for version := range 1 + m.random.IntN(4) {
			if version > 0 {
				files[m.random.IntN(3)] = m.file()
			}
			for range 1 + m.random.IntN(2) {
				m.add(fmt.Sprintf("package%c%c-%d.0", 'a'+i/26, 'a'+i%26, version), files)
			}
		}
	}
}

func options(t *testing.T) Options {
	return Options{
		Import: migrate.Options{Jobs: 4}, Share: 0.25, Temp: t.TempDir(),
		Store: chunkstore.Options{Log: slog.New(slog.DiscardHandler)}, Money: money(t),
	}
}

func TestMake(t *testing.T) {
	m := newMaker(t, 1)
	m.packages(30)
	source := dirs(m.dir)
	im := importAll(t, source)
	t.Run("samples", func(t *testing.T) { im.check(t, 0.25, 40) })

	t.Run("everything", func(t *testing.T) {
		opts := options(t)
		opts.Share = 1
		r, err := Make(t.Context(), source, opts, &Progress{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Paths != int64(m.n) || r.NARs != int64(m.n) || r.Sample.NARs != r.NARs || r.FileBytes != im.pop.fileBytes() {
			t.Errorf("got %+v, want all of %d paths", r, m.n)
		}
		if math.Abs(r.Stored.Value/im.stored-1) > 0.02 || r.Stored.High/r.Stored.Low > 1.001 || math.Abs(r.Wire.Value/im.wire-1) > 1e-6 {
			t.Errorf("got %+v stored and %+v downloaded, want %v and %v", r.Stored, r.Wire, im.stored, im.wire)
		}
		if left, _ := os.ReadDir(opts.Temp); len(left) > 0 {
			t.Errorf("%v was left", left)
		}
	})

	t.Run("sample", func(t *testing.T) {
		opts := options(t)
		opts.Seed = 1
		r, err := Make(t.Context(), source, opts, &Progress{})
		if err != nil {
			t.Fatal(err)
		}
		if share := float64(r.Sample.FileBytes) / float64(r.FileBytes); share < 0.15 || share > 0.4 {
			t.Errorf("the sample is %.2f of the files, want about 0.25", share)
		}
		if r.Stored.Low > im.stored || im.stored > r.Stored.High {
			t.Errorf("got %+v, want an interval with %v", r.Stored, im.stored)
		}
		again, err := Make(t.Context(), source, opts, &Progress{})
		if err != nil || again.Sample.NARs != r.Sample.NARs || again.Sample.FileBytes != r.Sample.FileBytes {
			t.Errorf("got another sample: %+v, %v", again, err)
		}
		look(t, r)
	})

	t.Run("half of the narinfos", func(t *testing.T) {
		opts := options(t)
		opts.Narinfos = m.n / 2
		r, err := Make(t.Context(), source, opts, &Progress{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Read != int64(m.n/2) || r.Paths != int64(m.n) || !strings.Contains(strings.Join(r.Warnings, "\n"), "narinfos were read") {
			t.Errorf("got %d of %d narinfos, %q", r.Read, r.Paths, r.Warnings)
		}
		if f := r.Stored.Value / im.stored; f < 0.5 || f > 2 {
			t.Errorf("got %+v, want about %v", r.Stored, im.stored)
		}
	})
}

// look looks at a report in its forms.
func look(t *testing.T, r *Report) {
	t.Helper()
	var text, page bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"stored", "9 samples of 10", "packagea", "backblaze-b2", "(today)", "2026"} {
		if want == "2026" {
			want = r.Years[0].Name
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("there is no %q in\n%s", want, text.String())
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{text.String(), page.String()} {
		if strings.Contains(b, "NaN") || strings.Contains(b, "Inf") {
			t.Errorf("not a number in\n%s", b)
		}
	}
	if !testing.Short() {
		charttest.Look(t, "plan", page.Bytes())
	}
}

func TestDamagedSource(t *testing.T) {
	m := newMaker(t, 2)
	m.packages(3)
	gone := m.add("gone-1", [][]byte{m.file()})
	if err := os.Remove(filepath.Join(m.dir, gone.URL)); err != nil {
		t.Fatal(err)
	}
	unsized := m.add("unsized-1", [][]byte{m.file()})
	size := int64(unsized.FileSize)
	unsized.FileSize = 0
	m.write(unsized.StorePath.HashPart()+".narinfo", unsized.Append(nil, "/nix/store"))
	m.write(strings.Repeat("0", narinfo.HashPartLen)+".narinfo", []byte("<html>"))
	opts := options(t)
	opts.Share = 1
	r, err := Make(t.Context(), dirs(m.dir)[0], opts, &Progress{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Skipped[migrate.NoNAR] != 1 || r.Skipped[migrate.BadNarInfo] != 1 || r.Sample.Asked != r.Sample.NARs+1 {
		t.Errorf("got %+v, want one NAR and one narinfo to be left out", r)
	}
	for _, g := range r.Packages {
		if g.Name == "unsized" && g.FileBytes != size {
			t.Errorf("got a file of %d bytes, want %d", g.FileBytes, size)
		}
	}
	if all := strings.Join(r.Warnings, "\n"); !strings.Contains(all, "1 of the") || !strings.Contains(all, "1 narinfos") {
		t.Errorf("got warnings %q", r.Warnings)
	}
	if _, err := Make(t.Context(), dirs(t.TempDir()), options(t), &Progress{}); err == nil {
		t.Error("there is a plan for nothing")
	}
}

func TestKinds(t *testing.T) {
	p := newPopulation()
	want := map[chunkstore.Hash]kind{}
	add := func(name string, size int, k kind) {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d", len(p.nars)))
		path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(sum[:20]) + "-" + name)
		if err != nil {
			t.Fatal(err)
		}
		p.add(&narinfo.NarInfo{StorePath: path, NarHash: sum, NarSize: uint64(size), Compression: "xz"}, int64(size/4), time.Time{})
		want[sum] = k
	}
	add("glibc-2.35", 1000, first)
	add("glibc-2.36", 1000, newer)
	add("glibc-2.36", 2000, newer)
	add("glibc-2.35-dev", 500, first)
	add("glibc-2.36-dev", 500, newer)
	add("hello", 10, first)
	add("hello-2.12", 10, newer)
	n := len(p.nars)
	p.add(&narinfo.NarInfo{StorePath: p.nars[0].path, NarHash: p.nars[0].hash, NarSize: 1000}, 250, time.Time{}) // shared
	p.seal()
	if len(p.nars) != n || p.paths != int64(n+1) || len(p.lineages) != 3 {
		t.Errorf("got %d NARs of %d paths in %d lineages", len(p.nars), p.paths, len(p.lineages))
	}
	for _, got := range p.nars {
		if got.kind != want[got.hash] {
			t.Errorf("%s of %d bytes: got kind %d, want %d", got.path.Name(), got.size, got.kind, want[got.hash])
		}
	}
	for name, want := range map[string]string{"a-1-dev": "dev", "a-1": "", "a-1-2": "", "a": "", "a-1.2-rc1": "", "a-unwrapped-1-lib": "lib"} {
		path, err := narinfo.ParseBaseName(strings.Repeat("0", narinfo.HashPartLen) + "-" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := output(path); got != want {
			t.Errorf("output of %s: got %q, want %q", name, got, want)
		}
	}
}

// TestGrowth has chunks of which it can be said what more groups have.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		name           string
		groups         func(s sharing, group int)
		left, doubling float64
	}{
		{"nothing shared", func(s sharing, g int) { s.add(uint64(g), 10, g) }, 1, 1},
		{"all the same", func(s sharing, g int) { s.add(7, 10, g) }, 1.0 / 16, 0.5},
		{"half", func(s sharing, g int) { s.add(uint64(1000+g), 10, g); s.add(7, 10, g) }, 17.0 / 32, 17.0 / 18},
	} {
		s := sharing{}
		for g := range 16 {
			c.groups(s, g)
			c.groups(s, g) // again changes nothing
		}
		left, doubling := s.growth()
		if math.Abs(left-c.left) > 1e-3 || math.Abs(doubling-c.doubling) > 1e-3 {
			t.Errorf("%s: got %v and %v, want %v and %v", c.name, left, doubling, c.left, c.doubling)
		}
	}
}

func TestStudent(t *testing.T) {
	for degrees, want := range map[int]float64{5: 2.015, 10: 1.812, 30: 1.697, 1000: 1.646} {
		if got := student90(degrees); math.Abs(got/want-1) > 0.01 {
			t.Errorf("%d degrees: got %v, want %v", degrees, got, want)
		}
	}
}

// TestOffers was computed by hand.
func TestOffers(t *testing.T) {
	m := &Money{Provider: "old", Egress: 2e12, Prices: prices.Table{
		"old":  {Storage: []prices.Tier{{Price: 20}}, Writes: 5, Reads: 1, Egress: []prices.Tier{{Price: 50}}},
		"new":  {Storage: []prices.Tier{{Price: 10}}, Writes: 1},
		"mine": {},
	}}
	r := &Report{
		Provider: "old", Paths: 2e6, NARs: 1e6, FileBytes: 1e12, Stored: Estimate{Value: 0.5e12}, Wire: Estimate{Value: 1.5e12},
		Chunks: Estimate{Value: 8e6}, Packs: Estimate{Value: 15000}, Requests: Requests{Get: 3e6},
	}
	r.Offers = r.offers(m)
	if len(r.Offers) != 6 {
		t.Fatalf("got %d offers, want 3 at each of two providers", len(r.Offers))
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-6 {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	here, best := r.Here(), r.Best()
	near("leave it", here.Plain.Month.Total(), 20+2*50+4) // two million downloads
	near("storage", here.Packs.Month.Storage, 10)
	near("egress", here.Packs.Month.Egress, 150)
	near("moving within", here.Packs.Once, 3+0.075+20)
	near("moving", best.Packs.Once, 3+50+0.015+20)
	near("chunks", best.Chunks.Once, 3+50+10+20)
	near("a month", best.Packs.Month.Total(), 5)
	if here.Packs.PaysAfter != 0 || best.Provider != "new" || best.Packs.PaysAfter != 1 || best.Plain.Way != Copy {
		t.Errorf("got %+v and %+v", here.Packs, best.Packs)
	}
}

func TestPaysAfter(t *testing.T) {
	flat := func(dollars float64) func(float64) float64 { return func(float64) float64 { return dollars } }
	growing := func(g float64) float64 { return 10 * (1 + g) }
	for _, c := range []struct {
		growth, once float64
		now, before  func(float64) float64
		want         int
	}{
		{0, 99, flat(0), flat(10), 10},
		{0, 100, flat(0), flat(10), 11},
		{0, 1, flat(10), flat(10), 0},
		{1.2, 25, flat(5), growing, 4}, // 5, 6, 7 and 8 are 26
		{0, 1e6, flat(0), flat(1), 0},
	} {
		if got := paysAfter(c.growth, c.once, c.now, c.before); got != c.want {
			t.Errorf("%+v: got %d, want %d", c, got, c.want)
		}
	}
}
