package gateway_test

import (
	"bytes"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/encodings"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/pull"
)

// An oldServer is a server with a cache for old names.
type oldServer struct {
	*server
	cache *encodings.Cache
}

// startOld starts one at an address, in a directory that may be that of one before it.
// Clients do not come back after grace.
func startOld(t *testing.T, addr, dir string, grace time.Duration, upstreams *pull.Config) *oldServer {
	t.Helper()
	cache, err := encodings.Open(encodings.Options{Dir: filepath.Join(dir, "old"), Size: 64 << 20, Grace: grace, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := startAt(t, addr, dir, chunkstore.Limits{}, upstreams, func(cfg *gateway.Config) { cfg.OldNames = cache })
	t.Cleanup(cache.Close) // before the store
	return &oldServer{s, cache}
}

func (s *oldServer) close() {
	s.cache.Close()
	s.server.close()
}

// until waits for the cache.
func (s *oldServer) until(done func(encodings.Stats) bool) {
	s.t.Helper()
	for !done(s.cache.Stats()) {
		if time.Sleep(2 * time.Millisecond); s.t.Context().Err() != nil {
			s.t.Fatal("the test is over")
		}
	}
}

// compressed returns b as it is uploaded.
func compressed(t *testing.T, typ compression.Type, b []byte) []byte {
	t.Helper()
	if typ == compression.Zstd {
		return zstdEncode(t, b)
	}
	var buf bytes.Buffer
	err := encodings.Compress(t.Context(), typ, &buf, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decompressed(t *testing.T, typ compression.Type, b []byte) []byte {
	t.Helper()
	r, err := compression.NewReader(typ, bytes.NewReader(b), compression.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// TestOldNames downloads by old names while they become smaller, when they are, and when
// the smaller files are damaged. No client gets bytes of two forms.
func TestOldNames(t *testing.T) {
	for _, typ := range []compression.Type{compression.XZ, compression.Zstd, compression.Gzip, compression.Brotli, compression.LZ4} {
		t.Run(string(typ), func(t *testing.T) {
			dir := t.TempDir()
			s := startOld(t, "127.0.0.1:0", dir, time.Hour, nil)
			f := treeNAR(t, [2]string{"/"}, [2]string{"text", strings.Repeat("a line that can be compressed\n", 20_000)})
			file := compressed(t, typ, f.nar)
			name := "/" + fileName(file, typ.Extension())
			s.want(200, "PUT", name, file)
			part := func(status int, of *answer, headers ...string) {
				t.Helper()
				got := s.want(status, "GET", name, nil, append(headers, "Range: bytes=100-")...)
				if of == nil {
					return
				}
				want := of.body
				if status == 206 {
					want = want[100:]
				}
				if !bytes.Equal(got.body, want) || got.Header.Get("ETag") != of.Header.Get("ETag") {
					t.Errorf("%q: got %d bytes of %s, want %d of %s", headers, len(got.body), got.Header.Get("ETag"), len(want), of.Header.Get("ETag"))
				}
			}
			whole := func(ranges bool) *answer {
				t.Helper()
				a := s.want(200, "GET", name, nil)
				if got := decompressed(t, typ, a.body); !bytes.Equal(got, f.nar) {
					t.Errorf("got %d bytes that decode to %d others", len(a.body), len(got))
				}
				head := s.want(200, "HEAD", name, nil)
				for _, h := range []string{"Content-Length", "ETag", "Accept-Ranges", "Cache-Control"} {
					if got, want := head.Header.Get(h), a.Header.Get(h); got != want {
						t.Errorf("HEAD: got %s: %s, GET has %s", h, got, want)
					}
				}
				if got := a.Header.Get("Accept-Ranges") != ""; got != ranges {
					t.Errorf("got headers %v, want ranges: %v", a.Header, ranges)
				}
				return a
			}

			large := whole(true)
			if len(large.body) < len(f.nar) {
				t.Fatalf("the first download has %d bytes", len(large.body))
			}
			s.want(200, "GET", name, nil)
			s.want(200, "GET", name, nil) // the third
			s.until(func(st encodings.Stats) bool { return st.Encoded+st.Failures > 0 })
			small := whole(false)
			if len(small.body) > len(f.nar)/2 {
				t.Errorf("a NAR of %d bytes is encoded in %d", len(f.nar), len(small.body))
			}
			etag := "If-Range: " + small.Header.Get("ETag")
			largeTag := "If-Range: " + large.Header.Get("ETag")
			part(206, large)
			part(206, large, largeTag)
			part(206, small, etag)
			part(200, small, `If-Range: "another"`)

			// The next process has waited long enough.
			s.close()
			s = startOld(t, s.host, dir, time.Millisecond, nil)
			for s.want(200, "HEAD", name, nil).Header.Get("Accept-Ranges") == "" {
				time.Sleep(time.Millisecond)
			}
			s.checkBody(name, small.body)
			part(206, small)
			part(206, small, etag)
			part(206, large, largeTag)
			s.close()

			s = startOld(t, s.host, dir, time.Hour, nil)
			part(206, small)
			flipByte(t, filepath.Join(dir, "old"))
			part(503, nil)
			if again := whole(false); !bytes.Equal(again.body, large.body) {
				t.Error("after damage the name has another form than before")
			}
			part(416, nil)
			part(206, large, largeTag)
			part(200, large, etag)
			if st := s.cache.Stats(); st.Damaged != 1 || st.Files != 0 {
				t.Errorf("got %+v", st)
			}
		})
	}
}

// flipByte damages the one large file in a directory.
func flipByte(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		b[len(b)/8] ^= 1
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testNixOldNames has Nix download by the names that it remembers, with connections that
// are cut: when the smaller file is there between one half and the other; before the name
// has settled, when Nix is not told of ranges and fails; and afterwards.
func testNixOldNames(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		dir := t.TempDir()
		s := startOld(t, "127.0.0.1:0", dir, time.Hour, nil)
		path := realPaths[0]
		var cut, resumed atomic.Int32
		cutNow := func(name string) {} // called in the middle of each NAR
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+s.host+r.URL.Path, r.Body)
			if err != nil {
				panic(err)
			}
			req.Header, req.ContentLength = r.Header.Clone(), r.ContentLength
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				panic(err)
			}
			defer resp.Body.Close()
			for name, values := range resp.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(resp.StatusCode)
			switch {
			case r.Header.Get("Range") != "":
				resumed.Add(1)
			case r.Method == "GET" && strings.HasPrefix(r.URL.Path, "/nar/"):
				cut.Add(1)
				io.CopyN(w, resp.Body, resp.ContentLength/2)
				http.NewResponseController(w).Flush()
				cutNow(r.URL.Path)
				panic(http.ErrAbortHandler)
			}
			io.Copy(w, resp.Body)
		}))
		defer proxy.Close()
		download := func(store string) (string, error) {
			cut.Store(0)
			resumed.Store(0)
			return nix.try("writer", "nix", "copy", "--from", proxy.URL, "--to", nix.store(store), path)
		}
		verify := func(store string) {
			t.Helper()
			nix.run("reader", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store(store), path)
			if cut.Load() != 2 || resumed.Load() != 2 {
				t.Errorf("%d downloads were cut, %d resumed, want 2", cut.Load(), resumed.Load())
			}
		}

		nix.run("writer", "nix", "copy", "--from", nix.realStore(), "--to", proxy.URL+"?compression=xz", path)
		names := regexp.MustCompile(`method=PUT path=(/nar/\S+)`).FindAllStringSubmatch(s.log.String(), -1)
		large := map[string]string{} // lengths
		for _, m := range names {
			for range 2 {
				large[m[1]] = s.want(200, "GET", m[1], nil).Header.Get("Content-Length")
			}
		}
		cutNow = func(name string) { // this is the third download
			for s.want(200, "HEAD", name, nil).Header.Get("Content-Length") == large[name] {
				time.Sleep(time.Millisecond)
			}
		}
		if out, err := download("first"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		verify("first")
		cutNow = func(string) {}
		if out, err := download("second"); err == nil || resumed.Load() != 0 || strings.Contains(out, "hash mismatch") {
			t.Errorf("before the names settle: %v, %d resumed\n%s", err, resumed.Load(), out)
		}

		s.close()
		s = startOld(t, s.host, dir, time.Millisecond, nil)
		for name := range large {
			for s.want(200, "HEAD", name, nil).Header.Get("Accept-Ranges") == "" {
				time.Sleep(time.Millisecond)
			}
		}
		if out, err := download("third"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		verify("third")
		if st := s.cache.Stats(); st.Hits == 0 || st.Misses != 0 {
			t.Errorf("got %+v", st)
		}
	})
}
