package gateway_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// An origin is an upstream that counts what it is asked for.
type origin struct {
	*httptest.Server
	key narinfo.PrivateKey

	mu    sync.Mutex
	files map[string][]byte
	asked map[string]int
	// serve answers instead, for files whose names begin with a key of it.
	serve map[string]http.HandlerFunc
}

func newOrigin(t testing.TB) *origin {
	t.Helper()
	key, err := narinfo.GenerateKey("origin-1")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{key: key, files: map[string][]byte{}, asked: map[string]int{}, serve: map[string]http.HandlerFunc{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.Replace(r.URL.RequestURI()[1:], "%21", "!", 1)
	o.mu.Lock()
	o.asked[name]++
	b, ok := o.files[name]
	var handler http.HandlerFunc
	for prefix, h := range o.serve {
		if strings.HasPrefix(name, prefix) {
			handler = h
		}
	}
	o.mu.Unlock()
	switch {
	case handler != nil:
		handler(w, r)
	case !ok:
		http.NotFound(w, r)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// on has h answer for files whose names begin with prefix.
func (o *origin) on(prefix string, h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.serve[prefix] = h
}

// count returns how often name was asked for.
func (o *origin) count(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[name]
}

// put adds a path whose NAR is file, at a URL, and returns its narinfo.
func (o *origin) put(f *fixture, url, compression string, file []byte) *narinfo.NarInfo {
	info := f.info(url, compression)
	info.FileHash, info.FileSize = fileHash(file), uint64(len(file))
	info.Sign(storeDir, o.key)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files[url], o.files[f.narInfoURL()[1:]] = file, []byte(info.Text(storeDir))
	return info
}

// upstreams are the settings with which a gateway pulls from o.
func (o *origin) upstreams(t testing.TB, change ...func(*pull.Upstream)) *pull.Config {
	t.Helper()
	source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: o.URL, StoreDir: storeDir, Timeout: 5 * time.Second, IdleTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	u := pull.Upstream{Source: source, Keys: []narinfo.PublicKey{o.key.Public()}, Keep: true}
	for _, c := range change {
		c(&u)
	}
	return &pull.Config{Upstreams: []pull.Upstream{u}}
}

func startWith(t testing.TB, upstreams *pull.Config, change ...func(*gateway.Config)) *server {
	t.Helper()
	return startPulling(t, t.TempDir(), chunkstore.Limits{}, upstreams, change...)
}

func fileHash(b []byte) narinfo.Hash {
	_, sum, _ := strings.Cut(strings.TrimSuffix(fileName(b, ""), ".nar"), "/")
	h, err := narinfo.ParseHash("sha256:" + sum)
	if err != nil {
		panic(err)
	}
	return h
}

// waitStored waits until the store has the narinfo of the path with a hash part.
func (s *server) waitStored(hashPart string) {
	s.t.Helper()
	for range 1000 {
		if _, err := s.store.NarInfo(s.t.Context(), hashPart); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("%s was not stored", hashPart)
}

// TestPull pulls a path with many clients at once.
func TestPull(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 1_000_000)
	file := zstdEncode(t, f.nar)
	name := fileName(file, ".zst")
	want := o.put(f, name, "zstd", file)
	s := startWith(t, o.upstreams(t))

	const clients = 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			if got := s.narInfo(f).Text(storeDir); got != want.Text(storeDir) {
				t.Errorf("got narinfo\n%s\nwant\n%s", got, want.Text(storeDir))
			}
			if a := s.want(200, "GET", "/"+name, nil); !bytes.Equal(a.body, file) || a.ContentLength != int64(len(file)) || a.Header.Get("Accept-Ranges") != "bytes" {
				t.Errorf("got %d bytes, Content-Length %d, header %v", len(a.body), a.ContentLength, a.Header)
			}
		})
	}
	wg.Wait()
	if n, m := o.count(f.narInfoURL()[1:]), o.count(name); n != 1 || m != 1 {
		t.Errorf("upstream was asked %d times for the narinfo and %d times for the NAR", n, m)
	}
	s.waitStored(f.path.HashPart())
	// The same bytes as before for those who come back for the rest.
	a := s.want(206, "GET", "/"+name, nil, "Range: bytes=1000-")
	if !bytes.Equal(a.body, file[1000:]) {
		t.Errorf("got %d bytes of other contents", len(a.body))
	}
	raw := a.Header.Get("Etag")

	// A new process has only the store.
	s.close()
	o.CloseClientConnections()
	s2 := startPulling(t, s.dir, chunkstore.Limits{}, &pull.Config{})
	if info := s2.narInfo(f); info.URL == name || info.Compression != "zstd" || len(info.Sigs) != 1 || info.Sigs[0] != want.Sigs[0] {
		t.Errorf("got narinfo %s", info.Text(storeDir))
	}
	a = s2.want(200, "GET", "/"+name, nil)
	if got := zstdDecode(t, a.body); !bytes.Equal(got, f.nar) || a.Header.Get("Etag") == raw {
		t.Errorf("got %d bytes, ETag %s", len(got), a.Header.Get("Etag"))
	}
}

// TestPullNames gives NARs the names that occur.
func TestPullNames(t *testing.T) {
	o := newOrigin(t)
	for i, tt := range []struct {
		name        string
		url         func(f *fixture, file []byte) string
		compression string
		encode      func(testing.TB, []byte) []byte
		keeps       bool // the name of the upstream
	}{
		{"Nix", func(_ *fixture, b []byte) string { return fileName(b, ".zst") }, "zstd", zstdEncode, true},
		{"Nix without compression", func(_ *fixture, b []byte) string { return fileName(b, "") }, "none", plain, true},
		{"Nix with gzip", func(_ *fixture, b []byte) string { return fileName(b, "") }, "gzip", gzipEncode, true},
		{"Hydra", func(f *fixture, _ []byte) string { return f.plainURL()[1:] + ".zst" }, "zstd", zstdEncode, true},
		{"cachix", func(_ *fixture, b []byte) string { return fmt.Sprintf("nar/%x.nar.zst", fileHash(b).Sum()) }, "zstd", zstdEncode, true},
		{"harmonia", func(f *fixture, _ []byte) string { return f.plainURL()[1:] + "?hash=" + f.path.HashPart() }, "none", plain, false},
		{"attic", func(f *fixture, _ []byte) string { return "nar/" + f.path.HashPart() + ".nar" }, "zstd", zstdEncode, false},
		{"nix-serve", func(f *fixture, _ []byte) string {
			return "nar/" + f.path.HashPart() + "-" + narinfo.EncodeNix32(f.hash[:]) + ".nar"
		}, "none", plain, true},
		{"dedupd", func(f *fixture, _ []byte) string {
			return "nar/" + narinfo.EncodeNix32(f.hash[:]) + "-0123456789abcdfg.nar.zst"
		}, "zstd", zstdEncode, false},
		{"nix-push", func(_ *fixture, b []byte) string { return strings.TrimPrefix(fileName(b, ".zst"), "nar/") }, "zstd", zstdEncode, false},
		{"absolute", func(_ *fixture, b []byte) string { return o.URL + "/elsewhere/" + fileName(b, ".zst") }, "zstd", zstdEncode, false},
		{"wrong extension", func(_ *fixture, b []byte) string { return fileName(b, ".xz") }, "zstd", zstdEncode, false},
		{"odd", func(_ *fixture, _ []byte) string { return "nar/some%20dir/a.nar.zst" }, "zstd", zstdEncode, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, uint64(i), 200_000)
			file := tt.encode(t, f.nar)
			url := tt.url(f, file)
			o.put(f, url, tt.compression, file)
			o.files[strings.TrimPrefix(url, o.URL+"/")] = file
			s := startWith(t, o.upstreams(t))
			info := s.narInfo(f)
			if got := info.URL == url; got != tt.keeps {
				t.Errorf("URL %s became %s", url, info.URL)
			}
			if a := s.want(200, "GET", "/"+info.URL, nil); !bytes.Equal(a.body, file) {
				t.Errorf("got %d bytes of other contents", len(a.body))
			}
			s.waitStored(f.path.HashPart())
			s.close()
			// Clients know the name for 30 days.
			s = startPulling(t, s.dir, chunkstore.Limits{}, nil)
			s.want(200, "GET", "/"+info.URL, nil)
			// Even if nothing was stored.
			s = startWith(t, o.upstreams(t))
			if a := s.want(200, "GET", "/"+info.URL, nil); !bytes.Equal(a.body, file) {
				t.Errorf("got %d bytes of other contents", len(a.body))
			}
		})
	}
}

func plain(_ testing.TB, b []byte) []byte { return b }
