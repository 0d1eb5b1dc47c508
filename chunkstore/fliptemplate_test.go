package chunkstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

const flipStoreDir = "/nix/store"

// flipRepository has small chunks, so that a small store has many.
func flipRepository() chunkstore.Repository {
	r := chunkstore.DefaultRepository(flipStoreDir, chunkstore.Rabin)
	r.MinSize, r.AverageBits, r.MaxSize, r.Literal = 4<<10, 13, 32<<10, 512
	return r
}

// A flipTemplate is a store as a crash leaves it, with something of everything in it.
type flipTemplate struct {
	files     map[string][]byte // by path below the store's directory
	paths     []*flipPath
	uploads   map[string][]byte // other files, by URL
	questions []question
	regions   regions
}

// refusing is a bucket that can be told to take nothing more.
type refusing struct {
	bucket.Bucket
	refuse atomic.Bool
}

func (b *refusing) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if b.refuse.Load() {
		return errors.New("the bucket takes nothing")
	}
	return b.Bucket.Put(ctx, key, r, size)
}

// openFlipStore opens the store in dir.
func openFlipStore(ctx context.Context, dir string, refuse bool, log *slog.Logger, repo chunkstore.Repository) (*chunkstore.Store, *refusing, error) {
	b, err := bucket.Open(ctx, "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		return nil, nil, err
	}
	r := &refusing{Bucket: b}
	r.refuse.Store(refuse)
	s, err := chunkstore.Open(ctx, chunkstore.Options{
		State: filepath.Join(dir, "state"), Bucket: r, Repository: repo, PackSize: 128 << 10, FlushInterval: time.Hour, Log: log,
	})
	return s, r, err
}

func flipGateway(s *chunkstore.Store, log *slog.Logger) *gateway.Gateway {
	return gateway.New(s, gateway.Config{Access: &access.Policy{Anyone: access.Read | access.Write}, Log: log})
}

// makeFlipTemplate makes the store in dir, which is of no use afterwards.
func makeFlipTemplate(t testing.TB, dir string, rnd *rand.Rand) *flipTemplate {
	t.Helper()
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	tpl := &flipTemplate{files: map[string][]byte{}, uploads: map[string][]byte{}}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, _, err := openFlipStore(ctx, dir, false, log, flipRepository())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	tpl.makePaths(t, rnd)
	b, err := bucket.Open(ctx, "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	chunkstore.PutManyChunkPack(t, b, flipRepository(), tpl.paths[0].nar)
	s, bucket, err := openFlipStore(ctx, dir, false, log, chunkstore.Repository{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.WithoutCancel(ctx))
	g := flipGateway(s, log)
	push := func(paths ...*flipPath) {
		t.Helper()
		for _, p := range paths {
			if err := p.push(ctx, g); err != nil {
				t.Fatal(err)
			}
		}
	}
	flush := func() {
		t.Helper()
		if err := s.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	n := len(tpl.paths)
	bad := map[string]int64{} // the frames that are damaged already
	for i, p := range tpl.paths[:n-4] {
		push(p)
		flush()
		if i == 1 || i == 2 {
			spoilNewest(t, dir, bad)
			if err := p.pull(ctx, g); err == nil {
				t.Fatal("damage was not noticed")
			}
		}
	}
	push(tpl.paths[1]) // the other one stays absent
	for url, body := range tpl.uploads {
		if r := ask(ctx, g, "PUT", url, body); r.status != http.StatusOK {
			t.Fatalf("PUT %s: %v", url, r)
		}
	}
	flush()
	bucket.refuse.Store(true)
	push(tpl.paths[n-4 : n-1]...)
	if _, err := s.Stats(ctx); err != nil { // the index is written
		t.Fatal(err)
	}
	push(tpl.paths[n-1])
	tpl.readFiles(t, dir)
	tpl.ask(t, g)
	tpl.regions = classify(t, tpl.files, func(file string, off int64) bool { return bad[file] == off+1 })
	return tpl
}

// makePaths makes NARs of what becomes frames of every kind.
func (tpl *flipTemplate) makePaths(t testing.TB, rnd *rand.Rand) {
	t.Helper()
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	plain := func(b []byte) []byte { return b }
	add := func(nar []byte, ext, compression string, encode func([]byte) []byte) {
		tpl.paths = append(tpl.paths, newFlipPath(t, "test", nar, key, ext, compression, encode))
	}
	data := func(n int) []byte { return chunkstore.RandomData(rnd, n) }
	drv := new(bytes.Buffer) // more hashes than other bytes
	for drv.Len() < 20<<10 {
		var hash [20]byte
		for i := range hash {
			hash[i] = byte(rnd.Uint32())
		}
		drv.WriteString(flipStoreDir + "/" + narinfo.EncodeNix32(hash[:]) + "-x ")
	}
	shared := data(30 << 10)
	nar := func(contents ...[]byte) []byte { return chunkstore.MakeNAR(t, contents...) }
	add(nar(data(60<<10), data(3000)), "", "none", plain) // in frames of many chunks
	add(nar(data(40<<10)), "", "none", plain)             // damaged, and healed
	add(nar(data(40<<10)), "", "none", plain)             // damaged
	add(nar(drv.Bytes(), data(20<<10)), "", "none", plain)
	add(nar(shared, data(20<<10)), ".zst", "zstd", zstdBytes)
	add(nar(shared, data(100), data(5000)), ".gz", "gzip", gzipBytes)
	add(nar(data(90<<10), shared), "", "none", plain) // in the spool from here on
	add(nar(data(80<<10)), "", "none", plain)
	add(nar(data(20<<10), shared), "", "none", plain)
	add(nar(data(20<<10), data(200)), ".zst", "zstd", zstdBytes)
	tpl.uploads["/log/small.drv"] = data(300)
	tpl.uploads["/log/large.drv"] = data(20 << 10)
	tpl.uploads["/realisations/sha256:0!out.doi"] = []byte(`{"id":"x"}`)
}

// spoilNewest damages a frame in the middle of the pack that came to the bucket last.
func spoilNewest(t testing.TB, dir string, bad map[string]int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	newest := paths[len(paths)-1]
	b, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	rel, _ := filepath.Rel(dir, newest)
	r := regions{}
	r.addPack(t, "pack", filepath.ToSlash(rel), b, func(int64) bool { return false })
	s := r["pack frame prefix"][1]
	b[s.off] ^= 4
	if err := os.Chmod(newest, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newest, b, 0o600); err != nil {
		t.Fatal(err)
	}
	bad[s.file] = int64(s.off) + 1
}

// readFiles takes the files as they are while the store is open.
func (tpl *flipTemplate) readFiles(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		tpl.files[filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask asks for everything that there is, and remembers the answers.
func (tpl *flipTemplate) ask(t testing.TB, g *gateway.Gateway) {
	t.Helper()
	get := func(url string) []byte {
		r := ask(t.Context(), g, "GET", url, nil)
		if r.status == http.StatusNotFound {
			r.body = nil
		} else if r.status != http.StatusOK || r.cut {
			t.Fatalf("GET %s: %v", url, r)
		}
		tpl.questions = append(tpl.questions, question{url, r.body})
		return r.body
	}
	for i, p := range tpl.paths {
		urls := []string{p.plainURL(), "/" + p.info.StorePath.HashPart() + ".ls"}
		if p.file != p.plainURL() {
			urls = append(urls, p.file)
		}
		if text := get(p.narInfoURL()); text == nil != (i == 2) {
			t.Fatalf("path %d has narinfo %q", i, text)
		} else if text != nil {
			info, err := narinfo.Parse(text, flipStoreDir)
			if err != nil {
				t.Fatal(err)
			}
			urls = append(urls, "/"+info.URL)
			if err := p.pull(t.Context(), g); err != nil {
				t.Fatal(err)
			}
		}
		for _, url := range urls {
			get(url)
		}
	}
	for url, want := range tpl.uploads {
		if got := get(url); !bytes.Equal(got, want) {
			t.Fatalf("GET %s: got %d bytes, want %d", url, len(got), len(want))
		}
	}
}

// write writes the store into an empty directory, with one byte changed.
func (tpl *flipTemplate) write(dir, file string, off int, by byte) error {
	for name, b := range tpl.files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if name == file {
			b = bytes.Clone(b)
			b[off] ^= by
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func sha256Sum(b []byte) [32]byte { return sha256.Sum256(b) }

func nix32Sum(b []byte) string {
	sum := sha256.Sum256(b)
	return narinfo.EncodeNix32(sum[:])
}

var unzstd, _ = zstd.NewReader(nil)

func zstdBytes(b []byte) []byte {
	enc, _ := zstd.NewWriter(nil)
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

func gzipBytes(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b) // to memory
	w.Close()
	return buf.Bytes()
}

// flipDir returns a directory that goes with the test, in memory if that can be: the store
// syncs much.
func flipDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dedupd-flips-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// baseName is the name by which messages call a file.
func baseName(file string) string { return file[strings.LastIndexByte(file, '/')+1:] }
