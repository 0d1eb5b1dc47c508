package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A cache is one in a directory that tests make and damage.
type cache struct {
	t    *testing.T
	dir  string
	nars map[string][]byte // by hash part
	n    int
}

func newCache(t *testing.T) *cache {
	c := &cache{t: t, dir: t.TempDir(), nars: map[string][]byte{}}
	c.write("nix-cache-info", []byte("StoreDir: /nix/store\n"))
	for _, dir := range []string{"nar", "log"} {
		if err := os.Mkdir(filepath.Join(c.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *cache) write(name string, text []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), text, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// add adds a path with a NAR of its own.
func (c *cache) add(typ compression.Type, change ...func(*narinfo.NarInfo)) *narinfo.NarInfo {
	c.t.Helper()
	return c.addNAR(makeNAR(c.t, c.n), typ, change...)
}

// addNAR adds a path. Changes are made to its narinfo when all else is written.
func (c *cache) addNAR(plain []byte, typ compression.Type, change ...func(*narinfo.NarInfo)) *narinfo.NarInfo {
	c.t.Helper()
	file := encode(c.t, typ, plain)
	sum := sha256.Sum256([]byte{byte(c.n), byte(c.n >> 8)})
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(sum[:20]) + fmt.Sprintf("-package-%d", c.n))
	if err != nil {
		c.t.Fatal(err)
	}
	c.n++
	hash, fileHash := sha256.Sum256(plain), sha256.Sum256(file)
	info := &narinfo.NarInfo{
		StorePath: path, NarHash: hash, NarSize: uint64(len(plain)), Compression: string(typ),
		FileHash: narinfo.NewHash(narinfo.SHA256, fileHash[:]), FileSize: uint64(len(file)),
	}
	info.URL = "nar/" + info.FileHash.Nix32() + ".nar" + typ.Extension()
	for _, f := range change {
		f(info)
	}
	c.write(strings.SplitN(info.URL, "?", 2)[0], file)
	c.write(path.HashPart()+".narinfo", info.Append(nil, chunkstore.DefaultStoreDir))
	c.nars[path.HashPart()] = plain
	return info
}

// encode returns plain in a compression, without compressing it.
func encode(t *testing.T, typ compression.Type, plain []byte) []byte {
	t.Helper()
	if typ == compression.Bzip2 {
		return bzip2NAR
	}
	s, err := compression.NewStored(typ, int64(len(plain)), crc32.ChecksumIEEE(plain))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = s.WriteRange(&b, 0, s.Size(), func(w io.Writer, off, n int64) error {
		_, err := w.Write(plain[off : off+n])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func makeNAR(t *testing.T, seed int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	text := bytes.Repeat(fmt.Appendf(nil, "line of file %d\n", seed), 3000+seed)
	if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openStore(t *testing.T) *chunkstore.Store {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), chunkstore.Options{State: t.TempDir(), Bucket: b, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// run imports, and returns what was left out, in order.
func run(t *testing.T, s *chunkstore.Store, source upstream.Source, opts Options) (*Report, []Skip) {
	t.Helper()
	var skipped []Skip
	opts.Skipped = func(s Skip) { skipped = append(skipped, s) }
	opts.Warn = func(msg string, args ...any) { t.Log(append([]any{msg}, args...)...) }
	report, err := Import(t.Context(), s, source, opts, new(Progress))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(skipped, func(a, b Skip) int { return strings.Compare(a.Name, b.Name) })
	return report, skipped
}

// check compares what the store has of a path with the cache.
func (c *cache) check(s *chunkstore.Store, info *narinfo.NarInfo) {
	c.t.Helper()
	got, err := s.NarInfo(c.t.Context(), info.StorePath.HashPart())
	if err != nil {
		c.t.Errorf("%s: %v", info.StorePath, err)
		return
	}
	if a, b := got.Fingerprint(chunkstore.DefaultStoreDir), info.Fingerprint(chunkstore.DefaultStoreDir); a != b || len(got.Sigs) != len(info.Sigs) {
		c.t.Errorf("%s: got %s with %v, want %s with %v", info.StorePath, a, got.Sigs, b, info.Sigs)
	}
	o, err := s.Object(c.t.Context(), got.NarHash)
	if err != nil {
		c.t.Errorf("%s: %v", info.StorePath, err)
		return
	}
	var b bytes.Buffer
	if err := o.WritePlain(c.t.Context(), &b, 0, o.Size()); err != nil || !bytes.Equal(b.Bytes(), c.nars[info.StorePath.HashPart()]) {
		c.t.Errorf("%s: got other bytes, %v", info.StorePath, err)
	}
}

// TestImport imports one cache of each kind that there is, twice.
func TestImport(t *testing.T) {
	c := newCache(t)
	var all []*narinfo.NarInfo
	for _, typ := range []compression.Type{compression.XZ, compression.Zstd, compression.None, compression.Gzip, compression.Brotli, compression.LZ4} {
		all = append(all, c.add(typ))
	}
	all = append(all,
		c.addNAR(bzip2Plain(t), compression.Bzip2),
		c.add(compression.XZ, func(info *narinfo.NarInfo) { info.URL = info.FileHash.Nix32() + ".nar.xz" }),                            // nix-push
		c.add(compression.XZ, func(info *narinfo.NarInfo) { info.URL = fmt.Sprintf("nar/%x.nar.xz", info.FileHash.Sum()) }),            // cachix
		c.add(compression.None, func(info *narinfo.NarInfo) { info.URL = "nar/" + info.StorePath.HashPart() + ".nar" }),                // attic
		c.add(compression.Zstd, func(info *narinfo.NarInfo) { info.URL = "nar/" + narinfo.EncodeNix32(info.NarHash[:]) + ".nar.zst" }), // Hydra's
		c.add(compression.None, func(info *narinfo.NarInfo) {
			info.URL, info.FileHash, info.FileSize = "nar/x.nar?hash=y", narinfo.Hash{}, 0
		}), // harmonia
	)
	shared := makeNAR(t, 1000)
	all = append(all, c.addNAR(shared, compression.XZ), c.addNAR(shared, compression.XZ))
	c.write("MANIFEST", []byte("version {\n  ManifestVersion: 4\n}\n")) // nix-push's list, which is not needed
	c.write("MANIFEST.bz2", bzip2NAR)
	c.write("log/x.drv", []byte("built\n"))
	c.write(all[0].StorePath.HashPart()+".ls", []byte(`{"version":1}`))

	s := openStore(t)
	report, skipped := run(t, s, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})
	if n := int64(len(all)); report.Imported != n || report.Paths != n || report.Shared != 1 || report.Files != 2 || report.Renamed != 0 || len(skipped) != 0 {
		t.Errorf("got %+v, %v", report, skipped)
	}
	for i, info := range all {
		c.check(s, info)
		name, _, _ := strings.Cut(info.URL, "?")
		f, err := s.File(t.Context(), name)
		if err != nil || f.Content != info.NarHash || f.Compression != info.Compression || i < 6 && f.FileHash != chunkstore.Hash(info.FileHash.Sum()) {
			t.Errorf("%s: the old name %s: got %+v, %v", info.StorePath, name, f, err)
		}
	}
	report, _ = run(t, s, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})
	if report.Imported != 0 || report.Present != int64(len(all)) || report.ReadBytes != 0 || report.Files != 0 {
		t.Errorf("again: got %+v", report)
	}
}

// TestImportDamaged imports a cache in which much is wrong. What is right comes in.
func TestImportDamaged(t *testing.T) {
	c := newCache(t)
	damage := func(info *narinfo.NarInfo, change func([]byte) []byte) {
		name := filepath.Join(c.dir, info.URL)
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, change(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]Reason{}
	bad := func(reason Reason, info *narinfo.NarInfo) *narinfo.NarInfo {
		want[info.StorePath.String()] = reason
		return info
	}
	right := []*narinfo.NarInfo{c.add(compression.XZ), c.add(compression.None)}
	gone := bad(NoNAR, c.add(compression.XZ))
	if err := os.Remove(filepath.Join(c.dir, gone.URL)); err != nil {
		t.Fatal(err)
	}
	damage(bad(BadNAR, c.add(compression.XZ)), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	damage(bad(BadNAR, c.add(compression.None)), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	damage(bad(BadNAR, c.add(compression.XZ)), func(b []byte) []byte { return b[:len(b)/2] })
	damage(bad(BadNAR, c.add(compression.Zstd)), func([]byte) []byte { return nil })
	damage(bad(BadNAR, c.add(compression.Zstd)), func([]byte) []byte { return []byte("<html>not here</html>") })
	bad(BadNAR, c.add(compression.XZ, func(info *narinfo.NarInfo) { info.NarSize++ }))
	bad(BadNAR, c.add(compression.XZ, func(info *narinfo.NarInfo) { info.NarHash[0] ^= 1 }))
	// Only the file is another one, which no Nix looks at.
	renamed := c.add(compression.XZ)
	damage(renamed, func(b []byte) []byte { return append(b, 0, 0, 0, 0) }) // padding
	other := c.add(compression.XZ, func(info *narinfo.NarInfo) { info.FileHash = narinfo.NewHash(narinfo.SHA256, make([]byte, 32)) })
	right = append(right, renamed, other)
	h := strings.Repeat("0", 32)
	c.write(h+".narinfo", []byte("<!DOCTYPE html>"))
	want[h] = BadNarInfo
	another := strings.Repeat("1", 32)
	c.write(another+".narinfo", right[0].Append(nil, chunkstore.DefaultStoreDir))
	want[another] = BadNarInfo

	s := openStore(t)
	report, skipped := run(t, s, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})
	for _, skip := range skipped {
		if want[skip.Name] != skip.Reason {
			t.Errorf("got %+v, want %q", skip, want[skip.Name])
		}
		if has, err := s.HasPath(t.Context(), skip.Name[:narinfo.HashPartLen]); has || err != nil {
			t.Errorf("%s is there, %v", skip.Name, err)
		}
	}
	if len(skipped) != len(want) || report.Failed() != int64(len(want)) || report.Imported != int64(len(right)) || report.Renamed != 1 {
		t.Errorf("got %+v, %d of %d left out", report, len(skipped), len(want))
	}
	for _, info := range right {
		c.check(s, info)
		if f, err := s.File(t.Context(), info.URL); err != nil || f.Content != info.NarHash {
			t.Errorf("%s is not there: %v", info.URL, err)
		}
	}
}

// TestImportClosure walks references, from a cache that cannot be listed.
func TestImportClosure(t *testing.T) {
	c := newCache(t)
	lib := c.add(compression.XZ)
	gone, err := narinfo.ParseBaseName(strings.Repeat("2", 32) + "-gone")
	if err != nil {
		t.Fatal(err)
	}
	app := c.add(compression.XZ, func(info *narinfo.NarInfo) {
		info.References = []narinfo.StorePath{lib.StorePath, gone, info.StorePath}
	})
	c.add(compression.XZ) // which nothing refers to
	server := httptest.NewServer(http.FileServer(http.Dir(c.dir)))
	defer server.Close()
	source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: server.URL, StoreDir: chunkstore.DefaultStoreDir})
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	if _, err := Import(t.Context(), s, source, Options{}, new(Progress)); err == nil {
		t.Error("a cache that cannot be listed: no error")
	}
	report, skipped := run(t, s, source, Options{Closure: true, Paths: func(_ context.Context, fn func(string) error) error {
		return errors.Join(fn(app.StorePath.HashPart()), fn(app.StorePath.HashPart()))
	}})
	if report.Imported != 2 || report.Incomplete != 1 || len(skipped) != 1 || skipped[0].Reason != NoNarInfo || skipped[0].Name != gone.HashPart() {
		t.Errorf("got %+v, %v", report, skipped)
	}
	c.check(s, app)
	c.check(s, lib)
}

// A path is incomplete whichever of its references is missing, and in whatever order they come.
func TestImportIncomplete(t *testing.T) {
	c := newCache(t)
	late, gone := c.add(compression.None), c.add(compression.None)
	if late.StorePath.String() > gone.StorePath.String() {
		late, gone = gone, late // references are looked at in order
	}
	app := c.add(compression.None, func(info *narinfo.NarInfo) {
		info.References = []narinfo.StorePath{late.StorePath, gone.StorePath}
	})
	paths := listOf([]string{app.StorePath.HashPart(), late.StorePath.HashPart()})
	report, _ := run(t, openStore(t), upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{Paths: paths, Jobs: 1})
	if report.Imported != 2 || report.Incomplete != 1 {
		t.Errorf("got %+v", report)
	}
}

// TestImportSignatures takes what is signed, byte for byte, and nothing else.
func TestImportSignatures(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	signed := c.add(compression.XZ, func(info *narinfo.NarInfo) { info.Sign(chunkstore.DefaultStoreDir, key) })
	c.add(compression.XZ)
	s := openStore(t)
	report, skipped := run(t, s, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{Keys: []narinfo.PublicKey{key.Public()}})
	if report.Imported != 1 || len(skipped) != 1 || skipped[0].Reason != BadSignature {
		t.Errorf("got %+v, %v", report, skipped)
	}
	c.check(s, signed)
}

// A brokenSource ends the import at its k-th NAR, and counts those that it gives.
type brokenSource struct {
	*upstream.Dir
	left   atomic.Int64
	cancel context.CancelFunc
	mu     sync.Mutex
	opened map[string]int
}

func (b *brokenSource) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	if b.left.Add(-1) == 0 {
		b.cancel()
	}
	b.mu.Lock()
	b.opened[info.URL]++
	b.mu.Unlock()
	return b.Dir.NAR(ctx, info, off)
}

// TestImportInterrupted ends an import many times. No more NARs are read again than were
// on their way.
func TestImportInterrupted(t *testing.T) {
	c := newCache(t)
	const paths, jobs = 60, 4
	var all []*narinfo.NarInfo
	for range paths {
		all = append(all, c.add(compression.XZ))
	}
	s := openStore(t)
	source := &brokenSource{Dir: upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), opened: map[string]int{}}
	runs := 0
	for err := errors.New("none yet"); err != nil; runs++ {
		ctx, cancel := context.WithCancel(t.Context())
		source.cancel = cancel
		source.left.Store(8)
		_, err = Import(ctx, s, source, Options{Jobs: jobs, Warn: slog.Warn}, new(Progress))
		cancel()
		if runs > paths {
			t.Fatal(err)
		}
	}
	total := 0
	for _, n := range source.opened {
		total += n
	}
	if total > paths+runs*jobs {
		t.Errorf("%d NARs were opened in %d runs of %d jobs, there are %d", total, runs, jobs, paths)
	}
	for _, info := range all {
		c.check(s, info)
	}
}

// TestImportUnreachable ends when the source is gone, and blames nothing else.
func TestImportUnreachable(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotImplemented) }))
	defer server.Close()
	source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: server.URL, StoreDir: chunkstore.DefaultStoreDir})
	if err != nil {
		t.Fatal(err)
	}
	report, err := Import(t.Context(), openStore(t), source, Options{Paths: func(_ context.Context, fn func(string) error) error {
		for i := range 10 * maxUnreachable {
			if err := fn(fmt.Sprintf("%032d", i)); err != nil {
				return err
			}
		}
		return nil
	}}, new(Progress))
	if !errors.Is(err, ErrSource) || report.Skipped[Unreachable] == 0 || report.Failed() != report.Skipped[Unreachable] {
		t.Errorf("got %+v, %v", report, err)
	}
}

// TestImportReal imports the real caches.
func TestImportReal(t *testing.T) {
	dirs, _ := filepath.Glob("../../shared/corpus/real/*")
	if len(dirs) == 0 {
		t.Skip("../../shared/corpus/real is not there")
	}
	s := openStore(t)
	for _, dir := range dirs {
		infos, _ := filepath.Glob(filepath.Join(dir, "*.narinfo"))
		report, skipped := run(t, s, upstream.NewDir(dir, chunkstore.DefaultStoreDir), Options{})
		if report.Imported+report.Present != int64(len(infos)) || len(skipped) > 0 {
			t.Errorf("%s: got %+v, %v", dir, report, skipped)
		}
		for _, name := range infos {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want, err := narinfo.Parse(text, chunkstore.DefaultStoreDir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.NarInfo(t.Context(), want.StorePath.HashPart())
			if err != nil || !slices.EqualFunc(got.Sigs, want.Sigs, func(a, b narinfo.Signature) bool { return a.String() == b.String() }) {
				t.Errorf("%s: got %v, %v", want.StorePath, got, err)
			}
		}
	}
	report, err := s.Check(t.Context(), chunkstore.CheckOptions{ReadData: true})
	if err != nil || !report.OK() {
		t.Errorf("check: %+v, %v", report, err)
	}
}

// TestImportSince imports what came in lately: paths, and files of all kinds.
func TestImportSince(t *testing.T) {
	c := newCache(t)
	old, fresh := c.add(compression.XZ), c.add(compression.XZ)
	trace := "build-trace-v2/" + fresh.StorePath.String() + ".drv/out.doi"
	if err := os.MkdirAll(filepath.Dir(filepath.Join(c.dir, trace)), 0o755); err != nil {
		t.Fatal(err)
	}
	c.write(trace, []byte("{}"))
	c.write("log/old.drv", []byte("built\n"))
	since := time.Now().Add(-time.Hour)
	for _, name := range []string{old.StorePath.HashPart() + ".narinfo", "log/old.drv"} {
		if err := os.Chtimes(filepath.Join(c.dir, name), since, since.Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	s, source := openStore(t), upstream.NewDir(c.dir, chunkstore.DefaultStoreDir)
	if report, skipped := run(t, s, source, Options{Since: since}); report.Paths != 1 || report.Imported != 1 || report.Files != 1 || len(skipped) > 0 {
		t.Errorf("got %+v, %v", report, skipped)
	}
	c.check(s, fresh)
	if _, err := s.File(t.Context(), trace); err != nil {
		t.Error(err)
	}
	if report, _ := run(t, s, source, Options{}); report.Imported != 1 || report.Files != 1 {
		t.Errorf("the rest: got %+v", report)
	}
	opts := Options{Since: since, Paths: func(context.Context, func(string) error) error { return nil }}
	if _, err := Import(t.Context(), s, source, opts, new(Progress)); err == nil {
		t.Error("since, of paths that were named: no error")
	}
}
